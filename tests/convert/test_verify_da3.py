"""Depth Anything 3 through the tools: against its authors' package and its own weights, every output judged."""

import dataclasses
import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import reference_da3
from mlx_depth_convert import bench, convert, inspect_model, verify
from mlx_depth_convert.inputs import Inputs
from mlx_depth_convert.references import NAMES, REFERENCES, reference_of
from mlx_depth_convert.references.network import reference_network
from mlx_depth_convert.verify import GATES, _compared, compare, stage_error
from reference_da3 import ANY_VIEW, GIANT, METRIC, MONO, NESTED
from support import require, seeded

from mlx_depth.checkpoints.checkpoint import Checkpoint, quantize_checkpoint, read_checkpoint
from mlx_depth.cli import main
from mlx_depth.errors import OptionError
from mlx_depth.models.families import FAMILIES
from mlx_depth.processor import Processor
from mlx_depth.registry import find_model
from mlx_depth.weights.quantization import Quantization

require("reference", "e3nn")
PACKAGE = "depth-anything-3"
SIZE = (70, 98)
CAMERAS, RAYS = ["extrinsics", "intrinsics"], ["ray_confidence", "rays"]
GAUSSIANS = [f"gaussians {name}" for name in ("harmonics", "means", "opacities", "raw", "raw_confidence")]
GAUSSIANS += ["gaussians rotations", "gaussians scales"]
OUTPUTS = {
    ANY_VIEW: ["confidence", *CAMERAS, *RAYS],
    GIANT: ["confidence", *CAMERAS, *GAUSSIANS, *RAYS],
    MONO: ["sky"],
    METRIC: ["sky"],
    NESTED: ["confidence", *CAMERAS, *GAUSSIANS, "metric_depth", *RAYS, "scale", "sky"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("da3")
    return {name: reference_da3.save(name, folder / name) for name in OUTPUTS}


def changed(checkpoint: Checkpoint, name: str, change: float = 1.01) -> Checkpoint:
    return dataclasses.replace(checkpoint, weights={**checkpoint.weights, name: checkpoint.weights[name] * change})


# Against the authors' package


@pytest.mark.parametrize("name", list(OUTPUTS))
def test_every_stage_and_output_equals_the_authors(folders: dict[str, Path], name: str) -> None:
    report = verify(folders[name], against=PACKAGE, input_size=SIZE)
    assert report.passed, report.as_text()
    spec = read_checkpoint(folders[name]).spec
    stages = [stage.name for stage in FAMILIES[spec.family].stages(spec.config)]
    found = [error.stage for error in report.stages]
    assert found[: len(stages)] == stages
    assert sorted(found[len(stages) : -1]) == sorted(OUTPUTS[name])
    assert found[-1] == "depth"
    assert all(error.relative <= 1e-4 for error in report.stages)
    assert "a pass proves that the network is ported right" in report.as_text()
    assert report.against == f"{PACKAGE} with the weights of {folders[name].name}"


def test_views_see_each_other(folders: dict[str, Path]) -> None:
    report = verify(folders[ANY_VIEW], against=PACKAGE, input_size=SIZE, views=3)
    assert report.passed, report.as_text()
    assert report.stages[-1].shape == (1, 3, *SIZE)
    assert next(error for error in report.stages if error.stage == "extrinsics").shape == (1, 3, 3, 4)
    checkpoint = read_checkpoint(folders[ANY_VIEW])
    broken = changed(checkpoint, "backbone.camera_token")
    token = np.array(checkpoint.weights["backbone.camera_token"])
    token[:, 1] *= 1.5  # that of all views but the first
    broken.weights["backbone.camera_token"] = mx.array(token)
    one, two = (
        compare(broken, checkpoint, model="a", against="b", in_package=True, input_size=SIZE, views=views)
        for views in (1, 2)
    )
    assert one.passed
    assert not two.passed
    # A block within views may take them one by one, and its stage is then the first view's, which has no fault.
    assert two.first_drift in ("layer 2", "layer 3")


DRIFTS = [
    (ANY_VIEW, "backbone.blocks.3.attn.key_norm.weight", "layer 3"),
    (ANY_VIEW, "head.fusion.1.residual_conv_unit1.conv2.weight", "fusion 1"),
    (ANY_VIEW, "head.ray_fusion.2.projection.weight", "ray fusion 2"),
    (ANY_VIEW, "head.ray_norm.weight", "rays"),
    (ANY_VIEW, "camera_decoder.layers.1.weight", "camera"),
    (ANY_VIEW, "camera_decoder.field_of_view.bias", "intrinsics"),
    (ANY_VIEW, "camera_decoder.center.weight", "extrinsics"),
    (GIANT, "gaussian_head.image_conv.1.weight", "gaussians means"),
    (MONO, "head.sky_conv2.weight", "sky"),
    (NESTED, "metric.backbone.blocks.2.mlp.fc1.weight", "metric layer 2"),
    (NESTED, "metric.head.conv2.weight", "metric_depth"),
]


@pytest.mark.parametrize(("name", "weight", "stage"), DRIFTS)
def test_a_drift_in_any_component_fails(folders: dict[str, Path], name: str, weight: str, stage: str) -> None:
    checkpoint = read_checkpoint(folders[name])
    broken = changed(checkpoint, weight, 1.05)
    report = compare(broken, checkpoint, model="a", against="b", input_size=SIZE)
    failed = [error.stage for error in report.stages if not error.passes(report.gate)]
    assert not report.passed
    assert stage in failed
    assert report.first_drift == failed[0]


def test_a_drift_is_bisected_in_the_authors_order(folders: dict[str, Path]) -> None:
    checkpoint = read_checkpoint(folders[MONO])
    broken = changed(checkpoint, "backbone.blocks.2.mlp.fc1.weight")
    report = compare(broken, checkpoint, model="a", against="b", in_package=True, input_size=SIZE)
    assert (report.first_drift, report.first_module) == ("layer 2", "backbone.blocks.2.mlp.fc1")


@pytest.mark.parametrize("name", list(OUTPUTS))
def test_every_stage_of_the_published_models_has_a_twin(name: str) -> None:
    spec = find_model(name)
    reference = reference_of(spec)
    modules = dict(reference.build(spec.config).named_modules())
    twins = [reference.twin(stage.name) for stage in FAMILIES[spec.family].stages(spec.config)]
    assert len(set(twins)) == len(twins)
    assert set(twins) <= set(modules)


@pytest.mark.parametrize("name", list(OUTPUTS))
def test_the_reference_is_built_as_the_authors_build_it(name: str) -> None:
    """By their own yaml file: the same classes, names and shapes."""
    theirs, ours = reference_da3.meta_network(name), reference_of(find_model(name)).build(find_model(name).config)
    kinds = [{path: type(module) for path, module in network.named_modules()} for network in (theirs, ours)]
    shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in (theirs, ours)]
    assert kinds[0] == kinds[1]
    assert shapes[0] == shapes[1]


def test_its_random_draws_are_kept_out(folders: dict[str, Path]) -> None:
    """The nested network takes quantiles of 100,000 values at most."""
    limit = REFERENCES["depth_anything_3_nested"].most_pixels
    assert limit == 100_000
    with pytest.raises(OptionError, match=r"beyond 100,000 pixels the reference draws some at random.*of 308 or less"):
        verify(folders[NESTED], against=PACKAGE, input_size=(378, 504))
    inputs = Inputs(Processor(504, policy="long_side"), "views", 2, None, limit)
    ((_, pixel_values),) = inputs.of()
    assert pixel_values.shape[:2] == (1, 2)
    assert 0.5 * limit < pixel_values.size // 3 <= limit


# Against stored weights


def test_stages_are_the_same_in_a_converted_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    out = convert(folders[ANY_VIEW], tmp_path / "plain")
    report = verify(out, against=folders[ANY_VIEW], input_size=SIZE)
    assert report.passed
    assert {error.max_abs for error in report.stages} == {0.0}
    assert f"run mlx-depth verify with --against {PACKAGE}" in report.as_text()


# Networks of 64 channels carry the step of their weights into few numbers: more than those of 384 and more do.
PACKED = [(GIANT, 8), (MONO, 8), (MONO, 6), (MONO, 4)]


@pytest.mark.parametrize(("name", "bits"), PACKED)
def test_quantized(folders: dict[str, Path], tmp_path: Path, name: str, bits: int) -> None:
    out = convert(folders[name], tmp_path / "packed", quantize=bits, group_size=32)
    report = verify(out, against=folders[name], input_size=SIZE)
    assert (report.precision, report.passed) == (f"{bits}-bit", True), report.as_text()
    assert 1 - report.stages[-1].correlation > 1e-7
    in_package = verify(out, against=PACKAGE, input_size=SIZE)
    assert (in_package.precision, in_package.passed) == ("float32", True)


def test_quantized_nested_where_no_pixel_is_at_the_edge_of_the_sky(folders: dict[str, Path]) -> None:
    """The depth jumps where a pixel's sky crosses its threshold, and random weights put many there."""
    checkpoint = read_checkpoint(folders[NESTED])
    checkpoint.weights["metric.head.sky_conv3.bias"] -= 100
    packed = quantize_checkpoint(checkpoint, Quantization(8, 32))
    report = compare(packed, checkpoint, model="a", against="b", input_size=SIZE)
    errors = {error.stage: error for error in report.stages}
    assert errors["depth"].passes(GATES["8-bit"])
    assert errors["metric_depth"].passes(GATES["8-bit"])
    assert abs(errors["scale"].factor - 1) < 0.01


@pytest.mark.parametrize("bits", [8, 6])  # the gate of 4 bits is too wide for random weights
def test_a_broken_packed_layer_is_past_the_gate(folders: dict[str, Path], bits: int) -> None:
    checkpoint = read_checkpoint(folders[MONO])
    packed = quantize_checkpoint(checkpoint, Quantization(bits, 32))
    broken = changed(packed, "backbone.blocks.1.mlp.fc1.biases", 0.0)
    sound, report = (compare(side, checkpoint, model="a", against="b", input_size=SIZE) for side in (packed, broken))
    assert sound.passed
    assert (report.passed, report.first_drift) == (False, "layer 1")


def test_few_numbers_are_judged_by_their_largest_error() -> None:
    theirs = seeded("pose", (1, 1, 3, 4))
    for precision, gate in GATES.items():
        limit = 1e-4 if precision == "float32" else (2 * (1 - gate.correlation)) ** 0.5
        for share, passes in ((0.9, True), (1.1, False)):
            ours = theirs.astype(np.float64).copy()
            ours.flat[np.abs(theirs).argmax()] *= 1 + share * limit
            assert stage_error("extrinsics", ours, theirs, "").passes(gate) is passes
        assert not stage_error("scale", np.array([np.nan]), np.array([1.0]), "").passes(gate)
        assert stage_error("scale", np.array([1.0]), np.array([1.0]), "").passes(gate)


def test_a_quaternion_and_its_negative_are_one_rotation() -> None:
    q = seeded("q", (1, 5, 4))
    signs = np.array([1, -1, 1, -1, -1])[None, :, None]
    name = "gaussians rotations"
    assert _compared(name, {name: q * signs}, {name: q}, "").max_abs == 0
    assert _compared("rays", {"rays": q * signs}, {"rays": q}, "").max_abs > 0


# What it runs on


def test_photos_make_scenes(tmp_path: Path) -> None:
    photos = [seeded(f"photo {i}", (60, 80, 3), 60).clip(-120, 120).astype(np.int16) for i in range(4)]
    photos = [(photo + 128).astype(np.uint8) for photo in photos]
    inputs = Inputs(Processor(56), "views", 2, SIZE)
    scenes = list(inputs.of(photos))
    assert [pixel_values.shape for _, pixel_values in scenes] == [(1, 2, *SIZE, 3)] * 2
    assert " + " in scenes[0][0]
    with pytest.raises(OptionError, match="3 photos do not make scenes of 2 views: give a multiple"):
        list(inputs.of(photos[:3]))
    with pytest.raises(OptionError, match="the views of a scene have one size"):
        list(Inputs(Processor(56), "views", 2).of([photos[0], photos[1][:, :40]]))
    with pytest.raises(OptionError, match="takes one image sees no 2 views: leave views out"):
        Inputs(Processor(56), "image", 2)
    with pytest.raises(OptionError, match="views is 0: give 1 or more"):
        Inputs(Processor(56), "views", 0)


# References by name


def test_names(folders: dict[str, Path]) -> None:
    assert NAMES == ("transformers", PACKAGE, "moge")
    with pytest.raises(
        OptionError, match=rf"with transformers, which has no depth_anything_3_mono: take --against {PACKAGE}, or"
    ):
        verify(folders[MONO], against="transformers")
    with pytest.raises(
        OptionError, match="with depth-anything-3, which has no depth_anything: take --against transformers"
    ):
        verify("mlx-depth-demo", against=PACKAGE)


def test_a_missing_package_is_said_with_the_way_to_get_it(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install = r"pip install 'mlx-depth\[reference\]' && pip install --no-deps depth-anything-3==0\.1\.1 evo==1\.38\.1"
    monkeypatch.setitem(sys.modules, "depth_anything_3.model.da3", None)
    with pytest.raises(OptionError, match=rf"comparing with {PACKAGE} needs it \(.*\): {install}"):
        reference_network(read_checkpoint(folders[MONO]))
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "evo.core.trajectory", None)  # which only Gaussians ask for
    monkeypatch.delitem(sys.modules, "depth_anything_3.model.gs_adapter", raising=False)
    monkeypatch.delitem(sys.modules, "depth_anything_3.utils.pose_align", raising=False)
    reference_network(read_checkpoint(folders[ANY_VIEW]))
    with pytest.raises(OptionError, match=rf"comparing with {PACKAGE} needs it \(.*evo.*\): {install}"):
        reference_network(read_checkpoint(folders[GIANT]))


# The command, inspect and bench


def test_command(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "verify",
        str(folders[ANY_VIEW]),
        "--against",
        PACKAGE,
        "--input-size",
        "42x56",
        "--views",
        "2",
        "--json",
    ]
    assert main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)  # nothing that the package prints comes between
    assert (facts["passed"], facts["runner"], facts["proof"]) == (True, PACKAGE, PACKAGE)
    assert facts["stages"][-1]["shape"] == [1, 2, 42, 56]


@pytest.mark.parametrize("name", [GIANT, NESTED, MONO])
def test_inspect(folders: dict[str, Path], name: str) -> None:
    found = inspect_model(folders[name], input_size=SIZE)
    names = {row.name for row in found.rows}
    where = "any_view." if name == NESTED else ""
    assert {f"{where}backbone.blocks.3.attn", f"{where}head.conv3"} <= names
    assert (f"{where}gaussian_head.conv3" in names) is (name != MONO)
    assert found.depth.shape == SIZE
    assert found.blocks == (12 if name == NESTED else 6)


def test_bench_with_views_and_in_turn_with_the_reference(folders: dict[str, Path]) -> None:
    sizes = {"input_sizes": [(42, 56)], "dtypes": ["float32"], "runs": 1}
    found = bench([folders[ANY_VIEW]], views=[1, 2], compare="torch", **sizes)
    assert [row.views for row in found.measurements] == [1, 2]
    assert all(row.torch is not None and row.torch.median > 0 for row in found.measurements)
    assert [row.images_per_second * row.mlx.median for row in found.measurements] == pytest.approx([1, 2])
    assert "| da3-small | 42×56 |" in found.as_markdown()
    assert "| da3-small | 2 views of 42×56 |" in found.as_markdown()
    assert bench([folders[MONO]], **sizes).measurements[0].views == 1
    with pytest.raises(OptionError, match="sees no 2 views: leave views out"):
        bench([folders[MONO]], views=[2], **sizes)
