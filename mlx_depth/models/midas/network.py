"""MiDaS 2.1 small (Ranftl et al., 2020): EfficientNet-Lite3 and a light chain of fusions.

Upstream: ``midas/midas_net_custom.py`` and ``midas/blocks.py``.
"""

from dataclasses import dataclass

import mlx.core as mx

from mlx_depth.backbones.efficientnet_lite import LEVELS, STAGES, EfficientNetLite, EfficientNetLiteConfig
from mlx_depth.errors import CheckpointError
from mlx_depth.heads.dpt import Adapt, Fusion, fuse_doubling, last_convolution, refine_in_strips, twice
from mlx_depth.models.base import DepthNetwork, DepthOutputs, NetworkConfig, Size
from mlx_depth.nn.activations import relu
from mlx_depth.nn.conv import Conv2d
from mlx_depth.result import DepthKind
from mlx_depth.weights.config_values import check_at_least

PIXELS = 32  # of the input, to one of the coarsest map


@dataclass(frozen=True)
class MidasSmallConfig(NetworkConfig):
    """One small MiDaS."""

    backbone: EfficientNetLiteConfig
    features: int  # channels of the finest fusion; each coarser one has twice as many
    hidden_channels: int
    depth_kind = DepthKind.RELATIVE_INVERSE  # trained up to scale and shift of inverse depth

    def __post_init__(self) -> None:
        check_at_least(self, {"features": 2, "hidden_channels": 1})
        if self.features % 2:
            raise CheckpointError(
                f"the head cannot halve {self.features} features: take the config.json of the original checkpoint."
            )


class MidasSmall(DepthNetwork):
    """Normalized images to depth at the same size."""

    def __init__(self, config: MidasSmallConfig):
        super().__init__()
        self._config = config
        self.backbone = EfficientNetLite(config.backbone)
        widths = [config.features << level for level in range(len(LEVELS))]  # finest first
        self.adapt = [Adapt(*sizes) for sizes in zip(config.backbone.level_channels, widths, strict=True)]
        self.fusion = [
            Fusion(width, coarsest=width == widths[-1], out_features=width if width == widths[0] else width // 2)
            for width in reversed(widths)
        ]
        self.conv1 = Conv2d(config.features, config.features // 2, kernel_size=3, padding=1)
        self.conv2 = Conv2d(config.features // 2, config.hidden_channels, kernel_size=3, padding=1)
        self.conv3 = Conv2d(config.hidden_channels, 1, kernel_size=1)

    @property
    def multiple_of(self) -> int:
        """The stride of the coarsest map."""
        return PIXELS

    def largest_map(self, size: Size) -> int:
        """Values of the widest map, inside the first block of the second stage, for one image."""
        return (size[0] // 2) * (size[1] // 2) * self._config.backbone.stage_channels[0] * STAGES[1].expansion

    def __call__(self, pixel_values: mx.array) -> DepthOutputs:
        """Predict depth.

        Args:
            pixel_values: Normalized RGB, ``(B, H, W, 3)``; H and W are multiples of 32.
        Returns:
            ``depth`` ``(B, H, W)``: inverse depth >= 0, unitless, larger = nearer.
        Raises:
            OptionError: If the shape does not fit.
        """
        self.check(pixel_values.shape)
        maps = [adapt(x) for adapt, x in zip(self.adapt, self.backbone(pixel_values), strict=True)]
        path = self.conv1(fuse_doubling(self.fusion, maps))
        depth = refine_in_strips(self._refine, path, twice(path), align_corners=False)
        return DepthOutputs(relu(depth[..., 0]))

    def _refine(self, grown: mx.array, first_row: int) -> mx.array:
        return last_convolution(self.conv3, relu(self.conv2(grown)))


def midas_small_config() -> MidasSmallConfig:
    """The published model."""
    return MidasSmallConfig(EfficientNetLiteConfig(), features=64, hidden_channels=32)
