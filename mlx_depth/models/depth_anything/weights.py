"""Depth Anything's checkpoints: how each dialect names its tensors, and what its config says."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from mlx_depth.backbones import dinov2
from mlx_depth.backbones.dinov2 import DINOv2Config
from mlx_depth.errors import CheckpointError
from mlx_depth.heads import dpt
from mlx_depth.heads.dpt import DPTConfig
from mlx_depth.models.base import Shapes
from mlx_depth.models.depth_anything.network import _SIZES, DepthAnythingConfig, depth_anything_config
from mlx_depth.weights.transformers_config import check_counts, read_keys

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
_BACKBONE_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "image_size": 224,
    "patch_size": 14,
    "out_indices": None,
    "use_swiglu_ffn": False,
}
_BACKBONE_COUNTS = {
    "hidden_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "mlp_ratio": 1,
    "image_size": 1,
    "patch_size": 1,
    "out_indices": len(dpt.RESAMPLINGS),
}
_BACKBONE_FIXED: dict[str, Any] = {
    "model_type": "dinov2",
    "apply_layernorm": True,
    "reshape_hidden_states": False,
    "hidden_act": "gelu",
    "layer_norm_eps": dinov2.LAYER_NORM_EPS,
    "num_channels": 3,
    "qkv_bias": True,
}
_NO_EFFECT = ("use_mask_token", "out_features", "stage_names", "layerscale_value", "initializer_range")
_NO_EFFECT_ON_INFERENCE = (
    *_NO_EFFECT,
    "drop_path_rate",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)


def _read_transformers_config(data: Mapping[str, Any]) -> DepthAnythingConfig:
    model = read_keys("config.json", data, _MODEL_DEFAULTS, _MODEL_FIXED, _NO_EFFECT_ON_INFERENCE)
    if not isinstance(model["backbone_config"], Mapping):
        raise CheckpointError("config.json has no backbone_config: take the one of the model's Hub page")
    backbone = read_keys(
        "backbone_config",
        model["backbone_config"],
        _BACKBONE_DEFAULTS,
        _BACKBONE_FIXED,
        _NO_EFFECT_ON_INFERENCE,
    )
    check_counts("config.json", model, _MODEL_COUNTS)
    check_counts("backbone_config", backbone, _BACKBONE_COUNTS)
    return DepthAnythingConfig(
        DINOv2Config(
            embed_dim=backbone["hidden_size"],
            num_layers=backbone["num_hidden_layers"],
            num_heads=backbone["num_attention_heads"],
            out_layers=tuple(index - 1 for index in backbone["out_indices"]),
            mlp_ratio=backbone["mlp_ratio"],
            swiglu=backbone["use_swiglu_ffn"],
            patch_size=backbone["patch_size"],
            table_size=backbone["image_size"] // backbone["patch_size"],
        ),
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
    if type(max_depth) not in (int, float) or not 0 < max_depth < math.inf:
        raise CheckpointError(
            f"config.json: max_depth is {max_depth!r:.40}, not a number above 0: "
            "take the file of the original checkpoint."
        )
    return float(max_depth)


def _recognise_original(shapes: Shapes) -> DepthAnythingConfig:
    return _recognise(
        table=shapes["pretrained.pos_embed"],
        out_channels=[shapes[f"depth_head.projects.{i}.weight"][0] for i in range(4)],
        features=shapes["depth_head.scratch.output_conv1.weight"][1],
    )


def _recognise_transformers(shapes: Shapes) -> DepthAnythingConfig:
    return _recognise(
        table=shapes["backbone.embeddings.position_embeddings"],
        out_channels=[shapes[f"neck.reassemble_stage.layers.{i}.projection.weight"][0] for i in range(4)],
        features=shapes["head.conv1.weight"][1],
    )


def _recognise(table: tuple[int, ...], out_channels: list[int], features: int) -> DepthAnythingConfig:
    for size, (embed_dim, _, _, known_features, channels, _) in _SIZES.items():
        if (table, tuple(out_channels), features) == ((1, 1370, embed_dim), channels, known_features):
            return depth_anything_config(size)
    raise CheckpointError(
        f"no published Depth Anything has a position table of shape {table} with DPT channels {out_channels}: "
        "put the model's config.json beside the weights"
    )


_GGUF = "depthanything3."  # the prefix of V2's keys, too: `arch` tells the two apart
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


def _read_gguf_metadata(metadata: Mapping[str, Any]) -> DepthAnythingConfig:
    """The keys of depth-anything.cpp's ``scripts/convert_da2_to_gguf.py``."""
    facts = {key.removeprefix(_GGUF): value for key, value in metadata.items() if key.startswith(_GGUF)}
    try:
        wrong = {key: facts[key] for key, value in _GGUF_FIXED.items() if facts[key] != value}
        if wrong:
            raise CheckpointError(f"the GGUF file is no Depth Anything V2 ({wrong}): take one whose arch is V2's.")
        max_depth = facts.get("head.max_depth")  # older exporters wrote the activation "relu" for metric models, too
        return DepthAnythingConfig(
            DINOv2Config(
                embed_dim=facts["vit.embed_dim"],
                num_layers=facts["vit.depth"],
                num_heads=facts["vit.num_heads"],
                out_layers=tuple(facts["vit.out_layers"]),
                swiglu=facts["vit.ffn_type"] == "swiglu",
                patch_size=facts["patch_size"],
                table_size=facts["vit.pos_embed_grid"],
            ),
            DPTConfig(
                in_dim=facts["vit.embed_dim"],
                features=facts["head.features"],
                out_channels=tuple(facts["head.out_channels"]),
                activation="relu" if max_depth is None else "sigmoid",
                max_depth=1.0 if max_depth is None else max_depth,
            ),
        )
    except KeyError as error:
        raise CheckpointError(f"the GGUF file lacks the key {_GGUF}{error.args[0]}: export it again.") from error
