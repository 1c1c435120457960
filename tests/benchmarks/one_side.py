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

MLX, TORCH, COMPILED, AUTHORS = "mlx-depth", "transformers", "torch.compile", "depth_anything_3"
SIDES = {
    "depth-anything-v2": {"cpu": (MLX, TORCH), "gpu": (MLX, TORCH, COMPILED)},
    "depth-anything-3": {"cpu": (MLX, AUTHORS), "gpu": (MLX, AUTHORS)},
}
WARM_UPS = {"cpu": 1, "gpu": 10}
AUTHORS_NAME, AUTHORS_WEIGHTS = "authors.txt", "authors/model.safetensors"  # in the folder of a task
PEAK_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in ru_maxrss


class Task(NamedTuple):
    """What one process measures."""

    side: str
    device: str  # cpu or gpu
    dtype: str
    folder: str  # of the model, of pixels.npy, (B, H, W, 3) or (1, V, H, W, 3), and of the depth that this writes
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
    model = {MLX: ours, AUTHORS: the_authors}.get(task.side, theirs)(task, pixels)
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
    reference = "transformers" if x.ndim == 4 else "original"
    model = mlx_depth.load(task.folder, dtype=task.dtype, reference=reference)
    mx.synchronize()
    load = time.perf_counter() - begin
    peak = mx.get_peak_memory if task.device == "gpu" else resident_peak
    return Loaded(load, lambda: model.infer(x).depth, np.array, peak)


def theirs(task: Task, pixels: np.ndarray) -> Loaded:
    import torch
    from transformers import DepthAnythingForDepthEstimation, Dinov2Backbone  # noqa: F401  # from_pretrained needs both

    def load(dtype: torch.dtype) -> Any:
        return DepthAnythingForDepthEstimation.from_pretrained(task.folder, dtype=dtype)

    compile_ = torch.compile if task.side == COMPILED else lambda model: model
    return in_torch(task, pixels, load, compile_, lambda model, x: model(x).predicted_depth)


def the_authors(task: Task, pixels: np.ndarray) -> Loaded:
    """Their network without their API, which computes in bfloat16 even on a CPU."""
    import torch
    from safetensors.torch import load_model

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from da3 import import_reference

    cfg, configs = import_reference("cfg"), import_reference("registry").MODEL_REGISTRY

    def load(dtype: torch.dtype) -> Any:
        network = cfg.create_object(cfg.load_config(configs[Path(task.folder, AUTHORS_NAME).read_text()]))
        load_model(network, Path(task.folder, AUTHORS_WEIGHTS))
        return network.to(dtype)

    return in_torch(task, pixels, load, lambda model: model, lambda model, x: model(x)["depth"])


def in_torch(
    task: Task,
    pixels: np.ndarray,
    load: Callable[[Any], Any],
    compile_: Callable[[Any], Any],
    depth_of: Callable[[Any, Any], Any],
) -> Loaded:
    """A model of torch's, timed as ours is."""
    import torch

    device, dtype = torch_device(task.device), getattr(torch, task.dtype)
    synchronize = torch.get_device_module(device).synchronize  # does nothing on a CPU
    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, -3))).to(device, dtype)
    synchronize()  # the device has started before the clock does
    begin = time.perf_counter()
    model = load(dtype).to(device).eval()
    synchronize()
    seconds = time.perf_counter() - begin
    forward = compile_(model)

    def call() -> torch.Tensor:
        with torch.inference_mode():
            depth = depth_of(forward, x)
        synchronize()
        return depth

    peaks = {
        "cpu": resident_peak,
        "cuda": torch.cuda.max_memory_allocated,
        "mps": torch.mps.driver_allocated_memory,  # there is no peak on a Mac: what the allocator holds at the end
    }
    return Loaded(seconds, call, lambda depth: depth.float().cpu().numpy(), peaks[device])


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
