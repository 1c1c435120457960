"""What is known of models, as plain dictionaries for tables and JSON."""

import dataclasses
from pathlib import Path
from typing import Any

from mlx_depth import hub
from mlx_depth.predictor import fetch
from mlx_depth.registry import DEMO_FOLDER, ModelSpec, find_model, list_models


def models_table() -> list[dict[str, Any]]:
    """One row a model of the registry.

    Returns:
        ``name``, ``alias``, ``parameters``, ``kind``, ``unit``, ``licence``, ``hub`` (repository) and ``downloaded``.
    """
    return [
        {
            "name": spec.name,
            "alias": ", ".join(spec.aliases),
            "parameters": spec.parameters,
            "kind": spec.depth_kind.value,
            "unit": spec.depth_kind.unit or None,
            "licence": spec.licence,
            "hub": _where(spec),
            "downloaded": is_here(spec),
        }
        for spec in list_models()
    ]


def _where(spec: ModelSpec) -> str:
    if spec.folder is not None:
        return "(bundled)" if spec.folder == DEMO_FOLDER else "(local)"
    return spec.hub_id or "(unreleased)"


def is_here(spec: ModelSpec) -> bool:
    """Whether a model of the registry needs no download."""
    return spec.folder is not None or (spec.hub_id is not None and hub.is_cached(spec.hub_id))


def describe_model(source: str | Path) -> dict[str, Any]:
    """What the registry and, where the weights are on this disk, the checkpoint say of a model.

    Args:
        source: As for ``load``; nothing is downloaded for a registry name.
    Returns:
        Facts by name; sizes are in bytes.
    Raises:
        ModelNotFoundError: If there is no such model.
        CheckpointError: If its files are damaged.
    """
    if hub.is_name(source):
        spec = find_model(str(source))
        if not is_here(spec):
            return _spec_facts(spec)
    checkpoint, revision = fetch(source)
    weights = checkpoint.weights.values()
    return {
        **_spec_facts(checkpoint.spec),
        "dialect": checkpoint.dialect,
        "revision": revision,
        "quantization": checkpoint.quantization and dataclasses.asdict(checkpoint.quantization),
        "dtypes": sorted({str(array.dtype).removeprefix("mlx.core.") for array in weights}),
        "tensors": len(checkpoint.weights),
        "bytes": sum(array.nbytes for array in weights),
    }


def _spec_facts(spec: ModelSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "family": spec.family,
        "kind": spec.depth_kind.description,
        "max_depth": spec.config.max_depth,
        "parameters": spec.parameters,
        "licence": spec.licence,
        "commercial use": spec.commercial,
        "hub": _where(spec),
        "config": dataclasses.asdict(spec.config),
        "processor": dataclasses.asdict(spec.processor),
    }
