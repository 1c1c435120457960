"""What decoders raise on bytes that they cannot read, in words that say the cause and the next step."""

import struct
import zlib

from PIL import Image

from mlx_depth.errors import ImageError, printable

READABLE = "JPEG, PNG, WebP, AVIF, HEIC, TIFF, GIF, BMP, PPM/PGM/PFM or JPEG 2000"

# What Pillow and its decoders raise on damaged bytes; none of it may reach the user.
DECODER_ERRORS = (
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


def damaged(name: str, error: BaseException) -> ImageError:
    """The error for an image whose decoding failed."""
    reason = printable(error) if str(error) else type(error).__name__
    if isinstance(error, MemoryError):
        return ImageError(f"{name} does not fit into the memory that is free: shrink it.")
    if isinstance(error, NotImplementedError) or "not available" in reason:
        return ImageError(f"{name} is of a kind that the decoder does not know ({reason}): export it as PNG or JPEG.")
    return ImageError(f"{name} is truncated or damaged ({reason}): fetch or export it again.")


def not_an_image(name: str, reason: str = "") -> ImageError:
    """The error for bytes that no decoder takes for its own."""
    return ImageError(f"{name} is not an image, or its header is damaged{reason}: give {READABLE} data.")


def too_many_pixels(name: str, max_pixels: int) -> ImageError:
    """The error for an image above the limit."""
    return ImageError(f"{name} has more than {max_pixels:,} pixels: shrink it, or raise max_pixels if you trust it.")
