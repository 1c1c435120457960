"""Which pixels of a scene become points."""

import dataclasses

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError
from mlx_depth.geometry.unproject import unproject

# Steps of the R2 sequence (M. Roberts, 2018), 1/g and 1/g² for g³ = g + 1: their multiples fill 0..1 evenly.
_ROW_STEP, _COLUMN_STEP = 0.7548776662466927, 0.5698402909980532


@dataclasses.dataclass(frozen=True)
class PointFilter:
    """Which pixels of a scene become points. One without a finite depth above 0 never does.

    Attributes:
        min_confidence: Drop what is less sure than this.
        confidence_percentile: Drop this share of the pixels outside the sky, 0..100, the least sure ones; does nothing
            where the scene has no confidence. Of the two thresholds the higher counts.
        edge_threshold: Drop both pixels of a pair of neighbors whose depths differ by more than this part of the
            smaller one: points between the front and the back of an edge hang in the air. Surfaces that are
            steeper than ``tan(angle) = edge_threshold * focal length in pixels`` go, too: 0.04 and 400 pixels keep up
            to 86 degrees from facing the camera.
        voxel_size: Keep one point in each cube of this side, the surest (the first of equals), in the depth's unit.
        max_points: Keep at most so many, spread evenly over the images; the same ones each time.
        max_sky: Drop pixels whose sky value is this or more.

    None turns a rule off.
    """

    min_confidence: float | None = None
    confidence_percentile: float | None = 40.0
    edge_threshold: float | None = 0.04
    voxel_size: float | None = None
    max_points: int | None = None
    max_sky: float | None = 0.5

    def __post_init__(self) -> None:
        if self.min_confidence is not None and not np.isfinite(self.min_confidence):
            raise OptionError(f"min_confidence {self.min_confidence} is not a finite number: give one, or None.")
        if self.confidence_percentile is not None and not 0 <= self.confidence_percentile <= 100:
            raise OptionError(f"confidence_percentile {self.confidence_percentile} is not within 0..100: give a share.")
        for name in ("edge_threshold", "voxel_size", "max_sky"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise OptionError(f"{name} {value} is not a finite number above 0: give one, or None.")
        if self.max_points is not None and not (
            isinstance(self.max_points, (int, np.integer)) and self.max_points >= 1
        ):
            raise OptionError(f"max_points {self.max_points} is not a whole number above 0: give one, or None.")


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """The points of a scene.

    Attributes:
        pixels: ``(N,)``, int64: indices into the flattened depth, rising.
        positions: ``(N, 3)``, float32, world coordinates.
    """

    pixels: npt.NDArray[np.int64]
    positions: npt.NDArray[np.float32]


def choose_points(
    depth: npt.NDArray[np.float32],
    intrinsics: npt.NDArray[np.floating],
    extrinsics: npt.NDArray[np.floating],
    *,
    confidence: npt.NDArray[np.float32] | None,
    sky: npt.NDArray[np.float32] | None,
    filter: PointFilter,
) -> Points:
    """Unproject the pixels that a filter leaves.

    Args:
        depth: ``(V, H, W)``.
        intrinsics: ``(V, 3, 3)``, pixels.
        extrinsics: ``(V, 3, 4)``, world → camera.
        confidence: ``(V, H, W)``, larger = surer.
        sky: ``(V, H, W)``, 1 = sky.
        filter: The rules.
    Returns:
        The points, possibly none.
    Raises:
        OptionError: If the filter asks for a confidence that the scene does not have.
    """
    if filter.min_confidence is not None and confidence is None:
        raise OptionError("this scene has no confidence, which its model does not compute: leave min_confidence out.")
    pixels = np.flatnonzero(_kept(depth, confidence, sky, filter))
    positions = unproject(depth, intrinsics, extrinsics, pixels)
    if not (within := np.isfinite(positions).all(axis=1)).all():  # beyond float32
        pixels, positions = pixels[within], positions[within]
    if filter.voxel_size is not None:
        sureness = np.zeros(len(pixels)) if confidence is None else confidence.reshape(-1)[pixels]
        chosen = _one_a_voxel(positions, sureness, filter.voxel_size)
        pixels, positions = pixels[chosen], positions[chosen]
    if filter.max_points is not None and len(pixels) > filter.max_points:
        chosen = _spread(pixels, depth.shape[2], filter.max_points)
        pixels, positions = pixels[chosen], positions[chosen]
    return Points(pixels, positions)


def has_depth(depth: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Where the depth is finite and above 0; same shape."""
    return np.isfinite(depth) & (depth > 0)


def depth_edges(depth: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.bool_]:
    """Find the pixels on either side of a depth edge.

    Args:
        depth: ``(V, H, W)``; what is not finite and above 0 takes no part.
        threshold: Least difference to the pixel above, below, left or right, as a part of the smaller depth.
    Returns:
        ``(V, H, W)``, True at edges.
    """
    known = np.where(has_depth(depth), depth, np.float32(np.nan))
    edges = np.zeros(depth.shape, np.bool_)
    for one, other in (
        (np.s_[:, 1:, :], np.s_[:, :-1, :]),
        (np.s_[:, :, 1:], np.s_[:, :, :-1]),
    ):
        a, b = known[one], known[other]
        jump = np.abs(a - b) > threshold * np.minimum(a, b)  # False beside NaN
        edges[one] |= jump
        edges[other] |= jump
    return edges


def _kept(
    depth: npt.NDArray[np.float32],
    confidence: npt.NDArray[np.float32] | None,
    sky: npt.NDArray[np.float32] | None,
    filter: PointFilter,
) -> npt.NDArray[np.bool_]:
    kept = has_depth(depth)
    if sky is not None and filter.max_sky is not None:
        kept &= sky < filter.max_sky
    if confidence is not None:
        threshold = _least_confidence(confidence[kept], filter)  # before edges go: the share is that of the scene
        kept &= confidence >= threshold
    if filter.edge_threshold is not None:
        kept &= ~depth_edges(depth, filter.edge_threshold)
    return kept


def _least_confidence(confidence: npt.NDArray[np.float32], filter: PointFilter) -> float:
    """The lower bound of upstream's GLB export, without its upper one: what is asked for is kept to."""
    least = -np.inf if filter.min_confidence is None else filter.min_confidence
    finite = confidence[np.isfinite(confidence)]
    if filter.confidence_percentile is None or finite.size == 0:
        return least
    return max(least, float(np.percentile(finite, filter.confidence_percentile)))


def _one_a_voxel(
    positions: npt.NDArray[np.float32], sureness: npt.NDArray[np.floating], side: float
) -> npt.NDArray[np.int64]:
    """Rising indices of the surest point in each cube."""
    cubes = np.floor(positions.astype(np.float64) / side)  # float, so that no coordinate is too large
    order = np.lexsort((-sureness, *cubes.T))  # stable: of equals the first stays first
    first = np.ones(len(order), np.bool_)
    first[1:] = (cubes[order][1:] != cubes[order][:-1]).any(axis=1)
    return np.sort(order[first])


def _spread(pixels: npt.NDArray[np.int64], width: int, count: int) -> npt.NDArray[np.int64]:
    """Rising indices of ``count`` pixels. A constant stride would take single columns of the images."""
    rows, columns = np.divmod(pixels, width)  # rows go on from view to view
    order = (rows * _ROW_STEP + columns * _COLUMN_STEP) % 1
    return np.sort(np.argsort(order, kind="stable")[:count])
