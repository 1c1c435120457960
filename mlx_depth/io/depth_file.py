"""Maps of distances in: what a depth sensor, or this library, has written to a file."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import ImageError, printable
from mlx_depth.io.bounded import read_bounded
from mlx_depth.io.damage import DECODER_ERRORS
from mlx_depth.io.encode import METADATA_KEY
from mlx_depth.kinds import DepthKind

_PILLOW_SUFFIXES = (".png", ".tif", ".tiff")
_DESCRIPTION = 270  # TIFF 6.0, section 8


class StoredMap(NamedTuple):
    """A map as it is stored."""

    values: npt.NDArray[Any]
    """Of any shape and type; whole numbers are mostly millimetres."""
    metres: float | None = None
    """What one unit is in metres, where the file says it."""


def read_depth_file(path: Path) -> StoredMap:
    """Read a map of distances.

    Args:
        path: ``.png`` of 16 bits, ``.tif(f)`` of 16 bits or floats, ``.npy``, ``.npz`` (``depth``, or its only array),
            ``.pfm``, or ``.exr`` (``Z``, or its only channel).
    Returns:
        Its numbers; of a file that this library wrote with their unit.
    Raises:
        ImageError: If it cannot be read, is a picture rather than numbers, or holds relative depth of this library.
    """
    name = printable(path)
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise ImageError(f"{name} is no depth file: give one of {' '.join(sorted(_READERS))}.")
    try:
        with path.expanduser().open("rb") as stream:
            data = read_bounded(stream.read, name)
        return read(data)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise ImageError(f"there is no depth file {name}: check the path.") from error
    except (*DECODER_ERRORS, zipfile.BadZipFile) as error:
        raise ImageError(f"{name} cannot be read as depth ({printable(error)}): export it again.") from error


def _of_pillow(data: bytes) -> StoredMap:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image.load()
        if image.mode not in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F"):
            raise ImageError(f"a picture of mode {image.mode}, not of numbers: export the depth as 16-bit gray.")
        text = getattr(image, "text", {}).get(METADATA_KEY)
        tags = getattr(image, "tag_v2", None)
        if tags is not None:
            text = tags.get(_DESCRIPTION)
        is_levels = image.format == "PNG"
        return _of_ours(np.asarray(image), text, levels=is_levels)


def _of_ours(values: npt.NDArray[Any], text: Any, *, levels: bool) -> StoredMap:
    """A map, with the unit that its text says if it is ours: a PNG has levels, the others metres."""
    facts = _facts(text)
    if facts is None:
        return StoredMap(values)
    if facts["kind"] != DepthKind.METRIC.value:
        raise ImageError(f"{facts['kind'].replace('_', ' ')} depth, which has no unit: give a map of distances.")
    return StoredMap(values, float(facts["png16"]["scale"]) if levels else 1.0)


def _facts(text: Any) -> dict[str, Any] | None:
    """Our sidecar in a file's text; None where there is none."""
    try:
        facts = json.loads(str(text))
    except ValueError:
        return None
    return facts if isinstance(facts, dict) and METADATA_KEY in facts and "png16" in facts else None


def _of_npy(data: bytes) -> StoredMap:
    return StoredMap(np.load(io.BytesIO(data), allow_pickle=False))


def _of_npz(data: bytes) -> StoredMap:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        name = "depth" if "depth" in arrays else arrays.files[0]
        if name != "depth" and len(arrays.files) > 1:
            raise ImageError(f"none of its arrays is called depth ({', '.join(arrays.files)}): name it so.")
        return _of_ours(arrays[name], arrays.get(METADATA_KEY), levels=False)


def _of_pfm(data: bytes) -> StoredMap:
    kind, size, scale, pixels = data.split(b"\n", 3)
    if kind.strip() != b"Pf":
        raise ImageError("no gray PFM: give one that begins with Pf.")
    width, height = map(int, size.split())
    if width < 1 or height < 1:
        raise ImageError(f"a PFM of {width} × {height} pixels: export it again.")
    order = "<" if float(scale) < 0 else ">"
    return StoredMap(np.frombuffer(pixels, f"{order}f4", width * height).reshape(height, width)[::-1])


def _of_exr(data: bytes) -> StoredMap:
    import tempfile

    try:
        import OpenEXR  # ships no types
    except ImportError as error:
        raise ImageError("OpenEXR is missing, which .exr files need: pip install 'mlx-depth[exr]'.") from error
    with tempfile.TemporaryDirectory() as folder:  # OpenEXR 3.3 reads from a file name alone
        file = Path(folder) / "depth.exr"
        file.write_bytes(data)
        opened = OpenEXR.File(str(file))
        channels = {name: np.array(channel.pixels) for name, channel in opened.channels().items()}
        text = opened.header().get(METADATA_KEY)
    if "Z" not in channels and len(channels) > 1:
        raise ImageError(f"none of its channels is called Z ({', '.join(channels)}): name it so.")
    return _of_ours(channels.get("Z", next(iter(channels.values()))), text, levels=False)


_READERS: dict[str, Callable[[bytes], StoredMap]] = {
    **dict.fromkeys(_PILLOW_SUFFIXES, _of_pillow),
    ".npy": _of_npy,
    ".npz": _of_npz,
    ".pfm": _of_pfm,
    ".exr": _of_exr,
}
DEPTH_SUFFIXES = frozenset(_READERS)
