"""Depth Anything V1 and V2 as a family."""

from dataclasses import replace

from mlx_depth.models.base import Family
from mlx_depth.models.depth_anything.network import DepthAnything, DepthAnythingConfig
from mlx_depth.models.depth_anything.weights import DIALECTS, published_name
from mlx_depth.models.dpt_image_processor import follow_reference, read_processor
from mlx_depth.models.vit_network import positioned_dpt_stages, quantizable
from mlx_depth.nn.position import PositionRule
from mlx_depth.processor import Processor, Reference


def _follow(
    config: DepthAnythingConfig, processor: Processor, reference: Reference
) -> tuple[DepthAnythingConfig, Processor]:
    rule: PositionRule = "scale" if reference == "original" else "size"
    config = replace(config, backbone=replace(config.backbone, position_rule=rule))
    return config, follow_reference(processor, reference)


FAMILY = Family(
    name="depth_anything",
    config_type=DepthAnythingConfig,
    network=DepthAnything,
    processor=Processor(),
    dialects=DIALECTS,
    read_processor=read_processor,
    follow=_follow,
    published_name=published_name,
    quantizable=quantizable,
    stages=lambda config: positioned_dpt_stages(config.backbone.out_layers),
)
