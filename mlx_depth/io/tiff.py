"""TIFF files: which of their pictures is the photo, and which layouts of pixels the decoder reads right."""

import io
import struct
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from PIL import ExifTags, Image

from mlx_depth.errors import ImageError

if TYPE_CHECKING:
    from PIL import TiffImagePlugin

_MAX_PAGES = 64
_GRAY_INVERTED, _RGB, _CMYK, _YCBCR = 0, 2, 5, 6
_SENSOR = {32803, 34892}  # color filter array, DNG's LinearRaw
_LAB = {8, 9, 10}
_RAW_CODECS = {32767, 32769, 32770, 34713, 65535, 65000}  # Sony, Epson, Samsung, Nikon, Pentax, Kodak


class Page(NamedTuple):
    """One picture in a TIFF file."""

    offset: int
    tags: "TiffImagePlugin.ImageFileDirectory_v2"

    @property
    def area(self) -> int:
        return int(self.tags.get(256, 0)) * int(self.tags.get(257, 0))

    @property
    def is_reduced(self) -> bool:
        """Whether the file says that this is a smaller copy of another of its pictures."""
        return bool(int(self.tags.get(254, 0)) & 1) or self.tags.get(255) == 2

    @property
    def is_raw(self) -> bool:
        """Whether it holds what a sensor saw, which only a raw converter makes a picture of."""
        return self.tags.get(262) in _SENSOR or self.tags.get(259) in _RAW_CODECS


class Photo(NamedTuple):
    """The picture of a file that is meant."""

    stream: IO[bytes]
    """The file, in which it is the first picture."""
    layout: str
    turn: int | None
    """EXIF orientation, where the photo itself does not say it but the first picture does."""


def find_photo(stream: IO[bytes], name: str) -> Photo | None:
    """Find the photo in a TIFF file.

    Args:
        stream: The file, seekable, at its start.
        name: For messages.
    Returns:
        The first picture, or the largest where the first is a thumbnail; None if the file has no pictures.
    Raises:
        ImageError: If the photo is raw data of a sensor.
    """
    header = stream.read(16)
    pages = list(_pages(stream, header))
    if not pages:
        return None
    first = pages[0]
    full = [page for page in pages if not page.is_reduced]
    photo = max(full, key=lambda page: page.area) if first.is_reduced and full else first
    if photo.is_raw or header[8:10] == b"CR" or any(page.is_raw and page.area > photo.area for page in pages):
        raise ImageError(
            f"{name} is a camera raw file, and all it holds beside the sensor's data is a preview: export it as JPEG, "
            "PNG or TIFF from a raw converter."
        )
    turn = first.tags.get(ExifTags.Base.Orientation) if ExifTags.Base.Orientation not in photo.tags else None
    whole = stream if photo is first else _starting_with(photo, stream, header)
    whole.seek(0)
    return Photo(whole, _layout(photo.tags), turn)


def tags_of(image: Image.Image) -> Any | None:
    """The tags of an image that Pillow opened as TIFF; None of another."""
    return getattr(image, "tag_v2", None)


def check_layout(tags: Any, name: str) -> None:
    """Raise ImageError for a layout that Pillow opens but misreads."""
    if _is_misread(tags):
        raise unreadable(name, _layout(tags))


def unreadable(name: str, layout: str) -> ImageError:
    """The error for a layout that is not read."""
    return ImageError(f"{name} is a {layout}, which is not read: save it as 8-bit RGB, or as PNG.")


def white_level(tags: Any) -> tuple[int, bool]:
    """The largest value that the pixels of a gray page can have, and whether it means black."""
    bits = tags.get(258, (16,))[0]
    return (1 << bits) - 1 if bits < 16 else 65535, tags.get(262) == _GRAY_INVERTED


def _layout(tags: Any) -> str:
    """Bits, samples and color of a page, in words."""
    bits = "/".join(map(str, dict.fromkeys(tags.get(258, (1,)))))
    planes = ", in planes" if tags.get(284) == 2 else ""
    return f"TIFF of {tags.get(277, 1)} x {bits} bits, photometric {tags.get(262)}, compression {tags.get(259)}{planes}"


def _pages(stream: IO[bytes], header: bytes) -> Iterator[Page]:
    """The pictures of a file, those within others (SubIFDs) too; each once, though a damaged file may go in circles."""
    from PIL import TiffImagePlugin

    is_big = header[2:3] == b"\x2b"
    waiting = [TiffImagePlugin.ImageFileDirectory_v2(header[: 16 if is_big else 8]).next]
    seen: set[int] = set()
    while waiting and len(seen) < _MAX_PAGES:
        offset = waiting.pop(0)
        if not offset or offset in seen:
            continue
        seen.add(offset)
        tags = TiffImagePlugin.ImageFileDirectory_v2(header[: 16 if is_big else 8])
        stream.seek(offset)
        tags.load(stream)
        within = tags.get(330, ())
        waiting += [*(within if isinstance(within, tuple) else (within,)), tags.next]
        yield Page(offset, tags)


def _starting_with(page: Page, stream: IO[bytes], header: bytes) -> IO[bytes]:
    stream.seek(0)
    data = bytearray(stream.read())
    order = "<" if header[:2] == b"II" else ">"
    if header[2:3] == b"\x2b":
        struct.pack_into(order + "Q", data, 8, page.offset)
    else:
        struct.pack_into(order + "I", data, 4, page.offset)
    return io.BytesIO(data)


def _is_misread(tags: Any) -> bool:
    """Whether Pillow takes the layout for another; found by tests that compare it with OpenCV and tifffile."""
    bits, samples = set(tags.get(258, (1,))), tags.get(277, 1)
    color, codec = tags.get(262), tags.get(259, 1)
    if len(bits) > 1 or color in _LAB:
        return True
    if 2 in tags.get(339, ()) and bits & {8, 16}:  # signed, taken for unsigned
        return True
    if color == _CMYK and bits != {8}:  # cut to 8 bits before the inks are mixed
        return True
    if color == _YCBCR and codec not in (6, 7) and tuple(tags.get(530, (2, 2))) != (1, 1):
        return True
    if tags.get(284, 1) != 2 or samples == 1:
        return False
    if color == _RGB and codec != 1:
        return False
    has_other_alpha = samples > 3 and color == _RGB and tags.get(338) != (2,)
    return bits != {8} or color not in (_RGB, _CMYK) or has_other_alpha
