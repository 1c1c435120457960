"""What reading and writing photos costs beside the network: ``python tests/benchmarks/pipeline.py [--input-size N]``.

64 photos of mixed sizes go through ``predict_files`` (decode, network, resize back, write), and batches of the same
shapes through the network alone, in turns. Prints medians of images a second, and their ratio; and processor time an
image, which other work on the machine changes less: where the network runs on the same cores, it bounds the ratio.
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
from typing import Any, NamedTuple

import mlx_depth
from mlx_depth.files import DEFAULT_FORMATS, Settings, find_images, predict_files
from mlx_depth.predictor import DepthModel

import mlx.core as mx  # isort: skip  # after mlx_depth, which looks for a fast BLAS
from photos import write_photos


class Timing(NamedTuple):
    """Seconds."""

    wall: float
    cpu: float  # of all threads


def now() -> Timing:
    return Timing(time.perf_counter(), time.process_time())


def since(start: Timing) -> Timing:
    end = now()
    return Timing(end.wall - start.wall, end.cpu - start.cpu)


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
        rounds: list[tuple[Timing, Timing]] = []
        for _ in range(options.rounds):
            alone = network(model, recorder.shapes)
            rounds.append((alone, pipeline(model, photos, out, settings, options.batch_size)))
    alone, whole = (
        Timing(*(statistics.median(values) / options.photos for values in zip(*side, strict=True)))
        for side in zip(*rounds, strict=True)
    )
    print(f"{platform.machine()} {platform.system()}, {mx.default_device()}, MLX {mx.__version__}, {model.dtype}\n")
    size = options.input_size or model.processor.input_size
    print(f"{options.photos} photos, input size {size}, batches of {options.batch_size}, {options.format}\n")
    print("| | network alone | whole pipeline | ratio |\n|---|---|---|---|")
    print(f"| images a second | {1 / alone.wall:.2f} | {1 / whole.wall:.2f} | {alone.wall / whole.wall:.1%} |")
    print(f"| processor ms an image | {alone.cpu * 1e3:.0f} | {whole.cpu * 1e3:.0f} | {alone.cpu / whole.cpu:.1%} |")


def network(model: DepthModel, shapes: list[tuple[int, ...]]) -> Timing:
    """The network alone."""
    batches = [mx.random.normal(shape).astype(model.dtype) for shape in shapes]
    mx.eval(batches)
    start = now()
    for batch in batches:
        mx.eval(model.network(batch).depth)
    return since(start)


def pipeline(model: DepthModel, photos: Path, out: Path, settings: Settings, batch_size: int) -> Timing:
    """From the files of the photos to those of the results."""
    shutil.rmtree(out, ignore_errors=True)
    start = now()
    jobs, _ = find_images([str(photos)])
    outcomes = list(predict_files(lambda: model, jobs, out, settings, batch_size=batch_size))
    taken = since(start)
    assert all(outcome.error is None for outcome in outcomes), outcomes
    return taken


if __name__ == "__main__":
    main()
