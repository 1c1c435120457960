"""Whole Depth Anything networks against transformers and against the authors' rules, from the same pixels."""

import dataclasses
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import reference
from mlx.utils import tree_flatten
from mlx_depth_convert.recorder import recording
from support import correlation, relative_error

import mlx_depth
from mlx_depth import CheckpointError, DepthKind, OptionError
from mlx_depth.checkpoints.checkpoint import build_network, read_checkpoint
from mlx_depth.models.base import Evidence
from mlx_depth.models.depth_anything.network import DepthAnything, depth_anything_config

GATE = 1e-4  # relative error, float32, from the same pixels
CORRELATION = 0.99999

TINY = [
    pytest.param({"size": "tiny"}, (1, 70, 98), id="v2-70x98"),
    pytest.param({"size": "tiny"}, (3, 98, 70), id="v2-batch-of-3"),
    pytest.param({"size": "tiny"}, (1, 518, 518), id="v2-table-size"),
    pytest.param({"size": "tiny"}, (1, 14, 14), id="v2-one-patch"),
    pytest.param({"size": "tiny"}, (1, 14, 126), id="v2-one-row"),
    pytest.param({"size": "tiny"}, (1, 1036, 602), id="v2-1036x602"),
    pytest.param({"size": "tiny", "version": 1}, (2, 56, 112), id="v1"),
    pytest.param({"size": "tiny", "max_depth": 20}, (3, 70, 98), id="metric-indoor"),
    pytest.param({"size": "tiny", "max_depth": 80}, (1, 98, 70), id="metric-outdoor"),
    pytest.param({"size": "tiny", "swiglu": True}, (1, 70, 98), id="swiglu"),
]
FULL = [
    pytest.param({"max_depth": 20}, (1, 196, 252), id="metric-196x252"),
    pytest.param({"max_depth": 80}, (3, 70, 98), id="metric-70x98-batch-of-3"),
    # Last, as the tests after these take the same model again.
    pytest.param({}, (1, 518, 518), id="518x518"),
    pytest.param({}, (1, 392, 518), id="392x518"),
    pytest.param({}, (3, 70, 98), id="70x98-batch-of-3"),
]


def ours(options: dict, folder: Path, reference_name: str = "transformers") -> DepthAnything:
    """The upstream model of these options, saved as on the Hub and loaded by us."""
    reference.save(reference.model(**options), folder)
    return mlx_depth.load(folder, dtype="float32", reference=reference_name).network


def depth_of(network: DepthAnything, pixel_values: np.ndarray) -> np.ndarray:
    return np.array(network(mx.array(pixel_values)).depth)


def assert_equal(found: np.ndarray, expected: np.ndarray) -> None:
    assert relative_error(found, expected) <= GATE
    assert correlation(found, expected) >= CORRELATION


@pytest.mark.parametrize(("options", "shape"), TINY)
def test_tiny_equals_transformers(options, shape, tmp_path):
    network = ours(options, tmp_path)
    pixel_values = reference.pixels(*shape)
    assert_equal(depth_of(network, pixel_values), reference.run(reference.model(**options), pixel_values))


@pytest.mark.parametrize(("options", "shape"), FULL)
def test_full_small_equals_transformers(options, shape, tmp_path):
    options = {"size": "small", **options}
    network = ours(options, tmp_path)
    pixel_values = reference.pixels(*shape)
    assert_equal(depth_of(network, pixel_values), reference.run(reference.model(**options), pixel_values))


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_the_authors_position_rule(size, tmp_path):
    network = ours({"size": size}, tmp_path, "original")
    pixel_values = reference.pixels(1, 154, 210)
    upstream = reference.model(size)
    other_rule = reference.run(upstream, pixel_values)
    try:
        expected = reference.run(reference.with_authors_positions(upstream), pixel_values)
    finally:
        reference.without_authors_positions(upstream)
    assert relative_error(expected, other_rule) > GATE, "the two rules differ, so the test can tell them apart"
    assert_equal(depth_of(network, pixel_values), expected)


DRIFTS = {
    "layer-scale-dropped": ("backbone.blocks.1.layer_scale1.gamma", mx.ones_like),
    "query-and-key-swapped": ("backbone.blocks.0.attn.query_proj.weight", lambda w: -w),
    "position-table-transposed": (
        "backbone.pos_embed",
        lambda table: mx.concatenate(
            [table[:, :1], table[:, 1:].reshape(1, 37, 37, -1).swapaxes(1, 2).reshape(1, 37 * 37, -1)], axis=1
        ),
    ),
    "one-tap-of-one-convolution": ("head.conv1.weight", lambda w: w.at[0, 0, 0, 0].add(0.05)),
    "a-bias-of-one-percent": ("backbone.norm.bias", lambda b: b + 0.01),
}


@pytest.mark.parametrize("name", DRIFTS)
def test_an_injected_drift_fails_the_gate(name, tmp_path):
    network = ours({"size": "tiny"}, tmp_path)
    pixel_values = reference.pixels(1, 70, 98)
    expected = reference.run(reference.model("tiny"), pixel_values)
    path, change = DRIFTS[name]
    parameters = dict(tree_flatten(network.parameters()))
    network.load_weights([(path, change(parameters[path]))], strict=False)
    with pytest.raises(AssertionError):
        assert_equal(depth_of(network, pixel_values), expected)


def test_a_wrong_layer_norm_epsilon_fails_the_gate(tmp_path):
    network = ours({"size": "tiny"}, tmp_path)
    pixel_values = reference.pixels(1, 70, 98)
    expected = reference.run(reference.model("tiny"), pixel_values)
    for block in network.backbone.blocks:
        block.norm1.eps = block.norm2.eps = 1e-2
    with pytest.raises(AssertionError):
        assert_equal(depth_of(network, pixel_values), expected)


@pytest.mark.parametrize(("dtype", "gate"), [("float16", 2e-2), ("bfloat16", 1e-1)])
def test_half_precision_stays_close(dtype, gate, tmp_path):
    folder = reference.save(reference.model("tiny"), tmp_path)
    pixel_values = reference.pixels(1, 70, 98)
    expected = reference.run(reference.model("tiny"), pixel_values)
    model = mlx_depth.load(folder, dtype=dtype, reference="transformers")
    assert relative_error(np.array(model.infer(mx.array(pixel_values)).depth), expected) <= gate


@pytest.mark.parametrize("max_depth", [None, 20])
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_the_last_layer_alone_computes_in_float32(dtype, max_depth, tmp_path):
    """A hidden wider type would reach the argument or the result of some module; the one that is meant is there."""
    folder = reference.save(reference.model("tiny", max_depth=max_depth), tmp_path)
    network = mlx_depth.load(folder, dtype=dtype, reference="transformers").network
    types = {}

    def on_call(path: str, module: nn.Module, argument: object, result: object) -> None:
        arrays = [value for _, value in tree_flatten([argument, result]) if isinstance(value, mx.array)]
        assert len(arrays) >= 2, path
        types[path] = {value.dtype for value in arrays}

    with recording(network, on_call):
        depth = network(mx.array(reference.pixels(1, 42, 70)).astype(dtype)).depth
    leaves = {path for path, module in network.named_modules() if not module.children()}
    assert leaves <= types.keys()
    assert depth.dtype == mx.float32
    assert types.pop("head.conv3") == {mx.float32}
    assert types.pop("head") == {dtype, mx.float32}  # from tokens to depth
    assert {path for path, found in types.items() if found != {dtype}} == set()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 70, 98), r"have shape \(1, 3, 70, 98\): pass \(B, H, W, 3\), channels last"),
        ((70, 98, 3), r"have shape \(70, 98, 3\): pass \(B, H, W, 3\)"),
        ((0, 70, 98, 3), r"have shape \(0, 70, 98, 3\): pass \(B, H, W, 3\)"),
        ((1, 71, 98, 3), "are 71×98: make both sides multiples of 14"),
        ((1, 0, 98, 3), "are 0×98: make both sides multiples of 14"),
    ],
)
def test_wrong_pixel_values(shape, message):
    network = DepthAnything(depth_anything_config("small"))
    with pytest.raises(OptionError, match=message):
        network(mx.zeros(shape))


@pytest.mark.parametrize("max_depth", [None, 20.0])
def test_kind_and_range(max_depth):
    config = depth_anything_config("small", max_depth=max_depth)
    assert config.depth_kind is (DepthKind.METRIC if max_depth else DepthKind.RELATIVE_INVERSE)
    assert config.max_depth == max_depth


def test_the_configs_of_upstream_are_ours():
    """Every published size, read from the config.json that transformers writes."""
    from mlx_depth.models.depth_anything.family import FAMILY

    def read(written):
        return FAMILY.dialects["transformers"].read(Evidence({}, written)).config

    for size in ("small", "base", "large", "giant"):
        for version in (1, 2):
            written = reference.config(size, version=version).to_dict()
            assert read(written) == depth_anything_config(size, version=version)
        written = reference.config(size, max_depth=80).to_dict()
        assert read(written) == depth_anything_config(size, max_depth=80.0)


def test_quantized_and_expanded_networks_agree(tmp_path):
    """A packed layer and the plain layer that the CPU computes with hold the same weights."""
    from mlx_depth.checkpoints.checkpoint import quantize_checkpoint
    from mlx_depth.weights.quantization import Quantization

    checkpoint = read_checkpoint(reference.save(reference.model("tiny"), tmp_path))
    packed = quantize_checkpoint(checkpoint, Quantization(bits=8, group_size=32))
    pixel_values = mx.array(reference.pixels(1, 28, 42))
    plain, expanded, quantized = (
        np.array(build_network(c, dtype=mx.float32, expand=expand)(pixel_values).depth)
        for c, expand in ((checkpoint, False), (packed, True), (packed, False))
    )
    assert relative_error(quantized, expanded) <= 1e-5
    assert 1e-6 < relative_error(expanded, plain) < 0.05


def test_the_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        depth_anything_config("small").head = None


@pytest.mark.parametrize(("field", "value"), [("patch_size", 16), ("in_dim", 100)])
def test_a_head_that_does_not_fit_its_backbone_is_refused(field, value):
    config = depth_anything_config("small")
    with pytest.raises(CheckpointError, match=rf"the backbone's width and patch size are \(384, 14\), .*{value}"):
        dataclasses.replace(config, head=dataclasses.replace(config.head, **{field: value}))
