"""What people and their downloads do wrong: one line that says the next step, exit code 2, and no folder."""

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import containers
import numpy as np
import pytest
import reference
from mlx_depth_convert import convert
from reference import torch
from safetensors.numpy import load_file, save_file

from mlx_depth.cli import main

WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
NORM = "backbone.layernorm.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference.save(reference.model("tiny"), tmp_path_factory.mktemp("good") / "hub")


@pytest.fixture(scope="module")
def ours(good: Path) -> Path:
    return convert(good, good.parent / "ours", quantize=8, group_size=32)


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "source"))


def tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> Path:
    arrays = load_file(folder / WEIGHTS)
    change(arrays)
    save_file(arrays, folder / WEIGHTS)
    return folder


def facts(folder: Path, **changes: object) -> Path:
    data = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**data, **changes}))
    return folder


def overwrite(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def sharded(folder: Path, weight_map: dict[str, str]) -> Path:
    """An index instead of the one file, which would be taken in its stead."""
    (folder / WEIGHTS).rename(folder / "first.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def truncated(path: Path) -> Path:
    return overwrite(path, path.read_bytes()[: path.stat().st_size // 2])


def poisoned(value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[NORM] = arrays[NORM].copy()
        arrays[NORM][3] = value

    return change


def torch_file(folder: Path, content: object) -> Path:
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


def repeated(folder: Path) -> Path:
    shutil.copy(folder / WEIGHTS, folder / "first.safetensors")
    shutil.copy(folder / WEIGHTS, folder / "second.safetensors")
    return sharded(folder, {"a": "first.safetensors", "b": "second.safetensors"})


def gguf_file(folder: Path) -> Path:
    return containers.save_gguf(reference.model("tiny"), folder / "tiny.gguf")


def several(folder: Path) -> Path:
    (folder / WEIGHTS).rename(folder / "a.bin")
    shutil.copy(folder / "a.bin", folder / "b.bin")
    return folder


CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty file": (lambda f: overwrite(f / WEIGHTS, b""), r"is damaged or no safetensors file .*: download it again"),
    "wrong magic": (
        lambda f: overwrite(f / WEIGHTS, b"<html>Not found</html>"),
        r"is a web page \(HTML\), not a safetensors file: download the file itself",
    ),
    "unknown magic": (
        lambda f: overwrite(f / WEIGHTS, b"\0\1\2\3" * 9),
        r"is damaged or no safetensors file .*: download it again",
    ),
    "truncated": (lambda f: truncated(f / WEIGHTS), r"is damaged or no safetensors file .*: download it again"),
    "huge header": (
        lambda f: overwrite(f / WEIGHTS, struct.pack("<Q", 2**62) + b"{}"),
        r"is damaged or no safetensors file .*: download it again",
    ),
    "missing tensor": (
        lambda f: tensors(f, lambda a: a.pop(NORM)),
        r"missing: backbone\.norm\.weight.*download it again",
    ),
    "extra tensor": (
        lambda f: tensors(f, lambda a: a.update({"extra.weight": np.zeros(3, np.float32)})),
        r"tensors that this model does not know: extra\.weight\. Check that",
    ),
    "wrong shape": (
        lambda f: tensors(f, lambda a: a.update({NORM: np.zeros(33, np.float32)})),
        r"wrong shape: backbone\.norm\.weight is \(33,\), not \(32,\)",
    ),
    "NaN": (lambda f: tensors(f, poisoned(np.nan)), r"backbone\.norm\.weight holds NaN or infinity: download"),
    "infinity": (lambda f: tensors(f, poisoned(-np.inf)), r"backbone\.norm\.weight holds NaN or infinity: download"),
    "another model": (
        lambda f: tensors(f, lambda a: [a.pop(name) for name in list(a) if name.startswith("neck")]),
        r"holds no model that mlx-depth knows .*Name a checkpoint of .* depth_anything",
    ),
    "cyclic index": (
        lambda f: sharded(f, {NORM: INDEX}),
        r"index\.json is JSON text, not a safetensors file: name the weights themselves",
    ),
    "missing shard": (
        lambda f: sharded(f, {NORM: "model-00001-of-00002.safetensors"}),
        r"model-00001-of-00002\.safetensors is missing: download the checkpoint again",
    ),
    "shard outside": (
        lambda f: sharded(f, {NORM: "../x.safetensors"}),
        r"points outside its folder.*Do not use this file",
    ),
    "empty index": (lambda f: sharded(f, {}), r"has no weight_map: download it again"),
    "repeated tensors": (repeated, r"repeats tensors of another shard: .*Download it again"),
    "broken config": (
        lambda f: overwrite(f / CONFIG, b"{").parent,
        r"config\.json is not valid JSON .*: download it again",
    ),
    "unknown config key": (
        lambda f: facts(f, secret_layers=3),
        r"keys that mlx-depth does not know: secret_layers\. Take the file",
    ),
    "another model's config": (lambda f: facts(f, model_type="bert"), r"says model_type 'bert'.*take the config\.json"),
    "newer format": (lambda f: facts(f, format="mlx_depth/2"), r"has the format 'mlx_depth/2', .*: update mlx-depth"),
    "hostile pickle": (
        lambda f: containers.save_hostile(f / "x.pth"),
        r"its pickle asks for '(posix|nt)\.system'.*Get the weights as \.safetensors",
    ),
    "archive with ../": (
        lambda f: containers.save_outside(f / "x.pth"),
        r"points outside the archive.*Do not use this file",
    ),
    "truncated pth": (
        lambda f: truncated(torch_file(f, reference.model("tiny").state_dict())),
        r"is damaged or no PyTorch checkpoint .*: download it again",
    ),
    "pth without tensors": (
        lambda f: torch_file(f, {"epoch": 3}),
        r"holds no tensors by name .*Save the model's state_dict",
    ),
    "whole module in pth": (
        lambda f: torch_file(f, torch.nn.Linear(2, 2)),
        r"asks for 'torch\.nn\.modules\.linear\.Linear'",
    ),
    "wrong magic gguf": (
        lambda f: overwrite(f / "x.gguf", b"GGML" * 9),
        r"damaged or no GGUF file .*: download it again",
    ),
    "truncated gguf": (lambda f: truncated(gguf_file(f)), r"is damaged or no GGUF file .*: download it again"),
    "several files": (several, r"holds several checkpoints \(a\.bin, b\.bin\): name the file itself"),
    "nothing there": (lambda f: f / "missing.pth", r"no file or folder .*missing\.pth: "),
    "no checkpoint": (
        lambda f: Path(shutil.move(f / WEIGHTS, f / "x.txt")).parent,
        r"has no \*\.safetensors.*name a folder",
    ),
    "not a model file": (lambda f: f / CONFIG, r"is not a \.safetensors file: name a folder, a file or a repository"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_source(case: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damage, message = CASES[case]
    refused(damage(folder), tmp_path, capfd, message)


OURS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "unknown key": (lambda f: facts(f, license_text="x"), r"has unknown keys: license_text\. Update mlx-depth"),
    "unknown family": (lambda f: facts(f, family="depth_everything"), r"does not know 'depth_everything': convert"),
    "bits of no kind": (
        lambda f: facts(f, quantization={"bits": 7, "group_size": 32}),
        r"cannot quantize to 7 bits .*: choose bits from",
    ),
    "other bits than packed": (
        lambda f: facts(f, quantization={"bits": 4, "group_size": 32}),
        r"not packed as config\.json says .*: convert the checkpoint again|wrong shape: ",
    ),
    "bits as text": (
        lambda f: facts(f, quantization={"bits": "8", "group_size": 32}),
        r"bits in config\.json is '8', no int: convert",
    ),
    "no quantization": (lambda f: facts(f, quantization=None), r"does not fit the model .*download it again"),
    "half a layer": (
        lambda f: tensors(f, lambda a: a.pop("backbone.blocks.0.mlp.fc1.biases")),
        r"backbone\.blocks\.0\.mlp\.fc1 is quantized in parts only: convert",
    ),
    "config of text": (lambda f: facts(f, config="small"), r"DepthAnythingConfig of config\.json is 'small': convert"),
}


@pytest.mark.parametrize("case", OURS)
def test_a_bad_folder_of_ours(case: str, ours: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damage, message = OURS[case]
    source = Path(shutil.copytree(ours, tmp_path / "source"))
    refused(damage(source), tmp_path, capfd, message, "--dtype", "float32")


def refused(source: Path, scratch: Path, capfd: pytest.CaptureFixture[str], message: str, *options: str) -> None:
    out = scratch / "result" / "out"
    out.parent.mkdir()
    assert main(["convert", str(source), str(out), *options]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if "warning" not in line]
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("mlx-depth: error: ")
    assert re.search(message, lines[0]), lines[0]
    assert list(out.parent.iterdir()) == []
    assert not Path("/tmp/mlx-depth-was-here").exists()
