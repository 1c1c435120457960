"""AnyDepth as a family."""

from mlx_depth.heads.sdt import DOUBLINGS
from mlx_depth.models import authors_alone
from mlx_depth.models.anydepth.network import AnyDepth, AnyDepthConfig
from mlx_depth.models.anydepth.weights import DIALECTS
from mlx_depth.models.base import Family, Stage
from mlx_depth.models.vit_network import backbone_stages, quantizable
from mlx_depth.processor import Processor

# The authors publish no rules for photos: DINOv3's normalization, and the short side brought to 512 pixels.
PROCESSOR = Processor(input_size=512, multiple_of=16)


def _stages(config: AnyDepthConfig) -> tuple[Stage, ...]:
    return (
        *backbone_stages(config.backbone.out_layers),
        *(Stage(f"projection {i}", f"head.projections.{i}") for i in range(len(config.backbone.out_layers))),
        Stage("enhancer", "head.enhancer"),
        *(Stage(f"doubling {i}", f"head.doubled.{i}") for i in range(DOUBLINGS - 1)),
    )


FAMILY = Family(
    name="anydepth",
    config_type=AnyDepthConfig,
    network=AnyDepth,
    processor=PROCESSOR,
    dialects=DIALECTS,
    read_processor=authors_alone.no_processor("AnyDepth"),
    follow=authors_alone.follow("AnyDepth"),
    quantizable=quantizable,
    stages=_stages,
)
