"""The facts behind ``mlx-depth models`` and ``mlx-depth info``."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

import mlx_depth
from mlx_depth.checkpoints import hub
from mlx_depth.checkpoints.checkpoint import build_network, read_checkpoint
from mlx_depth.checkpoints.describe import PURPOSES, describe_model, models_table, purpose_of
from mlx_depth.errors import CheckpointError, ModelNotFoundError
from mlx_depth.registry import DEMO_FOLDER, MODELS

DEMO = "mlx-depth-demo"
OF_CHECKPOINT = {"dialect", "revision", "quantization", "dtypes", "tensors", "disk_bytes"}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is in the cache, and asking the Hub fails the test."""
    monkeypatch.setattr(hub, "cached", lambda *_, **__: None)
    monkeypatch.setattr(hub, "_ask", lambda repo, _: pytest.fail(f"the Hub is asked for {repo}"))


def test_table_is_the_registry(offline: None) -> None:
    table = models_table()
    assert [row["name"] for row in table] == list(MODELS)
    assert len({tuple(row) for row in table}) == 1
    assert json.loads(json.dumps(table)) == table
    rows = {row["name"]: row for row in table}
    assert rows["depth-anything-v2-metric-indoor-large"] == {
        "name": "depth-anything-v2-metric-indoor-large",
        "alias": "da2-indoor-large",
        "parameters": 335_315_649,
        "purpose": "metric",
        "takes": "image",
        "kind": "metric",
        "unit": "m",
        "license": "CC-BY-NC-4.0",
        "commercial": False,
        "hub": "depth-anything/Depth-Anything-V2-Metric-Indoor-Large-hf",
        "downloaded": False,
    }
    assert [name for name, row in rows.items() if row["downloaded"]] == [DEMO]
    assert {name for name, row in rows.items() if row["takes"] == "views"} == {
        name for name, spec in MODELS.items() if spec.family in ("depth_anything_3", "depth_anything_3_nested")
    }
    assert rows["depth-anything-v2-giant"]["hub"] == "(unreleased)"
    assert rows[DEMO]["hub"] == "(bundled)"


@pytest.mark.parametrize(
    ("name", "purpose"),
    [
        ("depth-anything-v2-small", "fast"),
        ("depth-anything-v1-base", "sharp"),
        ("depth-anything-3-mono-large", "sharp"),
        ("depth-anything-v2-metric-indoor-small", "metric"),
        ("depth-anything-3-metric-large", "metric"),
        ("prompt-depth-anything-small", "lidar"),
        ("depth-anything-3-small", "multi-view"),
        ("depth-anything-3-nested-giant-large", "multi-view"),
    ],
)
def test_what_a_model_is_for(name: str, purpose: str) -> None:
    assert purpose_of(MODELS[name]) == purpose
    assert purpose in PURPOSES


def test_table_says_what_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "is_cached", lambda repo: repo == MODELS["depth-anything-v1-base"].hub_id)
    assert [row["name"] for row in models_table() if row["downloaded"]] == ["depth-anything-v1-base", DEMO]


@pytest.mark.parametrize("source", ["depth-anything-v2-base", "da2-base", "depth-anything/Depth-Anything-V2-Base-hf"])
def test_model_that_is_not_here_is_described_from_the_registry(source: str, offline: None) -> None:
    facts = describe_model(source)
    assert json.loads(json.dumps(facts)) == json.loads(json.dumps(describe_model("depth-anything-v2-base")))
    assert (facts["license"], facts["commercial_use"]) == ("CC-BY-NC-4.0", False)
    assert facts["config"]["backbone"]["embed_dim"] == 768
    assert facts["processor"]["input_size"] == 518
    assert OF_CHECKPOINT.isdisjoint(facts)


@pytest.mark.parametrize(
    ("name", "metres"), [("da2-indoor-small", 20.0), ("da2-outdoor-small", 80.0), ("da2-small", None)]
)
def test_kind_and_range(name: str, metres: float | None, offline: None) -> None:
    facts = describe_model(name)
    assert facts["max_depth"] == metres
    assert ("metres" in facts["description"]) == (metres is not None)
    assert (facts["kind"], facts["unit"]) == (("metric", "m") if metres else ("relative_inverse", None))


@pytest.mark.parametrize("source", [DEMO, "demo", DEMO_FOLDER, str(DEMO_FOLDER), DEMO_FOLDER / "model.safetensors"])
def test_bundled_model_by_name_folder_and_file(source: str | Path) -> None:
    facts = describe_model(source)
    assert facts == describe_model(DEMO)
    assert facts.keys() >= OF_CHECKPOINT
    assert (facts["name"], facts["dialect"], facts["revision"]) == (DEMO, "mlx", None)
    assert facts["dtypes"] == ["float16", "uint32"]
    assert facts["quantization"]["bits"] == 8
    json.dumps(facts)


def test_sizes_are_those_of_the_file_and_of_the_loaded_network() -> None:
    facts = describe_model(DEMO)
    on_disk = (DEMO_FOLDER / "model.safetensors").stat().st_size
    assert 0 < on_disk - facts["disk_bytes"] < 100_000  # the header
    for dtype in ("float32", "float16"):
        parameters = tree_flatten(mlx_depth.load(DEMO, dtype=dtype).network.parameters())
        assert sum(array.nbytes for _, array in parameters) == facts["memory_bytes"][dtype]
    packed = build_network(read_checkpoint(DEMO_FOLDER), dtype=mx.float16, expand=False)
    stored = sum(array.nbytes for _, array in tree_flatten(packed.parameters()))
    assert stored == facts["memory_bytes"]["packed, on a GPU"]


def test_folder_of_ones_own(tmp_path: Path) -> None:
    folder = shutil.copytree(DEMO_FOLDER, tmp_path / "mine")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"name": "my-model", "license": None}))
    facts = describe_model(str(folder))
    assert (facts["name"], facts["license"], facts["commercial_use"]) == ("my-model", None, None)


def test_cached_repository_is_described_as_it_is(
    offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the Hub holds by now: it is not asked."""
    snapshot = shutil.copytree(DEMO_FOLDER, tmp_path / "a1b2c3")
    cached = {("a/b", "main"): snapshot}
    monkeypatch.setattr(hub, "cached", lambda repo, revision, **_: cached.get((repo, revision)))
    facts = describe_model("a/b")
    assert (facts["name"], facts["revision"]) == (DEMO, "a1b2c3")
    with pytest.raises(ModelNotFoundError, match="a/b@v2 is not on this disk, and info downloads nothing"):
        describe_model("a/b@v2")


def test_nothing_there(offline: None) -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean 'depth-anything-v2-small'"):
        describe_model("da2-smal")
    with pytest.raises(ModelNotFoundError, match="info downloads nothing: run mlx-depth predict --model a/b@v1 first"):
        describe_model("a/b@v1")


def test_damaged_or_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no file or folder"):
        describe_model(tmp_path / "nowhere")
    folder = shutil.copytree(DEMO_FOLDER, tmp_path / "cut")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1_000_000)
    with pytest.raises(CheckpointError, match="damaged"):
        describe_model(folder)
