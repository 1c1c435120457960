"""The head for 3D Gaussians, fed the same tokens and pixels, against Depth Anything 3's own."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import reference
from da3 import import_reference, torch
from mlx.utils import tree_map
from support import relative_error, seeded

from mlx_depth.errors import CheckpointError
from mlx_depth.heads import dpt, gaussian_dpt
from mlx_depth.heads.gaussian_dpt import ORIGINAL, GaussianDPTConfig, GaussianDPTHead, GaussianMaps
from mlx_depth.weights.rules import apply, check_complete, to_mlx_layout

GATE = 1e-4
TINY = GaussianDPTConfig(in_dim=32, features=16, out_channels=(8, 16, 24, 32))
GIANT = GaussianDPTConfig(in_dim=3072, features=256, out_channels=(256, 512, 1024, 1024))


@pytest.fixture(scope="module")
def heads():
    """The authors' head, every parameter filled from its name, and ours with its weights."""
    upstream = import_reference("model.gsdpt").GSDPT(
        TINY.in_dim, output_dim=TINY.raw_channels + 1, features=TINY.features, out_channels=TINY.out_channels
    )
    with torch.no_grad():
        for name, parameter in upstream.named_parameters():
            parameter.copy_(torch.from_numpy(reference.weight(name, tuple(parameter.shape))))
    return upstream, with_weights(GaussianDPTHead(TINY), upstream)


def with_weights(head: GaussianDPTHead, upstream) -> GaussianDPTHead:
    weights = to_mlx_layout(head, apply(ORIGINAL, reference.tensors(upstream.state_dict())))
    check_complete(head, weights)
    head.load_weights(list(weights.items()))
    return head


def inputs(B: int, V: int, grid: tuple[int, int]) -> tuple[list[np.ndarray], np.ndarray]:
    gh, gw = grid
    tokens = [seeded(f"tokens{i}", (B, V, gh * gw, TINY.in_dim)) for i in range(4)]
    return tokens, reference.pixels(B * V, gh * 14, gw * 14).reshape(B, V, gh * 14, gw * 14, 3)


def expected(upstream, tokens: list[np.ndarray], pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B, V, H, W, 37) and (B, V, H, W)."""
    H, W = pixels.shape[2:4]
    feats = [(torch.from_numpy(x),) for x in tokens]
    with torch.no_grad():
        images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 1, 4, 2, 3)))
        maps = upstream(feats=feats, H=H, W=W, patch_start_idx=0, images=images)
    assert maps.raw_gs.std(dim=(0, 1, 2, 3)).min() > 0.01, "a reference that hardly varies proves nothing"
    return maps.raw_gs.numpy(), maps.raw_gs_conf.numpy()


def run(head: GaussianDPTHead, tokens: list[np.ndarray], pixels: np.ndarray) -> GaussianMaps:
    H, W = pixels.shape[2:4]
    flat = [mx.array(x.reshape(-1, *x.shape[2:])) for x in tokens]
    maps = head(flat, mx.array(pixels.reshape(-1, H, W, 3)), (H // 14, W // 14))
    return GaussianMaps(*(x.reshape(*pixels.shape[:2], *x.shape[1:]) for x in maps))


def errors(heads, B: int, V: int, grid: tuple[int, int]) -> tuple[float, float]:
    upstream, head = heads
    given = inputs(B, V, grid)
    return tuple(
        relative_error(np.array(found), theirs)
        for found, theirs in zip(run(head, *given), expected(upstream, *given), strict=True)
    )


@pytest.mark.parametrize(("B", "V", "grid"), [(1, 2, (5, 7)), (1, 2, (9, 3)), (2, 2, (3, 5)), (1, 1, (1, 1))])
def test_numbers_of_every_gaussian(heads, B, V, grid):
    assert max(errors(heads, B, V, grid)) <= GATE


@pytest.mark.parametrize("rows", [1, 2, 5, 41])
def test_strips_of_any_height(heads, rows, monkeypatch):
    monkeypatch.setattr(dpt, "STRIP_ROWS", rows)
    assert max(errors(heads, 1, 2, (3, 5))) <= GATE


def test_half_precision(heads):
    upstream, head = heads
    half = GaussianDPTHead(TINY)
    half.update(tree_map(lambda x: x.astype(mx.float16), head.parameters()))
    given = inputs(1, 2, (5, 7))
    found = run(half, [x.astype(np.float16) for x in given[0]], given[1].astype(np.float16))
    for ours, theirs in zip(found, expected(upstream, *given), strict=True):
        assert ours.dtype == mx.float32
        assert relative_error(np.array(ours), theirs) <= 0.02


def test_every_tensor_of_the_giant_has_its_place():
    cfg, registry = import_reference("cfg"), import_reference("registry")
    with torch.device("meta"):
        upstream = cfg.create_object(cfg.load_config(registry.MODEL_REGISTRY["da3-giant"]).gs_head)
    with_weights(GaussianDPTHead(GIANT), upstream)


def plain_position(x: mx.array, size: tuple[int, int], aspect: float, *, start: int = 0) -> mx.array:
    return x


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (gaussian_dpt, "add_uv_position", plain_position),
        (gaussian_dpt, "_IMAGE_REACH", 2),
        (gaussian_dpt.ops, "gelu", nn.gelu_fast_approx),
    ],
)
def test_a_drift_fails_the_gate(heads, place, name, value, monkeypatch):
    monkeypatch.setattr(dpt, "STRIP_ROWS", 5)
    monkeypatch.setattr(place, name, value)
    assert min(errors(heads, 1, 2, (3, 5))) > GATE


@pytest.mark.parametrize(
    "sizes", [{"features": 20}, {"features": 1}, {"out_channels": (8, 16, 24, 30)}, {"out_channels": (8, 16, 24)}]
)
def test_sizes_that_do_not_fit(sizes):
    with pytest.raises(CheckpointError, match="multiples of 4"):
        GaussianDPTConfig(**{"in_dim": 32, "features": 16, "out_channels": (8, 16, 24, 32), **sizes})
