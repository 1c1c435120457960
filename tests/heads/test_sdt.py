"""The SDT head: DySample against torch, and the whole of it against what the authors' own code computed."""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

import authors_sdt
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from support import correlation, relative_error, require, seeded

from mlx_depth.backbones.dinov2 import LayerTokens
from mlx_depth.errors import CheckpointError
from mlx_depth.heads import sdt
from mlx_depth.heads.sdt import DySample, SDTConfig, SDTHead
from mlx_depth.linux_cpu import kernels
from mlx_depth.weights.rules import apply, check_complete, parameter_shapes, to_mlx_layout

GATE = 1e-4
GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "sdt.npz")
FACTS = json.loads(str(GOLDEN["facts"]))
CASES = tuple(FACTS["cases"])
ODD = "narrow"  # the case that the injected faults are tried on: 5 × 8 patches, a batch of 2
PARAMETERS = {384: 5_517_381, 768: 9_451_077, 1024: 13_384_261}  # the authors'; AnyDepth, table 1
# Seven norms are folded away, five of the convolutions before them get a bias; the starting positions are counted.
FOLDED = -7 * 2 * 256 + 5 * 256 + 4 * 32


@functools.cache
def head(case: str) -> SDTHead:
    facts = FACTS["cases"][case]
    network = SDTHead(SDTConfig(facts["in_dim"], facts["features"]))
    state = authors_sdt.state(FACTS["shapes"][case])
    weights = to_mlx_layout(network, apply(sdt.ORIGINAL, {name: mx.array(array) for name, array in state.items()}))
    check_complete(network, weights)
    network.load_weights(list(weights.items()))
    return network


def tokens(case: str) -> list[LayerTokens]:
    facts = FACTS["cases"][case]
    drawn = authors_sdt.features(case, facts["in_dim"], grid(case), facts["batch"])
    return [LayerTokens(mx.array(patches), mx.array(cls)) for patches, cls in drawn]


def grid(case: str) -> tuple[int, int]:
    gh, gw = FACTS["cases"][case]["grid_size"]
    return gh, gw


def error(case: str) -> float:
    """Of the depth, against the authors'."""
    depth = np.array(head(case)(tokens(case), grid(case)))
    return relative_error(depth[:, ::2, ::2], GOLDEN[f"{case}.depth"])


@pytest.mark.parametrize("case", CASES)
def test_depth_of_the_authors(case: str) -> None:
    gh, gw = grid(case)
    depth = head(case)(tokens(case), (gh, gw))
    assert (depth.shape, depth.dtype) == ((FACTS["cases"][case]["batch"], 16 * gh, 16 * gw), mx.float32)
    expected = GOLDEN[f"{case}.depth"]
    assert expected.std() > 0.1
    assert np.array(depth).min() >= np.float32(0.001)
    assert error(case) <= GATE


def test_least_depth_is_reached() -> None:
    """Else the last ReLU would be proved by no case."""
    assert 0.1 < (GOLDEN[f"{ODD}.depth"] == np.float32(0.001)).mean() < 0.5


@pytest.mark.parametrize("case", CASES)
def test_every_stage_of_the_authors(case: str) -> None:
    """Each fed what ours computed before it."""
    network = head(case)
    x = network.fuse(tokens(case), grid(case))
    stages = {"fused": x}
    for level in range(4):
        stages[f"doubled{level}"] = x = network.double(x, level)
    for stage, found in stages.items():
        step = int(GOLDEN[f"{case}.{stage}.step"])
        expected = GOLDEN[f"{case}.{stage}"]
        assert expected.std() > 0.1
        assert relative_error(np.array(found).ravel()[::step], expected) <= GATE, stage


@pytest.mark.parametrize("size", [(5, 7), (1, 4), (6, 1)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_dysample_equals_torch(groups: int, size: tuple[int, int]) -> None:
    sample, x = dysample(groups), seeded("dysample", (2, *size, 16))
    expected = torch_dysample(sample, x, groups)
    found = np.array(sample(mx.array(x), 0, 2 * size[0]))
    assert relative_error(found, expected) <= 1e-5
    for start, stop in ((0, 1), (1, 2 * size[0]), (2 * size[0] - 1, 2 * size[0])):
        some = np.array(sample(mx.array(x), start, stop))
        assert relative_error(some, expected[:, start:stop]) <= 1e-5


def dysample(groups: int) -> DySample:
    """With positions that move by a pixel and more."""
    sample = DySample(16, groups)
    for name, layer in (("offset", sample.offset), ("scope", sample.scope)):
        layer.weight = mx.array(seeded(name, layer.weight.shape, 0.8))
    sample.offset.bias = mx.array(seeded("bias", sample.offset.bias.shape))
    sample.init_pos = mx.array(authors_sdt.initial_positions(groups).reshape(sample.init_pos.shape))
    return sample


def torch_dysample(sample: DySample, x: np.ndarray, groups: int) -> np.ndarray:
    """In float64, by torch's shuffle and sampling."""
    torch = require("reference", "torch")
    B, H, W, C = x.shape
    maps = torch.from_numpy(x.astype(np.float64)).permute(0, 3, 1, 2)

    def layer(name: str) -> "torch.Tensor":
        weight = torch.from_numpy(np.array(sample[name].weight)).double().permute(0, 3, 1, 2)
        bias = torch.from_numpy(np.array(sample[name].bias)).double() if "bias" in sample[name] else None
        return torch.nn.functional.conv2d(maps, weight, bias)

    moved = layer("offset") * torch.sigmoid(layer("scope")) / 2 + torch.from_numpy(np.array(sample.init_pos))
    moved = torch.nn.functional.pixel_shuffle(moved, 2).reshape(B, 2, groups, 2 * H, 2 * W)
    pixels = torch.stack(torch.meshgrid(torch.arange(W), torch.arange(H), indexing="xy"))  # (across, down), H, W
    pixels = pixels.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    sides = torch.tensor([W, H])
    at = (2 * (moved + pixels + 0.5).permute(0, 2, 3, 4, 1) / sides - 1).flatten(0, 1)
    by_group = maps.reshape(B * groups, C // groups, H, W)
    sampled = torch.nn.functional.grid_sample(by_group, at, padding_mode="border", align_corners=False)
    return sampled.reshape(B, C, 2 * H, 2 * W).permute(0, 2, 3, 1).numpy()


def swap_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    positions = DySample._positions
    monkeypatch.setattr(DySample, "_positions", lambda self, x, first: positions(self, x, first)[::-1])


def leave_scope_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sigmoid = mx.sigmoid
    monkeypatch.setattr(mx, "sigmoid", lambda x: sigmoid(mx.zeros_like(x)))


def reverse_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    read = sdt.sample_bilinear
    monkeypatch.setattr(sdt, "sample_bilinear", lambda x, rows, columns: read(x, rows[..., ::-1], columns[..., ::-1]))


def align_corners(monkeypatch: pytest.MonkeyPatch) -> None:
    read = sdt.sample_bilinear

    def aligned(x: mx.array, rows: mx.array, columns: mx.array) -> mx.array:
        _, H, W, _ = x.shape
        return read(x, (rows + 0.5) * (H - 1) / H, (columns + 0.5) * (W - 1) / W)

    monkeypatch.setattr(sdt, "sample_bilinear", aligned)


def leave_softmax_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "softmax", lambda x: x)


def leave_class_token_out(monkeypatch: pytest.MonkeyPatch) -> None:
    project = sdt.TokenProjection.__call__
    monkeypatch.setattr(
        sdt.TokenProjection,
        "__call__",
        lambda self, layer: project(self, LayerTokens(layer.patch_tokens, mx.zeros_like(layer.cls_token))),
    )


@pytest.mark.parametrize(
    "fault", [swap_axes, leave_scope_out, reverse_groups, align_corners, leave_softmax_out, leave_class_token_out]
)
def test_a_fault_is_noticed(fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    assert error(ODD) <= GATE
    fault(monkeypatch)
    assert error(ODD) > 100 * GATE


@pytest.mark.parametrize("rows", [1, 3, 7, 64])
def test_strips_join_without_a_seam(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate is the rounding of products of other shapes, carried through all layers."""
    monkeypatch.setattr(sdt, "STRIPS", 1)
    whole = head(ODD)(tokens(ODD), grid(ODD))
    mx.eval(whole)
    monkeypatch.setattr(sdt, "STRIPS", 1000)
    monkeypatch.setattr(sdt, "MIN_STRIP_ROWS", rows)
    monkeypatch.setattr(kernels, "CACHE_BYTES", 1 << 12)
    assert relative_error(np.array(head(ODD)(tokens(ODD), grid(ODD))), np.array(whole)) <= 1e-5


def test_no_full_size_map_exists_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest that may is the one before the last doubling, a quarter of it: ``largest_map``."""
    network = SDTHead(SDTConfig(8, 64))
    gh, gw = grid_size = (16, 12)
    features = [LayerTokens(mx.zeros((1, gh * gw, 8)), mx.zeros((1, 8))) for _ in range(4)]
    mx.eval(network.parameters(), features)
    assert network.largest_map(grid_size) == 8 * gh * 8 * gw * 64
    monkeypatch.setattr(sdt, "STRIPS", 1000)
    monkeypatch.setattr(sdt, "MIN_STRIP_ROWS", 8)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(network(features, grid_size))
    assert mx.get_peak_memory() - before < 16 * gh * 16 * gw * 64 * 4


def test_half_precision() -> None:
    network = SDTHead(head(ODD)._config)
    network.update(tree_map(lambda array: array.astype(mx.float16), head(ODD).parameters()))
    layers = [LayerTokens(*(array.astype(mx.float16) for array in layer)) for layer in tokens(ODD)]
    depth = network(layers, grid(ODD))
    assert depth.dtype == mx.float32
    assert network.double(network.fuse(layers, grid(ODD)), 0).dtype == mx.float16
    assert correlation(np.array(depth)[:, ::2, ::2], GOLDEN[f"{ODD}.depth"]) >= 0.9999


@pytest.mark.parametrize("width", sorted(PARAMETERS))
def test_published_sizes(width: int) -> None:
    """Every tensor of the authors' finds its place, and none is left; nothing is evaluated."""
    published = FACTS["published"][str(width)]
    shapes = {name: tuple(shape) for name, shape in published["shapes"].items()}
    theirs = {name: shape for name, shape in shapes.items() if name.rpartition(".")[2] not in authors_sdt.BUFFERS}
    assert sum(map(math.prod, theirs.values())) == published["parameters"] == PARAMETERS[width]
    network = SDTHead(SDTConfig(width))
    weights = to_mlx_layout(network, apply(sdt.ORIGINAL, {name: mx.zeros(shape) for name, shape in shapes.items()}))
    check_complete(network, weights)
    assert sum(map(math.prod, parameter_shapes(network).values())) == PARAMETERS[width] + FOLDED


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_dim": 0}, "in_dim is 0"),
        ({"patch_size": 14}, "doubles its map 4 times, so patch_size is 16, not 14"),
        ({"features": 258}, "share them among 4 groups"),
        ({"features": 1, "groups": 1}, "cannot halve 1 features"),
        ({"least_depth": -1.0}, "least_depth is -1.0"),
        ({"least_depth": math.nan}, "least_depth is nan"),
    ],
)
def test_configs_that_cannot_work(options: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        SDTConfig(**{"in_dim": 8, **options})
