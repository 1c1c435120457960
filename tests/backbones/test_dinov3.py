"""DINOv3 alone against transformers: every layer of tiny networks and of ViT-S, and both ways of naming tensors."""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
import reference
import reference_dinov3 as upstreams
from mlx.utils import tree_flatten
from support import relative_error

from mlx_depth.backbones import dinov3
from mlx_depth.backbones.dinov3 import DINOv3, DINOv3Config
from mlx_depth.errors import CheckpointError
from mlx_depth.nn import rope
from mlx_depth.nn.rope import Rotation
from mlx_depth.weights.rules import apply, check_complete, parameter_shapes, to_mlx_layout
from mlx_depth.weights.safetensors_io import read_json, read_tensors

GATE, TINY_GATE = 1e-4, 1e-5
torch = reference.torch
TINY = DINOv3Config(32, 3, 2, 48, out_layers=(0, 1, 2), normalized=False)
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
VARIANTS = {
    "plain": ({}, {}),
    "swiglu": (GATED, {"swiglu": True}),
    "no bias": ({**GATED, "query_bias": False, "value_bias": False}, {"swiglu": True, "qkv_bias": False}),
    "bias of keys": ({"key_bias": True}, {"key_bias": True}),
    "no registers": ({"num_register_tokens": 0}, {"num_register_tokens": 0}),
    "another theta and eps": ({"rope_theta": 30.0, "layer_norm_eps": 1e-3}, {"rope_theta": 30.0, "norm_eps": 1e-3}),
}


def load(config: DINOv3Config, rules, tensors) -> DINOv3:
    network = DINOv3(config)
    weights = to_mlx_layout(network, apply(rules, tensors))
    check_complete(network, weights)
    network.load_weights(list(weights.items()))
    return network


def our_backbone(config: DINOv3Config, upstream) -> DINOv3:
    tensors = reference.tensors({name: value for name, value in upstream.state_dict().items() if value.numel()})
    return load(config, dinov3.TRANSFORMERS_SWIGLU if config.swiglu else dinov3.TRANSFORMERS, tensors)


def worst_error(network: DINOv3, pixel_values: np.ndarray, expected) -> float:
    """Over all tapped layers and both kinds of tokens; expected: ``(B, 1 + registers + gh * gw, C)`` of each."""
    found = network(mx.array(pixel_values))
    lead = 1 + network._config.num_register_tokens
    assert len(found) == len(expected)
    pairs = [(layer.patch_tokens, tokens[:, lead:]) for layer, tokens in zip(found, expected, strict=True)]
    pairs += [(layer.cls_token, tokens[:, 0]) for layer, tokens in zip(found, expected, strict=True)]
    return max(relative_error(np.array(ours), theirs.numpy()) for ours, theirs in pairs)


@pytest.mark.parametrize("shape", [(1, 64, 48), (2, 80, 32), (1, 16, 112)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layer(variant, shape):
    options, ours = VARIANTS[variant]
    upstream = upstreams.model(**options)
    network = our_backbone(replace(TINY, **ours), upstream)
    pixel_values = reference.pixels(*shape)
    assert worst_error(network, pixel_values, upstreams.layers(upstream, pixel_values)) <= TINY_GATE


@pytest.mark.parametrize("gated", [False, True])
def test_a_saved_backbone(gated, tmp_path):
    """config.json and safetensors as transformers writes them: names of files, tapped layers, the last norm."""
    config = upstreams.config(out_indices=[1, 3], reshape_hidden_states=False, **(GATED if gated else {}))
    config.return_class_token = True
    upstream = upstreams.fill(reference.transformers.DINOv3ViTBackbone(config))
    upstream.save_pretrained(tmp_path)
    tensors = read_tensors(tmp_path)
    assert "layer.0.attention.q_proj.weight" in tensors, "the names of files, not those in memory"
    config = dinov3.read_transformers_config(read_json(tmp_path / "config.json"))
    assert config == replace(TINY, out_layers=(0, 2), swiglu=gated, normalized=True)
    network = load(config, dinov3.TRANSFORMERS_SWIGLU if gated else dinov3.TRANSFORMERS, tensors)
    pixel_values = reference.pixels(2, 48, 80)
    with torch.no_grad():
        expected = upstream(reference.nchw(pixel_values))
    found = network(mx.array(pixel_values))
    assert len(found) == len(expected.feature_maps) == 2
    for layer, patches, cls_token in zip(found, expected.feature_maps, expected.cls_tokens, strict=True):
        assert relative_error(np.array(layer.patch_tokens), patches.numpy()) <= TINY_GATE
        assert relative_error(np.array(layer.cls_token), cls_token.numpy()) <= TINY_GATE


@pytest.mark.parametrize("gated", [False, True])
def test_half_precision(gated):
    """float16 keeps close to float32: nothing overflows, and angles stay float32."""
    config = replace(TINY, swiglu=gated)
    half, wide = (our_backbone(config, upstreams.model(**(GATED if gated else {}))) for _ in range(2))
    half.set_dtype(mx.float16)
    pixel_values = mx.array(reference.pixels(1, 64, 96))
    for found, expected in zip(half(pixel_values.astype(mx.float16)), wide(pixel_values), strict=True):
        assert found.patch_tokens.dtype == found.cls_token.dtype == mx.float16
        assert relative_error(np.array(found.patch_tokens), np.array(expected.patch_tokens)) <= 5e-3
        assert relative_error(np.array(found.cls_token), np.array(expected.cls_token)) <= 5e-3


# ViT-S at full size

SHAPE = (1, 256, 320)


@pytest.fixture(scope="module")
def small():
    """Upstream's ViT-S, its tokens after each layer, and ours."""
    upstream = upstreams.model("small")
    config = dinov3.dinov3_config("small", out_layers=tuple(range(12)), normalized=False)
    return upstream, upstreams.layers(upstream, reference.pixels(*SHAPE)), our_backbone(config, upstream)


@pytest.mark.parametrize("shape", [SHAPE, (1, 512, 512)])
def test_every_layer_of_small(small, shape):
    upstream, expected, network = small
    pixel_values = reference.pixels(*shape)
    expected = expected if shape == SHAPE else upstreams.layers(upstream, pixel_values)
    assert worst_error(network, pixel_values, expected) <= GATE


def test_normalized_layers_of_small(small):
    upstream, expected, _ = small
    config = dinov3.dinov3_config("small", out_layers=dinov3.spread_layers(12))
    assert config.out_layers == (2, 5, 8, 11)
    with torch.no_grad():
        expected = [upstream.norm(expected[layer]) for layer in config.out_layers]
    assert worst_error(our_backbone(config, upstream), reference.pixels(*SHAPE), expected) <= GATE


def _rows_for_columns(grid_size, periods, leading):
    halves = [np.split(np.array(table), 4, axis=2) for table in rope.centered_rotation(grid_size, periods, leading)]
    return Rotation(*(mx.array(np.concatenate([b, a, d, c], axis=2)) for a, b, c, d in halves))


def _registers_turn(grid_size, periods, leading):
    """The first patch's angle for the token behind the class token, and so on."""
    return Rotation(
        *(mx.roll(table, 1 - leading, axis=0) for table in rope.centered_rotation(grid_size, periods, leading))
    )


def _pairs_as_depth_anything_3(grid_size, periods, leading):
    tables = rope.centered_rotation(grid_size, periods, leading)
    return Rotation(*(table.reshape(len(table), 2, -1) for table in tables))


def _corners_at_one(grid_size, periods, leading):
    """Centers of the outermost patches at -1 and 1."""
    rows, columns = (mx.linspace(-1, 1, n) for n in grid_size)
    places = mx.stack(mx.meshgrid(rows, columns, indexing="ij"), axis=-1).flatten(0, 1)
    angles = mx.pad((2 * np.pi * places[:, :, None] / periods).flatten(1, 2), [(leading, 0), (0, 0)])
    angles = mx.concatenate([angles, angles], axis=-1)[:, None]
    return Rotation(mx.cos(angles), mx.sin(angles))


def _one_scale_for_both_sides(grid_size, periods, leading):
    """The longer side alone goes from -1 to 1."""
    side = max(grid_size)
    full = rope.centered_rotation((side, side), periods, 0)
    gh, gw = grid_size
    top, left = (side - gh) // 2, (side - gw) // 2
    still = rope.centered_rotation((1, 1), periods, leading)
    inner = [table.reshape(side, side, *table.shape[1:])[top : top + gh, left : left + gw] for table in full]
    return Rotation(*(mx.concatenate([a[:leading], b.flatten(0, 1)]) for a, b in zip(still, inner, strict=True)))


def _rounded_periods(grid_size, periods, leading):
    return rope.centered_rotation(grid_size, periods.astype(mx.bfloat16), leading)


DRIFTS = [
    _rows_for_columns,
    _registers_turn,
    _pairs_as_depth_anything_3,
    _corners_at_one,
    _one_scale_for_both_sides,
    _rounded_periods,
]


@pytest.mark.parametrize("drift", DRIFTS)
def test_drifting_rotations_fail_the_gate(drift, small, monkeypatch):
    upstream, expected, _ = small
    monkeypatch.setattr(dinov3, "centered_rotation", drift)
    network = our_backbone(dinov3.dinov3_config("small", out_layers=(0, 1), normalized=False), upstream)
    assert worst_error(network, reference.pixels(*SHAPE), expected[:2]) > GATE


def test_a_drifting_bias_of_keys_fails_the_gate(small):
    """Unlike where keys do not turn, it is no constant that the softmax takes away."""
    upstream, expected, _ = small
    config = replace(dinov3.dinov3_config("small", out_layers=(0, 1), normalized=False), key_bias=True)
    network = DINOv3(config)
    plain = our_backbone(replace(config, key_bias=False), upstream)
    network.load_weights(tree_flatten(plain.parameters()), strict=False)
    for block in network.blocks:
        block.attn.key_proj.bias = block.attn.query_proj.bias
    assert worst_error(network, reference.pixels(*SHAPE), expected[:2]) > GATE


# Names

COUNTS = {  # parameters of upstream's module tree
    "small": 21_596_544,
    "small-plus": 28_692_864,
    "base": 85_660_416,
    "large": 303_129_600,
    "huge-plus": 840_592_640,
    "7b": 6_716_035_072,
}


@pytest.mark.parametrize("size", dinov3.SIZES)
def test_every_tensor_of_upstream_has_its_place_at_full_size(size):
    """Lazy arrays: the 6.7 B parameters of the largest cost nothing."""
    upstream = upstreams.meta_model(size)
    assert sum(parameter.numel() for parameter in upstream.parameters()) == COUNTS[size]
    config = dinov3.dinov3_config(size)
    assert dinov3.read_transformers_config(upstream.config.to_dict()) == config
    network = DINOv3(config)
    rules = dinov3.TRANSFORMERS_SWIGLU if config.swiglu else dinov3.TRANSFORMERS
    state = reference.tensors(upstream.state_dict())
    for tensors in (state, upstreams.hub_names(state)):
        check_complete(network, to_mlx_layout(network, apply(rules, tensors)))
    ours = sum(np.prod(shape) for shape in parameter_shapes(network).values())
    assert COUNTS[size] - ours == config.embed_dim, "the mask token is all that our network lacks"


@pytest.mark.parametrize("size", dinov3.SIZES)
def test_every_tensor_of_the_authors_has_its_place_at_full_size(size):
    shapes = authors_shapes(size)
    config = dinov3.config_from_shapes(shapes)
    assert config == replace(dinov3.dinov3_config(size), stored_periods=True)
    network = DINOv3(config)
    tensors = {name: mx.zeros(shape) for name, shape in shapes.items()}
    tensors |= {f"local_cls_norm.{name}": mx.zeros((config.embed_dim,)) for name in ("weight", "bias")}
    check_complete(network, to_mlx_layout(network, apply(dinov3.ORIGINAL, tensors)))


def authors_shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Stated from the authors' modules."""
    C, layers, heads, hidden = (upstreams.PUBLISHED[size][key] for key in upstreams._WIDTHS)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, C),
        "storage_tokens": (1, 4, C),
        "mask_token": (1, C),
        "patch_embed.proj.weight": (C, 3, 16, 16),
        "patch_embed.proj.bias": (C,),
        "rope_embed.periods": (C // heads // 4,),
        "norm.weight": (C,),
        "norm.bias": (C,),
    }
    block = {"attn.qkv.weight": (3 * C, C), "attn.proj.weight": (C, C), "attn.proj.bias": (C,)}
    block |= {f"{name}.{kind}": (C,) for name in ("norm1", "norm2") for kind in ("weight", "bias")}
    block |= {"ls1.gamma": (C,), "ls2.gamma": (C,)}
    if size != "7b":
        block |= {"attn.qkv.bias": (3 * C,), "attn.qkv.bias_mask": (3 * C,)}
    wide, narrow = (("w1", "w2"), "w3") if size in ("small-plus", "huge-plus", "7b") else (("fc1",), "fc2")
    block |= {f"mlp.{name}.weight": (hidden, C) for name in wide} | {f"mlp.{name}.bias": (hidden,) for name in wide}
    block |= {f"mlp.{narrow}.weight": (C, hidden), f"mlp.{narrow}.bias": (C,)}
    return shapes | {f"blocks.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}


PERIODS = np.array(mx.array(100.0 ** (np.arange(4) / 4)).astype(mx.bfloat16).astype(mx.float32))


def authors_tensors(upstream, **options) -> dict[str, mx.array]:
    state = {name: value.numpy() for name, value in upstream.state_dict().items()}
    return {name: mx.array(value) for name, value in upstreams.authors_names(state, PERIODS, **options).items()}


@pytest.mark.parametrize("gated", [False, True])
def test_the_authors_names_give_the_same_network(gated):
    """Fused projections, a mask that hides the bias of keys, and the rounded periods of rotation that files hold."""
    upstream = upstreams.model(**(GATED if gated else {}))
    network = load(replace(TINY, swiglu=gated, stored_periods=True), dinov3.ORIGINAL, authors_tensors(upstream))
    pixel_values = reference.pixels(2, 64, 48)
    exact = upstream.rope_embeddings.inv_freq.clone()
    upstream.rope_embeddings.inv_freq.copy_(torch.from_numpy(1 / PERIODS))
    expected = upstreams.layers(upstream, pixel_values)
    upstream.rope_embeddings.inv_freq.copy_(exact)
    assert worst_error(network, pixel_values, expected) <= TINY_GATE


def test_the_published_mask_hides_all_biases():
    found = apply(dinov3.ORIGINAL, authors_tensors(upstreams.model(), mask=(0, 0, 0)))
    assert not any("key_proj.bias" in name for name in found)
    for name in ("query_proj", "value_proj"):
        assert (found[f"blocks.0.attn.{name}.bias"] == 0).all()
        assert (found[f"blocks.0.attn.{name}.weight"] != 0).any()


@pytest.mark.parametrize("mask", [(1, 1, 1), (np.nan, np.nan, np.nan), None])
def test_a_bias_of_keys_is_not_lost(mask):
    tensors = authors_tensors(upstreams.model(), mask=mask or (1, 1, 1))
    if mask is None:
        tensors = {name: value for name, value in tensors.items() if "bias_mask" not in name}
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn\.qkv\.bias: part 2 of 3 is not zero"):
        apply(dinov3.ORIGINAL, tensors)


def test_a_gated_file_does_not_pass_for_a_plain_one():
    tensors = reference.tensors(upstreams.model(**GATED).state_dict())
    with pytest.raises(CheckpointError, match=r"does not know: model\.layer\.0\.mlp\.gate_proj\.weight"):
        apply(dinov3.TRANSFORMERS, tensors)


# Configs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "silu"}, "only 'gelu' is supported as hidden_act where use_gated_mlp is false"),
        ({"use_gated_mlp": True}, "only 'silu' is supported as hidden_act where use_gated_mlp is true"),
        ({"value_bias": False}, "query_bias only together with value_bias"),
        ({"query_bias": 1}, "query_bias is neither true nor false"),
        ({"rope_theta": "100"}, "rope_theta is no number"),
        ({"rope_theta": 1}, "rope_theta is 1.0, not a number above 1"),
        ({"rope_theta": float("nan")}, "rope_theta is nan, not a number above 1"),
        ({"rope_theta": float("inf")}, "rope_theta is inf, not a number above 1"),
        ({"layer_norm_eps": 0}, "norm_eps is 0.0, not between 0 and 1"),
        ({"apply_layernorm": False}, "apply_layernorm is False, and only True is supported"),
        ({"proj_bias": False}, "proj_bias is False, and only True is supported"),
        ({"model_type": "dinov2"}, "model_type is 'dinov2', and only 'dinov3_vit' is supported"),
        ({"rope_scaling": 2}, "does not know: rope_scaling"),
        ({"patch_size": [16, 16]}, r"patch_size is \[16, 16\], not a whole number"),
        ({"num_register_tokens": -1}, "num_register_tokens is -1, not made of whole numbers from 0"),
        ({"num_attention_heads": 7}, "7 heads cannot share an embed_dim of 384"),
        ({"num_attention_heads": 64}, "heads of 6 channels cannot turn by row and column"),
        ({"out_indices": [12, 13]}, "do not name the same layers of 12"),
        ({"out_indices": [0]}, "do not name the same layers of 12"),
        ({"out_indices": 3}, "do not name the same layers of 12"),
        ({"out_indices": [3]}, r"out_indices \[3\] and out_features \['stage12'\] do not name the same"),
        ({"out_indices": None}, r"out_indices None and out_features \['stage12'\] do not name the same"),
        ({"out_indices": [6, 3], "out_features": None}, r"out_layers \(zero-based\) are \(5, 2\), not rising"),
    ],
)
def test_what_a_config_may_not_say(change, message):
    data = json.loads(upstreams.config("small").to_json_string(use_diff=False))
    with pytest.raises(CheckpointError, match=message):
        dinov3.read_transformers_config({**data, **change})


def test_layers_that_a_config_names():
    data = {"model_type": "dinov3_vit", "num_register_tokens": 4}  # transformers' defaults are those of ViT-S
    assert dinov3.read_transformers_config(data) == dinov3.dinov3_config("small")
    named = {**data, "out_indices": [3, 6]}
    assert dinov3.read_transformers_config(named).out_layers == (2, 5)
    assert dinov3.read_transformers_config({**named, "out_features": ["stage3", "stage6"]}).out_layers == (2, 5)
    found = dinov3.read_transformers_config(named, out_layers=(1,), normalized=False)
    assert (found.out_layers, found.normalized) == ((1,), False)


def test_layers_at_even_intervals():
    assert [dinov3.spread_layers(count) for count in (12, 24, 32, 40)] == [
        (2, 5, 8, 11),
        (4, 11, 17, 23),
        (7, 15, 23, 31),
        (9, 19, 29, 39),
    ]


def test_shapes_that_nobody_published():
    shapes = authors_shapes("small")
    fewer = {name: shape for name, shape in shapes.items() if not name.startswith("blocks.11.")}
    with pytest.raises(CheckpointError, match="no published DINOv3 has 11 layers of width 384 with plain feed-forward"):
        dinov3.config_from_shapes(fewer)
    with pytest.raises(CheckpointError, match=r"lacks patch_embed\.proj\.weight, blocks\.0\.mlp\.fc1\.weight"):
        dinov3.config_from_shapes({"norm.weight": (384,)})
    bare = {name: shape for name, shape in shapes.items() if "bias" not in name and "periods" not in name}
    del bare["storage_tokens"]
    found = dinov3.config_from_shapes(bare, out_layers=(2, 5), normalized=False)
    expected = dinov3.dinov3_config("small", out_layers=(2, 5), normalized=False)
    assert found == replace(expected, qkv_bias=False, num_register_tokens=0)


def test_rotations_are_shared_by_images_of_a_size():
    network = DINOv3(replace(TINY, stored_periods=True))
    network.rope_periods = mx.array(PERIODS)
    first = network.shared((3, 2))
    assert all(a is b for a, b in zip(first, network.shared((3, 2)), strict=True))
    assert [table.shape for table in first] == [(5 + 6, 1, 16)] * 2
    network.rope_periods = mx.array(2 * PERIODS)
    assert not mx.allclose(network.shared((3, 2))[1], first[1]), "new weights, new rotations"
