"""Prompt Depth Anything as a family."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlx_depth.heads.dpt import RESAMPLINGS
from mlx_depth.models.base import Stage
from mlx_depth.models.depth_anything.family import FAMILY as DEPTH_ANYTHING
from mlx_depth.models.dpt_image_processor import follow_reference
from mlx_depth.models.dpt_image_processor import read_processor as read_dpt_processor
from mlx_depth.models.prompt_depth_anything.network import PromptDepthAnything, PromptDepthAnythingConfig
from mlx_depth.models.prompt_depth_anything.weights import DIALECTS, published_name
from mlx_depth.processor import Processor, Reference

# The authors bound the long side, transformers sets the short one: at the published 1008 and 756 a photo of 4:3 has
# the same size by both.
PROCESSOR = Processor(input_size=1008, policy="shrink", resample="area")
_LONG, _SHORT = 4, 3

_FIXED = {
    "image_processor_type": tuple(f"PromptDepthAnythingImageProcessor{kind}" for kind in ("", "Fast", "Pil")),
    "prompt_scale_to_meter": (0.001,),
}


def _read_processor(config: Mapping[str, Any]) -> Processor:
    return _by_authors(read_dpt_processor(config, fixed=_FIXED))


def _by_authors(processor: Processor) -> Processor:
    side = processor.input_size
    if processor.policy != PROCESSOR.policy:
        side = side * _LONG // _SHORT
    return replace(processor, input_size=side, policy=PROCESSOR.policy, resample=PROCESSOR.resample, restore="bilinear")


def _follow(
    config: PromptDepthAnythingConfig, processor: Processor, reference: Reference
) -> tuple[PromptDepthAnythingConfig, Processor]:
    config, _ = DEPTH_ANYTHING.follow(config, processor, reference)
    processor = _by_authors(processor)
    if reference == "transformers":
        short = replace(processor, input_size=processor.input_size * _SHORT // _LONG)
        return config, follow_reference(short, reference)
    return config, processor


def _stages(config: PromptDepthAnythingConfig) -> tuple[Stage, ...]:
    plain = DEPTH_ANYTHING.stages(config)
    fused = next(place for place, stage in enumerate(plain) if stage.name == "fusion 0")
    prompts = (Stage(f"prompt {level}", f"head.fusion.{level}.prompt") for level in range(len(RESAMPLINGS)))
    return (*plain[:fused], *prompts, *plain[fused:])


FAMILY = replace(
    DEPTH_ANYTHING,
    name="prompt_depth_anything",
    config_type=PromptDepthAnythingConfig,
    network=PromptDepthAnything,
    processor=PROCESSOR,
    dialects=DIALECTS,
    read_processor=_read_processor,
    follow=_follow,
    published_name=published_name,
    stages=_stages,
)
