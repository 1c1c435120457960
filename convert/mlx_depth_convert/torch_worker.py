"""The other side of ``bench --compare torch``: a family's reference in a process of its own.

``python -m mlx_depth_convert.torch_worker MODEL DTYPE SHAPE…``, the shape being that of our pixel values, answers each
line on stdin (``run``, ``stop``) with a line of JSON; the first line comes unasked, once the model has run.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_depth.errors import MlxDepthError
from mlx_depth_convert.opening import open_checkpoint
from mlx_depth_convert.references import reference_of
from mlx_depth_convert.references.network import reference_network


def main(model: str, dtype: str, *shape: str) -> None:
    """Load, run once, then follow orders."""
    try:
        run, load = _prepare(model, dtype, tuple(map(int, shape)))
    except MlxDepthError as error:
        _answer({"error": str(error)})
        return
    _answer({"load": load, "first": run()})
    run()
    for line in sys.stdin:
        if line.strip() == "stop":
            break
        _answer({"seconds": run()})
    _answer({"peak_bytes": _peak_bytes()})


def _prepare(model: str, dtype: str, shape: tuple[int, ...]) -> tuple[Callable[[], float], float]:
    with tempfile.TemporaryDirectory(prefix="mlx-depth-") as folder:
        with open_checkpoint(model) as (checkpoint, _):
            original = reference_network(checkpoint)
        reference, config = reference_of(checkpoint.spec), checkpoint.spec.config
        import torch

        reference.save(original, Path(folder))
        del original
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        start = time.perf_counter()
        network = reference.load(config, Path(folder), getattr(torch, dtype)).eval().to(device)
        load = time.perf_counter() - start
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, getattr(torch, dtype))

    def run() -> float:
        begin = time.perf_counter()
        with torch.inference_mode():
            outputs = reference.run(network, pixels, everything=False)
            outputs["depth"].flatten()[0].item()  # a value is there once all is computed
        return time.perf_counter() - begin

    return run, load


def _peak_bytes() -> int:
    """Of the whole process, the interpreter and PyTorch included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _answer(facts: dict[str, Any]) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
