import json
import re
from pathlib import Path

import numpy as np
import pytest
import toy_views
from scene_results import boxes, gaussians

from mlx_depth.errors import ImageError, OptionError, SaveError
from mlx_depth.geometry.alignment import aligned
from mlx_depth.jobs.cameras import KnownCameras, read_cameras
from mlx_depth.jobs.scene import SCENE_FILES, SceneSettings, plan_scene, predict_scene, write_scene
from mlx_depth.models.families import FAMILIES
from mlx_depth.scene import SceneResult

TRUTH = toy_views.walk(12)
GROUND = TRUTH.sky == 0


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "toy_views", toy_views.FAMILY)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    toy_views.photos(tmp_path / "photos", 12, (48, 64))  # twice the size of the network
    return tmp_path / "photos"


def nothing(*_: object) -> None:
    pass


def test_a_plan_names_photos_and_files(photos: Path, tmp_path: Path) -> None:
    plan = plan_scene([str(photos)], tmp_path / "out", ["ply", "colmap"])
    assert plan.photos == [str(photos / f"{number:04}.png") for number in range(12)]
    assert plan.names[:2] == ["0000.png", "0001.png"]
    assert plan.folder == photos
    assert plan.files == {
        "ply": tmp_path / "out/scene.ply",
        "colmap": tmp_path / "out/colmap",
        "cameras": tmp_path / "out/cameras.json",
    }
    (tmp_path / "more").mkdir()
    toy_views.photos(tmp_path / "more", 1)
    both = plan_scene([str(photos / "0003.png"), str(tmp_path / "more")], tmp_path / "out", ["ply"])
    assert both.names == ["photos/0003.png", "more/0000.png"]  # from the folder that holds both
    web = plan_scene(["https://a.org/x.png", str(photos / "0003.png")], tmp_path / "out", ["ply"])
    assert web.names == web.photos
    assert web.folder is None
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_planned(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for paths, formats, error, message in (
        ([str(photos)], ["ply", "obj"], OptionError, "no format 'obj': choose from ply, glb, html, npz, colmap, gs"),
        ([str(photos), str(tmp_path / "no*")], ["ply"], ImageError, "no image matches"),
        ([str(tmp_path / "none")], ["ply"], None, ""),  # a file that is named is looked for when it is read
    ):
        if error is None:
            assert len(plan_scene(paths, out, formats).photos) == 1
            continue
        with pytest.raises(error, match=re.escape(message)):
            plan_scene(paths, out, formats)
    with pytest.raises(OptionError, match="is both input and output"):
        plan_scene([str(photos)], photos, ["ply"])
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="is a file: choose a folder with -o"):
        plan_scene([str(photos)], tmp_path / "file", ["ply"])


@pytest.mark.parametrize("name", [*SCENE_FILES, "cameras"])
def test_existing_files_are_seen_before_any_work(name: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = out / {**SCENE_FILES, "cameras": "cameras.json"}[name]
    file.parent.mkdir()
    formats = [name] if name in SCENE_FILES else ["ply"]
    if name == "colmap":
        file.mkdir()
        plan_scene([str(photos)], out, formats)  # an empty folder is no model
        (file / "images.bin").write_text("mine")
    else:
        file.symlink_to("nowhere")  # in the way, too
    with pytest.raises(SaveError, match=r"exists: --overwrite replaces it, or choose another folder with -o\."):
        plan_scene([str(photos)], out, formats)
    plan_scene([str(photos)], out, formats, overwrite=True)


def predicted(photos: Path, tmp_path: Path, *, network=None, progress=nothing, **options) -> SceneResult:
    plan = plan_scene([str(photos)], tmp_path / "out", ["ply"])
    network = network or toy_views.Known(TRUTH)
    return predict_scene(toy_views.model(network), plan, SceneSettings(**options), progress)


def test_all_at_once(photos: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    network = toy_views.Known(TRUTH)
    scene = predicted(photos, tmp_path, network=network, progress=lambda *call: calls.append(call))
    assert len(network.moves) == 1
    np.testing.assert_allclose(scene.depth[GROUND], network.moves[0].scale * TRUTH.depth[GROUND], rtol=1e-5)
    assert scene.names[0] == "0000.png"
    assert (scene.views, scene.photo_sizes) == ((), ((48, 64),) * 12)
    np.testing.assert_allclose(scene.photo_intrinsics[:, 0, 0], 2 * TRUTH.intrinsics[:, 0, 0], rtol=1e-6)
    assert calls == [*(("decode", done, 12) for done in range(13)), ("network", 0, 12), ("network", 12, 12)]


def test_in_windows(photos: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    network = toy_views.Known(TRUTH)
    scene = predicted(photos, tmp_path, network=network, progress=lambda *call: calls.append(call), window=6, overlap=3)
    assert len(network.moves) == 3
    assert np.abs(scene.depth / (network.moves[0].scale * TRUTH.depth) - 1)[GROUND].max() < 1e-3
    assert np.abs(scene.extrinsics - aligned(TRUTH.extrinsics, network.moves[0])).max() < 2e-3
    assert scene.names == tuple(f"{number:04}.png" for number in range(12))
    assert scene.photo_sizes == ((48, 64),) * 12
    assert calls == [("network", done, 12) for done in (0, 6, 9, 12)]


def test_known_cameras_give_their_world(photos: Path, tmp_path: Path) -> None:
    network = toy_views.Known(TRUTH)
    double = TRUTH.intrinsics * np.array([[2], [2], [1]])
    known = KnownCameras(TRUTH.extrinsics, double, ((48, 64),) * 12)
    scene = predicted(photos, tmp_path, network=network, cameras=known)
    np.testing.assert_array_equal(scene.extrinsics, TRUTH.extrinsics)
    np.testing.assert_allclose(scene.depth[GROUND], TRUTH.depth[GROUND], rtol=1e-4)
    np.testing.assert_allclose(scene.photo_intrinsics, double)
    wrong = KnownCameras(TRUTH.extrinsics, double, ((48, 60),) * 12)
    with pytest.raises(OptionError, match="is for 48×60 pixels, and the photo has 48×64"):
        predicted(photos, tmp_path, cameras=wrong)


def test_what_windows_cannot_do() -> None:
    known = KnownCameras(TRUTH.extrinsics, TRUTH.intrinsics, (None,) * 12)
    with pytest.raises(OptionError, match="windows are joined by what they see, not by known cameras"):
        SceneSettings(window=6, cameras=known)
    with pytest.raises(OptionError, match="Gaussians are of photos that are seen together"):
        SceneSettings(window=6, gaussians=True)


def test_every_file(tmp_path: Path) -> None:
    scene = boxes(gaussians=gaussians(boxes().depth.size), names=("a.jpg", "b.jpg", "c.jpg"))
    files = {name: tmp_path / file for name, file in SCENE_FILES.items()} | {"cameras": tmp_path / "cameras.json"}
    calls: list[tuple[str, int, int]] = []
    write_scene(scene, files, lambda *call: calls.append(call))
    assert calls == [("write", done, 8) for done in range(9)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files.values())
    assert json.loads((tmp_path / "scene.json").read_text()) == json.loads(json.dumps(scene.sidecar()))
    np.testing.assert_array_equal(read_cameras(tmp_path / "cameras.json", scene.names).extrinsics, scene.extrinsics)
    assert b"element vertex" in (tmp_path / "scene.ply").read_bytes()[:2000]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    for name, file in files.items():
        with pytest.raises(SaveError):
            write_scene(scene, {name: file}, nothing)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    write_scene(scene, files, nothing, overwrite=True)
    assert all(path.stat().st_mtime_ns > time for path, time in before.items())
