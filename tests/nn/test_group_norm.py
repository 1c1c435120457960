"""Group normalization against torch, also where a map is so large that a running sum loses digits."""

import mlx.core as mx
import numpy as np
import pytest
from support import relative_error, require, seeded

from mlx_depth.nn.group_norm import GroupNorm

torch = require("reference", "torch")


@pytest.mark.parametrize(("shape", "groups"), [((2, 5, 7, 12), 3), ((1, 1, 1, 8), 4), ((1, 192, 192, 16), 8)])
def test_equals_torch_in_float64(shape, groups):
    x = seeded("map", shape) + 0.5
    norm = GroupNorm(groups, shape[-1], eps=1e-5)
    norm.weight, norm.bias = (mx.array(seeded(name, shape[-1:])) for name in ("weight", "bias"))
    weight, bias = (torch.from_numpy(np.array(part)).double() for part in (norm.weight, norm.bias))
    channels_first = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).double()
    expected = torch.nn.functional.group_norm(channels_first, groups, weight, bias, 1e-5)
    assert relative_error(np.array(norm(mx.array(x))), expected.numpy().transpose(0, 2, 3, 1)) <= 1e-6


def test_half_precision_is_normalized_in_float32():
    x = seeded("map", (1, 64, 64, 8)) * 100
    norm = GroupNorm(2, 8, eps=1e-5)
    found = norm(mx.array(x).astype(mx.float16))
    assert found.dtype == mx.float16
    assert relative_error(np.array(found.astype(mx.float32)), np.array(norm(mx.array(x)))) <= 2e-3
