"""Encoded images: one stream becomes a PIL image whose size is known to be acceptable, then upright RGB."""

import io
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from mlx_depth.errors import ImageError
from mlx_depth.io import png, tiff
from mlx_depth.io.color import Color, to_rgb
from mlx_depth.io.damage import DECODER_ERRORS, damaged, not_an_image, too_many_pixels
from mlx_depth.io.exif import TURNS, focal_length_px_of, orientation
from mlx_depth.io.signature import HEADER_BYTES, is_heif, is_tiff

# Raster formats with a signature: Pillow would hand EPS to Ghostscript, and take any bytes for TGA.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "JPEG2000")

_JPEG_2000_HEADER_BYTES = 1 << 20  # profiles may stand before the pixels


@dataclass(frozen=True)
class Decoded:
    """One image.

    Attributes:
        pixels: Upright RGB, uint8 ``(H, W, 3)``.
        orientation: EXIF orientation that was applied, 1 to 8.
        focal_length_px: In pixels of the image; None where EXIF does not tell.
    """

    pixels: npt.NDArray[np.uint8]
    orientation: int
    focal_length_px: float | None


def decode(stream: IO[bytes], name: str, background: Color, max_pixels: int) -> Decoded:
    """Decode a file.

    Args:
        stream: Seekable, at its start.
        name: For messages.
        background: Under transparent pixels.
        max_pixels: Read from the header before anything is decoded.
    Returns:
        The image.
    Raises:
        ImageError: If it cannot be decoded.
    """
    try:
        image = _open(stream, name, max_pixels)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_many_pixels(name, max_pixels) from error
    except Image.UnidentifiedImageError as error:
        raise not_an_image(name) from error
    except DECODER_ERRORS as error:
        raise damaged(name, error) from error
    with image:
        return from_pil(image, name, background, max_pixels)


def from_pil(image: Image.Image, name: str, background: Color, max_pixels: int) -> Decoded:
    """Turn a PIL image, loaded or not, into upright RGB.

    Args:
        image: Any mode.
        name: For messages.
        background: Under transparent pixels.
        max_pixels: Most that it may have.
    Returns:
        The image.
    Raises:
        ImageError: If it is too large, damaged or without pixels.
    """
    if image.width * image.height == 0:
        raise ImageError(f"{name} has no pixels ({image.width} x {image.height}): give a larger image.")
    if image.width * image.height > max_pixels:
        raise too_many_pixels(name, max_pixels)
    # TIFF turns itself while it loads, then forgets its orientation; and it asks for Pillow's limit again.
    tags = tiff.tags_of(image)
    in_tiff = tags is not None
    try:
        if in_tiff:
            tiff.check_layout(tags, name)
        turned = orientation(image) if in_tiff else 1
        with _pillow_limit(max_pixels) if in_tiff else nullcontext():
            image.load()
        to_turn = orientation(image)
        focal_length_px = focal_length_px_of(image)
        upright = to_rgb(image, name, background)
        if to_turn != 1:
            upright = upright.transpose(TURNS[to_turn])
        pixels = np.asarray(upright)
    except ImageError:
        raise
    except DECODER_ERRORS as error:
        raise damaged(name, error) from error
    return Decoded(pixels, max(turned, to_turn), focal_length_px)


def _open(stream: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    header = stream.read(HEADER_BYTES)
    if not header:
        raise ImageError(f"{name} is empty (0 bytes): fetch or export it again.")
    stream.seek(0)
    if header.startswith(png.SIGNATURE):
        return _open_pillow(io.BytesIO(png.picture_alone(stream.read())), max_pixels)
    if is_heif(header):
        return _open_heif(stream.read(), name, max_pixels)
    if is_tiff(header):
        return _open_tiff(stream, name, max_pixels)
    image = _open_pillow(stream, max_pixels)
    if image.format == "JPEG2000":
        _check_jpeg_2000(stream, name)
    return image


def _check_jpeg_2000(stream: IO[bytes], name: str) -> None:
    """Refuse color of more than 8 bits: Pillow rounds its white up to the level after the last, which is black."""
    at = stream.tell()
    stream.seek(0)
    header = stream.read(_JPEG_2000_HEADER_BYTES)
    stream.seek(at)
    start = header.find(b"\xff\x4f\xff\x51")  # ISO/IEC 15444-1, A.5.1: the size segment follows the codestream's start
    if start < 0 or len(header) < start + 43:
        return
    samples, bits = struct.unpack_from(">HB", header, start + 40)
    bits = (bits & 0x7F) + 1
    if samples > 1 and bits > 8:
        raise ImageError(
            f"{name} is a JPEG 2000 of {samples} x {bits} bits, whose white the decoder makes black: save it as 8-bit "
            "RGB, or as PNG."
        )


def _open_tiff(stream: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    photo = tiff.find_photo(stream, name)
    if photo is None:
        raise not_an_image(name)
    try:
        image = _open_pillow(photo.stream, max_pixels)
    except Image.UnidentifiedImageError as error:
        raise tiff.unreadable(name, photo.layout) from error
    if photo.turn is not None:
        image.getexif()[ExifTags.Base.Orientation] = photo.turn
    return image


def _open_heif(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """HEIC or AVIF. Which brands a file has to name is for the decoders to say: AVIF's first, then HEIC's.

    Pillow asks AVIF's decoder only about files whose first brand it knows; ``mif1`` it knows and leaves undecided.
    """
    try:
        return _open_pillow(io.BytesIO(data[:8] + b"mif1" + data[12:]), max_pixels, ("AVIF",))
    except Image.UnidentifiedImageError:
        import pillow_heif

    try:
        return pillow_heif.HeifImageFile(io.BytesIO(data))
    except SyntaxError as error:
        raise not_an_image(name, f" ({error})") from error


def _open_pillow(stream: IO[bytes], max_pixels: int, formats: tuple[str, ...] = _FORMATS) -> Image.Image:
    with _pillow_limit(max_pixels):
        return Image.open(stream, formats=formats)


class _HardLimit(int):
    """Pillow warns above its limit and refuses above ``2 * limit``; with this one it refuses at once."""

    def __rmul__(self, factor: int) -> int:
        return int(self)


_PILLOW_LIMIT = threading.Lock()


@contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    """Replace Pillow's process-wide pixel limit by ours for a moment; one thread at a time."""
    with _PILLOW_LIMIT:
        theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, _HardLimit(max_pixels)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = theirs
