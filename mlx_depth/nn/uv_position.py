"""Where a pixel of a feature map is in the image, as sines and cosines of its two coordinates."""

from functools import lru_cache

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError

_STRENGTH = 0.1  # upstream's ratio
_LONGEST_WAVE = 100.0  # upstream's omega_0, as a factor of the shortest


def uv_position(size: tuple[int, int], channels: int, aspect: float) -> tuple[mx.array, mx.array]:
    """The embedding of a map in its two parts: the first half of the channels sees x alone, the second half y alone.

    Args:
        size: ``(height, width)`` of the map.
        channels: Of the map, a multiple of 4.
        aspect: Width over height of the image; the map's own differs where its sides are rounded.
    Returns:
        ``(height, channels / 2)`` for the rows and ``(width, channels / 2)`` for the columns, float32, with
        upstream's factor of 0.1.
    Raises:
        OptionError: If ``channels`` is not a multiple of 4.

    Coordinates are those of pixel centers; the image's diagonal is two long. Upstream: ``create_uv_grid`` and
    ``position_grid_to_embed`` of Depth Anything 3.
    """
    if channels % 4:
        raise OptionError(f"{channels} channels have no sines and cosines of x and y: take a multiple of 4.")
    diagonal = (aspect * aspect + 1) ** 0.5
    height, width = size
    return _axis_table(height, 1 / diagonal, channels // 2), _axis_table(width, aspect / diagonal, channels // 2)


def add_uv_position(x: mx.array, size: tuple[int, int], aspect: float, *, start: int = 0) -> mx.array:
    """Add the embedding to a map, or to some rows of one.

    Args:
        x: ``(B, h, w, C)``, any float type, C a multiple of 4.
        size: ``(height, width)`` of the whole map.
        aspect: Width over height of the image.
        start: Which row of the whole map is the first of ``x``.
    Returns:
        ``(B, h, w, C)``, same type as ``x``.
    """
    rows, columns = uv_position(size, x.shape[3], aspect)
    half = x.shape[3] // 2
    rows = mx.pad(rows[start : start + x.shape[1]], [(0, 0), (half, 0)]).astype(x.dtype)  # (h, C)
    columns = mx.pad(columns, [(0, 0), (0, half)]).astype(x.dtype)  # (w, C)
    return x + rows[:, None] + columns


@lru_cache(maxsize=64)
def _axis_table(length: int, span: float, channels: int) -> mx.array:
    """(length, channels), of coordinates from -span to span; made from numpy, as all cached constants."""
    position: npt.NDArray[np.float64] = span * (2 * np.arange(length) + 1 - length) / length
    frequency = _LONGEST_WAVE ** -(np.arange(channels // 2) / (channels / 2))
    angle = position[:, None] * frequency
    return mx.array((_STRENGTH * np.concatenate([np.sin(angle), np.cos(angle)], axis=1)).astype(np.float32))
