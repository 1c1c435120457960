"""What reading and writing photos costs beside the network: ``python tests/benchmarks/pipeline.py [--input-size N]``.

64 photos of mixed sizes go through ``predict_files`` (decode, network, resize back, write), and batches of the same
shapes through the network alone, in turns. Prints medians of images a second, and their ratio; and processor time an
image, which other work on the machine changes less: where the network runs on the same cores, it bounds the ratio.
``--write`` puts the table into ``RESULTS.md``.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import report

import mlx_depth
from mlx_depth.jobs.folder import predict_files
from mlx_depth.jobs.naming import find_images
from mlx_depth.jobs.settings import DEFAULT_FORMATS, Settings
from mlx_depth.model import DepthModel
from mlx_depth.processor import InputSize
from mlx_depth.result import DepthResult
from mlx_depth.runtime.stream import LoadedShot
from mlx_depth.weights.safetensors_io import dtype_name

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="mlx-depth-demo")
    parser.add_argument("--input-size", type=int, help="default: the model's own; smaller is quicker, and harder")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--long-sides", type=int, nargs=2, default=(640, 1280), metavar=("FROM", "TO"))
    parser.add_argument("--format", default=",".join(DEFAULT_FORMATS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: MLX's")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    start = report.conditions(report.use_device(options.device), "mlx")
    model = mlx_depth.load(options.model)
    size, photos = options.input_size or model.processor.input_size, options.long_sides
    lines = [
        f"{start} {options.photos} photos of {photos[0]}–{photos[1]} pixels, {options.model}, "
        f"{dtype_name(model.dtype)}, input size {size}, batches of {options.batch_size}, "
        f"{options.format}; medians of {options.rounds} rounds.",
        "",
        *table(model, options),
    ]
    report.publish("pipeline", lines, write=options.write)


def table(model: DepthModel, options: argparse.Namespace) -> list[str]:
    settings = Settings(
        options.model, str(model.dtype), input_size=options.input_size, formats=tuple(options.format.split(","))
    )
    with tempfile.TemporaryDirectory() as folder:
        photos, out = Path(folder, "photos"), Path(folder, "out")
        photos.mkdir()
        write_photos(photos, options.photos, tuple(options.long_sides))
        with recorded_shapes() as shapes:
            pipeline(model, photos, out, settings, options.batch_size)  # also the warm-up
        assert sum(shape[0] for shape in shapes) == options.photos, shapes
        network(model, shapes)
        rounds: list[tuple[Timing, Timing]] = []
        for _ in range(options.rounds):
            alone = network(model, shapes)
            rounds.append((alone, pipeline(model, photos, out, settings, options.batch_size)))
    alone, whole = (
        Timing(*(statistics.median(values) / options.photos for values in zip(*side, strict=True)))
        for side in zip(*rounds, strict=True)
    )
    return [
        "| | network alone | whole pipeline | ratio |",
        "|---|---|---|---|",
        f"| images a second | {1 / alone.wall:.2f} | {1 / whole.wall:.2f} | {alone.wall / whole.wall:.1%} |",
        f"| processor ms an image | {alone.cpu * 1e3:.0f} | {whole.cpu * 1e3:.0f} | {alone.cpu / whole.cpu:.1%} |",
    ]


@contextmanager
def recorded_shapes() -> Iterator[list[tuple[int, ...]]]:
    """The shapes of all batches that go through a network meanwhile."""
    shapes: list[tuple[int, ...]] = []
    predict = DepthModel._predict_group

    def recorded(model: DepthModel, shots: list[LoadedShot], input_size: InputSize | None) -> list[DepthResult]:
        results = predict(model, shots, input_size)
        shapes.append((len(results), *results[0].input_size, 3))
        return results

    with mock.patch.object(DepthModel, "_predict_group", recorded):
        yield shapes


def network(model: DepthModel, shapes: list[tuple[int, ...]]) -> Timing:
    """The network alone."""
    batches = [mx.random.normal(shape).astype(model.dtype) for shape in shapes]
    mx.eval(batches)
    start = now()
    for batch in batches:
        model.infer(batch)
    return since(start)


def pipeline(model: DepthModel, photos: Path, out: Path, settings: Settings, batch_size: int) -> Timing:
    """From the files of the photos to those of the results."""
    shutil.rmtree(out, ignore_errors=True)
    start = now()
    jobs, *_ = find_images([str(photos)])
    outcomes = list(predict_files(lambda: model, jobs, out, settings, batch_size=batch_size))
    taken = since(start)
    assert all(outcome.error is None for outcome in outcomes), outcomes
    return taken


if __name__ == "__main__":
    main()
