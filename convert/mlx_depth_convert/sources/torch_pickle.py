"""PyTorch checkpoints (``.pth``, ``.pt``, ``.bin``) without PyTorch and without running what is in them.

A small interpreter follows the pickle's opcodes; it imports nothing and calls nothing, so a global that is not listed
here is only a name in an error. Formats as in ``torch/serialization.py``: the zip archive (torch >= 1.6) and the
older stream of pickles followed by raw storages.
"""

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

import numpy as np

from mlx_depth.errors import CheckpointError
from mlx_depth.weights.rules import listed
from mlx_depth_convert.sources import LazyTensor, Source

ZIP_MAGIC, LOCAL_HEADER = b"PK\x03\x04", 30  # bytes before a member's name
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_PICKLE = 4 << 20  # bytes; the pickle of a 500-tensor model takes about 100 kB
MAX_DIMS, MAX_SIDE = 32, 2**31 - 1  # NumPy's rank before 2.0, and MLX's longest axis
WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts keep the weights
PARALLEL = "module."  # what DataParallel puts before every name

DTYPES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_STORAGES = {f"{module}.{name}": dtype for module in ("torch", "torch.cuda") for name, dtype in DTYPES.items()}
_TYPES = {
    f"torch.{name}" for name in (*DTYPES.values(), "float", "double", "half", "long", "int", "float64", "complex64")
}


def read(path: Path) -> Source:
    """Read a PyTorch checkpoint's names, shapes and types; the values stay on disk.

    Args:
        path: A file written by ``torch.save``: a state dict, or a dict that holds one under ``state_dict``,
            ``model_state_dict`` or ``model``. A ``module.`` that all names share is removed.
    Returns:
        The tensors, and in the metadata ``unwrapped`` (the keys gone through) and ``skipped`` (entries that are no
        tensors, such as the optimizer's state).
    Raises:
        CheckpointError: If the file is damaged, or its pickle asks for anything but tensors and plain containers.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
            root, regions = _read_zip(file, path) if is_zip else _read_legacy(file, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}): check the path.") from error
    tree, unwrapped, skipped = _unwrap(root, path)
    found = {name: value for name, value in tree.items() if isinstance(name, str) and isinstance(value, _Tensor)}
    if not found:
        keys = listed(f"{key!r:.60}" for key in tree)
        raise CheckpointError(f"{path} holds no tensors by name (its keys: {keys}). Save the model's state_dict().")
    skipped += [f"{key!s:.60}" for key in tree if key not in found]
    prefix = PARALLEL if all(name.startswith(PARALLEL) for name in found) else ""
    tensors = {name.removeprefix(prefix): _lazy(path, tensor, regions) for name, tensor in found.items()}
    return Source(tensors, {"unwrapped": unwrapped, "skipped": skipped})


@dataclass(frozen=True)
class _Global:
    """An allowed name of the pickle, never the thing itself."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Region:
    """Where a storage lies in the file."""

    offset: int
    size: int
    order: Literal["<", ">"] = "<"


def _unwrap(root: Any, path: Path) -> tuple[dict[Any, Any], list[str], list[str]]:
    """The dict of tensors, the keys that lead to it, and the other keys met on the way."""
    unwrapped: list[str] = []
    skipped: list[str] = []
    while isinstance(root, dict) and not any(isinstance(value, _Tensor) for value in root.values()):
        key = next((key for key in WRAPPERS if isinstance(root.get(key), dict) and key not in unwrapped), None)
        if key is None:
            break
        unwrapped.append(key)
        skipped += [f"{other!s:.60}" for other in root if other != key]
        root = root[key]
    if not isinstance(root, dict):
        raise CheckpointError(f"{path} holds no dict of tensors: save the model's state_dict().")
    return root, unwrapped, skipped


def _lazy(path: Path, tensor: _Tensor, regions: Mapping[str, _Region]) -> LazyTensor:
    region = regions.get(tensor.storage.key)
    if region is None or region.size != tensor.storage.count * _dtype(tensor.storage.dtype).itemsize:
        raise _damaged(path, f"the storage {tensor.storage.key!r:.60} is missing or has another size than declared")
    return LazyTensor(tensor.shape, tensor.storage.dtype, partial(_bits, path, tensor, region))


def _bits(path: Path, tensor: _Tensor, region: _Region) -> np.ndarray:
    dtype = _dtype(tensor.storage.dtype)
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, dtype)
    stored = dtype.newbyteorder(region.order)
    values = np.memmap(path, stored, "r", region.offset, (tensor.storage.count,))[tensor.offset :]
    strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
    view = np.lib.stride_tricks.as_strided(values, tensor.shape, strides, writeable=False)
    return np.require(view, dtype, ["C_CONTIGUOUS", "ALIGNED"])


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype("uint16" if name == "bfloat16" else name)


def _damaged(path: Path, reason: object) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or no PyTorch checkpoint ({reason!s:.200}): download it again.")


# The two containers


def _read_zip(file: IO[bytes], path: Path) -> tuple[Any, dict[str, _Region]]:
    members = _members(file, path)
    pickles = [name for name in members if PurePosixPath(name).name == "data.pkl"]
    if len(pickles) != 1:
        raise _damaged(path, f"{len(pickles)} data.pkl in the archive, not one")
    folder = pickles[0].removesuffix("data.pkl")
    order = _content(file, members[f"{folder}byteorder"]) if f"{folder}byteorder" in members else b"little"
    if order not in (b"little", b"big"):
        raise _damaged(path, f"unknown byte order {order!r:.20}")
    root = _interpret(io.BytesIO(_content(file, members[pickles[0]])), path)
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


def _content(file: IO[bytes], region: _Region) -> bytes:
    file.seek(region.offset)
    return file.read(min(region.size, MAX_PICKLE))


def _read_legacy(file: IO[bytes], path: Path) -> tuple[Any, dict[str, _Region]]:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    stream = io.BytesIO(file.read(MAX_PICKLE))
    if (_interpret(stream, path), _interpret(stream, path)) != (LEGACY_MAGIC, LEGACY_PROTOCOL):
        raise _damaged(path, "neither PyTorch's zip archive nor its older format")
    _interpret(stream, path)  # the writer's type sizes; the storages are little-endian whatever they say
    storages: dict[str, _Storage] = {}
    root = _interpret(stream, path, storages)
    keys = _interpret(stream, path)
    plain = isinstance(keys, list) and all(type(key) is str for key in keys)
    if not plain or len(keys) != len(storages) or {*keys} != storages.keys():
        raise _damaged(path, "its list of storages is not the one that its tensors name")
    regions: dict[str, _Region] = {}
    position = stream.tell()
    for key in keys:
        file.seek(position)
        count = int.from_bytes(file.read(8), "little", signed=True)
        nbytes = storages[key].count * _dtype(storages[key].dtype).itemsize
        if count != storages[key].count or position + 8 + nbytes > size:
            raise _damaged(path, f"the storage {key!r:.60} is cut short or has another size than declared")
        regions[key] = _Region(position + 8, nbytes)
        position += 8 + nbytes
    return root, regions


# The pickle


def _interpret(stream: IO[bytes], path: Path, storages: dict[str, _Storage] | None = None) -> Any:
    machine = _Machine(path, {} if storages is None else storages)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except CheckpointError:
        raise
    except (ValueError, IndexError) as error:
        raise _damaged(path, f"its pickle cannot be read, {error}") from error


_IGNORED = {"PROTO", "FRAME", "STOP"}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING"),
}
_FRESH = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The stack, marks and memo of one pickle."""

    def __init__(self, path: Path, storages: dict[str, _Storage]):
        self.path = path
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Follow one opcode."""
        stack = self.stack
        if name in _IGNORED:
            return
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _FRESH:
            stack.append(_FRESH[name]())
        elif name in _TUPLES:
            stack.append(tuple(self.take(_TUPLES[name])))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise ValueError(f"nothing was kept as number {argument}")
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(stack)
            self.stack = []
        else:
            self.build(name, argument)

    def build(self, name: str, argument: Any) -> None:
        """Follow an opcode that makes or fills an object."""
        match name:
            case "TUPLE":
                made = tuple(self.unmark())
                self.stack.append(made)
            case "APPEND":
                (item,) = self.take(1)
                self.target(list).append(item)
            case "APPENDS":
                items = self.unmark()
                self.target(list).extend(items)
            case "SETITEM":
                self.fill(self.take(2))
            case "SETITEMS":
                self.fill(self.unmark())
            case "GLOBAL":
                self.stack.append(self.allowed(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                module, attribute = self.take(2)
                if type(module) is not str or type(attribute) is not str:
                    raise ValueError("a global without a name")
                self.stack.append(self.allowed(f"{module}.{attribute}"))
            case "REDUCE":
                function, arguments = self.take(2)
                self.stack.append(self.call(function, arguments))
            case "BUILD":
                self.take(1)  # an OrderedDict's attributes, such as the module versions in `_metadata`
                self.target(dict)
            case "BINPERSID":
                self.stack.append(self.storage(*self.take(1)))
            case "INST":
                self.allowed(argument.replace(" ", ".", 1))
                raise self.forbidden("the opcode INST")
            case _:
                raise self.forbidden(f"the opcode {name}")

    def take(self, count: int) -> list[Any]:
        """Remove the topmost items, the deepest first."""
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def unmark(self) -> list[Any]:
        """Remove the items since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def target(self, kind: type) -> Any:
        """The container on top, which an opcode fills."""
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"no {kind.__name__} where one is needed")
        return self.stack[-1]

    def fill(self, items: Sequence[Any]) -> None:
        """Put keys and values into the dict on top."""
        target = self.target(dict)
        # Simple keys only: hashing a deeply nested tuple would overflow the C stack.
        if len(items) % 2 or any(type(key) not in (str, int) for key in items[::2]):
            raise ValueError("a dict's keys are not plain text or numbers")
        target.update(zip(items[::2], items[1::2], strict=True))

    def allowed(self, name: str) -> _Global:
        """A name that a state dict needs; everything else is refused."""
        if name in _CALLS or name in _STORAGES or name in _TYPES:
            return _Global(name)
        raise self.forbidden(f"{name!r:.100}")

    def forbidden(self, what: str) -> CheckpointError:
        """The error for what no state dict needs."""
        return CheckpointError(
            f"{self.path} is refused: its pickle asks for {what}, which plain weights never need and which may run "
            "code. Get the weights as .safetensors, or have their owner save only the model's state_dict()."
        )

    def call(self, function: Any, arguments: Any) -> Any:
        """What an allowed function returns, without the function."""
        if not isinstance(function, _Global) or function.name not in _CALLS or type(arguments) is not tuple:
            raise self.forbidden("a call of something that is no function")
        return _CALLS[function.name](arguments)

    def storage(self, identity: Any) -> _Storage:
        """The storage that a persistent id names: ("storage", type, key, device, count), maybe with a None after it."""
        match identity:
            case ("storage", _Global(name), str(key), str(), int(count), *rest) if (
                name in _STORAGES and count >= 0 and rest in ([], [None])
            ):
                storage = _Storage(key, _STORAGES[name], count)
            case _:
                raise ValueError("a persistent id that names no storage")
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"two different storages are called {key!r:.60}")
        return storage


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise ValueError("an OrderedDict that is built from a list")
    return {}


def _rebuild_tensor(arguments: tuple[Any, ...]) -> _Tensor:
    """``_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)``; metadata would be a sign bit."""
    if len(arguments) != 6:
        raise ValueError(f"a tensor with {len(arguments)} facts instead of 6")
    storage, offset, shape, strides = arguments[:4]
    plain = isinstance(storage, _Storage) and type(shape) is tuple and type(strides) is tuple
    if not plain or len(shape) != len(strides) or len(shape) > MAX_DIMS:
        raise ValueError("a tensor without a storage, a shape and strides that belong together")
    if any(type(number) is not int or not 0 <= number <= MAX_SIDE for number in (*shape, *strides)):
        raise ValueError("a tensor with an impossible shape or strides")
    last = sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if type(offset) is not int or offset < 0 or (0 not in shape and offset + last >= storage.count):
        raise ValueError("a tensor that reaches past its storage")
    if math.prod(shape) > storage.count:
        raise ValueError("a tensor that is larger than its storage")
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(arguments: tuple[Any, ...]) -> _Tensor:
    if len(arguments) != 3 or not isinstance(arguments[0], _Tensor):
        raise ValueError("a parameter without a tensor")
    return arguments[0]


def _inert(arguments: tuple[Any, ...]) -> None:
    """A value beside the weights, such as a device, that nobody reads."""


_CALLS = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.Size": _inert,
    "torch.device": _inert,
}
