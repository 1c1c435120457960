import dataclasses
import io
import json
import os
import re
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import OpenEXR
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from support import require, seeded

from mlx_depth.camera import Camera
from mlx_depth.errors import OptionError, SaveError
from mlx_depth.io.atomic import atomic_write
from mlx_depth.io.formats import FORMATS
from mlx_depth.io.png16 import png16_scale, png16_values
from mlx_depth.kinds import DepthKind
from mlx_depth.result import DepthResult

INVERSE, RELATIVE, METRIC = DepthKind.RELATIVE_INVERSE, DepthKind.RELATIVE, DepthKind.METRIC
any_depth = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.floats(width=32))
FLOAT_FORMATS = ["npy", "npz", "tiff", "pfm", "exr"]
WITHOUT_TEXT = {"npy", "npz", "pfm", "confidence", "sky"}
SIZE = (5, 7)
PHOTO = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


def make(depth=None, kind=INVERSE, **options) -> DepthResult:
    depth = np.abs(seeded("depth", SIZE)) + 1 if depth is None else np.asarray(depth, np.float32)
    defaults = {"model": "depth-anything-v2-small", "image_size": depth.shape, "input_size": (14, 28)}
    return DepthResult(depth, kind, **(defaults | options))


def full() -> DepthResult:
    """A result with every field set; its first pixel is outside the mask."""
    depth = 2 + np.arange(35, dtype=np.float32).reshape(SIZE) / 100
    depth[0, 0] = np.inf
    towards = np.array([0.6, 0, -0.8], np.float32)
    return make(
        depth,
        METRIC,
        mask=np.isfinite(depth),
        normals=np.where(np.isfinite(depth)[..., None], towards, np.float32(0)),
        image=PHOTO,
        confidence=seeded("confidence", SIZE),
        sky=np.zeros(SIZE, np.float32),
        camera=Camera(np.array([[2, 0, 3], [0, 2, 2], [0, 0, 1]], np.float32), np.eye(4, dtype=np.float32)[:3]),
        focal_length_px=1234.5,
        max_depth=20.0,
        revision="abc123",
        dtype="bfloat16",
        license="Apache-2.0",
        source="Fotos/Käse 日本.jpg",
    )


def read_depth(path: Path) -> np.ndarray:
    """The float depth of a file, by a reader that is not ours."""
    match path.suffix:
        case ".npy":
            return np.load(path, allow_pickle=False)
        case ".npz":
            with np.load(path, allow_pickle=False) as fields:
                return fields["depth"]
        case ".tiff":
            return tifffile.imread(path)
        case ".pfm":
            with Image.open(path) as image:
                return np.asarray(image)
        case ".exr":
            with OpenEXR.File(str(path)) as file:
                return file.channels()["Z"].pixels.copy()
    raise AssertionError(path)


def levels(result: DepthResult) -> np.ndarray:
    return png16_values(result.depth, result.kind, result.max_depth)


def scale_of(result: DepthResult) -> tuple[float, float]:
    return png16_scale(result.depth, result.kind, result.max_depth)


def read_pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# Float formats


@pytest.mark.parametrize("name", FLOAT_FORMATS)
def test_float_formats_keep_every_bit(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp(name)

    @given(any_depth)
    def check(depth):
        path = make(depth).save(folder / f"depth{FORMATS[name][0]}", overwrite=True)
        back = read_depth(path)
        assert back.dtype.newbyteorder("=") == np.float32
        np.testing.assert_array_equal(back, depth)

    check()


@pytest.mark.parametrize("name", FLOAT_FORMATS)
def test_arrays_that_are_views(name, tmp_path):
    depth = seeded("view", (6, 9)).T[::-1, ::2]
    path = make(depth).save(tmp_path / f"depth{FORMATS[name][0]}")
    np.testing.assert_array_equal(read_depth(path), depth)


@pytest.mark.parametrize("suffix", [".pfm", ".tiff"])
def test_opencv_reads_the_same(suffix, tmp_path):
    cv2 = require("reference", "cv2")
    path = make().save(tmp_path / f"depth{suffix}")
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), make().depth)


def test_pfm_is_little_endian_from_the_bottom(tmp_path):
    path = make([[1, 2, 3], [4, 5, 6]]).save(tmp_path / "depth.pfm")
    assert path.read_bytes() == b"Pf\n3 2\n-1.0\n" + np.array([4, 5, 6, 1, 2, 3], "<f4").tobytes()


def test_npz_holds_every_field(tmp_path):
    result = full()
    with np.load(result.save(tmp_path / "depth.npz"), allow_pickle=False) as file:
        fields = dict(file)
    for name in ("depth", "image", "confidence", "sky", "mask", "normals"):
        np.testing.assert_array_equal(fields.pop(name), getattr(result, name))
    np.testing.assert_array_equal(fields.pop("intrinsics"), result.camera.intrinsics)
    np.testing.assert_array_equal(fields.pop("extrinsics"), result.camera.extrinsics)
    assert json.loads(str(fields.pop("mlx_depth"))) == result.sidecar()
    assert {name: value.tolist() for name, value in fields.items()} == {
        "kind": "metric",
        "unit": "m",
        "model": "depth-anything-v2-small",
        "image_size": [5, 7],
        "input_size": [14, 28],
        "focal_length_px": 1234.5,
        "max_depth": 20.0,
        "revision": "abc123",
        "dtype": "bfloat16",
        "license": "Apache-2.0",
        "source": "Fotos/Käse 日本.jpg",
    }


def test_npz_leaves_out_what_is_not_set(tmp_path):
    with np.load(make().save(tmp_path / "depth.npz"), allow_pickle=False) as file:
        assert sorted(file) == sorted(
            ["depth", "dtype", "image_size", "input_size", "kind", "mlx_depth", "model", "unit"]
        )


def test_exr_without_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(SaveError, match=r"^OpenEXR is missing, .* pip install 'mlx-depth\[exr\]'\.$"):
        make().save(tmp_path / "depth.exr")
    assert list(tmp_path.iterdir()) == []


# Confidence, sky, mask and normals


@pytest.mark.parametrize("name", ["confidence", "sky"])
def test_maps_have_files_of_their_own(name, tmp_path):
    path = full().save(tmp_path / "map.npy", format=name)
    back = np.load(path, allow_pickle=False)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, getattr(full(), name))


def test_exr_holds_the_maps_beside_the_depth(tmp_path):
    with OpenEXR.File(str(full().save(tmp_path / "depth.exr"))) as file:
        channels = {name: channel.pixels.copy() for name, channel in file.channels().items()}
    assert sorted(channels) == ["N.X", "N.Y", "N.Z", "Z", "confidence", "mask", "sky"]
    for name, field in (("Z", "depth"), ("confidence", "confidence"), ("sky", "sky"), ("mask", "mask")):
        np.testing.assert_array_equal(channels[name], getattr(full(), field))
    # Up and towards the viewer, as compositing programs have it; a zero is no minus zero.
    normals = np.stack([channels[f"N.{axis}"] for axis in "XYZ"], axis=-1)
    np.testing.assert_array_equal(normals, full().normals * [1, -1, -1])
    assert not np.signbit(normals).any()


def test_mask_file(tmp_path):
    pixels = read_pixels(full().save(tmp_path / "mask.png", format="mask"))
    np.testing.assert_array_equal(pixels, np.where(full().mask, 255, 0))


def test_normals_file(tmp_path):
    pixels = read_pixels(full().save(tmp_path / "normals.png", format="normals"))
    assert pixels[0, 0].tolist() == [127, 127, 127]
    assert pixels[1, 1].tolist() == [204, 127, 229]  # to the right and towards the viewer: 0.8 and 0.9 of 255, cut


def test_normals_of_the_six_directions():
    six = np.array([[[1, 0, 0], [-1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1]]], np.float32)
    colors = make(np.ones((1, 6)), METRIC, normals=six).normals_picture()[0]  # right, left, up, down, towards, away
    names = [[255, 127, 127], [0, 127, 127], [127, 255, 127], [127, 0, 127], [127, 127, 255], [127, 127, 0]]
    assert colors.tolist() == names


def test_mesh_file(tmp_path):
    trimesh = require("scene", "trimesh")
    path = full().save(tmp_path / "x.glb")
    mesh = trimesh.load(path, process=False).geometry["view"]
    points = full().points.reshape(-1, 3)[1:]  # the first pixel has none
    np.testing.assert_allclose(np.asarray(mesh.vertices), points * [1, -1, -1], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(mesh.vertex_normals), [[0.6, 0, 0.8]] * 34, atol=1e-6)
    assert len(mesh.faces) == 2 * 4 * 6 - 1
    np.testing.assert_allclose(mesh.visual.uv[0], [1.5 / 7, 1 - 0.5 / 5], atol=1e-6)  # in trimesh v runs up
    assert mesh.visual.material.baseColorTexture.size == (7, 5)


def test_mesh_leaves_the_sky_out(tmp_path):
    trimesh = require("scene", "trimesh")
    sky = np.zeros(SIZE, np.float32)
    sky[:2] = 0.5
    path = dataclasses.replace(full(), sky=sky).save(tmp_path / "x.glb")
    assert len(trimesh.load(path, process=False).geometry["view"].vertices) == 3 * 7


def test_mesh_without_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(SaveError, match=r"^trimesh is missing, .* pip install 'mlx-depth\[scene\]'\.$"):
        full().save(tmp_path / "x.glb")
    assert list(tmp_path.iterdir()) == []


def test_exr_of_depth_alone_has_one_channel(tmp_path):
    with OpenEXR.File(str(make().save(tmp_path / "depth.exr"))) as file:
        assert list(file.channels()) == ["Z"]


def test_sidecar_tells_a_map_without_finite_values_from_none():
    described = make([[1, 2]], sky=np.full((1, 2), np.nan, np.float32)).sidecar()
    assert (described["confidence"], described["sky"]) == (None, {"min": None, "max": None})


# File objects


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_object_gets_what_a_file_gets(name, tmp_path):
    stream = io.BytesIO()
    assert full().save(stream, format=name) is None
    path = full().save(tmp_path / f"depth{FORMATS[name][0]}", format=name)
    if name == "npz":  # a zip knows when it was made
        with np.load(path) as wanted, np.load(io.BytesIO(stream.getvalue())) as got:
            assert sorted(got) == sorted(wanted)
            np.testing.assert_array_equal(got["depth"], wanted["depth"])
    else:
        assert stream.getvalue() == path.read_bytes()


def test_the_name_of_a_file_object_chooses(tmp_path):
    for suffix, magic in ((".jpg", b"\xff\xd8"), (".png", b"\x89PNG"), (".npy", b"\x93NUMPY")):
        with (tmp_path / f"depth{suffix}").open("wb") as file:
            make().save(file)
        assert (tmp_path / f"depth{suffix}").read_bytes().startswith(magic)
    with (tmp_path / "depth.jpg").open("wb") as file:
        make().save(file, format="color")
    assert (tmp_path / "depth.jpg").read_bytes().startswith(b"\xff\xd8")


def test_file_objects_that_cannot_be_written(tmp_path):
    with pytest.raises(OptionError, match="a file object has no suffix: give format=, one of npy, npz"):
        make().save(io.BytesIO())
    with pytest.raises(OptionError, match="no format 'png': "):
        make().save(io.BytesIO(), format="png")
    for wrong in (io.StringIO(), 3):
        with pytest.raises(SaveError, match=f"a {type(wrong).__name__} takes no bytes: give a path"):
            make().save(wrong, format="npy")
    closed = io.BytesIO()
    closed.close()
    with pytest.raises(SaveError, match=r"cannot be written \(I/O operation on closed file.*\): open it with 'wb'"):
        make().save(closed, format="npy")
    (tmp_path / "a.npy").touch()
    with (tmp_path / "a.npy").open("rb") as reading, pytest.raises(SaveError, match="open it with 'wb'"):
        make().save(reading)


# The 16-bit PNG


@given(any_depth, st.sampled_from([INVERSE, RELATIVE]))
def test_png16_gives_relative_depth_back_to_half_a_level(depth, kind):
    result = make(depth, kind)
    values = levels(result)
    scale, offset = scale_of(result)
    known = np.isfinite(depth)
    np.testing.assert_array_equal(values > 0, known)
    error = np.abs(values[known] * scale + offset - depth[known].astype(np.float64))
    assert (error <= 0.501 * scale).all()
    if scale:
        assert {values[known].min(), values[known].max()} == {1, 65535}


@given(any_depth, st.sampled_from([None, 20.0, 65.535, 65.536, 80.0]))
def test_png16_gives_metres_back_to_half_a_level_or_saturates(depth, max_depth):
    result = make(depth, METRIC, max_depth=max_depth)
    values = levels(result)
    scale, offset = scale_of(result)
    assert (scale, offset) == (1 / 1000 if max_depth in (20.0, 65.535) else 1 / 256, 0)
    known = np.isfinite(depth) & (depth > 0)
    np.testing.assert_array_equal(values > 0, known)
    expected = np.clip(depth[known].astype(np.float64), scale, 65535 * scale)
    np.testing.assert_allclose(values[known] * scale, expected, rtol=0, atol=0.5000001 * scale)


def test_png16_levels():
    metres = [[0, 0.0001, 1.5, 65.535, 70, 300, np.inf, np.nan, -1]]
    np.testing.assert_array_equal(
        levels(make(metres, METRIC, max_depth=20)), [[0, 1, 1500, 65535, 65535, 65535, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        levels(make(metres, METRIC, max_depth=80)), [[0, 1, 384, 16777, 17920, 65535, 0, 0, 0]]
    )
    np.testing.assert_array_equal(levels(make([[0, 1, 2, np.nan, np.inf]])), [[1, 32768, 65535, 0, 0]])


def test_png16_of_constant_depth_is_exact():
    assert scale_of(make([[7, 7, np.nan]])) == (0, 7)
    np.testing.assert_array_equal(levels(make([[7, 7, np.nan]])), [[1, 1, 0]])
    assert scale_of(make([[np.nan]])) == (0, 0)
    np.testing.assert_array_equal(levels(make([[np.nan]])), [[0]])


@pytest.mark.parametrize("kind", DepthKind)
def test_png16_file(kind, tmp_path):
    cv2 = require("reference", "cv2")
    result = make(np.abs(seeded("png16", (31, 45))) * 9, kind)
    path = result.save(tmp_path / "depth.png")
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert (stored.dtype, stored.shape) == (np.uint16, (31, 45))
    np.testing.assert_array_equal(stored, levels(result))
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), stored)
        rule = json.loads(image.text["mlx_depth"])["png16"]
    assert rule["no_data"] == 0
    error = np.abs(stored * rule["scale"] + rule["offset"] - result.depth)
    assert error[stored > 0].max() <= 0.501 * rule["scale"]


# Pictures


def test_color_png(tmp_path):
    result = make()
    path = result.save(tmp_path / "depth.png", format="color", cmap="magma")
    np.testing.assert_array_equal(read_pixels(path), result.colorize("magma"))


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_color_jpeg(suffix, tmp_path):
    result = make(np.linspace(0, 1, 64 * 48).reshape(48, 64))
    path = result.save(tmp_path / f"depth{suffix}")
    with Image.open(path) as image:
        assert image.format == "JPEG"
        assert np.abs(np.asarray(image).astype(int) - result.colorize()).mean() < 2


def test_gray_is_white_where_near(tmp_path):
    path = make([[1, 2, 3]], METRIC).save(tmp_path / "depth.png", format="gray")
    np.testing.assert_array_equal(read_pixels(path), [[255, 127, 0]])


def test_side_by_side_file(tmp_path):
    path = full().save(tmp_path / "depth.png", format="side-by-side", cmap="turbo")
    np.testing.assert_array_equal(read_pixels(path), full().side_by_side("turbo"))


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("mask", "normals", "mesh")])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, 3.0])
@pytest.mark.parametrize("kind", DepthKind)
def test_every_format_takes_odd_depth(name, value, kind, tmp_path):
    depth = np.full((2, 3), value, np.float32)
    result = make(depth, kind, image=PHOTO[:2, :3], confidence=depth, sky=depth)
    path = result.save(tmp_path / f"depth{FORMATS[name][0]}", format=name)
    if name in [*FLOAT_FORMATS, "confidence", "sky"]:
        np.testing.assert_array_equal(read_depth(path), depth)
    elif name == "json":
        assert json.loads(path.read_text())["min"] == (value if np.isfinite(value) else None)
    else:
        assert read_pixels(path).shape[0] == 2


# The sidecar


def test_sidecar_says_everything():
    low, high = full().depth_range
    described = full().sidecar()
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", described.pop("mlx_depth"))
    assert described == {
        "kind": "metric",
        "unit": "m",
        "larger_is": "farther",
        "min": low,
        "max": high,
        "max_depth": 20.0,
        "png16": {"scale": 0.001, "offset": 0.0, "no_data": 0},
        "confidence": {"min": float(full().confidence.min()), "max": float(full().confidence.max())},
        "sky": {"min": 0.0, "max": 0.0},
        "mask": {"valid": 34 / 35},
        "normals": {"axes": "x right, y down, z forward"},
        "size": [5, 7],
        "input_size": [14, 28],
        "focal_length_px": 1234.5,
        "camera": {
            "intrinsics": [[2, 0, 3], [0, 2, 2], [0, 0, 1]],
            "extrinsics": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]],
        },
        "model": "depth-anything-v2-small",
        "revision": "abc123",
        "dtype": "bfloat16",
        "license": "Apache-2.0",
        "image": "Fotos/Käse 日本.jpg",
    }


def test_sidecar_of_a_bare_result():
    described = make([[np.nan, 2], [6, np.inf]]).sidecar()
    assert (described["kind"], described["unit"], described["larger_is"]) == ("relative_inverse", "", "nearer")
    assert (described["min"], described["max"]) == (2, 6)
    assert [described[name] for name in ("camera", "focal_length_px", "revision", "image")] == [None] * 4


def test_sidecar_takes_numpy_numbers():
    result = make(
        [[1, 2]], METRIC, image_size=tuple(np.array([1, 2])), focal_length_px=np.float32(5), max_depth=np.float32(9)
    )
    described = json.loads(json.dumps(result.sidecar()))
    assert (described["size"], described["focal_length_px"], described["max_depth"]) == ([1, 2], 5, 9)


def embedded(path: Path) -> str:
    """The text that a file carries, by a reader that is not ours."""
    if path.suffix == ".tiff":
        with tifffile.TiffFile(path) as file:
            return file.pages[0].description
    if path.suffix == ".exr":
        with OpenEXR.File(str(path), header_only=True) as file:
            return file.header()["mlx_depth"]
    if path.suffix == ".json":
        return path.read_text()
    if path.suffix == ".glb":
        length = int.from_bytes(path.read_bytes()[12:16], "little")
        return json.dumps(json.loads(path.read_bytes()[20 : 20 + length])["asset"]["extras"]["mlx_depth"])
    with Image.open(path) as image:
        return image.text["mlx_depth"] if image.format == "PNG" else image.info["comment"].decode()


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        (name, suffix)
        for name in FORMATS
        if name not in ("npy", "npz", "pfm", "confidence", "sky")
        for suffix in FORMATS[name][:2]
    ],
)
def test_files_carry_the_sidecar(name, suffix, tmp_path):
    path = full().save(tmp_path / f"depth{suffix}", format=name)
    text = embedded(path if suffix != ".tif" else path.rename(path.with_suffix(".tiff")))
    assert text.isascii()
    assert json.loads(text) == full().sidecar()


# Which format


@pytest.mark.parametrize(
    ("suffix", "magic"),
    [
        (".npy", b"\x93NUMPY"),
        (".npz", b"PK"),
        (".png", b"\x89PNG"),
        (".PNG", b"\x89PNG"),
        (".jpg", b"\xff\xd8"),
        (".jpeg", b"\xff\xd8"),
        (".tif", b"II*\0"),
        (".tiff", b"II*\0"),
        (".pfm", b"Pf\n"),
        (".exr", b"\x76\x2f\x31\x01"),
        (".json", b"{"),
    ],
)
def test_the_suffix_chooses(suffix, magic, tmp_path):
    assert make().save(tmp_path / f"depth{suffix}").read_bytes().startswith(magic)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("d.bmp", {}, "no format has the suffix '.bmp' of 'd.bmp': choose one of .exr .glb .jpeg .jpg .json"),
        ("d", {}, "no format has the suffix '' of 'd'"),
        ("d.png", {"format": "png 16"}, "no format 'png 16': did you mean 'png16'? Choose one of npy, npz"),
        ("d.jpg", {"format": "png16"}, "png16 does not go into 'd.jpg': give a name that ends with .png."),
        ("d.npy", {"format": "color"}, "color does not go into 'd.npy': give a name that ends with .png or .jpg"),
        ("d.jpg", {"cmap": "virids"}, "no color map 'virids': did you mean 'viridis'?"),
        ("d.png", {"format": "side-by-side"}, "side-by-side needs the photo"),
        ("d.npy", {"format": "confidence"}, "this result has no confidence, which its model does not compute: leave"),
        ("d.npy", {"format": "sky"}, "this result has no sky"),
        ("d.png", {"format": "mask"}, "this result has no mask, which its model does not compute: leave mask out."),
        ("d.png", {"format": "normals"}, "this result has no normals, which its model does not compute: leave"),
        ("d.glb", {}, "a mesh needs the photo, which this result does not hold"),
        ("d.png", {"format": "sky"}, "sky does not go into 'd.png': give a name that ends with .npy."),
    ],
)
def test_wrong_options_touch_nothing(name, options, message, tmp_path):
    with pytest.raises(OptionError, match=re.escape(message)):
        make().save(tmp_path / "new" / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_home_is_expanded_and_folders_are_made(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make().save("~/new/folder/depth.npy") == tmp_path / "new" / "folder" / "depth.npy"
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "folder" / "depth.npy"), make().depth)


# Whole or not at all


def test_nothing_is_overwritten_unasked(tmp_path):
    path = make([[1, 2]]).save(tmp_path / "depth.npy")
    with pytest.raises(SaveError, match=re.escape(f"{path} exists: pass overwrite=True (--overwrite on")):
        make([[3, 4]]).save(path)
    np.testing.assert_array_equal(np.load(path), [[1, 2]])
    make([[3, 4]]).save(path, overwrite=True)
    np.testing.assert_array_equal(np.load(path), [[3, 4]])
    assert list(tmp_path.iterdir()) == [path]


def test_a_dangling_link_counts_as_existing(tmp_path):
    (tmp_path / "depth.npy").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SaveError, match="exists"):
        make().save(tmp_path / "depth.npy")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("failure", [RuntimeError("broken"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(failure, overwrite, tmp_path):
    path = tmp_path / "depth.npy"
    if overwrite:
        path.write_bytes(b"old")

    def write(stream):
        stream.write(b"half of it")
        raise failure

    with pytest.raises(type(failure)):
        atomic_write(path, write, overwrite=overwrite)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == ({"depth.npy": b"old"} if overwrite else {})


def test_a_full_disk_is_a_save_error(tmp_path):
    def write(stream):
        stream.write(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(SaveError, match=r"cannot write .*: No space left on device\. Check the folder"):
        atomic_write(tmp_path / "depth.npy", write)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "reason"), [("file/depth.npy", "File exists"), ("folder.npy", "Is a directory")])
def test_a_path_that_cannot_be(name, reason, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(SaveError, match=f"cannot write .*: {reason}"):
        make().save(tmp_path / name, overwrite=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.npy"]


def test_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    path = make().save(tmp_path / "depth.npy")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def no_hard_links(*_):
    raise OSError(95, "Operation not supported")


@pytest.mark.parametrize("hard_links", [True, False])
def test_of_several_writers_one_wins(hard_links, tmp_path, monkeypatch):
    if not hard_links:
        monkeypatch.setattr(os, "link", no_hard_links)
    path, writers = tmp_path / "depth.bin", 6
    all_writing = threading.Barrier(writers)

    def attempt(number: int) -> bool:
        def write(stream):
            stream.write(bytes([number]) * 100_000)
            all_writing.wait(30)  # past the check that the file does not exist

        try:
            atomic_write(path, write)
        except SaveError:
            return False
        return True

    with ThreadPoolExecutor(writers) as pool:
        won = list(pool.map(attempt, range(writers)))
    assert won.count(True) == 1
    assert path.read_bytes() == bytes([won.index(True)]) * 100_000
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_processes(overwrite, tmp_path):
    code = (
        "import sys\n"
        "from mlx_depth.io.atomic import atomic_write\n"
        "path, letter, overwrite = sys.argv[1], sys.argv[2], sys.argv[3] == 'True'\n"
        "def write(stream):\n"
        "    stream.write(letter.encode() * 100_000)\n"
        "    print('writing', flush=True)\n"
        "    sys.stdin.readline()\n"
        "atomic_write(path, write, overwrite=overwrite)\n"
    )
    path = tmp_path / "depth.bin"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path), letter, str(overwrite)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for letter in "ab"
    ]
    for process in processes:
        assert process.stdout.readline() == "writing\n"
    assert not path.exists()
    errors = [process.communicate("go\n", timeout=60)[1] for process in processes]
    # Each is released after the one before has ended, so the first wins, or the last replaces it.
    assert [process.returncode for process in processes] == ([0, 0] if overwrite else [0, 1])
    assert path.read_bytes() == (b"b" if overwrite else b"a") * 100_000
    assert ("SaveError" in errors[1]) is not overwrite
    assert list(tmp_path.iterdir()) == [path]
