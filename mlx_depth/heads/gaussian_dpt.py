"""Depth Anything 3's head for 3D Gaussians (Lin et al., 2025): a DPT head that sees the image again at full size.

Upstream: ``depth_anything_3/model/gsdpt.py``.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.errors import CheckpointError
from mlx_depth.heads import dpt
from mlx_depth.nn import ops
from mlx_depth.nn.activations import relu
from mlx_depth.nn.conv import Conv2d
from mlx_depth.nn.uv_position import add_uv_position
from mlx_depth.weights.config_values import check_at_least
from mlx_depth.weights.rules import Rename, Rule

_IMAGE_REACH = 3  # rows that the three convolutions of the image see on each side


@dataclass(frozen=True)
class GaussianDPTConfig:
    """Sizes of a Gaussian head."""

    in_dim: int  # channels of the tokens
    features: int  # channels of the fused maps
    out_channels: tuple[int, int, int, int]  # channels of the reassembled maps, finest first
    raw_channels: int = 37  # numbers of a Gaussian, beside its confidence
    hidden_channels: int = 32
    patch_size: int = 14

    def __post_init__(self) -> None:
        sizes = ("in_dim", "features", "out_channels", "raw_channels", "hidden_channels", "patch_size")
        check_at_least(self, dict.fromkeys(sizes, 1))
        odd = [width for width in (*self.out_channels, self.features // 2) if width % 4]
        if len(self.out_channels) != len(dpt.RESAMPLINGS) or odd or self.features < 8:
            raise CheckpointError(
                f"a Gaussian head has {len(dpt.RESAMPLINGS)} out_channels and half its features in multiples of 4, not "
                f"{self.out_channels} and {self.features}: take the config.json of the original checkpoint."
            )


class GaussianMaps(NamedTuple):
    """What the head reads out, for each pixel; ``world_gaussians`` of the family makes Gaussians of it."""

    raw: mx.array  # (B, H, W, raw_channels)
    confidence: mx.array  # (B, H, W), 0..1


class GaussianDPTHead(nn.Module):
    """Tokens of four layers, and the image, to the numbers of one Gaussian a pixel."""

    def __init__(self, config: GaussianDPTConfig):
        super().__init__()
        self._config = config
        features, half, hidden = config.features, config.features // 2, config.hidden_channels
        self.reassemble = dpt.reassembles(config.in_dim, config.out_channels, features)
        self.fusion = dpt.fusions(features)
        self.conv1 = Conv2d(features, half, kernel_size=3, padding=1)
        widths = (3, half // 4, half // 2, half)
        self.image_conv = [
            Conv2d(before, after, kernel_size=3, padding=1) for before, after in itertools.pairwise(widths)
        ]
        self.conv2 = Conv2d(half, hidden, kernel_size=3, padding=1)
        self.conv3 = Conv2d(hidden, config.raw_channels + 1, kernel_size=1)

    def __call__(
        self, patch_tokens: Sequence[mx.array], pixel_values: mx.array, grid_size: tuple[int, int]
    ) -> GaussianMaps:
        """Decode.

        Args:
            patch_tokens: Four arrays ``(B, gh * gw, C)``, the shallowest layer first.
            pixel_values: Normalized RGB ``(B, gh * patch_size, gw * patch_size, 3)``, as the backbone saw them.
            grid_size: Patches ``(gh, gw)``.
        """
        gh, gw = grid_size
        maps = [
            reassemble(
                tokens.reshape(tokens.shape[0], gh, gw, -1),  # tokens → map
                lambda x: add_uv_position(x, grid_size, gw / gh),
            )
            for reassemble, tokens in zip(self.reassemble, patch_tokens, strict=True)
        ]
        values = self.read_out(dpt.fuse(self.fusion, maps), pixel_values, grid_size)
        return GaussianMaps(values[..., :-1], mx.sigmoid(values[..., -1]))

    def largest_map(self, grid_size: tuple[int, int]) -> int:
        """Values of the fused path, the largest map that exists as a whole, for one image."""
        return dpt.largest_map(grid_size, self._config.features)

    def read_out(self, path: mx.array, pixel_values: mx.array, grid_size: tuple[int, int]) -> mx.array:
        """All channels before the confidence's sigmoid, (B, H, W, raw_channels + 1)."""
        H, W = size = dpt.input_size(grid_size, self._config.patch_size)

        def refine(grown: mx.array, first_row: int) -> mx.array:
            image = self._image_rows(pixel_values, first_row, first_row + grown.shape[1])
            x = add_uv_position(grown + image, size, W / H, start=first_row)
            return dpt.last_convolution(self.conv3, relu(self.conv2(x)))

        return dpt.refine_in_strips(refine, self.conv1(path), size)

    def _image_rows(self, pixel_values: mx.array, start: int, stop: int) -> mx.array:
        """Some rows of the image's features, (B, stop - start, W, features / 2)."""
        first = max(start - _IMAGE_REACH, 0)
        x = pixel_values[:, first : stop + _IMAGE_REACH]
        for convolution in self.image_conv:
            x = ops.gelu(convolution(x))
        return x[:, start - first : stop - first]


ORIGINAL: tuple[Rule, ...] = (
    *dpt.REASSEMBLE_ORIGINAL,
    *dpt.fusions_original(),
    Rename("scratch.output_conv1.{p}", "conv1.{p}"),
    *(Rename(f"images_merger.{2 * i}.{{p}}", f"image_conv.{i}.{{p}}") for i in range(3)),
    *dpt.read_out_original("output_conv2"),
)
GGUF: tuple[Rule, ...] = (*dpt.GGUF, Rename("merger.{i}.{p}", "image_conv.{i}.{p}"))
