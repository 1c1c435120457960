"""Group normalization (Wu and He, 2018) of large maps."""

import mlx.core as mx
import mlx.nn as nn


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` as torch has it, ``(B, H, W, C)`` → same, float32 inside.

    Means are taken along rows first: one running sum over 100,000 pixels would lose two digits.
    """

    def __init__(self, num_groups: int, dims: int, *, eps: float):
        super().__init__(num_groups, dims, eps=eps, pytorch_compatible=True)

    def __call__(self, x: mx.array) -> mx.array:
        B, H, W, C = x.shape
        groups = x.astype(mx.float32).reshape(B, H, W, self.num_groups, C // self.num_groups)
        centered = groups - _mean(groups)
        normal = centered * mx.rsqrt(_mean(mx.square(centered)) + self.eps)
        return (normal.reshape(x.shape) * self.weight + self.bias).astype(x.dtype)


def _mean(x: mx.array) -> mx.array:
    """Over the pixels and the channels of each group: (B, H, W, groups, C) → (B, 1, 1, groups, 1)."""
    return x.mean(axis=2, keepdims=True).mean(axis=(1, 4), keepdims=True)
