import dataclasses
import itertools
import os
import struct

import numpy as np
import pytest
import scenes
from hypothesis import given
from hypothesis import strategies as st
from scene_results import boxes
from support import require

from mlx_depth.camera import Camera
from mlx_depth.errors import OptionError, SaveError
from mlx_depth.geometry.point_filter import PointFilter
from mlx_depth.io.scene.colmap import _quaternion, write_colmap
from mlx_depth.kinds import DepthKind
from mlx_depth.result import DepthResult

pycolmap = require("test", "pycolmap")

FORMS = pytest.mark.parametrize("binary", [True, False], ids=["binary", "text"])
NAMES = ("left.jpg", "sub/日本.jpg", "right.jpg")
# Each photo's pixels from the depth's: scale, then what was cut off at the left and above, in x and in y.
TO_PHOTO = [((4.0, 4.0), (0, 0)), ((3.1, 2.9), (0, 0)), ((2.0, 2.0), (10, 7))]


def with_photos(**changes):
    """Photos of three sizes; the network saw the last one cropped."""
    rendered = scenes.boxes()
    views = []
    for k, (scale, cut) in zip(rendered.intrinsics, TO_PHOTO, strict=True):
        height, width = (round(scenes.SIZE[side] * scale[1 - side] + 2 * cut[1 - side]) for side in (0, 1))
        onto = np.diag([*scale, 1.0])
        onto[:2, 2] = (np.array(scale) - 1) / 2 + cut  # pixel centers at integers
        result = DepthResult(
            np.ones((height, width), np.float32),
            DepthKind.METRIC,
            model="m",
            image_size=(height, width),
            input_size=scenes.SIZE,
            camera=Camera(onto @ k),
        )
        views.append(result)
    return boxes(rendered, views=tuple(views), names=NAMES, **changes)


def read(folder):
    return pycolmap.Reconstruction(str(folder))


def check_projections(model) -> None:
    """By pycolmap's own projection every 3-D point lands on the 2-D point that saw it."""
    assert model.num_points3D() > 500
    seen = 0
    for image in model.images.values():
        points = [point for point in image.points2D if point.has_point3D()]
        assert len(points) == len(image.points2D) > 100
        for point in points:
            projected = image.project_point(model.points3D[point.point3D_id].xyz)
            np.testing.assert_allclose(projected, point.xy, atol=2e-3)  # of up to 256 pixels, points are float32
        seen += len(points)
    assert seen == model.num_points3D()


@FORMS
def test_pycolmap_reads_cameras_poses_and_points(binary, tmp_path):
    scene = boxes()
    model = read(scene.save_colmap(tmp_path / "sparse", binary=binary))
    points, colors = scene.points()
    assert (model.num_cameras(), model.num_reg_images(), model.num_points3D()) == (3, 3, len(points))
    for view in range(3):
        image, camera, k = model.images[view + 1], model.cameras[view + 1], scene.intrinsics[view]
        assert image.camera_id == view + 1
        assert (camera.model_name, camera.width, camera.height) == ("PINHOLE", 64, 48)
        # COLMAP has the center of the first pixel at (0.5, 0.5).
        np.testing.assert_array_equal(camera.params, [k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5])
        np.testing.assert_allclose(image.cam_from_world().matrix(), scene.extrinsics[view], atol=1e-12)
    for number, (point, color) in enumerate(zip(points, colors, strict=True), start=1):
        np.testing.assert_array_equal(model.points3D[number].xyz, point)
        np.testing.assert_array_equal(model.points3D[number].color, color)
        assert model.points3D[number].error == 0
    check_projections(model)
    assert model.is_valid()


@FORMS
def test_tracks_and_observations_agree(binary, tmp_path):
    scene = boxes()
    model = read(scene.save_colmap(tmp_path, binary=binary))
    pixels = scene.choose().pixels
    for number, pixel in enumerate(pixels, start=1):
        (element,) = model.points3D[number].track.elements
        view, row, column = np.unravel_index(pixel, scene.depth.shape)
        assert element.image_id == view + 1
        point = model.images[element.image_id].points2D[element.point2D_idx]
        assert point.point3D_id == number
        np.testing.assert_allclose(point.xy, [column + 0.5, row + 0.5], atol=1e-12)
    assert model.compute_mean_reprojection_error() == 0


@FORMS
def test_everything_is_in_pixels_of_the_photos(binary, tmp_path):
    scene = with_photos()
    model = read(scene.save_colmap(tmp_path, binary=binary))
    check_projections(model)
    pixels = scene.choose().pixels
    for view, (scale, cut) in enumerate(TO_PHOTO):
        image, camera = model.images[view + 1], model.cameras[view + 1]
        assert image.name == NAMES[view]
        assert (camera.height, camera.width) == scene.views[view].image_size
        # With centers at 0.5 a resize is a plain factor, and a crop a plain shift.
        k, (fx, fy, cx, cy) = scene.intrinsics[view], camera.params
        np.testing.assert_allclose([fx, fy], np.array(scale) * [k[0, 0], k[1, 1]])
        np.testing.assert_allclose([cx, cy], np.array(scale) * [k[0, 2] + 0.5, k[1, 2] + 0.5] + cut)
        own = pixels[pixels // scene.depth[0].size == view] % scene.depth[0].size
        rows, columns = np.divmod(own, scene.size[1])
        expected = np.stack([columns + 0.5, rows + 0.5], axis=1) * scale + cut
        np.testing.assert_allclose([point.xy for point in image.points2D], expected, atol=1e-9)


def test_both_forms_are_the_same_to_the_last_digit(tmp_path):
    one = read(with_photos().save_colmap(tmp_path / "bin"))
    two = read(with_photos().save_colmap(tmp_path / "txt", binary=False))
    for number, camera in one.cameras.items():
        np.testing.assert_array_equal(camera.params, two.cameras[number].params)
        first, second = one.images[number], two.images[number]
        assert first.name == second.name
        np.testing.assert_array_equal(first.cam_from_world().matrix(), second.cam_from_world().matrix())
        np.testing.assert_array_equal([p.xy for p in first.points2D], [p.xy for p in second.points2D])
    for number, point in one.points3D.items():
        np.testing.assert_array_equal(point.xyz, two.points3D[number].xyz)


def test_a_view_that_sees_nothing(tmp_path):
    for binary in (True, False):
        rendered = scenes.boxes()
        rendered.depth[1] = np.nan
        model = read(boxes(rendered).save_colmap(tmp_path / str(binary), binary=binary))
        assert [len(model.images[number].points2D) == 0 for number in (1, 2, 3)] == [False, True, False]


def test_the_filter(tmp_path):
    model = read(boxes().save_colmap(tmp_path, filter=PointFilter(max_points=123)))
    assert model.num_points3D() == 123


def test_same_points_as_the_reference(tmp_path):
    """Its export takes neither the sky nor edges out, and has pixel centers at integers."""
    from PIL import Image

    colmap = require("reference", "da3").import_reference("utils.export.colmap")
    scene = boxes(names=tuple(f"{view}.png" for view in range(3)))
    paths = []
    for view, image in enumerate(scene.images):
        paths.append(str(tmp_path / f"{view}.png"))
        Image.fromarray(image).save(paths[-1])
    prediction = type("Prediction", (), {})()
    prediction.depth, prediction.conf = scene.depth, scene.confidence
    prediction.intrinsics, prediction.extrinsics = scene.intrinsics.copy(), scene.extrinsics
    prediction.processed_images = np.stack(scene.images)
    (tmp_path / "theirs").mkdir()
    colmap.export_to_colmap(prediction, str(tmp_path / "theirs"), paths)
    theirs = read(tmp_path / "theirs")
    ours = read(scene.save_colmap(tmp_path / "ours", filter=PointFilter(edge_threshold=None, max_sky=None)))
    assert ours.num_points3D() == theirs.num_points3D() > 5000
    for number, camera in theirs.cameras.items():
        np.testing.assert_allclose(ours.cameras[number].params, camera.params + np.array([0, 0, 0.5, 0.5]))
        one, two = ours.images[number], theirs.images[number]
        assert one.name == two.name
        np.testing.assert_allclose(one.cam_from_world().matrix(), two.cam_from_world().matrix(), atol=1e-12)
        np.testing.assert_allclose([p.xy for p in one.points2D], [p.xy + 0.5 for p in two.points2D])
        for p, q in zip(one.points2D, two.points2D, strict=True):
            np.testing.assert_allclose(
                ours.points3D[p.point3D_id].xyz, theirs.points3D[q.point3D_id].xyz, rtol=1e-6, atol=1e-6
            )


# Rotations


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1))
def test_quaternions_lead_back_to_the_rotation(values):
    w, x, y, z = np.array(values) / np.linalg.norm(values)
    rotation = pycolmap.Rotation3d(np.array([x, y, z, w])).matrix()
    ours = _quaternion(rotation)
    assert ours[0] >= 0
    assert np.linalg.norm(ours) == pytest.approx(1, abs=1e-12)
    back = pycolmap.Rotation3d(np.array([*ours[1:], ours[0]])).matrix()
    np.testing.assert_allclose(back, rotation, atol=1e-12)


@pytest.mark.parametrize("axis", range(3))
def test_half_turns(axis):
    rotation = -np.eye(3)
    rotation[axis, axis] = 1
    np.testing.assert_allclose(np.abs(_quaternion(rotation)), np.eye(4)[axis + 1], atol=1e-12)


# Names


@pytest.mark.parametrize(
    ("names", "binary", "message"),
    [
        (("a", "b", "a"), True, "2 photos are named 'a', COLMAP needs a name for each: change names."),
        (("a", "b", ""), True, "'' cannot name a photo in COLMAP: give names of one line."),
        (("a", "b", "c\0d"), True, "cannot name a photo in COLMAP"),
        (("a", "b", "c\nd"), False, "cannot name a photo in COLMAP"),
        (("a", "b", "c d"), False, "COLMAP's text files end a name at a space: use binary=True for 'c d'."),
        (("a", "b", "c "), False, "COLMAP's text files end a name at a space"),
    ],
)
def test_names_that_no_file_holds(names, binary, message, tmp_path):
    with pytest.raises(OptionError) as caught:
        boxes(names=names).save_colmap(tmp_path, binary=binary)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_names_with_spaces_in_binary(tmp_path):
    names = ("my photo.jpg", " b", "c ")
    model = read(boxes(names=names).save_colmap(tmp_path))
    assert tuple(model.images[number].name for number in (1, 2, 3)) == names


@FORMS
def test_names_that_are_no_unicode(binary, tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    boxes(names=("a", "b", name)).save_colmap(tmp_path, binary=binary)
    assert b"caf\xe9.jpg" in (tmp_path / ("images.bin" if binary else "images.txt")).read_bytes()


def test_names_without_any(tmp_path):
    model = read(boxes().save_colmap(tmp_path))
    assert [model.images[number].name for number in (1, 2, 3)] == ["view_0000.png", "view_0001.png", "view_0002.png"]


# The folder


def test_overwriting_leaves_no_other_model(tmp_path):
    for name, form in itertools.product(("rigs", "frames"), ("bin", "txt")):
        (tmp_path / f"{name}.{form}").write_bytes(struct.pack("<Q", 0))
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(SaveError, match=r"holds a COLMAP model \(rigs.bin\): pass overwrite=True, or another folder."):
        boxes().save_colmap(tmp_path)
    for binary in (True, False, True):
        boxes().save_colmap(tmp_path, binary=binary, overwrite=True)
        form = "bin" if binary else "txt"
        names = {file.name for file in tmp_path.iterdir()}
        assert names == {"photo.jpg", f"cameras.{form}", f"images.{form}", f"points3D.{form}"}
        check_projections(read(tmp_path))
        with pytest.raises(SaveError, match="holds a COLMAP model"):
            boxes().save_colmap(tmp_path, binary=not binary)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SaveError, match="cannot write"):
        boxes().save_colmap(tmp_path / "file")


# Cameras


def test_skew(tmp_path):
    rendered = scenes.boxes()
    rendered.intrinsics[1, 0, 1] = 0.5
    with pytest.raises(
        OptionError, match=r"the camera of view 1 has skew, for which COLMAP has no model: save an npz\."
    ):
        boxes(rendered).save_colmap(tmp_path)


def test_views_without_a_camera(tmp_path):
    scene = with_photos()
    views = (*scene.views[:2], dataclasses.replace(scene.views[2], camera=None))
    with pytest.raises(OptionError) as caught:
        dataclasses.replace(scene, views=views).save_colmap(tmp_path)
    assert "views[2] has no camera, and its photo's pixels no place" in str(caught.value)


def test_a_million_points_are_quick(tmp_path):
    """Vectorized: a loop over points in Python takes a minute."""
    count = 1_000_000
    write_colmap(
        tmp_path,
        intrinsics=np.eye(3)[None],
        extrinsics=np.eye(3, 4)[None],
        sizes=[(1000, 1000)],
        names=["a"],
        points=np.ones((count, 3), np.float32),
        colors=np.zeros((count, 3), np.uint8),
        views=np.zeros(count, np.int64),
        pixels=np.zeros((count, 2)),
    )
    assert (tmp_path / "points3D.bin").stat().st_size == 8 + count * (8 + 24 + 3 + 8 + 8 + 8)
    assert (tmp_path / "images.bin").stat().st_size == 8 + 64 + len("a\0") + 8 + count * 24
