"""What the verbs share: tables, sizes, and lines on stderr."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mlx_depth.processor import InputSize


def aligned(rows: list[dict[str, Any]]) -> str:
    """A table with one row a dictionary."""
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def lines(facts: Mapping[str, Any], indent: str = "", show: Callable[[Any], str] | None = None) -> Iterator[str]:
    """Facts as indented lines; what ends with ``_bytes`` also in MB."""
    for name, value in facts.items():
        cell = show or (_megabytes if name.endswith("_bytes") else _cell)
        if isinstance(value, Mapping) and value:
            yield f"{indent}{name}:"
            yield from lines(value, indent + "  ", cell)
        else:
            yield f"{indent}{name}: {cell(value)}"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "–" if value is None or value == {} else str(value)


def _megabytes(count: int) -> str:
    return f"{count:,} ({count / 1e6:,.1f} MB)"


def input_size(text: str) -> InputSize:
    """Read what ``--input-size`` takes: ``518`` or ``392x518``."""
    try:
        sides = tuple(int(side) for side in text.lower().split("x"))
    except ValueError:
        sides = ()
    if len(sides) == 1:
        return sides[0]
    if len(sides) == 2:
        return sides[0], sides[1]
    raise argparse.ArgumentTypeError(f"{text!r} is no size: write 518 for the short side, or 392x518 (height x width)")


def color(text: str) -> tuple[int, int, int]:
    """Read what ``--background`` takes: a name such as ``white``, or ``#rrggbb``."""
    from PIL import ImageColor

    try:
        red, green, blue = ImageColor.getcolor(text, "RGB")  # type: ignore[misc]  # three numbers for this mode
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no color: write a name such as black, or #rrggbb") from None
    return red, green, blue


def say(text: str) -> None:
    """Print a diagnostic, at once and to stderr."""
    print(text, file=sys.stderr, flush=True)
