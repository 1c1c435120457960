"""Similarities: the rotation, translation and scale that bring one set of points or cameras onto another."""

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError
from mlx_depth.geometry.poses import as_3x4, camera_centers

RANSAC_ROUNDS = 10
RANSAC_SEED = 42  # upstream's, so that the draws are the same
MIN_VIEWS = 3
FLAT = float(np.finfo(np.float64).eps)  # evo's: a singular value at or below it counts as zero
STRAIGHT = 1e-12  # second over first singular value: what float64 leaves of a straight line is below it


@dataclasses.dataclass(frozen=True, eq=False)
class Similarity:
    """Points x of one world become ``scale * rotation @ x + translation`` in another.

    Attributes:
        rotation: ``(3, 3)``, float64, determinant 1.
        translation: ``(3,)``, float64, in the unit of the world that it leads to.
        scale: Above 0: units of the world that it leads to, per unit of the other.
    """

    rotation: npt.NDArray[np.float64]
    translation: npt.NDArray[np.float64]
    scale: float

    def apply(self, points: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """``(…, 3)`` points in the world that it leads to."""
        return self.scale * (np.asarray(points, np.float64) @ self.rotation.T) + self.translation


IDENTITY = Similarity(np.eye(3), np.zeros(3), 1.0)


def umeyama(
    reference_points: npt.ArrayLike,
    points: npt.ArrayLike,
    *,
    weights: npt.ArrayLike | None = None,
    symmetric: bool = False,
) -> Similarity:
    """The similarity that brings points closest to their partners, by (weighted) least squares.

    Args:
        reference_points: ``(N, 3)``, where the points should come to lie.
        points: ``(N, 3)``, partner by partner.
        weights: ``(N,)``, at least 0; None counts all the same.
        symmetric: Take the scale from how far either set spreads. Least squares makes it too small where the points
            are as uncertain as their partners, and a chain of such fits shrinks.
    Returns:
        From the world of ``points`` to that of ``reference_points``.
    Raises:
        OptionError: If shapes differ, a number is not finite, or the points lie on a line (two always do) or in one
            place, which leaves the rotation open.

    Umeyama 1991, "Least-squares estimation of transformation parameters between two point patterns", eqs. 34–43.
    The symmetric scale: Horn 1987, "Closed-form solution of absolute orientation using unit quaternions", section 2E.
    """
    reference, moving = _points("reference_points", reference_points), _points("points", points)
    if reference.shape != moving.shape:
        raise OptionError(f"{len(reference)} reference points and {len(moving)} points do not pair up: give as many.")
    found = _fit(reference, moving, _weights(weights, len(moving)), STRAIGHT, symmetric)
    if found is None:
        raise OptionError(
            "the points lie on a line or in one place, which leaves the rotation open: give three or more that do not."
        )
    return found


def align_poses(reference_extrinsics: npt.ArrayLike, extrinsics: npt.ArrayLike, *, ransac: bool = False) -> Similarity:
    """The similarity that brings the centers of cameras closest to those of the same cameras in another world.

    Args:
        reference_extrinsics: ``(V, 3, 4)`` or ``(V, 4, 4)``, world → camera, in the world that it leads to.
        extrinsics: The same views in their own world.
        ransac: Fit to half of the views ten times, and keep what most of them agree with; the draws repeat.
    Returns:
        From the world of ``extrinsics`` to that of ``reference_extrinsics``.
    Raises:
        OptionError: If the numbers of views differ, or the centers (with ``ransac``: those that agree) lie on a line
            or in one place; fewer than three views always do.

    As ``align_poses_umeyama`` of upstream's ``utils/pose_align.py``, with the random state 42 of its ``api.py``. It
    rejects the same degenerate centers, and those on a line that only rounding bends, where upstream returns some
    rotation about that line.
    """
    reference = _centers("reference_extrinsics", reference_extrinsics)
    moving = _centers("extrinsics", extrinsics)
    if len(reference) != len(moving):
        raise OptionError(f"{len(reference)} reference views and {len(moving)} views do not pair up: give as many.")
    start = _fit(reference, moving, _weights(None, len(moving)), STRAIGHT)
    if start is None:
        raise OptionError(
            f"the centers of the {len(moving)} cameras lie on a line or in one place, which leaves the rotation open: "
            "add views from beside it."
        )
    return _ransac(reference, moving, start) if ransac else start


def aligned(extrinsics: npt.ArrayLike, similarity: Similarity) -> npt.NDArray[np.float64]:
    """Cameras in the world that a similarity leads to; their depth has to be multiplied by its scale.

    Args:
        extrinsics: ``(…, 3, 4)`` or ``(…, 4, 4)``, world → camera.
        similarity: From their world to the other.
    Returns:
        ``(…, 3, 4)``, float64, rigid.
    Raises:
        OptionError: If the poses are not rigid.

    As ``apply_umeyama_alignment_to_ext`` of upstream's ``utils/pose_align.py``.
    """
    short = as_3x4(extrinsics, name="extrinsics")
    rotation = short[..., :3] @ similarity.rotation.T
    translation = similarity.scale * short[..., 3] - rotation @ similarity.translation
    return np.concatenate([rotation, translation[..., None]], axis=-1)


def _fit(
    reference: npt.NDArray[np.float64],
    points: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    straight: float = 0.0,
    symmetric: bool = False,
) -> Similarity | None:
    """None if the points leave the rotation open. ``weights`` have the sum 1."""
    reference_mean, mean = weights @ reference, weights @ points
    to_reference, to_points = reference - reference_mean, points - mean
    variance = weights @ (to_points**2).sum(axis=1)
    U, spread, Vt = np.linalg.svd((weights[:, None] * to_reference).T @ to_points)
    if spread[1] <= max(FLAT, straight * spread[0]):
        return None
    mirror = np.array([1, 1, np.sign(np.linalg.det(U) * np.linalg.det(Vt))])
    rotation = (U * mirror) @ Vt
    scale = float(spread @ mirror / variance)
    if symmetric:
        scale = math.sqrt(weights @ (to_reference**2).sum(axis=1) / variance)
    return Similarity(rotation, reference_mean - scale * rotation @ mean, scale)


def _ransac(reference: npt.NDArray[np.float64], points: npt.NDArray[np.float64], start: Similarity) -> Similarity:
    random = np.random.default_rng(RANSAC_SEED)
    count = len(points)
    best, best_agree, best_score = start, np.zeros(count, bool), (-1, -np.inf)
    # Upstream's threshold: to the *nearest* reference center, which need not be the partner.
    gaps = np.linalg.norm(start.apply(points)[:, None] - reference, axis=-1)
    threshold = np.median(gaps.min(axis=1))
    for _ in range(RANSAC_ROUNDS):
        sample = random.choice(count, size=max(MIN_VIEWS, (count + 1) // 2), replace=False)
        found = _fit(reference[sample], points[sample], _weights(None, len(sample)))
        if found is None:
            continue
        errors = np.linalg.norm(found.apply(points) - reference, axis=1)
        agree = errors <= threshold
        score = (int(agree.sum()), -float(errors[agree].mean()) if agree.any() else -np.inf)
        if score > best_score:
            best, best_agree, best_score = found, agree, score
    if best_agree.sum() < MIN_VIEWS:
        return best
    refit = _fit(reference[best_agree], points[best_agree], _weights(None, int(best_agree.sum())), STRAIGHT)
    if refit is None:
        raise OptionError(
            f"the centers of the {best_agree.sum()} cameras that agree lie on a line or in one place, which leaves "
            "the rotation open: add views from beside it, or pass ransac=False."
        )
    return refit


def _centers(name: str, extrinsics: npt.ArrayLike) -> npt.NDArray[np.float64]:
    centers = camera_centers(extrinsics, name=name)
    if centers.ndim != 2 or not len(centers):
        raise OptionError(f"{name} of shape {np.shape(extrinsics)} are no list of views: give (V, 3, 4).")
    return centers


def _points(name: str, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
    values = np.asarray(points)
    if values.dtype.kind not in "fiu" or values.ndim != 2 or values.shape[1] != 3 or not len(values):
        raise OptionError(f"{name} of shape {values.shape} and type {values.dtype} are no points: give (N, 3) numbers.")
    if not np.isfinite(values).all():
        raise OptionError(f"{name} hold numbers that are not finite: leave those points out.")
    return values.astype(np.float64)


def _weights(weights: npt.ArrayLike | None, count: int) -> npt.NDArray[np.float64]:
    """With the sum 1."""
    if weights is None:
        return np.full(count, 1 / count)
    values = np.asarray(weights, np.float64)
    if values.shape != (count,) or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise OptionError(f"weights are not {count} finite numbers of at least 0, some above: give one for each point.")
    return values / values.sum()
