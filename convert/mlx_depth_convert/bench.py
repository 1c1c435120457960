"""How fast a model loads and runs here, and against PyTorch where that is wanted."""

import dataclasses
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from mlx_depth.checkpoints.checkpoint import build_network, quantize_checkpoint
from mlx_depth.errors import OptionError
from mlx_depth.model import DepthModel
from mlx_depth.predictor import DEFAULT_MODEL
from mlx_depth.processor import InputSize
from mlx_depth.runtime.cpu import environment_without_openblas
from mlx_depth.runtime.forward import resolve_dtype
from mlx_depth.weights.quantization import Quantization
from mlx_depth.weights.safetensors_io import DTYPES
from mlx_depth_convert.inputs import generated_conditions
from mlx_depth_convert.opening import open_checkpoint
from mlx_depth_convert.plots import draw

TORCH = "torch"


@dataclass(frozen=True)
class Timing:
    """Seconds of one implementation; ``peak_bytes`` is the most memory that it had at once."""

    load: float
    first: float
    runs: tuple[float, ...]
    peak_bytes: int

    @property
    def median(self) -> float:
        """Of the steady runs."""
        return statistics.median(self.runs)

    @property
    def std(self) -> float:
        """Of the steady runs; 0 for a single one."""
        return statistics.stdev(self.runs) if len(self.runs) > 1 else 0.0

    @property
    def p95(self) -> float:
        """95 % of the steady runs are at most this long."""
        return float(np.percentile(self.runs, 95))

    def as_json(self) -> dict[str, Any]:
        """For ``json.dumps``."""
        steady = {"mean": statistics.fmean(self.runs), "std": self.std, "median": self.median, "p95": self.p95}
        return {"load": self.load, "first": self.first, **steady, "peak_bytes": self.peak_bytes, "runs": self.runs}


@dataclass(frozen=True)
class Measurement:
    """One model at one size, batch, number of views and number format."""

    model: str
    input_size: tuple[int, int]
    batch: int
    dtype: str
    bits: int | None
    parameters: int
    disk_bytes: int
    mlx: Timing
    torch: Timing | None
    views: int = 1  # in each scene of the batch, of a network that takes views

    @property
    def images_per_second(self) -> float:
        """From the median."""
        return self.batch * self.views / self.mlx.median

    @property
    def input(self) -> str:
        """What the network sees, as text."""
        size = "×".join(map(str, self.input_size))
        return size if self.views == 1 else f"{self.views} views of {size}"

    @property
    def ratio(self) -> float | None:
        """Our median over PyTorch's: below 1 is faster."""
        return self.mlx.median / self.torch.median if self.torch is not None else None

    def as_json(self) -> dict[str, Any]:
        """For ``json.dumps``."""
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        derived = {"images_per_second": self.images_per_second, "ratio": self.ratio}
        return {**facts, "mlx": self.mlx.as_json(), "torch": self.torch and self.torch.as_json(), **derived}


@dataclass(frozen=True)
class Benchmark:
    """All measurements, and where they were made."""

    machine: dict[str, str]
    measurements: tuple[Measurement, ...]

    def as_json(self) -> dict[str, Any]:
        """For ``json.dumps``."""
        return {"machine": self.machine, "measurements": [row.as_json() for row in self.measurements]}

    def as_markdown(self) -> str:
        """A table; the head says the units."""
        head = ["model", "input", "batch", "dtype", "bits", "load (ms)", "first (ms)", "mean ± std (ms)"]
        head += ["median (ms)", "p95 (ms)", "images/s", "peak (MB)", "parameters", "on disk (MB)"]
        compared = any(row.torch is not None for row in self.measurements)
        head += ["torch load (ms)", "torch median (ms)", "ratio"] if compared else []
        rows = [head, ["---"] * len(head), *(_cells(row, compared) for row in self.measurements)]
        where = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        return "\n".join([where, "", *("| " + " | ".join(row) + " |" for row in rows)])


def bench(
    models: Sequence[str | Path] = (DEFAULT_MODEL,),
    *,
    input_sizes: Sequence[InputSize | None] = (None,),
    batches: Sequence[int] = (1,),
    views: Sequence[int] = (1,),
    dtypes: Sequence[str | None] = (None,),
    quantize: Sequence[int | None] = (None,),
    compare: str | None = None,
    runs: int = 10,
    progress: bool = False,
) -> Benchmark:
    """Measure every combination of the options.

    Args:
        models: What ``convert`` takes as source.
        input_sizes: Side of a square network image, or ``(height, width)``, in pixels; None: the model's own.
        batches: Images, or scenes, that the network computes at once.
        views: Images of a scene, for networks that take several.
        dtypes: As for ``mlx_depth.load``.
        quantize: Bits to pack the linear layers to, in groups of 64; None: as the checkpoint is. On a CPU packed layers
            are expanded while loading.
        compare: ``"torch"``: run the package that the family is proved against, too, in a process of its own, in turn
            with ours.
        runs: Steady runs that are timed, after one warm-up.
        progress: Show progress bars on stderr.
    Returns:
        The measurements, and the machine.
    Raises:
        OptionError: If an option cannot work, or that package is wanted and missing.
        ModelNotFoundError: If there is no such model, or it cannot be downloaded.
        CheckpointError: If its files are damaged.
    """
    if compare not in (None, TORCH):
        raise OptionError(f"cannot compare with {compare!r}: the choice is {TORCH!r}.")
    if min(runs, *batches, *views) < 1:
        raise OptionError("runs, batch sizes and views start at 1: give larger numbers.")
    cases = list(itertools.product(models, input_sizes, batches, views, dtypes, quantize))
    bar = tqdm(total=len(cases) * runs, unit="run", disable=not progress)
    with bar:
        rows = [_measure(*case, compare=compare is not None, runs=runs, bar=bar) for case in cases]
    return Benchmark(describe_machine(), tuple(rows))


def plot_benchmark(benchmark: Benchmark, path: str | Path, *, overwrite: bool = False) -> Path:
    """Draw the median latencies as bars.

    Args:
        benchmark: What ``bench`` returned.
        path: ``.png``, ``.pdf`` or ``.svg``.
        overwrite: Replace a file that exists.
    Returns:
        ``path``.
    Raises:
        OptionError: If matplotlib is missing, or the suffix is another.
        SaveError: If the file exists or cannot be written.
    """
    rows = benchmark.measurements

    def fill(figure: Any) -> None:
        axes = figure.add_subplot()
        places = np.arange(len(rows))
        axes.barh(places - 0.2, [row.mlx.median * 1000 for row in rows], 0.4, label="mlx-depth")
        if any(row.torch is not None for row in rows):
            torch = [row.torch.median * 1000 if row.torch is not None else 0 for row in rows]
            axes.barh(places + 0.2, torch, 0.4, label="PyTorch")
        names = [f"{row.model} {row.input} ×{row.batch} {row.dtype}" for row in rows]
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set(xlabel="median latency, ms")
        axes.set_title("{machine}\nMLX {MLX}, {device}".format_map(benchmark.machine), fontsize="small")
        axes.legend()

    return draw(path, (8, 1.5 + 0.6 * len(rows)), fill, overwrite=overwrite)


def _measure(
    model: str | Path,
    input_size: InputSize | None,
    batch: int,
    views: int,
    dtype: str | None,
    bits: int | None,
    *,
    compare: bool,
    runs: int,
    bar: Any,
) -> Measurement:
    chosen = resolve_dtype(dtype)
    mx.reset_peak_memory()
    start = time.perf_counter()
    with open_checkpoint(model) as (checkpoint, origin):
        if bits is not None:
            checkpoint = quantize_checkpoint(checkpoint, Quantization(bits))
        stored = sum(array.nbytes for array in checkpoint.weights.values())
        network = build_network(checkpoint, dtype=chosen, expand=mx.default_device() == mx.Device(mx.cpu))
    load = time.perf_counter() - start
    spec = checkpoint.spec
    depth_model = DepthModel(spec, network, spec.processor, chosen)
    side = spec.processor.input_size if input_size is None else input_size
    exact = (side, side) if isinstance(side, int) else side
    H, W = spec.processor.network_size(exact, exact)
    if network.takes != "views" and views > 1:
        raise OptionError(f"{spec.name} sees no {views} views: leave views out.")
    shape = (batch, views, H, W, 3) if network.takes == "views" else (batch, H, W, 3)
    pixel_values = mx.random.normal(shape, key=mx.random.key(0)).astype(chosen)
    conditions = generated_conditions(network, batch)
    mx.eval(pixel_values, conditions)

    def run() -> float:
        begin = time.perf_counter()
        depth_model.infer(pixel_values, conditions)
        return time.perf_counter() - begin

    first = run()
    run()
    name = next(name for name, value in DTYPES.items() if value == chosen)
    ours: list[float] = []
    torch = None
    if not compare:
        for _ in range(runs):
            ours.append(run())
            bar.update()
    else:
        with _torch_worker(model, name, shape) as worker:
            theirs: list[float] = []
            for _ in range(runs):
                ours.append(run())
                theirs.append(worker.run())
                bar.update()
            torch = Timing(worker.load, worker.first, tuple(theirs), worker.stop())
    peak = mx.get_peak_memory()
    parameters = spec.parameters or sum(array.size for array in checkpoint.weights.values())
    timing = Timing(load, first, tuple(ours), peak)
    return Measurement(origin.id, (H, W), batch, name, bits, parameters, stored, timing, torch, views)


class _Worker:
    """The reference in a child process, so that neither side sees the other's libraries."""

    def __init__(self, process: "subprocess.Popen[str]"):
        self._process = process
        ready = self._ask(None)
        self.load = float(ready["load"])
        self.first = float(ready["first"])

    def run(self) -> float:
        """Seconds of one forward pass."""
        return float(self._ask("run")["seconds"])

    def stop(self) -> int:
        """End the child; the most memory that it had, in bytes."""
        return int(self._ask("stop")["peak_bytes"])

    def _ask(self, command: str | None) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if command is not None:
            self._process.stdin.write(f"{command}\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "it ended without a word"}
        if "error" in answer:
            raise OptionError(f"the reference cannot run ({answer['error']}): leave --compare torch out.")
        return answer


@contextmanager
def _torch_worker(model: str | Path, dtype: str, shape: tuple[int, ...]) -> Iterator[_Worker]:
    command = [sys.executable, "-m", "mlx_depth_convert.torch_worker", str(model), dtype, *map(str, shape)]
    # With our OpenBLAS loaded for all, PyTorch would run on that instead of its own.
    environment = environment_without_openblas()
    if isinstance(model, Path):
        command[3] = str(model.resolve())
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield _Worker(process)
        finally:
            process.kill()


def describe_machine() -> dict[str, str]:
    """Where something is measured: the machine, its system, the versions, and what MLX computes on."""
    device = mx.default_device()
    kind = "CPU" if device == mx.Device(mx.cpu) else "GPU"
    return {
        "machine": f"{mx.device_info()['device_name']} ({os.cpu_count()} cores, {platform.machine()})",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "MLX": importlib.metadata.version("mlx"),
        "device": kind,
    }


def _cells(row: Measurement, compared: bool) -> list[str]:
    mlx = row.mlx
    steady = f"{statistics.fmean(mlx.runs) * 1000:.1f} ± {mlx.std * 1000:.1f}"
    cells = [
        row.model,
        row.input,
        str(row.batch),
        row.dtype,
        str(row.bits or "–"),
        *(f"{seconds * 1000:.0f}" for seconds in (mlx.load, mlx.first)),
        steady,
        *(f"{seconds * 1000:.1f}" for seconds in (mlx.median, mlx.p95)),
        f"{row.images_per_second:.2f}",
        f"{mlx.peak_bytes / 1e6:.0f}",
        f"{row.parameters:,}",
        f"{row.disk_bytes / 1e6:.1f}",
    ]
    if compared and row.torch is not None:
        cells += [f"{row.torch.load * 1000:.0f}", f"{row.torch.median * 1000:.1f}", f"{row.ratio:.2f}"]
    return cells
