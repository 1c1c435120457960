"""Figures on disk, drawn by matplotlib (the extra ``plot``)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_depth.errors import OptionError
from mlx_depth.io.atomic import atomic_write

SUFFIXES = (".png", ".pdf", ".svg")


def draw(path: str | Path, size: tuple[float, float], fill: Callable[[Any], None], *, overwrite: bool = False) -> Path:
    """Make a matplotlib figure and write it, without any window system.

    Args:
        path: ``.png``, ``.pdf`` or ``.svg``.
        size: ``(width, height)`` in inches.
        fill: Draws into the figure.
        overwrite: Replace a file that exists.
    Returns:
        ``path``.
    Raises:
        OptionError: If matplotlib is missing, or the suffix is another.
        SaveError: If the file exists or cannot be written.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError(f"cannot draw {path}: give a name that ends with {', '.join(SUFFIXES)}.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionError("drawing needs matplotlib: pip install 'mlx-depth[plot]'.") from error
    figure = Figure(size, layout="constrained")
    fill(figure)
    atomic_write(path, lambda stream: figure.savefig(stream, format=path.suffix[1:].lower()), overwrite=overwrite)
    return path
