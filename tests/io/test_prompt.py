"""Depth prompts: units, holes, and what is refused."""

import warnings
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from support import require, seeded

from mlx_depth import DepthKind, DepthResult, ImageError, ImageInfo, OptionError
from mlx_depth.io.prompt import check_same_field, load_prompt, prompts_of

METRES = np.abs(seeded("prompt", (6, 8))) + 0.5
MILLIMETRES = np.rint(METRES * 1000).astype(np.uint16)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_whole_numbers_are_millimetres_and_floats_metres(tmp_path: Path) -> None:
    Image.fromarray(MILLIMETRES).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", METRES)
    for source in (MILLIMETRES, MILLIMETRES.astype(np.int32), Image.fromarray(MILLIMETRES), tmp_path / "a.png"):
        found = load_prompt(source)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, METRES, atol=0.0005)
    for exact in (METRES, METRES.astype(np.float64), mx.array(METRES), str(tmp_path / "a.npy")):
        np.testing.assert_array_equal(load_prompt(exact), METRES)
    assert np.abs(load_prompt(mx.array(METRES).astype(mx.bfloat16)) - METRES).max() < 0.02


def test_the_unit_that_is_named_counts(tmp_path: Path) -> None:
    np.testing.assert_allclose(load_prompt(METRES * 1000, unit="mm"), METRES, rtol=1e-6)
    np.testing.assert_array_equal(load_prompt(MILLIMETRES, unit="m"), MILLIMETRES)
    ours = DepthResult(METRES, DepthKind.METRIC, image_size=(6, 8), input_size=(14, 14), model="m", dtype="float32")
    file = ours.save(tmp_path / "ours.png")  # 1/256 m a level
    np.testing.assert_allclose(load_prompt(file), METRES, atol=1 / 512)
    np.testing.assert_allclose(load_prompt(file, unit="mm"), METRES * 0.256, atol=0.0005)


def test_holes_take_the_nearest_distance() -> None:
    """The same as a search through all pixels, where only one is nearest."""
    ndimage = require("reference", "scipy.ndimage")
    known = seeded("known", (40, 30)) > 1.2
    known[:7] = False  # rows and columns without any
    known[:, -5:] = False
    holes = np.abs(seeded("values", (40, 30))) + 0.1
    holes[~known] = np.resize([0, np.nan, np.inf, -np.inf], (~known).sum())
    with pytest.warns(UserWarning, match=rf"<array>: {(~known).sum():,} of 1,200 values .* take the nearest"):
        filled = load_prompt(holes)
    steps = ndimage.distance_transform_cdt(~known, metric="taxicab")
    rows, columns = np.nonzero(known)
    for y, x in np.ndindex(known.shape):
        nearest = holes[rows, columns][np.abs(rows - y) + np.abs(columns - x) == steps[y, x]]
        assert filled[y, x] in nearest.astype(np.float32)
    np.testing.assert_array_equal(filled[known], holes[known].astype(np.float32))


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (np.full((4, 4), 1500, np.uint16), r"<array> is 1\.5 m everywhere: a prompt needs two different distances"),
        (np.array([[0, 2.0], [np.nan, 2]]), r"is 2 m everywhere"),
        (np.zeros((4, 4)), r"holds no distance, all of it is 0 or not finite: leave the prompt out"),
        (np.full((4, 4), np.nan), r"holds no distance"),
        (np.array([[-1.0, 2.0]]), r"holds negative distances, down to -1 m"),
        (METRES[None], r"is float32 of shape \(1, 6, 8\), no depth prompt: give numbers \(h, w\)"),
        (METRES[..., None], r"shape \(6, 8, 1\)"),
        (METRES[0], r"shape \(8,\)"),
        (METRES[:0], r"shape \(0, 8\)"),
        (METRES > 1, r"is bool of shape"),
        (METRES.astype(np.complex64), r"is complex64 of shape"),
        (MILLIMETRES.astype(np.uint8), r"has 8 bits, too few for distances"),
        (Image.new("RGB", (4, 4)), r"<PIL image> is uint8 of shape \(4, 4, 3\)"),
        (b"bytes", r"a bytes is no depth prompt: give a path, an array \(h, w\) or a PIL image"),
        (None, r"a NoneType is no depth prompt"),
    ],
)
def test_what_is_no_prompt(prompt: object, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        load_prompt(prompt)  # type: ignore[arg-type]


def test_an_unknown_unit() -> None:
    with pytest.raises(OptionError, match="no prompt_unit 'cm': choose one of m, mm"):
        load_prompt(METRES, unit="cm")  # type: ignore[arg-type]


def test_a_turned_prompt_is_found() -> None:
    lidar = np.ones((192, 256), np.float32)
    check_same_field(lidar, ImageInfo("a.jpg", (1440, 1920)))
    check_same_field(lidar, ImageInfo("a.jpg", (427, 640)))
    for size in ((1920, 1440), (1080, 1920)):
        message = rf"a\.jpg has {size[0]}×{size[1]} pixels and its depth prompt 192×256 .* turn or crop the prompt"
        with pytest.raises(ImageError, match=message):
            check_same_field(lidar, ImageInfo("a.jpg", size))


def test_prompts_in_a_folder(tmp_path: Path) -> None:
    for name in ("a.png", "b.npy", "b.json", "Ä.png"):
        (tmp_path / name).touch()
    assert prompts_of(["photos/b.jpg", Path("A.JPG")], tmp_path) == [str(tmp_path / "b.npy"), str(tmp_path / "a.png")]
    (tmp_path / "a.npy").touch()
    with pytest.raises(
        OptionError, match=r"a\.jpg needs one prompt in .*, a depth file of its name, and there is a\.npy, a\.png"
    ):
        prompts_of(["a.jpg"], tmp_path)
    with pytest.raises(
        OptionError, match=r"c\.jpg needs one prompt .* there is none: name the prompts like the photos"
    ):
        prompts_of(["c.jpg"], tmp_path)
    for image in (METRES, "https://example.org/b.jpg"):
        with pytest.raises(OptionError, match="go to image files of the same names: give a list"):
            prompts_of([image], tmp_path)
    with pytest.raises(OptionError, match=r"nowhere cannot be read \(No such file"):
        prompts_of(["b.jpg"], tmp_path / "nowhere")
