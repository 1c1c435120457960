"""Which model a set of tensors is: family and dialect by signature, variant by shapes, the rest by official names."""

import dataclasses
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_depth.errors import CheckpointError
from mlx_depth.models.base import Family
from mlx_depth.processor import Processor
from mlx_depth.registry import FAMILIES, MODELS, ModelSpec
from mlx_depth.weights.rules import listed, parameter_shapes
from mlx_depth.weights.safetensors_io import CONFIG, weight_files


def recognise_dialect(tensors: Mapping[str, mx.array], path: Path) -> tuple[Family, str]:
    for family in FAMILIES.values():
        for dialect, signature in family.signatures.items():
            if signature in tensors:
                return family, dialect
    raise CheckpointError(
        f"{path} holds no model that mlx-depth knows (its first tensors: {listed(sorted(tensors))}). "
        f"Name a checkpoint of a family that it knows: {', '.join(FAMILIES)}."
    )


def read_foreign_config(config: Mapping[str, Any], family: Family) -> Any:
    model_type = str(config.get("model_type"))
    if model_type not in family.read_config:
        raise CheckpointError(
            f"{CONFIG} says model_type {model_type!r}, but the tensors are {family.name}'s "
            f"({', '.join(family.read_config)}): take the config.json that belongs to these weights."
        )
    return family.read_config[model_type](config)


# The authors' own file names; the variants that share all shapes differ in nothing else.
_OFFICIAL = re.compile(
    r"depth_anything(?:_(?P<v2>v2)(?:_metric_(?P<place>hypersim|vkitti))?)?_vit(?P<size>[sblg])(?:14)?"
)
_SIZE_NAMES = {"s": "small", "b": "base", "l": "large", "g": "giant"}
_PLACE_NAMES = {"hypersim": "metric-indoor-", "vkitti": "metric-outdoor-", None: ""}


def recognise_variant(
    path: Path, name: str, family: Family, dialect: str, tensors: Mapping[str, mx.array], spec: ModelSpec | None
) -> ModelSpec:
    """Tensors tell the size; V1, V2 and metric files differ in their name alone, so the name tells the rest."""
    config = family.recognise[dialect]({name: array.shape for name, array in tensors.items()})
    if spec is not None:
        if not _same_shapes(spec.config, config):
            raise CheckpointError(
                f"{path} is not {spec.name}, its tensors are those of {_alike(config)}: name one of these, or none."
            )
        return spec
    match = _OFFICIAL.search(weight_files(path)[0].stem.lower()) or _OFFICIAL.search(name.lower())
    if match is None:
        spec = next(spec for spec in MODELS.values() if spec.config == config)
        warnings.warn(
            f"{path} has no config.json and no official name: taken for {spec.name}. V1 and metric weights have the "
            "same tensors; for those, put the config.json beside the file or give it its official name.",
            stacklevel=2,
        )
        return dataclasses.replace(spec, name=name, licence=None, hub_id=None, aliases=())
    version = "v2" if match["v2"] else "v1"
    official = MODELS[f"depth-anything-{version}-{_PLACE_NAMES[match['place']]}{_SIZE_NAMES[match['size']]}"]
    if not _same_shapes(official.config, config):
        raise CheckpointError(
            f"{path} is named like {official.name}, but its tensors are those of {_alike(config)}: correct the name."
        )
    return official


# The names under which depth-anything.cpp publishes its conversions.
_OFFICIAL_GGUF = re.compile(r"depth-anything2-(metric-(hypersim|vkitti)-)?(small|base|large)")


def published_as(path: Path, name: str, family: Family, config: Any) -> ModelSpec:
    """The published model of an official file name that has this config, else an entry that knows no licence."""
    same = [spec for spec in MODELS.values() if spec.config == config and spec.hub_id is not None]
    if same and _OFFICIAL_GGUF.match(path.name.lower()):
        return same[0]
    return ModelSpec(name, family.name, config, family_processor(family), None)


def family_processor(family: Family) -> Processor:
    return next(spec.processor for spec in MODELS.values() if spec.family == family.name)


def differences(expected: Any, found: Any) -> str:
    ours, theirs = _flat(expected), _flat(found)
    return ", ".join(f"{key} is {theirs[key]}, not {ours[key]}" for key in ours if ours[key] != theirs[key])


def but_is(config: Any) -> str:
    """The published model that a config describes, where there is one."""
    return next((f" but {spec.name}" for spec in MODELS.values() if spec.config == config), "")


def _alike(config: Any) -> str:
    """The published models whose tensors have the same names and shapes."""
    names = [spec.name for spec in MODELS.values() if spec.hub_id is not None and _same_shapes(spec.config, config)]
    return " or ".join(names) or "no published model"


def _same_shapes(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    family = next(family for family in FAMILIES.values() if family.config_type is type(one))
    return parameter_shapes(family.build(one)) == parameter_shapes(family.build(other))


def _flat(config: Any) -> dict[str, Any]:
    parts = dataclasses.asdict(config)
    return {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
