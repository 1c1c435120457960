"""Image files by hand, sample for sample: layouts that libraries do not write, with every value known."""

import struct
import zlib

import numpy as np


def packed(samples: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Integers (H, W, S) as rows of whole bytes; what is no whole number of bytes has its highest bit first."""
    if bits in (8, 16, 32):
        return samples.astype(f"{order}u{bits // 8}").tobytes()
    rows = samples.reshape(len(samples), -1, 1).astype(np.uint32)
    single = (rows >> np.arange(bits - 1, -1, -1, dtype=np.uint32)) & 1
    return np.packbits(single.reshape(len(samples), -1).astype(np.uint8), axis=1).tobytes()


def png(samples: np.ndarray, bits: int, color_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of integers (H, W, S); the chunks stand between header and pixels."""
    height, width = samples.shape[:2]
    rows = packed(samples, bits)
    length = len(rows) // height
    filtered = b"".join(b"\0" + rows[at : at + length] for at in range(0, len(rows), length))
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in (header, *chunks, (b"IDAT", zlib.compress(filtered)), (b"IEND", b"")):
        parts.append(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    return b"".join(parts)


def tiff_page(
    samples: np.ndarray,
    bits: int,
    photometric: int,
    *,
    order: str = "<",
    in_planes: bool = False,
    deflate: bool = False,
    tags: dict[int, tuple[str, list[int]]] | None = None,
) -> tuple[bytes, dict[int, tuple[str, list[int]]]]:
    """Strips and tags of one picture of integers (H, W, S); where the strips lie is filled in by ``tiff``."""
    height, width, count = samples.shape
    planes = np.split(samples, count, axis=2) if in_planes else [samples]
    strips = [packed(plane, bits, order) for plane in planes]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    entries: dict[int, tuple[str, list[int]]] = {
        256: ("H", [width]),
        257: ("H", [height]),
        258: ("H", [bits] * count),
        259: ("H", [8 if deflate else 1]),
        262: ("H", [photometric]),
        277: ("H", [count]),
        278: ("H", [height]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [2 if in_planes else 1]),
        **(tags or {}),
    }
    return b"".join(strips), entries


def tiff(*pages: tuple[bytes, dict[int, tuple[str, list[int]]]], order: str = "<", within: int = 0) -> bytes:
    """A TIFF of pages, one after the other; the last ``within`` of them are SubIFDs of the first."""
    sizes = [_directory_size(entries, 0 if number else within) for number, (_, entries) in enumerate(pages)]
    starts, at = [], 8
    for (data, _), size in zip(pages, sizes, strict=True):
        starts.append((at, at + len(data) + len(data) % 2))
        at = starts[-1][1] + size
    chained = len(pages) - within
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", starts[0][1])
    for number, (data, entries) in enumerate(pages):
        here, directory = starts[number]
        lengths = entries[279][1]
        offsets = [here + sum(lengths[:index]) for index in range(len(lengths))]
        complete = {**entries, 273: ("I", offsets)}
        if number == 0 and within:
            complete[330] = ("I", [place for _, place in starts[chained:]])
        following = starts[number + 1][1] if number + 1 < chained else 0
        out += data.ljust(directory - here, b"\0") + _directory(complete, directory, following, order)
    return out


def _directory_size(entries: dict[int, tuple[str, list[int]]], within: int) -> int:
    complete = {**entries, 273: ("I", entries[279][1])} | ({330: ("I", [0] * within)} if within else {})
    return len(_directory(complete, 0, 0, "<"))


def _directory(entries: dict[int, tuple[str, list[int]]], at: int, following: int, order: str) -> bytes:
    codes = {"H": 3, "I": 4}
    out, more = struct.pack(order + "H", len(entries)), b""
    place = at + 2 + 12 * len(entries) + 4
    for tag, (kind, values) in sorted(entries.items()):
        data = struct.pack(f"{order}{len(values)}{kind}", *values)
        field = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack(order + "I", place + len(more))
        more += data + b"\0" * (len(data) % 2) if len(data) > 4 else b""
        out += struct.pack(order + "HHI", tag, codes[kind], len(values)) + field
    return out + struct.pack(order + "I", following) + more
