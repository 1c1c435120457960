"""Convolutions that become plain matrix products where MLX computes on a Linux CPU."""

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.linux_cpu.kernels import fast_paths
from mlx_depth.linux_cpu.streams import in_parts, joined


class Conv2d(nn.Conv2d):
    """``nn.Conv2d``; a 1×1 and a zero-padded 3×3 convolution go through BLAS on a Linux CPU."""

    def __call__(self, x: mx.array) -> mx.array:
        geometry = (self.weight.shape[1:3], self.stride, self.padding, self.dilation, self.groups)
        bias = self.bias if "bias" in self else mx.zeros(self.weight.shape[:1])
        if fast_paths(x) and geometry == ((1, 1), (1, 1), (0, 0), 1, 1):
            return conv_1x1(x, self.weight, bias)
        if fast_paths(x) and geometry == ((3, 3), (1, 1), (1, 1), 1, 1):
            return conv_3x3(x, self.weight, bias)
        return super().__call__(x)


class ConvTranspose2d(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d``; on a Linux CPU one matrix product, if the stride is the size of the kernel."""

    def __call__(self, x: mx.array) -> mx.array:
        size = self.weight.shape[1:3]
        geometry = (self.stride, self.padding, self.output_padding, self.dilation)
        if fast_paths(x) and geometry == (size, (0, 0), (0, 0), 1) and "bias" in self:
            return conv_transpose_tiles(x, self.weight, self.bias)
        return super().__call__(x)


def conv_1x1(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """One matrix product over the pixels.

    Args:
        x: ``(B, H, W, C)``.
        weight: ``(D, 1, 1, C)``.
        bias: ``(D,)``.
    Returns:
        ``(B, H, W, D)``.

    Same numbers as ``mx.conv2d``.
    """
    B, H, W, C = x.shape
    return mx.addmm(bias, x.reshape(-1, C), weight.reshape(-1, C).T).reshape(B, H, W, -1)


def conv_3x3(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """Nine matrix products over all pixels: in the flattened, zero-padded image a shift is an offset of the rows.

    Args:
        x: ``(B, H, W, C)``.
        weight: ``(D, 3, 3, C)``.
        bias: ``(D,)``.
    Returns:
        ``(B, H, W, D)``, zero padding of one pixel.

    Same numbers as ``mx.conv2d``.
    """
    taps = mx.contiguous(weight.transpose(1, 2, 3, 0))  # (3, 3, C, D)
    H = x.shape[1]

    def rows(start: int, stop: int) -> mx.array:
        top, bottom = max(start - 1, 0), min(stop + 1, H)
        return _conv_3x3(x[:, top:bottom], taps, bias)[:, start - top : stop - top]

    return joined(in_parts(rows, H))


def _conv_3x3(x: mx.array, taps: mx.array, bias: mx.array) -> mx.array:
    B, H, W, C = x.shape
    stride = W + 2
    pixels = mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]).reshape(-1, C)
    count = pixels.shape[0] - 2 * stride - 2  # up to the last image's last output pixel
    y = bias
    for i in range(3):
        for j in range(3):
            offset = i * stride + j
            y = mx.addmm(y, pixels[offset : offset + count], taps[i, j])
    D = taps.shape[3]
    return mx.as_strided(y, (B, H, W, D), ((H + 2) * stride * D, stride * D, D, 1))  # without the padding


def conv_transpose_tiles(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """A transposed convolution whose stride is its kernel: each pixel becomes a tile, by one matrix product.

    Args:
        x: ``(B, H, W, C)``.
        weight: ``(D, kh, kw, C)``.
        bias: ``(D,)``.
    Returns:
        ``(B, H * kh, W * kw, D)``.

    Same numbers as ``mx.conv_transpose2d``.
    """
    B, H, W, C = x.shape
    D, kh, kw, _ = weight.shape
    tiles = weight.transpose(1, 2, 0, 3).reshape(-1, C)  # (kh * kw * D, C)
    y = mx.addmm(mx.tile(bias, kh * kw), x.reshape(-1, C), tiles.T)
    return y.reshape(B, H, W, kh, kw, D).swapaxes(2, 3).reshape(B, H * kh, W * kw, D)
