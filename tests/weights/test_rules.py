"""The weight tables: total, exact, and right at full size for every published variant."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import reference
import support
from mlx.utils import tree_flatten

from mlx_depth.errors import CheckpointError
from mlx_depth.models.base import Evidence
from mlx_depth.models.depth_anything.family import FAMILY
from mlx_depth.models.depth_anything.network import DepthAnything, depth_anything_config
from mlx_depth.registry import MODELS
from mlx_depth.weights.rules import (
    Drop,
    FoldNorm,
    Rename,
    Split,
    Tie,
    apply,
    check_complete,
    listed,
    prefixed,
    to_mlx_layout,
    unknown_names,
)

DIALECTS = {
    "transformers-new-names": ("transformers", lambda state: state),
    "transformers-hub-names": ("transformers", reference.hub_names),
    "original": ("original", reference.authors_names),
}
ZERO = mx.zeros((1,))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("size", ["small", "base", "large", "giant"])
def test_every_tensor_of_upstream_has_its_place_at_full_size(size, dialect):
    """Lazy arrays: the 1.3 B parameters of giant cost nothing."""
    table, rename = DIALECTS[dialect]
    state = rename(reference.meta_model(size).state_dict())
    network = DepthAnything(depth_anything_config(size))
    tensors = reference.tensors(state)
    weights = to_mlx_layout(network, apply(FAMILY.dialects[table].rules, tensors))
    check_complete(network, weights)
    evidence = Evidence({name: array.shape for name, array in tensors.items()})
    assert [name for name, dialect in FAMILY.dialects.items() if dialect.owns(evidence)] == [table]


@pytest.mark.parametrize("size", ["small", "base", "large", "giant"])
def test_parameter_counts_of_upstream_are_the_registrys(size):
    total = sum(parameter.numel() for parameter in reference.meta_model(size).parameters())
    specs = [spec for spec in MODELS.values() if spec.family == "depth_anything" and spec.name.endswith(f"-{size}")]
    assert specs
    assert {spec.parameters for spec in specs} == {total}


@pytest.mark.parametrize("size", ["small", "large"])
def test_the_dropped_tensors_are_all_that_our_network_lacks(size):
    upstream = sum(parameter.numel() for parameter in reference.meta_model(size).parameters())
    config = depth_anything_config(size)
    ours = sum(array.size for _, array in tree_flatten(DepthAnything(config).parameters()))
    features = config.head.features
    unused_unit = 2 * (features * features * 9 + features)
    assert upstream - ours == config.backbone.embed_dim + unused_unit


def test_values_land_where_they_belong():
    tensors = {"a.0.w": mx.array([1.0]), "a.1.w": mx.array([2.0]), "qkv": mx.arange(6), "mask": ZERO}
    rules = (Rename("a.{i}.w", "b.{i}.v"), Split("qkv", ("q", "k", "v")), Drop("mask", "unused"))
    found = apply(rules, tensors)
    assert {name: value.tolist() for name, value in found.items()} == {
        "b.0.v": [1.0],
        "b.1.v": [2.0],
        "q": [0, 1],
        "k": [2, 3],
        "v": [4, 5],
    }


def test_a_placeholder_is_one_segment():
    with pytest.raises(CheckpointError, match=r"does not know: a\.0\.x\.w"):
        apply((Rename("a.{i}.w", "b.{i}.w"),), {"a.0.x.w": ZERO})


def test_prefixed_moves_both_sides():
    rules = prefixed((Rename("a", "b"), Split("c", ("d", "e")), Drop("f", "why")), "x.", "y.")
    assert rules == (Rename("x.a", "y.b"), Split("x.c", ("y.d", "y.e")), Drop("x.f", "why"))


def test_unknown_tensors_are_named_and_counted():
    names = {f"t{i:02}": ZERO for i in range(11)}
    with pytest.raises(CheckpointError, match=r"does not know: t00, .*t07 and 3 more"):
        apply((), names)
    assert listed(["a", "b"]) == "a, b"


def test_faulty_tables_are_found():
    with pytest.raises(ValueError, match=r"two rules take 'a\.b'"):
        apply((Rename("a.{x}", "c.{x}"), Rename("{y}.b", "d.{y}")), {"a.b": ZERO})
    with pytest.raises(ValueError, match="'c' is produced twice"):
        apply((Rename("a", "c"), Rename("b", "c")), {"a": ZERO, "b": ZERO})


def test_what_is_tied_is_one_parameter_however_often_a_file_names_it():
    table = (Tie("norm.{i}.{p}", "norm.{p}"),)
    ones = mx.ones((2,))
    assert list(apply(table, {"norm.0.weight": ones})) == ["norm.weight"]
    assert list(apply(table, {"norm.3.weight": ones, "norm.0.weight": mx.ones((2,))})) == ["norm.weight"]
    for other in (mx.array([1.0, 2.0]), mx.ones((3,))):
        with pytest.raises(CheckpointError, match=r"norm\.1\.weight differs from the tensor that it has to equal"):
            apply(table, {"norm.0.weight": ones, "norm.1.weight": other})


FOLD = prefixed((FoldNorm("up.{i}.1", "up.{i}.2", "up.{i}.conv"),), "decoder.", "head.")


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_a_batch_normalization_is_folded_into_its_convolution(bias, groups):
    torch = support.require("reference", "torch")
    torch.manual_seed(0)
    upstream = torch.nn.Sequential(
        torch.nn.Identity(),
        torch.nn.Conv2d(4, 8, 3, bias=bias, groups=groups),
        torch.nn.BatchNorm2d(8),
    ).eval()
    for x in (upstream[2].weight, upstream[2].bias, upstream[2].running_mean, upstream[2].running_var):
        x.data.uniform_(0.5, 2)
    image = torch.randn(1, 4, 6, 7)
    with torch.no_grad():
        wanted = upstream(image)
        state = {f"decoder.up.3.{name}": mx.array(x.numpy()) for name, x in upstream.state_dict().items()}
        folded = {name: torch.from_numpy(np.array(x)) for name, x in apply(FOLD, state).items()}
        assert set(folded) == {"head.up.3.conv.weight", "head.up.3.conv.bias"}
        found = torch.nn.functional.conv2d(image, *folded.values(), groups=groups)
    assert (found - wanted).abs().max() <= 1e-5


def _foldable() -> dict[str, mx.array]:
    vectors = {name: mx.ones((2,)) for name in ("weight", "bias", "running_mean", "running_var")}
    norm = {f"decoder.up.0.2.{name}": x for name, x in vectors.items()}
    return {"decoder.up.0.1.weight": mx.ones((2, 2, 3, 3), mx.float16), **norm}


def test_what_is_folded_keeps_more_digits_than_half_precision_has():
    assert {x.dtype for x in apply(FOLD, _foldable()).values()} == {mx.float32}
    assert unknown_names(FOLD, [*_foldable(), "decoder.up.0.2.num_batches_tracked", "decoder.up.0.3.bias"]) == [
        "decoder.up.0.3.bias"
    ]


def test_a_fold_that_lacks_a_part_or_has_an_odd_one_is_refused():
    tensors = _foldable()
    mean = tensors.pop("decoder.up.0.2.running_mean")
    with pytest.raises(CheckpointError, match=r"the checkpoint lacks decoder\.up\.0\.2\.running_mean: take"):
        apply(FOLD, tensors)
    for odd in (mx.ones((3,)), mean.astype(mx.int32)):
        with pytest.raises(CheckpointError, match=r"shape \(2, 2, 3, 3\), and decoder\.up\.0\.2\.running_mean no"):
            apply(FOLD, {**_foldable(), "decoder.up.0.2.running_mean": odd})
    with pytest.raises(CheckpointError, match=r"and decoder\.up\.0\.1\.bias no floating"):
        apply(FOLD, {**_foldable(), "decoder.up.0.1.bias": mx.ones((2,), mx.int8)})
    twice = (*FOLD, Rename("other.weight", "head.up.0.conv.weight"))
    with pytest.raises(ValueError, match=r"'head\.up\.0\.conv\.weight' is produced twice"):
        apply(twice, {**_foldable(), "other.weight": mean})


def test_an_uneven_split_is_refused():
    with pytest.raises(CheckpointError, match=r"qkv: shape \(4,\) cannot be cut into 3 equal parts"):
        apply((Split("qkv", ("q", "k", "v")),), {"qkv": mx.zeros((4,))})


def test_a_part_that_is_left_out_is_zero():
    table = (Split("b", ("q", None, "v"), mask="m"), Drop("m", "in the bias"))
    b = mx.array([1.0, 2.0, 0.0, 0.0, 5.0, 6.0])
    assert {name: part.tolist() for name, part in apply(table, {"b": b}).items()} == {"q": [1, 2], "v": [5, 6]}
    for lost in (1e-30, float("nan")):
        with pytest.raises(CheckpointError, match=r"b: part 2 of 3 is not zero, and this network has no place for it"):
            apply(table, {"b": mx.array([1.0, 2.0, 0.0, lost, 5.0, 6.0])})


def test_a_mask_multiplies():
    (moved, drop) = prefixed((Split("{i}.b", ("{i}.q", None, "{i}.v"), mask="{i}.m"), Drop("{i}.m", "why")), "x.", "y.")
    assert moved == Split("x.{i}.b", ("y.{i}.q", None, "y.{i}.v"), mask="x.{i}.m")
    biases = {"x.0.b": mx.array([1.0, 2.0, 3.0]), "x.1.b": mx.array([4.0, 5.0, 6.0])}
    masks = {"x.0.m": mx.array([1.0, 0.0, 1.0]), "x.1.m": mx.zeros((3,), mx.bfloat16)}
    found = apply((moved, drop), {**masks, **biases})
    assert {name: part.tolist() for name, part in found.items()} == {
        "y.0.q": [1],
        "y.0.v": [3],
        "y.1.q": [0],
        "y.1.v": [0],
    }
    assert found["y.1.q"].dtype == mx.float32
    with pytest.raises(CheckpointError, match=r"x\.0\.m is \(1,\), but x\.0\.b, which it masks, \(3,\)"):
        apply((moved, drop), {"x.0.b": mx.zeros((3,)), "x.0.m": mx.zeros((1,))})


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(2, 3, kernel_size=(4, 5))
        self.transposed = nn.ConvTranspose2d(2, 3, kernel_size=(4, 5))
        self.linear = nn.Linear(2, 3)


def test_axes_follow_the_module_not_the_shape():
    network = Convolutions()
    weights = {
        "plain.weight": mx.zeros((3, 2, 4, 5)),
        "plain.bias": mx.zeros((3,)),
        "transposed.weight": mx.zeros((2, 3, 4, 5)),
        "transposed.bias": mx.zeros((3,)),
        "linear.weight": mx.zeros((3, 2)),
        "linear.bias": mx.zeros((3,)),
    }
    moved = to_mlx_layout(network, weights)
    assert moved["plain.weight"].shape == moved["transposed.weight"].shape == (3, 4, 5, 2)
    check_complete(network, moved)


def test_all_faults_are_in_one_error():
    network = Convolutions()
    weights = {
        "plain.weight": mx.zeros((3, 4, 5, 2)),
        "plain.bias": mx.zeros((9,)),
        "linear.weight": mx.zeros((3, 2)),
        "linear.bias": mx.zeros((3,)),
        "surplus": ZERO,
    }
    with pytest.raises(CheckpointError) as caught:
        check_complete(network, weights)
    text = str(caught.value)
    assert "missing: transposed.weight, transposed.bias" in text
    assert "not expected: surplus" in text
    assert "wrong shape: plain.bias is (9,), not (3,)" in text
    assert "download it again" in text
