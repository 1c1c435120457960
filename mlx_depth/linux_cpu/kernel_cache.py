"""A private place for the loops that MLX compiles on a Linux CPU.

MLX has g++ build them into ``$TMPDIR/mlx/<version>/cpu`` and loads whatever lies there: in a folder that all share,
a library of anyone's; after a killed build, half a library. So ours are built and loaded once a process, in a folder of
the user alone, before anything else asks for them: MLX keeps what it has loaded.
"""

import hashlib
import inspect
import json
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import mlx.core as mx
import numpy as np

Pair = tuple[Callable[..., mx.array], Callable[..., mx.array]]  # plain, compiled

SECONDS_KEPT = 24 * 3600  # of a folder in which a build may still run
_MANIFEST = "manifest.json"


def problem_of(pairs: Sequence[Pair]) -> str | None:
    """Build or load the loops of some functions.

    Args:
        pairs: Float32 arrays → an array, element by element; plain and compiled.
    Returns:
        None where they can be trusted; else why not, with the next step.
    """
    if shutil.which("g++") is None:
        return "g++ is missing: install it (apt install g++)."
    try:
        folder = _private_folder()
    except (OSError, RuntimeError) as error:
        return f"no private folder ({error}): set XDG_CACHE_HOME to a folder of yours."
    try:
        _load(folder, pairs)
    except (OSError, RuntimeError, ValueError):
        return f"g++ builds nothing that runs in {folder}: check the free space, and that programs may run there."
    return None


def _private_folder() -> Path:
    """The user's own folder for libraries; PermissionError where somebody else could write into it."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (named if named.is_absolute() else Path.home() / ".cache") / "mlx-depth" / "kernels"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        raise PermissionError(f"{folder} is open to others")
    for parent in folder.resolve().parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise PermissionError(f"{parent} is writable for all")
    return folder


def _load(folder: Path, pairs: Sequence[Pair]) -> None:
    """Load the loops, built by an earlier process or now."""
    ready = folder / f"{mx.__version__}-{platform.machine()}"  # type: ignore[attr-defined]
    if _is_intact(ready):
        try:
            return _run(ready, pairs)
        except RuntimeError:  # built for another machine that shares the home folder
            pass
    _remove_stale(folder)
    building = Path(tempfile.mkdtemp(prefix="building-", dir=folder))
    try:
        _run(building, pairs)
        (building / _MANIFEST).write_text(json.dumps(_digests(building)))
        _publish(building, ready)
    finally:
        shutil.rmtree(building, ignore_errors=True)  # what is loaded stays loaded


def _run(folder: Path, pairs: Sequence[Pair]) -> None:
    """Compute each function once, compiled and plain; ValueError where they disagree."""
    for plain, compiled in pairs:
        x = mx.array(np.linspace(-6, 0, 64, dtype=np.float32))
        arrays = [x] * len(inspect.signature(plain).parameters)
        with _temporary_folder(folder):
            ours = compiled(*arrays)
            mx.eval(ours)
        expected = np.array(plain(*arrays), np.float64)
        if not np.allclose(np.array(ours, np.float64), expected, rtol=1e-5, atol=1e-5):
            raise ValueError(f"{plain.__name__} computes something else when it is compiled")


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[None]:
    """What MLX and g++ take for the folder of temporary files."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def _is_intact(ready: Path) -> bool:
    """Whether all libraries are as they were built: loading one cut short can end the process."""
    try:
        recorded = json.loads((ready / _MANIFEST).read_bytes())
        return bool(recorded) and _digests(ready) == recorded
    except (OSError, ValueError):
        return False


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.so"))
    return {str(file.relative_to(folder)): hashlib.blake2b(file.read_bytes()).hexdigest() for file in files}


def _publish(building: Path, ready: Path) -> None:
    """Whole or not at all: a killed build leaves nothing under the final name."""
    with suppress(OSError):
        building.rename(ready)
        return
    if not _is_intact(ready):  # else another process was quicker
        shutil.rmtree(ready, ignore_errors=True)
        with suppress(OSError):
            building.rename(ready)


def _remove_stale(folder: Path) -> None:
    for building in folder.glob("building-*"):
        with suppress(OSError):
            if time.time() - building.stat().st_mtime > SECONDS_KEPT:
                shutil.rmtree(building, ignore_errors=True)
