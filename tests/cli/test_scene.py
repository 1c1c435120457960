"""The verb scene, as its user meets it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import toy_views
from support import require

import mlx_depth
from mlx_depth import cli
from mlx_depth.cli import scene as verb
from mlx_depth.models.families import FAMILIES

TRUTH = toy_views.walk(9)
GROUND = TRUTH.sky == 0
LOOSE = ("--confidence-percentile", "off", "--edge-threshold", "off")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> toy_views.Known:
    """What the command loads, whatever it is asked for."""
    known = toy_views.Known(TRUTH)
    monkeypatch.setitem(FAMILIES, "toy_views", toy_views.FAMILY)
    monkeypatch.setattr(verb, "load", lambda *_, **__: toy_views.model(known))
    return known


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    toy_views.photos(tmp_path / "photos", 9)
    return tmp_path / "photos"


def main(*arguments: str | Path) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_a_folder_becomes_a_scene(network, photos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main("scene", photos, "-o", out, "--format", "ply,npz,colmap", "--viewer") == 0
    printed = capsys.readouterr()
    names = ["scene.ply", "scene.npz", "colmap", "scene.html", "cameras.json"]
    assert printed.out.splitlines() == [str(out / name) for name in names]
    assert printed.err.splitlines() == [
        "9 views of 32×24, relative depth (unitless, larger = farther), license MIT",
        "the points and cameras have no unit, their scale is unknown: "
        "--model depth-anything-3-nested-giant-large gives metres",
    ]
    with np.load(out / "scene.npz") as arrays:
        np.testing.assert_allclose(arrays["depth"][GROUND], network.moves[0].scale * TRUTH.depth[GROUND], rtol=1e-5)
        assert arrays["names"].tolist() == [f"{number:04}.png" for number in range(9)]
    cameras = json.loads((out / "cameras.json").read_text())["cameras"]
    assert [camera["size"] for camera in cameras] == [[24, 32]] * 9


def test_json_is_one_object(network, photos: Path, tmp_path: Path, capsys) -> None:
    assert main("scene", photos, "-o", tmp_path / "out", "--json") == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert printed.err == ""
    assert (facts["views"], facts["kind"], facts["unit"], facts["model"], facts["license"]) == (
        9,
        "relative",
        "",
        "known",
        "MIT",
    )
    assert facts["files"] == {
        "ply": str(tmp_path / "out/scene.ply"),
        "cameras": str(tmp_path / "out/cameras.json"),
    }


def test_quiet_says_nothing(network, photos: Path, tmp_path: Path, capsys) -> None:
    (photos / "notes.md").write_text("no image")
    assert main("scene", photos, "-o", tmp_path / "a", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert main("scene", photos, "-o", tmp_path / "b") == 0
    assert capsys.readouterr().err.startswith("left out: 1 no image (.md)\n")


def points_in(ply: Path) -> int:
    return int(re.search(rb"element vertex (\d+)", ply.read_bytes())[1])


def test_options_choose_the_points(network, photos: Path, tmp_path: Path) -> None:
    counts = {}
    for name, options in {
        "all": (*LOOSE, "--sky", "off"),
        "ground": LOOSE,
        "default": (),
        "sure": (*LOOSE, "--min-confidence", "2.5"),
        "few": (*LOOSE, "--max-points", "100"),
        "voxels": (*LOOSE, "--voxel", "0.5"),
    }.items():
        assert main("scene", photos, "-o", tmp_path / name, "--quiet", *options) == 0
        counts[name] = points_in(tmp_path / name / "scene.ply")
    assert counts["all"] == TRUTH.depth.size
    assert counts["ground"] == GROUND.sum()
    assert counts["default"] < 0.6 * counts["ground"]
    assert counts["sure"] == (GROUND & (TRUTH.confidence >= np.float32(2.5))).sum()
    assert counts["few"] == 100
    assert 10 < counts["voxels"] < counts["ground"] / 2


def test_windows(network, photos: Path, tmp_path: Path) -> None:
    assert main("scene", photos, "-o", tmp_path / "out", "--window", "5", "--overlap", "2", "--format", "npz") == 0
    assert len(network.moves) == 3
    with np.load(tmp_path / "out/scene.npz") as arrays:
        assert np.abs(arrays["depth"] / (network.moves[0].scale * TRUTH.depth) - 1)[GROUND].max() < 1e-3


def test_cameras_of_one_run_are_known_to_the_next(network, photos: Path, tmp_path: Path, capsys) -> None:
    assert main("scene", photos, "-o", tmp_path / "a", "--quiet", "--format", "npz") == 0
    known = tmp_path / "a/cameras.json"
    assert main("scene", photos, "-o", tmp_path / "b", "--cameras", known, "--format", "npz") == 0
    assert "the points and cameras are in the unit of the given cameras" in capsys.readouterr().err
    with np.load(tmp_path / "a/scene.npz") as a, np.load(tmp_path / "b/scene.npz") as b:
        np.testing.assert_allclose(
            a["depth"][GROUND], b["depth"][GROUND], rtol=1e-4
        )  # the network moved, and the world did not
        np.testing.assert_allclose(a["extrinsics"], b["extrinsics"], atol=1e-6)
    assert network.moves[0].scale != pytest.approx(network.moves[1].scale, rel=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "obj"), "no format 'obj': choose from ply, glb, html, npz, colmap, gs, json."),
        (("--window", "4", "--overlap", "4"), "windows of 4 views cannot overlap by 4: give 1 up to 3."),
        (("--window", "4", "--overlap", "1", "--format", "gs"), "Gaussians are of photos that are seen together"),
        (("--cameras", "no.json"), "no.json holds no cameras"),
        (("--max-points", "2.5"), "--max-points 2.5 is not a whole number: give one, or off."),
        (("--sky", "-1"), "max_sky -1.0 is not a finite number above 0: give one, or None."),
        (("--min-confidence", "99"), "the filter leaves no points"),
        (("--input-size", "3"), "input_size"),
    ],
)
def test_what_cannot_be_done_is_an_error(options, message, network, photos: Path, tmp_path: Path, capsys) -> None:
    assert main("scene", photos, "-o", tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))


def test_nothing_is_destroyed(network, photos: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    assert main("scene", photos, "-o", out, "--quiet") == 0
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(verb, "load", lambda *_, **__: pytest.fail("the model was opened"))
        assert main("scene", photos, "-o", out) == 2
    assert f"{out / 'scene.ply'} exists: --overwrite replaces it" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert main("scene", photos, "-o", out, "--quiet", "--overwrite") == 0
    assert all(path.stat().st_mtime_ns > time for path, time in before.items())


def test_one_unreadable_photo_stops_it(network, photos: Path, tmp_path: Path, capsys) -> None:
    (photos / "0004.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main("scene", photos, "-o", tmp_path / "out") == 2
    assert str(photos / "0004.png") in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_of_single_views(photos: Path, tmp_path: Path, capsys) -> None:
    assert main("scene", photos, "-o", tmp_path / "out", "--model", "mlx-depth-demo") == 2
    assert "mlx-depth-demo takes one view: use predict, or a model for several" in capsys.readouterr().err


# The networks themselves, tiny


def test_gaussians_of_a_giant(tmp_path: Path, capsys) -> None:
    require("reference", "torch")
    import reference_da3

    giant = reference_da3.save(reference_da3.GIANT, tmp_path / "giant")
    examples = Path(mlx_depth.__file__).parents[1] / "examples"
    options = ("-o", tmp_path / "out", "--input-size", "70", "--format", "gs,ply", "--pose-from", "rays", "--json")
    capsys.readouterr()  # what upstream prints
    assert main("scene", examples, *options, "--model", giant) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["views"], facts["model"]) == (3, "depth-anything-3-giant")
    assert facts["names"] == ["coffee.jpg", "rocket.jpg", "summer_palace.jpg"]
    assert points_in(Path(facts["files"]["gs"])) > 100
    small = reference_da3.save(reference_da3.ANY_VIEW, tmp_path / "small")
    assert main("scene", examples, *options, "--model", small, "--overwrite") == 2
    assert "this model has no 3D Gaussians: take depth-anything-3-giant-1.1" in capsys.readouterr().err


def test_bars_come_one_after_the_other(capsys) -> None:
    with verb._bars(True) as progress:
        for what, total in (("decode", 3), ("network", 3), ("write", 2)):
            for done in range(total + 1):
                progress(what, done, total)
    last = [line.rpartition("\r")[2] for line in capsys.readouterr().err.rstrip("\n").split("\n")]
    assert [re.match(r"(\w+): 100%.* (\d/\d) ", line).groups() for line in last] == [
        ("decode", "3/3"),
        ("network", "3/3"),
        ("write", "2/2"),
    ]
    with verb._bars(False) as progress:
        progress("decode", 1, 3)
    assert capsys.readouterr().err == ""
