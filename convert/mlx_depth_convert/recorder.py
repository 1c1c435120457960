"""Watching a network compute: what each module is called with and returns."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

OnCall = Callable[[str, nn.Module, mx.array, Any], None]
"""Path, module, first argument and result of a call that has ended."""


@contextmanager
def recording(
    network: nn.Module, on_call: OnCall, on_start: Callable[[str], object] = lambda path: None
) -> Iterator[None]:
    """Report every module call of a network while the context lasts; afterwards all is as before.

    Args:
        network: The network; other networks of the same classes are not reported.
        on_call: Called when a module returns.
        on_start: Called with the path before a module computes.

    Python looks ``__call__`` up on the class, so the classes are wrapped, not the modules.
    """
    paths = {id(module): path for path, module in network.named_modules() if path}
    modules = [module for _, module in network.named_modules()]
    owners = {
        next(cls for cls in type(module).__mro__ if "__call__" in vars(cls)) for module in modules if callable(module)
    }
    running: set[str] = set()
    originals = {cls: vars(cls)["__call__"] for cls in owners}
    for cls, original in originals.items():
        cls.__call__ = _watched(original, paths, running, on_call, on_start)  # type: ignore[method-assign]
    mx.disable_compile()  # a compiled function would call its modules once, with placeholders
    try:
        yield
    finally:
        mx.enable_compile()
        for cls, original in originals.items():
            cls.__call__ = original  # type: ignore[method-assign]


def _watched(
    original: Callable[..., Any],
    paths: dict[int, str],
    running: set[str],
    on_call: OnCall,
    on_start: Callable[[str], object],
) -> Callable[..., Any]:
    def call(self: nn.Module, *arguments: Any, **options: Any) -> Any:
        path = paths.get(id(self))
        if path is None or path in running:  # a subclass that calls its base is one call
            return original(self, *arguments, **options)
        on_start(path)
        running.add(path)
        try:
            result = original(self, *arguments, **options)
        finally:
            running.discard(path)
        on_call(path, self, arguments[0], result)  # every module takes its data first
        return result

    return call
