"""The verbs coreml and coreml-check: options arrive as they were given, and the outcome is the exit code."""

import inspect
import json
from pathlib import Path

import mlx_depth_convert.coreml
import pytest
from coreml.tiny import SIZE, changed, tiny
from mlx_depth_convert.coreml import export_coreml
from support import require

from mlx_depth.checkpoints.checkpoint import write_checkpoint
from mlx_depth.cli import main

coremltools = require("coreml", "coremltools")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model as our own checkpoint folder."""
    return write_checkpoint(tiny(), tmp_path_factory.mktemp("model") / "tiny-depth", source={}, card="")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """An export of the tiny model, read from memory: it names no source."""
    return export_coreml(tiny(), tmp_path_factory.mktemp("package"), sizes=SIZE)


def test_every_option_arrives(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(
        mlx_depth_convert.coreml, "export_coreml", lambda *args, **options: calls.append((args, options))
    )
    options = {
        "sizes": ["square", "196x252"],
        "precision": "float32",
        "target": "macOS15",
        "attention": "batched",
        "output": "raw",
        "cmap": "turbo",
        "compress": "palette6",
        "layout": "gpu",
        "name": "Depth",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", *([value] if key != "sizes" else value))]
    assert main(["coreml", "da2-small", "folder", *words]) == 0
    assert main(["coreml", "da2-small", "folder"]) == 0
    given, left_out = calls
    assert given == (("da2-small", Path("folder")), options)
    parameters = inspect.signature(export_coreml).parameters.values()
    assert left_out[1] == {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


def test_export_and_check(folder, tmp_path, capsys):
    out = tmp_path / "Depth.mlpackage"
    assert main(["coreml", str(folder), str(out), "--sizes", "70x98", "--cmap", "turbo"]) == 0
    assert capsys.readouterr().out == f"{out}\n"

    assert main(["coreml-check", str(out), str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True

    kernel = tiny().weights["head.conv2.weight"]
    checkpoint = changed(tiny(), head__conv2__weight=kernel[::-1])
    other = write_checkpoint(checkpoint, tmp_path / "other", source={}, card="")
    assert main(["coreml-check", str(out), str(other)]) == 1
    text = capsys.readouterr().out
    assert "FAULT main: in simulated float16 the error is" in text
    assert text.startswith("FAILED: error at most 0.02")
    assert "the colors are" not in text  # they paint the package's own depth
    assert "Proved" not in text


def test_what_cannot_be_done_is_one_line(folder, package, tmp_path, capsys):
    cases = {
        ("coreml", folder, tmp_path / "A.mlpackage", "--sizes", "70x99"): "the nearest that is, is 70x98.",
        ("coreml", folder, tmp_path / "A.mlmodel"): "end it in .mlpackage, or give a folder.",
        ("coreml", folder, package): "choose another name, or remove it first.",
        ("coreml-check", package): "name their folder or file as well.",
        ("coreml-check", tmp_path): "name a folder that ends in .mlpackage.",
    }
    for words, ending in cases.items():
        assert main([str(word) for word in words]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("mlx-depth: error: ")
        assert captured.err.endswith(f"{ending}\n")
        assert captured.err.count("\n") == 1
