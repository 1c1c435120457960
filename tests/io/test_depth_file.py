"""Maps of distances from files: those of sensors, and those that this library writes."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import require, seeded

from mlx_depth import DepthKind, DepthResult, ImageError
from mlx_depth.io.depth_file import DEPTH_SUFFIXES, read_depth_file

METRES = np.abs(seeded("metres", (5, 7))) + 0.5


def result(kind: DepthKind, max_depth: float | None = None) -> DepthResult:
    return DepthResult(
        METRES, kind, image_size=(5, 7), input_size=(14, 14), model="m", dtype="float32", max_depth=max_depth
    )


@pytest.mark.parametrize("suffix", sorted(DEPTH_SUFFIXES))
def test_what_the_library_writes_comes_back_in_metres(suffix: str, tmp_path: Path) -> None:
    if suffix == ".exr":
        require("exr", "OpenEXR")
    file = result(DepthKind.METRIC, 10.0).save(tmp_path / f"x{suffix}")
    stored = read_depth_file(file)
    metres = stored.values * (1.0 if stored.metres is None else stored.metres)
    np.testing.assert_allclose(metres, METRES, atol=0.0005 if suffix == ".png" else 0)


def test_a_png_says_its_own_scale(tmp_path: Path) -> None:
    """Of unknown range a level is 1/256 m, not a millimetre."""
    stored = read_depth_file(result(DepthKind.METRIC).save(tmp_path / "x.png"))
    assert stored.metres == 1 / 256
    np.testing.assert_allclose(stored.values / 256, METRES, atol=1 / 512)


@pytest.mark.parametrize("suffix", [".png", ".npz", ".tiff", ".exr"])
def test_relative_depth_is_no_map_of_distances(suffix: str, tmp_path: Path) -> None:
    if suffix == ".exr":
        require("exr", "OpenEXR")
    file = result(DepthKind.RELATIVE_INVERSE).save(tmp_path / f"x{suffix}")
    with pytest.raises(ImageError, match=r"x\.\w+: relative inverse depth, which has no unit: give a map of distances"):
        read_depth_file(file)


def test_files_of_others(tmp_path: Path) -> None:
    millimetres = (METRES * 1000).astype(np.uint16)
    for name in ("a.png", "a.tiff"):
        Image.fromarray(millimetres).save(tmp_path / name)
        stored = read_depth_file(tmp_path / name)
        assert np.issubdtype(stored.values.dtype, np.integer)
        assert stored.metres is None
        np.testing.assert_array_equal(stored.values, millimetres)
    np.savez(tmp_path / "one.npz", METRES)
    np.testing.assert_array_equal(read_depth_file(tmp_path / "one.npz").values, METRES)
    big_endian = b"Pf\n7 5\n1.0\n" + struct.pack(">35f", *METRES[::-1].ravel())
    (tmp_path / "x.pfm").write_bytes(big_endian)
    np.testing.assert_array_equal(read_depth_file(tmp_path / "x.pfm").values, METRES)


def bad(folder: Path, name: str) -> Path:
    file = folder / name
    if name == "color.png":
        Image.new("RGB", (4, 4)).save(file)
    elif name == "eight.png":
        Image.new("L", (4, 4)).save(file)
    elif name == "several.npz":
        np.savez(file, left=METRES, right=METRES)
    elif name == "objects.npy":
        np.save(file, np.array([{}], object), allow_pickle=True)
    elif name == "color.pfm":
        file.write_bytes(b"PF\n1 1\n-1.0\n" + bytes(12))
    elif name == "negative.pfm":
        file.write_bytes(b"Pf\n-1 1\n-1.0\n" + bytes(12))
    elif name == "short.pfm":
        file.write_bytes(b"Pf\n7 5\n-1.0\n" + bytes(12))
    elif name != "missing.png":
        file.write_bytes(b"nothing of that kind\n")
    return file


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("color.png", r"color\.png: a picture of mode RGB, not of numbers: export the depth as 16-bit gray"),
        ("eight.png", r"eight\.png: a picture of mode L"),
        ("several.npz", r"several\.npz: none of its arrays is called depth \(left, right\)"),
        ("objects.npy", r"objects\.npy cannot be read as depth"),
        ("color.pfm", r"color\.pfm: no gray PFM"),
        ("negative.pfm", r"negative\.pfm: a PFM of -1 × 1 pixels"),
        ("short.pfm", r"short\.pfm cannot be read as depth"),
        ("text.png", r"text\.png cannot be read as depth"),
        ("text.npz", r"text\.npz cannot be read as depth"),
        ("text.npy", r"text\.npy cannot be read as depth"),
        ("text.pfm", r"text\.pfm cannot be read as depth"),
        ("missing.png", r"there is no depth file .*missing\.png: check the path"),
        ("a.jpg", r"a\.jpg is no depth file: give one of \.exr \.npy"),
    ],
)
def test_what_is_no_depth_file(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=reason):
        read_depth_file(bad(tmp_path, name))


def test_a_damaged_exr(tmp_path: Path) -> None:
    require("exr", "OpenEXR")
    with pytest.raises(ImageError, match=r"text\.exr cannot be read as depth"):
        read_depth_file(bad(tmp_path, "text.exr"))
