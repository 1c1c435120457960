"""What reading and writing photos costs beside the network: ``python tests/benchmarks/pipeline.py [--input-size N]``.

64 photos of mixed sizes go through ``predict_files`` (decode, network, resize back, write), and batches of the same
shapes through the network alone, in turns. Prints medians of images a second, and their ratio.
"""

import argparse
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx_depth
from mlx_depth.files import DEFAULT_FORMATS, Settings, find_images, predict_files
from mlx_depth.predictor import DepthModel

import mlx.core as mx  # isort: skip  # after mlx_depth, which looks for a fast BLAS
from photos import write_photos


class Recorder:
    """The network, and the shapes of the batches that it was given."""

    def __init__(self, network: Callable[[mx.array], Any]):
        self.network = network
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, pixel_values: mx.array) -> Any:
        self.shapes.append(pixel_values.shape)
        return self.network(pixel_values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="mlx-depth-demo")
    parser.add_argument("--input-size", type=int, help="default: the model's own; smaller is quicker, and harder")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--long-sides", type=int, nargs=2, default=(640, 1280), metavar=("FROM", "TO"))
    parser.add_argument("--format", default=",".join(DEFAULT_FORMATS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    model = mlx_depth.load(options.model)
    settings = Settings(
        options.model, str(model.dtype), input_size=options.input_size, formats=tuple(options.format.split(","))
    )
    with tempfile.TemporaryDirectory() as folder:
        photos, out = Path(folder, "photos"), Path(folder, "out")
        photos.mkdir()
        write_photos(photos, options.photos, tuple(options.long_sides))
        recorder = Recorder(model.network)
        pipeline(replace(model, network=recorder), photos, out, settings, options.batch_size)  # also the warm-up
        network(model, recorder.shapes)
        seconds: dict[str, list[float]] = {"network": [], "pipeline": []}
        for _ in range(options.rounds):
            seconds["network"].append(network(model, recorder.shapes))
            seconds["pipeline"].append(pipeline(model, photos, out, settings, options.batch_size))
    alone, whole = (options.photos / statistics.median(seconds[name]) for name in ("network", "pipeline"))
    print(f"{platform.machine()} {platform.system()}, {mx.default_device()}, MLX {mx.__version__}, {model.dtype}\n")
    print("| photos | input size | batch | formats | network alone, images/s | whole pipeline, images/s | ratio |")
    print("|---|---|---|---|---|---|---|")
    size = options.input_size or model.processor.input_size
    print(
        f"| {options.photos} | {size} | {options.batch_size} | {options.format} "
        f"| {alone:.2f} | {whole:.2f} | {whole / alone:.1%} |"
    )


def network(model: DepthModel, shapes: list[tuple[int, ...]]) -> float:
    """Seconds of the network alone."""
    batches = [mx.random.normal(shape).astype(model.dtype) for shape in shapes]
    mx.eval(batches)
    start = time.perf_counter()
    for batch in batches:
        mx.eval(model.network(batch).depth)
    return time.perf_counter() - start


def pipeline(model: DepthModel, photos: Path, out: Path, settings: Settings, batch_size: int) -> float:
    """Seconds from the files of the photos to those of the results."""
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    jobs, _ = find_images([str(photos)])
    outcomes = list(predict_files(lambda: model, jobs, out, settings, batch_size=batch_size))
    seconds = time.perf_counter() - start
    assert all(outcome.error is None for outcome in outcomes), outcomes
    return seconds


if __name__ == "__main__":
    main()
