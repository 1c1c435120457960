"""DPT (Ranftl et al., 2021): MiDaS 3.0 on a ViT or on a ResNet and a ViT, and DINOv2's heads for metric depth.

Upstream: ``midas/dpt_depth.py``, ``dinov2/hub/depthers.py`` and transformers' ``modeling_dpt.py``.
"""

from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from mlx_depth.backbones.dinov2 import DINOv2, DINOv2Config
from mlx_depth.backbones.hybrid_vit import TAPPED_STAGES, HybridViT, HybridViTConfig
from mlx_depth.backbones.vit import vit_config
from mlx_depth.errors import CheckpointError
from mlx_depth.heads.dpt import RESAMPLINGS, DPTConfig, DPTHead
from mlx_depth.models.base import DepthOutputs, NetworkConfig
from mlx_depth.models.vit_network import ViTNetwork, check_head_fits
from mlx_depth.result import DepthKind


@dataclass(frozen=True)
class DPTNetworkConfig(NetworkConfig):
    """A network on a plain ViT: MiDaS."""

    backbone: DINOv2Config
    head: DPTConfig
    depth_kind = DepthKind.RELATIVE_INVERSE  # trained up to scale and shift of inverse depth

    def __post_init__(self) -> None:
        check_head_fits((self.backbone.embed_dim, self.backbone.patch_size), (self.head.in_dim, self.head.patch_size))
        layers = len(RESAMPLINGS) - self.head.given_maps
        if len(self.backbone.out_layers) != layers:
            raise CheckpointError(
                f"the head takes {layers} layers, and out_layers are {self.backbone.out_layers}: "
                "take the config.json of the original checkpoint."
            )


@dataclass(frozen=True)
class DPTMetricConfig(DPTNetworkConfig):
    """A network on DINOv2, trained on NYUv2 or KITTI."""

    depth_kind = DepthKind.METRIC


@dataclass(frozen=True)
class DPTHybridConfig(DPTNetworkConfig):
    """A network on a ResNet and a ViT: MiDaS."""

    backbone: HybridViTConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        maps = self.backbone.stage_channels[:TAPPED_STAGES]
        if self.head.given_maps != len(maps) or self.head.out_channels[: len(maps)] != maps:
            raise CheckpointError(
                f"the first {len(maps)} maps of the backbone have {maps} channels, and the head takes "
                f"{self.head.given_maps} of {self.head.out_channels}: take the config.json of the original checkpoint."
            )


class DPT(ViTNetwork):
    """Normalized images to depth."""

    def __init__(self, config: DPTNetworkConfig):
        super().__init__()
        self._config = config
        self.backbone = DINOv2(config.backbone)
        self.head = DPTHead(config.head)

    def __call__(self, pixel_values: mx.array) -> DepthOutputs:
        """Predict depth.

        Args:
            pixel_values: Normalized RGB, ``(B, H, W, 3)``; H and W are multiples of the patch size.
        Returns:
            ``depth``, unitless inverse depth or metres, >= 0. Its sides are 32 times those of the coarsest map, which
            has half as many pixels as there are patches, rounded up: with an even number of patches of 16 pixels
            those of the input, with patches of 14 a seventh more.
        Raises:
            OptionError: If the shape does not fit.
        """
        self.check(pixel_values.shape)
        layers = self.backbone(pixel_values)
        tokens, cls_tokens = [layer.patch_tokens for layer in layers], [layer.cls_token for layer in layers]
        return DepthOutputs(self.head(tokens, self._grid_size(pixel_values.shape[1:3]), cls_tokens=cls_tokens))


class DPTHybrid(ViTNetwork):
    """Normalized images to depth, by way of a ResNet's maps."""

    def __init__(self, config: DPTHybridConfig):
        super().__init__()
        self._config = config
        self.backbone = HybridViT(config.backbone)
        self.head = DPTHead(config.head)

    def __call__(self, pixel_values: mx.array) -> DepthOutputs:
        """Predict depth; as for ``DPT``."""
        self.check(pixel_values.shape)
        maps, layers = self.backbone(pixel_values)
        tokens, cls_tokens = [layer.patch_tokens for layer in layers], [layer.cls_token for layer in layers]
        grid_size = self._grid_size(pixel_values.shape[1:3])
        return DepthOutputs(self.head(tokens, grid_size, cls_tokens=cls_tokens, given_maps=maps))


def _head(in_dim: int, out_channels: tuple[int, int, int, int], **differing: Any) -> DPTConfig:
    head = DPTConfig(in_dim, 256, out_channels, patch_size=16, readout="project", doubling=True)
    return replace(head, **differing)


def dpt_large_config() -> DPTNetworkConfig:
    """MiDaS 3.0 on ViT-L."""
    return DPTNetworkConfig(vit_config(1024, 24, 16, (5, 11, 17, 23)), _head(1024, (256, 512, 1024, 1024)))


def dpt_hybrid_config() -> DPTHybridConfig:
    """MiDaS 3.0 on ResNet-50 and ViT-B."""
    plain = vit_config(768, 12, 12, (8, 11))
    backbone = HybridViTConfig(**{name: getattr(plain, name) for name in plain.__dataclass_fields__})
    return DPTHybridConfig(backbone, _head(768, (256, 512, 768, 768), given_maps=TAPPED_STAGES))


# name → (embed_dim, layers, heads, tapped layers)
DINOV2_SIZES: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    "small": (384, 12, 6, (2, 5, 8, 11)),
    "base": (768, 12, 12, (2, 5, 8, 11)),
    "large": (1024, 24, 16, (4, 11, 17, 23)),
    "giant": (1536, 40, 24, (9, 19, 29, 39)),
}


def dpt_dinov2_config(size: str) -> DPTMetricConfig:
    """The heads on DINOv2, for NYUv2 and KITTI alike: ``small``, ``base``, ``large`` and ``giant``."""
    embed_dim, num_layers, num_heads, out_layers = DINOV2_SIZES[size]
    backbone = DINOv2Config(
        embed_dim=embed_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        out_layers=out_layers,
        swiglu=size == "giant",
        position_rule="size",
        raw_layers=out_layers,
    )
    channels = (embed_dim // 8, embed_dim // 4, embed_dim // 2, embed_dim)
    return DPTMetricConfig(backbone, _head(embed_dim, channels, patch_size=14, residual_bias=False, projection=True))
