"""PyTorch checkpoints (``.pth``, ``.pt``, ``.bin``, ``.ckpt``) without PyTorch and without running what is in them.

Formats as in ``torch/serialization.py``: the zip archive (torch >= 1.6) and the older stream of pickles followed by raw
storages. ``pickle_machine`` follows the pickles.
"""

import io
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NoReturn

import numpy as np

from mlx_depth.errors import CheckpointError
from mlx_depth.weights import first_bytes
from mlx_depth.weights.config_values import MAX_INTEGER
from mlx_depth.weights.first_bytes import cause, check_regular
from mlx_depth.weights.rules import listed
from mlx_depth_convert.sources import LazyTensor, Part, Source
from mlx_depth_convert.sources.pickle_machine import Machine, interpret
from mlx_depth_convert.sources.torch_objects import Inert, OddTensor, Tensor

ZIP_MAGIC, LOCAL_HEADER = b"PK\x03\x04", 30  # bytes before a member's name
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_PICKLE = 32 << 20  # bytes; that of a 500-tensor model takes about 100 kB, arrays beside it lie in it whole
MAX_DEPTH = 6  # dicts and lists around the tensors
SHOWN = 20  # keys beside the tensors that are told
MAX_FACTS = 10_000  # values of a dict beside the tensors that is handed on


def read(path: Path) -> Source:
    """Read a PyTorch checkpoint's names, shapes and types; the values stay on disk.

    Args:
        path: A file written by ``torch.save``: a state dict, or a dict or list that holds one at any key.
    Returns:
        A part for each dict that holds tensors, and as metadata the dicts beside them that hold plain values alone.
        Objects that are neither tensors nor plain containers are never made: what lies in them is not found.
    Raises:
        CheckpointError: If the file is damaged, or its tensors can be reached only by running what is in it.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
            machine = Machine()
            root, regions = _read_zip(file, path, machine) if is_zip else _read_legacy(file, path, machine)
        parts = {key: _part(path, tree, beside, regions) for key, tree, beside in _trees(root)}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}): check the path.") from error
    except _RefusedError:
        raise
    except CheckpointError as error:
        if known := cause(path, first_bytes.TORCH):
            raise CheckpointError(known) from error
        raise
    if not parts:
        raise CheckpointError(cause(path, first_bytes.TORCH) or _without_tensors(path, root, machine))
    return Source(parts, _facts(root))


class _RefusedError(CheckpointError):
    """A pickle that was followed to its end and has no weights that can be reached."""


@dataclass(frozen=True)
class _Region:
    """Where a storage lies in the file."""

    offset: int
    size: int
    order: Literal["<", ">"] = "<"


# What the pickle made


def _trees(root: Any) -> Iterator[tuple[str, dict[Any, Any], tuple[str, ...]]]:
    """Each dict that holds tensors by name, after its dotted key, before the keys next to it and on the way to it."""
    seen: set[int] = set()
    level: list[tuple[str, Any, tuple[tuple[Any, Any], ...]]] = [("", root, ())]
    for _ in range(MAX_DEPTH):
        deeper: list[tuple[str, Any, tuple[tuple[Any, Any], ...]]] = []
        for key, node, way in level:
            if type(node) not in (dict, list, tuple) or id(node) in seen:
                continue
            seen.add(id(node))
            items = node.items() if type(node) is dict else enumerate(node)
            inner = [(name, value) for name, value in items if type(value) in (dict, list, tuple) and value]
            deeper += [(f"{key}.{name}".removeprefix("."), value, (*way, (node, name))) for name, value in inner]
            if type(node) is dict and any(_is_tensor(name, value) for name, value in node.items()):
                yield key, node, _beside(node, way)
        level = deeper


def _facts(root: Any) -> dict[str, Any]:
    """The top-level dicts of plain values, such as the arguments of a model's class."""
    if type(root) is not dict:
        return {}
    return {name: value for name, value in root.items() if type(name) is str and _is_plain_dict(value)}


def _is_plain_dict(value: Any) -> bool:
    """Whether it holds no more than names and plain values, and few: a pickle may repeat its parts without end."""
    waiting: list[Any] = [value] if type(value) is dict else []
    found = len(waiting)
    while waiting and found <= MAX_FACTS:
        node = waiting.pop()
        if type(node) is dict:
            inner = [*node, *node.values()]
        elif type(node) in (list, tuple):
            inner = list(node)
        elif _is_plain(node):
            inner = []
        else:
            return False
        found += len(inner)
        waiting += inner
    return 0 < found <= MAX_FACTS


def _is_plain(value: Any) -> bool:
    return value is None or type(value) in (bool, float, str) or (type(value) is int and abs(value) <= MAX_INTEGER)


def _beside(node: Mapping[Any, Any], way: Sequence[tuple[Any, Any]]) -> tuple[str, ...]:
    """The first keys that do not lead to a dict, and those in it that hold no tensors."""
    own = islice((name for name, value in node.items() if not _is_tensor(name, value)), SHOWN)
    return tuple(f"{name!s:.60}" for name in chain(*(_others(around, name) for around, name in way), own))


def _others(around: Any, name: Any) -> Iterator[Any]:
    keys = around if type(around) is dict else range(len(around))
    return islice((other for other in keys if other != name), SHOWN)


def _is_tensor(name: Any, value: Any) -> bool:
    return type(name) is str and isinstance(value, (Tensor, OddTensor))


def _part(path: Path, tree: Mapping[Any, Any], beside: tuple[str, ...], regions: Mapping[str, _Region]) -> Part:
    return Part(
        {name: _lazy(path, name, value, regions) for name, value in tree.items() if _is_tensor(name, value)}, beside
    )


def _without_tensors(path: Path, root: Any, machine: Machine) -> str:
    if machine.asked or isinstance(root, Inert):
        asked = listed(f"{name!r}" for name in dict.fromkeys(machine.asked or [root.name]))
        return (
            f"{path} is refused: its pickle asks for {asked}, which plain weights never need and which may run code. "
            "Get the weights as .safetensors, or have their owner save only the model's state_dict()."
        )
    keys = listed(f"{key!r:.60}" for key in root) if isinstance(root, dict) else f"a {type(root).__name__}"
    return f"{path} holds no tensors by name (its keys: {keys}). Save the model's state_dict()."


def _lazy(path: Path, name: str, tensor: Tensor | OddTensor, regions: Mapping[str, _Region]) -> LazyTensor:
    if isinstance(tensor, OddTensor):
        return LazyTensor((), tensor.kind, partial(_refuse, path, name, tensor.kind))
    region = regions.get(tensor.storage.key)
    if region is None or region.size != tensor.storage.nbytes:
        raise _damaged(path, f"the storage {tensor.storage.key!r:.60} is missing or has another size than declared")
    dtype = "float32" if tensor.storage.dtype == "float64" else tensor.storage.dtype
    return LazyTensor(tensor.shape, dtype, partial(_bits, path, tensor, region))


def _refuse(path: Path, name: str, kind: str) -> NoReturn:
    raise CheckpointError(
        f"{path}: {name:.100} is a tensor that is not read ({kind:.60}): save the model's state_dict() with plain "
        "floating-point tensors."
    )


def _bits(path: Path, tensor: Tensor, region: _Region) -> np.ndarray:
    dtype = np.dtype("uint16" if tensor.storage.dtype == "bfloat16" else tensor.storage.dtype)
    read_as = np.dtype("float32") if dtype == np.float64 else dtype
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, read_as)
    stored = dtype.newbyteorder(region.order)
    values = np.memmap(path, stored, "r", region.offset, (tensor.storage.count,))[tensor.offset :]
    strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
    view = np.lib.stride_tricks.as_strided(values, tensor.shape, strides, writeable=False)
    return np.require(view, read_as, ["C_CONTIGUOUS", "ALIGNED"])


def _damaged(path: Path, reason: object) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or no PyTorch checkpoint ({reason!s:.200}): download it again.")


def _follow(stream: IO[bytes], path: Path, machine: Machine) -> Any:
    try:
        return interpret(stream, machine)
    except CheckpointError:
        raise
    except ValueError as error:
        raise _damaged(path, f"its pickle cannot be read, {error}") from error


# The two containers


def _read_zip(file: IO[bytes], path: Path, machine: Machine) -> tuple[Any, dict[str, _Region]]:
    members = _members(file, path)
    pickles = [name for name in members if PurePosixPath(name).name == "data.pkl"]
    if len(pickles) != 1:
        raise _damaged(path, f"{len(pickles)} data.pkl in the archive, not one")
    folder = pickles[0].removesuffix("data.pkl")
    order = _content(file, members[f"{folder}byteorder"], path) if f"{folder}byteorder" in members else b"little"
    if order not in (b"little", b"big"):
        raise _damaged(path, f"unknown byte order {order!r:.20}")
    root = _follow(io.BytesIO(_content(file, members[pickles[0]], path)), path, machine)
    data = f"{folder}data/"
    regions = {
        name.removeprefix(data): _Region(region.offset, region.size, "<" if order == b"little" else ">")
        for name, region in members.items()
        if name.startswith(data)
    }
    return root, regions


def _members(file: IO[bytes], path: Path) -> dict[str, _Region]:
    """Where each member's bytes lie. Members are read from there, as their checksums may be left out by choice."""
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise _damaged(path, error) from error
    members: dict[str, _Region] = {}
    size = file.seek(0, io.SEEK_END)
    for entry in entries:
        name = entry.filename
        fault = _fault(entry) or ("appears twice" if name in members else None)
        if fault:
            raise CheckpointError(f"{path} is not what torch.save writes: {name!r:.100} {fault}. Do not use this file.")
        if not 0 <= entry.header_offset <= size - LOCAL_HEADER:
            raise _damaged(path, f"{name!r:.100} lies outside the file")
        members[name] = _Region(_data_offset(file, entry), entry.file_size)
        if members[name].offset + entry.file_size > size:
            raise _damaged(path, f"{name!r:.100} reaches past the end of the file")
    return members


def _fault(entry: zipfile.ZipInfo) -> str | None:
    name = entry.filename
    if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
        return "points outside the archive"
    if entry.flag_bits & 1:
        return "is encrypted"
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        return "is compressed"
    return None


def _data_offset(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """The central directory names the local header; the length of that one is told by itself alone."""
    file.seek(entry.header_offset)
    name_length, extra_length = struct.unpack("<26x2H", file.read(LOCAL_HEADER))
    return entry.header_offset + LOCAL_HEADER + int(name_length) + int(extra_length)


def _content(file: IO[bytes], region: _Region, path: Path) -> bytes:
    if region.size > MAX_PICKLE:
        raise _too_large(path)
    file.seek(region.offset)
    return file.read(region.size)


def _too_large(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} has more than {MAX_PICKLE >> 20} MB beside its tensors: have its owner save only the state_dict()."
    )


class _Bounded:
    """The beginning of a file, read as a stream that ends after ``MAX_PICKLE`` bytes."""

    def __init__(self, file: IO[bytes], path: Path):
        self._file, self._path = file, path
        file.seek(0)

    def read(self, count: int) -> bytes:
        """Some bytes; fewer at the end of the file."""
        content = self._file.read(min(count, MAX_PICKLE))
        if self.tell() > MAX_PICKLE:
            raise _too_large(self._path)
        return content

    def readline(self) -> bytes:
        """The bytes to the next line break."""
        return self._file.readline(MAX_PICKLE)

    def tell(self) -> int:
        """Bytes read so far."""
        return self._file.tell()


def _read_legacy(file: IO[bytes], path: Path, machine: Machine) -> tuple[Any, dict[str, _Region]]:
    size = file.seek(0, io.SEEK_END)
    stream: Any = _Bounded(file, path)
    magic = _follow(stream, path, machine)
    if magic != LEGACY_MAGIC:  # a bare pickle, which holds no storages
        if machine.asked:
            raise _RefusedError(_without_tensors(path, magic, machine))
        raise _damaged(path, "neither PyTorch's zip archive nor its older format")
    if _follow(stream, path, machine) != LEGACY_PROTOCOL:
        raise _damaged(path, "neither PyTorch's zip archive nor its older format")
    _follow(stream, path, machine)  # the writer's type sizes; the storages are little-endian whatever they say
    root = _follow(stream, path, machine)
    if next(_trees(root), None) is None:
        raise _RefusedError(_without_tensors(path, root, machine))
    keys = _follow(stream, path, machine)
    plain = isinstance(keys, list) and all(type(key) is str for key in keys)
    storages = machine.storages
    if not plain or len(keys) != len(storages) or {*keys} != storages.keys():
        raise _damaged(path, "its list of storages is not the one that its tensors name")
    regions: dict[str, _Region] = {}
    position = stream.tell()
    for key in keys:
        file.seek(position)
        count = int.from_bytes(file.read(8), "little", signed=True)
        nbytes = storages[key].nbytes
        if count != storages[key].count or position + 8 + nbytes > size:
            raise _damaged(path, f"the storage {key!r:.60} is cut short or has another size than declared")
        regions[key] = _Region(position + 8, nbytes)
        position += 8 + nbytes
    return root, regions
