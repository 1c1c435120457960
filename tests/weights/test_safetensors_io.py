"""JSON within limits, and tensors of types that MLX does not read."""

import json
import struct
from pathlib import Path

import pytest

from mlx_depth.errors import CheckpointError
from mlx_depth.weights.safetensors_io import MAX_JSON, load_file, read_json


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "nested too deeply|not valid JSON"),
        ('{"a":' * 200_000, "nested too deeply|not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON .a number of 5000 digits"),
        ('{"a": -' + "9" * 400 + "}", "not valid JSON .a number of 401 digits"),
        ('{"a": "' + "x" * MAX_JSON + '"}', "has more than 10 MB, too many for a config"),
        ('{"a": \xff}', "not valid JSON"),
        ("", "is damaged or no JSON file|not valid JSON"),
        ("{'a': 1}", "not valid JSON"),
        ("<html><body></body></html>", r"is a web page \(HTML\), not a JSON file"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("[1, 2]", "holds no JSON object"),
    ],
)
def test_json_that_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=message):
        read_json(path)


def test_json_at_the_limits(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    deep = {"a": [[[[[[[[1]]]]]]]], "number": 10**399, "pi": 3.5, "é": None}
    path.write_text(json.dumps(deep, ensure_ascii=False), encoding="utf-8")
    assert read_json(path) == deep


def one_tensor(path: Path, kind: str, shape: list[int], nbytes: int) -> Path:
    header = json.dumps({"w": {"dtype": kind, "shape": shape, "data_offsets": [0, nbytes]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(nbytes))
    return path


@pytest.mark.parametrize(("kind", "nbytes"), [("F64", 16), ("F8_E4M3", 2), ("F8_E5M2", 2), ("C64", 16)])
def test_types_that_mlx_takes_for_others_or_for_damage(kind: str, nbytes: int, tmp_path: Path) -> None:
    path = one_tensor(tmp_path / "x.safetensors", kind, [2], nbytes)
    with pytest.raises(CheckpointError, match=rf"types that MLX does not read \(w is {kind}\): save them as float32"):
        load_file(path)


def test_a_suffix_in_capitals(tmp_path: Path) -> None:
    assert load_file(one_tensor(tmp_path / "X.SAFETENSORS", "F32", [2], 8))["w"].shape == (2,)
