"""What happens inside a network: one row a module, with the statistics of its output."""

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_depth.checkpoints.checkpoint import build_network
from mlx_depth.io.image import ImageSource
from mlx_depth.models.base import DepthOutputs
from mlx_depth.nn.attention import Attention
from mlx_depth.processor import InputSize
from mlx_depth_convert.inputs import Inputs, generated_conditions
from mlx_depth_convert.opening import open_checkpoint
from mlx_depth_convert.plots import draw
from mlx_depth_convert.recorder import recording

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_BINS, _SURFACE_SIDE = 64, 120


@dataclass(frozen=True)
class Row:
    """One module. The statistics are those of its output, over all calls."""

    name: str
    type: str
    calls: int  # the backbone's last norm runs for each tapped layer; parts of the head may run strip by strip
    shape: tuple[int, ...]  # of the first call
    min: float
    max: float
    mean: float
    std: float
    zeros: float  # share of values that are exactly zero
    parameters: int  # of the module itself; those of the modules in it stand in their rows


@dataclass(frozen=True, eq=False)
class Inspection:
    """One forward pass."""

    model: str
    image: str
    rows: tuple[Row, ...]  # in the order in which the modules start
    depth: np.ndarray  # (H, W), the network's own size
    convolutions: int  # Conv2d and ConvTranspose2d that ran, the patch embedding's included
    blocks: int  # transformer blocks: modules with an attention of their own
    parameters: int

    def as_text(self) -> str:
        """Aligned columns for a terminal; inner modules are indented."""
        head = [field.name for field in dataclasses.fields(Row)]
        names = {row.name for row in self.rows}
        cells = [head, *(_cells(row, names) for row in self.rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
        return "\n".join([*(line.rstrip() for line in lines), "", self.summary])

    @property
    def summary(self) -> str:
        """The counts in one line."""
        return (
            f"{self.model}: {self.convolutions} convolution layers, {self.blocks} transformer blocks, "
            f"{self.parameters:,} parameters"
        )

    def as_csv(self) -> str:
        """One line a module, numbers in full."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(field.name for field in dataclasses.fields(Row))
        for row in self.rows:
            facts = {**dataclasses.asdict(row), "shape": "x".join(map(str, row.shape))}
            writer.writerow(facts.values())
        return stream.getvalue()

    def as_json(self) -> dict[str, Any]:
        """For ``json.dumps``; without the depth map."""
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "depth"}
        return {**facts, "rows": [dataclasses.asdict(row) for row in self.rows]}


def inspect_model(
    model: str | Path,
    *,
    image: "ImageSource | None" = None,
    input_size: InputSize | None = None,
    progress: bool = False,
) -> Inspection:
    """Run a model once in float32 and describe what each of its modules returns.

    Args:
        model: What ``convert`` takes as source; quantized layers are expanded.
        image: A photo; None: a generated picture.
        input_size: As for ``DepthModel.predict``.
        progress: Show the Hub's progress bar on stderr.
    Returns:
        One row for each module that ran, composite ones before those in them.
    Raises:
        ModelNotFoundError: If there is no such model, or it cannot be downloaded.
        CheckpointError: If its files are damaged.
        ImageError: If the image cannot be read.
    """
    with open_checkpoint(model, progress=progress) as (checkpoint, origin):
        network = build_network(checkpoint, dtype=mx.float32, expand=True)
    inputs = Inputs(checkpoint.spec.processor, network.takes, input_size=input_size)
    ((name, pixel_values),) = inputs.of([] if image is None else [image])
    call: Callable[..., DepthOutputs] = network  # each has options of its own
    modules = dict(network.named_modules())
    moments: dict[str, list[_Moments]] = {}

    def on_call(path: str, _: nn.Module, argument: mx.array, result: Any) -> None:
        moments[path].append(_moments(result))

    with recording(network, on_call, lambda path: moments.setdefault(path, [])):
        outputs = call(pixel_values, **network.everything, **generated_conditions(network, len(pixel_values)))
        depth = np.array(outputs.depth).reshape(-1, *outputs.depth.shape[-2:])[0]
    return Inspection(
        model=origin.id,
        image=name,
        rows=tuple(_row(path, modules[path], calls) for path, calls in moments.items()),
        depth=depth,
        convolutions=sum(isinstance(modules[path], CONVOLUTIONS) for path in moments),
        blocks=sum(_is_block(modules[path]) for path in moments),
        parameters=_count(network.parameters()),
    )


def plot_depth(depth: np.ndarray, path: str | Path, *, overwrite: bool = False) -> Path:
    """Draw a depth map's histogram, its middle row and column, and its surface.

    Args:
        depth: ``(H, W)``, any unit.
        path: ``.png``, ``.pdf`` or ``.svg``.
        overwrite: Replace a file that exists.
    Returns:
        ``path``.
    Raises:
        OptionError: If matplotlib is missing, or the suffix is another.
        SaveError: If the file exists or cannot be written.
    """
    H, W = depth.shape

    def fill(figure: Any) -> None:
        histogram, row, column = (figure.add_subplot(2, 2, place) for place in (1, 2, 4))
        histogram.hist(depth.ravel(), bins=_BINS)
        histogram.set(title="histogram of depth", xlabel="depth", ylabel="pixels")
        row.plot(depth[H // 2])
        row.set(title=f"middle row ({H // 2})", xlabel="column", ylabel="depth")
        column.plot(depth[:, W // 2])
        column.set(title=f"middle column ({W // 2})", xlabel="row", ylabel="depth")
        step = max(1, max(H, W) // _SURFACE_SIDE)
        rows, columns = np.mgrid[0:H:step, 0:W:step]
        surface = figure.add_subplot(2, 2, 3, projection="3d")
        surface.plot_surface(columns, -rows, depth[::step, ::step], cmap="viridis", linewidth=0)
        surface.set(title="surface", xlabel="column", ylabel="−row", zlabel="depth")

    return draw(path, (12, 8), fill, overwrite=overwrite)


@dataclass(frozen=True)
class _Moments:
    """Of one array."""

    shape: tuple[int, ...]
    min: float
    max: float
    mean: float
    mean_square: float
    zeros: float

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _moments(result: Any) -> _Moments:
    array = _array(result).astype(mx.float32)
    figures = (array.min(), array.max(), array.mean(), array.square().mean(), (array == 0).mean())
    low, high, mean, mean_square, zeros = (cast(float, figure.item()) for figure in figures)
    return _Moments(array.shape, low, high, mean, mean_square, zeros)


def _row(path: str, module: nn.Module, calls: Sequence[_Moments]) -> Row:
    size = sum(call.size for call in calls)
    mean, mean_square, zeros = (
        sum(getattr(call, figure) * call.size for call in calls) / size for figure in ("mean", "mean_square", "zeros")
    )
    own = {name: value for name, value in module.items() if isinstance(value, mx.array) and not name.startswith("_")}
    return Row(
        path,
        type(module).__name__,
        len(calls),
        calls[0].shape,
        min(call.min for call in calls),
        max(call.max for call in calls),
        mean,
        math.sqrt(max(mean_square - mean**2, 0.0)),
        zeros,
        _count(own),
    )


def _is_block(module: nn.Module) -> bool:
    return any(isinstance(part, Attention) for part in module.values())


def _array(result: Any) -> mx.array:
    """The last array of what a module returns: of a backbone, the deepest tapped tokens."""
    while isinstance(result, Sequence):
        result = result[0] if hasattr(result, "_fields") else result[-1]
    array: mx.array = result
    return array


def _count(parameters: Any) -> int:
    arrays = cast(list[tuple[str, mx.array]], tree_flatten(parameters))
    return sum(array.size for _, array in arrays)


def _cells(row: Row, names: Set[str]) -> list[str]:
    parts = row.name.split(".")
    indent = "  " * sum(".".join(parts[:count]) in names for count in range(1, len(parts)))
    numbers = [f"{number:.4g}" for number in (row.min, row.max, row.mean, row.std)]
    return [
        indent + row.name,
        row.type,
        str(row.calls),
        "×".join(map(str, row.shape)),
        *numbers,
        f"{row.zeros:.1%}",
        f"{row.parameters:,}",
    ]
