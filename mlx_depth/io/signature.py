"""What a file is, by its first bytes."""

import re

HEADER_BYTES = 256

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SIGNATURES = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    *_TIFF,
    b"\0\0\0\x0cjP  \r\n\x87\n",  # JPEG 2000
    b"\xff\x4f\xff\x51",  # its bare codestream
)
_BMP = re.compile(rb"BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL)
_NETPBM = re.compile(rb"P[1-6]\s+(#|\d)")
# ISO/IEC 23008-12: the brands of still pictures, which tell a HEIC from a film in the same container.
_PICTURE_BRANDS = {b"mif1", b"mif2", b"msf1", b"miaf", b"heic", b"heix", b"heim", b"heis", b"avif", b"avis"}


def is_image(header: bytes) -> bool:
    """Whether a file that begins so is an image of a kind that is read; PFM, which holds depth, is not meant."""
    return (
        header.startswith(_SIGNATURES)
        or (header.startswith(b"RIFF") and header[8:12] == b"WEBP")
        or _BMP.match(header) is not None
        or _NETPBM.match(header) is not None
        or (is_heif(header) and not _PICTURE_BRANDS.isdisjoint(_brands(header)))
    )


def is_heif(header: bytes) -> bool:
    """Whether it is the container of HEIC and AVIF, which films use, too."""
    return header[4:8] == b"ftyp"


def is_tiff(header: bytes) -> bool:
    """Whether it is a TIFF, as many camera raw files are."""
    return header.startswith(_TIFF)


def _brands(header: bytes) -> list[bytes]:
    end = min(int.from_bytes(header[:4], "big"), len(header))
    return [header[at : at + 4] for at in range(8, end, 4)]
