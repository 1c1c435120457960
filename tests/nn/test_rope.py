"""Rotations by position against the upstream functions of DINOv3 and Depth Anything 3."""

import mlx.core as mx
import numpy as np
import pytest
from support import relative_error, require, seeded

from mlx_depth.nn.rope import centered_rotation, common_rotation, grid_rotation, rotate

torch = require("reference", "torch")
dinov3 = require("reference", "transformers.models.dinov3_vit.modeling_dinov3_vit")
rope_da3 = require("reference", "depth_anything_3.model.dinov2.layers.rope")
GATE = 1e-6
HEADS, D = 2, 16


def tokens(*shape: int) -> np.ndarray:
    return seeded("tokens", (2, HEADS, *shape, D))


@pytest.mark.parametrize("grid_size", [(1, 1), (3, 5), (16, 9)])
@pytest.mark.parametrize("leading", [0, 1, 5])
def test_dinov3(grid_size, leading):
    gh, gw = grid_size
    config = dinov3.DINOv3ViTConfig(hidden_size=HEADS * D, num_attention_heads=HEADS)
    embedding = dinov3.DINOv3ViTRopePositionEmbedding(config).eval()
    x = tokens(leading + gh * gw)
    cos, sin = embedding(torch.zeros(1, 3, 16 * gh, 16 * gw))
    expected, _ = dinov3.apply_rotary_pos_emb(torch.from_numpy(x), torch.from_numpy(x), cos, sin)
    periods = mx.array(100 ** (np.arange(D // 4) / (D // 4)), mx.float32)
    found = np.array(rotate(mx.array(x), centered_rotation(grid_size, periods, leading)))
    assert relative_error(found, expected.numpy()) <= GATE
    assert np.array_equal(found[:, :, :leading], x[:, :, :leading]), "leading tokens do not turn"


@pytest.mark.parametrize("grid_size", [(1, 1), (3, 5), (16, 9)])
def test_depth_anything_3(grid_size):
    x = tokens(1 + grid_size[0] * grid_size[1])
    places = torch.cat([torch.zeros(1, 2), torch.cartesian_prod(*(torch.arange(n) + 1 for n in grid_size))]).long()
    upstream = rope_da3.RotaryPositionEmbedding2D(frequency=100.0)
    expected = upstream(torch.from_numpy(x), places.expand(len(x), -1, -1)).numpy()
    assert relative_error(np.array(rotate(mx.array(x), grid_rotation(grid_size, D))), expected) <= GATE


def test_views_in_turn():
    """The tokens of several views, one view behind the other, turn as those of each do."""
    x, rotation = tokens(2, 4), common_rotation(3, D)
    together = rotate(mx.array(x).flatten(2, 3), rotation).reshape(x.shape)
    apart = mx.stack([rotate(mx.array(x[:, :, view]), rotation) for view in range(2)], axis=2)
    assert mx.array_equal(together, apart)


def test_half_precision_keeps_its_type_and_turns_by_float32_angles():
    x = mx.array(tokens(5 + 12)).astype(mx.float16)
    rotation = centered_rotation((3, 4), mx.array([1.0, 3.15625, 10.0, 31.625]).astype(mx.float16), 5)
    assert {table.dtype for table in rotation} == {mx.float32}
    found = rotate(x, rotation)
    assert found.dtype == mx.float16
    assert relative_error(np.array(found), np.array(rotate(x.astype(mx.float32), rotation))) <= 2e-3
