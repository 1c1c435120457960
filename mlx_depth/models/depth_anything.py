"""Depth Anything V1 and V2 (Yang et al., 2024): DINOv2 and a DPT head, relative or metric.

Upstream: ``depth_anything_v2/dpt.py``, ``metric_depth/depth_anything_v2/dpt.py`` and transformers' ``depth_anything``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.backbones import dinov2
from mlx_depth.backbones.dinov2 import DINOv2, DINOv2Config
from mlx_depth.errors import CheckpointError, OptionError
from mlx_depth.heads import dpt
from mlx_depth.heads.dpt import DPTConfig, DPTHead
from mlx_depth.models.family import Family, Reference, Shapes, Stage
from mlx_depth.models.transformers_config import check_counts, read_keys
from mlx_depth.nn.position import PositionRule
from mlx_depth.result import DepthKind
from mlx_depth.weights import prefixed


@dataclass(frozen=True)
class DepthAnythingConfig:
    """One Depth Anything network."""

    backbone: DINOv2Config
    head: DPTConfig

    @property
    def depth_kind(self) -> DepthKind:
        """Metric for sigmoid heads, else relative inverse depth."""
        return DepthKind.METRIC if self.head.activation == "sigmoid" else DepthKind.RELATIVE_INVERSE

    @property
    def max_depth(self) -> float | None:
        """Metres at the top of a metric head's range; None for relative depth."""
        return self.head.max_depth if self.depth_kind is DepthKind.METRIC else None


class DepthAnythingOutput(NamedTuple):
    """What the network computes."""

    depth: mx.array  # (B, H, W)


class DepthAnything(nn.Module):
    """Normalised images to depth at the same size."""

    def __init__(self, config: DepthAnythingConfig):
        super().__init__()
        self._config = config
        self.backbone = DINOv2(config.backbone)
        self.head = DPTHead(config.head)

    def __call__(self, pixel_values: mx.array) -> DepthAnythingOutput:
        """Predict depth.

        Args:
            pixel_values: Normalised RGB, ``(B, H, W, 3)``; H and W are multiples of the patch size, 14.
        Returns:
            ``depth`` ``(B, H, W)``: inverse depth >= 0, unitless, larger = nearer, or metres for a metric model.
        Raises:
            OptionError: If the shape does not fit.

        Proved by ``tests/models/test_depth_anything.py``.
        """
        patch = self._config.backbone.patch_size
        if pixel_values.ndim != 4 or pixel_values.shape[3] != 3 or not len(pixel_values):
            raise OptionError(f"pixel_values have shape {pixel_values.shape}: pass (B, H, W, 3), channels last")
        _, H, W, _ = pixel_values.shape
        if H % patch or W % patch or not H or not W:
            raise OptionError(f"pixel_values are {H}×{W}: make both sides multiples of {patch}")
        tokens = [layer.patch_tokens for layer in self.backbone(pixel_values)]
        return DepthAnythingOutput(self.head(tokens, self._grid_size((H, W))))

    def prepare(self, size: tuple[int, int]) -> mx.array:
        """Compute what depends on the image's size alone, (height, width); later calls use it.

        Returns:
            The array to evaluate.
        """
        return self.backbone.positions(self._grid_size(size))

    def largest_map(self, size: tuple[int, int]) -> int:
        """Values of the largest map that exists as a whole, for one image of a size, (height, width)."""
        return self.head.largest_map(self._grid_size(size))

    def _grid_size(self, size: tuple[int, int]) -> tuple[int, int]:
        patch = self._config.backbone.patch_size
        return size[0] // patch, size[1] // patch


# name → (embed_dim, layers, heads, DPT features, DPT channels, V2's tapped layers), as upstream's `model_configs`.
_SIZES: dict[str, tuple[int, int, int, int, tuple[int, int, int, int], tuple[int, ...]]] = {
    "small": (384, 12, 6, 64, (48, 96, 192, 384), (2, 5, 8, 11)),
    "base": (768, 12, 12, 128, (96, 192, 384, 768), (2, 5, 8, 11)),
    "large": (1024, 24, 16, 256, (256, 512, 1024, 1024), (4, 11, 17, 23)),
    "giant": (1536, 40, 24, 384, (1536, 1536, 1536, 1536), (9, 19, 29, 39)),
}


def depth_anything_config(size: str, *, version: int = 2, max_depth: float | None = None) -> DepthAnythingConfig:
    """The published sizes: ``small``, ``base``, ``large`` and ``giant``.

    Args:
        size: Name of the size.
        version: 1 taps the last four layers, 2 taps layers spread over the depth of the backbone.
        max_depth: Metres at the top of a metric head's range (20 indoors, 80 outdoors); None: relative depth.
    """
    embed_dim, num_layers, num_heads, features, channels, spread_layers = _SIZES[size]
    return DepthAnythingConfig(
        DINOv2Config(
            embed_dim=embed_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            out_layers=spread_layers if version == 2 else tuple(range(num_layers - 4, num_layers)),
            swiglu=size == "giant",
        ),
        DPTConfig(
            in_dim=embed_dim,
            features=features,
            out_channels=channels,
            activation="relu" if max_depth is None else "sigmoid",
            max_depth=1.0 if max_depth is None else max_depth,
        ),
    )


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


def _follow(config: DepthAnythingConfig, reference: Reference) -> DepthAnythingConfig:
    rule: PositionRule = "scale" if reference == "original" else "size"
    return replace(config, backbone=replace(config.backbone, position_rule=rule))


def _quantizable(path: str, module: nn.Module) -> bool:
    return path.startswith("backbone.blocks.") and isinstance(module, nn.Linear)


def _stages(config: DepthAnythingConfig) -> tuple[Stage, ...]:
    embedding = "backbone.embeddings.patch_embeddings.projection"
    levels = range(len(dpt.RESAMPLINGS))
    return (
        Stage("patch embedding", "backbone.patch_embed", embedding),
        Stage("with positions", "backbone.blocks.0", "backbone.encoder.layer.0", at="input"),
        *(
            Stage(f"layer {i}", f"backbone.blocks.{i}", f"backbone.encoder.layer.{i}")
            for i in config.backbone.out_layers
        ),
        *(Stage(f"reassemble {i}", f"head.reassemble.{i}", f"neck.convs.{i}") for i in levels),
        *(Stage(f"fusion {i}", f"head.fusion.{i}", f"neck.fusion_stage.layers.{i}") for i in levels),
        Stage("head", "head.conv1", "head.conv1"),
    )


FAMILY = Family(
    name="depth_anything",
    config_type=DepthAnythingConfig,
    build=DepthAnything,
    weights={
        "original": (
            *prefixed(dinov2.ORIGINAL, "pretrained.", "backbone."),
            *prefixed(dpt.ORIGINAL, "depth_head.", "head."),
        ),
        "transformers": (
            *prefixed(dinov2.TRANSFORMERS, "backbone.", "backbone."),
            *prefixed(dpt.TRANSFORMERS, "", "head."),
        ),
        "gguf": (
            *prefixed(dinov2.GGUF, "vit.", "backbone."),
            *prefixed(dpt.GGUF, "head.", "head."),
        ),
    },
    signatures={
        "original": "pretrained.blocks.0.attn.qkv.weight",
        "transformers": "neck.fusion_stage.layers.0.projection.weight",
        "gguf": "vit.blk.0.attn_qkv.weight",
    },
    recognise={"original": _recognise_original, "transformers": _recognise_transformers},
    read_config={"depth_anything": _read_transformers_config},
    read_metadata={"gguf": _read_gguf_metadata},
    follow=_follow,
    quantizable=_quantizable,
    stages=_stages,
)
