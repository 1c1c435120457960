"""DPT as three families: on a ViT and on a hybrid, which are MiDaS 3.0, and on DINOv2."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlx_depth.backbones.dinov2 import LAYER_NORM_EPS
from mlx_depth.models.base import Family, Stage
from mlx_depth.models.dpt.network import (
    DPT,
    DPTHybrid,
    DPTHybridConfig,
    DPTMetricConfig,
    DPTNetworkConfig,
)
from mlx_depth.models.dpt.weights import HYBRID, METRIC, PLAIN, published_name
from mlx_depth.models.dpt_image_processor import follow_transformers, read_any_processor
from mlx_depth.models.vit_network import positioned_dpt_stages, quantizable
from mlx_depth.processor import Processor, Reference

MIDAS_PROCESSOR = Processor(
    input_size=384,
    policy="minimal",
    multiple_of=32,
    restore="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
METRIC_PROCESSOR = Processor(input_size=518, policy="pad", resample="pillow", restore="bicubic")


def _follow_midas(
    config: DPTNetworkConfig, processor: Processor, reference: Reference
) -> tuple[DPTNetworkConfig, Processor]:
    """transformers' networks take squares alone; MiDaS keeps the aspect, whatever a file for transformers says."""
    if reference == "transformers":
        square = replace(processor, keep_aspect=False, multiple_of=config.backbone.patch_size)
        return config, follow_transformers(square)
    return replace(config, backbone=replace(config.backbone, block_eps=LAYER_NORM_EPS)), _by_midas(processor)


def _by_midas(processor: Processor) -> Processor:
    """MiDaS's rules with a file's own size, normalization, and filter for transformers."""
    kept = ("input_size", "mean", "std", "pillow_filter")
    return replace(MIDAS_PROCESSOR, **{name: getattr(processor, name) for name in kept})


def _read_midas_processor(config: Mapping[str, Any]) -> Processor:
    return _by_midas(read_any_processor(config))


def _read_metric_processor(config: Mapping[str, Any]) -> Processor:
    return follow_transformers(read_any_processor(config))


def _follow_metric(
    config: DPTMetricConfig, processor: Processor, reference: Reference
) -> tuple[DPTMetricConfig, Processor]:
    """The weights are transformers' conversions, and its rules the only ones."""
    return config, follow_transformers(processor)


def _stages(config: DPTNetworkConfig) -> tuple[Stage, ...]:
    return positioned_dpt_stages(config.backbone.out_layers)


def _hybrid_stages(config: DPTHybridConfig) -> tuple[Stage, ...]:
    blocks = tuple(f"backbone.resnet.stages.{i}.{depth - 1}" for i, depth in enumerate(config.backbone.stage_depths))
    return (*(Stage(f"ResNet {i}", path) for i, path in enumerate(blocks)), *_stages(config))


PLAIN_FAMILY = Family(
    name="dpt",
    config_type=DPTNetworkConfig,
    network=DPT,
    processor=MIDAS_PROCESSOR,
    dialects=PLAIN,
    read_processor=_read_midas_processor,
    follow=_follow_midas,
    published_name=published_name,
    quantizable=quantizable,
    stages=_stages,
)
HYBRID_FAMILY = Family(
    name="dpt_hybrid",
    config_type=DPTHybridConfig,
    network=DPTHybrid,
    processor=MIDAS_PROCESSOR,
    dialects=HYBRID,
    read_processor=_read_midas_processor,
    follow=_follow_midas,
    published_name=published_name,
    quantizable=quantizable,
    stages=_hybrid_stages,
)
METRIC_FAMILY = Family(
    name="dpt_dinov2",
    config_type=DPTMetricConfig,
    network=DPT,
    processor=METRIC_PROCESSOR,
    dialects=METRIC,
    read_processor=_read_metric_processor,
    follow=_follow_metric,
    quantizable=quantizable,
    stages=_stages,
)
