"""Running a network as fast as its device allows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.nn.cores import all_cores, on_linux_cpu

IDLE_SHARE = 1 / 8  # of MLX's memory limit, which is about the memory of a Mac
COMPILED_SHAPES = 32  # a folder's photos have rarely more shapes; a graph takes some megabytes

Forward = Callable[[mx.array], mx.array]


@contextmanager
def full_speed() -> Iterator[None]:
    """Build and evaluate within it: all cores of a CPU work, and MLX keeps few buffers for which it has no use.

    MLX keeps a freed buffer for the next array of its size, by default as many as fit into all memory: photos of many
    sizes would fill that. Within this context it keeps an eighth of ``mx.get_memory_limit()``, or less where
    ``mx.set_cache_limit`` says so; the limit that was set before comes back.

    Proved by ``tests/test_inference.py``.
    """
    share = int(mx.get_memory_limit() * IDLE_SHARE)
    before = mx.set_cache_limit(share)
    mx.set_cache_limit(min(before, share))
    try:
        with all_cores():
            yield
    finally:
        mx.set_cache_limit(before)


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

    Proved by ``tests/test_inference.py``.
    """

    def forward(pixel_values: mx.array) -> mx.array:
        depth: mx.array = network(pixel_values.astype(dtype)).depth
        return depth

    if mx.default_device() == mx.Device(mx.gpu):
        return _compiled(forward, network)
    return _one_by_one(forward) if on_linux_cpu() else forward


def _one_by_one(forward: Forward) -> Forward:
    def images(pixel_values: mx.array) -> mx.array:
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
