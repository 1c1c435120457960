"""A ViT on the maps of a ResNet (Dosovitskiy et al., 2021, "R50+ViT"), of which DPT takes the first two as well.

Upstream: timm's ``vision_transformer_hybrid.py`` and ``resnetv2.py``, and transformers' ``modeling_dpt.py`` and
``modeling_bit.py``.
"""

from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.backbones import vit
from mlx_depth.backbones.dinov2 import DINOv2, DINOv2Config, LayerTokens
from mlx_depth.errors import CheckpointError
from mlx_depth.nn.activations import relu
from mlx_depth.nn.group_norm import GroupNorm
from mlx_depth.nn.patch_embed import PatchEmbed
from mlx_depth.nn.same_padding import pad_same
from mlx_depth.nn.standardized_conv import StandardizedConv2d
from mlx_depth.weights.config_values import check_at_least
from mlx_depth.weights.rules import Rename, Rule

NORM_EPS = 1e-5  # of the ResNet's group norms
BOTTLENECK = 4  # the channels of a stage over those inside its blocks
TAPPED_STAGES = 2


@dataclass(frozen=True)
class HybridViTConfig(DINOv2Config):
    """A ViT, each token of which is a pixel of a ResNet's last map."""

    stem_channels: int = 64
    stage_channels: tuple[int, ...] = (256, 512, 1024)
    stage_depths: tuple[int, ...] = (3, 4, 9)  # blocks of each stage
    norm_groups: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, dict.fromkeys(("stem_channels", "stage_channels", "stage_depths", "norm_groups"), 1))
        widths = (self.stem_channels, *(width // BOTTLENECK for width in self.stage_channels), *self.stage_channels)
        if any(width % self.norm_groups for width in widths) or len(self.stage_depths) != len(self.stage_channels):
            raise CheckpointError(
                f"a ResNet of {self.stem_channels}, {self.stage_channels} channels, {self.stage_depths} blocks and "
                f"{self.norm_groups} groups cannot be built: take the config.json of the original checkpoint."
            )
        if self.patch_size != 2 ** (1 + len(self.stage_channels)) or len(self.stage_channels) <= TAPPED_STAGES:
            raise CheckpointError(
                f"patch_size is {self.patch_size}, but a ResNet of {len(self.stage_channels)} stages makes one token "
                f"of {2 ** (1 + len(self.stage_channels))} pixels: take the config.json of the original checkpoint."
            )


class Bottleneck(nn.Module):
    """Three convolutions, the middle one with the stride, and a residual connection, widened in a stage's first."""

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int, *, widens: bool):
        super().__init__()
        inner = channels // BOTTLENECK
        self.conv1 = StandardizedConv2d(in_channels, inner, 1)
        self.norm1 = GroupNorm(groups, inner, eps=NORM_EPS)
        self.conv2 = StandardizedConv2d(inner, inner, 3, stride)
        self.norm2 = GroupNorm(groups, inner, eps=NORM_EPS)
        self.conv3 = StandardizedConv2d(inner, channels, 1)
        self.norm3 = GroupNorm(groups, channels, eps=NORM_EPS)
        if widens:
            self.shortcut = StandardizedConv2d(in_channels, channels, 1, stride)
            self.shortcut_norm = GroupNorm(groups, channels, eps=NORM_EPS)

    def __call__(self, x: mx.array) -> mx.array:
        y = relu(self.norm1(self.conv1(x)))
        y = relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return relu(y + (self.shortcut_norm(self.shortcut(x)) if "shortcut" in self else x))


class ResNet(nn.Module):
    """BiT's ResNet (Kolesnikov et al., 2020) with activations behind its norms: images to the map of each stage."""

    def __init__(self, config: HybridViTConfig):
        super().__init__()
        groups = config.norm_groups
        self.conv = StandardizedConv2d(3, config.stem_channels, 7, 2)
        self.norm = GroupNorm(groups, config.stem_channels, eps=NORM_EPS)
        widths = (config.stem_channels, *config.stage_channels)
        self.stages = [
            [
                Bottleneck(
                    widths[stage] if block == 0 else channels,
                    channels,
                    2 if block == 0 and stage > 0 else 1,
                    groups,
                    widens=block == 0,
                )
                for block in range(depth)
            ]
            for stage, (channels, depth) in enumerate(zip(config.stage_channels, config.stage_depths, strict=True))
        ]
        self._pool = nn.MaxPool2d(kernel_size=3, stride=2)

    def __call__(self, pixel_values: mx.array) -> list[mx.array]:
        """Normalized images ``(B, H, W, 3)`` to maps ``(B, H / 4, W / 4, C)``, then of half the sides each."""
        x = relu(self.norm(self.conv(pixel_values)))
        x = self._pool(pad_same(x, 3, 2))
        maps = []
        for stage in self.stages:
            for block in stage:
                x = block(x)
            maps.append(x)
        return maps


class HybridTokens(NamedTuple):
    """What a hybrid hands out."""

    maps: list[mx.array]  # of the first two stages, (B, 4 gh, 4 gw, C) and (B, 2 gh, 2 gw, C)
    layers: list[LayerTokens]  # of ``out_layers``


class HybridViT(DINOv2):
    """Images to the maps of two stages and the tokens of chosen layers."""

    def __init__(self, config: HybridViTConfig):
        super().__init__(config)
        self.resnet = ResNet(config)
        self.patch_embed = PatchEmbed(config.embed_dim, 1, channels=config.stage_channels[-1])

    def __call__(self, pixel_values: mx.array) -> HybridTokens:  # type: ignore[override]
        """Run both networks.

        Args:
            pixel_values: Normalized images, ``(B, H, W, 3)``; H and W are multiples of the patch size.
        """
        maps = self.resnet(pixel_values)
        return HybridTokens(maps[:TAPPED_STAGES], self._tapped(self.embed(maps[-1])))


# The tables are relative to the backbone.
_ORIGINAL = "patch_embed.backbone."
ORIGINAL: tuple[Rule, ...] = (
    *vit.ORIGINAL,
    *vit.PATCHES_ORIGINAL,
    Rename(f"{_ORIGINAL}stem.conv.weight", "resnet.conv.weight"),
    Rename(f"{_ORIGINAL}stem.norm.{{p}}", "resnet.norm.{p}"),
    Rename(f"{_ORIGINAL}stages.{{i}}.blocks.{{j}}.downsample.conv.weight", "resnet.stages.{i}.{j}.shortcut.weight"),
    Rename(f"{_ORIGINAL}stages.{{i}}.blocks.{{j}}.downsample.norm.{{p}}", "resnet.stages.{i}.{j}.shortcut_norm.{p}"),
    Rename(f"{_ORIGINAL}stages.{{i}}.blocks.{{j}}.{{part}}.{{p}}", "resnet.stages.{i}.{j}.{part}.{p}"),
)
_TRANSFORMERS = "embeddings.backbone.bit."
TRANSFORMERS: tuple[Rule, ...] = (
    *vit.TRANSFORMERS,
    Rename("embeddings.projection.{p}", "patch_embed.proj.{p}"),
    Rename(f"{_TRANSFORMERS}embedder.convolution.weight", "resnet.conv.weight"),
    Rename(f"{_TRANSFORMERS}embedder.norm.{{p}}", "resnet.norm.{p}"),
    *(
        Rename(
            f"{_TRANSFORMERS}encoder.stages.{{i}}.layers.{{j}}.{theirs}.{{p}}",
            f"resnet.stages.{{i}}.{{j}}.{ours}.{{p}}",
        )
        for theirs, ours in (
            ("downsample.conv", "shortcut"),
            ("downsample.norm", "shortcut_norm"),
            ("{part}", "{part}"),
        )
    ),
)
