"""Running a network as fast as its device allows."""

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, lru_cache
from typing import Any, Protocol

import mlx.core as mx
from mlx.utils import tree_map

from mlx_depth.errors import OptionError
from mlx_depth.models.base import DepthNetwork, DepthOutputs
from mlx_depth.runtime import cpu
from mlx_depth.runtime.cpu import all_cores, on_linux_cpu
from mlx_depth.weights.safetensors_io import DTYPES

IDLE_SHARE = 1 / 8  # of MLX's memory limit, which is about the memory of a Mac
WORKING_MAPS = 4  # the head needs about three of its largest maps at once
LEAST_WORKING_BYTES = 1 << 27
MANY_PIXELS = 280 * 280
COMPILED_SHAPES = 32  # a folder's photos have rarely more shapes; a graph takes some megabytes

Conditions = Mapping[str, mx.array]
_Call = Callable[[mx.array, dict[str, mx.array]], dict[str, Any]]  # DepthOutputs.present, which MLX can compile
_NONE: Conditions = {}


class Forward(Protocol):
    """A network as it is run."""

    def __call__(self, pixel_values: mx.array, conditions: Conditions = ...) -> DepthOutputs:
        """Normalized pixel values of any float type → outputs, the depth in float32, not evaluated.

        Args:
            pixel_values: In the axes that the network takes.
            conditions: What comes in beside the pixels, by name: of ``DepthNetwork.conditions``.
        Raises:
            OptionError: If the network cannot take the shape.
        """


def cores_for(size: Sequence[int]) -> AbstractContextManager[None]:
    """``all_cores`` for images of a size, (height, width); for small ones nothing.

    There the handing over between streams costs more than the other cores gain.
    """
    return all_cores() if math.prod(size) >= MANY_PIXELS else nullcontext()


def evaluate(arrays: Any, working_bytes: int) -> None:
    """``mx.eval`` that holds little memory beyond what the work needs.

    MLX schedules operations far ahead of a GPU and frees a buffer when what used it has run: all that a network ever
    computes would exist at once. Beyond ``mx.set_memory_limit`` it waits instead, so that limit becomes what is in use
    at the start and ``working_bytes``. A freed buffer it keeps for the next array of its size, by default as many as
    fit into all memory: photos of many sizes would fill that. So ``mx.set_cache_limit`` becomes an eighth of the memory
    limit. Limits that were lower stay, and all come back.

    Args:
        arrays: An array, or any tree of them.
        working_bytes: What the work needs at once; too low a number costs time alone.
    """
    with _limits(working_bytes):
        mx.eval(arrays)


def working_bytes(network: DepthNetwork, shape: tuple[int, ...], dtype: mx.Dtype) -> int:
    """What the network needs at once beside its parameters, for ``evaluate``.

    Args:
        network: Knows its ``largest_map``.
        shape: Of the pixel values, ``(B, …, H, W, 3)``.
        dtype: Type that the network computes in.
    """
    H, W = shape[-3:-1]
    map_bytes = math.prod(shape[:-3]) * network.largest_map((H, W)) * dtype.size
    return max(WORKING_MAPS * map_bytes, LEAST_WORKING_BYTES)


class _Users:
    """How many work at once, as the limits belong to the process, and what the last of them gives back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.memory_limit = 0
        self.cache_limit = 0


_users = _Users()


@contextmanager
def _limits(working_bytes: int) -> Iterator[None]:
    with _users.lock:
        if _users.count == 0:
            _users.memory_limit = mx.get_memory_limit()
            _users.cache_limit = mx.set_cache_limit(0)
            mx.set_cache_limit(min(_users.cache_limit, int(_users.memory_limit * IDLE_SHARE)))
        limit = mx.get_memory_limit() if _users.count else mx.get_active_memory()
        mx.set_memory_limit(min(limit + working_bytes, _users.memory_limit))
        _users.count += 1
    try:
        yield
    finally:
        with _users.lock:
            _users.count -= 1
            if _users.count == 0:
                mx.set_memory_limit(_users.memory_limit)
                mx.set_cache_limit(_users.cache_limit)


def forward_of(network: DepthNetwork, dtype: mx.Dtype, options: Mapping[str, Any] | None = None) -> Forward:
    """The network as it runs fastest; compiled where MLX computes on a GPU.

    There launching many small kernels dominates, and compiling fuses them. On a CPU compiled graphs are slower, and a
    C++ compiler builds each loop. A Linux CPU takes the images of a batch one by one: their maps then fit its caches.

    Args:
        network: What it holds at the first call stays: a compiled graph does not see a later change of a parameter.
        dtype: Type that the network computes in.
        options: Further arguments of the network that are no arrays.
    """
    call_network: Callable[..., DepthOutputs] = network  # each has conditions and options of its own

    def compute(pixel_values: mx.array, conditions: dict[str, mx.array]) -> dict[str, Any]:
        return call_network(pixel_values.astype(dtype), **conditions, **(options or {})).present()

    call: _Call = compute
    if mx.default_device() == mx.Device(mx.gpu):
        call = _compiled(compute)
    elif on_linux_cpu() and network.takes != "video":
        call = _one_by_one(compute)
    prepared = _prepared(network)

    def forward(pixel_values: mx.array, conditions: Conditions = _NONE) -> DepthOutputs:
        network.check(pixel_values.shape)
        prepared(pixel_values.shape[-3:-1])
        return DepthOutputs(**call(pixel_values, dict(conditions)))

    return forward


def _prepared(network: DepthNetwork) -> Callable[[tuple[int, ...]], None]:
    """Evaluates what a network prepares for a size, once a size: a compiled graph would compute it at each call."""

    @lru_cache(maxsize=COMPILED_SHAPES)
    def prepare(size: tuple[int, int]) -> None:
        mx.eval(network.prepare(size))

    return lambda size: prepare((size[0], size[1]))


def _one_by_one(call: _Call) -> _Call:
    def images(pixel_values: mx.array, conditions: dict[str, mx.array]) -> dict[str, Any]:
        if len(pixel_values) == 1:
            return call(pixel_values, conditions)
        done: list[dict[str, Any]] = []
        for i in range(len(pixel_values)):
            image = pixel_values[i : i + 1]
            if done:
                (image,) = mx.depends([image], [done[-1]["depth"]])  # not all graphs at once
            done.append(call(image, {name: array[i : i + 1] for name, array in conditions.items()}))
        joined: dict[str, Any] = tree_map(lambda *parts: mx.concatenate(list(parts)), *done)
        return joined

    return images


def _compiled(call: _Call) -> _Call:
    @lru_cache(maxsize=COMPILED_SHAPES)
    def graph(shape: tuple[int, ...], dtype: mx.Dtype, conditions: tuple[str, ...]) -> _Call:
        compiled: _Call = mx.compile(lambda x, conditions: call(x, conditions))  # of its own, that can be let go
        return compiled

    return lambda x, conditions: graph(tuple(x.shape), x.dtype, tuple(conditions))(x, conditions)


@cache
def warn_slow() -> None:
    """Once a process: say how to get a fast BLAS where MLX computes on a slow one."""
    hint = cpu.hint() if mx.default_device() == mx.Device(mx.cpu) else None
    if hint is not None:
        warnings.warn(hint, stacklevel=4)


def resolve_dtype(name: str | mx.Dtype | None) -> mx.Dtype:
    """The number format that ``load`` takes for ``dtype``; None: float16 on a GPU, float32 on a CPU.

    Raises:
        OptionError: If there is no such one, or it is not for networks.
    """
    if name is None:
        return mx.float32 if mx.default_device() == mx.Device(mx.cpu) else mx.float16
    if isinstance(name, mx.Dtype) and name in DTYPES.values():
        return name
    if isinstance(name, str) and name in DTYPES:
        return DTYPES[name]
    raise OptionError(f"no dtype {str(name)!r}: choose one of {', '.join(DTYPES)}")
