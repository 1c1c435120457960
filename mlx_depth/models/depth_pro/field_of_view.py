"""Depth Pro's estimate of the field of view: an encoder of its own beside the coarsest map of the decoder.

Upstream: ``depth_pro/network/fov.py`` and transformers' ``modeling_depth_pro.py``.
"""

import math
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.backbones import dinov2
from mlx_depth.backbones.dinov2 import DINOv2, DINOv2Config
from mlx_depth.backbones.pyramid import whole_image
from mlx_depth.heads.dpt import last_convolution
from mlx_depth.nn.activations import relu
from mlx_depth.nn.conv import Conv2d
from mlx_depth.weights.rules import Rename, Rule, prefixed

HALVINGS = 2  # convolutions that halve the map before all of it is read


class FieldOfView(nn.Module):
    """A small image, and a map of it that the decoder starts from, to degrees."""

    def __init__(self, encoder: DINOv2Config, features: int):
        super().__init__()
        self._config = encoder
        channels = [math.ceil(features / 2 ** (i + 1)) for i in range(HALVINGS + 1)]
        self.encoder = DINOv2(whole_image(encoder))
        self.projection = nn.Linear(encoder.embed_dim, features // 2)
        self.downsample = Conv2d(features, features // 2, kernel_size=3, stride=2, padding=1)
        self.convs = [Conv2d(a, b, kernel_size=3, stride=2, padding=1) for a, b in pairwise(channels)]
        self.last = Conv2d(channels[-1], 1, kernel_size=(encoder.table_size - 1) // 2**HALVINGS + 1)

    def __call__(self, small: mx.array, coarsest: mx.array) -> mx.array:
        """Estimate the horizontal field of view.

        Args:
            small: Normalized images, ``(B, window, window, 3)``.
            coarsest: As of ``heads.multires.Decoded``.
        Returns:
            Degrees, ``(B,)``, float32.
        """
        n = self._config.table_size
        (seen,) = self.encoder(small)
        x = self.projection(seen.patch_tokens).reshape(len(small), n, n, -1)  # tokens → map
        x = x + relu(self.downsample(coarsest))
        for conv in self.convs:
            x = relu(conv(x))
        return last_convolution(self.last, x).reshape(-1)


# The tables are relative to the part.
ORIGINAL: tuple[Rule, ...] = (
    *prefixed(dinov2.ORIGINAL, "encoder.0.", "encoder."),
    Rename("encoder.1.{p}", "projection.{p}"),
    Rename("downsample.0.{p}", "downsample.{p}"),
    *(Rename(f"head.{2 * i}.{{p}}", f"convs.{i}.{{p}}") for i in range(HALVINGS)),
    Rename(f"head.{2 * HALVINGS}.{{p}}", "last.{p}"),
)
TRANSFORMERS: tuple[Rule, ...] = (
    *prefixed(dinov2.TRANSFORMERS, "fov_encoder.model.", "encoder."),
    Rename("fov_encoder.neck.{p}", "projection.{p}"),
    Rename("conv.{p}", "downsample.{p}"),
    *(Rename(f"head.layers.{2 * i}.{{p}}", f"convs.{i}.{{p}}") for i in range(HALVINGS)),
    Rename(f"head.layers.{2 * HALVINGS}.{{p}}", "last.{p}"),
)
