"""Packages of AnyDepth: equal to the MLX network, their positions in float32; faults are found."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from coreml.tiny import changed, tiny_anydepth
from mlx_depth_convert.coreml import check_package, export_coreml, options, package
from mlx_depth_convert.coreml.agreement import GATES, compare
from mlx_depth_convert.coreml.check import expected_outputs
from mlx_depth_convert.coreml.emitters import anydepth as emitters
from mlx_depth_convert.coreml.emitters import fold
from mlx_depth_convert.coreml.emitters.anydepth import AnyDepthEmitter
from mlx_depth_convert.coreml.evaluate import read_package, run_function
from mlx_depth_convert.coreml.options import ExportOptions, check_options
from mlx_depth_convert.pictures import generated_picture
from support import require

from mlx_depth.checkpoints.checkpoint import build_network, write_checkpoint
from mlx_depth.cli import main
from mlx_depth.errors import OptionError
from mlx_depth.nn.rope import Rotation, centered_rotation
from mlx_depth.registry import MODELS

require("coreml", "coremltools")

pytestmark = pytest.mark.usefixtures("quick_exports")

SIZE = (48, 80)  # 3 × 5 patches
WIDE = (16, 2048)  # float16 has steps of half a pixel near the right end of the last map that is doubled


@pytest.fixture(scope="module")
def wide_package(tmp_path_factory):
    """Float16, and the layout of the Neural Engine."""
    return export_coreml(tiny_anydepth(), tmp_path_factory.mktemp("wide"), sizes=WIDE, attention="batched")


def test_float32_package_by_the_command_equals_the_mlx_network(tmp_path, capsys):
    folder = write_checkpoint(tiny_anydepth(stored_periods=True), tmp_path / "tiny", source={}, card="")
    out = tmp_path / "Depth.mlpackage"
    assert main(["coreml", str(folder), str(out), "--sizes", "48x80", "--precision", "float32"]) == 0
    assert main(["coreml-check", str(out), str(folder)]) == 0
    assert "passed: error at most 1e-05" in capsys.readouterr().out
    metadata = read_package(out).description
    assert [output.name for output in metadata.output] == ["depth"]
    assert "1 = nearest" in metadata.output[0].shortDescription


def test_float32_package_for_the_gpu_of_another_backbone(tmp_path):
    """Gated layers, no registers, no bias but the keys', normalized tokens of some layers."""
    checkpoint = tiny_anydepth(
        swiglu=True,
        num_register_tokens=0,
        qkv_bias=False,
        key_bias=True,
        normalized=True,
        num_layers=6,
        out_layers=(0, 2, 3, 4),
    )
    path = export_coreml(checkpoint, tmp_path, sizes=SIZE, precision="float32", layout="gpu", output="raw")
    report = check_package(path, checkpoint)
    assert report.passed, report.as_text()
    assert report.functions[0].structure.largest_rank == 4


def test_float16_package_agrees_across_a_wide_picture(wide_package):
    report = check_package(wide_package, tiny_anydepth())
    assert report.passed, report.as_text()
    (function,) = report.functions
    assert function.structure.float32 == []
    kept = function.structure.kept
    assert {name[:10] for name in kept} == {f"positions{level}" for level in range(4)}
    assert f"in float32           0, and {len(kept)} on purpose" in report.as_text()
    depth = run_function(read_package(wide_package).functions["main"], generated_picture(WIDE), float16=False).outputs[
        "depth"
    ]
    assert depth.std() > 0.05 * depth.max()  # the same everywhere, it would hide a fault


def test_positions_in_float16_fail(tmp_path, monkeypatch):
    """And a float32 operation that is none on purpose is named."""
    with monkeypatch.context() as patch:
        patch.setattr(AnyDepthEmitter, "float32_prefixes", ("sampled", "head_conv2"))
        path = export_coreml(tiny_anydepth(), tmp_path, sizes=WIDE, attention="batched")
    faults = check_package(path, tiny_anydepth()).faults
    assert any("the error is" in fault for fault in faults)
    assert "main: head_conv2 computes in float32" in faults


def test_int8_keeps_what_says_where_maps_are_read(tmp_path):
    checkpoint = tiny_anydepth()
    path = export_coreml(checkpoint, tmp_path, sizes=SIZE, compress="int8", layout="gpu")
    report = check_package(path, checkpoint)
    assert report.passed, report.as_text()
    (function,) = read_package(path).functions.values()
    compressed = {op.outputs[0].name for op in function.operations if op.op_type.startswith("constexpr_")}
    assert any("block3_query" in name for name in compressed)
    assert not any(name.startswith(AnyDepthEmitter.float_prefixes) for name in compressed)


# Mutations


def _rows_for_columns(patch):
    def swapped(grid_size, periods, leading):
        quarters = [np.split(np.array(table), 4, axis=2) for table in centered_rotation(grid_size, periods, leading)]
        return Rotation(*(mx.array(np.concatenate([b, a, d, c], axis=2)) for a, b, c, d in quarters))

    patch.setattr(emitters, "centered_rotation", swapped)


def _registers_turn(patch):
    def turned(grid_size, periods, leading):
        tables = [np.array(table) for table in centered_rotation(grid_size, periods, leading)]
        return Rotation(*(mx.array(np.roll(table, 1 - leading, axis=0)) for table in tables))

    patch.setattr(emitters, "centered_rotation", turned)


def _pairs_of_quarters(patch):
    original = AnyDepthEmitter.rotation
    patch.setattr(AnyDepthEmitter, "rotation", lambda self, *rest: replace(original(self, *rest), groups=2))


def _down_for_across(patch):
    original = fold.fold_offsets

    def swapped(weights, level):
        offset, scope, start = original(weights, level)
        half = len(scope.weight) // 2
        return (
            replace(offset, weight=np.roll(offset.weight, half, axis=0), bias=np.roll(offset.bias, half)),
            replace(scope, weight=np.roll(scope.weight, half, axis=0)),
            start,
        )

    patch.setattr(fold, "fold_offsets", swapped)


def _start_down_for_across(patch):
    original = fold.fold_offsets

    def swapped(weights, level):
        *layers, start = original(weights, level)
        return (*layers, np.roll(start, start.shape[1] // 2, axis=1))

    patch.setattr(fold, "fold_offsets", swapped)


def _offsets_of_other_groups(patch):
    original = fold.fold_offsets

    def turned(weights, level):
        offset, scope, start = original(weights, level)
        kernels = offset.weight.reshape(2, -1, 4, *offset.weight.shape[1:])
        return replace(offset, weight=np.roll(kernels, 1, axis=1).reshape(offset.weight.shape)), scope, start

    patch.setattr(fold, "fold_offsets", turned)


def _edges_for_centers(patch):
    """The corner pixels' centers at -1 and 1."""

    def corners(size):
        down, across = (np.repeat(np.linspace(-1, 1, side), 2).astype(np.float32) for side in size)
        rows, columns = np.stack([0 * down, down], axis=-1), np.stack([across, 0 * across], axis=-1)
        return rows[None, :, None], columns[None, None]

    patch.setattr(fold, "fold_pixel_centers", corners)


def _layers_alike(patch):
    patch.setattr(fold, "fold_shares", lambda _: np.full(4, 0.25, np.float32))


def _last_register_for_class_token(patch):
    def last_register(self, x, name):
        return self.mb.slice_by_index(x=x, begin=[0, 0, 0, 4], end=[1, x.shape[1], 1, 5], name=name)

    patch.setattr(AnyDepthEmitter, "class_token", last_register)


def _tokens_normalized(patch):
    transformer = AnyDepthEmitter.transformer

    def normalized(self, x, grid_size):
        return [self.tap(x, f"tap{level}") for level, x in enumerate(transformer(self, x, grid_size))]

    patch.setattr(AnyDepthEmitter, "transformer", normalized)


def _no_least_depth(patch):
    patch.setattr(AnyDepthEmitter, "head", property(lambda self: replace(self.spec.config.head, least_depth=0.0)))


MUTATIONS = [
    _rows_for_columns,
    _registers_turn,
    _pairs_of_quarters,
    _down_for_across,
    _start_down_for_across,
    _offsets_of_other_groups,
    _edges_for_centers,
    _layers_alike,
    _last_register_for_class_token,
    _tokens_normalized,
    _no_least_depth,
]


@pytest.fixture(scope="module")
def model():
    """A checkpoint whose layers have different shares, and what its network gives."""
    checkpoint = changed(tiny_anydepth(), head__layer_weights=np.array([0.5, -1, 1, 0], np.float32))
    network = build_network(checkpoint, dtype=mx.float32, expand=True)
    return checkpoint, expected_outputs(network, checkpoint.spec, generated_picture(SIZE), output="raw")


def _emitted(model, mutate=None):
    """How far a graph, not yet converted, is from the MLX network: what a float32 package computes, in less time."""
    checkpoint, expected = model
    plan = check_options(
        checkpoint.spec, ExportOptions(sizes=SIZE, output="raw", attention="batched", precision="float32")
    )
    with pytest.MonkeyPatch.context() as patch:
        if mutate is not None:
            mutate(patch)
        program, _ = package._emit(package._Job(checkpoint.spec, checkpoint.weights, "", None, plan), SIZE)
    return compare(run_function(program.functions["main"], generated_picture(SIZE), float16=False).outputs, expected)


def test_without_a_mutation_the_graph_agrees(model):
    assert _emitted(model).error <= 1e-5


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__.strip("_"))
def test_a_mutation_fails(model, mutate):
    found = _emitted(model, mutate)
    assert found.faults(GATES["float32"])
    assert found.error > 100 * GATES["float32"].relative


# Options


def test_sizes_are_multiples_of_the_patch_size():
    spec = MODELS["anydepth-small"]
    presets = check_options(spec, ExportOptions(sizes=tuple(options.PRESETS))).sizes
    assert presets == {
        "landscape": (384, 512),
        "portrait": (512, 384),
        "square": (512, 512),
        "wide": (288, 512),
        "tall": (512, 288),
    }
    with pytest.raises(OptionError, match="392x518 is not made of multiples of 16: the nearest that is, is 384x512"):
        check_options(spec, ExportOptions(sizes="392x518"))
    with pytest.raises(OptionError, match=r"inverse depth.*, not metres: choose output 'normalized' or 'raw'"):
        check_options(spec, ExportOptions(output="metric"))
