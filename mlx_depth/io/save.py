"""Results as files: the format follows the suffix, and a file is whole or not there."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mlx_depth.errors import SaveError, printable
from mlx_depth.io.atomic import atomic_write
from mlx_depth.io.encode import Content, encoder
from mlx_depth.io.formats import format_of, format_of_stream


def save(
    content: Content,
    target: str | os.PathLike[str] | BinaryIO,
    *,
    format: str | None = None,
    overwrite: bool = False,
    cmap: str = "Spectral_r",
) -> Path | None:
    """Write a result to one file, whole or not at all.

    Args:
        content: The result.
        target: The file; ``~`` is expanded and missing folders are made. Or a binary file object.
        format: One of ``FORMATS``, see ``DepthResult.save``. Default: by the suffix.
        overwrite: Replace a file that exists.
        cmap: Color map of color and side-by-side.
    Returns:
        The path written; None for a file object.
    Raises:
        OptionError: If the format, the suffix or the color map does not exist or does not fit.
        SaveError: If the file exists, cannot be written, or needs an extra that is not installed.
    """
    if not isinstance(target, (str, os.PathLike)):
        name, suffix = format_of_stream(getattr(target, "name", None), format)
        _write_to(target, encoder(content, name, suffix, cmap))
        return None
    path = Path(target).expanduser()
    write = encoder(content, format_of(path, format), path.suffix.lower(), cmap)
    atomic_write(path, write, overwrite=overwrite)
    return path


def _write_to(stream: BinaryIO, write: Callable[[BinaryIO], None]) -> None:
    """Through memory: writers seek, which a pipe cannot, and one that fails leaves nothing behind."""
    memory = io.BytesIO()
    write(memory)
    try:
        stream.write(memory.getvalue())
    except (OSError, ValueError) as error:  # closed, full, or open for reading
        raise SaveError(f"the file object cannot be written ({printable(error)}): open it with 'wb'.") from error
    except (TypeError, AttributeError) as error:
        kind = type(stream).__name__
        raise SaveError(f"a {kind} takes no bytes: give a path, or a file that is open with 'wb'.") from error
