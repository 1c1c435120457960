"""What is known of models, as plain dictionaries for tables and JSON."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from mlx_depth.checkpoints import hub
from mlx_depth.checkpoints.checkpoint import Checkpoint, read_checkpoint
from mlx_depth.checkpoints.resolve import published_spec, resolve_here
from mlx_depth.errors import ModelNotFoundError
from mlx_depth.kinds import DepthKind
from mlx_depth.models.base import PROMPT
from mlx_depth.models.families import FAMILIES
from mlx_depth.registry import DEMO_FOLDER, ModelSpec, list_models
from mlx_depth.weights.rules import parameter_shapes
from mlx_depth.weights.safetensors_io import DTYPES, dtype_name

PURPOSES = {
    "fast": "The look of a scene, fast",
    "sharp": "The look of a scene, with finer edges",
    "metric": "Metres from one photo",
    "lidar": "Metres from a photo and coarse distances, such as LiDAR",
    "multi-view": "Several photos of one scene",
    "video": "Video",
}
"""What people want of a model, in words; ``purpose_of`` says which."""

FAST_PARAMETERS = 50_000_000  # a small vision transformer has 20 to 35 million, a base one about 100 million


def purpose_of(spec: ModelSpec) -> str:
    """What a model is for, by what it takes and gives: a key of ``PURPOSES``."""
    family = FAMILIES[spec.family]
    if family.takes != "image":
        return "video" if family.takes == "video" else "multi-view"
    if spec.depth_kind is DepthKind.METRIC:
        return "lidar" if PROMPT in family.conditions else "metric"
    return "fast" if spec.parameters is not None and spec.parameters <= FAST_PARAMETERS else "sharp"


def models_table(*, commercial: bool = False, kind: DepthKind | None = None) -> list[dict[str, Any]]:
    """One row a model of the registry.

    Args:
        commercial: Leave out models whose license forbids commercial use.
        kind: Leave out models of other kinds of depth.
    Returns:
        ``name``, ``alias``, ``parameters``, ``purpose`` (of ``PURPOSES``), ``takes`` (image, views or video), ``kind``,
        ``unit``, ``license``, ``commercial`` (whether it allows that), ``hub`` (repository) and ``downloaded``.
    """
    return [
        {
            "name": spec.name,
            "alias": next(iter(spec.aliases), ""),
            "parameters": spec.parameters,
            "purpose": purpose_of(spec),
            "takes": FAMILIES[spec.family].takes,
            "kind": spec.depth_kind.value,
            "unit": spec.depth_kind.unit or None,
            "license": spec.license,
            "commercial": spec.commercial,
            "hub": _where(spec),
            "downloaded": is_here(spec),
        }
        for spec in list_models()
        if (spec.commercial or not commercial) and kind in (None, spec.depth_kind)
    ]


def _where(spec: ModelSpec) -> str:
    if spec.folder is not None:
        return "(bundled)" if spec.folder == DEMO_FOLDER else "(local)"
    if spec.convert_from is not None:
        place = spec.convert_from.partition("://")[2] or spec.convert_from
        return f"{place.partition('/releases/')[0]} (to convert)"
    return spec.hub_id or "(unreleased)"


def is_here(spec: ModelSpec) -> bool:
    """Whether a model of the registry needs no download."""
    return spec.folder is not None or (spec.hub_id is not None and hub.is_cached(spec.hub_id))


def describe_model(source: str | Path) -> dict[str, Any]:
    """What the registry and, where the weights are on this disk, the checkpoint say of a model.

    Args:
        source: As for ``load``; the Hub is not asked, and nothing is downloaded.
    Returns:
        Facts by name, ready for JSON. ``memory_bytes`` are those of the parameters once loaded: packed layers stay
        packed on a GPU, where the rest is float16, and are expanded on a CPU. What only the checkpoint can tell is left
        out for a model of the registry that is not on this disk.
    Raises:
        ModelNotFoundError: If there is no such model, or it is neither of the registry nor on this disk.
        CheckpointError: If its files are damaged.
    """
    spec = published_spec(source)
    found = resolve_here(source)
    if found is None and spec is not None:
        return _spec_facts(spec)
    if found is None:
        raise ModelNotFoundError(
            f"{source} is not on this disk, and info downloads nothing: run mlx-depth predict --model {source} first."
        )
    return describe_checkpoint(read_checkpoint(found.path, found.spec, name=found.repo), found.revision)


def describe_checkpoint(checkpoint: Checkpoint, revision: str | None) -> dict[str, Any]:
    """``describe_model`` for a checkpoint that is open."""
    weights = checkpoint.weights.values()
    stored = sum(array.nbytes for array in weights)
    facts = _spec_facts(checkpoint.spec)
    if checkpoint.quantization is not None:
        facts["memory_bytes"] = {"packed, on a GPU": stored, **facts["memory_bytes"]}
    return {
        **facts,
        "dialect": checkpoint.dialect,
        "revision": revision,
        "quantization": checkpoint.quantization and dataclasses.asdict(checkpoint.quantization),
        "dtypes": sorted({dtype_name(array.dtype) for array in weights}),
        "tensors": len(checkpoint.weights),
        "disk_bytes": stored,
    }


def _spec_facts(spec: ModelSpec) -> dict[str, Any]:
    network = FAMILIES[spec.family].network(spec.config)  # lazy arrays: shapes alone
    values = sum(map(math.prod, parameter_shapes(network).values()))
    return {
        "name": spec.name,
        "family": spec.family,
        "takes": FAMILIES[spec.family].takes,
        "kind": spec.depth_kind.value,
        "unit": spec.depth_kind.unit or None,
        "description": spec.depth_kind.description,
        "max_depth": spec.config.max_depth,
        "parameters": spec.parameters,
        "license": spec.license,
        "commercial_use": spec.commercial if spec.license is not None else None,
        "hub": _where(spec),
        "memory_bytes": {name: values * dtype.size for name, dtype in DTYPES.items()},
        "config": dataclasses.asdict(spec.config),
        "processor": dataclasses.asdict(spec.processor),
    }
