import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clouds import cloud_of
from PIL import Image
from scenes import BOXES, boxes, distance_to_surfaces, intrinsics_of
from support import require

from mlx_depth.errors import OptionError, SaveError
from mlx_depth.io.scene.glb import MAX_TEXTURE_SIDE, write_glb, write_mesh_glb

trimesh = require("scene", "trimesh")

FACTS = {"kind": "metric", "unit": "m", "model": "depth-anything-3-base", "image": "Käse </script> 日本.jpg"}
FLIP = np.array([1, -1, -1])
BYTES = {5121: 1, 5123: 2, 5125: 4, 5126: 4}
PARTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


class Glb:
    """A reader after the specification (glTF 2.0, section 4), beside trimesh's: it sees what trimesh passes over."""

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        magic, version, length, json_length, json_kind = np.frombuffer(content[:20], "<u4")
        assert (magic, version, length, json_kind) == (0x46546C67, 2, len(content), 0x4E4F534A)
        self.tree = json.loads(content[20 : 20 + json_length], parse_constant=pytest.fail)
        begin = 20 + json_length
        assert np.frombuffer(content[begin + 4 : begin + 8], "<u4")[0] == 0x004E4942
        self.data = content[begin + 8 :]
        assert self.tree["buffers"] == [{"byteLength": len(self.data)}]

    def view(self, index: int) -> bytes:
        view = self.tree["bufferViews"][index]
        assert view["byteOffset"] % 4 == 0
        return self.data[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]

    def array(self, index: int) -> np.ndarray:
        accessor = self.tree["accessors"][index]
        assert accessor["type"] == "SCALAR" or BYTES[accessor["componentType"]] * PARTS[accessor["type"]] % 4 == 0
        values = np.frombuffer(
            self.view(accessor["bufferView"]), {5121: "u1", 5125: "<u4", 5126: "<f4"}[accessor["componentType"]]
        )
        values = values[: accessor["count"] * PARTS[accessor["type"]]]
        assert len(values) == accessor["count"] * PARTS[accessor["type"]]
        return values if accessor["type"] == "SCALAR" else values.reshape(accessor["count"], -1)

    def primitive(self, name: str) -> dict:
        (mesh,) = [mesh for mesh in self.tree["meshes"] if mesh["name"] == name]
        (primitive,) = mesh["primitives"]
        return primitive

    def attribute(self, name: str, attribute: str) -> np.ndarray:
        return self.array(self.primitive(name)["attributes"][attribute])

    @property
    def extras(self) -> dict:
        return self.tree["asset"]["extras"]


@pytest.fixture(scope="module")
def cloud():
    return cloud_of(boxes())


@pytest.fixture(scope="module")
def cloud_file(cloud, tmp_path_factory):
    path = tmp_path_factory.mktemp("glb") / "scene.glb"
    written = write_glb(path, points=cloud.points, colors=cloud.colors, cameras=cloud.cameras, facts=FACTS)
    assert written == path
    return path


def to_srgb(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)


# Point clouds


def test_points_are_those_of_the_scene_in_the_axes_of_gltf(cloud, cloud_file):
    read = trimesh.load(cloud_file).geometry["points"]
    np.testing.assert_array_equal(np.asarray(read.vertices), cloud.points * FLIP)
    assert distance_to_surfaces(np.asarray(read.vertices) * FLIP).max() < 1e-5


def test_a_viewer_shows_the_colors_of_the_photo(cloud, cloud_file):
    linear = Glb(cloud_file).attribute("points", "COLOR_0")
    np.testing.assert_allclose(to_srgb(linear.astype(np.float64)) * 255, cloud.colors, atol=1e-3)
    red = np.argmax((cloud.colors == BOXES[0][2]).all(axis=1))
    np.testing.assert_allclose(linear[red], [0.7157, 0.0212, 0.0212], atol=1e-4)  # of sRGB 220, 40, 40
    in_trimesh = trimesh.load(cloud_file).geometry["points"].colors
    np.testing.assert_allclose(in_trimesh[:, :3], linear * 255, atol=0.5001)


def test_every_level_of_color_is_kept(tmp_path):
    levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    points = np.random.RandomState(0).rand(256, 3).astype(np.float32)
    path = write_glb(tmp_path / "a.glb", points=points, colors=levels, cameras=[], facts={})
    linear = Glb(path).attribute("points", "COLOR_0").astype(np.float64)
    np.testing.assert_array_equal(np.rint(to_srgb(linear) * 255), levels)


def test_pyramids_stand_at_the_cameras_and_show_what_they_see(cloud, cloud_file):
    lines = Glb(cloud_file).attribute("cameras", "POSITION").reshape(len(cloud.cameras), 8, 2, 3) * FLIP
    for (intrinsics, extrinsics, (height, width)), drawn in zip(cloud.cameras, lines.astype(np.float64), strict=True):
        center = np.linalg.inv(np.vstack([extrinsics, [0, 0, 0, 1]]))[:3, 3]
        np.testing.assert_allclose(drawn[:4, 0], np.tile(center, (4, 1)), atol=1e-6)
        seen = drawn[:4, 1] @ extrinsics[:, :3].T + extrinsics[:, 3]
        assert np.ptp(seen[:, 2]) < 1e-6
        assert 0.02 < seen[0, 2] < 0.5
        pixels = (seen / seen[:, 2:]) @ intrinsics.T
        right, bottom = width - 0.5, height - 0.5
        corners = [[-0.5, -0.5], [right, -0.5], [right, bottom], [-0.5, bottom]]
        np.testing.assert_allclose(pixels[:, :2], corners, atol=2e-4 * width)
        np.testing.assert_array_equal(drawn[4:, 0], drawn[:4, 1])  # around the photo, and closed
        np.testing.assert_array_equal(drawn[4:, 1], np.roll(drawn[:4, 1], -1, axis=0))
    read = trimesh.load(cloud_file).geometry["cameras"]
    np.testing.assert_array_equal(np.asarray(read.vertices), lines.reshape(-1, 3) * FLIP)


def test_the_first_camera_is_red(cloud_file):
    colors = Glb(cloud_file).attribute("cameras", "COLOR_0").reshape(3, 16, 3)
    assert (np.ptp(colors, axis=1) == 0).all()
    assert colors[0, 0].argmax() == 0
    assert len(np.unique(colors[:, 0], axis=0)) == 3


def test_the_file_states_frame_cameras_and_facts(cloud, cloud_file):
    extras = Glb(cloud_file).extras
    assert extras["mlx_depth"] == FACTS
    assert extras["frame"].startswith("x right, y up, z backward: the OpenCV axes of the world as (x, -y, -z)")
    for (intrinsics, extrinsics, size), stored in zip(cloud.cameras, extras["cameras"], strict=True):
        np.testing.assert_array_equal(stored["intrinsics"], intrinsics)
        np.testing.assert_array_equal(stored["extrinsics"], extrinsics)
        assert stored["size"] == list(size)


def test_no_node_moves_the_scene(cloud_file):
    for node in Glb(cloud_file).tree["nodes"]:
        np.testing.assert_array_equal(np.reshape(node.get("matrix", np.eye(4)), (4, 4)), np.eye(4))
        assert not {"translation", "rotation", "scale"} & set(node)


def test_everything_is_unlit(cloud_file):
    tree = Glb(cloud_file).tree
    assert tree["extensionsUsed"] == ["KHR_materials_unlit"]
    for name in ("points", "cameras"):
        assert tree["materials"][Glb(cloud_file).primitive(name)["material"]]["extensions"] == {
            "KHR_materials_unlit": {}
        }


def test_without_cameras(cloud, tmp_path):
    path = write_glb(tmp_path / "a.glb", points=cloud.points, colors=cloud.colors, cameras=[], facts=FACTS)
    assert list(trimesh.load(path).geometry) == ["points"]


def test_one_point(tmp_path):
    point, color = np.array([[1, 2, 3]], np.float32), np.array([[9, 9, 9]], np.uint8)
    camera = (intrinsics_of(), np.eye(3, 4), (48, 64))
    path = write_glb(tmp_path / "a.glb", points=point, colors=color, cameras=[camera], facts={})
    np.testing.assert_array_equal(Glb(path).attribute("points", "POSITION"), [[1, -2, -3]])


# Meshes


def mesh_of(tmp_path, *, view=0, threshold=0.1, name="mesh.glb", **options):
    """The mesh of one view of the boxes, as trimesh and as our reader see it."""
    scene = boxes()
    given = {
        "depth": np.where(scene.sky[view] == 1, np.inf, scene.depth[view]).astype(np.float32),
        "image": scene.images[view],
        "intrinsics": scene.intrinsics[view],
        "extrinsics": scene.extrinsics[view],
        "edge_threshold": threshold,
        "facts": FACTS,
    }
    path = write_mesh_glb(tmp_path / name, **(given | options))
    return trimesh.load(path, process=False).geometry["view"], Glb(path)


def pixels_of(mesh, view=0):
    """Where the view sees the vertices: ``(N, 2)``, column and row; and their depth ``(N,)``."""
    scene = boxes()
    extrinsics = scene.extrinsics[view]
    seen = np.asarray(mesh.vertices) * FLIP @ extrinsics[:, :3].T + extrinsics[:, 3]
    return ((seen / seen[:, 2:]) @ scene.intrinsics[view].T)[:, :2], seen[:, 2]


def surfaces_of(mesh, view=0):
    """``(T, 3)``: the surface under each corner of each triangle."""
    columns, rows = np.rint(pixels_of(mesh, view)[0]).astype(int).T
    return boxes().surface[view][rows, columns][mesh.faces]


@pytest.mark.parametrize("view", [0, 1, 2])
def test_vertices_are_the_pixels_and_lie_on_the_surfaces(view, tmp_path):
    mesh, _ = mesh_of(tmp_path, view=view)
    assert distance_to_surfaces(np.asarray(mesh.vertices) * FLIP).max() < 1e-5
    pixels, depth = pixels_of(mesh, view)
    np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-4)
    columns, rows = np.rint(pixels).astype(int).T
    np.testing.assert_allclose(depth, boxes().depth[view][rows, columns], rtol=1e-6)


def crossing(mesh) -> int:
    """Triangles between a box and another solid that it does not touch there: corners that are far apart."""
    depth = pixels_of(mesh)[1][mesh.faces]
    return int((depth.max(axis=1) / depth.min(axis=1) > 1.1 + 1e-6).sum())


def test_no_triangle_crosses_a_depth_edge(tmp_path):
    mesh, _ = mesh_of(tmp_path)
    assert crossing(mesh) == 0
    uncut, _ = mesh_of(tmp_path, threshold=1e9, name="uncut.glb")
    assert crossing(uncut) > 100  # the fault that the cut prevents
    # Two boxes never touch each other, nor does the blue one touch the floor behind the yellow one.
    for faces in surfaces_of(mesh):
        assert len({*faces} - {len(BOXES)}) <= 1
    assert any(len({*faces} - {len(BOXES)}) > 1 for faces in surfaces_of(uncut))


def test_the_cut_is_that_of_utils3d_with_fewer_holes(tmp_path):
    """MoGe's exporter takes away every pixel beside a jump; here a side that jumps goes, and its two pixels stay."""
    edge = require("reference", "utils3d").np.depth_map_edge
    scene = boxes()
    mesh, _ = mesh_of(tmp_path)
    depth = np.where(scene.sky[0] == 1, np.nan, scene.depth[0])
    kept = np.isfinite(depth) & ~edge(depth, rtol=0.1, mask=np.isfinite(depth))
    corners = np.rint(pixels_of(mesh)[0]).astype(int)[mesh.faces]
    ours = {tuple(sorted(map(tuple, triangle.tolist()))) for triangle in corners}
    whole = kept[:-1, :-1] & kept[1:, :-1] & kept[:-1, 1:] & kept[1:, 1:]
    squares = np.zeros(scene.size, int)
    np.add.at(squares, tuple(corners.min(axis=1)[:, ::-1].T), 1)
    assert (squares[:-1, :-1][whole] == 2).all()  # all that theirs keeps
    beside = {triangle for triangle in ours if not all(kept[row, column] for column, row in triangle)}
    assert beside
    columns, rows = corners[..., 0], corners[..., 1]
    seen = depth[rows, columns]
    assert (seen.max(axis=1) / seen.min(axis=1)).max() <= 1.1 + 1e-6  # and no side of ours jumps
    jumping = edge(depth, rtol=0.1, mask=np.isfinite(depth))
    assert all(any(jumping[row, column] for column, row in triangle) for triangle in beside)


def test_smooth_surfaces_are_whole(tmp_path):
    """Each square of pixels on the front of a box has its two triangles."""
    mesh, _ = mesh_of(tmp_path)
    scene = boxes()
    corners = np.rint(pixels_of(mesh)[0]).astype(int)[mesh.faces].min(axis=1)  # the upper left of each one's square
    triangles = np.zeros(scene.size, int)
    np.add.at(triangles, (corners[:, 1], corners[:, 0]), 1)
    for box, (low, _, _) in enumerate(BOXES):
        is_front = (scene.surface[0] == box) & (np.abs(scene.depth[0] - low[2]) < 1e-5)
        is_square = is_front[:-1, :-1] & is_front[1:, :-1] & is_front[:-1, 1:] & is_front[1:, 1:]
        assert is_square.sum() > 50
        assert (triangles[:-1, :-1][is_square] == 2).all()


def test_the_sky_is_a_hole(tmp_path):
    mesh, _ = mesh_of(tmp_path, threshold=1e9)
    assert (surfaces_of(mesh) >= 0).all()
    assert len(mesh.vertices) == (boxes().surface[0] >= 0).sum()


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf, 0.0, -1.0])
def test_a_pixel_without_depth_is_a_hole(hole, tmp_path):
    depth = np.full((5, 6), 2, np.float32)
    depth[2, 3] = hole
    mesh, _ = mesh_of(tmp_path, depth=depth, image=np.zeros((5, 6, 3), np.uint8), extrinsics=None)
    assert len(mesh.vertices) == 29
    # Two triangles for each of 20 squares; of the four around the hole one or two corners' triangles are left.
    assert 2 * 16 <= len(mesh.faces) <= 2 * 16 + 4
    assert np.isfinite(np.asarray(mesh.vertices)).all()


def test_the_corner_beyond_an_edge_is_cut_off_alone(tmp_path):
    """Whichever corner it is, the other three keep their triangle."""
    for row, column in np.ndindex(2, 2):
        depth = np.full((2, 2), 2, np.float32)
        depth[row, column] = 9
        image = np.zeros((2, 2, 3), np.uint8)
        mesh, _ = mesh_of(tmp_path, depth=depth, image=image, extrinsics=None, name=f"{row}{column}.glb")
        assert len(mesh.faces) == 1
        np.testing.assert_allclose(np.asarray(mesh.vertices)[:, 2], -2)


def test_triangles_face_the_camera(tmp_path):
    mesh, _ = mesh_of(tmp_path, view=1)
    extrinsics = boxes().extrinsics[1]
    center = -extrinsics[:, :3].T @ extrinsics[:, 3] * FLIP
    a, b, c = (np.asarray(mesh.vertices)[mesh.faces[:, corner]] for corner in range(3))
    assert (np.einsum("ij,ij->i", np.cross(b - a, c - a), center - a) > 0).all()


def test_the_photo_is_on_the_mesh_the_right_way_up(tmp_path):
    """Looked up as the specification says: v runs down from the top row, and texel centers are at halves."""
    scene = boxes()
    mesh, file = mesh_of(tmp_path)
    (image,) = file.tree["images"]
    assert image["mimeType"] == "image/jpeg"
    photo = np.asarray(Image.open(io.BytesIO(file.view(image["bufferView"]))))
    assert photo.shape == scene.images[0].shape
    assert np.abs(photo.astype(int) - scene.images[0]).mean() < 3
    uv = file.attribute("view", "TEXCOORD_0").astype(np.float64)
    columns, rows = (uv * [photo.shape[1], photo.shape[0]] - 0.5).T
    np.testing.assert_allclose(np.stack([columns, rows], axis=-1), pixels_of(mesh)[0], atol=1e-4)
    blue = (np.asarray(mesh.vertices) * FLIP)[:, 1] < 0  # the top of the one box that is higher than the camera
    texels = photo[np.rint(rows).astype(int), np.rint(columns).astype(int)][blue].astype(int)
    assert np.median(np.abs(texels - BOXES[1][2])) <= 3
    assert blue.sum() > 20


def test_a_photo_of_another_size_covers_the_same_view(tmp_path):
    large = np.asarray(Image.fromarray(boxes().images[0]).resize((3 * 64, 3 * 48), Image.Resampling.NEAREST))
    mesh, file = mesh_of(tmp_path, image=large)
    same, _ = mesh_of(tmp_path, name="same.glb")
    np.testing.assert_array_equal(mesh.visual.uv, same.visual.uv)
    assert Image.open(io.BytesIO(file.view(file.tree["images"][0]["bufferView"]))).size == (192, 144)


def test_a_huge_photo_is_made_smaller(tmp_path):
    _, file = mesh_of(tmp_path, image=np.zeros((30, MAX_TEXTURE_SIDE + 10, 3), np.uint8))
    size = Image.open(io.BytesIO(file.view(file.tree["images"][0]["bufferView"]))).size
    assert size == (MAX_TEXTURE_SIDE, 30)


def test_the_material(tmp_path):
    mesh, file = mesh_of(tmp_path)
    (material,) = file.tree["materials"]
    assert material["doubleSided"] is True
    assert material["extensions"] == {"KHR_materials_unlit": {}}
    assert file.tree["samplers"] == [{"wrapS": 33071, "wrapT": 33071}]
    assert len(file.tree["bufferViews"]) == 4  # faces, vertices, uv, photo
    assert mesh.visual.material.baseColorTexture.size == (64, 48)
    assert "NORMAL" not in file.primitive("view")["attributes"]
    assert file.extras["mlx_depth"] == FACTS
    assert len(file.extras["cameras"]) == 1


def test_normals_turn_with_the_camera(tmp_path):
    """The floor's normal points up, whichever way the camera is rolled."""
    extrinsics = boxes().extrinsics[1]
    up = extrinsics[:, :3] @ [0, -1, 0]  # in the camera's axes; the world's y points down
    normals = np.broadcast_to(up.astype(np.float32), (48, 64, 3))
    _, file = mesh_of(tmp_path, view=1, normals=normals)
    np.testing.assert_allclose(
        file.attribute("view", "NORMAL"), np.tile([0, 1, 0], (len(file.attribute("view", "POSITION")), 1)), atol=1e-6
    )


def test_large_maps_keep_every_second_pixel(tmp_path):
    mesh, _ = mesh_of(tmp_path, max_vertices=24 * 32)
    pixels = np.rint(pixels_of(mesh)[0]).astype(int)
    assert not (pixels % 2).any()
    assert (surfaces_of(mesh) == len(BOXES)).all(axis=1).sum() > 50
    third, _ = mesh_of(tmp_path, max_vertices=24 * 32 - 1, name="third.glb")
    assert not (np.rint(pixels_of(third)[0]).astype(int) % 3).any()


def test_jumps_are_judged_from_pixel_to_pixel(tmp_path):
    """With pixels left out a slope stays whole, and what stands between two vertices cuts."""
    slope = np.tile(2 * 1.08 ** np.arange(9, dtype=np.float32), (9, 1))
    given = {"image": np.zeros((9, 9, 3), np.uint8), "extrinsics": None, "max_vertices": 9}
    mesh, _ = mesh_of(tmp_path, depth=slope, **given)
    assert (len(mesh.vertices), len(mesh.faces)) == (9, 8)
    slope[:, 2] = 1  # a pole between the first and the second column of vertices
    mesh, _ = mesh_of(tmp_path, depth=slope, name="pole.glb", **given)
    assert (len(mesh.vertices), len(mesh.faces)) == (6, 4)


def test_without_extrinsics_the_camera_is_the_world(tmp_path):
    mesh, file = mesh_of(tmp_path, extrinsics=None)
    same, _ = mesh_of(tmp_path, extrinsics=np.eye(3, 4), name="same.glb")
    np.testing.assert_array_equal(mesh.vertices, same.vertices)
    assert file.extras["cameras"][0]["extrinsics"] == np.eye(3, 4).tolist()


# What cannot be written


def points_with(**changes):
    given = {
        "points": np.ones((4, 3), np.float32),
        "colors": np.ones((4, 3), np.uint8),
        "cameras": [(intrinsics_of(), np.eye(3, 4), (48, 64))],
        "facts": {},
    }
    return given | changes


def camera_with(*, intrinsics=None, extrinsics=None, size=(48, 64)):
    intrinsics = intrinsics_of() if intrinsics is None else intrinsics
    return [(intrinsics, np.eye(3, 4) if extrinsics is None else extrinsics, size)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": np.ones((4, 2), np.float32)}, "points are float32 of shape (4, 2): give float32 of shape (N, 3)."),
        ({"points": np.ones((4, 3))}, "points are float64 of shape (4, 3): give float32 of shape (N, 3)."),
        ({"points": np.ones((0, 3), np.float32)}, "there are no points to draw: loosen the confidence, edge or sky"),
        ({"points": np.full((4, 3), np.nan, np.float32)}, "points hold numbers that are not finite: leave"),
        ({"colors": np.ones((3, 3), np.uint8)}, "colors are uint8 of shape (3, 3): give uint8 of shape (4, 3), one a"),
        ({"colors": np.ones((4, 3), np.float32)}, "colors are float32 of shape (4, 3): give uint8"),
        ({"cameras": camera_with(intrinsics=np.eye(4))}, "intrinsics of shape (4, 4) are not finite numbers of shape"),
        ({"cameras": camera_with(extrinsics=np.eye(4))}, "extrinsics of shape (4, 4) are not finite numbers of shape"),
        ({"cameras": camera_with(extrinsics=np.full((3, 4), np.nan))}, "extrinsics of shape (3, 4) are not finite"),
        ({"cameras": camera_with(intrinsics=np.zeros((3, 3)))}, "intrinsics have no inverse: give those of a camera."),
        ({"cameras": camera_with(size=(0, 3))}, "the size (0, 3) of a camera is not (height, width) in pixels"),
    ],
)
def test_wrong_points(changes, message, tmp_path):
    with pytest.raises(OptionError, match=re.escape(message)):
        write_glb(tmp_path / "a.glb", **points_with(**changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": np.ones((1, 5), np.float32)}, "depth has shape (1, 5): a mesh needs (H, W) of at least (2, 2)."),
        ({"image": np.ones((5, 5), np.uint8)}, "image is uint8 of shape (5, 5): give uint8 of shape (H, W, 3)."),
        ({"image": np.ones((5, 5, 3))}, "image is float64 of shape (5, 5, 3): give uint8"),
        ({"normals": np.ones((5, 5, 3), np.float32)}, "normals have shape (5, 5, 3): give (48, 64, 3), one for each"),
        ({"normals": np.full((48, 64, 3), np.nan, np.float32)}, "normals are not finite where the depth is valid"),
        ({"edge_threshold": 0.0}, "edge_threshold 0.0 is not a finite number above 0: give one, such as 0.04."),
        ({"edge_threshold": np.nan}, "edge_threshold nan is not a finite number above 0"),
        ({"max_vertices": 3}, "max_vertices 3 is less than a square has: give 4 or more."),
        ({"depth": np.full((9, 9), np.nan, np.float32)}, "no triangle is left: the depth is nowhere valid and smooth"),
        ({"intrinsics": np.zeros((3, 3))}, "intrinsics have no inverse"),
    ],
)
def test_wrong_meshes(changes, message, tmp_path):
    with pytest.raises(OptionError, match=re.escape(message)):
        mesh_of(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unasked(tmp_path):
    path = write_glb(tmp_path / "a.glb", **points_with())
    before = path.read_bytes()
    with pytest.raises(SaveError, match=re.escape(f"{path} exists: pass overwrite=True")):
        write_glb(path, **points_with(facts={"kind": "metric"}))
    assert path.read_bytes() == before
    write_glb(path, **points_with(facts={"kind": "metric"}), overwrite=True)
    assert Glb(path).extras["mlx_depth"] == {"kind": "metric"}
    assert list(tmp_path.iterdir()) == [path]


def test_facts_that_json_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_glb(tmp_path / "a.glb", **points_with(facts={"min": np.nan}))
    assert list(tmp_path.iterdir()) == []


def test_without_trimesh(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trimesh", None)
    message = r"^trimesh is missing, which \.glb files need: pip install 'mlx-depth\[scene\]'\.$"
    with pytest.raises(SaveError, match=message):
        write_glb(tmp_path / "a.glb", **points_with())
    with pytest.raises(SaveError, match=message):
        mesh_of(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_trimesh_alone_is_enough(tmp_path):
    """The extra brings nothing that trimesh could use beside: scipy, networkx and the like may be missing."""
    code = f"""
import sys
import mlx_depth.io.scene.glb as glb, mlx_depth.io.scene.viewer
assert "trimesh" not in sys.modules
for name in ("scipy", "networkx", "shapely", "jsonschema", "lxml", "rtree"):
    sys.modules[name] = None
import numpy as np
camera = (np.eye(3), np.eye(3, 4), (2, 2))
one = np.ones((4, 3), np.float32)
glb.write_glb({str(tmp_path / "points.glb")!r}, points=one, colors=one.astype(np.uint8), cameras=[camera], facts={{}})
glb.write_mesh_glb({str(tmp_path / "mesh.glb")!r}, depth=one, image=np.ones((4, 3, 3), np.uint8), intrinsics=np.eye(3),
                   edge_threshold=0.1, facts={{}})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(list(tmp_path.iterdir())) == 2
