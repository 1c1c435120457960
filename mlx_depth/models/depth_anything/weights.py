"""Depth Anything's checkpoints: how each dialect names its tensors, and what says how the network is built."""

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from mlx_depth.backbones import dinov2
from mlx_depth.backbones.dinov2 import DINOv2Config
from mlx_depth.errors import CheckpointError
from mlx_depth.heads import dpt
from mlx_depth.heads.dpt import DPTConfig
from mlx_depth.models.base import Dialect, Evidence, Reading, Shapes, owner
from mlx_depth.models.depth_anything.network import SIZES, DepthAnythingConfig, depth_anything_config
from mlx_depth.weights.gguf_metadata import arch_of, backbone_facts, backbone_keys, head_facts, head_keys, read_facts
from mlx_depth.weights.rules import prefixed
from mlx_depth.weights.transformers_config import check_counts, read_keys

MODEL_TYPE = "depth_anything"  # transformers' name of the architecture

# transformers' own defaults: Hub files leave out what equals them.
_MODEL_DEFAULTS: dict[str, Any] = {
    "backbone_config": None,
    "patch_size": 14,
    "reassemble_hidden_size": 384,
    "neck_hidden_sizes": [48, 96, 192, 384],
    "fusion_hidden_size": 64,
    "head_hidden_size": 32,
    "depth_estimation_type": "relative",
    "max_depth": 1,
}
_MODEL_COUNTS = {
    "patch_size": 1,
    "reassemble_hidden_size": 1,
    "neck_hidden_sizes": len(dpt.RESAMPLINGS),
    "fusion_hidden_size": 1,
    "head_hidden_size": 1,
}
_MODEL_FIXED: dict[str, Any] = {
    "reassemble_factors": [4, 2, 1, 0.5],
    "head_in_index": -1,
    "backbone": None,
    "use_pretrained_backbone": False,
    "use_timm_backbone": False,
    "backbone_kwargs": None,
}
_NO_EFFECT_ON_INFERENCE = (
    *("use_mask_token", "out_features", "stage_names", "layerscale_value", "initializer_range"),
    *("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"),
)


def _read_transformers_config(data: Mapping[str, Any]) -> DepthAnythingConfig:
    model = read_keys("config.json", data, _MODEL_DEFAULTS, _MODEL_FIXED, _NO_EFFECT_ON_INFERENCE)
    if not isinstance(model["backbone_config"], Mapping):
        raise CheckpointError("config.json has no backbone_config: take the one of the model's Hub page")
    check_counts("config.json", model, _MODEL_COUNTS)
    return DepthAnythingConfig(
        dinov2.read_transformers_config(model["backbone_config"], where="backbone_config", tapped=len(dpt.RESAMPLINGS)),
        DPTConfig(
            in_dim=model["reassemble_hidden_size"],
            features=model["fusion_hidden_size"],
            out_channels=tuple(model["neck_hidden_sizes"]),
            hidden_channels=model["head_hidden_size"],
            patch_size=model["patch_size"],
            activation=_transformers_activation(model["depth_estimation_type"]),
            max_depth=_transformers_max_depth(model["max_depth"], model["depth_estimation_type"]),
        ),
    )


def _transformers_activation(kind: Any) -> Literal["relu", "sigmoid"]:
    if kind == "relative":
        return "relu"
    if kind == "metric":
        return "sigmoid"
    raise CheckpointError(
        f"config.json: depth_estimation_type is {kind!r:.40}, neither 'relative' nor 'metric': "
        "take the file of the original checkpoint."
    )


def _transformers_max_depth(max_depth: Any, kind: str) -> float:
    """The factor of the output, which upstream applies to relative depth, too; older files write null for 1 there."""
    if max_depth is None and kind == "relative":
        return 1.0
    return _number_of_metres(max_depth)


def _number_of_metres(max_depth: Any, where: str = "config.json") -> float:
    if type(max_depth) not in (int, float) or not 0 < max_depth <= sys.float_info.max:
        raise CheckpointError(
            f"{where}: max_depth is {max_depth!r:.40}, not a number above 0: take the file of the original checkpoint."
        )
    return float(max_depth)


def _from_shapes(shapes: Shapes, table: str, projection: str, conv1: str) -> DepthAnythingConfig:
    """The published network with these shapes: of position table, projections, and the head's first convolution."""
    missing = [name for name in (table, conv1, *map(projection.format, range(4))) if name not in shapes]
    if missing:
        raise CheckpointError(f"the checkpoint lacks {', '.join(missing)}: take the original file.")
    channels = tuple(shapes[projection.format(level)][:1] for level in range(4))
    for size, (embed_dim, _, _, features, known, _) in SIZES.items():
        found = (shapes[table], channels, shapes[conv1][1:2])
        if found == ((1, 1370, embed_dim), tuple((width,) for width in known), (features,)):
            return depth_anything_config(size)
    raise CheckpointError(
        f"no published Depth Anything has a position table of shape {shapes[table]} with DPT channels "
        f"{[width for (width,) in channels]}: put the model's config.json beside the weights"
    )


def _read_original(evidence: Evidence) -> Reading:
    """The authors' files hold tensors alone; a config.json beside them may be transformers' or their own."""
    if evidence.model_type is not None:
        return Reading(_read_transformers_config(evidence.config or {}))
    config = _from_shapes(
        evidence.shapes,
        "pretrained.pos_embed",
        "depth_head.projects.{}.weight",
        "depth_head.scratch.output_conv1.weight",
    )
    return Reading(config, certain=False) if evidence.config is None else _read_authors_config(evidence.config, config)


def _read_transformers(evidence: Evidence) -> Reading:
    if evidence.config is not None:
        return Reading(_read_transformers_config(evidence.config))
    config = _from_shapes(
        evidence.shapes,
        "backbone.embeddings.position_embeddings",
        "neck.reassemble_stage.layers.{}.projection.weight",
        "head.conv1.weight",
    )
    return Reading(config, certain=False)


_ENCODERS = {"vits": "small", "vitb": "base", "vitl": "large", "vitg": "giant"}


def _read_authors_config(data: Mapping[str, Any], shaped: DepthAnythingConfig) -> Reading:
    """The arguments of the authors' ``DepthAnythingV2``: encoder, features, out_channels, and max_depth if metric."""
    known = ("encoder", "features", "out_channels", "max_depth", "use_bn", "use_clstoken")
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise CheckpointError(
            f"config.json has no model_type and keys that are not the authors': {', '.join(unknown)}. "
            f"Known ones: {', '.join(known)}. Take the file of the original checkpoint."
        )
    size = next(name for name in SIZES if SIZES[name][0] == shaped.backbone.embed_dim)
    features, channels = SIZES[size][3:5]
    facts: dict[str, Any] = {
        "features": features,
        "out_channels": list(channels),
        "use_bn": False,
        "use_clstoken": False,
    }
    facts["encoder"] = next(name for name in _ENCODERS if _ENCODERS[name] == size)
    wrong = {key: data[key] for key, value in facts.items() if key in data and data[key] != value}
    if wrong:
        raise CheckpointError(f"config.json says {wrong}, but the tensors are those of {facts['encoder']}: correct it.")
    if "max_depth" not in data:
        return Reading(shaped, certain=False)
    head = replace(shaped.head, activation="sigmoid", max_depth=_number_of_metres(data["max_depth"]))
    return Reading(replace(shaped, head=head))


_GGUF_FIXED: dict[str, Any] = {
    "arch": "depthanything2",
    "vit.num_register_tokens": 0,
    "vit.alt_start": -1,
    "vit.rope_start": -1,
    "vit.qknorm_start": -1,
    "vit.cat_token": False,
    "vit.qkv_bias": True,
    "vit.interpolate_antialias": False,
    "head.output_dim": 1,
    "head.pos_embed": False,
    "head.norm_type": "idt",
}


def _owns_gguf(evidence: Evidence) -> bool:
    arch = arch_of(evidence.metadata)
    return "vit.blk.0.attn_qkv.weight" in evidence.shapes and arch in (None, _GGUF_FIXED["arch"])


def _read_gguf(evidence: Evidence) -> Reading:
    """The keys of depth-anything.cpp's ``scripts/convert_da2_to_gguf.py``."""
    needed = (*backbone_keys("vit"), *head_keys("head"))
    facts = read_facts(evidence.metadata, _GGUF_FIXED, needed, "Depth Anything V2")
    max_depth = facts.get("head.max_depth")  # older exporters wrote the activation "relu" for metric models, too
    return Reading(
        DepthAnythingConfig(
            DINOv2Config(**backbone_facts(facts, "vit")),
            DPTConfig(
                in_dim=facts["vit.embed_dim"],
                activation="relu" if max_depth is None else "sigmoid",
                max_depth=1.0 if max_depth is None else _number_of_metres(max_depth, "the GGUF file"),
                **head_facts(facts, "head", len(dpt.RESAMPLINGS)),
            ),
        )
    )


# V1, V2 and metric files share all tensor names and shapes: their official names tell them apart.
_OFFICIAL = re.compile(
    r"depth_anything(?:_(?P<v2>v2)(?:_metric_(?P<place>hypersim|vkitti))?)?_vit(?P<size>[sblg])(?:14)?(?![a-z0-9])"
)
_OFFICIAL_GGUF = re.compile(r"depth-anything2-(?:metric-(?P<place>hypersim|vkitti)-)?(?P<size>small|base|large)")
_PLACES = {"hypersim": "metric-indoor-", "vkitti": "metric-outdoor-", None: ""}


def published_name(name: str) -> str | None:
    """The model of the registry that has this official file name: the authors', or depth-anything.cpp's."""
    if found := _OFFICIAL.search(name.lower()):
        version = "v2" if found["v2"] else "v1"
        return f"depth-anything-{version}-{_PLACES[found['place']]}{_ENCODERS['vit' + found['size']]}"
    if found := _OFFICIAL_GGUF.match(name.lower()):
        return f"depth-anything-v2-{_PLACES[found['place']]}{found['size']}"
    return None


# Parts of names that only relatives with the same backbone and head have.
_RELATIVES = ("motion_modules", "prompt_depth_layer", "resConfUnit_depth")

DIALECTS = {
    "original": Dialect(
        rules=(
            *prefixed(dinov2.ORIGINAL, "pretrained.", "backbone."),
            *prefixed(dpt.ORIGINAL, "depth_head.", "head."),
        ),
        owns=owner(
            "pretrained.blocks.0.attn.qkv.weight",
            "depth_head.projects.0.weight",
            without=_RELATIVES,
            model_types=(MODEL_TYPE,),
        ),
        read=_read_original,
    ),
    "transformers": Dialect(
        rules=(
            *prefixed(dinov2.TRANSFORMERS, "backbone.", "backbone."),
            *prefixed(dpt.TRANSFORMERS, "", "head."),
        ),
        owns=owner(
            "neck.fusion_stage.layers.0.projection.weight",
            "head.conv1.weight",
            without=_RELATIVES,
            model_types=(MODEL_TYPE,),
        ),
        read=_read_transformers,
    ),
    "gguf": Dialect(
        rules=(
            *prefixed(dinov2.GGUF, "vit.", "backbone."),
            *prefixed(dpt.GGUF, "head.", "head."),
        ),
        owns=_owns_gguf,
        read=_read_gguf,
        lost_axes=True,
    ),
}
