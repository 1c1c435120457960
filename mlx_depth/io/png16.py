"""Depth as the levels of a 16-bit PNG."""

import numpy as np
import numpy.typing as npt

from mlx_depth.kinds import DepthKind

_LEVELS = 65535
_MILLIMETRES, _KITTI = 1000, 256  # levels a metre


def png16_scale(depth: npt.NDArray[np.float32], kind: DepthKind, max_depth: float | None = None) -> tuple[float, float]:
    """Scale and offset of the 16-bit PNG: ``depth = value * scale + offset``.

    Args:
        depth: ``(H, W)``, float32, in the unit of ``kind``.
        kind: What its numbers mean.
        max_depth: The farthest distance that the depth can hold, in metres (metric depth only).
    Returns:
        ``(scale, offset)``. Metric depth: a millimetre a level where ``max_depth`` is known and at most
        65.535 m, else 1/256 m, offset 0. Relative kinds: the finite depth spread over 1..65535; a constant
        one has scale 0.

    The 1/256 m is KITTI's rule.
    """
    if kind is DepthKind.METRIC:
        fits = max_depth is not None and max_depth * _MILLIMETRES <= _LEVELS
        return 1 / (_MILLIMETRES if fits else _KITTI), 0.0
    finite = depth[np.isfinite(depth)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    scale = (high - low) / (_LEVELS - 1)
    return scale, low - scale


def png16_values(
    depth: npt.NDArray[np.float32], kind: DepthKind, max_depth: float | None = None
) -> npt.NDArray[np.uint16]:
    """The depth as 16-bit levels.

    Args:
        depth: As in ``png16_scale``, like the others.
        kind: What its numbers mean.
        max_depth: In metres.
    Returns:
        ``(H, W)``, uint16: ``(depth - offset) / scale`` of ``png16_scale``, rounded, held within 1..65535,
        never wrapped; 0 = no data, where the depth is not finite, or metric and not positive.

    Gives the depth back to half a level.
    """
    scale, offset = png16_scale(depth, kind, max_depth)
    known = np.isfinite(depth)
    if kind is DepthKind.METRIC:
        known &= depth > 0
    wide = np.where(known, depth, 0).astype(np.float64)
    levels = np.clip(np.rint((wide - offset) / (scale or 1.0)), 1, _LEVELS)
    return np.where(known, levels, 0).astype(np.uint16)
