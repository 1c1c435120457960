"""From points of known distance to the scale and shift of a depth map."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError


def fit_line(
    depth: npt.NDArray[np.float32], known_points: Sequence[Sequence[float]], *, inverse: bool
) -> tuple[float, float]:
    """Fit a line by least squares from the depth to the known distances.

    Args:
        depth: ``(H, W)``, in its own unit.
        known_points: Two or more ``(x, y, metres)``: column and row in pixels (rounded), and the distance.
        inverse: The depth is inverse: fit 1/metres instead of metres.
    Returns:
        ``(scale, shift)`` with scale above 0.
    Raises:
        OptionError: If a point is outside the map or without depth, if there are not two different depths, or if the
            points contradict the depth map.

    Same line as ``numpy.polyfit(…, 1)``.
    """
    if len(known_points) < 2:
        raise OptionError(f"{len(known_points)} known points do not make a fit: give two or more.")
    for point in known_points:
        _check_point(depth, point)
    points = np.array(known_points, np.float64)
    columns, rows = np.rint(points[:, :2]).astype(int).T
    at_points = depth[rows, columns].astype(np.float64)
    target = 1 / points[:, 2] if inverse else points[:, 2]
    if at_points.min() == at_points.max():
        raise OptionError("the known points all have the same depth: add one that is nearer or farther.")
    spread = at_points - at_points.mean()
    scale = float((spread * (target - target.mean())).sum() / (spread * spread).sum())
    shift = float(target.mean() - scale * at_points.mean())
    if scale <= 0:
        raise OptionError(
            "the known points contradict the depth map, which has the far ones nearer: "
            "check that each is (column, row, metres)."
        )
    behind = np.flatnonzero(scale * at_points + shift <= 0)
    if behind.size:
        raise OptionError(
            f"the fit puts known point {behind[0]} behind the camera or beyond infinity: "
            "check its distance, or add points."
        )
    return scale, shift


def _check_point(depth: npt.NDArray[np.float32], point: Sequence[float]) -> None:
    if len(point) != 3 or not np.isfinite(point).all() or point[2] <= 0:
        raise OptionError(f"{point} is no known point: give (column, row, metres), metres above 0.")
    height, width = depth.shape
    column, row = round(point[0]), round(point[1])
    if not (0 <= column < width and 0 <= row < height):
        raise OptionError(
            f"the known point {point} is outside the image of {width} columns and {height} rows: "
            "give (column, row, metres)."
        )
    if not np.isfinite(depth[row, column]):
        raise OptionError(f"the depth map has no depth at the known point {point}: choose another.")
