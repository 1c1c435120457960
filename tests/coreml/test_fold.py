"""Folded weights compute what the layers compute that were folded."""

import mlx.core as mx
import numpy as np
import pytest
from coreml.tiny import tiny
from mlx_depth_convert.coreml.emitters import fold
from mlx_depth_convert.coreml.emitters.base import color_knots
from support import relative_error, seeded

from mlx_depth.backbones.dinov2 import LAYER_NORM_EPS
from mlx_depth.io.colormaps import COLORMAPS, colormap_table
from mlx_depth.nn.block import Block
from mlx_depth.nn.patch_embed import PatchEmbed
from mlx_depth.nn.rope import centered_rotation, grid_rotation, rotate
from mlx_depth.nn.uv_position import add_uv_position


def test_offset_pixels_are_exact_in_float16():
    offset, _ = fold.fold_pixels(tiny().spec.processor, tiny().weights)
    pixels = np.arange(256)
    for value in offset:
        exact = pixels * fold.PIXEL_SCALE + float(value)
        halves = (pixels.astype(np.float16) * np.float16(fold.PIXEL_SCALE)) + np.float16(value)
        assert np.array_equal(halves.astype(np.float64), exact)


def test_pixels_and_patch_convolution_equal_the_processor_and_patch_embedding():
    checkpoint = tiny()
    image = (np.abs(seeded("pixels", (28, 42, 3))) * 90 % 256).astype(np.uint8)
    patch_embed = PatchEmbed(64, 14)
    patch_embed.load_weights(
        [
            (name.removeprefix("backbone.patch_embed."), array)
            for name, array in checkpoint.weights.items()
            if "patch_embed" in name
        ]
    )
    expected = np.array(patch_embed(checkpoint.spec.processor(image, input_size=(28, 42))))

    offset, layer = fold.fold_pixels(checkpoint.spec.processor, checkpoint.weights)
    pixels = mx.array(image.astype(np.float32) * fold.PIXEL_SCALE + offset)[None]
    ours = mx.conv2d(pixels, mx.array(layer.weight.transpose(0, 2, 3, 1)), stride=14) + mx.array(layer.bias)
    assert relative_error(np.array(ours) / fold.STREAM_SCALE, expected) < 1e-5


@pytest.mark.parametrize("swiglu", [False, True])
def test_block_equals_the_mlx_block(swiglu):
    checkpoint = tiny(swiglu=swiglu)
    config = checkpoint.spec.config.backbone
    block = Block(config.embed_dim, config.num_heads, config.hidden_dim, eps=LAYER_NORM_EPS, swiglu=swiglu)
    prefix = "backbone.blocks.1."
    block.load_weights(
        [(name.removeprefix(prefix), array) for name, array in checkpoint.weights.items() if name.startswith(prefix)]
    )
    x = seeded("tokens", (1, 9, 64), 0.02)
    expected = np.array(block(mx.array(x)))[0]

    folded = fold.fold_block(config, checkpoint.weights, 1, softmax_scale=True)
    stream = x[0].astype(np.float64) * fold.STREAM_SCALE
    y = _norm(stream)
    query, key, value = (_heads(_linear(layer, y)) for layer in (folded.query, folded.key, folded.value))
    scores = np.exp(query @ key.transpose(0, 2, 1))
    attended = (scores / scores.sum(-1, keepdims=True)) @ value
    stream = stream + _linear(folded.out, attended.transpose(1, 0, 2).reshape(9, 64))
    y = _norm(stream)
    *first, last = (layer for layer in folded.mlp)
    hidden = [_linear(layer, y) for layer in first]
    if swiglu:
        y = hidden[0] / (1 + np.exp(-hidden[0])) * hidden[1]
    else:
        y = hidden[0] * 0.5 * (1 + np.array(mx.erf(mx.array(hidden[0].astype(np.float32) / 2**0.5))))
    stream = stream + _linear(last, y)
    assert relative_error(stream / fold.STREAM_SCALE, expected) < 1e-5


@pytest.mark.parametrize("colormap", COLORMAPS)
def test_straight_pieces_follow_the_color_map(colormap):
    knots = color_knots(colormap)
    entries = np.linspace(0, len(knots) - 1, 256)
    drawn = np.stack([np.interp(entries, np.arange(len(knots)), knots[:, channel]) for channel in range(3)], axis=1)
    assert np.abs(drawn - colormap_table(colormap)).max() <= 4


def test_rotation_of_partners_equals_rope():
    x = seeded("tokens", (13, 16))
    a, b, c, d = np.split(x, 4, axis=1)
    of_quarters = grid_rotation((3, 4), 16), [b, a, d, c]
    of_halves = centered_rotation((2, 4), mx.array([1.0, 2, 5, 9]), leading=5), [c, d, a, b]
    for rotation, partners in (of_quarters, of_halves):
        expected = np.array(rotate(mx.array(x)[None, None], rotation))[0, 0]
        cos, sin = fold.fold_rotation(rotation)
        assert relative_error(x * cos + np.concatenate(partners, axis=1) * sin, expected) < 1e-6


def test_rows_and_columns_equal_the_uv_embedding():
    x = seeded("map", (1, 6, 9, 12))
    expected = np.array(add_uv_position(mx.array(x), (6, 9), 9 / 6))
    rows, columns = fold.fold_uv((6, 9), 12)
    assert (rows.shape, columns.shape) == ((1, 12, 6, 1), (1, 12, 1, 9))
    assert relative_error((x.transpose(0, 3, 1, 2) + rows + columns).transpose(0, 2, 3, 1), expected) < 1e-6


def test_convolutions_side_by_side_equal_both():
    first, second = (fold.Layer(seeded(name, (2, 3, 1, 1)), seeded(f"{name} bias", (2,))) for name in "ab")
    x, y = seeded("x", (3, 5)), seeded("y", (3, 5))
    both = fold.side_by_side(first, second)
    ours = both.weight[:, :, 0, 0] @ np.concatenate([x, y]) + both.bias[:, None]
    theirs = [layer.weight[:, :, 0, 0] @ z + layer.bias[:, None] for layer, z in ((first, x), (second, y))]
    assert relative_error(ours, np.concatenate(theirs)) < 1e-6


def test_scaled_epsilon_is_no_zero_in_float16():
    assert np.float16(fold.stream_eps(LAYER_NORM_EPS)) > 0
    assert np.float16(fold.stream_eps(LAYER_NORM_EPS) / 4) == 0  # one power of two more, and it would be


def _norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + LAYER_NORM_EPS * fold.STREAM_SCALE**2)


def _linear(layer, x):
    return x @ layer.weight.T.astype(np.float64) + layer.bias


def _heads(x):
    return x.reshape(9, 2, 32).transpose(1, 0, 2)
