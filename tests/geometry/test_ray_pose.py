import tracemalloc

import numpy as np
import pytest
from support import relative_error, require

from mlx_depth.errors import OptionError
from mlx_depth.geometry.poses import inverse_pose
from mlx_depth.geometry.ray_pose import MAX_INLIERS, ROUNDS, _cameras, cameras_from_rays

SIZE = (280, 364)
GATE = 1e-4


def turn(axis, angle: float) -> np.ndarray:
    """Rodrigues' formula."""
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def rays_of(poses, focal, grid_size, *, center=(0, 0), noise=0.0, outliers=0.0, seed=0):
    """What a network would predict for cameras → ``(V, h, w, 6)`` float32 rays and ``(V, h, w)`` confidence.

    ``poses`` are camera → world, ``focal`` and ``center`` in halves of the image.
    """
    random = np.random.default_rng(seed)
    h, w = grid_size
    y, x = np.meshgrid((np.arange(h) + 0.5) / h * 2 - 1, (np.arange(w) + 0.5) / w * 2 - 1, indexing="ij")
    rays = np.empty((len(poses), h, w, 6))
    for view, (pose, (fx, fy)) in enumerate(zip(poses, focal, strict=True)):
        in_camera = np.stack([(x - center[0]) / fx, (y - center[1]) / fy, np.ones_like(x)], axis=-1)
        length = random.uniform(0.5, 2, (h, w, 1))
        rays[view, ..., :3] = in_camera * length @ pose[:, :3].T
        rays[view, ..., 3:] = pose[:, 3]
    rays += random.normal(0, noise, rays.shape) if noise else 0
    wrong = random.random(rays.shape[:3]) < outliers
    rays[wrong] = random.normal(0, 1, (wrong.sum(), 6))
    confidence = 1 + np.exp(random.normal(0, 1, rays.shape[:3]))
    confidence[wrong] = random.uniform(1, 1.2, wrong.sum())
    return rays.astype(np.float32), confidence.astype(np.float32)


POSES = np.stack([np.column_stack([turn((0.2, 1, -0.1), 0.25 * i), (0.4 * i, -0.1 * i, 0.3)]) for i in range(4)])
FOCAL = np.array([(1.2, 1.6), (0.9, 1.1), (2.5, 3.0), (1.4, 1.4)])
INTRINSICS = np.stack([[[f[0] * 182, 0, 182], [0, f[1] * 140, 140], [0, 0, 1]] for f in FOCAL])


class Recorded:
    """Upstream's draws, for ours to make the same."""

    def __init__(self, monkeypatch):
        self.torch = require("reference", "torch")
        self.draws = []
        draw = self.torch.randperm

        def record(count, **options):
            drawn = draw(count, **options)
            self.draws.append(drawn.numpy())
            return drawn

        monkeypatch.setattr(self.torch, "randperm", record)

    def upstream(self, rays, confidence, seed=0):
        network = require("reference", "depth_anything_3.model.da3").DepthAnything3Net
        output = require("reference", "addict").Dict(
            ray=self.torch.from_numpy(rays.copy())[None], ray_conf=self.torch.from_numpy(confidence.copy())[None]
        )
        self.torch.manual_seed(seed)
        cameras = network._process_ray_pose_estimation(None, output, *SIZE)
        return cameras.extrinsics[0].numpy(), cameras.intrinsics[0].numpy()

    def permutation(self, count):
        drawn = self.draws.pop(0)
        assert len(drawn) == count
        return drawn


@pytest.fixture
def recorded(monkeypatch):
    return Recorded(monkeypatch)


CASES = {
    "clean": ((36, 24), {}),
    "noise": ((17, 29), {"noise": 0.02}),
    "outliers": ((36, 24), {"noise": 0.01, "outliers": 0.2}),
    "principal point off the middle": ((36, 24), {"center": (0.1, -0.06), "noise": 0.01}),
    "fewest rays": ((2, 4), {}),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("grid_size", "options"), CASES.values(), ids=CASES)
def test_as_upstream(recorded, grid_size, options, seed):
    rays, confidence = rays_of(POSES, FOCAL, grid_size, **options, seed=seed)
    extrinsics, intrinsics = recorded.upstream(rays, confidence, seed)
    assert len(recorded.draws) == ROUNDS
    ours = _cameras(rays, confidence, SIZE, recorded.permutation)
    assert relative_error(ours[0], extrinsics) < GATE
    assert relative_error(ours[1], intrinsics) < GATE


def test_more_inliers_than_the_last_fit_takes_as_upstream(recorded, monkeypatch):
    """Upstream's full U would take a gigabyte; it uses Vh alone, which is the same without."""
    svd = recorded.torch.linalg.svd
    monkeypatch.setattr(recorded.torch.linalg, "svd", lambda matrix: svd(matrix, full_matrices=False))
    rays, confidence = rays_of(POSES[1:3], FOCAL[1:3], (100, 94), noise=0.01, outliers=0.1)
    extrinsics, intrinsics = recorded.upstream(rays, confidence)
    kept = [len(drawn) for drawn in recorded.draws[ROUNDS:]]
    assert len(kept) == 2
    assert min(kept) > MAX_INLIERS
    ours = _cameras(rays, confidence, SIZE, recorded.permutation)
    assert not recorded.draws
    assert relative_error(ours[0], extrinsics) < GATE
    assert relative_error(ours[1], intrinsics) < GATE


def test_other_draws_fail_the_gate(recorded):
    rays, confidence = rays_of(POSES, FOCAL, (36, 24), noise=0.05, outliers=0.2)
    extrinsics, _ = recorded.upstream(rays, confidence)
    ours, _ = _cameras(rays, confidence, SIZE, np.random.default_rng(0).permutation)
    assert relative_error(ours, extrinsics) > GATE
    ours, _ = _cameras(rays, confidence, SIZE, recorded.permutation)
    assert relative_error(ours, extrinsics) < GATE


def test_flat_rays_as_upstream(recorded):
    """They do not count for the center either."""
    rays, confidence = rays_of(POSES, FOCAL, (36, 24))
    rays[:, ::3, :, 2:] = 1e-5, 50, 50, 50
    rays[:, ::3, :, :2] = 1e-6
    extrinsics, intrinsics = recorded.upstream(rays, confidence)
    ours = _cameras(rays, confidence, SIZE, recorded.permutation)
    assert relative_error(ours[0], extrinsics) < GATE
    assert relative_error(ours[1], intrinsics) < GATE
    np.testing.assert_allclose(ours[0], inverse_pose(POSES), atol=1e-5)


@pytest.mark.parametrize("angle", [0, 0.7, -1.3, 2.0, 3.1])
def test_cameras_come_back(angle):
    """Also those that look away from the first: their homography has a negative determinant."""
    poses = np.concatenate([turn((0.1, 1, 0.2), angle) @ POSES[..., :3], POSES[..., 3:]], axis=-1)
    rays, confidence = rays_of(poses, FOCAL, (36, 24))
    extrinsics, intrinsics = cameras_from_rays(rays, confidence, SIZE)
    np.testing.assert_allclose(extrinsics, inverse_pose(poses), atol=2e-5)
    np.testing.assert_allclose(intrinsics, INTRINSICS, rtol=2e-5, atol=2e-3)
    assert extrinsics.dtype == intrinsics.dtype == np.float64


def test_outliers_and_noise():
    rays, confidence = rays_of(POSES, FOCAL, (72, 48), noise=0.005, outliers=0.3)
    confidence[confidence < 1.2] = 0  # as the origins are a plain mean
    extrinsics, intrinsics = cameras_from_rays(rays, confidence, SIZE)
    np.testing.assert_allclose(extrinsics, inverse_pose(POSES), atol=5e-3)
    np.testing.assert_allclose(intrinsics, INTRINSICS, rtol=5e-3, atol=2)


def test_draws_repeat():
    rays, confidence = rays_of(POSES, FOCAL, (36, 24), noise=0.05, outliers=0.2)
    first, again, other = (cameras_from_rays(rays, confidence, SIZE, seed=seed)[0] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_types_and_inputs_unchanged():
    rays, confidence = rays_of(POSES, FOCAL, (12, 9))
    kept = rays.copy(), confidence.copy()
    in_64 = cameras_from_rays(rays.astype(np.float64), confidence.astype(np.float64), SIZE)[0]
    assert np.array_equal(in_64, cameras_from_rays(rays, confidence, SIZE)[0])
    assert np.array_equal(rays, kept[0])
    assert np.array_equal(confidence, kept[1])
    half = cameras_from_rays(rays.astype(np.float16), confidence.astype(np.float16), SIZE)[0]
    np.testing.assert_allclose(half, in_64, atol=1e-2)


def test_memory_of_one_view():
    rays, confidence = rays_of(POSES[:3], FOCAL[:3], (288, 192))
    tracemalloc.start()
    try:
        cameras_from_rays(rays, confidence, SIZE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 * 2**20  # one array of all rounds and rays would be 42 MiB


def broken(view=1, **changes):
    rays, confidence = rays_of(POSES, FOCAL, (12, 9))
    for name, value in changes.items():
        if name == "rays":
            rays[view] = value
        else:
            confidence[view] = value
    return rays, confidence


single_row = np.zeros((12, 9), np.float32)
single_row[5] = 1
wild = np.random.default_rng(0).normal(0, 300, (12, 9, 6))
wild[..., 2] = 1
parallel = np.tile(np.float32([0.3, 0.1, 1, 0, 0, 0]), (12, 9, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (broken(rays=np.nan), r"the rays of view 1 hold numbers that are not finite: run the network in float32\."),
        (broken(confidence=np.inf), "the rays of view 1 hold numbers that are not finite"),
        (broken(confidence=-1), r"the confidence of view 1 is negative in places: give 0 and up\."),
        (broken(confidence=0), "view 1 has no ray with a confidence that meets the plane z = 1: use the camera head's"),
        (broken(rays=0), "view 1 has no ray with a confidence that meets the plane"),
        (broken(rays=parallel), "the rays of view 1 fit many cameras, as parallel ones do"),
        (broken(rays=parallel + np.random.default_rng(0).normal(0, 1e-8, parallel.shape)), "view 1 fit many cameras"),
        (broken(confidence=single_row), "view 1 fit many cameras.*, or those of a single row: use the camera head's"),
        (broken(rays=wild), "of the rays of view 1 only . agree on a camera: use the camera head's poses."),
        ((broken()[0][..., :5], broken()[1]), r"rays of shape \(4, 12, 9, 5\) and type float32 do not fit: give \(V,"),
        ((broken()[0].astype(int), broken()[1]), "type int64 do not fit"),
        ((broken()[0][:0], broken()[1][:0]), r"rays of shape \(0, 12, 9, 6\)"),
        ((broken()[0], broken()[1][:3]), r"a confidence of shape \(3, 12, 9\) .* does not fit .*: give \(4, 12, 9\)"),
        (
            (broken()[0][:, :1], broken()[1][:, :1]),
            "a grid of 1×9 rays is too small .*: give 8 or more, not in one line",
        ),
        ((broken()[0][:, :2, :3], broken()[1][:, :2, :3]), "a grid of 2×3 rays is too small"),
    ],
)
def test_bad_rays(arguments, message):
    with pytest.raises(OptionError, match=message):
        cameras_from_rays(*arguments, SIZE)


@pytest.mark.parametrize("size", [(0, 5), (5,), (1, 2, 3)])
def test_bad_size(size):
    with pytest.raises(OptionError, match=r"is no size: give \(height, width\) in pixels\."):
        cameras_from_rays(*broken(), size)
