"""Streams, folders and disks that fail: one line, no traceback, and an exit code that says how far it came."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT_LEFT = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
DEMO = ["--model", "mlx-depth-demo", "--input-size", "28"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two photos in ``in``."""
    (tmp_path / "in").mkdir()
    for number in range(2):
        pixels = np.full((20, 30 + number, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"in/{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shell(
    arguments: str, redirections: str = "", limits: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command as a shell runs it, with its redirections."""
    command = f"{limits} exec {shlex.quote(sys.executable)} -m mlx_depth {arguments} {redirections}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, env=os.environ | environment, check=False
    )
    for mark in ("Traceback", "Exception ignored", "Error:"):
        assert mark not in done.stderr + done.stdout
    return done


PREDICT = f"predict in -o out {' '.join(DEMO)}"

FULL = "mlx-depth: error: No space left on device: check the free space, and where the output goes."
TAKES_NOTHING = "mlx-depth: error: the output takes nothing: check the free space."
CLOSED = "mlx-depth: error: stdout is closed: send it to a file, or to /dev/null."

# Arguments, redirections, exit code, what the one line says.
STREAMS = [
    (
        PREDICT,
        ">/dev/full",
        1,
        FULL,
    ),
    (
        f"{PREDICT} --json",
        ">/dev/full",
        1,
        FULL,
    ),
    (
        "models",
        ">/dev/full",
        2,
        FULL,
    ),
    (
        "info demo",
        ">/dev/full",
        2,
        FULL,
    ),
    ("--help", ">/dev/full", 2, TAKES_NOTHING),
    ("--version", ">/dev/full", 2, TAKES_NOTHING),
    (PREDICT, ">&-", 2, CLOSED),
    ("models", ">&-", 2, CLOSED),
]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device that is always full")
@pytest.mark.parametrize(("arguments", "redirections", "code", "line"), STREAMS)
def test_stdout_that_takes_nothing(folder: Path, arguments: str, redirections: str, code: int, line: str) -> None:
    done = shell(arguments, redirections, PYTHONUNBUFFERED="")
    assert done.returncode == code
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(line)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device that is always full")
def test_what_stdout_did_not_take_is_resumed(folder: Path) -> None:
    done = shell(PREDICT, ">/dev/full", PYTHONUNBUFFERED="1")  # what could not be written is not kept, and fails once
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    done = shell(f"{PREDICT} --resume")
    assert (done.returncode, len(list((folder / "out").glob("*.npy")))) == (0, 2)


def test_closed_stdout_is_said_before_any_work(folder: Path) -> None:
    shell(PREDICT, ">&-")
    assert not (folder / "out").exists()


def test_closed_stderr_leaves_stdout_clean(folder: Path) -> None:
    done = shell(f"{PREDICT} --json", "2>&-")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2
    assert all(line.startswith("{") for line in done.stdout.splitlines())
    assert shell(f"{PREDICT} --model nothing-of-this-name", "2>&-").returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device that is always full")
def test_full_stderr(folder: Path) -> None:
    assert shell(PREDICT, "2>/dev/full").returncode == 1
    assert len(list((folder / "out").glob("*.npy"))) == 2


def test_closed_stdin_is_an_empty_list(folder: Path) -> None:
    done = shell(f"predict - -o out {' '.join(DEMO)}", "<&-")
    assert done.returncode == 1
    assert "standard input is empty: write one path a line." in done.stderr


def test_all_streams_closed(folder: Path) -> None:
    assert shell(PREDICT, ">&- 2>&- <&-").returncode == 2


# Disks and folders.


def test_disk_that_is_full_for_results(folder: Path) -> None:
    """A limit on the size of a file stands for the disk: the arrays fit, the pictures do not."""
    done = shell("predict in -o out --format npy,pfm " + " ".join(DEMO), limits="trap '' XFSZ; ulimit -f 1;")
    assert done.returncode == 1
    *errors, last = done.stderr.splitlines()
    assert last == "0 done, 0 complete before, 2 failed"
    assert len(errors) == 2
    assert all("File too large. Check the folder and the free space." in line for line in errors)
    assert not [file for file in (folder / "out").iterdir() if file.suffix == ".tmp"]
    assert shell("predict in -o out --resume --format npy,pfm " + " ".join(DEMO)).returncode == 0


@pytest.mark.parametrize("place", ["missing", "file"])
def test_temporary_folder_that_cannot_serve(folder: Path, place: str) -> None:
    (folder / "file").touch()
    done = shell(PREDICT, TMPDIR=str(folder / place))
    assert (done.returncode, done.stderr) == (0, "2 done, 0 complete before, 0 failed\n")


@pytest.mark.parametrize("place", ["file", "file/deeper", "loop", "loop/deeper", "/proc/nothing"])
def test_output_folder_that_cannot_be(folder: Path, place: str) -> None:
    (folder / "file").touch()
    (folder / "loop").symlink_to("loop")
    done = shell(f"predict in/0.png in/1.png -o {place} {' '.join(DEMO)}")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.endswith("another with -o.\n") or "another folder with -o" in done.stderr


def unprivileged(arguments: str) -> subprocess.CompletedProcess[str]:
    """As a user whom permissions bind: root may read and write anything."""
    command = [sys.executable, "-m", "mlx_depth", *shlex.split(arguments)]
    if os.getuid() == 0:
        command = ROOT_LEFT + command
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr
    return done


def test_folders_without_access(folder: Path) -> None:
    if (
        os.getuid() == 0
        and subprocess.run([*ROOT_LEFT, sys.executable, "-c", "import mlx_depth"], check=False).returncode
    ):
        pytest.skip("another user cannot start this Python")
    (folder / "locked").mkdir(mode=0o000)
    (folder / "fixed").mkdir(mode=0o555)
    try:
        unreadable = unprivileged(f"predict locked -o /tmp/nothing-of-this-name {' '.join(DEMO)}")
        unwritable = unprivileged(f"predict in -o fixed/out {' '.join(DEMO)}")
    finally:
        (folder / "locked").chmod(0o700)
    assert (unreadable.returncode, unwritable.returncode) == (1, 2)
    assert "locked" in unreadable.stderr.splitlines()[0]
    assert unwritable.stderr == (
        "mlx-depth: error: cannot make the folder fixed/out (Permission denied): choose another with -o.\n"
    )


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"files":' * 50_000, "9" * 100_000, '{"mlx_depth": ' + "[" * 5000 + "]" * 5000 + "}"]
)
def test_sidecar_made_to_exhaust(folder: Path, text: str) -> None:
    (folder / "out").mkdir()
    (folder / "out/0.json").write_text(text)
    (folder / "in/9.json").write_text(text)
    done = shell(f"{PREDICT} --resume")
    assert done.returncode == 2
    assert "0.json exists, and no sidecar of mlx-depth names it" in done.stderr
    assert (folder / "out/0.json").read_text() == text


def test_sidecar_that_never_ends(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out/0.json").symlink_to("/dev/zero")
    os.mkfifo(folder / "out/1.json")
    done = shell(f"{PREDICT} --resume")
    assert done.returncode == 2
    assert "0.json exists (and 1 more), and no sidecar" in done.stderr
