"""Multi-head self-attention over tokens."""

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.nn import ops


class Attention(nn.Module):
    """Self-attention with biased projections: (B, N, C) → (B, N, C)."""

    def __init__(self, dims: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query_proj = nn.Linear(dims, dims)
        self.key_proj = nn.Linear(dims, dims)
        self.value_proj = nn.Linear(dims, dims)
        self.out_proj = nn.Linear(dims, dims)

    def __call__(self, x: mx.array) -> mx.array:
        B, N, C = x.shape
        head_dim = C // self.num_heads

        def split_heads(y: mx.array) -> mx.array:
            return y.reshape(B, N, self.num_heads, head_dim).transpose(0, 2, 1, 3)  # (B, heads, N, head_dim)

        query, key, value = (split_heads(ops.row_wise(f, x)) for f in (self.query_proj, self.key_proj, self.value_proj))
        y = ops.attention(query, key, value, scale=head_dim**-0.5)
        return ops.row_wise(self.out_proj, y.transpose(0, 2, 1, 3).reshape(B, N, C))
