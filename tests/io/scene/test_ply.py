import numpy as np
import plyfile
import pytest
import scenes
import trimesh
from scene_results import boxes
from support import require, seeded

from mlx_depth.errors import SaveError
from mlx_depth.io.scene.ply import write_ply

POINTS, COLORS = boxes().points()
HOSTILE = "a\nend_header\r\n\x1b[31m 日本 \ud800 " + "long " * 3000
WIDE = "日" * 500  # six bytes each in ASCII


def test_plyfile_reads_the_same(tmp_path):
    path = boxes().save(tmp_path / "deep" / "scene.ply")
    ply = plyfile.PlyData.read(path)
    vertices = ply["vertex"].data
    assert not ply.text
    assert ply.byte_order == "<"
    assert vertices.dtype.descr == [(name, "<f4") for name in "xyz"] + [
        (name, "|u1") for name in ("red", "green", "blue")
    ]
    np.testing.assert_array_equal(np.stack([vertices[name] for name in "xyz"], axis=1), POINTS)
    np.testing.assert_array_equal(np.stack([vertices[name] for name in ("red", "green", "blue")], axis=1), COLORS)
    assert len(POINTS) > 500
    comments = set(ply.comments)
    assert {"kind metric", "unit m", "model depth-anything-3-large", "axes x right, y down, z forward"} <= comments


def test_trimesh_reads_the_same(tmp_path):
    cloud = trimesh.load(boxes().save(tmp_path / "scene.ply"))
    np.testing.assert_array_equal(cloud.vertices, POINTS)
    np.testing.assert_array_equal(cloud.colors[:, :3], COLORS)


@pytest.mark.parametrize("model", ["depth-anything-3-large", HOSTILE, WIDE])
def test_open3d_reads_the_same(model, tmp_path):
    open3d = require("open3d", "open3d")
    cloud = open3d.io.read_point_cloud(str(boxes(model=model).save(tmp_path / "scene.ply")))
    np.testing.assert_array_equal(np.asarray(cloud.points), POINTS)
    np.testing.assert_allclose(np.asarray(cloud.colors) * 255, COLORS, atol=1e-9)


def test_points_lie_on_the_boxes_in_their_colors(tmp_path):
    vertices = plyfile.PlyData.read(boxes().save(tmp_path / "scene.ply"))["vertex"].data
    points = np.stack([vertices[name] for name in "xyz"], axis=1)
    assert scenes.distance_to_surfaces(points).max() < 1e-4
    for low, high, color in scenes.BOXES:
        inside = (points >= np.array(low) - 1e-4).all(axis=1) & (points <= np.array(high) + 1e-4).all(axis=1)
        of_the_box = np.all(
            [vertices[name] == c for name, c in zip(("red", "green", "blue"), color, strict=True)], axis=0
        )
        assert of_the_box.sum() > 50
        assert (of_the_box <= inside).all()


@pytest.mark.parametrize(
    "facts",
    [{"model": HOSTILE}, {"model": WIDE}, {"model": HOSTILE * 2, "license": HOSTILE, "names": ["a"], "x": None}],
)
def test_hostile_facts_stay_in_the_header(facts, tmp_path):
    path = write_ply(tmp_path / "scene.ply", points=POINTS, colors=COLORS, facts=facts)
    ply = plyfile.PlyData.read(path)
    assert len(ply["vertex"].data) == len(POINTS)
    assert [comment.split()[0] for comment in ply.comments] == [name for name in facts if name in ("model", "license")]
    np.testing.assert_array_equal(trimesh.load(path).vertices, POINTS)
    header = path.read_bytes().split(b"end_header\n", 1)[0]
    assert max(map(len, header.split(b"\n"))) < 1024


def test_no_empty_comments(tmp_path):
    facts = {"unit": "", "model": None, "views": 3, "scale_factor": 1.5}
    write_ply(tmp_path / "scene.ply", points=POINTS, colors=COLORS, facts=facts)
    assert plyfile.PlyData.read(tmp_path / "scene.ply").comments == ["views 3", "scale_factor 1.5"]


def test_arrays_that_are_views(tmp_path):
    points, colors = seeded("points", (3, 10)).T[::2], np.arange(60, dtype=np.uint8).reshape(10, 6)[::2, ::2]
    path = write_ply(tmp_path / "scene.ply", points=points, colors=colors, facts={})
    cloud = trimesh.load(path)
    np.testing.assert_array_equal(cloud.vertices, points)
    np.testing.assert_array_equal(cloud.colors[:, :3], colors)


def test_overwriting(tmp_path):
    path = boxes().save(tmp_path / "scene.ply")
    before = path.read_bytes()
    with pytest.raises(SaveError, match="exists: pass overwrite=True"):
        boxes().save(path)
    boxes(model="other").save(path, overwrite=True)
    assert path.read_bytes() != before
    assert [file.name for file in tmp_path.iterdir()] == ["scene.ply"]
