"""The door to coremltools: the one place that imports it, late, quietly and with a clear error."""

import contextlib
import functools
import io
import logging
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mlx_depth.errors import OptionError

TESTED = "9."  # the evaluator walks an internal API of coremltools, which moves between major versions

_ADVICE = (
    "install it with pip install 'mlx-depth[coreml]' under Python 3.10 to 3.13 on macOS or x86-64 Linux "
    "(its makers build it for no other)."
)


@functools.cache
def coremltools() -> Any:
    """Import coremltools, without its lines about the macOS libraries that are missing elsewhere.

    Returns:
        The module.
    Raises:
        OptionError: If it is missing, cannot be used here, or is of another major version than was tested.
    """
    try:
        found = version("coremltools")
    except PackageNotFoundError:
        raise OptionError(f"Core ML export needs coremltools: {_ADVICE}") from None
    if not found.startswith(TESTED):
        raise OptionError(f"Core ML export was tested with coremltools {TESTED}x, not {found}: {_ADVICE}")
    logger = logging.getLogger("coremltools")
    logger.setLevel(logging.ERROR)
    logger.disabled = True  # the import sets a level of its own
    try:
        import coremltools as module
        import coremltools.libmilstoragepython  # absent where no binaries are built, and not missed by the import above
    except ImportError as error:
        raise OptionError(f"coremltools cannot be used here ({error}): {_ADVICE}") from error
    finally:
        logger.disabled = False
    logger.setLevel(logging.ERROR)
    return module


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep coremltools' progress bars off stderr."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
