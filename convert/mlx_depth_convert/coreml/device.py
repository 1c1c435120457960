"""Core ML itself, on a Mac: one compute unit in a child process, for its compilers are known to crash."""

import dataclasses
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_depth_convert.coreml import tools
from mlx_depth_convert.coreml.agreement import Agreement, Outputs, compare
from mlx_depth_convert.coreml.names import COLORS, IMAGE
from mlx_depth_convert.difference import Gate

UNITS = ("CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")  # names of coremltools' ComputeUnit
TIMEOUT = 1200  # seconds: a first compilation for the Neural Engine takes minutes for a large model
WARM_UP, TIMED = 3, 10
_PIXELS, _OUTPUTS, _FIGURES = "pixels.npy", "outputs.npz", "figures.json"


@dataclass(frozen=True)
class DeviceRun:
    """One function on one compute unit.

    Attributes:
        unit: One of ``UNITS``.
        failure: Why there are no figures; None where there are.
        agreement: With the model.
        latency_ms: Median of a prediction, in milliseconds.
        residency: Device → operations that Core ML planned for it.
    """

    unit: str
    failure: str | None = None
    agreement: Agreement | None = None
    latency_ms: float | None = None
    residency: dict[str, int] | None = None

    def faults(self, gate: Gate) -> list[str]:
        """What is wrong with it, in words."""
        return [str(self)] if self.agreement is None else self.agreement.faults(gate)

    def as_json(self) -> dict[str, Any]:
        """For ``json.dumps``."""
        return {**dataclasses.asdict(self), "agreement": None if self.agreement is None else self.agreement.as_json()}

    def __str__(self) -> str:
        if self.residency is None:
            return str(self.failure)
        places = ", ".join(f"{count} on {place}" for place, count in self.residency.items())
        return f"{self.agreement}  {self.latency_ms:.1f} ms  operations {places or 'unknown'}"


def run_units(package: Path, function: str, pixels: npt.NDArray[np.uint8], expected: Outputs) -> list[DeviceRun]:
    """Run a function on every compute unit; a crash or a hang becomes a ``failure``.

    Args:
        package: The ``.mlpackage``.
        function: Name of the function.
        pixels: RGB uint8 ``(H, W, 3)`` at the function's size.
        expected: What the model gives.
    """
    return [_run_unit(package, function, unit, pixels, expected) for unit in UNITS]


def _run_unit(package: Path, function: str, unit: str, pixels: npt.NDArray[np.uint8], expected: Outputs) -> DeviceRun:
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, _PIXELS), pixels)
        code = f"import sys; from {__name__} import run_child; run_child(*sys.argv[1:])"
        command = [sys.executable, "-c", code, str(package.resolve()), function, unit, folder]
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        except subprocess.TimeoutExpired:
            return DeviceRun(unit, failure=f"did not finish within {TIMEOUT} s")
        if child.returncode != 0:
            return DeviceRun(unit, failure=_failure(child))
        figures = json.loads(Path(folder, _FIGURES).read_text())
        with np.load(Path(folder, _OUTPUTS)) as outputs:
            agreement = compare(dict(outputs), expected)
    return DeviceRun(unit, None, agreement, figures["latency_ms"], figures["residency"])


def _failure(child: "subprocess.CompletedProcess[str]") -> str:
    if child.returncode < 0:
        return f"Core ML was killed by signal {-child.returncode}"
    last = child.stderr.strip().splitlines()[-1:] or [f"status {child.returncode}"]
    return f"Core ML failed: {last[0]}"


def run_child(package: str, function: str, unit: str, folder: str) -> None:
    """The child's part: predict, time, and write outputs and figures into the folder."""
    from PIL import Image

    ct = tools.coremltools()
    units = getattr(ct.ComputeUnit, unit)
    several = bool(ct.utils.load_spec(package).description.functions)
    model = ct.models.MLModel(package, compute_units=units, function_name=function if several else None)
    image = {IMAGE: Image.fromarray(np.load(Path(folder, _PIXELS)))}
    times = []
    for _ in range(WARM_UP + TIMED):
        start = time.perf_counter()
        outputs = model.predict(image)
        times.append((time.perf_counter() - start) * 1000)
    maps = {name: np.asarray(value, dtype=np.float32) for name, value in outputs.items() if name != COLORS}
    np.savez(Path(folder, _OUTPUTS), **maps)  # type: ignore[arg-type,unused-ignore]
    figures = {
        "latency_ms": statistics.median(times[WARM_UP:]),
        "residency": _residency(model, function, units),
    }
    Path(folder, _FIGURES).write_text(json.dumps(figures))


def _residency(model: Any, function: str, units: Any) -> dict[str, int]:
    """Operations by the device that Core ML prefers for them; empty before macOS 14.4, which cannot tell."""
    if tuple(map(int, platform.mac_ver()[0].split(".")[:2])) < (14, 4):
        return {}
    from coremltools.models.compute_plan import MLComputePlan

    plan = MLComputePlan.load_from_path(path=model.get_compiled_model_path(), compute_units=units)
    found: Counter[str] = Counter()
    for operation in plan.model_structure.program.functions[function].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is not None:  # constants have none
            device = type(usage.preferred_compute_device).__name__
            found[device.removeprefix("ML").removesuffix("ComputeDevice")] += 1
    return dict(found)
