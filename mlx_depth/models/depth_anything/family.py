"""Depth Anything V1 and V2 as a family."""

from dataclasses import replace

import mlx.nn as nn

from mlx_depth.backbones import dinov2
from mlx_depth.heads import dpt
from mlx_depth.models.base import Family, Reference, Stage
from mlx_depth.models.depth_anything import weights
from mlx_depth.models.depth_anything.network import DepthAnything, DepthAnythingConfig
from mlx_depth.nn.position import PositionRule
from mlx_depth.weights.rules import prefixed


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
    recognise={"original": weights._recognise_original, "transformers": weights._recognise_transformers},
    read_config={"depth_anything": weights._read_transformers_config},
    read_metadata={"gguf": weights._read_gguf_metadata},
    follow=_follow,
    quantizable=_quantizable,
    stages=_stages,
)
