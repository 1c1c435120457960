"""Point clouds as PLY (Greg Turk, 1994), binary, little-endian."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import printable
from mlx_depth.io.atomic import atomic_write

_TYPES = {"f4": "float", "u1": "uchar"}
_MAX_COMMENT = 500  # bytes: rply, by which Open3D reads, takes lines of at most 1024


def write_ply(
    path: Path,
    *,
    points: npt.NDArray[np.float32],
    colors: npt.NDArray[np.uint8],
    facts: Mapping[str, Any],
    overwrite: bool = False,
) -> Path:
    """Write points and their colors.

    Args:
        path: The file; missing folders are made.
        points: ``(N, 3)``, OpenCV axes.
        colors: ``(N, 3)``, RGB.
        facts: What the numbers are; text and numbers become comments of the header.
        overwrite: Replace a file that exists.
    Returns:
        The path.
    Raises:
        SaveError: If the file exists or cannot be written.
    """
    vertices = np.empty(len(points), _record(("x", "y", "z"), "f4") + _record(("red", "green", "blue"), "u1"))
    for column, name in enumerate(("x", "y", "z")):
        vertices[name] = points[:, column]
    for column, name in enumerate(("red", "green", "blue")):
        vertices[name] = colors[:, column]
    return write_vertices(path, vertices, facts=facts, overwrite=overwrite)


def write_vertices(
    path: Path, vertices: npt.NDArray[np.void], *, facts: Mapping[str, Any], overwrite: bool = False
) -> Path:
    """Write a PLY file of vertices alone.

    Args:
        path: As in ``write_ply``, like ``facts`` and ``overwrite``.
        vertices: ``(N,)``, packed records of little-endian float32 and uint8 fields, which become the properties.
    Returns:
        The path.
    Raises:
        SaveError: If the file exists or cannot be written.
    """
    fields: Mapping[str, tuple[Any, ...]] = vertices.dtype.fields or {}
    known = {name: value for name, value in facts.items() if isinstance(value, (str, int, float)) and value != ""}
    lines = [
        "ply",
        "format binary_little_endian 1.0",
        *(_comment(name, value) for name, value in known.items()),
        f"element vertex {len(vertices)}",
        *(f"property {_TYPES[kind.str[1:]]} {name}" for name, (kind, *_) in fields.items()),
        "end_header",
    ]

    def write(stream: BinaryIO) -> None:
        stream.write("\n".join(lines).encode("ascii") + b"\n")
        stream.write(vertices.data)

    atomic_write(path, write, overwrite=overwrite)
    return path


def _record(names: tuple[str, ...], kind: str) -> list[tuple[str, str]]:
    return [(name, f"<{kind}") for name in names]


def _comment(name: str, value: object) -> str:
    text = f"comment {name} {printable(value)}".encode("ascii", "backslashreplace")
    return text[:_MAX_COMMENT].decode("ascii")
