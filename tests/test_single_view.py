import dataclasses
import math
import re

import numpy as np
import pytest
import scenes
from support import require

from mlx_depth.camera import Camera
from mlx_depth.errors import OptionError
from mlx_depth.geometry.point_filter import PointFilter
from mlx_depth.kinds import DepthKind
from mlx_depth.result import DepthResult
from mlx_depth.single_view import focal_of_fov, intrinsics_of, to_scene

SIZE = scenes.SIZE
TRUTH = scenes.render(
    np.array([[[50.0, 0, (SIZE[1] - 1) / 2], [0, 50.0, (SIZE[0] - 1) / 2], [0, 0, 1]]]), np.eye(3, 4)[None], SIZE
)
ALL = PointFilter(edge_threshold=None, confidence_percentile=None, max_sky=None)


def result(depth: np.ndarray | None = None, kind: DepthKind = DepthKind.METRIC, **changes) -> DepthResult:
    fields = {
        "model": "any",
        "image_size": SIZE,
        "input_size": (14, 28),
        "image": TRUTH.images[0],
        "source": "photos/box.jpg",
        "license": "MIT",
    }
    return DepthResult(TRUTH.depth[0] if depth is None else depth, kind, **(fields | changes))


def test_metric_points_lie_on_the_surfaces() -> None:
    scene = to_scene(result(sky=TRUTH.sky[0], confidence=TRUTH.confidence[0]), focal_length_px=50.0)
    points, colors = scene.points(edge_threshold=None, confidence_percentile=None)
    assert len(points) == (TRUTH.sky == 0).sum()
    assert scenes.distance_to_surfaces(points).max() < 1e-5
    np.testing.assert_array_equal(colors, TRUTH.images[0][TRUTH.sky[0] == 0])
    assert (scene.unit, scene.names, scene.model, scene.license) == ("m", ("photos/box.jpg",), "any", "MIT")
    np.testing.assert_array_equal(scene.extrinsics, np.eye(3, 4)[None])


def test_normals_go_along(tmp_path) -> None:
    trimesh = require("scene", "trimesh")
    normals = np.broadcast_to(np.array([0, 0.6, -0.8], np.float32), (*SIZE, 3)).copy()
    scene = to_scene(result(normals=normals), focal_length_px=50.0)
    np.testing.assert_array_equal(scene.normals[0], normals)
    mesh = trimesh.load(scene.save(tmp_path / "x.glb", format="mesh"), process=False).geometry["view"]
    np.testing.assert_allclose(
        np.asarray(mesh.vertex_normals)[::97], [[0, -0.6, 0.8]] * len(mesh.vertices[::97]), atol=1e-6
    )
    with np.load(scene.save(tmp_path / "x.npz")) as stored:
        np.testing.assert_array_equal(stored["normals"], scene.normals)
    with pytest.raises(OptionError, match=re.escape("normals has shape (1, 2, 3)")):
        dataclasses.replace(scene, normals=np.zeros((1, 2, 3), np.float32))


def test_relative_depth_is_used_as_it_is() -> None:
    scene = to_scene(result(kind=DepthKind.RELATIVE), fov=60)
    assert (scene.kind, scene.unit) == (DepthKind.RELATIVE, "")
    np.testing.assert_array_equal(scene.depth[0], TRUTH.depth[0])


def inverse() -> DepthResult:
    """As a network gives it: with a scale and a shift that nobody knows."""
    return result((3.7 / TRUTH.depth[0] + 0.9).astype(np.float32), DepthKind.RELATIVE_INVERSE)


def test_inverse_depth_goes_from_near_to_far() -> None:
    scene = to_scene(inverse(), fov=60)
    assert scene.kind is DepthKind.RELATIVE
    assert (scene.depth.min(), scene.depth.max()) == pytest.approx((1, 10), rel=1e-6)
    assert (np.diff(scene.depth[0].ravel()[np.argsort(TRUTH.depth[0].ravel())]) >= 0).all()
    near, far = float(TRUTH.depth.min()), float(TRUTH.depth.max())
    exact = to_scene(inverse(), near=near, far=far, focal_length_px=50.0)
    np.testing.assert_allclose(exact.depth[0], TRUTH.depth[0], rtol=1e-4)  # the right ends give the right shape
    assert np.abs(scene.depth[0] / TRUTH.depth[0] / (scene.depth[0] / TRUTH.depth[0]).mean() - 1).max() > 0.1


def test_known_points_make_metres_of_inverse_depth() -> None:
    spots = [(10, 40), (32, 24), (60, 45)]
    known = [(x, y, float(TRUTH.depth[0, y, x])) for x, y in spots]
    scene = to_scene(inverse().fit_metric(known), focal_length_px=50.0)
    assert scene.unit == "m"
    np.testing.assert_allclose(scene.depth[0], TRUTH.depth[0], rtol=1e-4)


def test_what_has_no_depth_stays_so() -> None:
    depth = inverse().depth.copy()
    depth[:5] = np.nan
    depth[5] = np.inf
    scene = to_scene(dataclasses.replace(inverse(), depth=depth))
    assert np.isnan(scene.depth[0, :6]).all()
    assert np.isfinite(scene.depth[0, 6:]).all()


# Cameras


def test_which_camera_counts() -> None:
    matrix = np.array([[70.0, 0, 20], [0, 80, 25], [0, 0, 1]])
    own = Camera(np.array([[90.0, 0, 30], [0, 95, 22], [0, 0, 1]]))
    everything = result(camera=own, focal_length_px=44.0)
    for options, focal, origin in (
        ({"intrinsics": matrix}, 70, "given"),
        ({"focal_length_px": 33.0}, 33, "given"),
        ({"fov": 90.0}, SIZE[1] / 2, "given"),
        ({}, 90, "model"),
    ):
        found, where = intrinsics_of(everything, **options)
        assert (found[0, 0], where) == (pytest.approx(focal), origin)
    assert intrinsics_of(result(focal_length_px=44.0))[1] == "exif"
    assumed, where = intrinsics_of(result())
    assert where == "assumed"
    # The outer edges of the first and the last column are 60 degrees apart.
    left, right = ((edge - assumed[0, 2]) / assumed[0, 0] for edge in (-0.5, SIZE[1] - 0.5))
    assert math.degrees(math.atan(right) - math.atan(left)) == pytest.approx(60)
    assert assumed[1, 2] == (SIZE[0] - 1) / 2
    assert assumed[0, 0] == assumed[1, 1]


def test_a_camera_with_a_place_keeps_its_world() -> None:
    pose = scenes.look_at((1.0, -1.0, 0.0), (0.0, 0.0, 4.0))
    scene = to_scene(result(camera=Camera(TRUTH.intrinsics[0], pose)))
    inside = scene.choose(ALL).positions @ pose[:, :3].T + pose[:, 3]
    np.testing.assert_allclose(inside, to_scene(result(), focal_length_px=50.0).choose(ALL).positions, atol=1e-4)


def test_inverse_depth_leaves_the_world_of_a_camera() -> None:
    """Its translation has no unit that would fit near and far."""
    pose = scenes.look_at((1.0, -1.0, 0.0), (0.0, 0.0, 4.0))
    moved = dataclasses.replace(inverse(), camera=Camera(TRUTH.intrinsics[0], pose))
    np.testing.assert_array_equal(to_scene(moved).extrinsics, np.eye(3, 4)[None])


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"image": None}, {}, "a scene needs the photo, which this result does not hold: predict it anew."),
        ({}, {"fov": 60, "focal_length_px": 3.0}, "focal_length_px and fov are given: leave one, which tells the"),
        ({}, {"fov": 180}, "fov 180 is no field of view: give degrees between 0 and 180."),
        ({}, {"focal_length_px": -1.0}, "focal_length_px -1.0 is not a finite number above 0: give pixels of the"),
        ({}, {"intrinsics": np.eye(2)}, "intrinsics has shape (1, 2, 2), the scene asks for (1, 3, 3)"),
        ({}, {"near": 1.0}, "near and far are for relative inverse depth, and this is metric: leave them."),
        ({"kind": DepthKind.RELATIVE_INVERSE}, {"near": 5, "far": 2}, "near 5 and far 2 are no two depths: give"),
        ({"kind": DepthKind.RELATIVE_INVERSE}, {"near": 0.0}, "near 0.0 and far 10.0 are no two depths"),
        (
            {"kind": DepthKind.RELATIVE_INVERSE, "depth": np.ones(SIZE, np.float32)},
            {},
            "the depth map is the same everywhere, and makes no scene: give another photo.",
        ),
    ],
)
def test_what_makes_no_scene(changes, options, message) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        to_scene(result(**changes), **options)


def test_focal_of_fov() -> None:
    assert focal_of_fov(90, (10, 640)) == pytest.approx(320)
