"""From the rays that a network predicts to cameras: a homography by RANSAC, then rotation and focal lengths from it."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError
from mlx_depth.geometry.poses import inverse_pose

# Upstream's constants.
ROUNDS = 100
SAMPLE = 8  # rays a round
SAMPLED_SHARE = 0.3  # of the rays, the most confident, that samples are drawn from
THRESHOLD = 0.2  # of inliers, on the plane z = 1 of the world
MIN_Z = 1e-4  # flatter rays do not meet that plane
MAX_INLIERS = 8000  # that the last fit uses
KEPT_SHARE = 0.95  # of the inliers, the most confident, that those are drawn from

MAX_CONDITION = 1e6  # of a homography: rays that are all parallel have more, a lens of a hundredth of a degree less
UNDETERMINED = 1e-12  # second-smallest over largest singular value: more than one homography fits

Array: TypeAlias = npt.NDArray[np.float64]
Permutation: TypeAlias = Callable[[int], npt.NDArray[np.integer]]


def cameras_from_rays(
    rays: npt.ArrayLike, confidence: npt.ArrayLike, size: tuple[int, int], *, seed: int = 0
) -> tuple[Array, Array]:
    """Estimate a camera for each view from its rays.

    Args:
        rays: ``(V, h, w, 6)``, in the world: direction (any length), then origin.
        confidence: ``(V, h, w)``, at least 0, larger = surer.
        size: ``(height, width)`` of the image, pixels, that the intrinsics are for.
        seed: Of the draws; the same seed gives the same cameras.
    Returns:
        Extrinsics, ``(V, 3, 4)``, world → camera, in the unit of the origins; and intrinsics, ``(V, 3, 3)``, in pixels
        of ``size``. Both float64.
    Raises:
        OptionError: If shapes do not fit, a number is not finite, a confidence is negative, or a view's rays are not
            those of a camera (all parallel, too few that agree, none with a confidence).

    As ``get_extrinsic_from_camray`` of upstream's ``utils/ray_utils.py`` and ``_process_ray_pose_estimation`` of its
    ``model/da3.py``, other draws apart. Three of its rules to know: the grid of rays has its centers half a pixel in,
    so that a principal point in the middle is (width / 2, height / 2); the rotation is exact where the principal point
    is in the middle, as upstream reads it from a lower triangular matrix; and rays are compared on the plane z = 1 of
    the world, which views at right angles to the first hardly meet.
    """
    ray_values, weights = np.asarray(rays), np.asarray(confidence)
    _check(ray_values, weights, size)
    return _cameras(ray_values, weights, size, np.random.default_rng(seed).permutation)


def _cameras(
    rays: npt.NDArray[np.floating],
    confidence: npt.NDArray[np.floating],
    size: tuple[int, int],
    permutation: Permutation,
) -> tuple[Array, Array]:
    """With explicit draws: ``permutation(n)`` permutes range(n): asked for ``ROUNDS`` times, then by some views."""
    V, h, w, _ = rays.shape
    grid = _grid(h, w)
    sampled = max(SAMPLE, int(h * w * SAMPLED_SHARE))
    samples = np.stack([permutation(sampled)[:SAMPLE] for _ in range(ROUNDS)])  # the same for all views
    poses, intrinsics = np.empty((V, 3, 4)), np.empty((V, 3, 3))
    for view in range(V):
        directions, origins = np.split(rays[view].astype(np.float64).reshape(h * w, 6), 2, axis=1)
        target, weights = _on_plane(directions, confidence[view].astype(np.float64).ravel())
        if not weights.any():
            raise OptionError(
                f"view {view} has no ray with a confidence that meets the plane z = 1: use the camera head's poses."
            )
        homography = _robust_homography(grid, target, weights, samples, permutation, view)
        rotation, lower = _rotation_and_lower(homography)
        poses[view] = np.column_stack([rotation, weights @ origins / weights.sum()])
        intrinsics[view] = _intrinsics(lower, size)
    return inverse_pose(poses), intrinsics


def _grid(h: int, w: int) -> Array:
    """``(N, 2)``: centers of the rays' cells, x and y, on an image that spans -1 to 1."""
    x, y = (2 * np.arange(w) + 1) / w - 1, (2 * np.arange(h) + 1) / h - 1
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(h * w, 2)


def _on_plane(directions: Array, weights: Array) -> tuple[Array, Array]:
    """Where rays meet z = 1; those that do not get the weight 0 and keep their x and y, as upstream's do."""
    z = directions[:, 2]
    meets = np.abs(z) > MIN_Z
    target = directions[:, :2] / np.where(meets, z, 1)[:, None]
    return target, np.where(meets, weights, 0)


def _robust_homography(
    grid: Array,
    target: Array,
    weights: Array,
    samples: npt.NDArray[np.integer],
    permutation: Permutation,
    view: int,
) -> Array:
    surest = np.argsort(-weights, kind="stable")
    drawn = surest[samples]  # (ROUNDS, SAMPLE)
    candidates, _ = _fit_homographies(grid[drawn], target[drawn], weights[drawn])
    inliers = surest[_best_inliers(grid, target, weights, candidates)[surest]]
    if len(inliers) > MAX_INLIERS:
        inliers = inliers[: max(int(len(inliers) * KEPT_SHARE), MAX_INLIERS)]
        inliers = inliers[permutation(len(inliers))[:MAX_INLIERS]]
    if len(inliers) < SAMPLE:
        raise OptionError(
            f"of the rays of view {view} only {len(inliers)} agree on a camera: use the camera head's poses."
        )
    homography, singular = _fit_homographies(grid[inliers], target[inliers], weights[inliers])
    open_fit = singular[-2] <= UNDETERMINED * singular[0]
    if open_fit or not np.isfinite(homography).all() or np.linalg.cond(homography) > MAX_CONDITION:
        raise OptionError(
            f"the rays of view {view} fit many cameras, as parallel ones do, or those of a single row: "
            "use the camera head's poses."
        )
    return homography


def _fit_homographies(source: Array, target: Array, weights: Array) -> tuple[Array, Array]:
    """Weighted least squares: ``(…, K, 2)`` twice and ``(…, K)`` → ``(…, 3, 3)``, and ``(…, 9)`` singular values."""
    ones = np.ones_like(source[..., :1])
    point = np.concatenate([source, ones], axis=-1) * np.sqrt(weights)[..., None]
    zeros = np.zeros_like(point)
    x_rows = np.concatenate([-point, zeros, point * target[..., :1]], axis=-1)
    y_rows = np.concatenate([zeros, -point, point * target[..., 1:]], axis=-1)
    _, singular, Vt = np.linalg.svd(np.concatenate([x_rows, y_rows], axis=-2), full_matrices=False)  # (…, 2K, 9)
    homography = Vt[..., -1, :].reshape(*Vt.shape[:-2], 3, 3)
    with np.errstate(divide="ignore", invalid="ignore"):
        return homography / homography[..., 2:, 2:], singular


def _best_inliers(grid: Array, target: Array, weights: Array, candidates: Array) -> npt.NDArray[np.bool_]:
    """``(N,)``: the rays that agree with the candidate whose inliers have the most confidence."""
    source = np.concatenate([grid, np.ones((len(grid), 1))], axis=1).T
    u, v = np.ascontiguousarray(target.T)
    best, best_score = np.zeros(len(grid), bool), -1.0
    with np.errstate(invalid="ignore", over="ignore"):  # a candidate may be infinite: it has no inliers
        for candidate in candidates:  # one at a time stays in the processor's cache
            x, y, z = candidate @ source
            x -= z * u
            y -= z * v
            inliers = x * x + y * y < THRESHOLD**2 * (z * z)  # the distance, without a division by z
            score = float(weights[inliers].sum())
            if score > best_score:
                best, best_score = inliers, score
    return best


def _rotation_and_lower(homography: Array) -> tuple[Array, Array]:
    """QL: a rotation (camera → world), and a lower triangular matrix whose diagonal is positive and ends with 1."""
    upright = homography if np.linalg.det(homography) > 0 else -homography
    Q, R = np.linalg.qr(upright[:, ::-1])
    Q, lower = Q[:, ::-1], R[::-1, ::-1]
    signs = np.sign(np.diag(lower))
    return Q * signs, lower * signs[:, None] / abs(lower[2, 2])


def _intrinsics(lower: Array, size: tuple[int, int]) -> Array:
    height, width = size
    return np.array(
        [
            [width / 2 / lower[0, 0], 0, width / 2 * (lower[2, 0] + 1)],
            [0, height / 2 / lower[1, 1], height / 2 * (lower[2, 1] + 1)],
            [0, 0, 1],
        ]
    )


def _check(rays: npt.NDArray[np.generic], confidence: npt.NDArray[np.generic], size: tuple[int, int]) -> None:
    if rays.dtype.kind != "f" or rays.ndim != 4 or rays.shape[-1] != 6 or not len(rays):
        raise OptionError(f"rays of shape {rays.shape} and type {rays.dtype} do not fit: give (V, h, w, 6) floats.")
    if confidence.dtype.kind != "f" or confidence.shape != rays.shape[:3]:
        raise OptionError(
            f"a confidence of shape {confidence.shape} and type {confidence.dtype} does not fit the rays: "
            f"give {rays.shape[:3]} floats."
        )
    if min(rays.shape[1:3]) < 2 or rays.shape[1] * rays.shape[2] < SAMPLE:
        raise OptionError(
            f"a grid of {rays.shape[1]}×{rays.shape[2]} rays is too small for a camera: "
            f"give {SAMPLE} or more, not in one line."
        )
    if len(size) != 2 or min(size) < 1:
        raise OptionError(f"{size} is no size: give (height, width) in pixels.")
    for view in range(len(rays)):
        if not (np.isfinite(rays[view]).all() and np.isfinite(confidence[view]).all()):
            raise OptionError(f"the rays of view {view} hold numbers that are not finite: run the network in float32.")
        if confidence[view].min() < 0:
            raise OptionError(f"the confidence of view {view} is negative in places: give 0 and up.")
