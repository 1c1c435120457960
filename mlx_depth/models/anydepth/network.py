"""AnyDepth (Ren et al., 2026): a DINOv3 backbone and an SDT head.

Upstream: ``model/__init__.py`` of AIGeeksGroup/AnyDepth.
"""

from dataclasses import dataclass, replace

import mlx.core as mx

from mlx_depth.backbones.dinov3 import DINOv3, DINOv3Config, dinov3_config, spread_layers
from mlx_depth.errors import CheckpointError
from mlx_depth.heads.sdt import LAYERS, SDTConfig, SDTHead
from mlx_depth.models.base import DepthOutputs, NetworkConfig
from mlx_depth.models.vit_network import ViTNetwork, check_head_fits
from mlx_depth.result import DepthKind


@dataclass(frozen=True)
class AnyDepthConfig(NetworkConfig):
    """A backbone and the head that fits it."""

    backbone: DINOv3Config
    head: SDTConfig
    depth_kind = DepthKind.RELATIVE_INVERSE  # trained and scored up to scale and shift of inverse depth

    def __post_init__(self) -> None:
        check_head_fits((self.backbone.embed_dim, self.backbone.patch_size), (self.head.in_dim, self.head.patch_size))
        if len(self.backbone.out_layers) != LAYERS:
            raise CheckpointError(
                f"an SDT head takes {LAYERS} layers, and out_layers are {self.backbone.out_layers}: "
                "take the config.json of the original checkpoint."
            )


class AnyDepth(ViTNetwork):
    """Normalized images to depth at the same size."""

    def __init__(self, config: AnyDepthConfig):
        super().__init__()
        self._config = config
        self.backbone = DINOv3(config.backbone)
        self.head = SDTHead(config.head)

    def __call__(self, pixel_values: mx.array) -> DepthOutputs:
        """Predict depth.

        Args:
            pixel_values: Normalized RGB, ``(B, H, W, 3)``; H and W are multiples of the patch size, 16.
        Returns:
            ``depth`` ``(B, H, W)``: inverse depth > 0, unitless, up to a factor and an offset, larger = nearer.
        Raises:
            OptionError: If the shape does not fit.
        """
        self.check(pixel_values.shape)
        return DepthOutputs(self.head(self.backbone(pixel_values), self._grid_size(pixel_values.shape[1:3])))


def anydepth_config(size: str) -> AnyDepthConfig:
    """The published sizes: ``small``, ``base`` and ``large``."""
    backbone = dinov3_config(size, normalized=False)
    backbone = replace(backbone, out_layers=spread_layers(backbone.num_layers), stored_periods=True)
    return AnyDepthConfig(backbone, SDTConfig(in_dim=backbone.embed_dim))
