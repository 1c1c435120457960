"""Convolutions, computed as fast as the device can."""

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.nn import ops


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` by ``ops``."""

    def __call__(self, x: mx.array) -> mx.array:
        return ops.conv2d(self, x)


class ConvTranspose2d(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` by ``ops``."""

    def __call__(self, x: mx.array) -> mx.array:
        return ops.conv_transpose2d(self, x)
