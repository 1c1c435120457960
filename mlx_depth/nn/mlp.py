"""The feed-forward halves of a transformer block."""

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.nn import activations, ops


class MLP(nn.Module):
    """Linear, exact (erf) GELU, linear."""

    def __init__(self, dims: int, hidden_dims: int, out_dims: int | None = None):
        super().__init__()
        self.fc1 = nn.Linear(dims, hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, dims if out_dims is None else out_dims)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(ops.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """SiLU-gated linear unit (Shazeer, 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, dims: int, hidden_dims: int):
        super().__init__()
        self.gate_proj = nn.Linear(dims, hidden_dims)
        self.up_proj = nn.Linear(dims, hidden_dims)
        self.down_proj = nn.Linear(hidden_dims, dims)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(activations.silu(self.gate_proj(x)) * self.up_proj(x))


def swiglu_hidden_dims(mlp_dims: int) -> int:
    """Two thirds of the plain MLP's width, rounded up to a multiple of 8 (DINOv2's ``SwiGLUFFNFused``)."""
    return (int(mlp_dims * 2 / 3) + 7) // 8 * 8
