"""The metadata of depth-anything.cpp's GGUF files (``scripts/gguf_keys.py``), read strictly."""

from collections.abc import Iterable, Mapping
from typing import Any

from mlx_depth.errors import CheckpointError
from mlx_depth.weights.transformers_config import check_counts

PREFIX = "depthanything3."  # of V2's keys, too: `arch` tells the two apart
_BACKBONE = ("embed_dim", "depth", "num_heads", "pos_embed_grid")
_FFN_TYPES = {"mlp": False, "swiglu": True}


def arch_of(metadata: Mapping[str, Any] | None) -> Any:
    """The architecture that a file names; None where it names none."""
    return (metadata or {}).get(f"{PREFIX}arch")


def read_facts(metadata: Mapping[str, Any] | None, fixed: Mapping[str, Any], needed: Iterable[str], model: str) -> Any:
    """The program's own keys, without their prefix.

    Args:
        metadata: Of the container.
        fixed: Keys that have to be there, with the only value that is supported.
        needed: Further keys that have to be there.
        model: What has these values, for the message.
    Raises:
        CheckpointError: If a key is missing or has another value.
    """
    facts = {key.removeprefix(PREFIX): value for key, value in (metadata or {}).items() if key.startswith(PREFIX)}
    missing = [key for key in (*fixed, *needed) if key not in facts]
    if missing:
        raise CheckpointError(f"the GGUF file lacks the key {PREFIX}{missing[0]}: export it again.")
    wrong = {key: facts[key] for key, value in fixed.items() if facts[key] != value}
    if wrong:
        raise CheckpointError(f"the GGUF file is no {model} ({wrong!s:.200}): export the original checkpoint again.")
    return facts


def backbone_keys(vit: str) -> tuple[str, ...]:
    """The keys that ``backbone_facts`` reads."""
    return ("patch_size", *(f"{vit}.{name}" for name in (*_BACKBONE, "out_layers", "ffn_type")))


def backbone_facts(facts: Mapping[str, Any], vit: str) -> dict[str, Any]:
    """Arguments of a ``DINOv2Config``.

    Args:
        facts: From ``read_facts``, with ``backbone_keys`` among the needed ones.
        vit: What stands before the keys.
    Raises:
        CheckpointError: If a value cannot be.
    """
    check_counts("the GGUF file", facts, dict.fromkeys(("patch_size", *(f"{vit}.{name}" for name in _BACKBONE)), 1))
    ffn_type, out_layers = facts[f"{vit}.ffn_type"], facts[f"{vit}.out_layers"]
    if ffn_type not in (*_FFN_TYPES,):
        raise CheckpointError(f"the GGUF file has the ffn_type {ffn_type!r:.40}: export it again.")
    if not isinstance(out_layers, list):
        raise CheckpointError(f"the GGUF file's out_layers are {out_layers!r:.40}, no list: export it again.")
    return {
        "embed_dim": facts[f"{vit}.embed_dim"],
        "num_layers": facts[f"{vit}.depth"],
        "num_heads": facts[f"{vit}.num_heads"],
        "out_layers": tuple(out_layers),
        "swiglu": _FFN_TYPES[ffn_type],
        "patch_size": facts["patch_size"],
        "table_size": facts[f"{vit}.pos_embed_grid"],
    }


def head_keys(head: str) -> tuple[str, ...]:
    """The keys that ``head_facts`` reads."""
    return ("patch_size", f"{head}.features", f"{head}.out_channels")


def head_facts(facts: Mapping[str, Any], head: str, levels: int) -> dict[str, Any]:
    """Arguments of a DPT head's config; as ``backbone_facts``, with the number of levels."""
    check_counts("the GGUF file", facts, {f"{head}.features": 1, f"{head}.out_channels": levels})
    return {
        "features": facts[f"{head}.features"],
        "out_channels": tuple(facts[f"{head}.out_channels"]),
        "patch_size": facts["patch_size"],
    }
