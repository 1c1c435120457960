"""A pyramid of convolutions, from the patches up to sixteen times their grid (Wang et al., 2025, MoGe-2).

Upstream: ``ConvStack`` in ``moge/model/modules.py``, with the options that the published models have.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.errors import CheckpointError
from mlx_depth.heads.dpt import ResidualConvUnit, last_convolution
from mlx_depth.nn.conv import Conv2d, ConvTranspose2d, EdgeConv2d
from mlx_depth.nn.resize import resize
from mlx_depth.weights.config_values import check_at_least
from mlx_depth.weights.rules import Rename, Rule

LEVELS = 5  # each has twice the size of the one below


@dataclass(frozen=True)
class ConvStackConfig:
    """Sizes of a stack, from the coarsest level to the finest."""

    channels: tuple[int, ...]
    num_blocks: tuple[int, ...]  # residual units of each level

    def __post_init__(self) -> None:
        check_at_least(self, {"channels": 1, "num_blocks": 0})
        if {len(self.channels), len(self.num_blocks)} != {LEVELS}:
            raise CheckpointError(
                f"channels {self.channels} and num_blocks {self.num_blocks} are not of {LEVELS} levels: "
                "take the config.json of the original checkpoint."
            )


class Growth(nn.Module):
    """Twice the size: by weights, or between the pixels."""

    def __init__(self, in_channels: int, out_channels: int, *, learnt: bool):
        super().__init__()
        if learnt:
            self.transposed = ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
        self.conv = EdgeConv2d(out_channels if learnt else in_channels, out_channels)

    def __call__(self, x: mx.array) -> mx.array:
        _, h, w, _ = x.shape
        return self.conv(self.transposed(x) if "transposed" in self else resize(x, (2 * h, 2 * w)))


class Level(nn.Module):
    """One size of the pyramid: what comes from below, and this level's own input."""

    def __init__(self, in_channels: int, channels: int, num_blocks: int):
        super().__init__()
        self.input = Conv2d(in_channels, channels, kernel_size=1)
        self.blocks = [ResidualConvUnit(channels, edge=True) for _ in range(num_blocks)]

    def __call__(self, x: mx.array, below: mx.array | None) -> mx.array:
        x = self.input(x) if below is None else self.input(x) + below
        for block in self.blocks:
            x = block(x)
        return x


class ConvStack(nn.Module):
    """Maps of five sizes to maps of the same sizes, each with all that is coarser."""

    def __init__(self, in_channels: Sequence[int], config: ConvStackConfig):
        super().__init__()
        channels = config.channels
        self.levels = [Level(*sizes) for sizes in zip(in_channels, channels, config.num_blocks, strict=True)]
        last = LEVELS - 2
        self.growths = [Growth(channels[i], channels[i + 1], learnt=i < last) for i in range(LEVELS - 1)]

    def __call__(self, maps: Sequence[mx.array]) -> list[mx.array]:
        """Refine maps.

        Args:
            maps: Five, the coarsest first: ``(B, 2**i h, 2**i w, C_i)``.
        Returns:
            Five of the same sizes.
        """
        refined = [self.levels[0](maps[0], None)]
        for growth, level, x in zip(self.growths, self.levels[1:], maps[1:], strict=True):
            refined.append(level(x, growth(refined[-1])))
        return refined


class ConvStackHead(ConvStack):
    """A stack that reads values out of its finest level."""

    def __init__(self, in_channels: Sequence[int], config: ConvStackConfig, values: int):
        super().__init__(in_channels, config)
        self.read_out = Conv2d(config.channels[-1], values, kernel_size=1)

    def __call__(self, maps: Sequence[mx.array]) -> mx.array:  # type: ignore[override]
        """Read values out: five maps, as for ``ConvStack`` → ``(B, 16 h, 16 w, values)``, float32."""
        return last_convolution(self.read_out, super().__call__(maps)[-1])


def largest_map(grid_size: tuple[int, int], config: ConvStackConfig) -> int:
    """Values of the largest map, for one image: the last but one level's, at the size of the last."""
    return math.prod(grid_size) * 4 ** (LEVELS - 1) * config.channels[-2]


# The table is relative to the stack.
ORIGINAL: tuple[Rule, ...] = (
    Rename("input_blocks.{i}.{p}", "levels.{i}.input.{p}"),
    Rename("res_blocks.{i}.{j}.layers.2.{p}", "levels.{i}.blocks.{j}.conv1.{p}"),
    Rename("res_blocks.{i}.{j}.layers.5.{p}", "levels.{i}.blocks.{j}.conv2.{p}"),
    Rename("resamplers.{i}.0.{p}", "growths.{i}.transposed.{p}"),
    Rename("resamplers.{i}.1.{p}", "growths.{i}.conv.{p}"),
    Rename(f"output_blocks.{LEVELS - 1}.{{p}}", "read_out.{p}"),
)
