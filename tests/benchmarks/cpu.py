"""mlx-depth and transformers on this machine's CPU: ``python tests/benchmarks/cpu.py [--write]``.

Same weights (filled from their names), same pixels, float32, one image. Each run is a process of its own, and the two
sides take turns: A B A B. A table on stdout; ``--write`` puts it into ``RESULTS.md``; ``--busy`` compares one thread's
processor time, which other programs hardly change. Needs the extra ``reference``.
"""

import argparse
import ctypes
import datetime
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

RESULTS = Path(__file__).with_name("RESULTS.md")
SECTION = re.compile("(?<=<!-- cpu -->\n).*?(?=<!-- /cpu -->)", re.DOTALL)
INPUT_SIZES = ((518, 518), (392, 518))
SIDES = ("mlx-depth", "transformers")
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PEAK_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in ru_maxrss


class Run(NamedTuple):
    """What one process measured."""

    load: float  # seconds from the folder to a model in memory
    forward: list[float]  # seconds an image, after one warm-up
    peak: float  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["small", "base"])
    parser.add_argument("--rounds", type=int, default=3, help="processes a side")
    parser.add_argument("--images", type=int, default=5, help="timed images a process")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    parser.add_argument("--busy", action="store_true", help="processor time of one thread, for a machine in use")
    parser.add_argument("--measure", nargs=3, metavar=("SIDE", "FOLDER", "PIXELS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        side, folder, pixels = arguments.measure
        print(json.dumps(measure(side, Path(folder), Path(pixels), arguments)))
        return
    text = "\n".join([*describe(arguments), *table(arguments)]) + "\n"
    print(text)
    if arguments.write:
        RESULTS.write_text(SECTION.sub(lambda _: text, RESULTS.read_text()))


def table(arguments: argparse.Namespace) -> list[str]:
    lines = [
        "| model | input | mlx-depth, ms | transformers, ms | ratio | peak, MB | load, s | difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            save_model(name, Path(folder))
            for size in INPUT_SIZES:
                lines.append(row(name, size, Path(folder), arguments))
                print(lines[-1], file=sys.stderr)
    return lines


def row(name: str, size: tuple[int, int], folder: Path, arguments: argparse.Namespace) -> str:
    pixels = folder / "pixels.npy"
    np.save(pixels, np.random.RandomState(0).standard_normal((1, *size, 3)).astype(np.float32))
    runs: dict[str, list[Run]] = {side: [] for side in SIDES}
    for _ in range(arguments.rounds):
        for side in SIDES:
            runs[side].append(start(side, folder, pixels, arguments))
    ours, theirs = (np.load(folder / f"{side}.npy") for side in SIDES)
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    forward = {side: sorted(t * 1e3 for run in runs[side] for t in run.forward) for side in SIDES}
    middle = {side: statistics.median(forward[side]) for side in SIDES}
    times = [f"{middle[side]:.0f} ({forward[side][0]:.0f}–{forward[side][-1]:.0f})" for side in SIDES]
    peaks = [f"{max(run.peak for run in runs[side]) / 1e6:.0f}" for side in SIDES]
    loads = [f"{statistics.median(run.load for run in runs[side]):.2f}" for side in SIDES]
    ratio = middle[SIDES[0]] / middle[SIDES[1]]
    return (
        f"| V2 {name} | {size[0]}×{size[1]} | {times[0]} | {times[1]} | {ratio:.2f} | {' / '.join(peaks)} | "
        f"{' / '.join(loads)} | {difference:.0e} |"
    )


def start(side: str, folder: Path, pixels: Path, arguments: argparse.Namespace) -> Run:
    command = [sys.executable, __file__, "--images", str(arguments.images), "--measure", side, str(folder), str(pixels)]
    busy = ["--busy"] if arguments.busy else []
    environment = {**os.environ, **(ONE_THREAD if arguments.busy else {})}
    done = subprocess.run([*command, *busy], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Run(*json.loads(done.stdout))


def measure(side: str, folder: Path, pixels: Path, arguments: argparse.Namespace) -> Run:
    """In the process of one side: load, warm up, time."""
    load, forward = (ours if side == "mlx-depth" else theirs)(folder, np.load(pixels))
    np.save(folder / f"{side}.npy", forward())
    times = []
    clock = time.process_time if arguments.busy else time.perf_counter
    for _ in range(arguments.images):
        begin = clock()
        forward()
        times.append(clock() - begin)
    return Run(load, times, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT)


def ours(folder: Path, pixels: np.ndarray) -> tuple[float, Callable[[], np.ndarray]]:
    import mlx_depth  # first, so that an installed OpenBLAS is used

    # isort: split
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    begin = time.perf_counter()
    network = mlx_depth.load(folder, dtype="float32", reference="transformers").network
    load = time.perf_counter() - begin
    x = mx.array(pixels)
    return load, lambda: np.array(network(x).depth)


def theirs(folder: Path, pixels: np.ndarray) -> tuple[float, Callable[[], np.ndarray]]:
    import torch
    import transformers

    begin = time.perf_counter()
    model = transformers.DepthAnythingForDepthEstimation.from_pretrained(folder).eval()
    load = time.perf_counter() - begin
    x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))

    def forward() -> np.ndarray:
        with torch.inference_mode():
            return model(x).predicted_depth.numpy()

    return load, forward


def save_model(name: str, folder: Path) -> None:
    """Write the reference's model, from a process that gives its memory back."""
    code = "import sys, reference; reference.model(sys.argv[1]).save_pretrained(sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, name, str(folder)], cwd=Path(__file__).parents[1], check=True)


def describe(arguments: argparse.Namespace) -> list[str]:
    versions = ", ".join(f"{name} {version(name)}" for name in ("mlx", "torch", "transformers"))
    kind = "Processor time of one thread" if arguments.busy else "Wall-clock time"
    return [
        f"{datetime.date.today()}, {processor()}, {os.cpu_count()} cores, {platform.system()}, {versions}, MLX's BLAS: "
        f"{blas()}, load average at the start {os.getloadavg()[0]:.1f}. {kind} an image: medians and ranges of "
        f"{arguments.rounds} processes of {arguments.images} images. Pairs are mlx-depth / transformers; load is "
        "wall-clock; the difference is relative to the largest depth.",
        "",
    ]


def processor() -> str:
    if sys.platform != "linux":
        return platform.processor()
    name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return name[1] if name else platform.machine()


def blas() -> str:
    """What MLX multiplies with; imported late, as torch would compute with the same library in the other process."""
    from mlx_depth import openblas

    return openblas._config(ctypes.CDLL(None)).decode() or "the wheel's own"


if __name__ == "__main__":
    main()
