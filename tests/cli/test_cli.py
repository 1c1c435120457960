"""The command line as its user meets it: as a subprocess where streams and exit codes matter, else in this process."""

import contextlib
import fcntl
import http.server
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from support import seeded

import mlx_depth
from mlx_depth import cli
from mlx_depth.checkpoints import hub
from mlx_depth.cli import predict
from mlx_depth.jobs import folder as files

DEMO = ["--model", "mlx-depth-demo", "--input-size", "28"]
# Mixed in size and shape: landscape, portrait, square, tiny, odd.
SIZES = [(40, 60), (60, 40), (50, 50), (7, 9), (33, 71), (64, 48)]


def photo(height: int, width: int, number: int = 0) -> Image.Image:
    gradient = np.linspace(0, 200, width)[None, :, None]
    pixels = np.clip(gradient + seeded(f"{number}", (height, width, 3), 30) + 20, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, format: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, format)
    return stream.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos of different shapes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate(SIZES[:3]):
        photo(*size, number).save(folder / f"{number}.jpg")
    return folder


@pytest.fixture
def twenty(tmp_path: Path) -> Path:
    """A folder of 20 files of mixed sizes and formats; three of them are broken."""
    folder = tmp_path / "twenty"
    folder.mkdir()
    for number in range(17):
        suffix = ("jpg", "png", "webp")[number % 3]
        photo(*SIZES[number % len(SIZES)], number).save(folder / f"{number:02}.{suffix}")
    data = encoded(photo(40, 60))
    (folder / "04-truncated.jpg").write_bytes(data[: len(data) // 2])
    (folder / "08-text.png").write_text("this is no picture\n")
    (folder / "12-empty.jpg").write_bytes(b"")
    return folder


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "mlx_depth", *map(str, arguments)]


def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; a traceback is never right."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload]
    assert "Traceback" not in done.stderr, done.stderr
    return done


def main(*arguments: str | Path) -> int:
    """The command in this process."""
    return cli.main([str(argument) for argument in arguments])


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Name → inode and time of change of every file: equal only if nothing was written."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a model fails the test."""
    monkeypatch.setattr(predict, "load", lambda *_, **__: pytest.fail("the model was opened"))


# The folder of twenty photos, three of them broken.


def test_twenty_photos_three_broken_then_resume(twenty: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run("predict", twenty, "-o", out, *DEMO, "--verbose")
    assert first.returncode == 1
    assert len(list(out.glob("*.npy"))) == len(list(out.glob("*_color.png"))) == len(list(out.glob("*.json"))) == 17
    listed = first.stdout.splitlines()
    assert [line for line in listed if line.startswith("  ")] == [
        f"  {out}/{number:02}{ending}" for number in range(17) for ending in (".npy", "_color.png", ".json")
    ]
    photos = [line for line in listed if not line.startswith("  ")]
    assert all(re.search(rf": \d+×\d+, relative inverse depth, [\d.]+ to [\d.]+ → {out}$", line) for line in photos)
    assert len(photos) == 17
    model, *errors = first.stderr.splitlines()
    assert model.startswith("mlx-depth-demo: relative inverse depth")
    assert len(errors) == 4
    for line, name, reason in zip(
        errors,
        ("04-truncated.jpg", "08-text.png", "12-empty.jpg"),
        ("truncated", "not an image", "empty"),
        strict=False,
    ):
        assert line.startswith(f"mlx-depth: {twenty / name} ")
        assert reason in line
    assert errors[-1] == "17 done, 0 complete before, 3 failed"
    before = snapshot(out)
    again = run("predict", twenty, "-o", out, *DEMO, "--resume")
    assert again.returncode == 1
    assert again.stdout == ""
    assert again.stderr.splitlines() == [*errors[:3], "0 done, 17 complete before, 3 failed"]
    assert snapshot(out) == before


def test_results_are_those_of_the_library(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main("predict", photos, "-o", out, *DEMO, "--batch-size", "2", "--format", "npy,png16,json") == 0
    model = mlx_depth.load("mlx-depth-demo")
    for file in sorted(photos.iterdir()):
        depth = np.load(out / f"{file.stem}.npy")
        np.testing.assert_allclose(depth, model.predict(file, input_size=28).depth, rtol=1e-5, atol=1e-6)
        facts = json.loads((out / f"{file.stem}.json").read_text())
        assert facts["files"] == {
            "npy": f"{file.stem}.npy",
            "png16": f"{file.stem}_depth.png",
            "json": f"{file.stem}.json",
        }
        assert (facts["model"], facts["kind"], facts["license"]) == ("mlx-depth-demo", "relative_inverse", "Apache-2.0")
        assert facts["size"] == list(depth.shape)
        assert (out / facts["image"]).resolve() == file
        assert np.asarray(Image.open(out / f"{file.stem}_depth.png")).dtype == np.uint16
    assert len(list(out.iterdir())) == 9


# Writing beside the network.


def test_writing_overlaps_and_keeps_the_order(photos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """The first result cannot be written before the last one is: only threads of its own let it end."""
    last_begun = threading.Event()
    save = mlx_depth.DepthResult.save

    def slow_first(result: mlx_depth.DepthResult, file: Path, **options: object) -> Path:
        if file.name == "2.npy":
            last_begun.set()
        assert last_begun.wait(30) or file.name != "0.npy"
        return save(result, file, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(mlx_depth.DepthResult, "save", slow_first)
    out = tmp_path / "out"
    assert main("predict", photos, "-o", out, *DEMO, "--format", "npy") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" → ")[2] for line in lines] == [f"{out}/{number}.npy" for number in range(3)]


def writing_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mlx-depth-write")]


@pytest.mark.parametrize("batch_size", [1, 6])
def test_results_that_wait_to_be_written_are_bounded(batch_size: int, tmp_path: Path, monkeypatch) -> None:
    """A disk that hangs stops the network, and an early end cancels what waits but finishes what was begun."""
    for number in range(30):
        photo(20, 20).save(tmp_path / f"{number:02}.png")
    jobs, *_ = files.find_images([str(tmp_path)])
    most = max(batch_size, files.WRITING_THREADS) + 1
    disk = threading.Event()
    predicted: list[mlx_depth.DepthResult] = []
    write, predict_stream = files._write, files.predict_stream

    def counted(*arguments: object, **options: object) -> Iterator[mlx_depth.DepthResult]:
        for result in predict_stream(*arguments, **options):  # type: ignore[arg-type]
            predicted.append(result)
            if len(predicted) == most:
                threading.Timer(0.5, disk.set).start()
            yield result

    def hanging(*arguments: object) -> files.Outcome:
        disk.wait(30)
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "predict_stream", counted)
    monkeypatch.setattr(files, "_write", hanging)
    settings = files.Settings("mlx-depth-demo", "float32", input_size=28, formats=("npy",))
    model = mlx_depth.load("mlx-depth-demo")
    outcomes = files.predict_files(lambda: model, jobs, tmp_path / "out", settings, batch_size=batch_size)
    first = next(outcomes)
    assert len(predicted) == most
    outcomes.close()
    assert writing_threads() == []
    assert first.error is None
    names = sorted(
        file.stem for file in (tmp_path / "out").iterdir()
    )  # no temporary file, no array without its sidecar
    assert names == sorted([f"{number:02}" for number in range(len(names) // 2)] * 2)
    assert 2 <= len(names) <= 2 * most


# What is done and left alone.


def test_complete_run_opens_no_model(photos: Path, tmp_path: Path, no_model: None, capsys) -> None:
    out = tmp_path / "out"
    assert run("predict", photos, "-o", out, *DEMO).returncode == 0
    before = snapshot(out)
    assert main("predict", photos, "-o", out, *DEMO, "--resume") == 0
    assert snapshot(out) == before
    (photos / "broken.jpg").write_bytes(b"broken")  # nor is one needed to say that an image is broken
    assert main("predict", photos, "-o", out, *DEMO, "--resume") == 1
    assert "0 done, 3 complete before, 1 failed" in capsys.readouterr().err
    assert snapshot(out) == before


def test_resume_redoes_what_is_not_complete(photos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main("predict", photos, "-o", out, *DEMO) == 0
    before = snapshot(out)
    (out / "0_color.png").unlink()
    (out / "1.npy").write_bytes(b"")
    photo(20, 20).save(photos / "new.png")
    assert main("predict", photos, "-o", out, *DEMO, "--resume") == 0
    assert "3 done, 1 complete before, 0 failed" in capsys.readouterr().err
    after = snapshot(out)
    assert {Path(name).name for name in before if after[name] == before[name]} == {"2.npy", "2_color.png", "2.json"}
    assert json.loads((out / "1.json").read_text())["files"] == {"npy": "1.npy", "color": "1_color.png"}
    for changed in (["--cmap", "gray"], ["--input-size", "42"], ["--dtype", "float16"], ["--format", "npy,pfm"]):
        capsys.readouterr()
        assert main("predict", photos / "2.jpg", "-o", out, *DEMO, "--resume", *changed) == 0
        assert "1 done, 0 complete before" in capsys.readouterr().err


def test_existing_results_are_refused_before_any_work(photos: Path, tmp_path: Path, no_model: None, capsys) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "1.npy").write_text("mine")
    assert main("predict", photos, "-o", out, *DEMO) == 2
    assert f"{out}/1.npy exists" in capsys.readouterr().err
    assert [file.name for file in out.iterdir()] == ["1.npy"]


def test_overwrite(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main("predict", photos, "-o", out, *DEMO, "--overwrite") == 0
    before = snapshot(out)
    assert main("predict", photos, "-o", out, *DEMO, "--overwrite") == 0
    after = snapshot(out)
    assert before.keys() == after.keys()
    assert not any(before[name] == after[name] for name in before)


def test_interrupted_overwrite_is_not_complete(photos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """New settings, old settings' files half replaced: neither run's sidecar may vouch for the mixture."""
    out = tmp_path / "out"
    assert main("predict", photos / "0.jpg", "-o", out, *DEMO) == 0
    save = mlx_depth.DepthResult.save

    def interrupted(result: mlx_depth.DepthResult, file: Path, *, format: str, **options: object) -> Path:
        if format == "color":
            raise KeyboardInterrupt
        return save(result, file, format=format, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(mlx_depth.DepthResult, "save", interrupted)
        assert main("predict", photos / "0.jpg", "-o", out, *DEMO, "--input-size", "42", "--overwrite") == 130
    assert "--resume goes on" in capsys.readouterr().err
    assert main("predict", photos / "0.jpg", "-o", out, *DEMO, "--resume") == 0
    assert "1 done, 0 complete before" in capsys.readouterr().err


def test_same_names_from_two_folders_do_not_overwrite_each_other(tmp_path: Path) -> None:
    for number, folder in enumerate(("x", "y")):
        (tmp_path / folder).mkdir()
        photo(20 + number, 30, number).save(tmp_path / folder / "a.jpg")
    photo(22, 30).save(tmp_path / "x/a.png")
    out = tmp_path / "out"
    assert main("predict", tmp_path / "x", tmp_path / "y", "-o", out, *DEMO, "--format", "npy") == 0
    shapes = {str(file.relative_to(out)): np.load(file).shape for file in out.rglob("*.npy")}
    assert shapes == {"x/a.jpg.npy": (20, 30), "a.png.npy": (22, 30), "y/a.npy": (21, 30)}


def test_structure_is_kept(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "deep/deeper").mkdir(parents=True)
    photo(20, 20).save(photos / "deep/deeper/a.png")
    monkeypatch.chdir(tmp_path)
    for number in range(2):  # the second time, the results of the first lie within the input
        options = ["--resume"] * number
        assert main("predict", "photos", "--recursive", "-o", "photos/depth", *DEMO, "--format", "npy", *options) == 0
        names = sorted(str(file.relative_to("photos/depth")) for file in Path("photos/depth").rglob("*.npy"))
        assert names == ["0.npy", "1.npy", "2.npy", "deep/deeper/a.npy"]


def test_default_output_folder(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main("predict", "photos/0.jpg", *DEMO, "--side-by-side") == 0
    names = sorted(file.name for file in (tmp_path / "depth").iterdir())
    assert names == ["0.json", "0.npy", "0_color.png", "0_side-by-side.png"]
    assert Image.open("depth/0_side-by-side.png").size == (120, 40)


def test_patterns_lists_and_urls(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with serve({"/remote.jpg": encoded(photo(24, 32))}) as url:
        Path("list.txt").write_text(f"photos/0.jpg\n{url}/remote.jpg\n")
        done = run("predict", "photos/[12].jpg", "list.txt", "-o", "out", *DEMO, "--format", "npy")
    assert done.returncode == 0
    made = [line.rpartition(" → ")[2] for line in done.stdout.splitlines()]
    assert made == [f"out/{name}.npy" for name in ("1", "2", "0", "remote")]
    assert np.load("out/remote.npy").shape == (24, 32)
    assert json.loads(Path("out/remote.json").read_text())["image"] == f"{url}/remote.jpg"


@contextlib.contextmanager
def serve(files: dict[str, bytes]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path in files
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(files.get(self.path, b""))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


# What cannot be done: named, with a next step, and the others are done.


def test_bad_paths_among_good_ones(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with serve({}) as url:
        bad = [tmp_path / "missing.jpg", tmp_path / "empty", tmp_path / "no*.jpg", f"{url}/gone.jpg"]
        done = run("predict", bad[0], photos / "0.jpg", *bad[1:], photos / "1.jpg", "-o", tmp_path / "out", *DEMO)
    assert done.returncode == 1
    assert len(list((tmp_path / "out").glob("*.npy"))) == 2
    assert f"{tmp_path}/empty holds no image" in done.stderr
    assert f"no image matches {tmp_path}/no*.jpg" in done.stderr
    assert f"there is no image {tmp_path}/missing.jpg" in done.stderr
    assert "gone.jpg answers 404" in done.stderr
    assert done.stderr.endswith("2 done, 0 complete before, 4 failed\n")


def test_nothing_at_all(tmp_path: Path, no_model: None, capsys) -> None:
    (tmp_path / "empty").mkdir()
    assert main("predict", tmp_path / "empty", tmp_path / "missing.jpg", "-o", tmp_path / "out", *DEMO) == 1
    assert capsys.readouterr().err.endswith("0 done, 0 complete before, 2 failed\n")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--model", "mlx-depth-dem"], "did you mean 'mlx-depth-demo'"),
        (["--model", "./nowhere"], "no file or folder"),
        (["--model", "depth-anything-v2-giant"], "not released"),
        (["--format", "npy,jpg"], "no format 'jpg': choose from npy, npz"),
        (["--format", ""], "no format ''"),
        (["--cmap", "jet"], "jet"),
        (["--batch-size", "0"], "batch_size is 0: give 1 or more"),
        (["--input-size", "10"], "at least 14"),
        (["--input-size", "30x28"], "the nearest valid one is (28, 28)"),
        (["--revision", "v2"], "leave revision 'v2' out"),
        (["-o", "photos"], "both input and output"),
        (["-o", "photos/0.jpg"], "choose another with -o"),
    ],
)
def test_impossible_options(
    arguments: list[str], reason: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(photos.parent)
    assert main("predict", "photos", "-o", "out", *DEMO, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("mlx-depth: error: ")
    assert reason in captured.err
    assert not list(photos.parent.glob("out/*"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["predikt"], "invalid choice: 'predikt'"),
        (["predict"], "PATH"),
        (["predict", "a.jpg", "--inputsize", "3"], "unrecognized arguments: --inputsize"),
        (["predict", "a.jpg", "--input-size", "big"], "'big' is no size: write 518"),
        (["predict", "a.jpg", "--input-size", "1x2x3"], "'1x2x3' is no size"),
        (["predict", "a.jpg", "--input-size", "518x"], "'518x' is no size"),
        (["predict", "a.jpg", "--batch-size", "two"], "invalid int value: 'two'"),
        (["predict", "a.jpg", "--dtype", "float8"], "invalid choice: 'float8'"),
        (["info"], "model"),
    ],
)
def test_unknown_verbs_and_options(arguments: list[str], reason: str, capsys) -> None:
    with pytest.raises(SystemExit) as exit:
        main(*arguments)
    assert exit.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert reason in captured.err


def test_missing_extra_is_named_before_any_work(photos: Path, no_model: None, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    assert main("predict", photos, "-o", photos.parent / "out", *DEMO, "--format", "exr") == 2
    assert "pip install 'mlx-depth[exr]'" in capsys.readouterr().err


def test_result_that_cannot_be_replaced_is_one_error(photos: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "out/1.json").mkdir(parents=True)
    (tmp_path / "out/2.npy").mkdir(parents=True)
    assert main("predict", photos, "-o", tmp_path / "out", *DEMO, "--overwrite") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mlx-depth: error: {tmp_path}/out/1.json exists (and 1 more), and no sidecar of mlx-depth")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["1.json", "2.npy"]


# Streams.


def test_json_is_one_object_a_line(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"broken")
    (photos / "1.jpg").rename(photos / "ü \n.jpg")
    out = tmp_path / "out"
    done = run("predict", photos, tmp_path / "gone", "-o", out, *DEMO, "--json", env=os.environ | {"LC_ALL": "C"})
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(Path(line["image"]).name for line in lines) == ["0.jpg", "2.jpg", "broken.jpg", "gone", "ü \n.jpg"]
    by_name = {Path(line["image"]).name: line for line in lines}
    assert by_name["broken.jpg"].keys() == by_name["gone"].keys() == {"image", "error"}
    facts = by_name["0.jpg"]
    assert facts["files"] == {"npy": f"{out}/0.npy", "color": f"{out}/0_color.png", "json": f"{out}/0.json"}
    assert (facts["model"], facts["unit"], facts["size"]) == ("mlx-depth-demo", "", [40, 60])
    again = run("predict", photos / "0.jpg", "-o", out, *DEMO, "--json", "--resume")
    assert json.loads(again.stdout) == {"image": str(photos / "0.jpg"), "skipped": True, "files": facts["files"]}


# A Mac refuses names that are not Unicode.
ODD_NAMES = [b"\xc3\xbc \n.jpg", b"-o.jpg", b"'{}[0]*.jpg", *([b"caf\xe9.jpg"] if sys.platform == "linux" else [])]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_file_names(name: bytes, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(encoded(photo(20, 30)))
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    arguments = command("predict", path, "-o", tmp_path / "out", *DEMO, "--format", "npy", "--verbose")
    done = subprocess.run(arguments, capture_output=True, timeout=60, env=strict)
    assert done.returncode == 0, done.stderr
    assert b"  " + os.fsencode(tmp_path) + b"/out/" + name.replace(b".jpg", b".npy") + b"\n" in done.stdout
    assert b"\n.jpg:" not in done.stdout
    again = run("predict", path, "-o", tmp_path / "out", *DEMO, "--format", "npy", "--json", "--resume", env=strict)
    assert json.loads(again.stdout)["skipped"]
    path.unlink()
    gone = run("predict", path, "-o", tmp_path / "gone", *DEMO, "--json", env=strict)
    assert gone.returncode == 1
    assert json.loads(gone.stdout)["image"] == str(path)


def test_verbose_names_model_and_license_on_stderr(photos: Path, tmp_path: Path, capsys) -> None:
    assert main("predict", photos / "0.jpg", "-o", tmp_path / "out", *DEMO, "--verbose") == 0
    captured = capsys.readouterr()
    assert "mlx-depth-demo: relative inverse depth" in captured.err
    assert "license Apache-2.0" in captured.err
    assert "license" not in captured.out


def test_no_progress_bar_without_a_terminal(photos: Path, tmp_path: Path) -> None:
    done = run("predict", photos, "-o", tmp_path / "out", *DEMO)
    assert done.stderr == "3 done, 0 complete before, 0 failed\n"


def test_progress_bar_on_a_terminal(photos: Path, tmp_path: Path) -> None:
    """On stderr, with rate and time left; stdout holds the results alone."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    out = tmp_path / "out"
    process = subprocess.Popen(
        command("predict", photos, "-o", out, *DEMO), stdout=subprocess.PIPE, stderr=terminal, text=True
    )
    os.close(terminal)
    shown = read_terminal(controller)
    assert process.stdout is not None
    listed = process.stdout.read().splitlines()
    assert process.wait(60) == 0
    assert len(listed) == 3
    assert "3/3" in shown
    assert re.search(r"\[00:\d\d<00:\d\d, +[\d.]+(image/s|s/image)\]", shown), shown
    assert "Traceback" not in shown


def read_terminal(controller: int) -> str:
    """All that was written until the other side closed."""
    shown = b""
    while select.select([controller], [], [], 60)[0]:
        try:
            data = os.read(controller, 65536)
        except OSError:  # Linux's way to say that the other side has closed
            break
        if not data:
            break
        shown += data
    os.close(controller)
    return shown.decode()


def test_reader_that_has_gone_is_no_error(twenty: Path, tmp_path: Path) -> None:
    """As with ``| head -1``."""
    process = subprocess.Popen(
        command("predict", twenty, "-o", tmp_path / "out", *DEMO), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(os.fsencode(twenty) + b"/00.jpg: ")
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 1


# The command, whose sixth image has one of its files until the interrupt arrives: so it cannot end before.
WAITS_FOR_INTERRUPT = """
import signal, sys, threading
from mlx_depth import cli
from mlx_depth import DepthResult

save, interrupted = DepthResult.save, threading.Event()

def waiting(result, file, **options):
    if file.name == "06_color.png":
        interrupted.wait()
    return save(result, file, **options)

def interrupt(*_):
    interrupted.set()
    raise KeyboardInterrupt

DepthResult.save = waiting
signal.signal(signal.SIGINT, interrupt)
sys.exit(cli.main())
"""


def test_interrupt_leaves_no_half_written_file_and_resume_goes_on(twenty: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    size = ["--model", "mlx-depth-demo", "--input-size", "98"]
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS_FOR_INTERRUPT, "predict", twenty, "-o", out, *size],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert stderr.endswith("mlx-depth: interrupted; --resume goes on where it stopped\n")
    assert not [file.name for file in out.iterdir() if file.suffix == ".tmp" or file.name.startswith(".")]
    complete = [json.loads(file.read_text()) for file in out.glob("*.json")]
    assert 1 <= len(complete) < 17
    assert all((out / name).is_file() for facts in complete for name in facts["files"].values())
    for file in out.glob("*.npy"):
        np.load(file)
    for file in out.glob("*.png"):
        Image.open(file).load()
    before = snapshot(out)
    kept = [str(file) for file in out.iterdir() if (out / f"{file.stem.removesuffix('_color')}.json").exists()]
    again = run("predict", twenty, "-o", out, *size, "--resume")
    assert again.returncode == 1
    assert f"{17 - len(complete)} done, {len(complete)} complete before, 3 failed" in again.stderr
    after = snapshot(out)
    assert all(after[name] == before[name] for name in kept)
    assert len(list(out.glob("*.json"))) == 17


# The other verbs and ways in.


def test_models_table(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(hub, "is_cached", lambda repo: repo.endswith("V2-Small-hf"))
    assert main("models") == 0
    head, *groups = capsys.readouterr().out.split("\n\n")
    columns = ["name", "alias", "parameters", "kind", "license", "commercial", "downloaded", "hub"]
    assert head.split() == columns
    tables = {lines[0]: lines[1:] for lines in map(str.splitlines, groups)}
    rows = {line.split()[0]: line.split() for lines in tables.values() for line in lines}
    assert len(rows) == sum(map(len, tables.values())) == len(mlx_depth.list_models())
    assert rows["depth-anything-v2-small"][2:7] == ["24,785,089", "relative_inverse", "Apache-2.0", "yes", "yes"]
    assert rows["depth-anything-v2-metric-indoor-base"][3:7] == ["metric", "CC-BY-NC-4.0", "no", "no"]
    assert rows["mlx-depth-demo"][-2:] == ["yes", "(bundled)"]
    assert "mlx-depth-demo" in {line.split()[0] for line in tables["The look of a scene, fast:"]}
    assert "depth-anything-3-small" in {line.split()[0] for line in tables["Several photos of one scene:"]}
    assert main("models", "--json") == 0
    table = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in table] == [spec.name for spec in mlx_depth.list_models()]
    assert table[0]["downloaded"] is True


def test_models_are_filtered(capsys) -> None:
    def names(*options: str) -> set[str]:
        assert main("models", "--json", *options) == 0
        return {row["name"] for row in json.loads(capsys.readouterr().out)}

    specs = mlx_depth.list_models()
    assert names("--commercial") == {spec.name for spec in specs if spec.commercial}
    assert names("--metric") == names("--kind", "metric") == {s.name for s in specs if s.depth_kind.value == "metric"}
    both = names("--commercial", "--kind", "relative")
    assert {"depth-anything-3-small", "depth-anything-3-mono-large"} <= both
    assert not {"depth-anything-v2-small", "depth-anything-3-giant"} & both
    assert main("models", "--commercial", "--metric") == 0
    shown = capsys.readouterr().out
    assert "prompt-depth-anything-small " in shown
    assert "Several photos" not in shown  # the one such model in metres is not for commerce


def test_info_for_people_and_machines(capsys) -> None:
    assert main("info", "demo") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "name: mlx-depth-demo"
    assert "license: Apache-2.0" in lines
    assert "parameters: 24,785,089" in lines
    assert "  float32: 98,843,396 (98.8 MB)" in lines
    assert any(line.startswith("disk_bytes: 29,515,138 (29.5 MB)") for line in lines)
    assert not any(mark in line for line in lines for mark in "{}[]'")
    assert main("info", "demo", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["name"], facts["tensors"]) == ("mlx-depth-demo", 426)


def test_info_of_nothing(capsys) -> None:
    assert main("info", "da2-smal") == 2
    assert "did you mean 'depth-anything-v2-small'" in capsys.readouterr().err
    assert main("info", "./nowhere") == 2
    assert "no file or folder" in capsys.readouterr().err


def test_license_notice_is_a_line_on_stderr(photos: Path, tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = run("predict", photos, "-o", tmp_path / "out", "--model", "da2-large", env=os.environ | home)
    assert done.returncode == 2
    notice, error = done.stderr.splitlines()
    assert notice.startswith("mlx-depth: warning: depth-anything-v2-large is licensed CC-BY-NC-4.0: not for commercial")
    assert "--model mlx-depth-demo" in error


@pytest.mark.parametrize("way", [["-m", "mlx_depth"], [shutil.which("mlx-depth", path=Path(sys.executable).parent)]])
def test_version_of_every_way_in(way: list[str | None]) -> None:
    start = [sys.executable, *way] if way[0] == "-m" else way
    done = subprocess.run([*start, "--version"], capture_output=True, text=True, timeout=60)  # type: ignore[list-item]
    assert (done.returncode, done.stdout, done.stderr) == (0, f"mlx-depth {mlx_depth.__version__}\n", "")


@pytest.mark.parametrize("verb", [[], ["predict"], ["models"], ["info"]])
def test_help_shows_each_verb(verb: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as exit:
        main(*verb, "--help")
    assert exit.value.code == 0
    assert "mlx-depth" in capsys.readouterr().out


def test_warnings_filter_is_left_as_it_was(photos: Path, tmp_path: Path) -> None:
    before = warnings.showwarning
    assert main("predict", photos / "0.jpg", "-o", tmp_path / "out", *DEMO) == 0
    assert warnings.showwarning is before


def test_start_imports_little() -> None:
    """``--help`` and ``--version`` wait for nothing that only some commands need."""
    heavy = ("torch", "transformers", "matplotlib", "huggingface_hub", "coremltools")
    code = f"import sys, mlx_depth.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_the_bare_command_shows_what_there_is(capsys) -> None:
    assert main() == 0
    shown = capsys.readouterr().out
    assert "mlx-depth predict photo.jpg" in shown
    assert all(verb in shown for verb in ("predict", "models", "info", "convert", "verify", "coreml-check"))


def test_quiet_says_nothing_but_errors(photos: Path, tmp_path: Path, capsys) -> None:
    (photos / "broken.jpg").write_bytes(b"broken")
    assert main("predict", photos, "-o", tmp_path / "out", *DEMO, "--quiet") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"mlx-depth: {photos / 'broken.jpg'} ")


def test_what_lies_beside_the_photos_is_counted(photos: Path, tmp_path: Path, capsys) -> None:
    (photos / "notes.txt").write_text("buy milk")
    assert main("predict", photos, "-o", tmp_path / "out", *DEMO, "--format", "npy") == 0
    assert "left out: 1 no image (.txt)" in capsys.readouterr().err


def test_one_photo_into_a_file(photos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "my.png"
    assert main("predict", photos / "0.jpg", "-o", out, *DEMO) == 0
    assert capsys.readouterr().out.endswith(f" → {out}\n")
    assert sorted(file.name for file in tmp_path.glob("my*")) == ["my.json", "my.png"]


def test_a_reference_is_part_of_what_was_asked(photos: Path, tmp_path: Path, capsys) -> None:
    arguments = ["predict", photos / "0.jpg", "-o", tmp_path / "out", *DEMO, "--format", "npy"]
    assert main(*arguments) == 0
    ours = np.load(tmp_path / "out/0.npy")
    assert main(*arguments, "--resume", "--reference", "transformers") == 0
    assert "1 done, 0 complete before" in capsys.readouterr().err
    theirs = np.load(tmp_path / "out/0.npy")
    assert np.abs(theirs - ours).max() > 0
    model = mlx_depth.load("mlx-depth-demo", reference="transformers")
    np.testing.assert_array_equal(theirs, model.predict(photos / "0.jpg", input_size=28).depth)


def test_a_background_shows_through(tmp_path: Path) -> None:
    picture = photo(30, 40).convert("RGBA")
    picture.putalpha(Image.fromarray(np.tile(np.array([[0] * 20 + [255] * 20], np.uint8), (30, 1))))
    picture.save(tmp_path / "a.png")
    model = mlx_depth.load("mlx-depth-demo")
    for name, rgb in (("black", (0, 0, 0)), ("#ff8000", (255, 128, 0))):
        out = tmp_path / f"{name.strip('#')}.npy"
        assert main("predict", tmp_path / "a.png", "-o", out, *DEMO, "--background", name) == 0
        result = model.predict(tmp_path / "a.png", input_size=28, background=rgb)
        assert tuple(result.image[0, 0]) == rgb
        np.testing.assert_array_equal(np.load(out), result.depth)
    with pytest.raises(SystemExit):
        main("predict", tmp_path / "a.png", *DEMO, "--background", "no-color")


def test_a_device_that_is_not_there(photos: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main("predict", photos / "0.jpg", "-o", tmp_path / "out", *DEMO, "--device", "cpu") == 0
    monkeypatch.setattr(mx, "is_available", lambda device: False)
    assert main("predict", photos / "0.jpg", "-o", tmp_path / "new", *DEMO, "--device", "gpu") == 2
    assert "MLX has no GPU here: leave --device gpu out" in capsys.readouterr().err


def test_a_list_on_stdin_and_comments(photos: Path, tmp_path: Path) -> None:
    lines = f"# two of three\n{photos / '2.jpg'}\n\n{photos / '0.jpg'}\n"
    arguments = command("predict", "-", "-o", tmp_path / "out", *DEMO, "--format", "npy")
    done = subprocess.run(arguments, input=lines, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [line.rpartition("/")[2] for line in done.stdout.splitlines()] == ["2.npy", "0.npy"]


def test_a_text_that_is_no_list(photos: Path, tmp_path: Path, capsys) -> None:
    """As ``predict pics/*`` meets it."""
    (photos / "notes.txt").write_text("buy milk\ncall the plumber\n")
    assert main("predict", *sorted(photos.iterdir()), "-o", tmp_path / "out", *DEMO, "--format", "npy") == 1
    captured = capsys.readouterr()
    assert "notes.txt is no list of images, none of its lines leads to a file (the first is 'buy milk')" in captured.err
    assert "3 done, 0 complete before, 1 failed" in captured.err
