"""What ``torch.save`` puts into a pickle, as plain facts: storages, tensors, and everything else as inert names."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_DIMS, MAX_SIDE = 32, 2**31 - 1  # NumPy's rank before 2.0, and MLX's longest axis

# Storage class of torch → type as NumPy names it (bfloat16 aside), and bytes of a value.
STORAGES: Mapping[str, tuple[str, int]] = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
    # Beside the weights only: nothing here reads their values.
    "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
    "QInt8Storage": ("qint8", 1),
    "QUInt8Storage": ("quint8", 1),
    "QInt32Storage": ("qint32", 4),
    "QUInt4x2Storage": ("quint4x2", 1),
    "QUInt2x4Storage": ("quint2x4", 1),
    "UntypedStorage": ("untyped", 1),
}
READABLE = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_BY_NAME = {
    f"{module}.{name}": facts for module in ("torch", "torch.cuda", "torch.storage") for name, facts in STORAGES.items()
}


@dataclass(frozen=True)
class Global:
    """A name that a pickle asks for, never the thing itself."""

    name: str


@dataclass(frozen=True)
class Inert:
    """An object that a pickle would make by calling something; it is not made, and what it would hold is let go."""

    name: str  # of what would have been called


@dataclass(frozen=True)
class Storage:
    """A block of numbers somewhere in the file."""

    key: str
    dtype: str
    itemsize: int
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * self.itemsize


@dataclass(frozen=True)
class Tensor:
    """A view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class OddTensor:
    """A tensor of a kind that is not read, such as a sparse one."""

    kind: str


def storage(identity: Any) -> Storage | Inert:
    """What a persistent id names: ("storage", type, key, device, count), maybe with a None after it."""
    match identity:
        case ("storage", Global(name), str(key), str(), int(count), *rest) if (
            name in _BY_NAME and count >= 0 and rest in ([], [None])
        ):
            return Storage(key, *_BY_NAME[name], count)
        case ("module", Global(name), *_):  # an old file of a whole module names its class so
            return Inert(name)
    raise ValueError("a persistent id that names no storage")


def ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """An OrderedDict or defaultdict, which is filled later."""
    if any(isinstance(argument, (list, dict)) for argument in arguments):
        raise ValueError("an OrderedDict that is built from a list")
    return {}


def _rebuild_tensor(arguments: tuple[Any, ...]) -> Tensor | OddTensor:
    """``_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks, metadata)``."""
    if len(arguments) not in (6, 7):
        raise ValueError(f"a tensor with {len(arguments)} facts instead of 6")
    if len(arguments) == 7 and arguments[6]:
        return OddTensor("conjugate or negated")
    block, offset, shape, strides = arguments[:4]
    plain = isinstance(block, Storage) and type(shape) is tuple and type(strides) is tuple
    if not plain or len(shape) != len(strides) or len(shape) > MAX_DIMS:
        raise ValueError("a tensor without a storage, a shape and strides that belong together")
    if any(type(number) is not int or not 0 <= number <= MAX_SIDE for number in (*shape, *strides)):
        raise ValueError("a tensor with an impossible shape or strides")
    last = sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if type(offset) is not int or offset < 0 or (0 not in shape and offset + last >= block.count):
        raise ValueError("a tensor that reaches past its storage")
    if math.prod(shape) > block.count:
        raise ValueError("a tensor that is larger than its storage")
    return Tensor(block, offset, shape, strides) if block.dtype in READABLE else OddTensor(block.dtype)


def _rebuild_parameter(arguments: tuple[Any, ...]) -> Tensor | OddTensor:
    if len(arguments) not in (3, 4) or not isinstance(arguments[0], (Tensor, OddTensor)):
        raise ValueError("a parameter without a tensor")
    return arguments[0]


def _rebuild_from_type(arguments: tuple[Any, ...]) -> Any:
    """``_rebuild_from_type_v2(function, type, arguments, state)``: a tensor with attributes, which are left out."""
    match arguments:
        case (Global(function), Global("torch.Tensor" | "torch.nn.parameter.Parameter"), tuple(facts), _) if (
            function in CALLS
        ):
            return CALLS[function](facts)
        case (_, Global(kind), *_):
            return OddTensor(kind)
    raise ValueError("a tensor of no type")


def _odd(kind: str) -> Callable[[tuple[Any, ...]], OddTensor]:
    return lambda arguments: OddTensor(kind)


# What is followed; the call of any other name gives an inert object.
CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": ordered_dict,
    "collections.defaultdict": ordered_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch._utils._rebuild_tensor_v3": _odd("of a newer type"),
    "torch._utils._rebuild_sparse_tensor": _odd("sparse"),
    "torch._utils._rebuild_sparse_csr_tensor": _odd("sparse"),
    "torch._utils._rebuild_nested_tensor": _odd("nested"),
    "torch._utils._rebuild_qtensor": _odd("quantized"),
    "torch._utils._rebuild_meta_tensor_no_storage": _odd("without values (meta)"),
    "torch._utils._rebuild_wrapper_subclass": _odd("of a subclass"),
    "torch._utils._rebuild_device_tensor_from_numpy": _odd("of another device"),
}

# Beside these alone a file without weights is no reason for suspicion.
_HARMLESS = (
    *("numpy.", "torch.", "collections.", "datetime.", "pathlib.", "decimal.", "fractions.", "uuid.", "enum."),
    *("argparse.Namespace", "_codecs.encode", "types.SimpleNamespace", "copyreg._reconstructor", "copy_reg."),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "frozenset", "object", "list")),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("slice", "complex", "bytearray")),
)
_NOT_HARMLESS = (
    "torch.load",
    "torch.nn.",
    "torch.jit.",
    "torch.hub.",
    "torch.package.",
    "torch._utils.__",
    "numpy.load",
)


def is_harmless(name: str) -> bool:
    """Whether a name that a pickle asks for is one of plain data, as training loops keep it."""
    return name.startswith(_HARMLESS) and not name.startswith(_NOT_HARMLESS)
