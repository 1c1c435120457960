"""Images in: a path, URL, bytes, file, PIL image or array becomes upright RGB uint8, and an ImageInfo."""

from __future__ import annotations

import dataclasses
import math
import os
import threading
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlx_depth.errors import OptionError, printable
from mlx_depth.io.arrays import NAME as ARRAY
from mlx_depth.io.arrays import array_to_rgb, is_array
from mlx_depth.io.decode import Decoded, decode, from_pil
from mlx_depth.io.sources import open_source

if TYPE_CHECKING:
    import mlx.core as mx

ImageSource: TypeAlias = """(
    str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | npt.NDArray[Any] | mx.array
    | LoadedImage
)"""

MAX_PIXELS = 268_435_456
"""Default pixel limit, 16,384 x 16,384: a 200-megapixel phone photo passes, a decompression bomb does not."""

PIL_IMAGE = "<PIL image>"

# An image that was opened decodes itself at its first use, and several threads may be given the same one.
_PILLOW_OBJECTS = threading.Lock()


@dataclass(frozen=True)
class ImageInfo:
    """What is known of an image beside its pixels."""

    source: str
    """Path or URL; ``<bytes>``, ``<file>``, ``<data URI>``, ``<PIL image>``, ``<array>`` where there is no name."""
    size: tuple[int, int]
    """``(height, width)`` in pixels, after the EXIF turn."""
    orientation: int = 1
    """EXIF orientation that was applied, 1 to 8; 1 means none."""
    focal_length_px: float | None = None
    """Focal length in pixels of the upright image at this size, from EXIF; None where EXIF does not tell."""
    focal_length_given: bool = False
    """That the focal length is the caller's, see ``with_focal_length``."""


class LoadedImage(NamedTuple):
    """Pixels, RGB uint8 ``(H, W, 3)``, and what is known of them."""

    pixels: npt.NDArray[np.uint8]
    info: ImageInfo


def with_focal_length(image: LoadedImage, focal_length_px: float) -> LoadedImage:
    """The image with a focal length that is known from elsewhere.

    Args:
        image: As ``load_image`` gives it.
        focal_length_px: In pixels of the image, above 0.
    Raises:
        OptionError: If that is no such number.
    """
    if isinstance(focal_length_px, bool) or not (math.isfinite(focal_length_px) and focal_length_px > 0):
        raise OptionError(f"focal_length_px is {focal_length_px!r:.40}: give a number of pixels above 0.")
    info = dataclasses.replace(image.info, focal_length_px=float(focal_length_px), focal_length_given=True)
    return image._replace(info=info)


def load_image(
    source: ImageSource,
    *,
    background: tuple[int, int, int] = (255, 255, 255),
    max_pixels: int = MAX_PIXELS,
    timeout: float = 30.0,
) -> LoadedImage:
    """Read one image as upright RGB.

    EXIF (or XMP) orientation is applied once. Values are taken as they are stored: an embedded ICC profile
    is not applied, as in the references. 16-bit gray is divided by 257 and rounded. Of an animation the
    first frame is read, of a TIFF its main picture. Alpha that is 0 everywhere is ignored. A PIL image in mode I counts
    as 16-bit; one in mode F must hold 0..1.

    Args:
        source: Path (``~`` works), http(s) URL, ``data:`` URI, encoded bytes, binary file, PIL image, or array (NumPy,
            MLX); a ``LoadedImage`` comes back as it is.
            Arrays are ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` RGB or ``(H, W, 4)`` RGBA, of uint8, uint16,
            bool, or floats in 0..1.
        background: RGB color, 0..255, under transparent pixels.
        max_pixels: Most pixels a file or PIL image may have; read from the header before anything is decoded.
        timeout: Seconds that a URL may stay silent; the whole transfer may take ten times as long.
    Returns:
        The pixels, RGB uint8 ``(H, W, 3)``, C-contiguous and read-only, and their ``ImageInfo``. Arrays are copied, so
        that a frame buffer may be filled again.
    Raises:
        ImageError: If the image cannot be read; the message names it and says why.
        OptionError: If an option is out of range.

    Same pixels as ``transformers.image_utils.load_image`` for opaque 8-bit files.
    """
    _check_options(background, max_pixels, timeout)
    if isinstance(source, LoadedImage):
        return source
    if isinstance(source, Image.Image):
        with _PILLOW_OBJECTS:
            return _loaded(from_pil(source, PIL_IMAGE, background, max_pixels), PIL_IMAGE)
    if is_array(source):
        return _loaded(Decoded(array_to_rgb(source, background), 1, None), ARRAY)
    with open_source(source, timeout) as (stream, name):
        return _loaded(decode(stream, printable(name), background, max_pixels), name)


def _loaded(decoded: Decoded, source: str) -> LoadedImage:
    pixels = np.ascontiguousarray(decoded.pixels).view()
    pixels.flags.writeable = False
    height, width = pixels.shape[:2]
    return LoadedImage(pixels, ImageInfo(source, (height, width), decoded.orientation, decoded.focal_length_px))


def _check_options(background: tuple[int, int, int], max_pixels: int, timeout: float) -> None:
    if len(background) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in background):
        raise OptionError(f"background {background!r} is no color: give three integers from 0 to 255.")
    if max_pixels < 1:
        raise OptionError(f"max_pixels is {max_pixels}: give a count of at least 1.")
    if not timeout > 0:
        raise OptionError(f"timeout is {timeout}: give seconds above 0.")
