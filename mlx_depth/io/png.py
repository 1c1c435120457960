"""PNG files without their side data: texts and profiles, of any size or damaged, never cost the picture."""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What is read beside the picture itself: EXIF, and the texts in which programs hide EXIF and XMP.
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_KEYWORDS = (b"XML:com.adobe.xmp", b"Raw profile type exif", b"Raw profile type APP1")
_MAX_TEXT_BYTES = 1 << 20  # unpacked; above, and above 64 of them together, Pillow refuses the whole file
_MAX_TEXTS = 8


def picture_alone(data: bytes) -> bytes:
    """Leave out the chunks that say nothing of the picture (PNG, 3rd edition, section 5).

    Args:
        data: A PNG file, whole or cut.
    Returns:
        The file with its critical chunks, its transparency, and its EXIF or XMP where these are sound.
    """
    kept = [SIGNATURE]
    useful = 0
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data) or _is_picture(kind):
            kept.append(data[at:end])
        elif useful < _MAX_TEXTS and _is_useful(kind, data[at + 8 : end]):
            kept.append(data[at:end])
            useful += 1
        at = end
    return b"".join(kept)


def _is_picture(kind: bytes) -> bool:
    return not kind[0] & 0x20 or kind == b"tRNS"  # the lower-case first letter says that a reader may do without


def _is_useful(kind: bytes, body_and_sum: bytes) -> bool:
    if kind != b"eXIf" and kind not in _TEXTS:
        return False
    body, sum_of_all = body_and_sum[:-4], body_and_sum[-4:]
    if kind in _TEXTS and not (body.startswith(_KEYWORDS) and _fits(kind, body)):
        return False
    return zlib.crc32(kind + body) == int.from_bytes(sum_of_all, "big")


def _fits(kind: bytes, body: bytes) -> bool:
    """Whether a text stays within bounds once it is unpacked."""
    if len(body) > _MAX_TEXT_BYTES:
        return False
    try:
        rest = body.split(b"\0", 1)[1]
        if kind == b"tEXt" or (kind == b"iTXt" and rest[0] == 0):
            return True
        packed = rest[1:] if kind == b"zTXt" else rest[2:].split(b"\0", 2)[2]
        return len(zlib.decompressobj().decompress(packed, _MAX_TEXT_BYTES)) < _MAX_TEXT_BYTES
    except (IndexError, zlib.error):
        return False
