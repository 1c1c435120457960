"""Packages of Depth Anything 3: equal to the MLX networks and to upstream in every output; faults are found."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from coreml.tiny import SIZE, changed, tiny_any_view, tiny_mono
from mlx_depth_convert.coreml import check_package, export_coreml, package
from mlx_depth_convert.coreml.agreement import GATES, compare
from mlx_depth_convert.coreml.check import expected_outputs
from mlx_depth_convert.coreml.emitters import depth_anything_3 as emitters
from mlx_depth_convert.coreml.emitters import fold, vit
from mlx_depth_convert.coreml.emitters.depth_anything_3 import AnyViewEmitter, MonoEmitter
from mlx_depth_convert.coreml.emitters.dinov2_dpt import DINOv2DPTEmitter
from mlx_depth_convert.coreml.evaluate import read_package, run_function
from mlx_depth_convert.coreml.options import ExportOptions, check_options
from mlx_depth_convert.pictures import generated_picture
from support import relative_error, require

import mlx_depth
from mlx_depth.checkpoints.checkpoint import build_network, write_checkpoint
from mlx_depth.cli import main
from mlx_depth.nn.rope import Rotation, common_rotation, grid_rotation

require("coreml", "coremltools")

pytestmark = pytest.mark.usefixtures("quick_exports")

PORTRAIT = (98, 56)

# name → (the model, how it is exported)
CASES = {
    "views": (tiny_any_view(), {}),
    "views, gpu, raw": (tiny_any_view(), {"layout": "gpu", "output": "raw"}),
    "views, sdpa": (tiny_any_view(), {"attention": "sdpa", "output": "raw"}),
    "views, batched": (tiny_any_view(), {"attention": "batched", "output": "raw"}),
    "views, from an even block": (
        tiny_any_view(num_layers=5, alt_start=2, out_layers=(1, 2, 3, 4)),
        {"sizes": PORTRAIT},
    ),
    "views, SwiGLU, one patch": (tiny_any_view(swiglu=True), {"output": "raw", "sizes": (14, 14)}),
    "single, colors": (tiny_mono(), {"cmap": "turbo"}),
    "single, gpu, raw": (tiny_mono(), {"layout": "gpu", "output": "raw", "sizes": PORTRAIT}),
    "metres": (tiny_mono(metric=True), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_float32_package_equals_the_mlx_network(case, tmp_path):
    checkpoint, options = CASES[case]
    report = check_package(
        export_coreml(checkpoint, tmp_path, **{"sizes": SIZE, "precision": "float32", **options}), checkpoint
    )
    assert report.passed, report
    found = report.functions[0].float32
    assert list(found.extras) == ["sky" if "mono" in checkpoint.spec.family else "confidence"]
    assert max(found.error, *(extra.relative for extra in found.extras.values())) <= 1e-5
    assert found.absent == ()


@pytest.fixture(scope="module")
def views_package(tmp_path_factory):
    """Float16, as by default."""
    return export_coreml(tiny_any_view(), tmp_path_factory.mktemp("views"), sizes=SIZE)


@pytest.fixture(scope="module")
def metres_package(tmp_path_factory):
    """Float16, two sizes."""
    return export_coreml(
        tiny_mono(metric=True), tmp_path_factory.mktemp("metres"), sizes=[SIZE, PORTRAIT], cmap="turbo"
    )


def test_float16_packages_agree_and_have_no_float32_operation(views_package, metres_package):
    for path, checkpoint in ((views_package, tiny_any_view()), (metres_package, tiny_mono(metric=True))):
        report = check_package(path, checkpoint)
        assert report.passed, report
        for function in report.functions:
            found = function.float16
            assert min(found.correlation, *(extra.correlation for extra in found.extras.values())) >= 0.9999
            assert function.structure.float32 == []
            assert function.structure.largest_rank == 4


def test_outputs_are_alive(views_package, metres_package):
    """What is the same everywhere would hide a fault."""
    for path, names in ((views_package, {"depth", "confidence"}), (metres_package, {"depth", "sky", "colors"})):
        function = next(iter(read_package(path).functions.values()))
        outputs = run_function(function, generated_picture(SIZE), float16=False).outputs
        assert outputs.keys() == names
        for values in outputs.values():
            assert values.std() > 0.05 * values.max()


def test_several_sizes_share_their_weights(views_package, tmp_path):
    checkpoint = tiny_any_view()
    path = export_coreml(checkpoint, tmp_path, sizes=[SIZE, PORTRAIT])
    report = check_package(path, checkpoint)
    assert report.passed, report
    # Position, rotary and UV tables alone differ.
    patches = 7 * 4
    tables = 2 * (64 * patches + 4 * 32 * (1 + patches) + 2 * (8 + 16 + 24 + 32) * 11 + 16 * 154)
    assert _weight_bytes(path) < _weight_bytes(views_package) + tables + 4096


def test_int8_keeps_rotary_and_uv_tables(views_package, tmp_path):
    checkpoint = tiny_any_view()
    path = export_coreml(checkpoint, tmp_path, sizes=SIZE, compress="int8")
    assert check_package(path, checkpoint).passed
    (function,) = read_package(path).functions.values()
    compressed = {op.outputs[0].name for op in function.operations if op.op_type.startswith("constexpr_")}
    assert any("block3_query" in name for name in compressed)
    assert not any(name.startswith(("rope_", "uv_", "camera_token")) for name in compressed)


def test_interface_and_metadata_say_what_an_app_has_to_do(views_package, metres_package):
    views, metres = (read_package(path).description for path in (views_package, metres_package))
    assert [output.name for output in views.output] == ["depth", "confidence"]
    assert views.output[0].shortDescription == "Depth between 0 and 1 over the image, 1 = nearest."
    assert "larger = surer" in views.output[1].shortDescription
    assert "rays and 3D Gaussians are not in the package" in views.metadata.shortDescription
    assert views.metadata.userDefined["mlx_depth.focal_length"] == ""
    for function, (height, width) in zip(metres.functions, (SIZE, PORTRAIT), strict=True):
        assert [output.name for output in function.output] == ["depth", "sky", "colors"]
        depth, sky, _ = function.output
        assert "focal length of 300 pixels of this image" in depth.shortDescription
        assert "Sky where it is 0.3 or more" in sky.shortDescription
        image = sky.type.imageType
        assert image.ColorSpace.Name(image.colorSpace) == "GRAYSCALE_FLOAT16"
        assert (image.height, image.width) == (height, width)
    facts = metres.metadata.userDefined
    assert (facts["mlx_depth.focal_length"], facts["mlx_depth.unit"], facts["mlx_depth.max_depth"]) == ("300", "m", "")
    assert "Sky is left as it is" in facts["mlx_depth.note"]


# Mutations


def _without_query_and_key_norms(patch, checkpoint):
    norm = DINOv2DPTEmitter.norm

    def dropped(self, x, name, **options):
        if not name.endswith("_normed"):
            return norm(self, x, name, **options)
        scale = 32**-0.5 if "query" in name else 1.0
        return self.mb.mul(x=x, y=np.float32(scale), name=name)

    patch.setattr(DINOv2DPTEmitter, "norm", dropped)
    return checkpoint


def _patches_from_zero(patch, checkpoint):
    """The leading token stands at (0, 0), patches begin at (1, 1)."""

    def shifted(grid_size, head_dim):
        cos, sin = grid_rotation((grid_size[0] + 1, grid_size[1] + 1), head_dim)
        gh, gw = grid_size
        inner = np.arange(gh * gw) // gw * (gw + 1) + np.arange(gh * gw) % gw
        tables = [np.array(table) for table in (cos, sin)]
        step = [np.array(table) for table in grid_rotation((1, 1), head_dim)]
        angle = np.arctan2(tables[1], tables[0])[1:][inner] - np.arctan2(step[1], step[0])[1]
        angle = np.concatenate([np.zeros_like(angle[:1]), angle])
        return Rotation(np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32))

    patch.setattr(emitters, "grid_rotation", shifted)
    return checkpoint


def _rows_for_columns(patch, checkpoint):
    def swapped(grid_size, head_dim):
        halves = [np.split(np.array(table), 2, axis=1) for table in grid_rotation(grid_size, head_dim)]
        return Rotation(*(np.concatenate(half[::-1], axis=1) for half in halves))

    patch.setattr(emitters, "grid_rotation", swapped)
    return checkpoint


def _turned_backwards(patch, checkpoint):
    original = fold.fold_rotation
    patch.setattr(fold, "fold_rotation", lambda rotation: (original(rotation)[0], -original(rotation)[1]))
    return checkpoint


def _across_as_within(patch, checkpoint):
    patch.setattr(emitters, "common_rotation", lambda count, head_dim: grid_rotation((5, 7), head_dim))
    return checkpoint


def _within_as_across(patch, checkpoint):
    patch.setattr(emitters, "grid_rotation", lambda grid, head_dim: common_rotation(grid[0] * grid[1], head_dim))
    return checkpoint


def _camera_of_further_views(patch, checkpoint):
    return changed(checkpoint, backbone__camera_token=checkpoint.weights["backbone.camera_token"][:, ::-1])


def _class_token_kept(patch, checkpoint):
    patch.setattr(AnyViewEmitter, "with_camera_token", lambda self, x: x)
    return checkpoint


def _without_uv(patch, checkpoint):
    patch.setattr(AnyViewEmitter, "place", lambda self, x, size, name: x)
    return checkpoint


def _uv_of_a_square(patch, checkpoint):
    original = fold.uv_position
    patch.setattr(fold, "uv_position", lambda size, channels, aspect: original(size, channels, 1.0))
    return checkpoint


def _halves_swapped(patch, checkpoint):
    original = AnyViewEmitter.tap
    patch.setattr(AnyViewEmitter, "tap", lambda self, local, x, name: original(self, x, local, name))
    return checkpoint


def _confidence_from_zero(patch, checkpoint):
    def activate(self, values, name):
        depth, confidence = self.mb.split(x=values, num_splits=2, axis=1, name="head_values")
        return [self.mb.exp(x=depth, name=name), self.mb.exp(x=confidence, name="confidence")]

    patch.setattr(AnyViewEmitter, "activate", activate)
    return checkpoint


def _sky_for_depth(patch, checkpoint):
    original = MonoEmitter.last_layers

    def swapped(self):
        hidden, last = original(self)
        return hidden, replace(last, weight=last.weight[::-1].copy(), bias=last.bias[::-1].copy())

    patch.setattr(MonoEmitter, "last_layers", swapped)
    return checkpoint


def _stream_epsilon_of_blocks(patch, checkpoint):
    patch.setattr(fold, "stream_eps", lambda _: 1e-6 * fold.STREAM_SCALE**2)
    return checkpoint


def _head_epsilon_of_blocks(patch, checkpoint):
    patch.setattr(emitters.dual_dpt, "NORM_EPS", 1e-6)
    return checkpoint


def _query_epsilon_of_blocks(patch, checkpoint):
    patch.setattr(vit, "QK_NORM_EPS", 1e-6)
    return checkpoint


def _sky_not_cut_at_zero(patch, checkpoint):
    def activate(self, values, name):
        depth, sky = self.mb.split(x=values, num_splits=2, axis=1, name="head_values")
        return [self.activate_depth(depth, name), self.mb.mul(x=sky, y=np.float32(1), name="sky")]

    patch.setattr(MonoEmitter, "activate", activate)
    return checkpoint


VIEWS = [
    _without_query_and_key_norms,
    _patches_from_zero,
    _rows_for_columns,
    _turned_backwards,
    _across_as_within,
    _within_as_across,
    _camera_of_further_views,
    _class_token_kept,
    _without_uv,
    _uv_of_a_square,
    _halves_swapped,
    _confidence_from_zero,
]
MUTATIONS = [
    *((tiny_any_view, mutate) for mutate in VIEWS),
    *((tiny_mono, mutate) for mutate in (_sky_for_depth, _sky_not_cut_at_zero)),
]


def _emitted(checkpoint, expected_of, mutate=None):
    """How far a graph, not yet converted, is from the MLX network: what a float32 package computes, in less time."""
    pixels = generated_picture(SIZE)
    network = build_network(expected_of, dtype=mx.float32, expand=True)
    expected = expected_outputs(network, expected_of.spec, pixels, output="raw")
    plan = check_options(checkpoint.spec, ExportOptions(sizes=SIZE, output="raw", attention="batched"))
    with pytest.MonkeyPatch.context() as patch:
        if mutate is not None:
            checkpoint = mutate(patch, checkpoint)
        program, _ = package._emit(package._Job(checkpoint.spec, checkpoint.weights, "", None, plan), SIZE)
    return compare(run_function(program.functions["main"], pixels, float16=False).outputs, expected)


def _largest_error(found):
    return max(found.error, *(extra.relative for extra in found.extras.values()))


@pytest.mark.parametrize("model", [tiny_any_view, tiny_mono])
def test_without_a_mutation_the_graph_agrees(model):
    assert _largest_error(_emitted(model(), model())) <= 1e-5


@pytest.mark.parametrize(("model", "mutate"), MUTATIONS, ids=lambda value: value.__name__.strip("_"))
def test_a_mutation_fails(model, mutate):
    found = _emitted(model(), model(), mutate)
    assert found.faults(GATES["float32"])
    assert _largest_error(found) > 100 * GATES["float32"].relative


@pytest.mark.parametrize(("model", "mutate"), [(tiny_any_view, _camera_of_further_views), (tiny_mono, _sky_for_depth)])
def test_a_mutated_package_fails_in_float16(model, mutate, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        path = export_coreml(mutate(patch, model()), tmp_path, sizes=SIZE, attention="batched")
    assert not check_package(path, model()).passed


SMALL_STREAM = {"gamma": 0.03}
SMALL_NORM = {"gamma": 0.03, "backbone.norm.weight": 0.03, "backbone.norm.bias": 0.03}
SMALL_QUERIES = {f"{layer}_proj.{part}": 0.01 for layer in ("query", "key") for part in ("weight", "bias")}
EPSILONS = [
    (_stream_epsilon_of_blocks, tiny_any_view, SMALL_STREAM),
    (_stream_epsilon_of_blocks, tiny_mono, SMALL_STREAM),
    (_head_epsilon_of_blocks, tiny_any_view, SMALL_NORM),
    (_query_epsilon_of_blocks, tiny_any_view, SMALL_QUERIES),
]


@pytest.mark.parametrize(("mutate", "model", "factors"), EPSILONS)
def test_a_wrong_epsilon_fails_in_float32(mutate, model, factors):
    """Where the values before the norm are so small that it counts."""
    weights = model().weights
    scaled = {name: weights[name] * factors[end] for name in weights for end in factors if name.endswith(end)}
    checkpoint = changed(model(), **{name.replace(".", "__"): value for name, value in scaled.items()})
    assert _largest_error(_emitted(checkpoint, checkpoint)) <= 1e-5
    assert _largest_error(_emitted(checkpoint, checkpoint, mutate)) > 10 * GATES["float32"].relative


# What a picture does not show


def test_sky_that_the_picture_does_not_show_is_said_to_be_unproved(tmp_path):
    checkpoint = changed(tiny_mono(), head__sky_conv3__bias=np.array([-100.0], np.float32))
    report = check_package(export_coreml(checkpoint, tmp_path, sizes=SIZE), checkpoint)
    assert report.passed, report
    text = report.as_text()
    assert "Not proved: sky, of which the picture has none. Check with an --image that shows some." in text
    assert "sky error 0.00e+00, none in the picture" in text
    assert json.loads(json.dumps(report.as_json()))["functions"][0]["float16"]["extras"]["sky"]["absent"] is True


def test_sky_where_there_is_none_is_judged_by_its_error():
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 2, (1, 1, 8, 9)).astype(np.float32)
    noise = rng.uniform(0, 1e-3, depth.shape).astype(np.float32)
    expected = {"depth": depth, "sky": 0 * depth}
    assert compare({"depth": depth, "sky": noise}, expected).faults(GATES["float16"]) == []
    (fault,) = compare({"depth": depth, "sky": noise + 0.1}, expected).faults(GATES["float16"])
    assert fault.startswith("sky: the error is 0.1")
    (fault,) = compare({"depth": depth, "sky": depth * np.nan}, expected).faults(GATES["float16"])
    assert fault.startswith("sky: the error is nan")


def test_a_package_without_an_output_fails(tmp_path, monkeypatch):
    original = AnyViewEmitter.activate
    with monkeypatch.context() as patch:
        patch.setattr(AnyViewEmitter, "activate", lambda self, values, name: original(self, values, name)[:1])
        path = export_coreml(tiny_any_view(), tmp_path, sizes=SIZE)
    faults = check_package(path, tiny_any_view()).faults
    assert "main: the image 'confidence' is declared as None, not ('GRAYSCALE_FLOAT16', 70, 98)" in faults


# The whole way


def test_command_line(tmp_path, capsys):
    folder = write_checkpoint(tiny_any_view(), tmp_path / "tiny-views", source={}, card="")
    out = tmp_path / "Depth.mlpackage"
    assert main(["coreml", str(folder), str(out), "--sizes", "70x98"]) == 0
    assert main(["coreml-check", str(out), str(folder), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(out)
    report = json.loads(lines[1])
    assert report["passed"] is True
    assert report["functions"][0]["float16"]["extras"]["confidence"]["correlation"] >= 0.9999


@pytest.mark.parametrize("name", ["da3-small", "da3mono-large"])
def test_package_equals_upstream(name, tmp_path):
    """Without a step between: upstream's network in torch, the saved graph in numpy."""
    require("reference", "torch")
    require("reference", "depth_anything_3")
    import reference_da3 as upstream

    folder = upstream.save(name, tmp_path / name)
    path = export_coreml(folder, tmp_path, sizes=SIZE, output="raw", precision="float32")
    pixels = generated_picture(SIZE)
    (function,) = read_package(path).functions.values()
    ours = run_function(function, pixels, float16=False).outputs

    kept = {}
    network = upstream.model(name, tiny=True)
    handle = network.head.register_forward_hook(lambda _, __, out: kept.update(out))  # before sky is filled
    try:
        upstream.run(network, np.array(mlx_depth.load(folder).spec.processor(pixels, input_size=SIZE))[:, None])
    finally:
        handle.remove()
    for ours_name, theirs in (("depth", "depth"), ("confidence", "depth_conf"), ("sky", "sky")):
        if ours_name in ours:
            reference = kept[theirs].numpy().reshape(1, 1, *SIZE)
            assert reference.std() > 0.01 * reference.mean()
            assert relative_error(ours[ours_name], reference) < 1e-4


def _weight_bytes(package: Path) -> int:
    return (package / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
