"""What each file format holds of a result, written to a binary stream."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError, SaveError

Pixels: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

METADATA_KEY = "mlx_depth"
_IMAGE_DESCRIPTION = 270  # TIFF 6.0, section 8
_PNG_LEVEL = 4  # half the time of zlib's default, 6; 16-bit files are 4 % larger, color pictures 30 %


@dataclass(frozen=True, eq=False)
class Content:
    """What files can hold of one result.

    Attributes:
        depth: ``(H, W)``, float32.
        maps: What the model gave beside the depth, ``confidence`` and ``sky``: ``(H, W)``, float32.
        channels: What EXR files hold beside the depth and the maps: ``(H, W)``, float32.
        facts: The sidecar, JSON-ready.
        fields: All that an npz holds, by name.
        pictures: Format → what paints it with a color map: RGB ``(h, w, 3)`` uint8, or gray ``(H, W)`` uint8, uint16.
        mesh: Makes the .glb file of a surface.
    """

    depth: npt.NDArray[np.float32]
    maps: Mapping[str, npt.NDArray[np.float32]]
    channels: Mapping[str, npt.NDArray[np.float32]]
    facts: Mapping[str, Any]
    fields: Mapping[str, npt.NDArray[Any]]
    pictures: Mapping[str, Callable[[str], Pixels]]
    mesh: Callable[[], bytes]

    def json(self) -> str:
        """The sidecar in one line of ASCII, as PNG, TIFF and EXR want their text."""
        return json.dumps(self.facts, allow_nan=False)


def encoder(content: Content, format: str, suffix: str, cmap: str) -> Callable[[BinaryIO], None]:
    """Find what writes a format.

    Args:
        content: The result.
        format: A key of ``FORMATS``.
        suffix: One of the format's; it chooses between PNG and JPEG.
        cmap: Color map of the color pictures.
    Returns:
        A function that writes to a binary stream.
    Raises:
        OptionError: If the result does not hold what the format needs, or no color map has that name.
        SaveError: If a mesh needs an extra that is not installed.
    """
    if format in content.pictures:
        pixels = content.pictures[format](cmap)
        return partial(_write_png if suffix == ".png" else _write_jpeg, pixels, content.json())
    if format in ("confidence", "sky"):
        if format not in content.maps:
            raise OptionError(f"this result has no {format}, which its model does not compute: leave {format} out.")
        return partial(_write_npy, content.maps[format])
    if format == "mesh":
        return partial(_write_bytes, content.mesh())
    return partial(_DATA[format], content)


def _write_png(pixels: Pixels, metadata: str, stream: BinaryIO) -> None:
    from PIL import Image, PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(METADATA_KEY, metadata)
    Image.fromarray(pixels).save(stream, "PNG", pnginfo=chunks, compress_level=_PNG_LEVEL)


def _write_jpeg(pixels: Pixels, metadata: str, stream: BinaryIO) -> None:
    from PIL import Image

    # Full color resolution: depth edges are color edges.
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling=0, comment=metadata)


def _write_npy(values: npt.NDArray[np.float32], stream: BinaryIO) -> None:
    np.save(stream, values, allow_pickle=False)


def _write_bytes(data: bytes, stream: BinaryIO) -> None:
    stream.write(data)


def _write_npz(content: Content, stream: BinaryIO) -> None:
    arrays = {**content.fields, METADATA_KEY: np.asarray(content.json())}
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # the stub reads them as allow_pickle


def _write_tiff(content: Content, stream: BinaryIO) -> None:
    from PIL import Image

    Image.fromarray(content.depth).save(stream, "TIFF", tiffinfo={_IMAGE_DESCRIPTION: content.json()})


def _write_pfm(content: Content, stream: BinaryIO) -> None:
    height, width = content.depth.shape
    stream.write(f"Pf\n{width} {height}\n-1.0\n".encode())  # the minus sign means little-endian
    stream.write(content.depth[::-1].astype("<f4").tobytes())  # bottom row first


def _write_exr(content: Content, stream: BinaryIO) -> None:
    import tempfile  # slow to import, and for this format alone

    try:
        import OpenEXR  # ships no types
    except ImportError as error:
        raise SaveError("OpenEXR is missing, which .exr files need: pip install 'mlx-depth[exr]'.") from error
    header = {
        "compression": OpenEXR.ZIP_COMPRESSION,
        "type": OpenEXR.scanlineimage,
        METADATA_KEY: content.json(),
    }
    channels = {"Z": content.depth, **content.maps, **content.channels}
    with tempfile.TemporaryDirectory() as folder:  # OpenEXR 3.3 writes to a file name alone
        file = Path(folder) / "depth.exr"
        contiguous = {name: np.ascontiguousarray(values) for name, values in channels.items()}
        OpenEXR.File(header, contiguous).write(str(file))
        stream.write(file.read_bytes())


def _write_json(content: Content, stream: BinaryIO) -> None:
    stream.write(json.dumps(content.facts, allow_nan=False, indent=2).encode() + b"\n")


_DATA: dict[str, Callable[[Content, BinaryIO], None]] = {
    "npy": lambda content, stream: _write_npy(content.depth, stream),
    "npz": _write_npz,
    "tiff": _write_tiff,
    "pfm": _write_pfm,
    "exr": _write_exr,
    "json": _write_json,
}
