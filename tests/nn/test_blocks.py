"""The small blocks against torch."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from support import relative_error, require, seeded

from mlx_depth.nn.attention import Attention
from mlx_depth.nn.layer_scale import LayerScale
from mlx_depth.nn.mlp import MLP, SwiGLU, swiglu_hidden_dims
from mlx_depth.nn.patch_embed import PatchEmbed

torch = require("reference", "torch")
functional = torch.nn.functional
GATE = 1e-5


def fill(module: nn.Module) -> dict:
    """Name-seeded parameters in a module of ours; the same values as torch tensors."""
    from mlx.utils import tree_flatten

    values = {name: seeded(name, array.shape, 0.3) for name, array in tree_flatten(module.parameters())}
    module.load_weights([(name, mx.array(value)) for name, value in values.items()])
    return {name: torch.from_numpy(value) for name, value in values.items()}


def linear(x, weights, name):
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


@pytest.mark.parametrize(("tokens", "dims", "heads"), [(1, 8, 1), (17, 24, 3), (257, 64, 4)])
def test_attention(tokens, dims, heads):
    attention = Attention(dims, heads)
    weights = fill(attention)
    x = seeded("x", (2, tokens, dims))
    query, key, value = (
        linear(torch.from_numpy(x), weights, name).unflatten(-1, (heads, -1)).transpose(1, 2)
        for name in ("query_proj", "key_proj", "value_proj")
    )
    mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    expected = linear(mixed, weights, "out_proj").numpy()
    assert relative_error(np.array(attention(mx.array(x))), expected) <= GATE


@pytest.mark.parametrize("qv_bias", [False, True])
@pytest.mark.parametrize("key_bias", [False, True])
def test_attention_without_biases(qv_bias, key_bias):
    attention = Attention(8, 2, qv_bias=qv_bias, key_bias=key_bias)
    names = {name for name in fill(attention) if name.endswith("bias")}
    expected = {"out_proj.bias"} | ({"query_proj.bias", "value_proj.bias"} if qv_bias else set())
    assert names == expected | ({"key_proj.bias"} if key_bias else set())


def test_mlp_uses_the_exact_gelu():
    mlp = MLP(8, 32)
    weights = fill(mlp)
    x = seeded("x", (2, 5, 8), 3.0)
    expected = linear(functional.gelu(linear(torch.from_numpy(x), weights, "fc1")), weights, "fc2").numpy()
    assert relative_error(np.array(mlp(mx.array(x))), expected) <= GATE


def test_swiglu():
    swiglu = SwiGLU(8, 24)
    weights = fill(swiglu)
    x = torch.from_numpy(seeded("x", (2, 5, 8)))
    gated = functional.silu(linear(x, weights, "gate_proj")) * linear(x, weights, "up_proj")
    expected = linear(gated, weights, "down_proj").numpy()
    assert relative_error(np.array(swiglu(mx.array(x.numpy()))), expected) <= GATE


@pytest.mark.parametrize(("mlp_dims", "hidden"), [(6144, 4096), (128, 88), (1536, 1024)])
def test_swiglu_width(mlp_dims, hidden):
    assert swiglu_hidden_dims(mlp_dims) == hidden


def test_layer_scale():
    scale = LayerScale(8)
    gamma = fill(scale)["gamma"].numpy()
    x = seeded("x", (2, 5, 8))
    assert relative_error(np.array(scale(mx.array(x))), x * gamma) <= GATE


@pytest.mark.parametrize("size", [(14, 14), (70, 98), (28, 266)])
def test_patch_embed(size):
    embed = PatchEmbed(16, 14)
    weights = fill(embed)
    x = seeded("x", (2, *size, 3))
    expected = functional.conv2d(
        torch.from_numpy(x).permute(0, 3, 1, 2),
        weights["proj.weight"].permute(0, 3, 1, 2),
        weights["proj.bias"],
        stride=14,
    )
    found = np.array(embed(mx.array(x)))
    assert relative_error(found, expected.permute(0, 2, 3, 1).numpy()) <= GATE
