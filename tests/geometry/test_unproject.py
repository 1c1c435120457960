import numpy as np
import pytest
import scenes
from support import seeded

from mlx_depth.geometry.unproject import unproject

SCENE = scenes.boxes()


def error(intrinsics=SCENE.intrinsics, extrinsics=SCENE.extrinsics, depth=SCENE.depth) -> float:
    points = unproject(depth, intrinsics, extrinsics)
    return float(scenes.distance_to_surfaces(points[SCENE.surface.reshape(-1) >= 0]).max())


def test_points_of_three_views_lie_on_the_same_surfaces():
    assert error() < 1e-5
    assert len({scenes.boxes().surface[view].tobytes() for view in range(3)}) == 3  # and the views are different ones


@pytest.mark.parametrize("fault", ["half a pixel", "camera to world", "fx for fy", "distance for depth"])
def test_a_fault_takes_points_off_the_surfaces(fault):
    k, e, depth = SCENE.intrinsics.copy(), SCENE.extrinsics.copy(), SCENE.depth
    if fault == "half a pixel":
        k[:, :2, 2] += 0.5
    elif fault == "camera to world":
        turned = e[:, :, :3].transpose(0, 2, 1)
        e = np.concatenate([turned, -turned @ e[:, :, 3:]], axis=2)
    elif fault == "fx for fy":
        k[:, 1, 1] = k[:, 0, 0]
    else:
        rows, columns = np.indices(SCENE.size)
        rays = np.stack([columns, rows, np.ones(SCENE.size)], axis=-1) @ np.linalg.inv(k[0]).T
        depth = depth / np.linalg.norm(rays, axis=-1).astype(np.float32)
    assert error(k, e, depth) > 1e-2


def test_one_pixel_by_hand():
    intrinsics = np.array([[[2.0, 0, 1], [0, 4, 3], [0, 0, 1]]])
    extrinsics = np.array([[[0.0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30]]])  # a quarter turn
    depth = np.zeros((1, 6, 5), np.float32)
    depth[0, 5, 4] = 8
    point = unproject(depth, intrinsics, extrinsics, np.array([5 * 5 + 4]))
    # Seen at ((4 - 1) / 2, (5 - 3) / 4, 1) * 8 = (12, 4, 8); less the translation (2, -16, -22); turned back.
    np.testing.assert_array_equal(point, [[-16, -2, -22]])
    assert point.dtype == np.float32


def test_every_point_projects_to_its_pixel():
    points = unproject(SCENE.depth, SCENE.intrinsics, SCENE.extrinsics).reshape(*SCENE.depth.shape, 3)
    rows, columns = np.indices(SCENE.size)
    for k, e, depth, seen in zip(SCENE.intrinsics, SCENE.extrinsics, SCENE.depth, points, strict=True):
        camera = (seen @ e[:, :3].T + e[:, 3]) @ k.T
        np.testing.assert_allclose(camera[..., 2], depth, rtol=1e-5)
        np.testing.assert_allclose(camera[..., 0] / camera[..., 2], columns, atol=1e-3)
        np.testing.assert_allclose(camera[..., 1] / camera[..., 2], rows, atol=1e-3)


def test_some_pixels_are_those_of_all():
    every = unproject(SCENE.depth, SCENE.intrinsics, SCENE.extrinsics)
    pixels = np.sort(np.argsort(seeded("pixels", (len(every),)))[:500])
    np.testing.assert_array_equal(unproject(SCENE.depth, SCENE.intrinsics, SCENE.extrinsics, pixels), every[pixels])
    none = unproject(SCENE.depth, SCENE.intrinsics, SCENE.extrinsics, pixels[:0])
    assert none.shape == (0, 3)


def test_cameras_in_float32_and_skew():
    k = SCENE.intrinsics.copy()
    k[:, 0, 1] = 3.0
    every = unproject(SCENE.depth, k, SCENE.extrinsics)
    narrow = unproject(SCENE.depth, k.astype(np.float32), SCENE.extrinsics.astype(np.float32))
    np.testing.assert_allclose(narrow, every, atol=1e-4)
    row, column, depth = 40, 10, SCENE.depth[0, 40, 10]
    y = (row - k[0, 1, 2]) / k[0, 1, 1]
    x = (column - k[0, 0, 2] - 3.0 * y) / k[0, 0, 0]
    np.testing.assert_allclose(every[row * SCENE.size[1] + column], np.array([x, y, 1]) * depth, rtol=1e-6)
