"""The verb cloud, as its user meets it."""

import json
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import toy
from PIL import Image
from support import require, seeded

import mlx_depth
from mlx_depth import cli
from mlx_depth.cli import cloud as verb
from mlx_depth.models.families import FAMILIES
from mlx_depth.registry import ModelSpec

PHOTO = Path(mlx_depth.__file__).parents[1] / "examples/summer_palace.jpg"
DEMO = ("--model", "mlx-depth-demo", "--input-size", "140")
ALL = ("--edge-threshold", "off", "--max-points", "off")
ASSUMED = (
    "the photo does not tell its focal length, a horizontal field of view of 60 degrees is assumed: "
    "--fov, --focal-length or --intrinsics say better"
)


def main(*arguments: str | Path) -> int:
    return cli.main([str(argument) for argument in arguments])


def points(ply: Path) -> np.ndarray:
    """(N, 3)."""
    data = ply.read_bytes()
    record = [("xyz", "<f4", 3), ("rgb", "u1", 3)]
    return np.frombuffer(data[data.index(b"end_header\n") + 11 :], record)["xyz"]


@pytest.fixture(scope="module")
def result() -> mlx_depth.DepthResult:
    return mlx_depth.load("mlx-depth-demo").predict(PHOTO, input_size=140)


def test_inverse_depth_says_what_it_assumes(tmp_path: Path, capsys, result) -> None:
    assert main("cloud", PHOTO, "-o", tmp_path / "x.ply", *DEMO, *ALL) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'x.ply'}\n"
    assert printed.err.splitlines() == [
        "relative depth (unitless, larger = farther), license Apache-2.0",
        ASSUMED,
        "scale and shift of this model's depth are unknown, so the nearest point is put at 1 and the farthest at 10, "
        "without a unit, and shapes are only roughly right: --known x,y,metres, twice or more, gives metres",
    ]
    found = points(tmp_path / "x.ply")
    assert len(found) == 427 * 640
    assert (found[:, 2].min(), found[:, 2].max()) == pytest.approx((1, 10), rel=1e-5)
    np.testing.assert_allclose(
        found, mlx_depth.to_scene(result).points(edge_threshold=None)[0], rtol=1e-5
    )  # in Python alike
    # The left and the right edge of the photo are 60 degrees apart, from half a pixel outside the outer centers.
    across = found[:, 0] / found[:, 2]
    assert np.degrees(np.arctan([across.min(), across.max()])) == pytest.approx([-30, 30], abs=0.1)


def test_near_and_far(tmp_path: Path, capsys) -> None:
    options = ("--near", "2", "--far", "50", "--fov", "90")
    assert main("cloud", PHOTO, "-o", tmp_path / "x.ply", *DEMO, *ALL, *options) == 0
    found = points(tmp_path / "x.ply")
    assert (found[:, 2].min(), found[:, 2].max()) == pytest.approx((2, 50), rel=1e-5)
    assert np.abs(found[:, 0] / found[:, 2]).max() == pytest.approx(639 / 640, rel=1e-5)
    said = capsys.readouterr().err
    assert ASSUMED not in said
    assert "is put at 2 and the farthest at 50, without a unit" in said


def test_known_points_give_metres(tmp_path: Path, capsys, result) -> None:
    known = [(320, 400, 5.0), (320, 100, 80.0), (100, 420, 4.0)]
    options = [part for point in known for part in ("--known", ",".join(map(str, point)))]
    assert main("cloud", PHOTO, "-o", tmp_path / "x.npz", *DEMO, *options) == 0
    assert capsys.readouterr().err.splitlines() == [
        "metric depth (metres, larger = farther), license Apache-2.0",
        ASSUMED,
    ]
    with np.load(tmp_path / "x.npz") as arrays:
        assert str(arrays["unit"]) == "m"
        np.testing.assert_allclose(arrays["depth"][0], result.fit_metric(known).depth, rtol=1e-5)


@pytest.fixture
def metric(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of metres with a camera of its own is loaded, whatever is asked for."""
    monkeypatch.setitem(FAMILIES, "toy", toy.TOY)
    config = toy.ToyConfig(8)
    network = toy.Toy(config)
    spec = ModelSpec("toy", "toy", config, toy.TOY.processor, "MIT")
    model = mlx_depth.DepthModel(spec, network, spec.processor, mx.float32)
    monkeypatch.setattr(verb, "load", lambda *_, **__: model)


def photo(path: Path) -> Path:
    pixels = np.clip(seeded("photo", (48, 80, 3), 60) + 128, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_metres_and_a_camera_of_the_models_own(metric, tmp_path: Path, capsys) -> None:
    assert main("cloud", photo(tmp_path / "a.png"), "-o", tmp_path / "x.npz", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["unit"], facts["camera_from"], facts["views"], facts["model"]) == ("m", "model", 1, "toy")
    assert facts["intrinsics"][0] == [80, 0, 40]
    assert facts["files"] == {"npz": str(tmp_path / "x.npz")}
    assert main("cloud", tmp_path / "a.png", "-o", tmp_path / "y.npz", "--intrinsics", "50,60,30,20") == 0
    assert capsys.readouterr().err == "metric depth (metres, larger = farther), license MIT\n"
    with np.load(tmp_path / "y.npz") as arrays:
        assert arrays["intrinsics"][0].tolist() == [[50, 0, 30], [0, 60, 20], [0, 0, 1]]
    assert main("cloud", tmp_path / "a.png", "-o", tmp_path / "z.npz", "--near", "1") == 2
    assert "near and far are for relative inverse depth, and this is metric" in capsys.readouterr().err


def test_metres_that_need_a_focal_length(tmp_path: Path, capsys) -> None:
    require("reference", "torch")
    import reference_da3

    folder = reference_da3.save(reference_da3.METRIC, tmp_path / "metric")
    picture = photo(tmp_path / "a.png")
    options = ("--model", folder, "--input-size", "70")
    assert main("cloud", picture, "-o", tmp_path / "a.ply", *options) == 2
    assert "metres need the focal length, which the photo does not tell" in capsys.readouterr().err
    depths = []
    for name, camera in (("b", ("--focal-length", "100")), ("c", ("--intrinsics", "200,200,39.5,23.5"))):
        assert main("cloud", picture, "-o", tmp_path / f"{name}.npz", *options, *camera) == 0
        with np.load(tmp_path / f"{name}.npz") as arrays:
            depths.append(arrays["depth"])
            assert str(arrays["unit"]) == "m"
    np.testing.assert_allclose(depths[1], 2 * depths[0], rtol=1e-5)  # metres grow with the focal length


def test_glb_is_a_surface_or_points(tmp_path: Path) -> None:
    trimesh = require("scene", "trimesh")
    assert main("cloud", PHOTO, "-o", tmp_path / "a.glb", *DEMO, "--quiet", "--max-points", "20000") == 0
    (mesh,) = trimesh.load(tmp_path / "a.glb").geometry.values()
    assert isinstance(mesh, trimesh.Trimesh)
    assert 10_000 < len(mesh.vertices) <= 20_000
    assert main("cloud", PHOTO, "-o", tmp_path / "b.glb", *DEMO, "--quiet", "--points", "--max-points", "500") == 0
    clouds = [
        part for part in trimesh.load(tmp_path / "b.glb").geometry.values() if isinstance(part, trimesh.PointCloud)
    ]
    assert [len(cloud.vertices) for cloud in clouds] == [500]


def test_a_page(tmp_path: Path) -> None:
    assert main("cloud", PHOTO, "-o", tmp_path / "palace.html", *DEMO, "--quiet", "--max-points", "1000") == 0
    page = (tmp_path / "palace.html").read_text()
    assert "<title>palace" in page
    assert json.loads(re.search('id="scene">(.*?)</script>', page)[1])["count"] == 1000


def test_exif_tells_the_camera(tmp_path: Path, capsys) -> None:
    picture = Image.open(PHOTO)
    exif = picture.getexif()
    exif.get_ifd(0x8769)[0xA405] = 50  # FocalLengthIn35mmFilm
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert main("cloud", tmp_path / "a.jpg", "-o", tmp_path / "x.npz", *DEMO, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["camera_from"] == "exif"
    assert facts["intrinsics"][0][0] == pytest.approx(50 * np.hypot(640, 427) / np.hypot(36, 24))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("x.obj", (), "no format has the suffix '.obj' of 'x.obj': choose one of .glb .html .npz .ply."),
        ("x.ply", ("--points",), "--points is for .glb, and x.ply holds points anyway: leave it out."),
        ("x.ply", ("--known", "1,2,3"), "one known point tells no scale and shift: give --known twice or more."),
        ("x.ply", ("--known", "1,2,3", "--known", "1,9,4", "--near", "1"), "known points tell the distances: leave"),
        ("x.ply", ("--known", "1,2,3", "--known", "900,9,4"), "outside the image of 640 columns and 427 rows"),
        ("x.ply", ("--near", "20"), "near 20.0 and far 10.0 are no two depths: give finite numbers, 0 < near < far."),
        ("x.ply", ("--fov", "200"), "fov 200.0 is no field of view: give degrees between 0 and 180."),
        ("x.ply", ("--focal-length", "nan"), "focal_length_px nan is not a finite number above 0"),
        ("x.ply", ("--min-confidence", "1"), "this scene has no confidence, which its model does not compute"),
    ],
)
def test_what_cannot_be_done_is_an_error(name, options, message, tmp_path: Path, capsys) -> None:
    assert main("cloud", PHOTO, "-o", tmp_path / name, *DEMO, *options) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_options_that_cannot_be_read(tmp_path: Path, capsys) -> None:
    for options, message in (
        (("--intrinsics", "1,2,3"), "'1,2,3' is not fx,fy,cx,cy: write 4 numbers with commas between"),
        (("--known", "a"), "'a' is not x,y,metres: write 3 numbers with commas between"),
        (("--sky", "no"), "'no' is no number: write one, or off"),
        (("--fov", "60", "--focal-length", "9"), "not allowed with argument --fov"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main("cloud", PHOTO, "-o", tmp_path / "x.ply", *options)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_a_file_that_exists(tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "x.ply").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(verb, "load", lambda *_, **__: pytest.fail("the model was opened"))
        assert main("cloud", PHOTO, "-o", tmp_path / "x.ply", *DEMO) == 2
    assert "exists: --overwrite replaces it." in capsys.readouterr().err
    assert (tmp_path / "x.ply").read_text() == "mine"
    assert main("cloud", PHOTO, "-o", tmp_path / "x.ply", *DEMO, "--overwrite", "--quiet") == 0
    assert len(points(tmp_path / "x.ply")) > 1000


def test_settings_of_predict_take_a_focal_length(tmp_path: Path) -> None:
    """``predict --focal-length`` reaches the sidecar, and counts as a setting only where it is asked for."""
    picture = photo(tmp_path / "a.png")
    assert main("predict", picture, "-o", tmp_path / "out", *DEMO, "--format", "npy", "--focal-length", "321") == 0
    facts = json.loads((tmp_path / "out/a.json").read_text())
    assert facts["focal_length_px"] == 321
    assert facts["settings"]["focal_length_px"] == 321
    assert main("predict", picture, "-o", tmp_path / "plain", *DEMO, "--format", "npy") == 0
    assert "focal_length_px" not in json.loads((tmp_path / "plain/a.json").read_text())["settings"]
