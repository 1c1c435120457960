"""Depth prompts: coarse distances beside a photo, such as a phone's LiDAR gives, in metres and without holes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlx_depth.errors import ImageError, OptionError, printable
from mlx_depth.io.arrays import NAME as ARRAY
from mlx_depth.io.arrays import is_array
from mlx_depth.io.depth_file import DEPTH_SUFFIXES, StoredMap, read_depth_file
from mlx_depth.io.image import PIL_IMAGE, ImageInfo
from mlx_depth.io.names import sameness
from mlx_depth.io.sources import is_url

if TYPE_CHECKING:
    import mlx.core as mx

PromptUnit = Literal["m", "mm"]
PromptSource: TypeAlias = Union[str, os.PathLike[str], npt.NDArray[Any], Image.Image, "mx.array"]

MAX_STRETCH = 1.25  # of a prompt over its photo: more is another field of view, or a photo that was turned
_METRES = {"m": 1.0, "mm": 0.001}


def load_prompt(source: PromptSource, *, unit: PromptUnit | None = None) -> npt.NDArray[np.float32]:
    """Read a depth prompt.

    Zeros, NaN and infinities are where a sensor measured nothing: they take the value of the nearest pixel that has
    one (along rows and columns), with a warning. Upstream takes a zero for the nearest distance there is.

    Args:
        source: A file as of ``read_depth_file``, an array (NumPy, MLX) or a PIL image, ``(h, w)``, any numbers; it
            shows the same field as the photo, upright as it, at any resolution.
        unit: Of its numbers; None: what a file of this library says, else millimetres for whole numbers and metres for
            floats.
    Returns:
        ``(h, w)``, float32, metres, all above 0.
    Raises:
        ImageError: If it cannot be read, is no map, holds negative numbers, or not two different distances.
        OptionError: If there is no such unit.
    """
    if unit is not None and unit not in get_args(PromptUnit):
        raise OptionError(f"no prompt_unit {unit!r}: choose one of {', '.join(get_args(PromptUnit))}.")
    stored, name = _stored(source)
    values = stored.values
    is_whole = np.issubdtype(values.dtype, np.integer)
    if values.ndim != 2 or 0 in values.shape or not (is_whole or np.issubdtype(values.dtype, np.floating)):
        raise ImageError(f"{name} is {values.dtype} of shape {values.shape}, no depth prompt: give numbers (h, w).")
    if values.dtype.itemsize == 1:
        raise ImageError(f"{name} has 8 bits, too few for distances: give 16-bit millimetres, or metres as floats.")
    factor = _METRES[unit or ("mm" if is_whole else "m")]
    if stored.metres is not None and unit is None:
        factor = stored.metres
    metres = (values.astype(np.float64) * factor).astype(np.float32)
    return _filled(metres, name)


def check_same_field(prompt: npt.NDArray[np.float32], photo: ImageInfo) -> None:
    """Raise ``ImageError`` for a prompt whose shape cannot be that of its photo."""
    size = photo.size
    stretch = (prompt.shape[0] / prompt.shape[1]) / (size[0] / size[1])
    if not 1 / MAX_STRETCH <= stretch <= MAX_STRETCH:
        raise ImageError(
            f"{printable(photo.source)} has {size[0]}×{size[1]} pixels and its depth prompt "
            f"{prompt.shape[0]}×{prompt.shape[1]} (height × width): they have to show the same field, so turn or crop "
            "the prompt."
        )


def prompts_of(images: Sequence[Any], folder: Path) -> list[str]:
    """Find the prompts of images in a folder, by their names without the suffix.

    Args:
        images: Paths or URLs.
        folder: Holds one depth file for each.
    Returns:
        Their paths, in the order of the images.
    Raises:
        OptionError: If an image has no name, none of the files has it, or several have.
    """
    try:
        files = sorted(file for file in folder.expanduser().iterdir() if file.suffix.lower() in DEPTH_SUFFIXES)
    except OSError as error:
        raise OptionError(f"the folder of prompts {printable(folder)} cannot be read ({error.strerror}).") from error
    named: dict[str, list[Path]] = {}
    for file in files:
        named.setdefault(sameness(Path(file.stem)), []).append(file)
    found = []
    for image in images:
        if not isinstance(image, (str, os.PathLike)) or is_url(str(image)):
            raise OptionError("prompts in a folder go to image files of the same names: give a list of prompts.")
        fitting = named.get(sameness(Path(Path(image).stem)), [])
        if len(fitting) != 1:
            count = ", ".join(file.name for file in fitting) or "none"
            raise OptionError(
                f"{printable(image)} needs one prompt in {printable(folder)}, a depth file of its name, and there is "
                f"{count}: name the prompts like the photos."
            )
        found.append(str(fitting[0]))
    return found


def _stored(source: PromptSource) -> tuple[StoredMap, str]:
    if isinstance(source, Image.Image):
        return StoredMap(np.asarray(source)), PIL_IMAGE
    if is_array(source):
        return StoredMap(_numbers(source)), ARRAY
    if isinstance(source, (str, os.PathLike)):
        return read_depth_file(Path(source)), printable(source)
    raise ImageError(f"a {type(source).__name__} is no depth prompt: give a path, an array (h, w) or a PIL image.")


def _numbers(array: Any) -> npt.NDArray[Any]:
    if isinstance(array, np.ndarray):
        return array
    import mlx.core as mx

    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)


def _filled(metres: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
    measured = np.isfinite(metres) & (metres != 0)
    known = metres[measured]
    if not known.size:
        raise ImageError(f"{name} holds no distance, all of it is 0 or not finite: leave the prompt out.")
    if known.min() < 0:
        raise ImageError(f"{name} holds negative distances, down to {known.min():.4g} m: give metres along the view.")
    if known.min() == known.max():
        raise ImageError(
            f"{name} is {known[0]:.4g} m everywhere: a prompt needs two different distances, "
            "between which the depth is scaled. Leave it out for depth without a unit."
        )
    holes = measured.size - known.size
    if holes:
        warnings.warn(
            f"{name}: {holes:,} of {measured.size:,} values (0 or not finite) are no distance and take the nearest.",
            stacklevel=2,
        )
        metres = metres[_nearest(measured)]
    return metres


def _nearest(known: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """For each pixel the row and column of a known one that is nearest in steps along rows and columns."""
    height, width = known.shape
    columns = np.arange(width)
    before = np.maximum.accumulate(np.where(known, columns, -2 * width), axis=1)
    after = np.minimum.accumulate(np.where(known, columns, 3 * width)[:, ::-1], axis=1)[:, ::-1]
    column = np.where(columns - before <= after - columns, before, after)  # of the nearest in the row
    row = np.broadcast_to(np.arange(height)[:, None], known.shape).copy()
    far = height + width
    steps = np.where(known.any(axis=1, keepdims=True), np.abs(column - columns), far)
    for order, step in ((range(1, height), -1), (range(height - 2, -1, -1), 1)):
        for y in order:
            nearer = steps[y + step] + 1 < steps[y]
            steps[y] = np.where(nearer, steps[y + step] + 1, steps[y])
            row[y] = np.where(nearer, row[y + step], row[y])
            column[y] = np.where(nearer, column[y + step], column[y])
    return row, column
