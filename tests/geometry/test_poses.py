import ast
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import look_at
from support import require

from mlx_depth.errors import OptionError
from mlx_depth.geometry.poses import as_3x4, as_4x4, camera_centers, inverse_pose, normalize_extrinsics

LOOKS = np.stack([look_at((0.3 * i, 0.1 * i * i - 0.4, -0.2 * i), (0.5, 0.2 * i, 4), 0.3 * i) for i in range(7)])


def upstream_normalize(extrinsics: np.ndarray) -> np.ndarray:
    """``_normalize_extrinsics`` of the installed api.py, taken out of its file: that imports more than a test needs."""
    torch = require("reference", "torch")
    geometry = require("reference", "depth_anything_3.utils.geometry")
    spec = importlib.util.find_spec("depth_anything_3.api")
    tree = ast.parse(Path(spec.origin).read_text())
    (method,) = [node for node in ast.walk(tree) if getattr(node, "name", "") == "_normalize_extrinsics"]
    names: dict[str, Any] = {"torch": torch, "affine_inverse": geometry.affine_inverse}
    exec(compile(ast.Module([method], []), spec.origin, "exec"), names)
    return names["_normalize_extrinsics"](None, torch.from_numpy(extrinsics)[None])[0, :, :3].numpy()


@pytest.mark.parametrize("shape", [(3, 4), (7, 3, 4), (1, 7, 3, 4)])
def test_inverse_pose(shape):
    poses = np.broadcast_to(LOOKS[0] if len(shape) == 2 else LOOKS, shape)
    inverse = inverse_pose(poses)
    np.testing.assert_allclose(
        as_4x4(inverse) @ as_4x4(poses), np.broadcast_to(np.eye(4), (*shape[:-2], 4, 4)), atol=1e-15
    )
    np.testing.assert_allclose(camera_centers(poses), inverse[..., 3], atol=1e-15)
    assert inverse.shape == shape
    assert inverse_pose(as_4x4(poses)).shape == (*shape[:-2], 4, 4)
    geometry = require("reference", "depth_anything_3.utils.geometry")
    np.testing.assert_allclose(inverse_pose(as_4x4(poses)), geometry.affine_inverse_np(as_4x4(poses)), atol=1e-15)


def test_3x4_and_4x4():
    assert np.array_equal(as_3x4(as_4x4(LOOKS)), LOOKS)
    assert np.array_equal(as_4x4(LOOKS)[:, 3], np.tile([0, 0, 0, 1], (7, 1)))
    assert as_3x4(LOOKS.astype(np.float16)).dtype == np.float64  # half precision is rigid enough
    assert as_4x4(np.empty((0, 3, 4))).shape == (0, 4, 4)


@pytest.mark.parametrize("views", range(1, 8))
@pytest.mark.parametrize("unit", [1, 1000.0])
def test_normalize_extrinsics_as_upstream(views, unit):
    extrinsics = LOOKS[:views] * [1, 1, 1, unit]
    np.testing.assert_allclose(normalize_extrinsics(extrinsics), upstream_normalize(as_4x4(extrinsics)), atol=1e-9)
    assert np.array_equal(normalize_extrinsics(extrinsics), normalize_extrinsics(as_4x4(extrinsics)))


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 99))
def test_normalized_cameras(views, seed):
    """The first is the world; the lower of the two middle distances, the first's included, is 1 if it is not small."""
    extrinsics = np.tile(LOOKS[2], (views, 1, 1))
    extrinsics[:, :, 3] += np.random.default_rng(seed).normal(0, 1, (views, 3))
    normalized = normalize_extrinsics(extrinsics)
    np.testing.assert_allclose(normalized[0], np.eye(3, 4), atol=1e-13)
    before = np.sort(np.linalg.norm(camera_centers(extrinsics) - camera_centers(extrinsics[0]), axis=1))
    after = np.sort(np.linalg.norm(camera_centers(normalized), axis=1))
    np.testing.assert_allclose(after, before / max(0.1, before[(views - 1) // 2]), atol=1e-12)


def test_views_from_one_place_stay_together():
    extrinsics = np.tile(np.eye(3, 4), (3, 1, 1))
    extrinsics[:, 0, 3] = 0, 0.01, 0.02
    np.testing.assert_allclose(normalize_extrinsics(extrinsics)[:, 0, 3], [0, 0.1, 0.2])


@pytest.mark.parametrize(
    ("poses", "message"),
    [
        (np.eye(3), r"poses of shape \(3, 3\) and type float64 are no poses: give numbers, .* or \(…, 4, 4\)\."),
        ([["a"] * 4] * 3, "are no poses"),
        (LOOKS * np.nan, "poses hold numbers that are not finite: give finite ones."),
        (np.full((4, 4), 0.5), "poses have a last row that is not 0 0 0 1: give rigid transforms."),
        (2 * LOOKS, r"no rotation \(off by 3, or a mirror image\): take scale and shear out"),
        (LOOKS * [-1, 1, 1, 1], "or a mirror image"),
    ],
)
def test_bad_poses(poses, message):
    for function in (as_3x4, as_4x4, inverse_pose):
        with pytest.raises(OptionError, match=message):
            function(poses)


@pytest.mark.parametrize("extrinsics", [LOOKS[0], LOOKS[:0], LOOKS[None]])
def test_no_list_of_views(extrinsics):
    with pytest.raises(OptionError, match=r"are no list of views: give \(V, 3, 4\)"):
        normalize_extrinsics(extrinsics)
