"""The stage table: right figures, the first stage that drifts, and the three kinds of reference."""

import dataclasses
import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import reference
from mlx_depth_convert import convert, verify
from mlx_depth_convert.report import Report
from mlx_depth_convert.verify import GATES, compare, depth_error, stage_error
from support import seeded

from mlx_depth.checkpoints.checkpoint import (
    Checkpoint,
    expand_checkpoint,
    quantize_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from mlx_depth.cli import main
from mlx_depth.errors import OptionError
from mlx_depth.registry import DEMO_FOLDER
from mlx_depth.result import DepthKind
from mlx_depth.weights.quantization import BITS, Quantization

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZE = 98
STAGES = [
    *("patch embedding", "with positions", "layer 0", "layer 1", "layer 2", "layer 3"),
    *(f"reassemble {i}" for i in range(4)),
    *(f"fusion {i}" for i in range(4)),
    *("head", "depth"),
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference.save(reference.model("tiny"), tmp_path_factory.mktemp("verify") / "hub")


def changed(checkpoint: Checkpoint, name: str, change: float) -> Checkpoint:
    return dataclasses.replace(checkpoint, weights={**checkpoint.weights, name: checkpoint.weights[name] * change})


def drift(hub: Path, name: str, change: float = 1.01) -> Report:
    checkpoint = read_checkpoint(hub)
    return compare(changed(checkpoint, name, change), checkpoint, model="a", against="b", input_size=SIZE)


# Against transformers


@pytest.mark.parametrize(
    "options", [{}, {"max_depth": 20}, {"swiglu": True}, {"version": 1}], ids=["relative", "metric", "swiglu", "v1"]
)
def test_every_stage_equals_transformers(options: dict[str, int], tmp_path: Path) -> None:
    folder = reference.save(reference.model("tiny", **options), tmp_path / "hub")
    report = verify(folder, against="transformers", input_size=(84, 126))
    assert report.passed
    assert [stage.stage for stage in report.stages] == STAGES
    assert all(stage.relative <= 1e-4 and stage.correlation >= 0.99999 for stage in report.stages)
    assert report.against == "transformers with the weights of hub"
    assert "a pass proves that the network is ported right" in report.as_text()
    assert report.stages[-1].shape == (1, 84, 126)


def test_transformers_sees_the_weights_of_a_converted_folder(hub: Path, tmp_path: Path) -> None:
    packed = convert(hub, tmp_path / "packed", quantize=8, group_size=32)
    report = verify(packed, against="transformers", input_size=SIZE)
    assert report.passed
    assert report.precision == "float32"  # both sides have the packed weights


def test_a_drift_is_found_in_transformers_order(hub: Path) -> None:
    checkpoint = read_checkpoint(hub)
    broken = changed(checkpoint, "backbone.blocks.2.mlp.fc1.weight", 1.01)
    report = compare(broken, checkpoint, model="a", against="b", in_package=True, input_size=SIZE)
    assert (report.first_drift, report.first_module) == ("layer 2", "backbone.blocks.2.mlp.fc1")


# Against a source in MLX


@pytest.mark.parametrize(
    ("name", "stage", "module"),
    [
        ("backbone.patch_embed.proj.weight", "patch embedding", "backbone.patch_embed.proj"),
        ("backbone.pos_embed", "with positions", "backbone.blocks.0.norm1"),
        ("backbone.blocks.1.layer_scale1.gamma", "layer 1", "backbone.blocks.1.layer_scale1"),
        ("backbone.blocks.3.attn.value_proj.weight", "layer 3", "backbone.blocks.3.attn.value_proj"),
        ("backbone.norm.weight", "reassemble 0", "backbone.norm"),
        ("head.reassemble.2.adapt.weight", "reassemble 2", "head.reassemble.2.adapt"),
        ("head.fusion.1.residual_conv_unit1.conv2.weight", "fusion 1", "head.fusion.1.residual_conv_unit1.conv2"),
        ("head.conv1.weight", "head", "head.conv1"),
        ("head.conv2.weight", "depth", "head.conv2"),
    ],
)
def test_an_injected_drift_is_bisected_to_its_stage_and_layer(hub: Path, name: str, stage: str, module: str) -> None:
    report = drift(hub, name)
    assert not report.passed
    assert (report.first_drift, report.first_module) == (stage, module)
    assert f"FAILED: first stage past the gate: {stage}, first layer past it: {module}" in report.as_text()


def test_equal_checkpoints_have_no_error(hub: Path) -> None:
    report = drift(hub, "head.conv3.bias", 1.0)
    assert report.passed
    assert {stage.max_abs for stage in report.stages} == {0.0}
    proof = "both in MLX, on the same pixels: a pass proves that the weights are stored right, not that the network is"
    for text in (report.as_text(), report.as_markdown(), report.as_json()["meaning"]):
        assert f"a was compared with b, {proof} ported right." in text
        assert "For that, run mlx-depth verify with --against transformers." in text
    assert [depth.abs_rel for depth in report.depths] == [0.0]


def test_the_gate_follows_the_number_format(hub: Path, tmp_path: Path) -> None:
    for options, precision in (
        ({"dtype": "float16"}, "float16"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"quantize": 8, "group_size": 32}, "8-bit"),
        ({"quantize": 4, "group_size": 32}, "4-bit"),
        ({"recipe": "mixed-6-8", "group_size": 32}, "6-bit"),
    ):
        out = convert(hub, tmp_path / precision, **options)
        report = verify(out, against=hub, input_size=SIZE)
        assert (report.precision, report.gate) == (precision, GATES[precision])
    copy = convert(tmp_path / "float16", tmp_path / "copy")
    assert verify(copy, against=tmp_path / "float16", input_size=SIZE).precision == "float32"


@pytest.mark.parametrize("bits", BITS)
def test_a_broken_packed_layer_is_past_the_gate_of_its_bits(bits: int) -> None:
    """With real weights: on random ones the gate of 4 bits is too wide for this."""
    plain = expand_checkpoint(read_checkpoint(DEMO_FOLDER))
    packed = quantize_checkpoint(plain, Quantization(bits))
    broken = changed(packed, "backbone.blocks.3.mlp.fc1.biases", 0.0)
    photo = [EXAMPLES / "coffee.jpg"]
    sound, report = (
        compare(side, plain, model="a", against="b", images=photo, input_size=112) for side in (packed, broken)
    )
    assert sound.passed
    assert (report.precision, report.passed, report.first_drift) == (f"{bits}-bit", False, "layer 5")


@pytest.mark.parametrize("precision", ["float16", "8-bit", "6-bit", "4-bit"])
def test_a_depth_that_is_off_by_a_factor_fails(precision: str) -> None:
    """Correlation alone does not see it, and in metres it is all that matters."""
    depth = np.abs(seeded("depth", (1, 20, 30))) + 1
    limit = GATES[precision].factor
    assert limit is not None
    assert stage_error("depth", (1 + 0.9 * limit) * depth, depth, "photo").passes(GATES[precision])
    scaled = stage_error("depth", (1 + 1.1 * limit) * depth, depth, "photo")
    assert scaled.correlation == pytest.approx(1)
    assert not scaled.passes(GATES[precision])


def test_the_demo_in_four_bits_on_a_photo(tmp_path: Path) -> None:
    """The bundled weights, expanded, are the reference; the figures stand in convert/README.md."""
    plain = convert("mlx-depth-demo", tmp_path / "plain", dtype="float32")
    packed = convert(plain, tmp_path / "packed", quantize=4)
    report = verify(packed, against=plain, images=[EXAMPLES / "summer_palace.jpg"], input_size=182)
    assert report.passed
    assert 0.95 < report.stages[-1].correlation < 1


def test_the_recorded_source_is_the_default(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = {"id": "some-one/tiny", "revision": "a" * 40, "sha256": {}}
    out = write_checkpoint(read_checkpoint(hub), tmp_path / "out", source=source, card="")
    asked: list[tuple[str, str]] = []

    def fetch(repo: str, revision: str, **_: object) -> tuple[Path, str]:
        asked.append((repo, revision))
        return hub, revision

    monkeypatch.setattr("mlx_depth.checkpoints.hub.fetch", fetch)
    report = verify(out, input_size=SIZE)
    assert asked == [("some-one/tiny", "a" * 40)]
    assert (report.passed, report.against) == (True, "some-one/tiny")


def test_nothing_to_compare_with(hub: Path, tmp_path: Path) -> None:
    out = convert(hub, tmp_path / "out")
    with pytest.raises(OptionError, match=r"records no source on the Hub: say what .*--against"):
        verify(out)
    with pytest.raises(OptionError, match="different architectures: name the model's own source"):
        verify(out, against="mlx-depth-demo")


# The figures


def test_stage_figures() -> None:
    ours, theirs = np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([[1.0, 2.0], [3.0, 4.0]])
    error = stage_error("x", ours, theirs, "photo")
    assert (error.max_abs, error.mean_abs, error.relative, error.worst) == (1.0, 0.25, 0.25, (1, 1))
    assert error.correlation == pytest.approx(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1])
    assert not error.passes(GATES["float32"])
    assert stage_error("x", theirs, theirs, "photo").passes(GATES["float32"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_never_pass(bad: float) -> None:
    theirs = seeded("theirs", (2, 3))
    ours = theirs.copy()
    ours[1, 2] = bad
    for gate in GATES.values():
        assert not stage_error("x", ours, theirs, "photo").passes(gate)
        assert not stage_error("x", theirs * 0 + 1, theirs, "photo").passes(gate)


def test_depth_figures_are_those_of_the_benchmarks() -> None:
    theirs = np.abs(seeded("depth", (1, 20, 30))) + 1
    noise = 1 + 0.3 * seeded("noise", (1, 20, 30))
    metric = depth_error("photo", theirs * noise, theirs, DepthKind.METRIC)
    ratio = np.maximum(theirs * noise, 1e-9) / theirs
    assert metric.abs_rel == pytest.approx(np.abs(noise - 1).mean(), rel=1e-4)
    assert metric.delta1 == pytest.approx((np.maximum(ratio, 1 / ratio) < 1.25).mean())
    relative = depth_error("photo", 5 * theirs + 7, theirs, DepthKind.RELATIVE_INVERSE)
    assert relative.abs_rel < 1e-6  # scale and shift mean nothing there
    assert relative.delta1 == 1
    assert depth_error("photo", 1.1 * theirs, theirs, DepthKind.METRIC).abs_rel == pytest.approx(0.1, rel=1e-4)


# The command


def test_command_writes_both_reports(hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = shutil.copy(EXAMPLES / "coffee.jpg", tmp_path / "photo.jpg")
    files = ["--report", str(tmp_path / "r.json"), str(tmp_path / "r.md")]
    options = ["--against", str(hub), "--image", str(photo), str(EXAMPLES / "rocket.jpg"), "--input-size", "70"]
    assert main(["verify", str(hub), *options, *files]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == "hub against hub"
    assert printed.splitlines()[-1] == "passed"
    facts = json.loads((tmp_path / "r.json").read_text())
    assert facts["passed"] is True
    assert [stage["stage"] for stage in facts["stages"]] == STAGES
    assert [depth["image"] for depth in facts["depths"]] == [str(photo), str(EXAMPLES / "rocket.jpg")]
    page = (tmp_path / "r.md").read_text()
    assert page.startswith("# hub against hub\n\n| stage | shape |")
    assert page.count("\n| ") == len(STAGES) + 2


def test_command_exits_1_past_the_gate(hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = changed(read_checkpoint(hub), "head.fusion.3.projection.weight", 1.5)
    broken = write_checkpoint(checkpoint, tmp_path / "broken", source={}, card="")
    assert main(["verify", str(broken), "--against", str(hub), "--input-size", "70"]) == 1
    assert "FAILED: first stage past the gate: fusion 3" in capsys.readouterr().out
    assert main(["verify", str(broken)]) == 2


def test_networks_are_left_as_they_were(hub: Path) -> None:
    before = reference.model("tiny").backbone.embeddings.patch_embeddings._forward_hooks.copy()
    verify(hub, against="transformers", input_size=70)
    assert reference.model("tiny").backbone.embeddings.patch_embeddings._forward_hooks == before
    assert mx.array_equal(mx.ones(2), mx.compile(lambda x: x)(mx.ones(2)))
