"""The focal length and the shift in depth of points that are known but for these two: MoGe's point maps.

Upstream: ``moge/utils/geometry_numpy.py``, which calls ``scipy.optimize.least_squares(method="lm", ftol=1e-3)``. That
stops short of the minimum, so the same steps are taken here: ``lmder`` of MINPACK (Moré, 1978) for one unknown.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Line = Callable[[float], tuple[FloatArray, FloatArray]]
"""Residuals ``(M,)`` at a value of the unknown, and their slopes ``(M,)``."""

FTOL = 1e-3  # upstream's
XTOL = GTOL = 1e-8  # these and the next are scipy's
MAX_CALLS = 100
_FACTOR = 100.0
_LEAST_GAIN = 1e-4
_TINY = float(np.finfo(np.float64).tiny)


def fit_focal_and_shift(points: npt.NDArray[np.floating], plane: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Find f and s that bring ``f * xy / (z + s)`` closest to where the points are seen.

    Args:
        points: ``(N, 3)``, in camera axes.
        plane: ``(N, 2)``, where each is seen, in the unit that the focal length gets.
    Returns:
        ``(focal, shift)``; NaN where the points are not finite. Fewer than two points: ``(1, 0)``, as upstream.
    """
    if len(points) < 2:
        return 1.0, 0.0
    xy, z, plane = _wide(points[:, :2]), _wide(points[:, 2:]), _wide(plane)

    def line(shift: float) -> tuple[FloatArray, FloatArray]:
        seen = xy / (z + shift)
        slope = -seen / (z + shift)
        square, along = (seen * seen).sum(), (seen * plane).sum()
        focal = along / square  # the best one for this shift
        change = ((slope * plane).sum() - 2 * focal * (seen * slope).sum()) / square
        return (focal * seen - plane).ravel(), (focal * slope + change * seen).ravel()

    with np.errstate(all="ignore"):  # what is not finite is the caller's to judge
        shift = _least_squares(line)
        seen = xy / (z + shift)
        return float((seen * plane).sum() / (seen * seen).sum()), shift


def fit_shift(points: npt.NDArray[np.floating], plane: npt.NDArray[np.floating], focal: float) -> float:
    """``fit_focal_and_shift`` where the focal length is known."""
    if len(points) < 2:
        return 0.0
    xy, z, plane = _wide(points[:, :2]), _wide(points[:, 2:]), _wide(plane)

    def line(shift: float) -> tuple[FloatArray, FloatArray]:
        seen = focal * xy / (z + shift)
        return (seen - plane).ravel(), (-seen / (z + shift)).ravel()

    with np.errstate(all="ignore"):
        return _least_squares(line)


def _wide(values: npt.NDArray[np.floating]) -> FloatArray:
    return values.astype(np.float64)


def _least_squares(line: Line) -> float:
    """Minimize the sum of squares from 0 on; NaN where the residuals there are not finite."""
    x = damping = scale = 0.0
    residuals, slopes = line(x)
    if not np.isfinite(residuals).all():
        return float("nan")
    norm, radius = float(np.linalg.norm(residuals)), _FACTOR
    for call in range(1, MAX_CALLS):
        steepness, fall = float(np.linalg.norm(slopes)), float(slopes @ residuals)
        if norm == 0 or steepness == 0 or abs(fall) <= GTOL * norm * steepness:
            return x
        first, scale = call == 1, max(scale, steepness)
        damping = _damping(steepness, fall, scale, radius, damping)
        step = -fall / (steepness**2 + damping * scale**2)
        length = scale * abs(step)
        radius = min(radius, length) if first else radius
        moved, new_slopes = line(x + step)
        new_norm = float(np.linalg.norm(moved))
        actual = 1 - (new_norm / norm) ** 2 if 0.1 * new_norm < norm else -1.0
        linear, damped = (steepness * step / norm) ** 2, damping * (length / norm) ** 2
        expected = linear + 2 * damped
        gain = actual / expected if expected else 0.0
        if gain <= 0.25:
            share = 0.5 if actual >= 0 else 0.5 * (linear + damped) / (linear + damped - 0.5 * actual)
            share = 0.1 if 0.1 * new_norm >= norm or share < 0.1 else share
            radius, damping = share * min(radius, length / 0.1), damping / share
        elif damping == 0 or gain >= 0.75:
            radius, damping = length / 0.5, 0.5 * damping
        if gain >= _LEAST_GAIN:
            x, residuals, slopes, norm = x + step, moved, new_slopes, new_norm
        small = abs(actual) <= FTOL and expected <= FTOL and gain <= 2
        if small or radius <= XTOL * scale * abs(x):
            break
    return x


def _damping(steepness: float, fall: float, scale: float, radius: float, start: float) -> float:
    """``lmpar``: the damping whose step is as long as the radius; none, where the plain step is short enough."""
    length = scale * abs(fall) / steepness**2
    excess = length - radius
    if excess <= 0.1 * radius:
        return 0.0
    least = excess / radius / (scale / steepness) ** 2
    most = abs(fall) / scale / radius or _TINY / min(radius, 0.1)
    damping = min(max(start, least), most) or abs(fall) / scale / length
    for _ in range(10):
        damping = damping or max(_TINY, 1e-3 * most)
        width = steepness**2 + damping * scale**2
        before, length = excess, scale * abs(fall) / width
        excess = length - radius
        if abs(excess) <= 0.1 * radius or (least == 0 and excess <= before < 0):
            break
        least, most = (max(least, damping), most) if excess > 0 else (least, min(most, damping))
        damping = max(least, damping + excess / radius * width / scale**2)
    return damping
