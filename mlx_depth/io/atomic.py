"""Files written whole or not at all, and what a killed run leaves of them."""

import os
import re
import stat
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from mlx_depth.errors import SaveError

SECONDS_KEPT = 24 * 3600  # of a temporary file whose process cannot be asked for
_TEMPORARY = re.compile(
    r"\.mlx-depth-(?:(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]{1,10})-(?P<start>[0-9]{1,20})-)?[0-9a-f]{16}\.tmp"
)


def atomic_write(path: str | Path, write: Callable[[BinaryIO], None], *, overwrite: bool = False) -> None:
    """Write a file so that nobody ever sees a part of it.

    Args:
        path: The file; missing folders are made.
        write: Called once with an open binary file beside the destination.
        overwrite: Replace a file that exists; without it, of several processes at once exactly one succeeds.
    Raises:
        SaveError: If the file exists or cannot be written.

    What ``write`` raises passes through, and nothing is left behind.
    """
    path = Path(path)
    if not overwrite and os.path.lexists(path):
        raise _exists(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_beside(path, write, overwrite)
    except SaveError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise SaveError(f"cannot write {path}: {reason}. Check the folder and the free space.") from error


def remove_stale(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder.

    Those of a process that runs stay, and so do for a day those of another machine. What cannot be removed stays, too.
    """
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        name = _TEMPORARY.fullmatch(entry.name)
        if name is not None and _is_stale(name, Path(entry)):
            with suppress(OSError):
                Path(entry).unlink()


def _is_stale(name: re.Match[str], file: Path) -> bool:
    try:
        facts = file.lstat()
    except OSError:
        return False
    if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.getuid():
        return False
    if name["host"] == _host():
        return not _is_running(int(name["pid"]), name["start"])
    return time.time() - facts.st_mtime > SECONDS_KEPT


def _is_running(pid: int, start: str) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return _start(pid) == start


@cache
def _host() -> str:
    """This machine since it started, as seen from within its container: where a process number means one process."""
    place = os.uname().nodename
    for source in (_boot, _namespace):
        try:
            place += source()
        except OSError:  # not Linux
            continue
    return f"{zlib.crc32(place.encode()):08x}"


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")  # noqa: PTH115  # it is no path


def _start(pid: int) -> str:
    """When a process began, in ticks since the machine did; 0 where the system does not say, and for a dead one."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "0"
    state, *facts = text.rpartition(")")[2].split()  # fields 3 and on of proc(5); the name before may hold anything
    return "0" if state in "ZX" else facts[18]


def _temporary_beside(path: Path) -> Path:
    pid = os.getpid()
    return path.with_name(f".mlx-depth-{_host()}-{pid}-{_start(pid)}-{os.urandom(8).hex()}.tmp")


def _write_beside(path: Path, write: Callable[[BinaryIO], None], overwrite: bool) -> None:
    # Opened by us, not by tempfile, so that the file gets the user's usual permissions.
    temporary = _temporary_beside(path)
    try:
        with temporary.open("xb") as stream:
            write(stream)
        _publish(temporary, path, overwrite)
    finally:
        temporary.unlink(missing_ok=True)


def _publish(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(path)
        return
    try:
        _claim(temporary, path)
    except FileExistsError:
        raise _exists(path) from None


def _claim(temporary: Path, path: Path) -> None:
    """Give the file its name if nobody has it, in one step: of two processes one gets FileExistsError."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # exFAT and some network volumes have no hard links
        path.touch(exist_ok=False)
        temporary.replace(path)


def _exists(path: Path) -> SaveError:
    return SaveError(f"{path} exists: pass overwrite=True (--overwrite on the command line).")
