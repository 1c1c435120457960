"""What killed processes leave goes with the next run, and nothing else does; the writing itself: ``test_save.py``."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlx_depth.io import atomic
from mlx_depth.io.atomic import SECONDS_KEPT, remove_stale

WRITE = """
import sys
from mlx_depth.io.atomic import atomic_write
def write(stream):
    stream.write(b"half")
    print("writing", flush=True)
    sys.stdin.readline()
atomic_write(sys.argv[1], write)
"""


def writing(file: Path) -> subprocess.Popen[str]:
    """A process in the middle of a file."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_a_killed_process_s_goes_and_a_living_one_s_stays(tmp_path: Path) -> None:
    killed, living = writing(tmp_path / "killed"), writing(tmp_path / "living")
    killed.kill()
    killed.communicate()
    assert len(list(tmp_path.iterdir())) == 2
    remove_stale(tmp_path)
    (left,) = tmp_path.iterdir()
    assert f"-{living.pid}-" in left.name
    living.communicate("go\n", timeout=60)
    assert [file.name for file in tmp_path.iterdir()] == ["living"]


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    killed = writing(tmp_path / "killed")
    killed.kill()
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked how
    if Path("/proc/self/stat").exists():
        remove_stale(tmp_path)
        assert list(tmp_path.iterdir()) == []
    killed.communicate()


def own(pid: int, start: str) -> str:
    return f".mlx-depth-{atomic._host()}-{pid}-{start}-{'0' * 16}.tmp"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux says when a process began")
def test_number_that_another_process_has_by_now(tmp_path: Path) -> None:
    pid, start = os.getpid(), atomic._start(os.getpid())
    for name in (own(pid, start), own(pid, str(int(start) + 1))):
        (tmp_path / name).touch()
    remove_stale(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [own(pid, start)]


@pytest.mark.parametrize("host", ["ffffffff-1-1-", ""], ids=["another machine", "an earlier version"])
def test_what_cannot_be_asked_for_stays_a_day(host: str, tmp_path: Path) -> None:
    young, old = (tmp_path / f".mlx-depth-{host}{digit * 16}.tmp" for digit in "01")
    young.touch()
    old.touch()
    os.utime(young, (time.time() - SECONDS_KEPT + 60,) * 2)
    os.utime(old, (time.time() - SECONDS_KEPT - 60,) * 2)
    remove_stale(tmp_path)
    assert list(tmp_path.iterdir()) == [young]


@pytest.mark.parametrize("name", [".mlx-depth-notes.tmp", "mlx-depth-0000000000000000.tmp", "a.tmp", ".mlx-depth-.tmp"])
def test_other_files_stay(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (0, 0))
    remove_stale(tmp_path)
    assert (tmp_path / name).exists()


def test_links_and_folders_of_such_a_name_stay(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / own(999_999_999, "1")).symlink_to(tmp_path / "target")
    (tmp_path / own(999_999_998, "1")).mkdir()
    remove_stale(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_folder_that_is_missing(tmp_path: Path) -> None:
    remove_stale(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()
