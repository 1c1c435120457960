"""Rotary position embedding in two dimensions: half of a head's channels turn by row, the others by column.

Upstream: ``RotaryPositionEmbedding2D`` of Depth Anything 3's ``dinov2/layers/rope.py``, and
``RopePositionEmbedding`` of DINOv3's ``layers/rope_position_encoding.py``.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

FREQUENCY = 100.0
KEPT_GRIDS = 8


class Rotation(NamedTuple):
    """Cosines and sines of the angles by which a token's channels turn, each ``(N, groups, D / groups)``, float32.

    Within a group of channels the first half turns with the second, one with one.
    """

    cos: mx.array
    sin: mx.array


@lru_cache(maxsize=KEPT_GRIDS)
def grid_rotation(grid_size: tuple[int, int], head_dim: int) -> Rotation:
    """How the tokens of one view turn: the leading one not at all, patches by their row and column, from 1.

    The first of two groups of channels turns by row, the second by column.

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
    angles = np.concatenate([angles, angles], axis=-1)  # each angle turns a pair of channels
    return Rotation(mx.array(np.cos(angles).astype(np.float32)), mx.array(np.sin(angles).astype(np.float32)))


def centered_rotation(grid_size: tuple[int, int], periods: mx.array, leading: int) -> Rotation:
    """How the tokens of DINOv3 turn: the leading ones not at all, patches by where their centers are in the image.

    The whole head is one group: pairs of channels turn by row first, then by column.

    Args:
        grid_size: Patches ``(gh, gw)``; each side of the image goes from -1 to 1.
        periods: Of one turn, in these units, ``(D / 4,)``, any float type.
        leading: Tokens before the patches.
    """
    rows, columns = mx.meshgrid(*((2 * mx.arange(n) + 1) / n - 1 for n in grid_size), indexing="ij")
    places = mx.stack([rows, columns], axis=-1).flatten(0, 1)  # (gh * gw, 2)
    angles = 2 * math.pi * places[:, :, None] / periods.astype(mx.float32)  # (gh * gw, 2, D / 4)
    angles = mx.pad(angles.flatten(1, 2), [(leading, 0), (0, 0)])
    angles = mx.concatenate([angles, angles], axis=-1)[:, None]  # (leading + gh * gw, 1, D)
    return Rotation(mx.cos(angles), mx.sin(angles))


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
    a, b = mx.split(views, 2, axis=-1)
    return (views * cos + mx.concatenate([-b, a], axis=-1) * sin).reshape(B, heads, M, D)
