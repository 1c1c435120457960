"""One run of one side of ``speed.py``, in a process of its own: a ``Task`` as JSON comes in, a ``Run`` goes out.

mlx-depth and torch are never in one process: torch would multiply with the OpenBLAS that mlx-depth loads.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from report import time_calls, use_device

MLX, TORCH, COMPILED = "mlx-depth", "transformers", "torch.compile"
SIDES = {"cpu": (MLX, TORCH), "gpu": (MLX, TORCH, COMPILED)}
WARM_UPS = {"cpu": 1, "gpu": 10}
PEAK_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in ru_maxrss


class Task(NamedTuple):
    """What one process measures."""

    side: str
    device: str  # cpu or gpu
    dtype: str
    folder: str  # of the model, of pixels.npy (B, H, W, 3), and of the depth that this writes
    seconds: float  # for the timed calls
    busy: bool  # processor time instead of wall-clock


class Run(NamedTuple):
    """What one process measured."""

    load: float  # seconds from the folder to a model on the device
    first: float  # seconds of the first call
    calls: list[float]  # seconds a batch, after the warm-up
    peak: float  # bytes


class Loaded(NamedTuple):
    """A model and its input on the device."""

    load: float  # seconds
    call: Callable[[], Any]  # returns once the depth is computed
    to_numpy: Callable[[Any], np.ndarray]
    peak: Callable[[], float]  # bytes


def main() -> None:
    task = Task(*json.loads(sys.argv[1]))
    print(json.dumps(measure(task)))


def measure(task: Task) -> Run:
    """Load, warm up, time."""
    pixels = np.load(Path(task.folder, "pixels.npy"))
    model = (ours if task.side == MLX else theirs)(task, pixels)
    begin = time.perf_counter()
    depth = model.call()
    first = time.perf_counter() - begin
    for _ in range(WARM_UPS[task.device] - 1):
        model.call()
    np.save(Path(task.folder, f"{task.side}.npy"), model.to_numpy(depth))
    calls = time_calls(model.call, task.seconds, time.process_time if task.busy else time.perf_counter)
    return Run(model.load, first, calls, model.peak())


def ours(task: Task, pixels: np.ndarray) -> Loaded:
    use_device(task.device)
    import mlx.core as mx

    import mlx_depth

    x = mx.array(pixels).astype(getattr(mx, task.dtype))
    mx.eval(x)  # the device has started before the clock does
    begin = time.perf_counter()
    model = mlx_depth.load(task.folder, dtype=task.dtype, reference="transformers")
    mx.synchronize()
    load = time.perf_counter() - begin
    peak = mx.get_peak_memory if task.device == "gpu" else resident_peak
    return Loaded(load, lambda: model.infer(x).depth, np.array, peak)


def theirs(task: Task, pixels: np.ndarray) -> Loaded:
    import torch
    from transformers import DepthAnythingForDepthEstimation, Dinov2Backbone  # noqa: F401  # from_pretrained needs both

    device, dtype = torch_device(task.device), getattr(torch, task.dtype)
    synchronize = torch.get_device_module(device).synchronize  # does nothing on a CPU
    x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).to(device, dtype)
    synchronize()  # the device has started before the clock does
    begin = time.perf_counter()
    model = DepthAnythingForDepthEstimation.from_pretrained(task.folder, dtype=dtype).to(device).eval()
    synchronize()
    load = time.perf_counter() - begin
    forward = torch.compile(model) if task.side == COMPILED else model

    def call() -> torch.Tensor:
        with torch.inference_mode():
            depth = forward(x).predicted_depth
        synchronize()
        return depth

    peaks = {
        "cpu": resident_peak,
        "cuda": torch.cuda.max_memory_allocated,
        "mps": torch.mps.driver_allocated_memory,  # there is no peak on a Mac: what the allocator holds at the end
    }
    return Loaded(load, call, lambda depth: depth.float().cpu().numpy(), peaks[device])


def torch_device(device: str) -> str:
    """torch's name of the device."""
    import torch

    if device == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    raise SystemExit(f"torch {torch.__version__} has no GPU here: install a build for CUDA, or use --device cpu.")


def resident_peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT


if __name__ == "__main__":
    main()
