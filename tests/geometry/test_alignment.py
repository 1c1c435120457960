import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import require

from mlx_depth.errors import OptionError
from mlx_depth.geometry.alignment import RANSAC_SEED, Similarity, align_poses, aligned, umeyama
from mlx_depth.geometry.poses import as_4x4, camera_centers, inverse_pose


@pytest.fixture
def pose_align():
    return require("reference", "depth_anything_3.utils.pose_align")


def rotation(random: np.random.Generator) -> np.ndarray:
    Q, R = np.linalg.qr(random.normal(size=(3, 3)))
    Q = Q * np.sign(np.diag(R))
    return Q * np.linalg.det(Q)


def similarity(random: np.random.Generator) -> Similarity:
    return Similarity(rotation(random), random.normal(0, 3, 3), float(np.exp(random.normal())))


def cameras(random: np.random.Generator, views: int) -> np.ndarray:
    """World → camera, anywhere."""
    return np.stack([np.column_stack([rotation(random), random.normal(size=3)]) for _ in range(views)])


def at(centers: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """World → camera of cameras that stand at ``(V, 3)`` and look anywhere."""
    return inverse_pose(np.stack([np.column_stack([rotation(random), center]) for center in centers]))


def moved(extrinsics: np.ndarray, noise: float, random: np.random.Generator) -> np.ndarray:
    poses = inverse_pose(extrinsics)
    poses[..., 3] += random.normal(0, noise, poses[..., 3].shape)
    return inverse_pose(poses)


seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(seeds, st.integers(4, 40), st.booleans())
def test_umeyama_recovers(seed, count, weighted):
    random = np.random.default_rng(seed)
    truth = similarity(random)
    points = random.normal(0, 2, (count, 3))
    found = umeyama(truth.apply(points), points, weights=random.uniform(0.1, 9, count) if weighted else None)
    np.testing.assert_allclose(found.rotation, truth.rotation, atol=1e-9)
    np.testing.assert_allclose(found.translation, truth.translation, atol=1e-8)
    np.testing.assert_allclose(found.scale, truth.scale, rtol=1e-9)


@settings(deadline=None)
@given(seeds, st.integers(3, 12), st.booleans(), st.booleans())
def test_cameras_are_brought_back(seed, views, ransac, as_square):
    """Known similarity, random cameras: centers, directions and projections come back."""
    random = np.random.default_rng(seed)
    truth, extrinsics = similarity(random), cameras(random, views)
    reference = aligned(extrinsics, truth)
    found = align_poses(as_4x4(reference) if as_square else reference, extrinsics, ransac=ransac)
    np.testing.assert_allclose(aligned(extrinsics, found), reference, atol=1e-6)
    np.testing.assert_allclose(camera_centers(reference), truth.apply(camera_centers(extrinsics)), atol=1e-9)
    point = random.normal(size=3)
    seen = extrinsics[:, :, :3] @ point + extrinsics[:, :, 3]
    seen_after = reference[:, :, :3] @ truth.apply(point) + reference[:, :, 3]
    np.testing.assert_allclose(seen_after, truth.scale * seen, atol=1e-9)  # depth scales, pixels stay


@pytest.mark.parametrize("ransac", [False, True])
@pytest.mark.parametrize("views", [3, 4, 9, 10, 31])
@pytest.mark.parametrize("outliers", [0, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_as_upstream(pose_align, ransac, views, outliers, seed):
    random = np.random.default_rng(seed)
    extrinsics = cameras(random, views)
    reference = moved(aligned(extrinsics, similarity(random)), 0.05, random)
    reference[:outliers, :, 3] += 9
    ours = align_poses(reference, extrinsics, ransac=ransac)
    r, t, s, theirs = pose_align.align_poses_umeyama(
        reference, extrinsics, return_aligned=True, ransac=ransac, random_state=RANSAC_SEED
    )
    np.testing.assert_allclose(ours.rotation, r, atol=1e-10)
    np.testing.assert_allclose(ours.translation, t, atol=1e-10)
    np.testing.assert_allclose(ours.scale, s, rtol=1e-10)
    np.testing.assert_allclose(aligned(extrinsics, ours), theirs[:, :3], atol=1e-9)
    applied = pose_align.apply_umeyama_alignment_to_ext(r, t, s, extrinsics)
    np.testing.assert_allclose(aligned(extrinsics, ours), applied[:, :3], atol=1e-9)


def test_ransac_leaves_outliers_out():
    random = np.random.default_rng(3)
    truth, extrinsics = similarity(random), cameras(random, 20)
    reference = moved(aligned(extrinsics, truth), 1e-4, random)
    reference[[4, 11], :, 3] += 30
    errors = [
        np.abs(align_poses(reference, extrinsics, ransac=ransac).rotation - truth.rotation).max()
        for ransac in (False, True)
    ]
    assert errors[0] > 0.1
    assert errors[1] < 1e-3


def test_mirrored_points_give_a_rotation():
    evo = require("reference", "evo.core.geometry")
    random = np.random.default_rng(0)
    points = random.normal(size=(9, 3))
    reference = points * [1, 1, -1] + random.normal(0, 0.1, (9, 3))
    found = umeyama(reference, points)
    r, t, s = evo.umeyama_alignment(points.T, reference.T, with_scale=True)
    assert np.linalg.det(found.rotation) == pytest.approx(1)
    np.testing.assert_allclose(found.rotation, r, atol=1e-12)
    np.testing.assert_allclose(found.translation, t, atol=1e-12)
    assert found.scale == pytest.approx(s)


def test_points_in_a_plane_are_enough():
    random = np.random.default_rng(1)
    truth, points = similarity(random), random.normal(size=(5, 3)) * [1, 1, 0]
    np.testing.assert_allclose(umeyama(truth.apply(points), points).rotation, truth.rotation, atol=1e-12)


def test_weights_count_as_copies():
    random = np.random.default_rng(2)
    points, reference = random.normal(size=(2, 6, 3))
    copies = np.repeat(np.arange(6), [1, 3, 0, 2, 1, 1])
    weighted = umeyama(reference, points, weights=[1, 3, 0, 2, 1, 1])
    copied = umeyama(reference[copies], points[copies])
    np.testing.assert_allclose(weighted.apply(points), copied.apply(points), atol=1e-12)


LINE = np.outer(np.arange(6), [0.3, -0.7, 1.1]) + np.array([5, 6, 7])  # rounding bends it
DEGENERATE = {
    "one view": np.array([[1.0, 2, 3]]),
    "two views": np.array([[1.0, 2, 3], [4, 4, 4]]),
    "one place": np.ones((5, 3)),
    "a straight axis": np.outer(np.arange(5), [0, 0, 1.0]),
}


@pytest.mark.parametrize("ransac", [False, True])
@pytest.mark.parametrize("centers", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_centers_as_upstream(pose_align, centers, ransac):
    evo = require("reference", "evo.core.geometry")
    extrinsics = at(centers, np.random.default_rng(0))
    with pytest.raises(evo.GeometryException):
        pose_align.align_poses_umeyama(extrinsics, extrinsics, ransac=ransac)
    message = rf"the centers of the {len(centers)} cameras lie on a line or in one place.*: add views from beside it\."
    with pytest.raises(OptionError, match=message):
        align_poses(extrinsics, extrinsics, ransac=ransac)


@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(1e-3, 1e4))
def test_a_line_that_rounding_bends(seed, unit):
    """Upstream returns some rotation about it."""
    random = np.random.default_rng(seed)
    extrinsics = at(LINE * unit, random)
    with pytest.raises(OptionError, match="the centers of the 6 cameras lie on a line"):
        align_poses(aligned(extrinsics, similarity(random)), extrinsics)
    with pytest.raises(OptionError, match=r"the points lie on a line .*: give three or more that do not\."):
        umeyama(LINE * unit, LINE * unit)


def test_nearly_a_line_is_enough():
    """A street of 100 m, walked with sways of centimeters."""
    random = np.random.default_rng(5)
    centers = np.outer(np.linspace(0, 100, 50), [0.6, 0, 0.8]) + random.normal(0, 0.02, (50, 3))
    truth, extrinsics = similarity(random), at(centers, random)
    found = align_poses(aligned(extrinsics, truth), extrinsics)
    np.testing.assert_allclose(found.rotation, truth.rotation, atol=1e-6)


def test_only_a_line_agrees():
    random = np.random.default_rng(6)
    first = np.random.default_rng(RANSAC_SEED).choice(10, size=5, replace=False)
    off = [view for view in range(10) if view not in first][:3]
    centers = np.outer(np.arange(10), [0.3, -0.7, 1.1])
    centers[off] += random.normal(0, 3, (3, 3))
    reference = centers.copy()
    reference[off] += random.normal(0, 3, (3, 3))
    message = r"the 7 cameras that agree lie on a line .*: add views from beside it, or pass ransac=False\."
    with pytest.raises(OptionError, match=message):
        align_poses(at(reference, random), at(centers, random), ransac=True)


POINTS = np.random.default_rng(7).normal(size=(5, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((POINTS, POINTS[:4]), "5 reference points and 4 points do not pair up: give as many."),
        ((POINTS, POINTS.T), r"points of shape \(3, 5\) and type float64 are no points: give \(N, 3\) numbers."),
        ((POINTS.astype(str), POINTS), "reference_points .* are no points"),
        ((POINTS, POINTS * np.inf), "points hold numbers that are not finite: leave those points out."),
        ((POINTS[:0], POINTS[:0]), "are no points"),
    ],
)
def test_bad_points(arguments, message):
    with pytest.raises(OptionError, match=message):
        umeyama(*arguments)


@pytest.mark.parametrize("weights", [[1, 1], [1, 1, 1, 1, -1], [0] * 5, [1, 1, 1, 1, np.nan]])
def test_bad_weights(weights):
    with pytest.raises(OptionError, match="weights are not 5 finite numbers of at least 0, some above"):
        umeyama(POINTS, POINTS, weights=weights)


def test_bad_cameras():
    extrinsics = cameras(np.random.default_rng(0), 4)
    with pytest.raises(OptionError, match="4 reference views and 3 views do not pair up: give as many"):
        align_poses(extrinsics, extrinsics[:3])
    with pytest.raises(OptionError, match=r"extrinsics of shape \(3, 4\) are no list of views: give \(V, 3, 4\)"):
        align_poses(extrinsics, extrinsics[0])
    with pytest.raises(OptionError, match="reference_extrinsics hold numbers that are not finite"):
        align_poses(extrinsics * np.nan, extrinsics)
    with pytest.raises(OptionError, match="extrinsics hold a matrix that is no rotation"):
        aligned(3 * extrinsics, Similarity(np.eye(3), np.zeros(3), 2.0))
