"""Depth Anything 3's head (Lin et al., 2025): one set of maps, two fusions; depth out of one, rays out of the other.

Upstream: ``depth_anything_3/model/dualdpt.py``.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.errors import CheckpointError
from mlx_depth.heads import dpt
from mlx_depth.nn.activations import relu
from mlx_depth.nn.conv import Conv2d
from mlx_depth.nn.uv_position import add_uv_position
from mlx_depth.weights.config_values import added_later, check_at_least
from mlx_depth.weights.rules import Drop, Rename, Rule, Tie

NORM_EPS = 1e-5
RAY_CHANNELS = 7  # direction, origin, confidence
_UNUSED_LEVEL = "upstream reads rays out of the finest level alone"


@dataclass(frozen=True)
class DualDPTConfig:
    """Sizes of a dual DPT head."""

    in_dim: int  # channels of the tokens
    features: int  # channels of the fused maps
    out_channels: tuple[int, int, int, int]  # channels of the reassembled maps, finest first
    hidden_channels: int = 32
    patch_size: int = 14
    rays: bool = added_later(True)  # some files leave their part of the head out

    def __post_init__(self) -> None:
        check_at_least(self, dict.fromkeys(("in_dim", "features", "out_channels", "hidden_channels", "patch_size"), 1))
        odd = [width for width in (*self.out_channels, self.features // 2) if width % 4]
        if len(self.out_channels) != len(dpt.RESAMPLINGS) or odd:
            raise CheckpointError(
                f"a dual DPT head has {len(dpt.RESAMPLINGS)} out_channels and half its features in multiples of 4, not "
                f"{self.out_channels} and {self.features}: take the config.json of the original checkpoint."
            )


class DualMaps(NamedTuple):
    """What the head reads out."""

    depth: mx.array  # (B, H, W), above 0
    confidence: mx.array  # (B, H, W), above 1
    rays: mx.array | None = None  # (B, 8 gh, 8 gw, 6), direction and origin
    ray_confidence: mx.array | None = None  # (B, 8 gh, 8 gw), above 1


class DualDPTHead(nn.Module):
    """Tokens of four layers to depth, rays, and how sure each is."""

    def __init__(self, config: DualDPTConfig):
        super().__init__()
        self._config = config
        features, half, hidden = config.features, config.features // 2, config.hidden_channels
        self.norm = nn.LayerNorm(config.in_dim, eps=NORM_EPS)
        self.reassemble = dpt.reassembles(config.in_dim, config.out_channels, features)
        self.fusion = dpt.fusions(features)
        self.conv1 = Conv2d(features, half, kernel_size=3, padding=1)
        self.conv2 = Conv2d(half, hidden, kernel_size=3, padding=1)
        self.conv3 = Conv2d(hidden, 2, kernel_size=1)
        if not config.rays:
            return
        self.ray_fusion = dpt.fusions(features)
        widths = (features, half, features, half, features, half)
        self.ray_conv1 = [
            Conv2d(before, after, kernel_size=3, padding=1) for before, after in itertools.pairwise(widths)
        ]
        self.ray_conv2 = Conv2d(half, hidden, kernel_size=3, padding=1)
        self.ray_norm = nn.LayerNorm(hidden, eps=NORM_EPS)
        self.ray_conv3 = Conv2d(hidden, RAY_CHANNELS, kernel_size=1)

    def __call__(self, patch_tokens: Sequence[mx.array], grid_size: tuple[int, int]) -> DualMaps:
        """Decode.

        Args:
            patch_tokens: Four arrays ``(B, gh * gw, C)``, the shallowest layer first.
            grid_size: Patches ``(gh, gw)``.
        """
        gh, gw = grid_size
        aspect = gw / gh
        maps = [
            reassemble(
                self.norm(tokens).reshape(tokens.shape[0], gh, gw, -1),  # tokens → map
                lambda x: add_uv_position(x, grid_size, aspect),
            )
            for reassemble, tokens in zip(self.reassemble, patch_tokens, strict=True)
        ]
        values = self.read_out(dpt.fuse(self.fusion, maps), grid_size)
        depth, confidence = mx.exp(values[..., 0]), mx.exp(values[..., 1]) + 1
        if not self._config.rays:
            return DualMaps(depth, confidence)
        rays = self.read_rays(dpt.fuse(self.ray_fusion, maps), grid_size)
        return DualMaps(depth, confidence, rays[..., :6], mx.exp(rays[..., 6]) + 1)

    def largest_map(self, grid_size: tuple[int, int]) -> int:
        """Values of a fused path, the largest map that exists as a whole, for one image."""
        return dpt.largest_map(grid_size, self._config.features)

    def read_out(self, path: mx.array, grid_size: tuple[int, int]) -> mx.array:
        """Logarithms of depth and of confidence less 1, (B, H, W, 2)."""
        H, W = size = dpt.input_size(grid_size, self._config.patch_size)

        def refine(grown: mx.array, first_row: int) -> mx.array:
            x = add_uv_position(grown, size, W / H, start=first_row)
            return dpt.last_convolution(self.conv3, relu(self.conv2(x)))

        return dpt.refine_in_strips(refine, self.conv1(path), size)

    def read_rays(self, path: mx.array, grid_size: tuple[int, int]) -> mx.array:
        """Rays and the logarithm of confidence less 1, (B, 8 gh, 8 gw, 7)."""
        for convolution in self.ray_conv1:
            path = convolution(path)
        size = (path.shape[1], path.shape[2])
        path = self.ray_conv2(add_uv_position(path, size, grid_size[1] / grid_size[0]))
        return dpt.last_convolution(self.ray_conv3, relu(self.ray_norm(path)))


ORIGINAL: tuple[Rule, ...] = (
    Rename("norm.{p}", "norm.{p}"),
    *dpt.REASSEMBLE_ORIGINAL,
    *dpt.fusions_original(),
    *dpt.fusions_original("scratch.refinenet{}_aux", "ray_fusion"),
    Rename("scratch.output_conv1.{p}", "conv1.{p}"),
    *dpt.read_out_original("output_conv2"),
    *(Drop(f"scratch.output_conv1_aux.{level}.{{i}}.{{p}}", _UNUSED_LEVEL) for level in range(3)),
    Rename("scratch.output_conv1_aux.3.{i}.{p}", "ray_conv1.{i}.{p}"),
    *(Drop(f"scratch.output_conv2_aux.{level}.{part}.{{p}}", _UNUSED_LEVEL) for level in range(3) for part in (0, 5)),
    Rename("scratch.output_conv2_aux.3.0.{p}", "ray_conv2.{p}"),
    # One module at all four levels: files name it once or four times.
    Tie("scratch.output_conv2_aux.{level}.2.{p}", "ray_norm.{p}"),
    Rename("scratch.output_conv2_aux.3.5.{p}", "ray_conv3.{p}"),
)


# depth-anything.cpp: the rays' part is there on request alone, and of that only the level that is read.
GGUF: tuple[Rule, ...] = (
    Rename("norm.{p}", "norm.{p}"),
    *dpt.GGUF,
    *dpt.fusions_gguf("scratch.rn{}_aux", "ray_fusion"),
    Rename("scratch.out1_aux.{i}.{p}", "ray_conv1.{i}.{p}"),
    Rename("scratch.out2a_aux.{p}", "ray_conv2.{p}"),
    Rename("scratch.out2_aux_ln.{p}", "ray_norm.{p}"),
    Rename("scratch.out2b_aux.{p}", "ray_conv3.{p}"),
)
