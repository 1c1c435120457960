"""The other side of ``bench --compare torch``: transformers in a process of its own.

``python -m mlx_depth_convert.torch_worker MODEL BATCH HEIGHT WIDTH DTYPE`` answers each line on stdin (``run``,
``stop``) with a line of JSON; the first line comes unasked, once the model has run.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from mlx_depth.errors import MlxDepthError
from mlx_depth_convert.opening import open_checkpoint
from mlx_depth_convert.references import reference_of
from mlx_depth_convert.references.network import transformers_network


def main(model: str, batch: str, height: str, width: str, dtype: str) -> None:
    """Load, run once, then follow orders."""
    try:
        run, load = _prepare(model, (int(batch), 3, int(height), int(width)), dtype)
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


def _prepare(model: str, shape: tuple[int, ...], dtype: str) -> tuple[Callable[[], float], float]:
    with tempfile.TemporaryDirectory(prefix="mlx-depth-") as folder:
        with open_checkpoint(model) as (checkpoint, _):
            original = transformers_network(checkpoint)
            depth_of = reference_of(checkpoint.spec).depth
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        original.save_pretrained(folder)
        read = type(original).from_pretrained
        del original
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        start = time.perf_counter()
        network = read(folder, dtype=getattr(torch, dtype)).eval().to(device)
        load = time.perf_counter() - start
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, getattr(torch, dtype))

    def run() -> float:
        begin = time.perf_counter()
        with torch.inference_mode():
            depth_of(network(pixels))[0, 0, 0].item()  # a value is there once all is computed
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
