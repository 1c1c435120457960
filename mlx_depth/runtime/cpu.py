"""What the runtime does for a Linux CPU; nothing where ``linux_cpu`` is left out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

try:
    from mlx_depth.linux_cpu import openblas
    from mlx_depth.linux_cpu.openblas import hint
    from mlx_depth.linux_cpu.streams import all_cores, on_linux_cpu
except ModuleNotFoundError:
    openblas = None  # type: ignore[assignment]

    def hint() -> str | None:
        """There is no faster BLAS to hint at."""
        return None

    @contextmanager
    def all_cores() -> Iterator[None]:
        """Nothing is spread over cores."""
        yield

    def on_linux_cpu() -> bool:
        """No route is taken that only a Linux CPU has."""
        return False


def environment_without_openblas() -> dict[str, str]:
    """The environment for a child process that is to compute on its own BLAS, whatever this one runs on."""
    return {**os.environ, **({openblas.SWITCH: "off"} if openblas is not None else {})}
