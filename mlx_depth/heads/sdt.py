"""Simple Depth Transformer (Ren et al., 2026, "AnyDepth"): four layers fused into one map, which is doubled four times.

Upstream: ``model/sdt_head.py``; each BatchNorm is folded into the convolution before it while loading.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.backbones.dinov2 import LayerTokens
from mlx_depth.errors import CheckpointError
from mlx_depth.heads.dpt import last_convolution
from mlx_depth.nn import ops
from mlx_depth.nn.activations import relu
from mlx_depth.nn.conv import Conv2d
from mlx_depth.nn.grid_sample import sample_bilinear
from mlx_depth.weights.config_values import check_at_least
from mlx_depth.weights.rules import FoldNorm, Rename, Rule

LAYERS = 4
DOUBLINGS = 4
STRIPS = 4  # of a doubled map: each then has the size of the map that was doubled
MIN_STRIP_ROWS = 64  # of fewer, the rows that neighbors both compute, up to 8, take too large a part
VALUES_A_GROUP = 2 * 4  # (across, down), for each of the four pixels that one becomes


@dataclass(frozen=True)
class SDTConfig:
    """Sizes of an SDT head."""

    in_dim: int  # channels of the tokens
    features: int = 256  # channels of the fused map
    hidden_channels: int = 32
    groups: int = 4  # of channels that are sampled together
    patch_size: int = 16
    least_depth: float = 0.001  # added after the last ReLU

    def __post_init__(self) -> None:
        check_at_least(self, dict.fromkeys(("in_dim", "features", "hidden_channels", "groups", "patch_size"), 1))
        if self.patch_size != 2**DOUBLINGS:
            raise CheckpointError(
                f"an SDT head doubles its map {DOUBLINGS} times, so patch_size is {2**DOUBLINGS}, not "
                f"{self.patch_size}: take the config.json of the original checkpoint."
            )
        if self.features < 2 or self.features % self.groups:
            raise CheckpointError(
                f"an SDT head cannot halve {self.features} features, or share them among {self.groups} groups: "
                "take the config.json of the original checkpoint."
            )
        if not 0 <= self.least_depth < math.inf:
            raise CheckpointError(
                f"least_depth is {self.least_depth}, no number from 0: take the config.json of the original checkpoint."
            )


class Readout(nn.Linear):
    """Each patch token of a layer mixed with the class token: (B, gh * gw, C).

    DPT's "project" (Ranftl et al., 2021), without joining the two: what all patches share is multiplied once.
    """

    def __init__(self, dims: int):
        super().__init__(2 * dims, dims)

    def __call__(self, tokens: LayerTokens) -> mx.array:  # type: ignore[override]
        patch, cls = mx.split(self.weight, 2, axis=1)
        shared = (tokens.cls_token @ cls.T + self.bias)[:, None]
        return ops.row_wise(lambda x: ops.gelu(x @ patch.T + shared), tokens.patch_tokens)


class TokenProjection(nn.Module):
    """Tokens of one layer at the width of the fused map, (B, gh * gw, features)."""

    def __init__(self, in_dim: int, features: int):
        super().__init__()
        self.readout = Readout(in_dim)
        self.projection = nn.Linear(in_dim, features, bias=False)

    def __call__(self, tokens: LayerTokens) -> mx.array:
        return ops.row_wise(lambda x: ops.gelu(self.projection(x)), self.readout(tokens))


class DySample(nn.Module):
    """Double a map by reading it at learned positions (Liu et al., 2023, "Learning to Upsample by Learning to Sample").

    Its variant "lp", where one pixel's channels tell the positions of the four that it becomes, with a scope.
    """

    def __init__(self, features: int, groups: int):
        super().__init__()
        self._groups = groups
        values = VALUES_A_GROUP * groups
        self.offset = Conv2d(features, values, kernel_size=1)
        self.scope = Conv2d(features, values, kernel_size=1, bias=False)
        self.init_pos = mx.zeros((1, values, 1, 1))

    def __call__(self, x: mx.array, start: int, stop: int) -> mx.array:
        """Some rows of the doubled map.

        Args:
            x: The whole map, ``(B, H, W, C)``.
            start: First row of the doubled map.
            stop: The row after the last.
        Returns:
            ``(B, stop - start, 2 W, C)``.
        """
        first, end = start // 2, (stop + 1) // 2
        columns, rows = self._positions(x[:, first:end], first)
        rows, columns = (axis[:, start - 2 * first : stop - 2 * first] for axis in (rows, columns))
        return sample_bilinear(x, rows, columns)

    def _positions(self, x: mx.array, first: int) -> tuple[mx.array, mx.array]:
        """Rows of a map, the first of which has a number → columns and rows to read, (B, 2 rows, 2 W, groups)."""
        B, H, W, _ = x.shape
        offset = self.offset(x) * mx.sigmoid(self.scope(x)) * 0.5 + self.init_pos.reshape(-1)
        offset = offset.astype(mx.float32).reshape(B, H, W, 2, self._groups, 2, 2)
        offset = offset.transpose(3, 0, 1, 5, 2, 6, 4)  # (axis, B, H, 2, W, 2, groups)
        across = offset[0] + mx.arange(W)[:, None, None]
        down = offset[1] + mx.arange(first, first + H)[:, None, None, None, None]
        return across.reshape(B, 2 * H, 2 * W, -1), down.reshape(B, 2 * H, 2 * W, -1)


class Doubling(nn.Module):
    """What doubles the map, and the convolution behind it."""

    def __init__(self, features: int, groups: int):
        super().__init__()
        self.sample = DySample(features, groups)
        self.conv = Conv2d(features, features, kernel_size=3, padding=1)


class SDTHead(nn.Module):
    """Tokens of four layers to depth at the network's input size."""

    def __init__(self, config: SDTConfig):
        super().__init__()
        self._config = config
        features = config.features
        self.projections = [TokenProjection(config.in_dim, features) for _ in range(LAYERS)]
        self.layer_weights = mx.zeros(LAYERS)
        self.enhancer = Conv2d(features, features, kernel_size=3, padding=1, groups=features)
        self.doublings = [Doubling(features, config.groups) for _ in range(DOUBLINGS)]
        self.refinements = [Conv2d(features, features, kernel_size=3, padding=1) for _ in range(DOUBLINGS // 2)]
        self.conv1 = Conv2d(features, features // 2, kernel_size=3, padding=1)
        self.conv2 = Conv2d(features // 2, config.hidden_channels, kernel_size=3, padding=1)
        self.conv3 = Conv2d(config.hidden_channels, 1, kernel_size=1)
        self.doubled = [nn.Identity() for _ in range(DOUBLINGS)]  # where a whole map can be watched

    def __call__(self, features: Sequence[LayerTokens], grid_size: tuple[int, int]) -> mx.array:
        """Decode depth.

        Args:
            features: Four layers, the shallowest first, of ``gh * gw`` patches.
            grid_size: Patches ``(gh, gw)``.
        Returns:
            Depth ``(B, gh * patch_size, gw * patch_size)``, float32, >= ``least_depth``.
        """
        x = self.fuse(features, grid_size)
        for level in range(DOUBLINGS):
            x = self.doubled[level](self.double(x, level))
        return relu(x[..., 0]) + self._config.least_depth

    def largest_map(self, grid_size: tuple[int, int]) -> int:
        """Values of the map before the last doubling, the largest that exists as a whole, for one image."""
        return math.prod(grid_size) * 4 ** (DOUBLINGS - 1) * self._config.features

    def fuse(self, features: Sequence[LayerTokens], grid_size: tuple[int, int]) -> mx.array:
        """Mix the layers and sharpen what they make: (B, gh, gw, features); arguments as for the call."""
        weights = mx.softmax(self.layer_weights)
        layers = [project(tokens) for project, tokens in zip(self.projections, features, strict=True)]
        x = functools.reduce(mx.add, (weight * layer for weight, layer in zip(weights, layers, strict=True)))
        x = x.reshape(x.shape[0], *grid_size, -1)  # tokens → map
        return relu(self.enhancer(x) + x)

    def double(self, x: mx.array, level: int) -> mx.array:
        """Double a map, some rows at a time: but for the result, only what a strip needs is alive.

        Args:
            x: ``(B, H, W, features)``.
            level: How many times it is doubled already.
        Returns:
            ``(B, 2 H, 2 W, features)``; of the last level what is read out, ``(B, 2 H, 2 W, 1)``.
        """
        sample, convolutions = self.doublings[level].sample, self._convolutions(level)
        height = 2 * x.shape[1]

        def rows(x: mx.array, start: int, stop: int) -> mx.array:
            reach = len(convolutions)  # rows beyond the strip that the convolutions still see
            first, end = max(start - reach, 0), min(stop + reach, height)
            strip = sample(x, first, end)
            for left, conv in enumerate(convolutions, 1 - reach):
                top, bottom = max(start + left, 0), min(stop - left, height)
                strip = relu(conv(strip))[:, top - first : bottom - first]
                first = top
            return last_convolution(self.conv3, strip) if level == DOUBLINGS - 1 else strip

        return ops.build_tiles(rows, x, height, max(height // (STRIPS * ops.cores()), MIN_STRIP_ROWS))

    def _convolutions(self, level: int) -> list[Conv2d]:
        """Those behind a doubling, each with a ReLU."""
        refinement = [self.refinements[level // 2]] if level % 2 else []
        read_out = [self.conv1, self.conv2] if level == DOUBLINGS - 1 else []
        return [self.doublings[level].conv, *refinement, *read_out]


def _doubling_original(level: int) -> tuple[Rule, ...]:
    """The authors' names: two doublings a stage, and a refinement behind the second."""
    stage, number = level // 2 + 1, level % 2 + 1
    source, target = f"upsample_{stage}.dysample{number}", f"doublings.{level}"
    rules = (
        Rename(f"{source}.0.init_pos", f"{target}.sample.init_pos"),
        Rename(f"{source}.0.{{layer}}.{{p}}", f"{target}.sample.{{layer}}.{{p}}"),
        FoldNorm(f"{source}.1", f"{source}.2", f"{target}.conv"),
    )
    refinement = FoldNorm(f"refinement_{stage}.0", f"refinement_{stage}.1", f"refinements.{stage - 1}")
    return (*rules, refinement) if number == 2 else rules


# The table is relative to the head.
ORIGINAL: tuple[Rule, ...] = (
    Rename("weighted_fusion.readout_projects.{i}.0.{p}", "projections.{i}.readout.{p}"),
    Rename("weighted_fusion.projections.{i}.0.{p}", "projections.{i}.projection.{p}"),
    Rename("weighted_fusion.layer_weights", "layer_weights"),
    FoldNorm("detail_enhancer.dwconv", "detail_enhancer.norm", "enhancer"),
    *(rule for level in range(DOUBLINGS) for rule in _doubling_original(level)),
    Rename("output_conv.0.{p}", "conv1.{p}"),
    Rename("output_conv.2.{p}", "conv2.{p}"),
    Rename("output_conv.4.{p}", "conv3.{p}"),
)
