"""What the rest of the library needs to know about a model family, as data."""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import mlx.nn as nn

from mlx_depth.errors import CheckpointError
from mlx_depth.processor import Reference
from mlx_depth.weights.rules import Rule

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Stage:
    """A place inside the network where two implementations are compared."""

    name: str
    module: str  # path of our module
    transformers: str  # path of the module that computes the same there
    at: Literal["input", "output"] = "output"


@dataclass(frozen=True)
class Family:
    """One model family: how to build it and how to read its checkpoints."""

    name: str
    config_type: type
    build: Callable[[Any], nn.Module]
    weights: Mapping[str, tuple[Rule, ...]]  # dialect → table
    signatures: Mapping[str, str]  # dialect → a tensor that only this dialect has
    recognise: Mapping[str, Callable[[Shapes], Any]]  # dialect → config from tensor shapes alone
    read_config: Mapping[str, Callable[[Mapping[str, Any]], Any]]  # transformers' model_type → config
    read_metadata: Mapping[str, Callable[[Mapping[str, Any]], Any]]  # dialect whose files hold their config → config
    follow: Callable[[Any, Reference], Any]  # the config that computes as this reference does
    quantizable: Callable[[str, nn.Module], bool]  # which layers a quantized checkpoint packs
    stages: Callable[[Any], tuple[Stage, ...]]  # config → the stages before the final depth, in the order of the data


def config_from_dict(config_type: type, data: Mapping[str, Any]) -> Any:
    """Rebuild a (nested) config dataclass from JSON values; unknown or missing keys and wrong types are errors."""
    if not isinstance(data, Mapping):
        raise CheckpointError(
            f"the {config_type.__name__} of config.json is {data!r:.40}: convert the checkpoint again."
        )
    hints = typing.get_type_hints(config_type)
    fields = {field.name: field for field in dataclasses.fields(config_type)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise CheckpointError(
            f"unknown keys in the {config_type.__name__} of config.json: {', '.join(unknown)}. "
            f"Known keys: {', '.join(fields)}. Update mlx-depth if the file is newer."
        )
    missing = sorted(set(fields) - set(data))
    if missing:
        raise CheckpointError(
            f"missing keys in the {config_type.__name__} of config.json: {', '.join(missing)}. "
            "Convert the checkpoint again."
        )
    return config_type(**{name: _value(name, hints[name], value) for name, value in data.items()})


_JSON_TYPES: dict[Any, tuple[type, ...]] = {int: (int,), float: (float, int), str: (str,), bool: (bool,)}


def _value(name: str, hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return config_from_dict(typing.cast(type, hint), value)
    if hint in _JSON_TYPES and type(value) not in _JSON_TYPES[hint]:
        raise CheckpointError(
            f"{name} in config.json is {value!r:.40}, no {hint.__name__}: convert the checkpoint again."
        )
    return tuple(value) if isinstance(value, list) else value
