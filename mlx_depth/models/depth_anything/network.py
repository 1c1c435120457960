"""Depth Anything V1 and V2 (Yang et al., 2024): DINOv2 and a DPT head, relative or metric.

Upstream: ``depth_anything_v2/dpt.py``, ``metric_depth/depth_anything_v2/dpt.py`` and transformers' ``depth_anything``.
"""

from dataclasses import dataclass

import mlx.core as mx

from mlx_depth.backbones.dinov2 import DINOv2, DINOv2Config
from mlx_depth.heads.dpt import DPTConfig, DPTHead
from mlx_depth.models.base import DepthOutputs, NetworkConfig
from mlx_depth.models.vit_network import ViTNetwork, check_head_fits
from mlx_depth.result import DepthKind


@dataclass(frozen=True)
class DepthAnythingConfig(NetworkConfig):
    """One Depth Anything network."""

    backbone: DINOv2Config
    head: DPTConfig

    def __post_init__(self) -> None:
        ours, theirs = (self.backbone.embed_dim, self.backbone.patch_size), (self.head.in_dim, self.head.patch_size)
        check_head_fits(ours, theirs)

    @property
    def depth_kind(self) -> DepthKind:
        """Metric for sigmoid heads, else relative inverse depth."""
        return DepthKind.METRIC if self.head.activation == "sigmoid" else DepthKind.RELATIVE_INVERSE

    @property
    def max_depth(self) -> float | None:
        """Metres at the top of a metric head's range; None for relative depth."""
        return self.head.max_depth if self.depth_kind is DepthKind.METRIC else None


class DepthAnything(ViTNetwork):
    """Normalized images to depth at the same size."""

    def __init__(self, config: DepthAnythingConfig):
        super().__init__()
        self._config = config
        self.backbone = DINOv2(config.backbone)
        self.head = DPTHead(config.head)

    def __call__(self, pixel_values: mx.array) -> DepthOutputs:
        """Predict depth.

        Args:
            pixel_values: Normalized RGB, ``(B, H, W, 3)``; H and W are multiples of the patch size, 14.
        Returns:
            ``depth`` ``(B, H, W)``: inverse depth >= 0, unitless, larger = nearer, or metres for a metric model.
        Raises:
            OptionError: If the shape does not fit.
        """
        self.check(pixel_values.shape)
        _, H, W, _ = pixel_values.shape
        tokens = [layer.patch_tokens for layer in self.backbone(pixel_values)]
        return DepthOutputs(self.head(tokens, self._grid_size((H, W))))


# name → (embed_dim, layers, heads, DPT features, DPT channels, V2's tapped layers), as upstream's `model_configs`.
SIZES: dict[str, tuple[int, int, int, int, tuple[int, int, int, int], tuple[int, ...]]] = {
    "small": (384, 12, 6, 64, (48, 96, 192, 384), (2, 5, 8, 11)),
    "base": (768, 12, 12, 128, (96, 192, 384, 768), (2, 5, 8, 11)),
    "large": (1024, 24, 16, 256, (256, 512, 1024, 1024), (4, 11, 17, 23)),
    "giant": (1536, 40, 24, 384, (1536, 1536, 1536, 1536), (9, 19, 29, 39)),
}


def depth_anything_config(size: str, *, version: int = 2, max_depth: float | None = None) -> DepthAnythingConfig:
    """The published sizes: ``small``, ``base``, ``large`` and ``giant``.

    Args:
        size: Name of the size.
        version: 1 taps the last four layers, 2 taps layers spread over the depth of the backbone.
        max_depth: Metres at the top of a metric head's range (20 indoors, 80 outdoors); None: relative depth.
    """
    embed_dim, num_layers, num_heads, features, channels, spread_layers = SIZES[size]
    return DepthAnythingConfig(
        DINOv2Config(
            embed_dim=embed_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            out_layers=spread_layers if version == 2 else tuple(range(num_layers - 4, num_layers)),
            swiglu=size == "giant",
        ),
        DPTConfig(
            in_dim=embed_dim,
            features=features,
            out_channels=channels,
            activation="relu" if max_depth is None else "sigmoid",
            max_depth=1.0 if max_depth is None else max_depth,
        ),
    )
