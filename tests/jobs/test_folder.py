"""Whole jobs with the demo model: what lies in the folder afterwards, and what is left of the user's files."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import seeded

import mlx_depth
from mlx_depth.errors import SaveError
from mlx_depth.io.ours import results_in
from mlx_depth.jobs.folder import Outcome, plan, predict_files
from mlx_depth.jobs.naming import find_images
from mlx_depth.jobs.settings import DEFAULT_FORMATS, Settings
from mlx_depth.model import DepthModel
from mlx_depth.result import DepthResult

RESUME, OVERWRITE = {"resume": True}, {"overwrite": True}


def write_photo(file: Path, number: int = 0, size: tuple[int, int] = (20, 30)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.clip(seeded(f"photo {number}", (*size, 3), 60) + 128, 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(file)


@pytest.fixture(scope="module")
def model() -> DepthModel:
    return mlx_depth.load("mlx-depth-demo")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(3):
        write_photo(tmp_path / f"photos/{number}.png", number)
    return tmp_path / "photos"


def asked(*formats: str) -> Settings:
    return Settings("mlx-depth-demo", "float32", input_size=28, formats=formats or DEFAULT_FORMATS)


def run(
    model: DepthModel, paths: Sequence[Path], out: Path, settings: Settings, **options: bool
) -> tuple[list[Outcome], int]:
    """The outcomes, and how many were complete before."""
    todo = plan([str(path) for path in paths], out, settings, **options)
    outcomes = predict_files(lambda: model, todo.waiting, todo.out, todo.settings, overwrite=any(options.values()))
    return list(outcomes), len(todo.jobs) - len(todo.waiting)


def contents(place: Path) -> dict[str, bytes]:
    return {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}


# The user's files.


@pytest.mark.parametrize("options", [RESUME, OVERWRITE, RESUME | OVERWRITE, {}])
@pytest.mark.parametrize("name", ["0.json", "0.npy", "0_color.png"])
def test_files_that_we_did_not_write_survive(
    name: str, options: dict[str, bool], model: DepthModel, photos: Path
) -> None:
    """The photos' own folder as output: its name is that of a file of the user."""
    (photos / name).write_bytes(b"mine")
    before = contents(photos)
    with pytest.raises(SaveError, match=rf"{name} exists, and no sidecar of mlx-depth names it"):
        run(model, [photos / "0.png"], photos, asked(), **options)
    assert contents(photos) == before


def test_first_run_into_the_photos_own_folder_then_resume(model: DepthModel, photos: Path) -> None:
    before = contents(photos)
    paths = [photos / f"{number}.png" for number in range(3)]
    run(model, paths, photos, asked())
    assert run(model, paths, photos, asked(), resume=True) == ([], 3)
    assert {name: data for name, data in contents(photos).items() if name in before} == before


def test_photo_is_never_a_result(model: DepthModel, photos: Path) -> None:
    write_photo(photos / "b.tiff")
    before = contents(photos)
    for options in (RESUME, OVERWRITE, {}):
        with pytest.raises(SaveError, match=r"b\.tiff is an input image"):
            run(model, [photos / "b.tiff"], photos, asked("tiff"), **options)
    assert contents(photos) == before


def test_file_that_appears_meanwhile_survives(model: DepthModel, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    todo = plan([str(photos / "0.png")], out, asked(), overwrite=True)
    (out / "0_color.png").write_bytes(b"mine")
    (outcome,) = predict_files(lambda: model, todo.waiting, out, asked(), overwrite=True)
    assert "0_color.png has appeared meanwhile" in str(outcome.error)
    assert contents(out) == {"0_color.png": b"mine"}


def test_a_failure_claims_only_what_was_written(model: DepthModel, photos: Path, tmp_path: Path, monkeypatch) -> None:
    """As where the disk fills up, or a file appears between two of ours."""
    out, save = tmp_path / "out", DepthResult.save

    def second_fails(result: object, file: Path, **options: object) -> Path:
        if file.name == "0_color.png":
            file.write_bytes(b"mine")
        return save(result, file, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(DepthResult, "save", second_fails)
    outcomes, _ = run(model, [photos / "0.png"], out, asked())
    assert "0_color.png exists" in str(outcomes[0].error)
    assert json.loads((out / "0.json").read_text())["files"] == {"npy": "0.npy"}
    with pytest.raises(SaveError, match=r"0_color\.png exists, and no sidecar"):
        run(model, [photos / "0.png"], out, asked(), resume=True)
    assert (out / "0_color.png").read_bytes() == b"mine"


def test_failure_at_the_first_file_leaves_nothing(model: DepthModel, photos: Path, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> Path:
        raise SaveError("no space left. Free some.")

    monkeypatch.setattr(DepthResult, "save", full)
    outcomes, _ = run(model, [photos], tmp_path / "out", asked())
    assert [str(outcome.error) for outcome in outcomes] == ["no space left. Free some."] * 3
    assert contents(tmp_path / "out") == {}


def test_formats_that_change_stay_ours(model: DepthModel, photos: Path, tmp_path: Path) -> None:
    """What an earlier run wrote in another format may be replaced later; what the user put in its place may not."""
    out = tmp_path / "out"
    run(model, [photos / "0.png"], out, asked("npy", "color"))
    run(model, [photos / "0.png"], out, asked("pfm"), overwrite=True)
    facts = json.loads((out / "0.json").read_text())
    assert (facts["files"], facts["earlier_files"]) == ({"pfm": "0.pfm"}, ["0.npy", "0_color.png"])
    assert results_in(out) == {"0.pfm", "0.npy", "0_color.png", "0.json"}
    (out / "0.npy").unlink()
    run(model, [photos / "0.png"], out, asked("pfm"), overwrite=True)
    (out / "0.npy").write_bytes(b"mine")
    with pytest.raises(SaveError, match=r"0\.npy exists, and no sidecar"):
        run(model, [photos / "0.png"], out, asked("npy"), overwrite=True)
    run(model, [photos / "0.png"], out, asked("color", "json"), resume=True)
    assert json.loads((out / "0.json").read_text())["files"] == {"color": "0_color.png", "json": "0.json"}
    assert run(model, [photos / "0.png"], out, asked("color"), resume=True) == ([], 1)


def test_sidecar_records_photo_and_sizes(model: DepthModel, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(model, [photos / "0.png"], out, asked())
    facts = json.loads((out / "0.json").read_text())
    assert facts["photo"]["bytes"] == (photos / "0.png").stat().st_size
    assert facts["file_bytes"] == {name: (out / name).stat().st_size for name in ("0.npy", "0_color.png")}
    assert facts["earlier_files"] == []


def test_replaced_photo_and_emptied_result_are_redone(model: DepthModel, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(model, [photos], out, asked())
    write_photo(photos / "0.png", 7, (24, 32))
    (out / "1_color.png").write_bytes(b"")
    outcomes, complete = run(model, [photos], out, asked(), resume=True)
    assert [Path(outcome.image).name for outcome in outcomes] == ["0.png", "1.png"]
    assert complete == 1
    assert np.load(out / "0.npy").shape == (24, 32)
    assert Image.open(out / "1_color.png").size == (30, 20)


def test_photo_that_changes_while_it_is_read_is_redone(model: DepthModel, photos: Path, tmp_path: Path) -> None:
    """The sidecar describes the photo as it was before it was decoded."""
    out = tmp_path / "out"
    todo = plan([str(photos / "0.png")], out, asked())

    def late() -> DepthModel:
        write_photo(photos / "0.png", 9)
        return model

    list(predict_files(late, todo.waiting, out, asked()))
    assert len(plan([str(photos / "0.png")], out, asked(), resume=True).waiting) == 1


# One file.


@pytest.mark.parametrize(("name", "magic"), [("my.png", b"\x89PNG"), ("my.JPG", b"\xff\xd8"), ("my.npy", b"\x93NUMPY")])
def test_one_photo_into_one_file(name: str, magic: bytes, model: DepthModel, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / name
    for options in ({}, OVERWRITE):
        outcomes, _ = run(model, [photos / "0.png"], out, asked(), **options)
        assert list(outcomes[0].files.values()) == [out, out.with_suffix(".json")]
        assert set(contents(out.parent)) == {"my.json", name}
        assert out.read_bytes().startswith(magic)
    assert run(model, [photos / "0.png"], out, asked(), resume=True) == ([], 1)
    with pytest.raises(SaveError, match="is an input image"):
        run(model, [photos / "0.png"], photos / "0.png", asked(), overwrite=True)


def test_several_photos_into_a_folder_of_any_name(model: DepthModel, photos: Path, tmp_path: Path) -> None:
    outcomes, _ = run(model, [photos], tmp_path / "my.png", asked("npy"))
    assert len(outcomes) == 3
    assert (tmp_path / "my.png/0.npy").is_file()


# Results are no photos.


def test_second_run_over_the_parent_folder_leaves_results_out(model: DepthModel, photos: Path, tmp_path: Path) -> None:
    run(model, [photos], photos / "depth", asked("color", "tiff"))
    run(model, [photos / "0.png"], photos, asked("gray"))
    for paths in ([str(photos)], [f"{photos}/**/*"], [f"{photos}/**/*.*"]):
        jobs, failed, _ = find_images(paths, recursive=True, out=tmp_path / "out")
        assert failed == []
        assert [Path(job.source).name for job in jobs] == ["0.png", "1.png", "2.png"]
    jobs, *_ = find_images([str(photos / "depth/0_color.png")])  # named outright
    assert len(jobs) == 1


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"files": {"npy": "a.png"}}', "[1]", "\0"])
def test_other_json_files_hide_no_photo(text: str, photos: Path) -> None:
    (photos / "0.json").write_text(text)
    os.mkfifo(photos / "pipe.json")
    assert len(find_images([str(photos)])[0]) == 3


# Killed at any moment.

PREDICT = [sys.executable, "-m", "mlx_depth", "predict", "--model", "mlx-depth-demo", "--input-size", "28", "-o"]


def test_kill_and_resume_is_an_undisturbed_run(photos: Path, tmp_path: Path) -> None:
    """Three moments: two results written, and one left half; ``tests/benchmarks/kill_and_resume.py`` tries many."""
    for number in range(3, 8):
        write_photo(photos / f"{number}.png", number)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    (photos / "notes.txt").write_text("mine")
    before = contents(photos)
    assert subprocess.run([*PREDICT, whole, photos], capture_output=True, timeout=120, check=False).returncode == 0
    for lines in (1, 4, 7):
        process = subprocess.Popen(
            [*PREDICT, killed, photos, "--resume"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    last = subprocess.run(
        [*PREDICT, killed, photos, "--resume"], capture_output=True, text=True, timeout=120, check=False
    )
    assert last.returncode == 0, last.stderr
    assert contents(killed) == contents(whole)
    assert contents(photos) == before
