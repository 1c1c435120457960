"""Functions in one loop each: compiled by MLX where that can be trusted, in plain operations elsewhere."""

import functools
import warnings
from collections.abc import Callable

import mlx.core as mx

from mlx_depth.linux_cpu.streams import on_linux_cpu

Function = Callable[..., mx.array]

_pairs: list[tuple[Function, Function]] = []  # plain, compiled


def fused(f: Function) -> Function:
    """``mx.compile`` for a Linux CPU, where its libraries can be trusted; the plain operations elsewhere.

    Args:
        f: Float32 arrays → an array, element by element.
    Returns:
        The function; it computes on contiguous copies where an array is a view, as MLX has a loop for each layout.
    """
    compiled = mx.compile(f)
    _pairs.append((f, compiled))

    @functools.wraps(f)
    def call(*arrays: mx.array) -> mx.array:
        return compiled(*map(mx.contiguous, arrays)) if usable() else f(*arrays)

    return call


@functools.cache
def usable() -> bool:
    """Whether MLX's compiled loops work, and come from a folder of the user's own; tried once a process.

    Warns where they do not, with the next step.
    """
    if not on_linux_cpu():
        return True
    from mlx_depth.linux_cpu.kernel_cache import problem_of  # what builds libraries is slow to import, and not for Macs

    problem = problem_of(_pairs)
    if problem is not None:
        warnings.warn(f"MLX's compiled loops are off, predictions take longer: {problem}", stacklevel=2)
    return problem is None
