"""Rotary position embedding in two dimensions: the first half of a head's channels by row, the second by column.

Upstream: ``RotaryPositionEmbedding2D`` of Depth Anything 3's ``dinov2/layers/rope.py``.
"""

from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

FREQUENCY = 100.0
KEPT_GRIDS = 8


class Rotation(NamedTuple):
    """Cosines and sines of the angles by which a token's channels turn, each ``(N, D)``, float32."""

    cos: mx.array
    sin: mx.array


@lru_cache(maxsize=KEPT_GRIDS)
def grid_rotation(grid_size: tuple[int, int], head_dim: int) -> Rotation:
    """How the tokens of one view turn: the leading one not at all, patches by their row and column, from 1.

    Args:
        grid_size: Patches ``(gh, gw)``.
        head_dim: Channels of a head, a multiple of 4.
    """
    rows, columns = np.mgrid[1 : grid_size[0] + 1, 1 : grid_size[1] + 1]
    return _rotation(np.stack([rows, columns], axis=-1).reshape(-1, 2), head_dim)


@lru_cache(maxsize=KEPT_GRIDS)
def common_rotation(count: int, head_dim: int) -> Rotation:
    """``grid_rotation`` where the patches, ``count`` of them, all stand at one place: tokens of several views."""
    return _rotation(np.ones((count, 2)), head_dim)


def _rotation(patches: npt.NDArray[np.floating], head_dim: int) -> Rotation:
    places = np.concatenate([np.zeros((1, 2)), patches])  # (N, 2)
    half = head_dim // 2
    angles = places[:, :, None] * FREQUENCY ** -(np.arange(0, half, 2) / half)  # (N, 2, D / 4)
    angles = np.concatenate([angles, angles], axis=-1).reshape(-1, head_dim)  # each angle turns a pair of channels
    return Rotation(mx.array(np.cos(angles).astype(np.float32)), mx.array(np.sin(angles).astype(np.float32)))


def rotate(x: mx.array, rotation: Rotation) -> mx.array:
    """Turn the channels of tokens.

    Args:
        x: ``(B, heads, M, D)``, any float type; M is N, or several times N for the tokens of several views in turn.
        rotation: Of N tokens.
    Returns:
        The shape and type of ``x``.
    """
    cos, sin = (table.astype(x.dtype) for table in rotation)
    B, heads, M, D = x.shape
    views = x.reshape(B, heads, M // cos.shape[0], *cos.shape)
    a, b, c, d = mx.split(views, 4, axis=-1)
    return (views * cos + mx.concatenate([-b, a, -d, c], axis=-1) * sin).reshape(B, heads, M, D)
