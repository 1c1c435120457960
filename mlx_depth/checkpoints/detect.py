"""Which model a checkpoint is: family and dialect as they decide, the rest from its config, its name, or the user."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

from mlx_depth.errors import CheckpointError
from mlx_depth.models.base import Evidence, Family, Reading
from mlx_depth.models.families import FAMILIES
from mlx_depth.registry import MODELS, ModelSpec
from mlx_depth.weights.choose import ADAPTER, CONFIG
from mlx_depth.weights.config_values import check_against_shapes
from mlx_depth.weights.rules import listed, parameter_shapes, unknown_names
from mlx_depth.weights.safetensors_io import weight_files

RELATED_SHARE = 0.5  # of the names: from here on a key set is called another family's relative


def detect(evidence: Evidence, path: Path) -> tuple[Family, str]:
    """Ask every family whether a checkpoint is its own.

    Args:
        evidence: Names and shapes of the tensors, config and metadata.
        path: For the message.
    Returns:
        The family and the name of the dialect.
    Raises:
        CheckpointError: If no family takes it, or more than one does.
    """
    found = owners(evidence)
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(f"{family.name} ({dialect})" for family, dialect in found)
        raise CheckpointError(f"{path} could be of {names}: put the config.json of its original beside it.")
    raise CheckpointError(_nobodys(evidence, path))


def owners(evidence: Evidence) -> list[tuple[Family, str]]:
    """The families that take a checkpoint for their own, each with the dialect."""
    asked = [(family, family.detect(evidence)) for family in FAMILIES.values()]
    return [(family, dialect) for family, dialect in asked if dialect is not None]


def _nobodys(evidence: Evidence, path: Path) -> str:
    """Why no family takes it: an adapter, another config, a relative, or something else altogether."""
    if any("lora_" in name for name in evidence.shapes):
        return f"{path} is {ADAPTER}"
    without_config = owners(dataclasses.replace(evidence, config=None))
    if without_config:
        return (
            f"{CONFIG} says model_type {evidence.model_type!r:.60}, but the tensors are {without_config[0][0].name}'s: "
            "take the config.json that belongs to these weights."
        )
    tables = [(family, dialect) for family in FAMILIES.values() for dialect in family.dialects.values()]
    candidates = [(unknown_names(dialect.rules, evidence.shapes), family) for family, dialect in tables]
    unknown, family = min(candidates, key=lambda candidate: len(candidate[0]))
    count = len(unknown)
    if 0 < count <= RELATED_SHARE * len(evidence.shapes):
        return (
            f"{path} is a relative of {family.name} that mlx-depth does not know: {count} of its tensors have names of "
            f"their own ({listed(unknown)}). `mlx-depth models` lists the models that there are."
        )
    first = f"its first tensors: {listed(sorted(evidence.shapes))}"
    if count == 0 and evidence.shapes:
        first = (
            f"its {len(evidence.shapes)} tensors are only a part of {family.name}'s: take the whole file, or, of a "
            "head alone, name its backbone, too (mlx-depth convert --backbone)"
        )
    kind = f", and {CONFIG} says model_type {evidence.model_type!r:.60}" if evidence.model_type is not None else ""
    return (
        f"{path} holds no model that mlx-depth knows ({first}{kind}). "
        f"Name a checkpoint of a family that it knows: {', '.join(FAMILIES)}."
    )


def identify(
    path: Path,
    family: Family,
    dialect: str,
    evidence: Evidence,
    *,
    spec: ModelSpec | None,
    like: ModelSpec | None,
    name: str | None,
) -> ModelSpec:
    """Say what model a checkpoint is, and under which name and license.

    Only a registry name, its Hub repository or an official file name stand for a published model and its license.

    Args:
        path: Folder or file.
        family: From ``detect``.
        dialect: From ``detect``.
        evidence: As for ``detect``.
        spec: The published model that it is known to be.
        like: A model with the same architecture, as the user says.
        name: Name for a model that is not published; None: that of the folder or file.
    Raises:
        CheckpointError: If tensors, config, file name and the user's word contradict each other.
    """
    reading = family.dialects[dialect].read(evidence)
    check_against_shapes(reading.config, evidence.shapes, path)
    if reading.whole is not None:  # the published model is the whole one
        as_whole = Reading(reading.whole, reading.certain)
        known = _identified(path, family, as_whole, evidence, spec=spec, like=like, name=name)
        return dataclasses.replace(known, config=reading.config)
    return _identified(path, family, reading, evidence, spec=spec, like=like, name=name)


def _identified(
    path: Path,
    family: Family,
    reading: Reading,
    evidence: Evidence,
    *,
    spec: ModelSpec | None,
    like: ModelSpec | None,
    name: str | None,
) -> ModelSpec:
    own_name = name or (path.resolve().name if path.is_dir() else path.stem)
    if spec is not None:
        return _agreeing(path, spec, reading)
    official = _official(path, own_name, family, evidence) or _of_repository(own_name, reading)
    if official is not None and not same_shapes(official.config, reading.config):
        raise CheckpointError(
            f"{path} is named like {official.name}, but its tensors are those of {_alike(reading.config)}: "
            "correct the name."
        )
    if like is not None:
        config = _agreeing(path, like, reading).config
        if official is not None and official.config == config:
            return official
        return ModelSpec(own_name, family.name, config, like.processor, None, folder=_folder(path))
    if official is not None and (not reading.certain or official.config == reading.config):
        return official
    if not reading.certain:
        return _guessed(path, own_name, reading)
    return ModelSpec(own_name, family.name, reading.config, family.processor, None, folder=_folder(path))


def _agreeing(path: Path, spec: ModelSpec, reading: Reading) -> ModelSpec:
    if not reading.certain and not same_shapes(spec.config, reading.config):
        raise CheckpointError(
            f"{path} is not {spec.name}, its tensors are those of {_alike(reading.config)}: name one of these, or none."
        )
    if reading.certain and spec.config != reading.config:
        published = next((f" but {other.name}" for other in MODELS.values() if other.config == reading.config), "")
        where = (path if path.is_dir() else path.parent) / CONFIG
        where = where if where.exists() else path
        raise CheckpointError(
            f"{where} does not describe {spec.name}{published}: {_differences(spec.config, reading.config)}. "
            "Load the folder by its path without a name, or download the model again."
        )
    return spec


def _official(path: Path, own_name: str, family: Family, evidence: Evidence) -> ModelSpec | None:
    """The published model of an official name; a transformers config describes somebody's own."""
    if evidence.model_type is not None:
        return None
    file = path if path.is_file() else weight_files(path)[0]
    name = family.published_name(file.stem) or family.published_name(own_name)
    return MODELS.get(name) if name is not None else None


def _of_repository(name: str, reading: Reading) -> ModelSpec | None:
    """The published model, of those whose files share a repository, that has this config."""
    return next((spec for spec in MODELS.values() if spec.convert_from == name and spec.config == reading.config), None)


def _guessed(path: Path, own_name: str, reading: Reading) -> ModelSpec:
    spec = next(spec for spec in MODELS.values() if spec.config == reading.config)
    warnings.warn(
        f"{path} has no config.json and no official name: taken for {spec.name}. Other models have the same tensors; "
        "for those, put the config.json beside the file, give it its official name, or name the model (--model).",
        stacklevel=2,
    )
    return dataclasses.replace(spec, name=own_name, license=None, hub_id=None, aliases=(), folder=_folder(path))


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _alike(config: Any) -> str:
    """The published models whose tensors have the same names and shapes."""
    names = [spec.name for spec in MODELS.values() if spec.hub_id is not None and same_shapes(spec.config, config)]
    return " or ".join(names) or "no published model"


def same_shapes(one: Any, other: Any) -> bool:
    """Whether networks of two configs have parameters of the same names and shapes."""
    if type(one) is not type(other):
        return False
    family = next(family for family in FAMILIES.values() if family.config_type is type(one))
    return parameter_shapes(family.network(one)) == parameter_shapes(family.network(other))


def _differences(expected: Any, found: Any) -> str:
    ours, theirs = _flat(dataclasses.asdict(expected)), _flat(dataclasses.asdict(found))
    return ", ".join(f"{key} is {theirs.get(key)}, not {ours[key]}" for key in ours if ours[key] != theirs.get(key))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
