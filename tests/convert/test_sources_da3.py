"""Depth Anything 3's own files: as the Hub has them, as others save them, and what is wrong with a file."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import reference_da3
from mlx_depth_convert import convert
from reference_da3 import ANY_VIEW, GIANT, METRIC, MONO, NESTED, torch
from safetensors import safe_open
from safetensors.torch import save_model

from mlx_depth.checkpoints.checkpoint import Checkpoint, assemble_checkpoint
from mlx_depth.errors import CheckpointError
from mlx_depth.registry import MODELS, find_model
from mlx_depth.weights.rules import check_complete

NAMES = [ANY_VIEW, "da3-base", "da3-large", GIANT, MONO, METRIC, NESTED]
SHARED = ".scratch.output_conv2_aux."


def hub_tensors(name: str) -> dict[str, mx.array]:
    """Names and shapes of the Hub's file: ``model.`` in front, and what levels share stored once."""
    tensors = reference_da3.tensors(reference_da3.meta_network(name))
    aliases = [key for key in tensors for level in "123" if f"{SHARED}{level}.2." in key]
    return {f"model.{key}": value for key, value in tensors.items() if key not in aliases}


def assembled(folder: Path, tensors: Mapping[str, mx.array], model_name: str | None, **options: Any) -> Checkpoint:
    """As from a folder with a config.json; nothing is computed, so that full size costs nothing."""
    (folder / "model.safetensors").touch()
    if model_name is not None:
        (folder / "config.json").write_text(json.dumps({"model_name": model_name, "config": {"any": "thing"}}))
    return assemble_checkpoint(folder, tensors, **options)


def check(checkpoint: Checkpoint) -> None:
    check_complete(checkpoint.family.network(checkpoint.spec.config), checkpoint.weights)


@pytest.mark.parametrize("name", NAMES)
def test_the_hubs_folder_at_full_size(tmp_path: Path, name: str) -> None:
    with pytest.warns(UserWarning, match=r"'model\.' stands before their names"):
        checkpoint = assembled(tmp_path, hub_tensors(name), name)
    assert (checkpoint.dialect, checkpoint.spec.config) == ("original", find_model(name).config)
    check(checkpoint)


@pytest.mark.parametrize("name", [ANY_VIEW, GIANT, NESTED])
@pytest.mark.filterwarnings("ignore:.*stands before their names")
def test_without_a_config_the_width_tells_the_size(tmp_path: Path, name: str) -> None:
    checkpoint = assembled(tmp_path, hub_tensors(name), None)
    assert checkpoint.spec.config == find_model(name).config
    assert checkpoint.spec.license is None  # as anybody's
    check(checkpoint)


@pytest.mark.filterwarnings("ignore:.*stands before their names")
def test_mono_and_metric_need_a_word(tmp_path: Path) -> None:
    tensors = hub_tensors(METRIC)
    with pytest.warns(UserWarning, match="taken for depth-anything-3-mono-large. Other models have the same tensors"):
        assert assembled(tmp_path, tensors, None).spec.config == find_model(MONO).config
    like = MODELS["depth-anything-3-metric-large"]
    assert assembled(tmp_path, tensors, None, like=like).spec.config == like.config
    named = tmp_path / "DA3METRIC-LARGE"
    named.mkdir()
    assert assembled(named, tensors, None).spec == like


def test_one_half_of_the_nested_model_by_its_prefix(tmp_path: Path) -> None:
    """It is a whole model of its own, and asking for it is not a mistake."""
    with pytest.warns(UserWarning, match=r"'model\.da3_metric\.' stands before their names"):
        checkpoint = assembled(
            tmp_path, hub_tensors(NESTED), None, prefix="model.da3_metric", like=MODELS["depth-anything-3-metric-large"]
        )
    assert checkpoint.spec.family == "depth_anything_3_mono"
    check(checkpoint)


@pytest.mark.parametrize("missing", ["model.da3.", "model.da3_metric."])
@pytest.mark.filterwarnings("ignore:.*stands before their names")
def test_a_nested_file_with_one_half_missing(tmp_path: Path, missing: str) -> None:
    tensors = {key: value for key, value in hub_tensors(NESTED).items() if not key.startswith(missing)}
    with pytest.raises(CheckpointError, match=r"'da3nested-giant-large', but .*only a part of them: take the whole"):
        assembled(tmp_path, tensors, NESTED)


@pytest.mark.filterwarnings("ignore:.*stands before their names")
def test_configs_of_other_models(tmp_path: Path) -> None:
    tensors = hub_tensors(ANY_VIEW)
    for name in (MONO, NESTED):
        with pytest.raises(CheckpointError, match=f"model_name '{name}', but the tensors are not that model's"):
            assembled(tmp_path, tensors, name)
    with pytest.raises(CheckpointError, match=r"model_name 'da3-tiny': the known ones are da3-small, da3-base, "):
        assembled(tmp_path, tensors, "da3-tiny")
    (tmp_path / "config.json").write_text(json.dumps({"encoder": "vits"}))
    with pytest.raises(CheckpointError, match=r"not Depth Anything 3's, which holds .*\(keys here: encoder\)"):
        assembled(tmp_path, tensors, None)
    with pytest.raises(CheckpointError, match=r"config says .*, but the longest side|does not fit the model"):
        check(assembled(tmp_path, tensors, "da3-base"))


class Wrapped(torch.nn.Module):
    """The authors' class for users: all names begin with ``model.``."""

    def __init__(self, network: Any):
        super().__init__()
        self.model = network


@pytest.mark.filterwarnings("ignore:.*(stands before their names|the weights are under|model.' stood)")
def test_small_is_bit_identical_from_every_container(tmp_path: Path) -> None:
    network = Wrapped(reference_da3.model(ANY_VIEW))
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "config.json").write_text(json.dumps({"model_name": ANY_VIEW, "config": {}}))
    save_model(network, str(hub / "model.safetensors"))
    with safe_open(hub / "model.safetensors", framework="np") as file:
        assert len([name for name in file.keys() if re.search(r"output_conv2_aux\.\d\.2\.", name)]) == 2  # noqa: SIM118
        assert len(file.metadata()) >= 6
    flat = {name.removeprefix("model."): value for name, value in network.state_dict().items()}
    files = {"a.pth": network.state_dict(), "b.pth": {"state_dict": flat, "epoch": 3}}
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    digests = set()
    for source in (hub, hub / "model.safetensors", *(tmp_path / name for name in files)):
        out = convert(source, tmp_path / f"from {source.name}")
        digests.add(hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest())
        written = json.loads((out / "config.json").read_text())
        assert written["config"]["camera_encoder"] is True
        assert written["family"] == "depth_anything_3"
    assert len(digests) == 1
