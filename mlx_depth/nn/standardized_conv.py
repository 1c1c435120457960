"""Convolutions with weight standardization (Qiao et al., 2019), as BiT has them."""

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.nn.same_padding import pad_same

EPS = 1e-8


class StandardizedConv2d(nn.Conv2d):
    """A convolution without bias, padded as ``SAME``, of whose kernels each has mean 0 and variance 1.

    They are standardized at each call: the stored ones stay those of the checkpoint.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        x = pad_same(x, self.weight.shape[1], self.stride[0])
        return mx.conv2d(x, standardized(self.weight), self.stride)


def standardized(weight: mx.array) -> mx.array:
    """Kernels ``(O, h, w, I)`` with mean 0 and variance 1 each, computed in float32, same type."""
    kernels = weight.astype(mx.float32)
    centered = kernels - _mean(kernels)
    return (centered * mx.rsqrt(_mean(mx.square(centered)) + EPS)).astype(weight.dtype)


def _mean(kernels: mx.array) -> mx.array:
    """Of each kernel, along its channels first: one running sum over thousands of values would lose a digit."""
    return kernels.mean(axis=3, keepdims=True).mean(axis=(1, 2), keepdims=True)
