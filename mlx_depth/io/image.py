"""Images in: a path, URL, bytes, file, PIL image or array becomes upright RGB uint8, and an ImageInfo."""

from __future__ import annotations

import http.client
import io
import math
import os
import struct
import sys
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from mlx_depth.errors import ImageError, OptionError

if TYPE_CHECKING:
    import mlx.core as mx

ImageSource: TypeAlias = """(
    str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | npt.NDArray[Any] | mx.array
    | LoadedImage
)"""

MAX_PIXELS = 268_435_456
"""Default pixel limit, 16,384 x 16,384: a 200-megapixel phone photo passes, a decompression bomb does not."""

MAX_DOWNLOAD_BYTES = 268_435_456
"""Largest answer, 256 MiB, that is accepted from a URL."""

# Raster formats with a signature: Pillow would hand EPS to Ghostscript, and take any bytes for TGA.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "AVIF", "TIFF", "JPEG2000")
_READABLE = "JPEG, PNG, WebP, AVIF, HEIC, TIFF, GIF, BMP, PPM/PGM/PFM or JPEG 2000"
_HEVC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_HEADER_BYTES = 256

# What Pillow and its decoders raise on damaged bytes; none of it may reach the user.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    MemoryError,
    RuntimeError,
    Warning,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_FILM_DIAGONAL_MM = math.hypot(36, 24)
# Lenses on sale end at 3000 mm; broken cameras write 4,293 to 65,535 (exiftool.org/forum, topic 3572).
_FILM_FOCAL_MM = (1.0, 3000.0)
# FocalPlaneResolutionUnit; EXIF 2.32 names inch and centimetre, cameras also write millimetre and micrometre.
_UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}


# An image that was opened decodes itself at its first use, and several threads may be given the same one.
_PILLOW_OBJECTS = threading.Lock()


@dataclass(frozen=True)
class ImageInfo:
    """What is known of an image beside its pixels."""

    source: str
    """Path or URL; ``<bytes>``, ``<file>``, ``<PIL image>``, ``<array>`` where there is no name."""
    size: tuple[int, int]
    """``(height, width)`` in pixels, after the EXIF turn."""
    orientation: int = 1
    """EXIF orientation that was applied, 1 to 8; 1 means none."""
    focal_length_px: float | None = None
    """Focal length in pixels of the upright image at this size, from EXIF; None where EXIF does not tell."""


class LoadedImage(NamedTuple):
    """Pixels, RGB uint8 ``(H, W, 3)``, and what is known of them."""

    pixels: npt.NDArray[np.uint8]
    info: ImageInfo


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
    first frame is read. A PIL image in mode I counts as 16-bit; one in mode F must hold 0..1.

    Args:
        source: Path (``~`` works), http(s) URL, encoded bytes, binary file, PIL image, or array (NumPy, MLX);
            a ``LoadedImage`` comes back as it is.
            Arrays are ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` RGB or ``(H, W, 4)`` RGBA, of uint8, uint16,
            bool, or floats in 0..1.
        background: RGB colour, 0..255, under transparent pixels.
        max_pixels: Most pixels a file or PIL image may have; read from the header before anything is decoded.
        timeout: Seconds that a URL may stay silent.
    Returns:
        The pixels, RGB uint8 ``(H, W, 3)``, C-contiguous and read-only, and their ``ImageInfo``. A contiguous
        uint8 RGB array is passed on as a read-only view, not copied.
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
            return _from_pil(source, "<PIL image>", background, max_pixels)
    if isinstance(source, np.ndarray) or _is_mlx(source):
        return _from_array(_to_numpy(source), background)
    with _open(source, timeout) as (stream, name):
        return _from_stream(stream, name, background, max_pixels)


def _check_options(background: tuple[int, int, int], max_pixels: int, timeout: float) -> None:
    if len(background) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in background):
        raise OptionError(f"background {background!r} is no colour: give three integers from 0 to 255.")
    if max_pixels < 1:
        raise OptionError(f"max_pixels is {max_pixels}: give a count of at least 1.")
    if not timeout > 0:
        raise OptionError(f"timeout is {timeout}: give seconds above 0.")


# Opening: every source of encoded bytes becomes one seekable stream and a name for messages.


@contextmanager
def _open(source: object, timeout: float) -> Iterator[tuple[IO[bytes], str]]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(bytes(source)), "<bytes>"
    elif isinstance(source, str) and "://" in source:
        yield io.BytesIO(_download(source, timeout)), source
    elif isinstance(source, (str, os.PathLike)):
        with _open_path(os.fspath(source)) as stream:
            yield (stream if stream.seekable() else io.BytesIO(stream.read())), str(stream.name)
    elif hasattr(source, "read"):
        yield _read_file(source)
    else:
        raise ImageError(
            f"a {type(source).__name__} is not an image: give a path, URL, bytes, binary file, PIL image, "
            "numpy array or mx.array."
        )


def _open_path(name: str) -> IO[bytes]:
    try:
        path = Path(name).expanduser()
        return path.open("rb")
    except FileNotFoundError as error:
        raise ImageError(f"there is no image {name}: check the path.") from error
    except IsADirectoryError as error:
        raise ImageError(f"{path} is a folder: give the path of one image in it.") from error
    except PermissionError as error:
        raise ImageError(f"{name} may not be read: change its permissions.") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ImageError(f"{name!r} cannot be opened ({error}): check the path.") from error


def _read_file(file: Any) -> tuple[IO[bytes], str]:
    name = getattr(file, "name", None)
    name = name if isinstance(name, str) else "<file>"
    try:
        data = file.read()
    except (OSError, ValueError) as error:
        raise ImageError(f"{name} cannot be read ({error}): open it again for reading, with 'rb'.") from error
    if not isinstance(data, bytes):
        raise ImageError(f"{name} gives {type(data).__name__} instead of bytes: open it with 'rb'.")
    if not data:
        raise ImageError(f"{name} gives no bytes, it is empty or at its end: seek(0) takes it back to its start.")
    return io.BytesIO(data), name


def _download(url: str, timeout: float) -> bytes:
    if not url.lower().startswith(("http://", "https://")):
        raise ImageError(f"{url} is not an http or https URL: download it first and give the path.")
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "mlx-depth"})
        with urllib.request.urlopen(request, timeout=timeout) as response:
            length = response.headers["Content-Length"]
            expected = None if length is None else int(length)
            if expected is not None and expected > MAX_DOWNLOAD_BYTES:
                raise _too_long(url)
            data: bytes = response.read(MAX_DOWNLOAD_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise ImageError(f"{url} answers {error.code} {error.reason}: check the URL.") from error
    except TimeoutError as error:
        raise _too_slow(url, timeout) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _too_slow(url, timeout) from error
        raise ImageError(f"{url} cannot be reached ({error.reason}): check the URL and the network.") from error
    except ImageError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ImageError(f"{url} cannot be downloaded ({str(error).strip()}): check the URL.") from error
    if len(data) > MAX_DOWNLOAD_BYTES:
        raise _too_long(url)
    if expected is not None and len(data) < expected:
        raise ImageError(f"{url} broke off after {len(data):,} of {expected:,} bytes: try again.")
    return data


def _too_slow(url: str, timeout: float) -> ImageError:
    return ImageError(f"{url} did not answer for {timeout:g} s: try again, or raise timeout.")


def _too_long(url: str) -> ImageError:
    return ImageError(f"{url} is larger than {MAX_DOWNLOAD_BYTES:,} bytes: download it yourself and give the path.")


# Decoding: one stream becomes a PIL image whose size is known to be acceptable, then pixels.


def _from_stream(stream: IO[bytes], name: str, background: tuple[int, int, int], max_pixels: int) -> LoadedImage:
    try:
        header = stream.read(_HEADER_BYTES)
        if not header:
            raise ImageError(f"{name} is empty (0 bytes): fetch or export it again.")
        image = _open_heic(stream, name) if _is_heic(header) else _open_pillow(stream, max_pixels)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(name, max_pixels) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image, or its header is damaged: give {_READABLE} data.") from error
    except _DECODER_ERRORS as error:
        raise _damaged(name, error) from error
    with image:
        return _from_pil(image, name, background, max_pixels)


def _open_pillow(stream: IO[bytes], max_pixels: int) -> Image.Image:
    with _pillow_limit(max_pixels):
        return Image.open(stream, formats=_FORMATS)


def _open_heic(stream: IO[bytes], name: str) -> Image.Image:
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageError(f"{name} is a HEIC image: pip install 'mlx-depth[heic]' to read it.") from error
    return pillow_heif.HeifImageFile(stream)


def _is_heic(header: bytes) -> bool:
    """Whether the file type box names HEVC; AVIF uses the same box and is Pillow's own."""
    if header[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(header[:4], "big"), len(header))
    return not _HEVC_BRANDS.isdisjoint(header[at : at + 4] for at in range(8, end, 4))


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


def _from_pil(image: Image.Image, name: str, background: tuple[int, int, int], max_pixels: int) -> LoadedImage:
    if image.width * image.height == 0:
        raise ImageError(f"{name} has no pixels ({image.width} x {image.height}): give a larger image.")
    if image.width * image.height > max_pixels:
        raise _too_many_pixels(name, max_pixels)
    # TIFF turns itself while it loads, then forgets its orientation; and it asks for Pillow's limit again.
    is_tiff = image.format == "TIFF"
    try:
        turned = _orientation(image) if is_tiff else 1
        with _pillow_limit(max_pixels) if is_tiff else nullcontext():
            image.load()
        to_turn = _orientation(image)
        focal_length_px = _focal_length_px(image)
        upright = _to_rgb(image, name, background)
        if to_turn != 1:
            upright = upright.transpose(_TURNS[to_turn])
        pixels = np.asarray(upright)
    except ImageError:
        raise
    except _DECODER_ERRORS as error:
        raise _damaged(name, error) from error
    return _loaded(pixels, name, orientation=max(turned, to_turn), focal_length_px=focal_length_px)


def _loaded(
    pixels: npt.NDArray[np.uint8], name: str, *, orientation: int = 1, focal_length_px: float | None = None
) -> LoadedImage:
    view = np.ascontiguousarray(pixels).view()
    view.flags.writeable = False
    height, width = view.shape[:2]
    return LoadedImage(view, ImageInfo(name, (height, width), orientation, focal_length_px))


def _too_many_pixels(name: str, max_pixels: int) -> ImageError:
    return ImageError(f"{name} has more than {max_pixels:,} pixels: shrink it, or raise max_pixels if you trust it.")


def _damaged(name: str, error: BaseException) -> ImageError:
    return ImageError(
        f"{name} is truncated or damaged ({str(error) or type(error).__name__}): fetch or export it again."
    )


# Colour: any PIL mode becomes RGB, 8 bits.


def _to_rgb(image: Image.Image, name: str, background: tuple[int, int, int]) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _wide_to_rgb(image, name, background)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        return _composite(image.convert("RGBA"), background)
    return image.convert("RGB")


def _wide_to_rgb(image: Image.Image, name: str, background: tuple[int, int, int]) -> Image.Image:
    """Pillow's own conversion of these modes clips at 255."""
    values = np.asarray(image)
    if image.mode == "I":
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ImageError(f"{name} holds 32-bit values from {low} to {high}: scale them to 16 bits, 0 to 65535.")
        values = values.astype(np.uint16)
    rgb = Image.fromarray(_to_uint8(values, name)).convert("RGB")
    if "transparency" not in image.info:
        return rgb
    rgb.putalpha(Image.fromarray(_to_uint8(values != image.info["transparency"], name)))
    return _composite(rgb, background)


def _composite(rgba: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    canvas = Image.new("RGB", rgba.size, background)
    canvas.paste(rgba, mask=rgba.getchannel("A"))
    return canvas


# Arrays.


def _is_mlx(source: object) -> bool:
    """Without importing mlx: who holds an ``mx.array`` has imported it."""
    module = sys.modules.get("mlx.core")
    return module is not None and isinstance(source, module.array)


def _to_numpy(source: Any) -> npt.NDArray[Any]:
    if isinstance(source, np.ndarray):
        return np.asarray(source)
    import mlx.core as mx

    return np.array(source.astype(mx.float32) if source.dtype == mx.bfloat16 else source)


def _from_array(array: npt.NDArray[Any], background: tuple[int, int, int]) -> LoadedImage:
    name = "<array>"
    _check_shape(array.shape)
    values = _to_uint8(array, name)
    if values.ndim == 2:
        values = values[:, :, np.newaxis]
    if values.shape[2] == 1:
        values = np.repeat(values, 3, axis=2)
    if values.shape[2] == 4:
        values = np.asarray(_composite(Image.fromarray(np.ascontiguousarray(values)), background))
    return _loaded(values, name)


def _check_shape(shape: tuple[int, ...]) -> None:
    if 0 in shape:
        raise ImageError(f"the array of shape {shape} has no pixels: give an image of at least 1 x 1.")
    if len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4)):
        return
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        raise ImageError(
            f"the array of shape {shape} has its channels first: give (H, W, C), image.transpose(1, 2, 0)."
        )
    if len(shape) == 4:
        raise ImageError(f"the array of shape {shape} is a batch: give its images one at a time, images[0].")
    raise ImageError(f"the array of shape {shape} is not an image: give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).")


def _to_uint8(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    kind, itemsize = values.dtype.kind, values.dtype.itemsize
    if kind == "u" and itemsize == 1:
        return values.view(np.uint8)
    if kind == "b":
        return np.where(values, 255, 0).astype(np.uint8)
    if kind == "u" and itemsize == 2:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if kind == "f":
        return _unit_to_uint8(values, name)
    raise ImageError(f"{name} has the type {values.dtype}: convert it to uint8, uint16, bool, or floats from 0 to 1.")


def _unit_to_uint8(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    if not np.isfinite(values).all():
        raise ImageError(f"{name} holds NaN or infinite values: replace them, numpy.nan_to_num does.")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise ImageError(f"{name} holds floats from {low:g} to {high:g}: scale them to 0..1, or give uint8 (0 to 255).")
    wide = values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64)
    return np.rint(wide * 255).astype(np.uint8)


# EXIF.


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where it is absent, unreadable or out of range."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except _DECODER_ERRORS:
        return 1
    return int(value) if isinstance(value, int) and value in _TURNS else 1


def _focal_length_px(image: Image.Image) -> float | None:
    """From the 35 mm equivalent, else from the focal length and the resolution of the sensor.

    The equivalent compares the diagonal with that of 36 x 24 mm film (CIPA DCG-001; Apple's Depth Pro reads
    it so too) and therefore holds for any aspect ratio, turned or not.
    """
    try:
        exif = image.getexif().get_ifd(ExifTags.IFD.Exif)
    except _DECODER_ERRORS:
        return None
    per_film_mm = math.hypot(image.width, image.height) / _FILM_DIAGONAL_MM
    shortest, longest = (limit * per_film_mm for limit in _FILM_FOCAL_MM)
    film_mm = _positive(exif.get(ExifTags.Base.FocalLengthIn35mmFilm))
    from_film = None if film_mm is None else film_mm * per_film_mm
    for focal_length_px in (from_film, _focal_from_sensor(exif, image.size)):
        if focal_length_px is not None and shortest <= focal_length_px <= longest:
            return focal_length_px
    return None


def _focal_from_sensor(exif: dict[int, Any], size: tuple[int, int]) -> float | None:
    focal_mm = _positive(exif.get(ExifTags.Base.FocalLength))
    resolution = _positive(exif.get(ExifTags.Base.FocalPlaneXResolution))
    unit = _positive(exif.get(ExifTags.Base.FocalPlaneResolutionUnit, 2))
    if focal_mm is None or resolution is None or unit not in _UNIT_MM:
        return None
    # The resolution belongs to the picture as it was taken; editors shrink the picture and leave these tags.
    taken = [_positive(exif.get(tag)) for tag in (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)]
    shrunk = max(size) / max(side for side in taken if side) if all(taken) else 1.0
    return focal_mm * resolution / _UNIT_MM[int(unit)] * shrunk


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ArithmeticError):
        return None
    return number if math.isfinite(number) and number > 0 else None
