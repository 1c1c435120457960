"""Running a network as fast as its device allows."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.linux_cpu.streams import all_cores, on_linux_cpu

IDLE_SHARE = 1 / 8  # of MLX's memory limit, which is about the memory of a Mac
WORKING_MAPS = 4  # the head needs about three of its largest maps at once
LEAST_WORKING_BYTES = 1 << 27
MANY_PIXELS = 280 * 280
COMPILED_SHAPES = 32  # a folder's photos have rarely more shapes; a graph takes some megabytes

Forward = Callable[[mx.array], mx.array]


def cores_for(size: Sequence[int]) -> AbstractContextManager[None]:
    """``all_cores`` for images of a size, (height, width); for small ones nothing.

    There the handing over between streams costs more than the other cores gain.
    """
    return all_cores() if math.prod(size) >= MANY_PIXELS else nullcontext()


def evaluate(arrays: mx.array | list[mx.array], working_bytes: int) -> None:
    """``mx.eval`` that holds little memory beyond what the work needs.

    MLX schedules operations far ahead of a GPU and frees a buffer when what used it has run: all that a network ever
    computes would exist at once. Beyond ``mx.set_memory_limit`` it waits instead, so that limit becomes what is in use
    at the start and ``working_bytes``. A freed buffer it keeps for the next array of its size, by default as many as
    fit into all memory: photos of many sizes would fill that. So ``mx.set_cache_limit`` becomes an eighth of the memory
    limit. Limits that were lower stay, and all come back.

    Args:
        arrays: What to evaluate.
        working_bytes: What the work needs at once; too low a number costs time alone.
    """
    with _limits(working_bytes):
        mx.eval(arrays)


def working_bytes(network: nn.Module, shape: tuple[int, ...], dtype: mx.Dtype) -> int:
    """What the network needs at once beside its parameters, for ``evaluate``.

    Args:
        network: Knows its ``largest_map``.
        shape: Of the pixel values, (B, H, W, 3).
        dtype: Type that the network computes in.
    """
    map_bytes = shape[0] * network.largest_map((shape[1], shape[2])) * dtype.size
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


def depth_of(network: nn.Module, dtype: mx.Dtype) -> Forward:
    """The network as a function from pixel values of any float type to depth; compiled where MLX computes on a GPU.

    There the launches of small kernels rule, and compiling fuses them. On a CPU compiled graphs are slower, and a C++
    compiler builds each loop. A Linux CPU takes the images of a batch one by one, as their maps then fit its caches.

    Args:
        network: ``pixel_values`` (B, H, W, 3) → named outputs with ``depth`` (B, H, W). What it holds at the first call
            stays: a compiled graph does not see a later change of a parameter.
        dtype: Type that the network computes in.
    Returns:
        Normalised ``(B, H, W, 3)`` → ``(B, H, W)``, float32, not evaluated.
    """

    def forward(pixel_values: mx.array) -> mx.array:
        depth: mx.array = network(pixel_values.astype(dtype)).depth
        return depth

    if mx.default_device() == mx.Device(mx.gpu):
        return _compiled(forward, network)
    return _one_by_one(forward) if on_linux_cpu() else forward


def _one_by_one(forward: Forward) -> Forward:
    def images(pixel_values: mx.array) -> mx.array:
        if pixel_values.ndim != 4 or len(pixel_values) < 2:
            return forward(pixel_values)
        done: list[mx.array] = []
        for i in range(pixel_values.shape[0]):
            image = pixel_values[i : i + 1]
            done.append(forward(mx.depends([image], done[-1:])[0] if done else image))  # not all graphs at once
        return mx.concatenate(done)

    return images


def _compiled(forward: Forward, network: nn.Module) -> Forward:
    @lru_cache(maxsize=COMPILED_SHAPES)
    def graph(shape: tuple[int, ...], dtype: mx.Dtype) -> Forward:
        mx.eval(network.prepare((shape[1], shape[2])))  # else the graph would compute it again at each call
        return mx.compile(lambda pixel_values: forward(pixel_values))  # a function of its own, that can be let go

    return lambda pixel_values: graph(tuple(pixel_values.shape), pixel_values.dtype)(pixel_values)
