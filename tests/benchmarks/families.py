"""All families on one machine: ``python tests/benchmarks/families.py --device cpu|gpu [--models …] [--write]``.

Networks of the registry with weights drawn from the names of their parameters, on a photo of noise at each one's own
size: the time of a forward pass, and the same as a multiple of the default model's. ``--compare`` also runs the
package that a family is proved against, in a process of its own, with the peak memory of both (extra ``reference``).
"""

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report

PHOTO = (480, 640)
SHORT = 10.0  # seconds: what takes longer is timed once
COMPARED = (
    "depth-anything-v2-small",
    "prompt-depth-anything-small",
    "dpt-dinov2-small-nyu",
    "dpt-hybrid-midas",
    "moge-2-small",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="of the registry (default: those in RESULTS.md)")
    parser.add_argument("--compare", action="store_true", help="with the package that the family is proved against")
    parser.add_argument("--runs", type=int, default=3, help="timed passes of each (default: 3)")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    device = report.use_device(options.device)
    packages = ("mlx", "torch", "transformers") if options.compare else ("mlx",)
    start = report.conditions(f"{device}, float32" if options.device == "cpu" else f"{device}, float16", *packages)
    rows = (
        compared(options.models or COMPARED, options.runs) if options.compare else timed(options.models, options.runs)
    )
    text = "\n".join([start, "", *("| " + " | ".join(row) + " |" for row in rows)])
    print(text)
    if options.write:
        report.write_section("families compared" if options.compare else "families", text)


def timed(models: list[str] | None, runs: int) -> list[list[str]]:
    from mlx_depth.predictor import DEFAULT_MODEL

    names = models or architectures()
    rows = [["model", "input", "time (s)", "of the default's"], ["---"] * 4]
    unit = None
    for name in [DEFAULT_MODEL, *(name for name in names if name != DEFAULT_MODEL)]:
        # Each in a process of its own: MLX keeps what a large one has taken.
        command = [sys.executable, "-c", f"import families; families.time_one({name!r}, {runs})"]
        done = subprocess.run(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=True)
        size, seconds = done.stdout.split()
        unit = unit or float(seconds)
        rows.append([f"`{name}`", size, f"{float(seconds):.2f}", f"{float(seconds) / unit:.2g}×"])
        print(rows[-1], file=sys.stderr)
    return rows


def architectures() -> list[str]:
    """The first model of each architecture, as others of it take as long."""
    from mlx_depth import list_models

    first: dict[object, str] = {}
    for spec in list_models():
        first.setdefault((spec.family, spec.parameters), spec.name)
    return list(first.values())


def time_one(name: str, runs: int) -> None:
    """Print the network's size for the photo, and the median of the passes' seconds."""
    import mlx_depth  # first, so that an installed OpenBLAS is used

    # isort: split
    import mlx.core as mx
    import numpy as np
    from mlx_depth_convert.inputs import generated_conditions

    from mlx_depth.model import DepthModel
    from mlx_depth.runtime.forward import resolve_dtype

    checkpoint = drawn(name)
    spec, dtype = checkpoint.spec, resolve_dtype(None)
    from mlx_depth.checkpoints.checkpoint import build_network

    network = build_network(checkpoint, dtype=dtype, expand=False, hand_over=True)
    model = DepthModel(spec, network, spec.processor, dtype)
    photo = np.random.default_rng(0).integers(0, 255, (*PHOTO, 3), np.uint8)
    pixel_values = model.processor(mlx_depth.load_image(photo).pixels)
    if network.takes == "views":
        pixel_values = pixel_values[:, None]
    conditions = generated_conditions(network, 1)
    seconds: list[float] = []
    while len(seconds) <= runs and (not seconds or seconds[0] < SHORT):
        begin = time.perf_counter()
        mx.eval(model.infer(pixel_values, conditions).depth)
        seconds.append(time.perf_counter() - begin)
    H, W = pixel_values.shape[-3:-1]
    print(f"{H}×{W}", statistics.median(seconds[1:] or seconds))


def drawn(name: str):  # type: ignore[no-untyped-def]  # a Checkpoint, whose module may come only behind OpenBLAS
    """A model's checkpoint with weights that keep the scale of what they multiply."""
    import mlx.core as mx
    import numpy as np

    from mlx_depth import find_model
    from mlx_depth.checkpoints.checkpoint import Checkpoint
    from mlx_depth.models.families import FAMILIES
    from mlx_depth.weights.rules import parameter_shapes

    spec = find_model(name)
    shapes = parameter_shapes(FAMILIES[spec.family].network(spec.config))
    random = np.random.default_rng(0)
    weights = {}
    for path, shape in shapes.items():
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 100
        ones = path.endswith(("gamma", "norm.weight", "norm1.weight", "norm2.weight", "periods"))
        weights[path] = mx.array(random.standard_normal(shape, np.float32)) * fan_in**-0.5 + float(ones)
    return Checkpoint(spec, "mlx", weights)


def compared(models: list[str] | None, runs: int) -> list[list[str]]:
    from mlx_depth_convert import bench

    from mlx_depth.checkpoints.checkpoint import write_checkpoint

    head = ["model", "input", "ours (s)", "theirs (s)", "ratio", "ours (MB)", "theirs (MB)"]
    rows = [head, ["---"] * len(head)]
    for name in models or COMPARED:
        with tempfile.TemporaryDirectory() as folder:
            path = write_checkpoint(drawn(name), Path(folder) / name, source={}, card="", release=True)
            (row,) = bench([path], compare="torch", runs=runs, input_sizes=[SIZES.get(name)]).measurements
        assert row.torch is not None
        times = [f"{row.mlx.median:.2f}", f"{row.torch.median:.2f}", f"{row.mlx.median / row.torch.median:.2f}"]
        peaks = [f"{side.peak_bytes / 1e6:.0f}" for side in (row.mlx, row.torch)]
        rows.append([f"`{name}`", row.input, *times, *peaks])
        print(rows[-1], file=sys.stderr)
    return rows


SIZES = {"dpt-dinov2-small-nyu": (392, 518), "moge-2-small": (392, 518), "prompt-depth-anything-small": (392, 518)}


if __name__ == "__main__":
    main()
