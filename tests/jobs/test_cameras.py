import json
import re
from pathlib import Path

import numpy as np
import pytest
import scenes
from scene_results import boxes
from support import require

from mlx_depth.errors import OptionError, SaveError
from mlx_depth.io.image import ImageInfo
from mlx_depth.jobs.cameras import read_cameras, write_cameras

SCENE = scenes.boxes()
NAMES = ["a.jpg", "room/b.jpg", "room/c.jpg"]
SIZES = ((96, 128), (48, 64), (96, 128))
SCALES = np.array([[2.0, 1, 2]]).reshape(3, 1, 1) * np.ones((3, 3, 1))
SCALES[:, 2] = 1
PHOTO_K = SCENE.intrinsics * SCALES


@pytest.fixture
def scene():
    return boxes(names=tuple(NAMES), photo_sizes=SIZES, photo_intrinsics=PHOTO_K)


def test_there_and_back(scene, tmp_path) -> None:
    path = write_cameras(tmp_path / "new" / "cameras.json", scene)
    known = read_cameras(path, NAMES)
    np.testing.assert_array_equal(known.intrinsics, PHOTO_K)
    np.testing.assert_array_equal(known.extrinsics, SCENE.extrinsics)
    assert known.sizes == SIZES
    facts = json.loads(path.read_text())
    assert (facts["kind"], facts["unit"], facts["model"]) == ("metric", "m", "depth-anything-3-large")
    assert [camera["name"] for camera in facts["cameras"]] == NAMES
    with pytest.raises(SaveError, match="exists"):
        write_cameras(path, scene)
    write_cameras(path, scene, overwrite=True)


def test_names_find_their_camera(scene, tmp_path) -> None:
    path = write_cameras(tmp_path / "cameras.json", scene)
    known = read_cameras(path, ["c.jpg", "a.jpg"])  # fewer, in another order, from another folder
    np.testing.assert_array_equal(known.extrinsics, SCENE.extrinsics[[2, 0]])
    with pytest.raises(OptionError, match=r"has no camera named d\.jpg \(its first: a\.jpg, room/b\.jpg, room/c"):
        read_cameras(path, ["a.jpg", "d.jpg"])


def test_without_names_the_order_counts(tmp_path) -> None:
    entries = [
        {"intrinsics": K.tolist(), "extrinsics": E.tolist()}
        for K, E in zip(SCENE.intrinsics, SCENE.extrinsics, strict=True)
    ]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    np.savez(tmp_path / "x.npz", intrinsics=SCENE.intrinsics, extrinsics=SCENE.extrinsics)
    for name in ("list.json", "x.npz"):
        known = read_cameras(tmp_path / name, NAMES)
        np.testing.assert_array_equal(known.intrinsics, SCENE.intrinsics)
        np.testing.assert_array_equal(known.extrinsics, SCENE.extrinsics)
        assert known.sizes == (None, None, None)
        with pytest.raises(OptionError, match="has 3 cameras without names, and there are 2 photos: give one for each"):
            read_cameras(tmp_path / name, NAMES[:2])


@pytest.mark.parametrize("binary", [True, False])
def test_a_colmap_model_comes_back(binary, scene, tmp_path) -> None:
    require("test", "pycolmap")
    folder = scene.save_colmap(tmp_path / "sparse", binary=binary)
    known = read_cameras(folder, NAMES)
    np.testing.assert_allclose(known.intrinsics, PHOTO_K, rtol=1e-12)
    np.testing.assert_allclose(known.extrinsics, SCENE.extrinsics, atol=1e-12)
    assert known.sizes == SIZES


def test_a_lens_that_bends_is_refused(scene, tmp_path) -> None:
    pycolmap = require("test", "pycolmap")
    model = pycolmap.Reconstruction(str(scene.save_colmap(tmp_path / "sparse")))
    camera = model.cameras[1]
    camera.model, camera.params = pycolmap.CameraModelId.SIMPLE_RADIAL, [100.0, 32, 24, 0.1]
    (tmp_path / "bent").mkdir()
    model.write(str(tmp_path / "bent"))
    with pytest.raises(OptionError, match=r"a\.jpg has a SIMPLE_RADIAL camera: undistort the photos, or give PINHOLE"):
        read_cameras(tmp_path / "bent", NAMES)


def test_a_camera_is_for_its_size(scene, tmp_path) -> None:
    known = read_cameras(write_cameras(tmp_path / "cameras.json", scene), NAMES)
    known.check_size(0, ImageInfo("a.jpg", (96, 128)))
    with pytest.raises(OptionError, match=r"the camera of a\.jpg is for 96×128 pixels, and the photo has 128×96"):
        known.check_size(0, ImageInfo("a.jpg", (128, 96)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "holds no cameras (Expecting property name"),
        ("{}", "holds no cameras ('cameras'): give the JSON that mlx-depth scene writes, an NPZ of"),
        ('[{"intrinsics": []}]', "holds no cameras ('extrinsics')"),
        ("[1]", "holds no cameras (no list of objects)"),
        ('{"cameras": 3}', "holds no cameras (no list of objects)"),
        ('[{"size": [3], "intrinsics": [], "extrinsics": []}]', "holds no cameras (list index out of range)"),
        ("[]", "has 0 cameras without names, and there are 3 photos"),
        ('[{"name": "a.jpg", "intrinsics": [], "extrinsics": []}]', "has no camera named room/b.jpg"),
        (json.dumps([{"name": "a.jpg", "intrinsics": [], "extrinsics": []}] * 2), "names a.jpg twice"),
        (
            json.dumps([{"intrinsics": [[1]], "extrinsics": [1]}, {"intrinsics": [], "extrinsics": [[2]]}] * 2),
            "has 4 cameras without names",
        ),
    ],
)
def test_files_without_cameras(content, message, tmp_path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(OptionError, match=re.escape(message)):
        read_cameras(tmp_path / "x.json", NAMES)


def test_other_files(scene, tmp_path) -> None:
    with pytest.raises(OptionError, match="its intrinsics are in pixels of the depth, not of the photos: give its"):
        read_cameras(scene.save(tmp_path / "scene.npz"), NAMES)
    (tmp_path / "no.npz").write_bytes(b"PK\3\4" + bytes(30))
    for path in (tmp_path / "no.npz", tmp_path / "missing.json", Path(__file__).parent):
        with pytest.raises(OptionError, match="holds no cameras"):
            read_cameras(path, NAMES)
