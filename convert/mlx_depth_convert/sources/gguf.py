"""GGUF files, as depth-anything.cpp and other ggml programs write them.

The header is read here, with every count checked against the bytes that are there; the ``gguf`` package turns
quantized blocks into numbers. Format: ``docs/gguf.md`` of ggml.
"""

import io
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mlx_depth.errors import CheckpointError
from mlx_depth.weights import first_bytes
from mlx_depth.weights.first_bytes import cause, check_regular
from mlx_depth_convert.sources import LazyTensor, Part, Source

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER = 16 << 20  # bytes; that of a 700-tensor model takes about 50 kB
MAX_DIMS, MAX_SIDE = 4, 2**31 - 1  # GGML_MAX_DIMS, and MLX's longest axis
ALIGNMENT = 32  # where the file does not say otherwise


@dataclass(frozen=True)
class _Encoding:
    """How ggml stores numbers: blocks of ``block`` values in ``nbytes`` bytes."""

    name: str
    block: int
    nbytes: int
    dtype: str = "float32"  # of the tensor that is read

    @property
    def quantized(self) -> bool:
        return self.block > 1


# By their number in ggml's `enum ggml_type`: those that a file stores plainly or the gguf package expands.
ENCODINGS = {
    0: _Encoding("F32", 1, 4),
    1: _Encoding("F16", 1, 2, "float16"),
    2: _Encoding("Q4_0", 32, 18),
    3: _Encoding("Q4_1", 32, 20),
    6: _Encoding("Q5_0", 32, 22),
    7: _Encoding("Q5_1", 32, 24),
    8: _Encoding("Q8_0", 32, 34),
    10: _Encoding("Q2_K", 256, 84),
    11: _Encoding("Q3_K", 256, 110),
    12: _Encoding("Q4_K", 256, 144),
    13: _Encoding("Q5_K", 256, 176),
    14: _Encoding("Q6_K", 256, 210),
    16: _Encoding("IQ2_XXS", 256, 66),
    17: _Encoding("IQ2_XS", 256, 74),
    18: _Encoding("IQ3_XXS", 256, 98),
    19: _Encoding("IQ1_S", 256, 50),
    20: _Encoding("IQ4_NL", 32, 18),
    21: _Encoding("IQ3_S", 256, 110),
    22: _Encoding("IQ2_S", 256, 82),
    23: _Encoding("IQ4_XS", 256, 136),
    24: _Encoding("I8", 1, 1, "int8"),
    25: _Encoding("I16", 1, 2, "int16"),
    26: _Encoding("I32", 1, 4, "int32"),
    27: _Encoding("I64", 1, 8, "int64"),
    29: _Encoding("IQ1_M", 256, 56),
    30: _Encoding("BF16", 1, 2, "bfloat16"),
    34: _Encoding("TQ1_0", 256, 54),
    35: _Encoding("TQ2_0", 256, 66),
    39: _Encoding("MXFP4", 32, 17),
}
# Those that are not read: no tool writes weights in them any more, or the package does not expand them.
OTHER_TYPES = {
    **{4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 28: "F64", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"},
    **{36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 40: "NVFP4", 41: "Q1_0"},
}


def read(path: Path) -> Source:
    """Read a GGUF file's names, shapes and metadata; the values stay on disk.

    Args:
        path: A little-endian GGUF file, version 2 or 3, with tensors of the types in ``ENCODINGS``.
    Returns:
        One part with the tensors, their axes in PyTorch's order (GGUF lists them reversed), quantized ones as float32;
        the metadata as plain Python values. ggml drops axes of length 1 in front when it rewrites a file, so a tensor
        may have fewer axes than its writer gave it.
    Raises:
        CheckpointError: If the file is damaged, holds another type, or is quantized and ``gguf`` is not installed.
    """
    check_regular(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            cursor = _Cursor(file.read(MAX_HEADER))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}): check the path.") from error
    try:
        metadata, entries = _read_header(cursor)
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"the alignment {alignment!r:.40} is no power of two")
        start = -(-cursor.tell() // alignment) * alignment
        tensors = {name: _lazy(path, size, start, entry) for name, entry in entries.items()}
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except ValueError as error:
        damaged = f"{path} is damaged or no GGUF file ({error}): download it again."
        raise CheckpointError(cause(path, first_bytes.GGUF) or damaged) from error
    if any(entry.encoding.quantized for entry in entries.values()):
        _dequantizer(path)
    return Source({"": Part(tensors)}, metadata)


@dataclass(frozen=True)
class _Entry:
    shape: tuple[int, ...]
    encoding: _Encoding
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // self.encoding.block * self.encoding.nbytes


def _read_header(cursor: "_Cursor") -> tuple[dict[str, Any], dict[str, _Entry]]:
    if cursor.take(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = cursor.number("<I")
    if version and not version & 0xFFFF:
        raise CheckpointError("this GGUF file is big-endian, and only little-endian ones are read: export it again.")
    if version not in VERSIONS:
        raise ValueError(f"version {version}; readable are little-endian files of version 2 and 3")
    tensor_count, value_count = cursor.number("<Q"), cursor.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.text()
        if key in metadata:
            raise ValueError(f"the key {key!r:.60} appears twice")
        metadata[key] = cursor.value(cursor.number("<I"))
    entries: dict[str, _Entry] = {}
    for _ in range(tensor_count):
        name = cursor.text()
        if name in entries:
            raise ValueError(f"the tensor {name!r:.60} appears twice")
        entries[name] = _read_entry(cursor, name)
    return metadata, entries


def _read_entry(cursor: "_Cursor", name: str) -> _Entry:
    rank = cursor.number("<I")
    if rank > MAX_DIMS:
        raise ValueError(f"{name!r:.60} has {rank} axes")
    shape = tuple(reversed([cursor.number("<Q") for _ in range(rank)]))
    kind = cursor.number("<I")
    if kind not in ENCODINGS:
        known = ", ".join(encoding.name for encoding in ENCODINGS.values())
        raise CheckpointError(
            f"{name!r:.60} has the ggml type {OTHER_TYPES.get(kind, kind)}; readable are {known}. "
            "Quantize the float file to one of these."
        )
    encoding = ENCODINGS[kind]
    if max(shape, default=1) > MAX_SIDE or (encoding.quantized and (not shape or shape[-1] % encoding.block)):
        raise ValueError(f"{name!r:.60} has the shape {shape}, which {encoding.name} cannot store")
    return _Entry(shape, encoding, cursor.number("<Q"))


def _lazy(path: Path, size: int, start: int, entry: _Entry) -> LazyTensor:
    if start + entry.offset + entry.nbytes > size:
        raise ValueError("a tensor reaches past the end of the file")
    return LazyTensor(entry.shape, entry.encoding.dtype, partial(_bits, path, start + entry.offset, entry))


def _bits(path: Path, offset: int, entry: _Entry) -> np.ndarray:
    if 0 in entry.shape:
        return np.zeros(entry.shape, _numpy_dtype(entry.encoding.dtype))
    raw = np.memmap(path, np.uint8, "r", offset, (entry.nbytes,))
    if not entry.encoding.quantized:
        values = raw.view(_numpy_dtype(entry.encoding.dtype).newbyteorder("<")).reshape(entry.shape)
        return np.require(values, _numpy_dtype(entry.encoding.dtype), ["C_CONTIGUOUS", "ALIGNED"])
    rows = np.asarray(raw).reshape(*entry.shape[:-1], -1)
    return _dequantizer(path)(rows, entry.encoding.name)


def _numpy_dtype(name: str) -> np.dtype[Any]:
    return np.dtype("uint16" if name == "bfloat16" else name)


def _dequantizer(path: Path) -> Callable[[np.ndarray, str], np.ndarray]:
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as error:
        raise CheckpointError(f"{path} is quantized: pip install 'mlx-depth[gguf]' to read it.") from error

    def expand(rows: np.ndarray, name: str) -> np.ndarray:
        try:
            return np.asarray(dequantize(rows, GGMLQuantizationType[name]))
        except (KeyError, NotImplementedError) as error:
            raise CheckpointError(f"{path}: your gguf package does not expand {name}: pip install -U gguf.") from error

    return expand


_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, str] = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f"},
    **{7: "<?", 10: "<Q", 11: "<q", 12: "<d"},
}


class _Cursor:
    """The header's bytes, read from front to back and never past their end."""

    def __init__(self, header: bytes):
        self._stream = io.BytesIO(header)
        self._size = len(header)

    def tell(self) -> int:
        """Bytes read so far."""
        return self._stream.tell()

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > self._size - self.tell():
            raise ValueError("the header is cut short")
        return self._stream.read(count)

    def number(self, form: str) -> Any:
        """The next number, in the notation of ``struct``."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        """The next string."""
        return self.take(self.number("<Q")).decode()

    def value(self, kind: int) -> Any:
        """The next metadata value of a type."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array(self.number("<I"), self.number("<Q"))
        if kind not in _SCALARS:
            raise ValueError(f"a metadata value of the unknown type {kind}")
        return self.number(_SCALARS[kind])

    def array(self, kind: int, count: int) -> list[Any]:
        """An array of strings or numbers; ggml's own reader has no nested ones either."""
        if kind == _STRING:
            return [self.text() for _ in range(count)]
        if kind not in _SCALARS:
            raise ValueError(f"a metadata array of the unknown type {kind}")
        form = _SCALARS[kind]
        raw = self.take(count * struct.calcsize(form))
        return [value for (value,) in struct.iter_unpack(form, raw)]
