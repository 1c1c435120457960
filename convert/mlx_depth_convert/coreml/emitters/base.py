"""What an emitter is: the contract that every family's file keeps, and the outputs that all families share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_depth.io.colormaps import colormap_table
from mlx_depth.models.base import DepthOutputs
from mlx_depth.registry import ModelSpec
from mlx_depth.result import DepthKind
from mlx_depth_convert.coreml.names import COLORS, DEPTH

Array = npt.NDArray[np.float32]
Weights = Mapping[str, mx.array]
Size = tuple[int, int]
Var = Any  # coremltools' symbolic tensor

COLOR_SEGMENTS = 32  # straight pieces of a color map: at most 4 of 255 away from its 256 entries
SMALLEST_RANGE = 2.0**-14  # smallest normal float16: a constant depth gives zeros, not a division by zero


@dataclass(frozen=True)
class Plan:
    """The options of an export, checked, with nothing left open; ``options.check_options`` makes it.

    Attributes:
        sizes: Function name → ``(height, width)`` of its image, in pixels.
        target: A name of coremltools' ``target``.
    """

    sizes: dict[str, Size]
    precision: str
    target: str
    attention: str
    output: str
    cmap: str | None
    compress: str | None
    layout: str


@dataclass(frozen=True)
class Layer:
    """A linear layer ``(O, I)`` or a convolution ``(O, I, h, w)``; transposed ones are ``(I, O, h, w)``."""

    weight: Array
    bias: Array | None


@dataclass(frozen=True)
class Affine:
    """What a LayerNorm does after it has normalized: a factor and an offset for each channel."""

    gamma: Array
    beta: Array


@dataclass(frozen=True)
class Emitter:
    """Writes the operations of one function into the builder ``mb`` (coremltools' ``mil.Builder``).

    A family's emitter is a subclass with ``multiple_of``, ``splits_attention`` and ``maps``; the rest has defaults.
    """

    mb: Any
    spec: ModelSpec
    weights: Weights
    plan: Plan

    float_prefixes: ClassVar[tuple[str, ...]] = ()
    """What the names of weights begin with that compression leaves alone."""

    float32_prefixes: ClassVar[tuple[str, ...]] = ()
    """What the names of operations begin with that a float16 package computes in float32, too."""

    extras: ClassVar[Mapping[str, str]] = {}
    """Outputs beside the depth: name, which is that of the field of ``DepthOutputs``, → what it means.

    A network need not have all. Maps of one channel are images, what has more or is one for all pixels is an array.
    """

    raw_only: ClassVar[str] = ""
    """What the depth is, where the package gives it as the network does and in no other form; empty elsewhere."""

    note: ClassVar[str] = ""
    """What the library gives for such a model and the package does not, in a sentence or two; empty for nothing."""

    @staticmethod
    def multiple_of(config: Any) -> int:
        """Both sides of the image are multiples of this many pixels."""
        raise NotImplementedError

    @staticmethod
    def splits_attention(config: Any) -> bool:
        """Whether attention that is left open is split by head on the Neural Engine."""
        raise NotImplementedError

    @staticmethod
    def refusal(config: Any) -> str | None:
        """Why such a network is not exported, and what to do instead; None where it is."""
        return None

    @staticmethod
    def focal_length(config: Any) -> float | None:
        """The focal length, in pixels of the image, at which the depth is in metres; None where metres need none."""
        return None

    @staticmethod
    def expected(outputs: DepthOutputs) -> Mapping[str, mx.array]:
        """What depth and ``extras`` should be, by name, of what the network gives."""
        return outputs.present()

    def maps(self, image: Var, size: Size, name: str) -> list[Var]:
        """Write the network.

        Args:
            image: 8-bit RGB as floats, (1, 3, H, W).
            size: Its ``(height, width)`` in pixels.
            name: Of the operation that gives the depth.
        Returns:
            Depth in the kind and unit of the model, (1, 1, H, W), then the ``extras``, by name and in their order:
            (1, C, H, W) each, or (1,) where it is one for all pixels.
        """
        raise NotImplementedError

    def outputs(self, image: Var, size: Size) -> list[Var]:
        """Depth as the plan wants it, (1, 1, H, W), the extras and, if asked for, the depth's colors, (1, 3, H, W)."""
        normalized, cmap = self.plan.output == "normalized", self.plan.cmap
        value, *extras = self.maps(image, size, "nearness_raw" if normalized else DEPTH)
        if not normalized and cmap is None:
            return [value, *extras]
        near = self.nearness(value, DEPTH if normalized else "nearness")
        depth = near if normalized else value
        return [depth, *extras] if cmap is None else [depth, *extras, self.colors(near, cmap)]

    def nearness(self, value: Var, name: str) -> Var:
        """``DepthResult.normalized``: 0..1 over the image, 1 = nearest."""
        low = self.mb.reduce_min(x=value, axes=[1, 2, 3], keep_dims=True, name="smallest")
        high = self.mb.reduce_max(x=value, axes=[1, 2, 3], keep_dims=True, name="largest")
        span = self.mb.sub(x=high, y=low, name="range")
        span = self.mb.maximum(x=span, y=np.float32(SMALLEST_RANGE), name="range_positive")
        if self.spec.depth_kind is DepthKind.RELATIVE_INVERSE:
            above = self.mb.sub(x=value, y=low, name="above_smallest")
        else:
            above = self.mb.sub(x=high, y=value, name="below_largest")
        return self.mb.real_div(x=above, y=span, name=name)

    def colors(self, near: Var, cmap: str) -> Var:
        """Nearness to RGB 0..255: how much of each straight piece of the map is passed, then the pieces' sum."""
        count = COLOR_SEGMENTS
        knots = color_knots(cmap)
        rise = Layer(np.full((count, 1, 1, 1), count, np.float32), -np.arange(count, dtype=np.float32))
        steps = np.diff(knots, axis=0).T  # (3, segments)
        x = self.convolve(near, rise, "color_position")
        x = self.mb.clip(x=x, alpha=np.float32(0), beta=np.float32(1), name="color_pieces")
        x = self.convolve(x, Layer(np.ascontiguousarray(steps[:, :, None, None]), knots[0]), "color_sum")
        return self.mb.clip(x=x, alpha=np.float32(0), beta=np.float32(255), name=COLORS)

    def convolve(self, x: Var, layer: Layer, name: str, *, stride: int = 1, pad: int = 0) -> Var:
        bias = {} if layer.bias is None else {"bias": layer.bias}
        return self.mb.conv(
            x=x, weight=layer.weight, strides=[stride, stride], pad_type="custom", pad=[pad] * 4, name=name, **bias
        )


def color_knots(cmap: str) -> Array:
    """The color map at equal steps of nearness: ``(COLOR_SEGMENTS + 1, 3)``, 0..255."""
    table = colormap_table(cmap).astype(np.float64)
    entries = np.linspace(0, len(table) - 1, COLOR_SEGMENTS + 1)
    return np.stack(
        [np.interp(entries, np.arange(len(table)), table[:, channel]) for channel in range(3)], axis=1
    ).astype(np.float32)
