"""Reading what may never end: at most so many bytes."""

from collections.abc import Callable

from mlx_depth.errors import ImageError

MAX_BYTES = 268_435_456
"""Most bytes, 256 MiB, that are taken from a URL, a pipe or a file object."""


def read_bounded(read: Callable[[int], bytes], name: str) -> bytes:
    """Read to the end, or raise ImageError above ``MAX_BYTES``."""
    parts = []
    left = MAX_BYTES + 1
    while left and (part := read(min(left, 1 << 20))):
        parts.append(part)
        left -= len(part)
    if not left:
        raise too_large(name)
    return b"".join(parts)


def too_large(name: str) -> ImageError:
    return ImageError(f"{name} is larger than {MAX_BYTES:,} bytes: download it yourself and give the path.")
