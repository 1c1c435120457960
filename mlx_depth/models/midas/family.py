"""MiDaS 2.1 small as a family."""

import mlx.nn as nn

from mlx_depth.heads.dpt import RESAMPLINGS
from mlx_depth.models import authors_alone
from mlx_depth.models.base import Family, Stage
from mlx_depth.models.midas.network import MidasSmall, MidasSmallConfig
from mlx_depth.models.midas.weights import DIALECTS, published_name
from mlx_depth.processor import Processor

PROCESSOR = Processor(input_size=256, policy="upper_bound", multiple_of=32, restore="bicubic")


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
    read_processor=authors_alone.no_processor("MiDaS 2.1"),
    follow=authors_alone.follow("MiDaS 2.1"),
    published_name=published_name,
    quantizable=_nothing_is_quantized,
    stages=_stages,
)
