"""The DPT head alone, fed reference features, against transformers: every map on the way and the depth."""

import mlx.core as mx
import numpy as np
import pytest
import reference
from support import relative_error, seeded

from mlx_depth.heads import dpt
from mlx_depth.heads.dpt import DPTConfig, DPTHead
from mlx_depth.weights.rules import apply, check_complete, to_mlx_layout

GATE = 1e-4
torch = reference.torch


def our_head(upstream, max_depth) -> DPTHead:
    config = DPTConfig(
        32, 16, (8, 16, 24, 32), activation="sigmoid" if max_depth else "relu", max_depth=float(max_depth or 1)
    )
    network = DPTHead(config)
    state = {name: value for name, value in upstream.state_dict().items() if not name.startswith("backbone.")}
    weights = to_mlx_layout(network, apply(dpt.TRANSFORMERS, reference.tensors(state)))
    check_complete(network, weights)
    network.load_weights(list(weights.items()))
    return network


@pytest.mark.parametrize("max_depth", [None, 20, 80])
@pytest.mark.parametrize("grid", [(5, 7), (7, 5), (1, 1), (2, 1), (13, 4)])
def test_depth_from_reference_features(grid, max_depth):
    upstream = reference.model("tiny", max_depth=max_depth)
    gh, gw = grid
    features = [seeded(f"features{i}", (2, 1 + gh * gw, 32)) for i in range(4)]
    with torch.no_grad():
        fused = upstream.neck([torch.from_numpy(f) for f in features], gh, gw)
        expected = upstream.head(fused, gh, gw).numpy()
    network = our_head(upstream, max_depth)
    patch_tokens = [mx.array(f[:, 1:]) for f in features]
    maps = [
        reassemble(tokens.reshape(2, gh, gw, 32))
        for reassemble, tokens in zip(network.reassemble, patch_tokens, strict=True)
    ]
    assert relative_error(nchw(network.fuse(maps)), fused[-1].numpy()) <= GATE
    found = np.array(network(patch_tokens, grid))
    assert found.shape == (2, gh * 14, gw * 14)
    assert expected.std() > 0
    assert relative_error(found, expected) <= GATE


def test_every_reassembled_map():
    upstream = reference.model("tiny")
    network = our_head(upstream, None)
    features = [seeded(f"features{i}", (1, 1 + 5 * 7, 32)) for i in range(4)]
    with torch.no_grad():
        maps = upstream.neck.reassemble_stage([torch.from_numpy(f) for f in features], 5, 7)
        expected = [conv(x).numpy() for conv, x in zip(upstream.neck.convs, maps, strict=True)]
    for reassemble, tokens, theirs in zip(network.reassemble, features, expected, strict=True):
        ours = reassemble(mx.array(tokens[:, 1:]).reshape(1, 5, 7, 32))
        assert relative_error(nchw(ours), theirs) <= GATE


def nchw(x: mx.array) -> np.ndarray:
    return np.array(x).transpose(0, 3, 1, 2)
