"""EfficientNet-Lite (Liu, 2020, after Tan and Le, 2019): no squeeze-and-excitation, ReLU6, norms folded while loading.

Upstream: ``tf_efficientnet_lite3`` of timm and of gen-efficientnet-pytorch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.errors import CheckpointError
from mlx_depth.nn.conv import Conv2d
from mlx_depth.nn.same_padding import pad_same
from mlx_depth.weights.config_values import check_at_least
from mlx_depth.weights.rules import FoldNorm, Rule

NORM_EPS = 1e-3  # of the batch norms, as in TensorFlow


class _Stage(NamedTuple):
    """What all sizes have in common."""

    kernel_size: int
    stride: int
    expansion: int


STAGES = (
    _Stage(3, 1, 1),
    _Stage(3, 2, 6),
    _Stage(5, 2, 6),
    _Stage(3, 2, 6),
    _Stage(5, 1, 6),
    _Stage(5, 2, 6),
    _Stage(3, 1, 6),
)
LEVELS = ((0, 1), (2,), (3, 4), (5, 6))  # stages between one map that is handed out and the next


@dataclass(frozen=True)
class EfficientNetLiteConfig:
    """Sizes; the defaults are Lite3's."""

    stem_channels: int = 32
    stage_channels: tuple[int, ...] = (24, 32, 48, 96, 136, 232, 384)
    stage_blocks: tuple[int, ...] = (1, 3, 3, 5, 5, 6, 1)

    def __post_init__(self) -> None:
        check_at_least(self, dict.fromkeys(("stem_channels", "stage_channels", "stage_blocks"), 1))
        if not len(self.stage_channels) == len(self.stage_blocks) == len(STAGES):
            raise CheckpointError(
                f"an EfficientNet has {len(STAGES)} stages, not {self.stage_channels} channels and {self.stage_blocks} "
                "blocks: take the config.json of the original checkpoint."
            )

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Of the maps that are handed out, finest first."""
        return tuple(self.stage_channels[level[-1]] for level in LEVELS)


class InvertedResidual(nn.Module):
    """Widen, convolve each channel by itself, narrow; with a residual connection where the shape stays."""

    def __init__(self, in_channels: int, channels: int, stage: _Stage, stride: int):
        super().__init__()
        inner = in_channels * stage.expansion
        if stage.expansion > 1:
            self.expand = Conv2d(in_channels, inner, kernel_size=1)
        self.depthwise = Conv2d(inner, inner, kernel_size=stage.kernel_size, stride=stride, groups=inner)
        self.project = Conv2d(inner, channels, kernel_size=1)
        self._geometry = (stage.kernel_size, stride)
        self._adds = stride == 1 and in_channels == channels

    def __call__(self, x: mx.array) -> mx.array:
        y = relu6(self.expand(x)) if "expand" in self else x
        y = relu6(self.depthwise(pad_same(y, *self._geometry)))
        y = self.project(y)
        return x + y if self._adds else y


class EfficientNetLite(nn.Module):
    """Images to four maps."""

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__()
        self.stem = Conv2d(3, config.stem_channels, kernel_size=3, stride=2)
        widths = (config.stem_channels, *config.stage_channels)
        self.levels = [
            [
                [
                    InvertedResidual(
                        widths[stage] if block == 0 else widths[stage + 1],
                        widths[stage + 1],
                        STAGES[stage],
                        STAGES[stage].stride if block == 0 else 1,
                    )
                    for block in range(config.stage_blocks[stage])
                ]
                for stage in level
            ]
            for level in LEVELS
        ]

    def __call__(self, pixel_values: mx.array) -> list[mx.array]:
        """Normalized images ``(B, H, W, 3)`` to maps ``(B, H / 4, W / 4, C)``, then of half the sides each."""
        x = relu6(self.stem(pad_same(pixel_values, 3, 2)))
        maps = []
        for level in self.levels:
            for block in (block for stage in level for block in stage):
                x = block(x)
            maps.append(x)
        return maps


def relu6(x: mx.array) -> mx.array:
    """Cut to 0..6."""
    return mx.clip(x, 0, 6)


def fold_rules(stem: tuple[str, str], stages: Sequence[str]) -> tuple[Rule, ...]:
    """The table, relative to the backbone.

    Args:
        stem: The source's names of the first convolution and its norm.
        stages: The source's name of each stage, before the number of the block.
    """
    rules: list[Rule] = [FoldNorm(*stem, "stem", NORM_EPS)]
    places = [(level, place) for level, numbers in enumerate(LEVELS) for place in range(len(numbers))]
    for stage, source, (level, place) in zip(STAGES, stages, places, strict=True):
        wide = (("conv_pw", "bn1", "expand"), ("conv_dw", "bn2", "depthwise"), ("conv_pwl", "bn3", "project"))
        plain = (("conv_dw", "bn1", "depthwise"), ("conv_pw", "bn2", "project"))
        rules += [
            FoldNorm(
                f"{source}.{{b}}.{conv}", f"{source}.{{b}}.{norm}", f"levels.{level}.{place}.{{b}}.{ours}", NORM_EPS
            )
            for conv, norm, ours in (wide if stage.expansion > 1 else plain)
        ]
    return tuple(rules)
