"""Multi-head self-attention over tokens."""

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.nn import ops
from mlx_depth.nn.rope import Rotation, rotate

QK_NORM_EPS = 1e-5


class Attention(nn.Module):
    """Self-attention: (B, N, C) → (B, N, C). Keys may do without a bias, or queries and values."""

    def __init__(
        self, dims: int, num_heads: int, *, qk_norm: bool = False, qv_bias: bool = True, key_bias: bool = True
    ):
        super().__init__()
        self.num_heads = num_heads
        self.query_proj = nn.Linear(dims, dims, bias=qv_bias)
        self.key_proj = nn.Linear(dims, dims, bias=key_bias)
        self.value_proj = nn.Linear(dims, dims, bias=qv_bias)
        self.out_proj = nn.Linear(dims, dims)
        if qk_norm:
            self.query_norm = nn.LayerNorm(dims // num_heads, eps=QK_NORM_EPS)
            self.key_norm = nn.LayerNorm(dims // num_heads, eps=QK_NORM_EPS)

    def __call__(self, x: mx.array, rotation: Rotation | None = None) -> mx.array:
        B, N, C = x.shape
        head_dim = C // self.num_heads

        def split_heads(y: mx.array) -> mx.array:
            return y.reshape(B, N, self.num_heads, head_dim).transpose(0, 2, 1, 3)  # (B, heads, N, head_dim)

        query, key, value = (split_heads(ops.row_wise(f, x)) for f in (self.query_proj, self.key_proj, self.value_proj))
        if "query_norm" in self:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        y = ops.attention(query, key, value, scale=head_dim**-0.5)
        return ops.row_wise(self.out_proj, y.transpose(0, 2, 1, 3).reshape(B, N, C))
