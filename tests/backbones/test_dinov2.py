"""DINOv2 alone against transformers: every tapped layer, patch and class tokens, with and without registers."""

import mlx.core as mx
import numpy as np
import pytest
import reference
from support import relative_error

from mlx_depth.backbones import dinov2
from mlx_depth.backbones.dinov2 import DINOv2, DINOv2Config
from mlx_depth.weights.rules import apply, check_complete, to_mlx_layout

GATE = 1e-4
torch, transformers = reference.torch, reference.transformers


def upstream_backbone(registers: int, swiglu: bool):
    common = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "out_indices": [1, 3],
        "reshape_hidden_states": False,
        "use_swiglu_ffn": swiglu,
    }
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**common, num_register_tokens=registers)
        model = transformers.Dinov2WithRegistersBackbone(config)
    else:
        model = transformers.Dinov2Backbone(transformers.Dinov2Config(**common))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(reference.weight(name, tuple(parameter.shape))))
    return model.eval()


def our_backbone(upstream, **options) -> DINOv2:
    config = DINOv2Config(32, 3, 2, out_layers=(0, 2), table_size=4, **options)
    network = DINOv2(config)
    weights = apply(dinov2.TRANSFORMERS, reference.tensors(upstream.state_dict()))
    weights = to_mlx_layout(network, weights)
    check_complete(network, weights)
    network.load_weights(list(weights.items()))
    return network


@pytest.mark.parametrize("shape", [(1, 56, 56), (2, 70, 42), (1, 14, 98)])
@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("registers", [0, 4])
def test_every_tapped_layer(registers, swiglu, shape):
    upstream = upstream_backbone(registers, swiglu)
    rule = "antialias" if registers else "size"
    network = our_backbone(upstream, num_register_tokens=registers, swiglu=swiglu, position_rule=rule)
    pixel_values = reference.pixels(*shape)
    with torch.no_grad():
        expected = upstream(reference.nchw(pixel_values)).feature_maps
    found = network(mx.array(pixel_values))
    assert len(found) == len(expected) == 2
    for layer, feature_map in zip(found, expected, strict=True):
        assert relative_error(np.array(layer.cls_token), feature_map[:, 0].numpy()) <= GATE
        assert relative_error(np.array(layer.patch_tokens), feature_map[:, 1 + registers :].numpy()) <= GATE


def test_the_authors_names_give_the_same_weights():
    """The fused qkv and w12 of the authors' files, built here from transformers' parts, land in the same places."""
    for swiglu in (False, True):
        state = {name: value.numpy() for name, value in upstream_backbone(0, swiglu).state_dict().items()}
        expected = apply(dinov2.TRANSFORMERS, {name: mx.array(value) for name, value in state.items()})
        original = {name: mx.array(value) for name, value in reference.authors_backbone(state).items()}
        found = apply(dinov2.ORIGINAL, original)
        assert found.keys() == expected.keys()
        assert all(mx.array_equal(found[name], expected[name]) for name in expected)
