"""The values of a config, checked before a network is built from them: a damaged file costs neither time nor memory."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from mlx_depth.errors import CheckpointError

MAX_INTEGER = 2**31 - 1
ADDED_LATER = "added later"


def added_later(default: Any) -> Any:
    """A dataclass field that config.json files of earlier versions lack; they meant this value."""
    return dataclasses.field(default=default, metadata={ADDED_LATER: True})


def check_at_least(config: Any, least: Mapping[str, int]) -> None:
    """Check the whole numbers of a config dataclass against their lower bounds.

    Args:
        config: The dataclass.
        least: Field → smallest value that it, or each of its items, may have.
    Raises:
        CheckpointError: If one is smaller, or no whole number.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) is not int or not bound <= number <= MAX_INTEGER:
                raise CheckpointError(
                    f"{name} is {value!r:.60}, not made of whole numbers from {bound}: "
                    "take the config.json of the original checkpoint."
                )


def check_against_shapes(config: Any, shapes: Mapping[str, tuple[int, ...]], where: object) -> None:
    """Check that no whole number of a config is beyond what the tensors can mean.

    A width or a table's side is the side of some tensor, and a count of layers is a count of tensors: so a number
    above both is a lie, told before anything of its size is built.

    Args:
        config: A config dataclass, whatever its family.
        shapes: Shapes of the checkpoint's tensors.
        where: The file, for the message.
    Raises:
        CheckpointError: If a number is too large.
    """
    sides = [side for shape in shapes.values() if 0 not in shape for side in shape]
    most = max(len(shapes), *sides, 1)
    for name, number in _whole_numbers(config, ""):
        if number > most:
            raise CheckpointError(
                f"{where}: its config says {name} {number}, but the longest side of its {len(shapes)} tensors is "
                f"{max(sides, default=0)}: take the config.json of the original checkpoint."
            )


def _whole_numbers(value: Any, name: str) -> Iterator[tuple[str, int]]:
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _whole_numbers(getattr(value, field.name), f"{name}.{field.name}".strip("."))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _whole_numbers(item, name)
    elif type(value) is int:
        yield name, value


def typed(name: str, hint: Any, value: Any) -> Any:
    """A JSON value as the type that a dataclass field has; lists become tuples.

    Args:
        name: Of the field, for the message.
        hint: ``int``, ``float``, ``str``, ``bool``, ``Literal``, a union with None, a tuple or a mapping of these.
        value: The JSON value.
    Raises:
        CheckpointError: If the value has another type, another number of items, or is no finite number.
    """
    if not _fits(hint, value):
        wanted = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
        wanted = wanted.replace("typing.", "").replace("collections.abc.", "")
        raise CheckpointError(f"{name} in config.json is {value!r:.40}, no {wanted}: convert the checkpoint again.")
    return tuple(value) if isinstance(value, list) else value


def _fits(hint: Any, value: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(choice, value) for choice in arguments)
    if origin is tuple:
        if not isinstance(value, list):
            return False
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        return len(value) == len(arguments) and all(map(_fits, arguments, value))
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(_fits(arguments[1], item) for item in value.values())
    if hint is float:
        return (type(value) is int and abs(value) <= MAX_INTEGER) or (type(value) is float and math.isfinite(value))
    if hint is int:
        return type(value) is int and abs(value) <= MAX_INTEGER
    return isinstance(hint, type) and type(value) is hint
