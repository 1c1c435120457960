"""The tools on a model that takes a depth prompt: the Hub's folder and the authors' file, proved and packed."""

import json
from pathlib import Path

import numpy as np
import pytest
import reference
import reference_prompt
from mlx_depth_convert import bench, convert, inspect_model, verify
from mlx_depth_convert.coreml.emitters import emitter_of
from mlx_depth_convert.pictures import generated_prompt

import mlx_depth
from mlx_depth import DepthKind, OptionError
from mlx_depth.checkpoints.checkpoint import read_checkpoint
from mlx_depth.registry import MODELS

SMALL = (56, 70)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference_prompt.save(reference_prompt.model("tiny"), tmp_path_factory.mktemp("hub") / "tiny-prompt")


def test_the_hubs_folder_is_proved_stage_by_stage(hub: Path, tmp_path: Path) -> None:
    folder = convert(hub, tmp_path / "ours")
    config = json.loads((folder / "config.json").read_text())
    assert (config["family"], config["depth_kind"]) == ("prompt_depth_anything", "metric")
    for report in (verify(folder, against="transformers", input_size=SMALL), verify(hub, input_size=SMALL)):
        assert report.passed
        assert [error.stage for error in report.stages if "prompt" in error.stage] == [f"prompt {i}" for i in range(4)]
        assert all(error.relative < 1e-5 for error in report.stages)
    assert verify(folder, against=hub, input_size=SMALL).stages[-1].max_abs == 0


def test_a_drift_of_a_prompt_is_named(hub: Path, tmp_path: Path) -> None:
    from mlx_depth_convert.verify import compare

    whole, broken = read_checkpoint(hub), read_checkpoint(hub)
    broken.weights["head.fusion.2.prompt.conv2.bias"] += 0.1
    report = compare(broken, whole, model="broken", against="whole", in_package=True, input_size=SMALL)
    assert not report.passed
    assert report.first_drift == "prompt 2"
    assert report.first_module == "head.fusion.2.prompt.conv2"


def test_the_authors_file_is_read_without_torch(hub: Path, tmp_path: Path) -> None:
    """As Lightning saves it: every name behind ``pipeline.``, the mean and deviation of photos among them."""
    state = reference_prompt.authors_names(reference_prompt.model("tiny").state_dict())
    lightning = {"state_dict": {f"pipeline.{name}": value for name, value in state.items()}, "global_step": 1}
    (tmp_path / "authors").mkdir()
    reference.torch.save(lightning, tmp_path / "authors" / "model.ckpt")
    (tmp_path / "authors" / "config.json").write_text((hub / "config.json").read_text())
    with pytest.warns(UserWarning, match="pipeline"):
        folder = convert(tmp_path / "authors", tmp_path / "ours")
    assert verify(folder, against=hub, input_size=SMALL).stages[-1].max_abs == 0


def test_the_published_file_needs_no_config(tmp_path: Path) -> None:
    """The name of the repository says which it is, the shapes how large."""
    from mlx_depth.checkpoints.checkpoint import assemble_checkpoint

    state = reference.tensors(reference_prompt.authors_names(reference_prompt.meta_model("small").state_dict()))
    folder = tmp_path / "prompt-depth-anything-vits-transparent"
    folder.mkdir()
    (folder / "model.ckpt").touch()
    found = assemble_checkpoint(
        folder / "model.ckpt", state, name="depth-anything/prompt-depth-anything-vits-transparent"
    )
    assert found.spec == MODELS["prompt-depth-anything-small-transparent"]
    with pytest.warns(UserWarning, match="taken for prompt-depth-anything-small"):
        assert assemble_checkpoint(folder / "model.ckpt", state, name="mine").spec.license is None


def test_a_packed_model_predicts_and_stays_close(hub: Path, tmp_path: Path) -> None:
    packed = convert(hub, tmp_path / "packed", quantize=8, group_size=32)
    assert verify(packed, against=hub, input_size=SMALL).passed
    photo = (np.indices((48, 64)).sum(axis=0)[..., None] * [1, 2, 1] % 256).astype(np.uint8)
    result = mlx_depth.predict(photo, model=packed, prompt=generated_prompt(), input_size=70)
    assert result.kind is DepthKind.METRIC
    assert 0.8 <= result.depth.min() < result.depth.max() <= 4


def test_inspect_and_bench_give_a_prompt(hub: Path) -> None:
    rows = {row.name: row for row in inspect_model(hub, input_size=SMALL).rows}
    assert all(f"head.fusion.{level}.prompt.conv3" in rows for level in range(4))
    (measured,) = bench([hub], input_sizes=[SMALL], batches=[2], runs=1).measurements
    assert (measured.batch, measured.input_size) == (2, SMALL)


def test_core_ml_says_why_not() -> None:
    with pytest.raises(OptionError, match="prompt-depth-anything-small takes distances beside the photo"):
        emitter_of(MODELS["prompt-depth-anything-small"])
