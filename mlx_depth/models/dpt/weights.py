"""DPT's checkpoints: MiDaS's own files and transformers' folders, and what says how the network is built."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mlx_depth.backbones import dinov2, hybrid_vit, vit
from mlx_depth.backbones.dinov2 import DINOv2Config
from mlx_depth.backbones.hybrid_vit import TAPPED_STAGES, HybridViTConfig
from mlx_depth.backbones.vit import vit_config
from mlx_depth.errors import CheckpointError
from mlx_depth.heads import dpt
from mlx_depth.heads.dpt import DPTConfig
from mlx_depth.models.base import Dialect, Evidence, Reading, owner
from mlx_depth.models.dpt.network import (
    DPTHybridConfig,
    DPTMetricConfig,
    DPTNetworkConfig,
    dpt_hybrid_config,
    dpt_large_config,
)
from mlx_depth.weights.rules import listed, prefixed
from mlx_depth.weights.transformers_config import check_counts, read_keys

MODEL_TYPE = "dpt"  # transformers' name of the architecture
READOUTS = ("ignore", "add", "project")
LEVELS = len(dpt.RESAMPLINGS)
PROJECTED_FEATURES = 256  # the one width for which transformers has that convolution

# transformers' own defaults: Hub files leave out what equals them.
_HEAD_DEFAULTS: dict[str, Any] = {
    "readout_type": "project",
    "reassemble_factors": [4, 2, 1, 0.5],
    "neck_hidden_sizes": [96, 192, 384, 768],
    "fusion_hidden_size": 256,
    "use_bias_in_fusion_residual": None,
    "add_projection": False,
}
_HEAD_FIXED: dict[str, Any] = {
    "head_in_index": -1,
    "hidden_act": "gelu",
    "use_batch_norm_in_fusion_residual": False,
    "expand_channels": False,
}
_VIT_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "image_size": 384,
    "patch_size": 16,
    "backbone_out_indices": [2, 5, 8, 11],
    "is_hybrid": False,
    "backbone_config": None,
}
_VIT_COUNTS = {
    "hidden_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 1,
    "image_size": 1,
    "patch_size": 1,
}
_VIT_FIXED: dict[str, Any] = {"num_channels": 3, "qkv_bias": True}
_BACKBONE_FIXED: dict[str, Any] = {
    "backbone": None,
    "use_pretrained_backbone": False,
    "use_timm_backbone": False,
    "backbone_kwargs": None,
}
_NO_EFFECT = (
    "attention_probs_dropout_prob",
    "auxiliary_loss_weight",
    "embedding_type",
    "hidden_dropout_prob",
    "initializer_range",
    "pooler_act",
    "pooler_output_size",
    "semantic_classifier_dropout",
    "semantic_loss_ignore_index",
    "use_auxiliary_head",
    "num_labels",
)
_RESNET_DEFAULTS: dict[str, Any] = {
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 9],
    "num_groups": 32,
}
_RESNET_FIXED: dict[str, Any] = {
    "model_type": "bit",
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "embedding_dynamic_padding": True,
    "output_stride": 32,
    "width_factor": 1,
    "num_channels": 3,
    "out_features": ["stage1", "stage2", "stage3"],
    "out_indices": [1, 2, 3],
}
_RESNET_NO_EFFECT = ("drop_path_rate", "stage_names", "global_padding")
_DINOV2_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "image_size": 224,
    "patch_size": 14,
    "out_indices": None,
    "use_swiglu_ffn": False,
    "apply_layernorm": True,
}
_DINOV2_COUNTS = {
    "hidden_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "mlp_ratio": 1,
    "image_size": 1,
    "patch_size": 1,
    "out_indices": LEVELS,
}
_DINOV2_FIXED: dict[str, Any] = {
    "model_type": "dinov2",
    "reshape_hidden_states": False,
    "hidden_act": "gelu",
    "layer_norm_eps": dinov2.LAYER_NORM_EPS,
    "num_channels": 3,
    "qkv_bias": True,
}
_DINOV2_NO_EFFECT = (
    *("attention_probs_dropout_prob", "drop_path_rate", "hidden_dropout_prob", "initializer_range"),
    *("layerscale_value", "out_features", "stage_names", "use_mask_token"),
)
_ORIGINAL_FILE = "take the file of the original checkpoint."


def _read_head(model: Mapping[str, Any], in_dim: int, patch_size: int, *, given_maps: int = 0) -> DPTConfig:
    counts = {"neck_hidden_sizes": LEVELS, "fusion_hidden_size": 1}
    check_counts("config.json", model, counts)
    usual = _HEAD_DEFAULTS["reassemble_factors"]
    factors = model["reassemble_factors"]
    if not isinstance(factors, (list, tuple)) or list(factors)[given_maps:] != usual[given_maps:]:
        raise CheckpointError(f"config.json: reassemble_factors are {factors!r:.60}, not {usual}: {_ORIGINAL_FILE}")
    if model["readout_type"] not in READOUTS:
        raise CheckpointError(
            f"config.json: readout_type is {model['readout_type']!r:.40}, none of {', '.join(READOUTS)}: "
            f"{_ORIGINAL_FILE}"
        )
    bias, projection = model["use_bias_in_fusion_residual"], model["add_projection"]
    if bias not in (True, False, None) or projection not in (True, False):
        raise CheckpointError(
            "config.json: use_bias_in_fusion_residual or add_projection is neither true nor false: " + _ORIGINAL_FILE
        )
    if projection and model["fusion_hidden_size"] != PROJECTED_FEATURES:
        raise CheckpointError(
            f"config.json: add_projection takes a fusion_hidden_size of {PROJECTED_FEATURES}, not "
            f"{model['fusion_hidden_size']}: {_ORIGINAL_FILE}"
        )
    return DPTConfig(
        in_dim=in_dim,
        features=model["fusion_hidden_size"],
        out_channels=tuple(model["neck_hidden_sizes"]),
        patch_size=patch_size,
        readout=model["readout_type"],
        given_maps=given_maps,
        residual_bias=bias is not False,
        projection=projection,
        doubling=True,
    )


def _read_vit(model: Mapping[str, Any], *, given_maps: int = 0) -> DINOv2Config:
    check_counts("config.json", model, _VIT_COUNTS)
    width, inner = model["hidden_size"], model["intermediate_size"]
    if inner % width:
        raise CheckpointError(f"config.json: intermediate_size {inner} is no multiple of {width}: {_ORIGINAL_FILE}")
    layers, eps = model["backbone_out_indices"], model["layer_norm_eps"]
    if not isinstance(layers, (list, tuple)) or len(layers) != LEVELS or not all(type(i) is int for i in layers):
        raise CheckpointError(
            f"config.json: backbone_out_indices are {layers!r:.60}, not {LEVELS} whole numbers: {_ORIGINAL_FILE}"
        )
    if type(eps) not in (int, float):
        raise CheckpointError(f"config.json: layer_norm_eps is {eps!r:.40}, no number: {_ORIGINAL_FILE}")
    plain = vit_config(
        width,
        model["num_hidden_layers"],
        model["num_attention_heads"],
        tuple(layers[given_maps:]),
        table_size=model["image_size"] // model["patch_size"],
    )
    return replace(plain, patch_size=model["patch_size"], mlp_ratio=inner // width, block_eps=float(eps))


def _read_plain(data: Mapping[str, Any]) -> DPTNetworkConfig:
    model = _model_keys(data)
    if model["backbone_config"] is not None or model["is_hybrid"] is not False:
        raise CheckpointError(
            "config.json names a backbone_config, but the tensors are those of a plain ViT: "
            "take the config.json that belongs to these weights."
        )
    backbone = _read_vit(model)
    return DPTNetworkConfig(backbone, _read_head(model, backbone.embed_dim, backbone.patch_size))


def _read_hybrid(data: Mapping[str, Any]) -> DPTHybridConfig:
    model = _model_keys(data, "backbone_featmap_shape", "neck_ignore_stages")
    if model["is_hybrid"] is not True:
        raise CheckpointError(
            "config.json has no is_hybrid, but the tensors are those of a ResNet and a ViT: "
            "take the config.json that belongs to these weights."
        )
    ignored = data.get("neck_ignore_stages", [0, 1])
    if ignored != [0, 1]:
        raise CheckpointError(f"config.json: neck_ignore_stages are {ignored!r:.60}, not [0, 1]: {_ORIGINAL_FILE}")
    given = model["backbone_config"]
    if given is not None and not isinstance(given, Mapping):
        raise CheckpointError(f"config.json: backbone_config is {given!r:.40}, no object: {_ORIGINAL_FILE}")
    resnet = read_keys("backbone_config", given or {}, _RESNET_DEFAULTS, _RESNET_FIXED, _RESNET_NO_EFFECT)
    padding = (given or {}).get("global_padding", "same")
    if not isinstance(padding, str) or padding.lower() != "same":
        raise CheckpointError(f"backbone_config: global_padding is {padding!r:.40}, not 'same': {_ORIGINAL_FILE}")
    depths, widths = resnet["depths"], resnet["hidden_sizes"]
    stages = len(_RESNET_FIXED["out_indices"])
    check_counts("backbone_config", resnet, {"depths": stages, "embedding_size": 1, "num_groups": 1})
    check_counts("backbone_config", {"hidden_sizes": widths[:stages]}, {"hidden_sizes": stages})
    plain = _read_vit(model, given_maps=TAPPED_STAGES)
    backbone = HybridViTConfig(
        **{name: getattr(plain, name) for name in plain.__dataclass_fields__},
        stem_channels=resnet["embedding_size"],
        stage_channels=tuple(widths[:stages]),
        stage_depths=tuple(depths),
        norm_groups=resnet["num_groups"],
    )
    head = _read_head(model, plain.embed_dim, plain.patch_size, given_maps=TAPPED_STAGES)
    return DPTHybridConfig(backbone, head)


def _model_keys(data: Mapping[str, Any], *no_effect: str) -> dict[str, Any]:
    """The values of a config.json for a ViT; the shape of the ResNet's maps follows from its own sizes."""
    others = no_effect or ("backbone_featmap_shape", "neck_ignore_stages")
    fixed = {**_HEAD_FIXED, **_VIT_FIXED, **_BACKBONE_FIXED}
    return read_keys("config.json", data, {**_HEAD_DEFAULTS, **_VIT_DEFAULTS}, fixed, (*_NO_EFFECT, *others))


def _read_metric(data: Mapping[str, Any]) -> DPTMetricConfig:
    """With a backbone of its own, what a config.json says of a ViT has no effect."""
    unused = (*_VIT_DEFAULTS, *_VIT_FIXED, "backbone_featmap_shape", "neck_ignore_stages")
    unused = tuple(key for key in unused if key not in ("is_hybrid", "backbone_config"))
    defaults = {**_HEAD_DEFAULTS, "backbone_config": None}
    fixed = {**_HEAD_FIXED, **_BACKBONE_FIXED, "is_hybrid": False}
    model = read_keys("config.json", data, defaults, fixed, (*_NO_EFFECT, *unused))
    if not isinstance(model["backbone_config"], Mapping):
        raise CheckpointError("config.json has no backbone_config: take the one of the model's Hub page")
    backbone = read_keys(
        "backbone_config", model["backbone_config"], _DINOV2_DEFAULTS, _DINOV2_FIXED, _DINOV2_NO_EFFECT
    )
    check_counts("backbone_config", backbone, _DINOV2_COUNTS)
    odd = [key for key in ("use_swiglu_ffn", "apply_layernorm") if type(backbone[key]) is not bool]
    if odd:
        raise CheckpointError(f"backbone_config: {odd[0]} is neither true nor false: {_ORIGINAL_FILE}")
    out_layers = tuple(index - 1 for index in backbone["out_indices"])
    plain = DINOv2Config(
        embed_dim=backbone["hidden_size"],
        num_layers=backbone["num_hidden_layers"],
        num_heads=backbone["num_attention_heads"],
        out_layers=out_layers,
        mlp_ratio=backbone["mlp_ratio"],
        swiglu=backbone["use_swiglu_ffn"],
        patch_size=backbone["patch_size"],
        table_size=backbone["image_size"] // backbone["patch_size"],
        position_rule="size",
        raw_layers=() if backbone["apply_layernorm"] else out_layers,
    )
    return DPTMetricConfig(plain, _read_head(model, plain.embed_dim, plain.patch_size))


def _transformers(read: Callable[[Mapping[str, Any]], DPTNetworkConfig]) -> Callable[[Evidence], Reading]:
    def reading(evidence: Evidence) -> Reading:
        if evidence.config is None:
            raise CheckpointError("there is no config.json beside the weights: take the one of the model's Hub page.")
        return Reading(read(evidence.config))

    return reading


def _original(
    published: Callable[[], DPTNetworkConfig], read: Callable[[Mapping[str, Any]], DPTNetworkConfig]
) -> Callable[[Evidence], Reading]:
    """MiDaS's files hold tensors alone: those of the published network, or what a transformers config says."""

    def reading(evidence: Evidence) -> Reading:
        if evidence.model_type is not None:
            return Reading(read(evidence.config or {}))
        if evidence.config is not None:
            raise CheckpointError(
                f"config.json has no model_type, and keys that MiDaS does not know: {listed(sorted(evidence.config))}. "
                "Remove the file, or take the one of the original checkpoint."
            )
        config = published()
        table, features = "pretrained.model.pos_embed", "scratch.output_conv.0.weight"
        wanted = {
            table: (1, config.backbone.table_size**2 + 1, config.backbone.embed_dim),
            features: (config.head.features // 2, config.head.features, 3, 3),
        }
        odd = [f"{name} is {evidence.shapes.get(name)}, not {shape}" for name, shape in wanted.items()]
        odd = [
            text for text, (name, shape) in zip(odd, wanted.items(), strict=True) if evidence.shapes.get(name) != shape
        ]
        if odd:
            raise CheckpointError(f"no published MiDaS has these tensors ({listed(odd)}): take the original file.")
        return Reading(config, certain=False)

    return reading


# Official names, of MiDaS and of the DPT repository before it.
_OFFICIAL = re.compile(r"dpt[_-](?P<kind>large|hybrid)(?:[_-](?:384|midas.*))?")
_METRIC = re.compile(r"dpt[_-](?:large|hybrid)[_-](?:kitti|nyu)(?![a-z0-9])")


def published_name(name: str) -> str | None:
    """The model of the registry that has this official file name.

    Raises:
        CheckpointError: If it is the name of a file whose tensors are the same, and whose depth is another.
    """
    if _METRIC.match(name.lower()):
        raise CheckpointError(
            f"{name} is a metric model with a scale and an offset of its own, which is not here yet: "
            "take dpt-large, dpt-hybrid-midas or depth-anything-v2-metric-indoor-small."
        )
    if found := _OFFICIAL.fullmatch(name.lower()):
        return {"large": "dpt-large", "hybrid": "dpt-hybrid-midas"}[found["kind"]]
    return None


_HEAD_1 = "scratch.output_conv.0.weight"
_HEAD_T = "head.head.0.weight"
_RESNET = "pretrained.model.patch_embed.backbone.stem.conv.weight"
_RESNET_T = "dpt.embeddings.backbone.bit.embedder.convolution.weight"
_RELATIVES = ("relative_position", "auxlayer", "auxiliary_head")  # BEiT's and segmentation's

PLAIN = {
    "original": Dialect(
        rules=(
            *prefixed((*vit.ORIGINAL, *vit.PATCHES_ORIGINAL), "pretrained.model.", "backbone."),
            *prefixed(dpt.MIDAS, "", "head."),
        ),
        owns=owner(
            "pretrained.model.blocks.0.attn.qkv.weight",
            _HEAD_1,
            without=(*_RELATIVES, "patch_embed.backbone."),
            model_types=(MODEL_TYPE,),
        ),
        read=_original(dpt_large_config, _read_plain),
    ),
    "transformers": Dialect(
        rules=(
            *prefixed((*vit.TRANSFORMERS, *vit.PATCHES_TRANSFORMERS), "dpt.", "backbone."),
            *prefixed(dpt.DPT_TRANSFORMERS, "", "head."),
        ),
        owns=owner(
            "dpt.embeddings.patch_embeddings.projection.weight", _HEAD_T, without=_RELATIVES, model_types=(MODEL_TYPE,)
        ),
        read=_transformers(_read_plain),
    ),
}
HYBRID = {
    "original": Dialect(
        rules=(
            *prefixed(hybrid_vit.ORIGINAL, "pretrained.model.", "backbone."),
            *prefixed(dpt.MIDAS, "", "head."),
        ),
        owns=owner(_RESNET, _HEAD_1, without=_RELATIVES, model_types=(MODEL_TYPE,)),
        read=_original(dpt_hybrid_config, _read_hybrid),
    ),
    "transformers": Dialect(
        rules=(
            *prefixed(hybrid_vit.TRANSFORMERS, "dpt.", "backbone."),
            *prefixed(dpt.DPT_TRANSFORMERS, "", "head."),
        ),
        owns=owner(_RESNET_T, _HEAD_T, without=_RELATIVES, model_types=(MODEL_TYPE,)),
        read=_transformers(_read_hybrid),
    ),
}
METRIC = {
    "transformers": Dialect(
        rules=(
            *prefixed(dinov2.TRANSFORMERS, "backbone.", "backbone."),
            *prefixed(dpt.DPT_TRANSFORMERS, "", "head."),
        ),
        owns=owner(
            "backbone.embeddings.patch_embeddings.projection.weight",
            _HEAD_T,
            without=("relative_position",),
            model_types=(MODEL_TYPE,),
        ),
        read=_transformers(_read_metric),
    ),
}
