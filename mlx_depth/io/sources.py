"""Where encoded images come from: every source becomes one seekable stream and a name."""

import base64
import binascii
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote_to_bytes

from mlx_depth.errors import ImageError, printable
from mlx_depth.io.bounded import read_bounded

DATA_URI = "<data URI>"


@contextmanager
def open_source(source: object, timeout: float) -> Iterator[tuple[IO[bytes], str]]:
    """Open encoded bytes.

    Args:
        source: Path, URL, ``data:`` URI, bytes, or binary file.
        timeout: Seconds that a URL may stay silent.
    Yields:
        A seekable binary stream, and the path or URL, or ``<bytes>``, ``<file>``, ``<data URI>``.
    Raises:
        ImageError: If there is nothing to read.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(bytes(source)), "<bytes>"
    elif isinstance(source, str) and is_data_uri(source):
        yield io.BytesIO(_decode_data_uri(source)), DATA_URI
    elif isinstance(source, str) and is_url(source):
        from mlx_depth.io.download import download  # the modules behind it are a tenth of all that an import costs

        yield io.BytesIO(download(source, timeout)), source
    elif isinstance(source, (str, os.PathLike)):
        with _open_path(os.fspath(source)) as stream:
            name = str(stream.name)
            yield (stream if stream.seekable() else io.BytesIO(read_bounded(stream.read, printable(name)))), name
    elif hasattr(source, "read"):
        yield _read_file(source)
    else:
        raise ImageError(
            f"a {type(source).__name__} is not an image: give a path, URL, bytes, binary file, PIL image, "
            "numpy array or mx.array."
        )


def is_url(source: str) -> bool:
    """Whether a string is an address rather than a path."""
    return "://" in source or is_data_uri(source)


def is_data_uri(source: str) -> bool:
    """Whether a string is the image itself, written as text."""
    return re.match(r"data:[^,]{0,200},", source, re.IGNORECASE) is not None


def _decode_data_uri(uri: str) -> bytes:
    """As RFC 2397 has it; base64 with line ends, without its padding, or in its form for addresses is taken, too."""
    kind, _, text = uri.partition(",")
    data = unquote_to_bytes(text)
    if not kind.lower().rstrip().endswith(";base64"):
        return data
    packed = re.sub(rb"\s", b"", data).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error as error:
        raise ImageError(f"{printable(kind)},… is not sound base64 ({error}): copy the whole address.") from error


def _open_path(name: str) -> IO[bytes]:
    shown = printable(name)
    try:
        return Path(name).expanduser().open("rb")
    except FileNotFoundError as error:
        raise ImageError(f"there is no image {shown}: check the path.") from error
    except IsADirectoryError as error:
        raise ImageError(f"{shown} is a folder: give the path of one image in it.") from error
    except PermissionError as error:
        raise ImageError(f"{shown} may not be read: change its permissions.") from error
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error  # an OSError quotes the whole name
        raise ImageError(f"{shown!r} cannot be opened ({printable(reason)}): check the path.") from error


def _read_file(file: Any) -> tuple[IO[bytes], str]:
    name = getattr(file, "name", None)
    name = name if isinstance(name, str) else "<file>"
    shown = printable(name)
    try:
        data = _all_of(file, shown)
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = printable(error)
        raise ImageError(f"{shown} cannot be read ({reason}): open it again for reading, with 'rb'.") from error
    if not data:
        raise ImageError(f"{shown} gives no bytes, it is empty or at its end: seek(0) takes it back to its start.")
    return io.BytesIO(data), name


def _all_of(file: Any, shown: str) -> bytes:
    def read(count: int) -> bytes:
        try:
            part = file.read(count)
        except TypeError:  # it gives all it has, or nothing
            part = b"" if started else file.read()
        started.append(True)
        if not isinstance(part, bytes):
            raise ImageError(f"{shown} gives {type(part).__name__} instead of bytes: open it with 'rb'.")
        return part

    started: list[bool] = []
    return read_bounded(read, shown)
