"""Convolutions, computed as fast as the device can."""

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.nn import ops


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` by ``ops``."""

    def __call__(self, x: mx.array) -> mx.array:
        return ops.conv2d(self, x)


class EdgeConv2d(Conv2d):
    """A 3×3 convolution beyond whose border the outermost pixels go on: torch's ``padding_mode="replicate"``."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=3)

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge"))


class ConvTranspose2d(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` by ``ops``."""

    def __call__(self, x: mx.array) -> mx.array:
        return ops.conv_transpose2d(self, x)
