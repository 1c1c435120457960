"""Depth Anything V1 and V2 as a family."""

from dataclasses import replace

import mlx.nn as nn

from mlx_depth.heads.dpt import RESAMPLINGS
from mlx_depth.models.base import Family, Stage
from mlx_depth.models.depth_anything.network import DepthAnything, DepthAnythingConfig
from mlx_depth.models.depth_anything.weights import DIALECTS, published_name
from mlx_depth.models.dpt_image_processor import follow_reference, read_processor
from mlx_depth.nn.position import PositionRule
from mlx_depth.processor import Processor, Reference


def _follow(
    config: DepthAnythingConfig, processor: Processor, reference: Reference
) -> tuple[DepthAnythingConfig, Processor]:
    rule: PositionRule = "scale" if reference == "original" else "size"
    config = replace(config, backbone=replace(config.backbone, position_rule=rule))
    return config, follow_reference(processor, reference)


def _quantizable(path: str, module: nn.Module) -> bool:
    return path.startswith("backbone.blocks.") and isinstance(module, nn.Linear)


def _stages(config: DepthAnythingConfig) -> tuple[Stage, ...]:
    levels = range(len(RESAMPLINGS))
    return (
        Stage("patch embedding", "backbone.patch_embed"),
        Stage("with positions", "backbone.blocks.0", at="input"),
        *(Stage(f"layer {i}", f"backbone.blocks.{i}") for i in config.backbone.out_layers),
        *(Stage(f"reassemble {i}", f"head.reassemble.{i}") for i in levels),
        *(Stage(f"fusion {i}", f"head.fusion.{i}") for i in levels),
        Stage("head", "head.conv1"),
    )


FAMILY = Family(
    name="depth_anything",
    config_type=DepthAnythingConfig,
    network=DepthAnything,
    processor=Processor(),
    dialects=DIALECTS,
    read_processor=read_processor,
    follow=_follow,
    published_name=published_name,
    quantizable=_quantizable,
    stages=_stages,
)
