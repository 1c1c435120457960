import base64
import dataclasses
import json
import re

import numpy as np
import pytest
import scenes
from scene_results import boxes, gaussians
from support import require

import mlx_depth
from mlx_depth.errors import OptionError, SaveError
from mlx_depth.gaussians import Gaussians
from mlx_depth.geometry.point_filter import PointFilter
from mlx_depth.kinds import DepthKind
from mlx_depth.scene import SCENE_FORMATS

SCENE = scenes.boxes()
K, E = SCENE.intrinsics, SCENE.extrinsics


def changed(array: np.ndarray, index, value) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


# Fields


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kind": DepthKind.RELATIVE_INVERSE},
            "inverse depth has no points, its scale and shift are unknown: "
            "turn each view into metres first, with metric(scale, shift) or fit_metric(known_points).",
        ),
        ({"depth": SCENE.depth.astype(float)}, "depth is float64: give a numpy array of float32."),
        ({"depth": SCENE.depth.tolist()}, "depth is list: give a numpy array of float32."),
        ({"depth": SCENE.depth[0]}, "depth has shape (48, 64): give (V, H, W), even for one view."),
        ({"depth": SCENE.depth[:0]}, "depth has shape (0, 48, 64), the scene is empty: give at least one view"),
        ({"depth": SCENE.depth[:, :0]}, "depth has shape (3, 0, 64), the scene is empty"),
        ({"confidence": SCENE.confidence[:2]}, "confidence has shape (2, 48, 64), the scene asks for (3, 48, 64)"),
        ({"sky": SCENE.sky > 0.5}, "sky is bool: give a numpy array of float32."),
        ({"sky": SCENE.sky[:, ::2, ::2]}, "sky has shape (3, 24, 32), the scene asks for (3, 48, 64)"),
        ({"images": SCENE.images[:1]}, "images is given for one view, depth for 3 views: give one for each view."),
        (
            {"images": [*SCENE.images[:2], SCENE.images[2][::2]]},
            "the image of view 2 has shape (24, 64, 3), the scene asks for (48, 64, 3): make them equal.",
        ),
        ({"images": [image / 255 for image in SCENE.images]}, "the image of view 0 is float64: give a numpy"),
        ({"intrinsics": K[:1]}, "intrinsics is given for one view, depth for 3 views: give one for each view."),
        ({"intrinsics": K[0]}, "intrinsics has shape (3, 3), the scene asks for (3, 3, 3): make them equal."),
        ({"intrinsics": K.astype(int)}, "intrinsics is int64: give a float numpy array of shape (3, 3, 3)."),
        (
            {"intrinsics": changed(K, (1, 0, 2), np.nan)},
            "intrinsics of view 1 holds numbers that are not finite: leave the view out.",
        ),
        (
            {"intrinsics": changed(K, (2, 0, 0), 0)},
            "intrinsics of view 2 are singular or no camera's: give "
            "[[fx, skew, cx], [0, fy, cy], [0, 0, 1]] with focal lengths above 0, in pixels.",
        ),
        ({"intrinsics": changed(K, (0, 1, 1), -50)}, "intrinsics of view 0 are singular or no camera's"),
        ({"intrinsics": changed(K, (0, 2, 2), 0)}, "intrinsics of view 0 are singular or no camera's"),
        ({"intrinsics": K.transpose(0, 2, 1)}, "intrinsics of view 0 are singular or no camera's"),
        ({"extrinsics": E[:1]}, "extrinsics is given for one view, depth for 3 views: give one for each view."),
        (
            {"extrinsics": np.concatenate([E, E], axis=1)[:, :4]},
            "extrinsics has shape (3, 4, 4), the scene asks for (3, 3, 4): make them equal.",
        ),
        (
            {"extrinsics": changed(E, (2, 0, 3), np.nan)},
            "extrinsics of view 2 holds numbers that are not finite: leave the view out.",
        ),
        (
            {"extrinsics": changed(E, 1, E[1] * 2)},
            "extrinsics of view 1 are no rotation and translation (R Rᵀ is 3 off "
            "the identity): give world → camera, without a scale.",
        ),
        ({"extrinsics": changed(E, (1, 0), -E[1, 0])}, "extrinsics of view 1 mirror the world: give axes x right,"),
        ({"rays": np.zeros((3, 4, 5, 3), np.float32)}, "rays has shape (3, 4, 5, 3), the scene asks for (3, 4, 5, 6)"),
        ({"rays": np.zeros((2, 4, 5, 6), np.float32)}, "rays has shape (2, 4, 5, 6), the scene asks for (3, 4, 5, 6)"),
        (
            {"rays": np.zeros((3, 4, 5, 6), np.float32), "ray_confidence": np.zeros((3, 8, 5), np.float32)},
            "ray_confidence has shape (3, 8, 5), the scene asks for (3, 4, 5)",
        ),
        ({"ray_confidence": np.zeros((3, 8), np.float32)}, "ray_confidence has shape (3, 8): give (V, h, w)."),
        ({"rays": np.zeros((3, 8, 6), np.float32)}, "rays has shape (3, 8, 6): give (V, h, w, 6)."),
        ({"names": ("a.jpg",)}, "names is given for one view, depth for 3 views: give one for each view."),
        ({"scale_factor": 0.0}, "scale_factor 0.0 is not a finite number above 0: give one."),
        ({"scale_factor": np.nan}, "scale_factor nan is not a finite number above 0: give one."),
    ],
)
def test_fields_are_checked(changes, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        boxes(**changes)


def test_rotations_in_half_precision_would_be_off():
    """The limit lies between what float32 and what float16 makes of a rotation."""
    boxes(extrinsics=E.astype(np.float32))
    with pytest.raises(OptionError, match="are no rotation"):
        boxes(extrinsics=E.astype(np.float16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"means": np.zeros((3, 3), np.float32)}, "gaussians.means has shape (3, 3), the scene asks for (5, 3)"),
        ({"rotations": np.zeros((5, 3), np.float32)}, "gaussians.rotations has shape (5, 3), the scene asks for (5"),
        ({"scales": np.zeros((5, 3))}, "gaussians.scales is float64: give a numpy array of float32."),
        (
            {"harmonics": np.zeros((5, 3, 8), np.float32)},
            "gaussians.harmonics has shape (5, 3, 8): give (N, 3, D) with D = (degree + 1)².",
        ),
        ({"harmonics": np.zeros((5, 27), np.float32)}, "gaussians.harmonics has shape (5, 27): give (N, 3, D)"),
        ({"harmonics": np.zeros((5, 4, 9), np.float32)}, "gaussians.harmonics has shape (5, 4, 9), the scene asks for"),
        ({"means": np.full((5, 3), np.nan, np.float32)}, "gaussians.means holds numbers that are not finite"),
        ({"opacities": np.full(5, -0.5, np.float32)}, "gaussians.opacities is not within 0..1"),
        ({"opacities": np.full(5, 1.5, np.float32)}, "give it without a logit"),
    ],
)
def test_gaussians_are_checked(changes, message):
    fields = {field.name: getattr(gaussians(5), field.name) for field in dataclasses.fields(Gaussians)}
    with pytest.raises(OptionError, match=re.escape(message)):
        Gaussians(**(fields | changes))


def test_representations():
    assert repr(boxes()) == (
        "SceneResult(3 views of 48×64, metric depth (metres, larger = farther), 2.515–40 m, "
        "model='depth-anything-3-large')"
    )
    one = boxes(scenes.boxes(1), kind=DepthKind.RELATIVE, model=None)
    assert repr(one) == (
        "SceneResult(1 view of 48×64, relative depth (unitless, larger = farther), 2.6–40, model=None)"
    )
    assert "no depth" in repr(boxes(depth=np.full_like(SCENE.depth, np.nan)))
    assert repr(gaussians(5)) == "Gaussians(5, harmonics of degree 2)"
    assert (len(boxes()), len(one), len(gaussians(5))) == (3, 1, 5)
    assert (boxes().unit, one.unit, one.size) == ("m", "", (48, 64))


def test_facts():
    scene = boxes(names=("a.jpg", "b.jpg", "c.jpg"), revision="abc", license="Apache-2.0", scale_factor=np.float32(2.5))
    assert json.loads(json.dumps(scene.sidecar(), allow_nan=False)) == {
        "kind": "metric",
        "unit": "m",
        "larger_is": "farther",
        "axes": "x right, y down, z forward",
        "views": 3,
        "size": [48, 64],
        "names": ["a.jpg", "b.jpg", "c.jpg"],
        "scale_factor": 2.5,
        "model": "depth-anything-3-large",
        "revision": "abc",
        "dtype": "float32",
        "license": "Apache-2.0",
        "mlx_depth": mlx_depth.__version__,
    }


def test_images_as_one_array():
    points, colors = boxes(images=np.stack(SCENE.images)).points()
    np.testing.assert_array_equal(colors, boxes().points()[1])
    assert len(points) > 500


# Points


def test_points_of_three_views_lie_on_the_boxes():
    points, colors = boxes().points(confidence_percentile=None, edge_threshold=None)
    assert points.dtype == np.float32
    assert colors.dtype == np.uint8
    assert len(points) == len(colors) == (SCENE.sky == 0).sum()
    assert scenes.distance_to_surfaces(points).max() < 1e-4
    np.testing.assert_array_equal(colors, np.stack(SCENE.images)[SCENE.sky == 0])


def test_every_option_reaches_the_filter():
    scene = boxes()
    options = {
        "min_confidence": 3.5,
        "confidence_percentile": 70.0,
        "edge_threshold": 0.01,
        "voxel_size": 0.3,
        "max_points": 50,
        "max_sky": None,
    }
    assert set(options) == {field.name for field in dataclasses.fields(PointFilter)}
    default = len(scene.points()[0])
    for name, value in options.items():
        points, _ = scene.points(**{name: value})
        np.testing.assert_array_equal(points, scene.choose(PointFilter(**{name: value})).positions)
        assert len(points) != default
    np.testing.assert_array_equal(scene.points()[0], scene.choose().positions)


def test_the_defaults_leave_the_boxes():
    points, colors = boxes().points()
    for low, high, color in scenes.BOXES:
        own = points[(colors == color).all(axis=1)]
        assert len(own) > 100
        assert ((own >= np.array(low) - 1e-4) & (own <= np.array(high) + 1e-4)).all()
    assert not (colors == scenes.SKY_COLOR).all(axis=1).any()


# Files


ALL_SKY = {"sky": np.ones_like(SCENE.sky)}


def test_a_scene_of_sky_alone_has_no_points(tmp_path):
    points, colors = boxes(**ALL_SKY).points()
    assert (points.shape, colors.shape) == ((0, 3), (0, 3))
    assert (points.dtype, colors.dtype) == (np.float32, np.uint8)


@pytest.mark.parametrize("write", ["scene.ply", "scene.glb", "sparse"])
@pytest.mark.parametrize(
    ("changes", "rules", "message"),
    [
        (ALL_SKY, None, "every pixel is sky. Save an npz, or keep it with PointFilter(max_sky=None)."),
        (
            {"depth": np.full_like(SCENE.depth, np.inf)},
            None,
            "no pixel has a finite depth above 0. Save an npz instead.",
        ),
        ({}, PointFilter(min_confidence=99.0), "the filter leaves no points: loosen it, as with PointFilter("),
        (ALL_SKY, PointFilter(max_sky=None, min_confidence=99.0), "the filter leaves no points"),
    ],
)
def test_a_file_without_points_is_an_error(write, changes, rules, message, tmp_path):
    scene = boxes(**changes)
    save = scene.save_colmap if write == "sparse" else scene.save
    with pytest.raises(SaveError, match=re.escape(message)):
        save(tmp_path / write, filter=rules)
    assert list(tmp_path.iterdir()) == []
    scene.save(tmp_path / "scene.npz")  # holds every pixel


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("scene.obj", {}, "no format has the suffix '.obj' of 'scene.obj': choose one of .glb .html .npz .ply."),
        ("scene", {}, "no format has the suffix '' of 'scene'"),
        ("scene.ply", {"format": "glb"}, "glb does not go into 'scene.ply': give a name that ends with .glb."),
        ("scene.ply", {"format": "gaussian"}, "no format 'gaussian': did you mean 'gaussians'? Choose one of ply, gau"),
        ("scene.npz", {"filter": PointFilter()}, "npz holds no points that a filter could choose: leave filter out."),
        ("scene.ply", {"format": "gaussians", "filter": PointFilter()}, "gaussians holds no points that a filter"),
        ("scene.ply", {"format": "gaussians"}, "this scene has no Gaussians, which its model does not compute"),
        ("scene.ply", {"filter": PointFilter(min_confidence=1.0)}, "this scene has no confidence"),
    ],
)
def test_what_cannot_be_asked_of_save(name, options, message, tmp_path):
    with pytest.raises(OptionError, match=re.escape(message)):
        boxes(confidence=None).save(tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_save_returns_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    scene = boxes(gaussians=gaussians(SCENE.depth.size))
    for name in ("ply", "npz", "gaussians"):
        path = scene.save(f"~/new/{name}{SCENE_FORMATS[name][0]}", format=name)
        assert path == tmp_path / "new" / path.name
        assert path.stat().st_size > 10_000
    assert scene.save_colmap("~/sparse") == tmp_path / "sparse"
    assert scene.save("~/A.PLY").name == "A.PLY"


def embedded(page: str, name: str) -> np.ndarray:
    """One of the arrays that a page holds, as bytes."""
    data = re.search(f'<script type="text/plain" id="{name}">(.*?)</script>', page)[1]
    return np.frombuffer(base64.b64decode(data), np.uint8)


def test_a_page_holds_the_points_with_their_confidence_and_depth(tmp_path):
    scene = boxes(names=("a", "b", "c"))
    rules = PointFilter(max_points=700)
    chosen = scene.choose(rules)
    page = scene.save(tmp_path / "scene.html", filter=rules).read_text()
    positions = embedded(page, "positions").view("<f4").reshape(-1, 3) * [1, -1, -1]
    order = np.argsort(-scene.confidence.reshape(-1)[chosen.pixels], kind="stable")  # the surest first
    np.testing.assert_array_equal(positions, chosen.positions[order])
    depth = scene.depth.reshape(-1)[chosen.pixels][order]
    colors = embedded(page, "depth-colors").reshape(-1, 3).astype(int)
    near, far = colors[depth < np.percentile(depth, 2)], colors[depth > np.percentile(depth, 98)]
    assert (near[:, 0] > near[:, 2]).all()  # red
    assert (far[:, 2] > far[:, 0]).all()  # blue
    assert "metric, in m" in page
    assert json.loads(re.search('id="mlx_depth">(.*?)</script>', page)[1])["names"] == ["a", "b", "c"]
    assert "confidence" in json.loads(re.search('id="scene">(.*?)</script>', page)[1])


def one_view(**changes):
    scene = boxes()
    part = {name: getattr(scene, name)[:1] for name in ("depth", "intrinsics", "extrinsics", "confidence", "sky")}
    return boxes(**{**part, "images": scene.images[:1], **changes})


def test_a_mesh_of_one_view(tmp_path):
    trimesh = require("scene", "trimesh")
    rules = PointFilter(confidence_percentile=None, edge_threshold=0.3)  # the floor is steep at so few pixels
    path = one_view().save(tmp_path / "view.glb", format="mesh", filter=rules)
    (mesh,) = trimesh.load(path).geometry.values()
    corners = np.asarray(mesh.vertices) * [1, -1, -1]
    assert scenes.distance_to_surfaces(corners).max() < 1e-4
    assert len(corners) > 0.9 * (SCENE.sky[0] == 0).sum()
    few = one_view().save(tmp_path / "few.glb", format="mesh", filter=PointFilter(max_points=200))
    (small,) = trimesh.load(few).geometry.values()
    assert 20 < len(small.vertices) <= 200
    # Without its rules it spans the edges and the sky.
    whole = PointFilter(confidence_percentile=None, edge_threshold=None, max_sky=None)
    (full,) = trimesh.load(one_view().save(tmp_path / "all.glb", format="mesh", filter=whole)).geometry.values()
    assert len(full.vertices) == SCENE.depth[0].size
    assert len(full.faces) == 2 * 47 * 63


def test_what_is_no_mesh(tmp_path):
    with pytest.raises(OptionError, match="a mesh is of one view, and the scene has 3: write glb, its points"):
        boxes().save(tmp_path / "a.glb", format="mesh")
    with pytest.raises(SaveError, match="every pixel is sky"):
        one_view(sky=np.ones_like(SCENE.sky[:1])).save(tmp_path / "a.glb", format="mesh")
    assert list(tmp_path.iterdir()) == []


# Cameras of the photos


def test_photo_cameras():
    sizes, intrinsics = boxes().photo_cameras()
    assert sizes == [SCENE.size] * 3
    np.testing.assert_array_equal(intrinsics, K)
    doubled = K * np.array([[2], [2], [1]])
    known = boxes(photo_sizes=((96, 128),) * 3, photo_intrinsics=doubled)
    sizes, intrinsics = known.photo_cameras()
    assert sizes == [(96, 128)] * 3
    np.testing.assert_array_equal(intrinsics, doubled)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"photo_sizes": ((96, 128),) * 3}, "photo_sizes and photo_intrinsics belong together: give both, or none."),
        ({"photo_intrinsics": K}, "photo_sizes and photo_intrinsics belong together: give both, or none."),
        ({"photo_sizes": ((9, 9),), "photo_intrinsics": K}, "photo_sizes is given for one view, depth for 3 views"),
        ({"photo_sizes": ((9, 9),) * 3, "photo_intrinsics": K[:2]}, "intrinsics is given for 2 views"),
    ],
)
def test_photo_cameras_that_do_not_fit(changes, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        boxes(**changes)


def test_glb(tmp_path):
    require("scene", "mlx_depth.io.scene.glb")
    trimesh = require("scene", "trimesh")
    scene = boxes()
    points, _ = scene.points(max_points=700)
    loaded = trimesh.load(scene.save(tmp_path / "scene.glb", filter=PointFilter(max_points=700)))
    (cloud,) = [part for part in loaded.geometry.values() if isinstance(part, trimesh.PointCloud)]
    np.testing.assert_allclose(cloud.vertices, points * [1, -1, -1], atol=1e-6)  # glTF: y up, z backward
    (lines,) = [part for part in loaded.geometry.values() if isinstance(part, trimesh.path.Path3D)]
    for rotation, translation in ((e[:, :3], e[:, 3]) for e in scene.extrinsics):
        center = -rotation.T @ translation * [1, -1, -1]
        assert np.linalg.norm(lines.vertices - center, axis=1).min() < 1e-5
