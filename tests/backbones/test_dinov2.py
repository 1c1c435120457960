"""DINOv2 alone against transformers: every tapped layer, patch and class tokens, with and without registers."""

import mlx.core as mx
import numpy as np
import pytest
import reference
from support import relative_error

from mlx_depth.backbones import dinov2
from mlx_depth.backbones.dinov2 import DINOv2, DINOv2Config
from mlx_depth.weights import apply, check_complete, prefixed, to_mlx_layout

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
        original = {name: mx.array(value) for name, value in authors_names(state).items()}
        found = apply(prefixed(dinov2.ORIGINAL, "pretrained.", ""), original)
        assert found.keys() == expected.keys()
        assert all(mx.array_equal(found[name], expected[name]) for name in expected)


def authors_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A transformers backbone under the names of the authors' files, stated from upstream's ``dinov2.py``."""
    plain = {
        "embeddings.cls_token": "cls_token",
        "embeddings.mask_token": "mask_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm": "norm",
        "attention.o_proj": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "mlp.down_proj": "mlp.w3",
        "encoder.layer": "blocks",
    }
    fused = {
        "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        "mlp.w12": ("mlp.gate_proj", "mlp.up_proj"),
    }
    names: dict[str, np.ndarray] = {}
    for name, value in state.items():
        for joined, parts in fused.items():
            if parts[0] in name:
                name, value = (
                    name.replace(parts[0], joined),
                    np.concatenate([state[name.replace(parts[0], part)] for part in parts]),
                )
        if any(part in name for parts in fused.values() for part in parts[1:]):
            continue
        for theirs, original in plain.items():
            name = name.replace(theirs, original)
        names[f"pretrained.{name}"] = value
    return names
