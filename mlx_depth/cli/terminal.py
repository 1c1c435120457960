"""What the verbs share: tables, what options are read as, the device, and lines on stderr."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mlx.core as mx

from mlx_depth.errors import OptionError
from mlx_depth.processor import InputSize
from mlx_depth.registry import ModelSpec


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


def number_or_off(text: str) -> float | None:
    """Read a number, or ``off``."""
    if text.lower() == "off":
        return None
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number: write one, or off") from None


def numbers(count: int, names: str) -> Callable[[str], tuple[float, ...]]:
    """For options of several numbers, such as ``fx,fy,cx,cy``."""

    def read(text: str) -> tuple[float, ...]:
        try:
            found = tuple(float(part) for part in text.split(","))
        except ValueError:
            found = ()
        if len(found) != count:
            raise argparse.ArgumentTypeError(f"{text!r} is not {names}: write {count} numbers with commas between")
        return found

    return read


def compute_on(device: str | None) -> None:
    """What ``--device`` asks for: ``gpu`` or ``cpu``; None leaves it to MLX.

    Raises:
        OptionError: If there is no GPU.
    """
    if device is None:
        return
    if device == "gpu" and not mx.is_available(mx.Device(mx.gpu)):
        raise OptionError("MLX has no GPU here: leave --device gpu out.")
    mx.set_default_device(mx.Device(mx.gpu if device == "gpu" else mx.cpu))


def license_of(spec: ModelSpec) -> str:
    """The license of the weights, in words."""
    if spec.license is None:
        return "license unknown"
    return f"license {spec.license}{'' if spec.commercial else ' (not for commercial use)'}"


def say(text: str) -> None:
    """Print a diagnostic, at once and to stderr."""
    print(text, file=sys.stderr, flush=True)
