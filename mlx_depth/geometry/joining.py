"""Long sequences: windows of views, each in a world of its own, joined into the world of the first."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError
from mlx_depth.geometry.alignment import IDENTITY, Similarity, aligned, umeyama
from mlx_depth.geometry.poses import as_3x4

MIN_POINTS = 100  # in an overlap; three would do without noise
MAX_POINTS = 50_000  # of an overlap, evenly; bounds time
ROUNDS = 10  # of reweighting; with a fifth of outliers it settles in seven
OUTLIER = 3.0  # medians of the error, from which on a point counts nothing
PRECISION = 1e-7  # float32 depth has no finer errors
MAX_DISAGREEMENT = 0.1  # median error over distance; 10 % of noise in both windows stays just below


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """Views that a network saw together, in the order of the sequence.

    Attributes:
        depth: ``(V, H, W)``, along z, in the window's own unit; not finite or not above 0 where there is none.
        intrinsics: ``(V, 3, 3)``, in pixels of the depth, centers at integers.
        extrinsics: ``(V, 3, 4)``, the window's own world → camera.
        confidence: ``(V, H, W)``, larger = surer; 0 where the depth means nothing (sky, moving things), as a join takes
            it for the same point in both windows. None trusts every pixel alike.
    """

    depth: npt.NDArray[np.floating]
    intrinsics: npt.NDArray[np.floating]
    extrinsics: npt.NDArray[np.floating]
    confidence: npt.NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, np.ndarray) and (value is not None or field.name != "confidence"):
                raise OptionError(f"{field.name} is no numpy array but {type(value).__name__}: give an array.")
        depth, intrinsics = self.depth, self.intrinsics
        if depth.dtype.kind != "f" or depth.ndim != 3 or 0 in depth.shape:
            raise OptionError(f"depth of shape {depth.shape} and type {depth.dtype} is none: give (V, H, W) floats.")
        views = len(depth)
        if intrinsics.shape != (views, 3, 3) or self.extrinsics.shape != (views, 3, 4):
            raise OptionError(
                f"{views} depth maps have intrinsics of shape {intrinsics.shape} and extrinsics of shape "
                f"{self.extrinsics.shape}: give ({views}, 3, 3) and ({views}, 3, 4)."
            )
        as_3x4(self.extrinsics, name="extrinsics")
        focal = intrinsics[:, [0, 1], [0, 1]]
        if not np.isfinite(intrinsics).all() or (focal <= 0).any() or (intrinsics[:, 2] != [0, 0, 1]).any():
            raise OptionError("intrinsics lack finite focal lengths above 0 or a last row of 0 0 1: give both.")
        if self.confidence is not None and self.confidence.shape != depth.shape:
            raise OptionError(
                f"a confidence of shape {self.confidence.shape} does not fit depth of shape {depth.shape}: "
                "give one for each pixel."
            )

    def __len__(self) -> int:
        return len(self.depth)


@dataclasses.dataclass(frozen=True, eq=False)
class JoinedView:
    """One view in the world of the first window.

    Attributes:
        depth: ``(H, W)``, in the unit of the first window, of the type that it came in.
        intrinsics: ``(3, 3)``, as they came.
        extrinsics: ``(3, 4)``, the first window's world → camera, float64.
        confidence: ``(H, W)``, as it came.
        similarity: From the world of the view's own window to that of the first.
    """

    depth: npt.NDArray[np.floating]
    intrinsics: npt.NDArray[np.floating]
    extrinsics: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.floating] | None
    similarity: Similarity


def plan_windows(count: int, size: int, overlap: int) -> list[range]:
    """Divide a sequence into windows of nearly the same length.

    Args:
        count: Views in the sequence, at least 1.
        size: Views that a window has at most.
        overlap: Views that a window shares with the one before, at least 1 and less than ``size``.
    Returns:
        Which views each window has: as few windows as possible, lengths that differ by at most 1, and exactly
        ``overlap`` views shared.
    Raises:
        OptionError: If the numbers do not make windows.
    """
    if count < 1:
        raise OptionError(f"{count} views make no sequence: give at least one.")
    if not 1 <= overlap < size:
        raise OptionError(f"windows of {size} views cannot overlap by {overlap}: give 1 up to {size - 1}.")
    if count <= size:
        return [range(count)]
    windows = math.ceil((count - overlap) / (size - overlap))
    starts = [index * (count - overlap) // windows for index in range(windows + 1)]
    return [range(start, following + overlap) for start, following in itertools.pairwise(starts)]


def join(windows: Iterable[Window], overlap: int, *, min_confidence: float | None = None) -> Iterator[JoinedView]:
    """Bring windows into the world of the first, one after the other.

    Args:
        windows: In order, and best made one at a time: a window is let go before the next is asked for.
        overlap: The last views of a window are the first of the next: so many of them.
        min_confidence: Points of the overlap that have less in either window are not used; None takes the surer half.
    Yields:
        Each view of the sequence once; those of an overlap as the earlier window has them.
    Raises:
        OptionError: If an overlap has too few points for a join, or the windows contradict each other there (views
            that look alike do not); if a window brings no new view, or its images have another size.

    Memory holds one window and the overlap of the one before, however long the sequence. The similarity of a window
    is fitted to the same pixels of the same views in both (:func:`~mlx_depth.geometry.alignment.umeyama`), weighted by
    the confidence and by the inverse square of the distance, as errors of depth grow with it; Tukey's weights take out
    what does not fit.
    """
    if overlap < 1:
        raise OptionError(f"windows that overlap by {overlap} views cannot be joined: give 1 or more.")
    return _join(windows, overlap, min_confidence)


def _join(windows: Iterable[Window], overlap: int, min_confidence: float | None) -> Iterator[JoinedView]:
    held: Window | None = None
    number = 0
    for window in windows:
        similarity, first = IDENTITY, 0
        if held is not None:
            _check_follows(held, window, overlap, number)
            similarity, first = _similarity(held, window, min_confidence, number), overlap
        extrinsics = aligned(window.extrinsics, similarity)
        for view in range(first, len(window)):
            yield JoinedView(
                _scaled(window.depth[view], similarity.scale),
                window.intrinsics[view].copy(),
                extrinsics[view].copy(),
                None if window.confidence is None else window.confidence[view].copy(),
                similarity,
            )
        held = Window(
            _scaled(window.depth[-overlap:], similarity.scale),
            window.intrinsics[-overlap:].copy(),
            extrinsics[-overlap:].copy(),
            None if window.confidence is None else window.confidence[-overlap:].copy(),
        )
        number += 1  # noqa: SIM113  # the tuple of enumerate would keep a window while the next is made
        del window


def _scaled(depth: npt.NDArray[np.floating], scale: float) -> npt.NDArray[np.floating]:
    return (depth * scale).astype(depth.dtype)


def _check_follows(held: Window, window: Window, overlap: int, number: int) -> None:
    if len(held) < overlap:
        raise OptionError(
            f"window {number - 1} has {len(held)} views, fewer than the overlap of {overlap}: make it longer."
        )
    if len(window) <= overlap:
        raise OptionError(
            f"window {number} has {len(window)} views, and {overlap} of them overlap: give it at least one more."
        )
    if window.depth.shape[1:] != held.depth.shape[1:]:
        raise OptionError(
            f"window {number} has depth of size {window.depth.shape[1:]}, the one before of {held.depth.shape[1:]}: "
            "predict all at one size."
        )


def _similarity(held: Window, window: Window, min_confidence: float | None, number: int) -> Similarity:
    """From the world of ``window`` to that of ``held``, whose views are the first ones of ``window``."""
    depth = window.depth[: len(held)]
    chosen, weights = _chosen(held, window, min_confidence, number)
    reference = _unproject(held, chosen)
    points = _unproject(window, chosen)
    distances = _distances(held.depth.ravel()[chosen], depth.ravel()[chosen])
    weights = weights / distances**2
    kept = weights
    try:
        for _ in range(ROUNDS):
            similarity = umeyama(reference, points, weights=kept, symmetric=True)
            errors = np.linalg.norm(similarity.apply(points) - reference, axis=1) / distances
            middle = max(float(np.median(errors)), PRECISION)
            kept = weights * np.maximum(1 - (errors / (OUTLIER * middle)) ** 2, 0) ** 2
    except OptionError as error:
        raise OptionError(f"window {number} cannot be joined to the one before: {error}") from error
    if middle > MAX_DISAGREEMENT:
        raise OptionError(
            f"window {number} and the one before disagree by {middle:.0%} of the distance where they overlap: check "
            f"that its first {len(held)} views are the last of the one before, or give min_confidence."
        )
    return similarity


def _chosen(
    held: Window, window: Window, min_confidence: float | None, number: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Pixels of the overlap that both windows are sure of, as flat indices, and the lower of the two confidences."""
    depth = window.depth[: len(held)]
    confidence = np.minimum(_confidence(held, len(held)), _confidence(window, len(held)))
    with np.errstate(invalid="ignore"):
        usable = np.isfinite(depth) & (depth > 0) & np.isfinite(held.depth) & (held.depth > 0)
        usable &= np.isfinite(confidence) & (confidence > 0)
    if min_confidence is None:
        min_confidence = float(np.median(confidence[usable])) if usable.any() else 0.0
    chosen = np.flatnonzero(usable & (confidence >= min_confidence))
    if len(chosen) < MIN_POINTS:
        raise OptionError(
            f"window {number} shares only {len(chosen)} points with the one before that both are sure of "
            f"(confidence {min_confidence:.3g} and up), and {MIN_POINTS} are needed: "
            "overlap by more views, or lower min_confidence."
        )
    if len(chosen) > MAX_POINTS:
        chosen = chosen[np.linspace(0, len(chosen) - 1, MAX_POINTS).astype(np.intp)]
    return chosen, confidence.ravel()[chosen].astype(np.float64)


def _confidence(window: Window, views: int) -> npt.NDArray[np.floating]:
    return np.ones_like(window.depth[:views]) if window.confidence is None else window.confidence[:views]


def _unproject(window: Window, chosen: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """``(N, 3)``: pixels, as flat indices into the window's first views, in the window's world."""
    view, row, column = np.unravel_index(chosen, window.depth.shape)
    depth = window.depth.reshape(-1)[chosen].astype(np.float64)
    pixels = np.stack([column, row, np.ones_like(row)], axis=-1).astype(np.float64)
    points = np.empty_like(pixels)
    for index in np.unique(view):
        here = view == index
        extrinsics = window.extrinsics[index].astype(np.float64)
        rays = pixels[here] @ np.linalg.inv(window.intrinsics[index].astype(np.float64)).T
        points[here] = (rays * depth[here, None] - extrinsics[:, 3]) @ extrinsics[:, :3]
    return points


def _distances(reference_depth: npt.NDArray[np.floating], depth: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Of each point, in the unit of the reference: the larger of both, as a false near one would count for much."""
    reference, other = reference_depth.astype(np.float64), depth.astype(np.float64)
    return np.maximum(reference, other * np.median(reference) / np.median(other))
