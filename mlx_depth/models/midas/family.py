"""MiDaS 2.1 small as a family."""

from typing import Any

import mlx.nn as nn

from mlx_depth.errors import CheckpointError, OptionError
from mlx_depth.heads.dpt import RESAMPLINGS
from mlx_depth.models.base import Family, Stage
from mlx_depth.models.midas.network import MidasSmall, MidasSmallConfig
from mlx_depth.models.midas.weights import DIALECTS, published_name
from mlx_depth.processor import Processor, Reference

PROCESSOR = Processor(input_size=256, policy="upper_bound", multiple_of=32, restore="bicubic")


def _follow(config: MidasSmallConfig, processor: Processor, reference: Reference) -> tuple[MidasSmallConfig, Processor]:
    if reference != "original":
        raise OptionError(f"{reference} has no MiDaS 2.1: leave reference out, the rules are the authors'.")
    return config, processor


def _no_processor(_: Any) -> Processor:
    raise CheckpointError(
        "a preprocessor_config.json lies beside MiDaS 2.1's weights, which have none: remove it, "
        "or take the original checkpoint."
    )


def _nothing_is_quantized(path: str, module: nn.Module) -> bool:
    return False


def _stages(config: MidasSmallConfig) -> tuple[Stage, ...]:
    levels = range(len(RESAMPLINGS))
    return (
        *(Stage(f"adapt {i}", f"adapt.{i}") for i in levels),
        *(Stage(f"fusion {i}", f"fusion.{i}") for i in levels),
        Stage("head", "conv1"),
    )


FAMILY = Family(
    name="midas_small",
    config_type=MidasSmallConfig,
    network=MidasSmall,
    processor=PROCESSOR,
    dialects=DIALECTS,
    read_processor=_no_processor,
    follow=_follow,
    published_name=published_name,
    quantizable=_nothing_is_quantized,
    stages=_stages,
)
