"""A scene as one NPZ file: every array, exact."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mlx_depth.io.atomic import atomic_write
from mlx_depth.io.encode import METADATA_KEY


def write_npz(
    path: Path, *, arrays: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any], overwrite: bool = False
) -> Path:
    """Write named arrays, compressed.

    Args:
        path: The file; missing folders are made.
        arrays: By key; text is an array of text without objects in it.
        facts: JSON-ready; goes in as text under ``mlx_depth``.
        overwrite: Replace a file that exists.
    Returns:
        The path.
    Raises:
        SaveError: If the file exists or cannot be written.
    """
    contents = {**arrays, METADATA_KEY: np.asarray(json.dumps(facts, allow_nan=False))}

    def write(stream: BinaryIO) -> None:
        np.savez_compressed(stream, **contents)  # type: ignore[arg-type]  # the stub reads them as allow_pickle

    atomic_write(path, write, overwrite=overwrite)
    return path
