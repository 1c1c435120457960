"""The transformer block that the backbones share."""

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.nn import ops
from mlx_depth.nn.attention import Attention
from mlx_depth.nn.layer_scale import LayerScale
from mlx_depth.nn.mlp import MLP, SwiGLU
from mlx_depth.nn.rope import Rotation


class Block(nn.Module):
    """Pre-norm transformer block, with LayerScale on both branches or none: (B, N, C) → (B, N, C)."""

    def __init__(
        self,
        dims: int,
        num_heads: int,
        hidden_dims: int,
        *,
        eps: float,
        swiglu: bool = False,
        qk_norm: bool = False,
        qv_bias: bool = True,
        key_bias: bool = True,
        layer_scale: bool = True,
    ):
        super().__init__()
        scale = LayerScale if layer_scale else nn.Identity
        self.norm1 = nn.LayerNorm(dims, eps=eps)
        self.attn = Attention(dims, num_heads, qk_norm=qk_norm, qv_bias=qv_bias, key_bias=key_bias)
        self.layer_scale1 = scale(dims)
        self.norm2 = nn.LayerNorm(dims, eps=eps)
        self.mlp = (SwiGLU if swiglu else MLP)(dims, hidden_dims)
        self.layer_scale2 = scale(dims)

    def __call__(self, x: mx.array, rotation: Rotation | None = None) -> mx.array:
        x = x + self.layer_scale1(self.attn(self.norm1(x), rotation))
        return ops.row_wise(self._feed_forward, x)

    def _feed_forward(self, x: mx.array) -> mx.array:
        return x + self.layer_scale2(self.mlp(self.norm2(x)))
