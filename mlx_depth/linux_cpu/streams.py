"""Work spread over the cores of a Linux CPU.

MLX computes a stream's operations in one thread, and only its matrix products take more. Several streams, each with
products of one thread, keep all cores busy with everything else, too.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import mlx.core as mx

from mlx_depth.linux_cpu import openblas

MOST_STREAMS = 8  # one thread hands out the work of all, and more would wait for it

_streams: ContextVar[tuple[mx.Stream, ...]] = ContextVar("_streams", default=())


def on_linux_cpu() -> bool:
    """Whether MLX computes on the CPU by its Linux backend; a Mac's has Accelerate."""
    return sys.platform == "linux" and mx.default_device() == mx.Device(mx.cpu)


@contextmanager
def all_cores() -> Iterator[None]:
    """Build and evaluate within it: what ``in_parts`` is given then runs on all cores.

    It takes a Linux CPU with OpenBLAS, and the main thread, as MLX's streams belong to a thread and never end; all else
    is left as it is.
    """
    count = openblas.threads() if on_linux_cpu() and threading.current_thread() is threading.main_thread() else 1
    if count == 1 or _streams.get():
        yield
        return
    streams = (mx.default_stream(mx.cpu), *_further_streams(min(count, MOST_STREAMS) - 1))
    with openblas.one_thread(), _spread_over(streams):
        yield


def cores() -> int:
    """Over how many cores ``in_parts`` spreads work: 1 outside ``all_cores``."""
    return max(len(_streams.get()), 1)


def in_parts(f: Callable[[int, int], mx.array], length: int) -> list[mx.array]:
    """Equal parts of a range, one a core.

    Args:
        f: Makes the part of an array from its first index and the one after its last.
        length: Length of the range.
    Returns:
        What ``f`` returned, in order; one array outside ``all_cores``.
    """
    streams = _streams.get()[:length]
    if len(streams) < 2:
        return [f(0, length)]
    parts = []
    for i, stream in enumerate(streams):
        with mx.stream(stream), _spread_over((stream,)):
            parts.append(f(length * i // len(streams), length * (i + 1) // len(streams)))
    return parts


@contextmanager
def _spread_over(streams: tuple[mx.Stream, ...]) -> Iterator[None]:
    token = _streams.set(streams)
    try:
        yield
    finally:
        _streams.reset(token)


@cache
def _further_streams(count: int) -> tuple[mx.Stream, ...]:
    return tuple(mx.new_stream(mx.cpu) for _ in range(count))
