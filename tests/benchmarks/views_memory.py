"""Peak memory of a scene of many views: ``python tests/benchmarks/views_memory.py [--write]``.

32 photos of 280 × 504 pixels through ``predict_views`` of the small model, random weights, in one process. Ends with
an error where the process takes more than 4 GB.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
import report
from one_side import resident_peak

AIM = 4e9  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: MLX's")
    parser.add_argument("--model", choices=("small", "base", "large"), default="small")
    parser.add_argument("--views", type=int, default=32)
    parser.add_argument("--size", type=report.size, default=(280, 504), metavar="HxW")
    parser.add_argument("--write", action="store_true", help="put the figures into RESULTS.md")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options)))
        return
    start = report.conditions(report.use_device(options.device), "mlx")
    command = [sys.executable, *sys.argv, "--child"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    figures = [f"{found[name] / 1e6:.0f}" for name in ("before", "process", "mlx")]
    scene = f"DA3 {options.model} | {options.views} of {options.size[0]}×{options.size[1]}"
    lines = [
        start,
        "",
        "| model | views | before, MB | peak of the process, MB | peak of MLX, MB | s a view |",
        "|---|---|---|---|---|---|",
        f"| {scene} | {' | '.join(figures)} | {found['seconds'] / options.views:.2f} |",
    ]
    report.publish("views-memory", lines, write=options.write)
    if found["process"] > AIM:
        raise SystemExit(f"The process took {found['process'] / 1e9:.2f} GB, more than {AIM / 1e9:.0f}.")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Bytes and seconds of one prediction, the model in memory before."""
    report.use_device(options.device)
    import mlx.core as mx
    from stages import random_network

    from mlx_depth.model import DepthModel
    from mlx_depth.models.families import FAMILIES
    from mlx_depth.registry import find_model
    from mlx_depth.runtime.forward import resolve_dtype

    spec = find_model(f"depth-anything-3-{options.model}")
    dtype = resolve_dtype(None)
    network = random_network(FAMILIES[spec.family].network(spec.config), dtype)
    model = DepthModel(spec, network, spec.processor, dtype)
    random = np.random.RandomState(0)
    photos = [random.randint(0, 256, (*options.size, 3), np.uint8) for _ in range(options.views)]
    before = resident_peak()
    begin = time.perf_counter()
    scene = model.predict_views(photos, input_size=options.size)
    seconds = time.perf_counter() - begin
    assert scene.depth.shape == (options.views, *options.size), scene.depth.shape
    return {"before": before, "process": resident_peak(), "mlx": mx.get_peak_memory(), "seconds": seconds}


if __name__ == "__main__":
    main()
