"""Linux only: put an installed OpenBLAS in front of the slow reference BLAS that ``mlx[cpu]`` ships."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_depth.errors import OptionError

SWITCH = "MLX_DEPTH_OPENBLAS"
_OFF = ("0", "off")
# Fedora's libopenblas.so.0 runs one thread and has a threaded sibling; Debian's is threaded itself.
_SYSTEM = ("libopenblasp.so.0", "libopenblas.so.0")


def load_openblas() -> str | None:
    """Load an installed OpenBLAS, so that MLX's matrix products on the CPU run on it.

    Call it before ``mlx.core`` is imported: a symbol that is global by then wins over the library that MLX
    links. Looked for in this order: the path in ``MLX_DEPTH_OPENBLAS`` (``0`` or ``off``: load none), the
    system, ``sys.prefix/lib`` (conda), wheels that bundle one (OpenCV's does; NumPy's renames its functions).

    Returns:
        Path or library name of what was loaded. ``None`` off Linux, when switched off, when nothing was
        found, and when ``mlx.core`` is already imported.
    Raises:
        OptionError: If ``MLX_DEPTH_OPENBLAS`` names a file that cannot serve.

    Symbol order of ``dlopen(3)`` with ``RTLD_GLOBAL``.
    """
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return None
    choice = os.environ.get(SWITCH, "")
    if choice.lower() in _OFF:
        return None
    if choice:
        return _load_chosen(choice)
    return next((name for name in _candidates() if _load(name) is None), None)


def hint() -> str | None:
    """Say how to speed up MLX on this machine's CPU.

    Call it once MLX is imported, before the first prediction on the CPU.

    Returns:
        One line to print or warn with. ``None`` off Linux, when MLX runs on OpenBLAS, and when
        ``MLX_DEPTH_OPENBLAS`` is set: the user has decided.
    """
    if sys.platform != "linux" or os.environ.get(SWITCH) or _library_in_use() is not None:
        return None
    if any(_problem(name) is None for name in _candidates()):
        return "MLX runs on a slow BLAS, as mlx.core was imported first: import mlx_depth before mlx."
    return (
        "MLX runs on a slow BLAS (matrix products take about 30 times longer): install OpenBLAS "
        f"(apt install libopenblas0, or conda install openblas), or set {SWITCH}=off to hide this hint."
    )


def threads() -> int:
    """How many threads a matrix product of MLX's takes: what ``OPENBLAS_NUM_THREADS`` or the cores say.

    Returns:
        1 where MLX does not run on OpenBLAS.
    """
    library = _library_in_use()
    return int(library.openblas_get_num_threads()) if library is not None else 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it a matrix product takes one thread, so that several at once do not wait for one another.

    For one user at a time, as the number belongs to the process.
    """
    library = _library_in_use()
    if library is None:
        yield
        return
    before = threads()
    library.openblas_set_num_threads(1)
    try:
        yield
    finally:
        library.openblas_set_num_threads(before)


def _load_chosen(choice: str) -> str:
    path = str(Path(choice).expanduser())
    problem = _load(path)
    if problem is not None:
        raise OptionError(
            f"{SWITCH}={choice}: {problem}. Set it to the path of a libopenblas.so, or to off, or unset it."
        )
    return path


def _load(name: str) -> str | None:
    """Make the library's symbols global; the reason where it cannot serve."""
    problem = _problem(name)
    if problem is None:
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    return problem


def _problem(name: str) -> str | None:
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        return str(error)
    if not hasattr(library, "cblas_sgemm"):
        return f"{name} has no function cblas_sgemm"
    if b"USE64BITINT" in _config(library):
        return f"{name} takes 64-bit integers where MLX passes 32-bit ones"
    return None


def _candidates() -> Iterator[str]:
    yield from _SYSTEM
    yield from _glob(Path(sys.prefix, "lib"), "libopenblas*.so*")
    for folder in map(Path, sys.path):
        if folder.name in ("site-packages", "dist-packages"):  # never the current directory
            yield from _glob(folder, "*.libs/libopenblas*.so*")


def _glob(folder: Path, pattern: str) -> list[str]:
    return sorted(str(path.absolute()) for path in folder.glob(pattern))


def _library_in_use() -> ctypes.CDLL | None:
    """The OpenBLAS that is global, or linked by MLX itself (conda-forge's build)."""
    mlx = sys.modules.get("mlx.core")
    libraries = [ctypes.CDLL(None)] + ([ctypes.CDLL(mlx.__file__)] if mlx is not None else [])
    return next((library for library in libraries if _config(library)), None)


def _config(library: ctypes.CDLL) -> bytes:
    """OpenBLAS's own description of its build; empty for another library."""
    if not hasattr(library, "openblas_get_config"):
        return b""
    describe = library.openblas_get_config
    describe.restype = ctypes.c_char_p
    return bytes(describe())
