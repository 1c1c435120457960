"""Packages of DPT on DINOv2: equal to the MLX network and to what it predicts of a photo; faults are found."""

from dataclasses import replace

import mlx.core as mx
import pytest
from coreml.tiny import tiny_dpt
from mlx_depth_convert.coreml import check_package, export_coreml, package
from mlx_depth_convert.coreml.agreement import GATES, compare
from mlx_depth_convert.coreml.check import expected_outputs
from mlx_depth_convert.coreml.emitters import fold
from mlx_depth_convert.coreml.emitters.dpt import DPTMetricEmitter
from mlx_depth_convert.coreml.evaluate import read_package, run_function
from mlx_depth_convert.coreml.options import ExportOptions, check_options
from mlx_depth_convert.pictures import generated_picture
from support import relative_error, require

from mlx_depth import DepthKind, load
from mlx_depth.checkpoints.checkpoint import build_network, write_checkpoint
from mlx_depth.cli import main
from mlx_depth.errors import OptionError
from mlx_depth.registry import MODELS

require("coreml", "coremltools")

pytestmark = pytest.mark.usefixtures("quick_exports")

SIZE = (70, 98)  # 5 × 7 patches: the depth has 96 × 128 pixels, and finer maps are smaller than the path
EVEN = (56, 84)  # 4 × 6 patches: the depth has 64 × 96 pixels, and no map is resized


def test_float32_package_by_the_command_equals_the_network_and_its_prediction(tmp_path, capsys):
    folder = write_checkpoint(tiny_dpt(), tmp_path / "tiny", source={}, card="")
    out = tmp_path / "Depth.mlpackage"
    assert main(["coreml", str(folder), str(out), "--sizes", "70x98", "--precision", "float32"]) == 0
    assert main(["coreml-check", str(out), str(folder)]) == 0
    assert "passed: error at most 1e-05" in capsys.readouterr().out

    program, photo = read_package(out), generated_picture(SIZE)
    depth = run_function(program.functions["main"], photo, float16=False).outputs["depth"]
    assert depth.std() > 0.05 * depth.max()  # the same everywhere, it would hide a fault
    predicted = load(folder, dtype="float32").predict(photo)
    assert predicted.kind is DepthKind.METRIC
    assert relative_error(depth[0, 0], predicted.depth) <= 1e-5

    facts = program.facts("mlx_depth.")
    assert (facts["output"], facts["unit"], facts["max_depth"]) == ("metric", "m", "")
    assert [output.shortDescription for output in program.description.output] == ["Depth in metres, larger = farther."]
    assert "stretched to this size instead is another input" in program.description.metadata.shortDescription


@pytest.mark.parametrize(
    ("backbone", "options"),
    [({}, {"cmap": "turbo"}), ({"swiglu": True, "num_register_tokens": 4}, {"layout": "gpu"})],
    ids=["ane", "gpu"],
)
def test_float16_package_agrees(backbone, options, tmp_path):
    checkpoint = tiny_dpt(**backbone)
    path = export_coreml(checkpoint, tmp_path, sizes=SIZE, **options)
    report = check_package(path, checkpoint)
    assert report.passed, report.as_text()
    structure = report.functions[0].structure
    assert (structure.float32, structure.kept, structure.largest_rank) == ([], [], 4)
    (function,) = read_package(path).functions.values()
    constants = [op.outputs[0].name for op in function.operations if op.op_type == "const"]
    kept = {name.removesuffix("_to_fp16") for name in constants if name.startswith(DPTMetricEmitter.float_prefixes)}
    assert {"restore_rows", "restore_columns"} < kept  # compression leaves alone what bears these names


# Graphs, not yet converted: what a float32 package computes, in less time

# name → (fields of the head's config, of the backbone's, the image's size, the layout)
VARIANTS = {
    "published": ({}, {}, SIZE, "ane"),
    "even grid, gpu": ({}, {}, EVEN, "gpu"),
    "one patch": ({}, {}, (14, 14), "ane"),
    "patches of 16 pixels": ({"patch_size": 16}, {"patch_size": 16}, (64, 96), "ane"),
    "class tokens ignored": ({"readout": "ignore"}, {}, SIZE, "ane"),
    "class tokens added, gpu": ({"readout": "add"}, {}, SIZE, "gpu"),
    "normalized layers": ({}, {"raw_layers": (), "norm_eps": 1e-3}, SIZE, "ane"),
    "normalized layers, class tokens added": ({"readout": "add"}, {"raw_layers": (1,)}, SIZE, "ane"),
    "biases, no projection": ({"residual_bias": True, "projection": False}, {}, SIZE, "ane"),
    "sizes that follow the maps": ({"doubling": False}, {}, SIZE, "gpu"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_graph_of_every_config_agrees(variant):
    head, backbone, size, layout = VARIANTS[variant]
    found = _emitted(_with_expected(tiny_dpt(head=head, **backbone), size), size, layout=layout)
    assert not found.faults(GATES["float32"]), found


def _class_token_ignored(patch):
    original = fold.fold_readout

    def patches_alone(weights, path):
        tokens, image = original(weights, path)
        return tokens, replace(image, weight=0 * image.weight)

    patch.setattr(fold, "fold_readout", patches_alone)


def _class_token_first(patch):
    original = fold.fold_readout

    def swapped(weights, path):
        tokens, image = original(weights, path)
        return replace(tokens, weight=image.weight), replace(image, weight=tokens.weight)

    patch.setattr(fold, "fold_readout", swapped)


def _tokens_normalized(patch):
    patch.setattr(DPTMetricEmitter, "hand_out", super(DPTMetricEmitter, DPTMetricEmitter).hand_out)


def _corners_of_finer_maps_aligned(patch):
    original = DPTMetricEmitter.grow
    patch.setattr(DPTMetricEmitter, "grow", lambda self, *args, align_corners=True: original(self, *args))


def _projection_without_relu(patch):
    original = DPTMetricEmitter.read_out

    def read_out(self, fused, size):
        x, path_size = fused
        return original(self, (x.op.x, path_size), size)  # what the ReLU took

    patch.setattr(DPTMetricEmitter, "read_out", read_out)


def _bilinear_depth(patch):
    original = fold.fold_resize
    patch.setattr(fold, "fold_resize", lambda size, to, method: original(size, to, "bilinear"))


def _positions_by_the_factor(patch):
    original = fold.fold_positions
    patch.setattr(fold, "fold_positions", lambda config, *rest: original(replace(config, position_rule="scale"), *rest))


MUTATIONS = [
    _class_token_ignored,
    _class_token_first,
    _tokens_normalized,
    _corners_of_finer_maps_aligned,
    _projection_without_relu,
    _bilinear_depth,
    _positions_by_the_factor,
]


@pytest.fixture(scope="module")
def model():
    return _with_expected(tiny_dpt(), SIZE)


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__.strip("_"))
def test_a_mutation_fails(mutate, model):
    found = _emitted(model, SIZE, mutate)
    assert found.error > 100 * GATES["float32"].relative


def _with_expected(checkpoint, size):
    """The checkpoint, and what its network gives of the drawn picture of a size."""
    with mx.stream(mx.cpu):
        network = build_network(checkpoint, dtype=mx.float32, expand=True)
    return checkpoint, expected_outputs(network, checkpoint.spec, generated_picture(size), output="metric")


def _emitted(model, size, mutate=None, layout="ane"):
    """How far a graph is from the MLX network."""
    checkpoint, expected = model
    options = ExportOptions(sizes=size, attention="batched", precision="float32", layout=layout)
    plan = check_options(checkpoint.spec, options)
    with pytest.MonkeyPatch.context() as patch:
        if mutate is not None:
            mutate(patch)
        program, _ = package._emit(package._Job(checkpoint.spec, checkpoint.weights, "", None, plan), size)
    outputs = run_function(program.functions["main"], generated_picture(size), float16=False).outputs
    assert outputs["depth"].shape == (1, 1, *size)
    return compare(outputs, expected)


# Options


@pytest.mark.parametrize("size", ["small", "base", "large", "giant"])
def test_published_models_are_exported_in_metres(size):
    plan = check_options(MODELS[f"dpt-dinov2-{size}-nyu"], ExportOptions(sizes=["476x644", "landscape"]))
    assert plan.output == "metric"
    assert plan.sizes == {"size_476x644": (476, 644), "landscape": (392, 518)}
    assert plan.attention == ("split" if size in ("small", "base") else "batched")


def test_sizes_are_whole_patches_and_the_output_is_in_metres():
    spec = MODELS["dpt-dinov2-small-nyu"]
    with pytest.raises(OptionError, match="480x640 is not made of multiples of 14: the nearest that is, is 476x644"):
        check_options(spec, ExportOptions(sizes="480x640"))
    with pytest.raises(OptionError, match="is in metres: choose output 'metric'"):
        check_options(spec, ExportOptions(output="raw"))
