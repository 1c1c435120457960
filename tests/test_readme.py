"""The documents stay true: Python blocks run, links lead somewhere, the picture is what the tool makes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import require

import mlx_depth
from mlx_depth.registry import MODELS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
NOT_OURS = {"site-packages", "build", "dist"}  # a virtual environment may have any name
DOCUMENTS = [path for path in ROOT.rglob("*.md") if NOT_OURS.isdisjoint(path.relative_to(ROOT).parts)]


def test_python_blocks_run_in_order(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 2
    code = "\n".join(["import mlx_depth", *blocks]).replace('"depth.png"', repr(str(tmp_path / "depth.png")))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("DepthResult(427×640, relative inverse depth (unitless, larger = nearer), ")
    assert (tmp_path / "depth.png").exists()


def block_with(call):
    """The one block for which a network would have to be downloaded and that makes this call."""
    (block,) = (block for block in re.findall(r"```py\n(.*?)```", README, flags=re.DOTALL) if call in block)
    return block


def test_the_block_of_features_runs(tmp_path):
    """With a tiny backbone for the one that would be downloaded."""
    require("reference", "torch")
    import anydepth

    folder = anydepth.save(anydepth.backbone_state("tiny"), tmp_path / "dinov3", anydepth.backbone_config("tiny"))
    block = block_with("load_backbone")
    assert len(block.strip().splitlines()) == 5
    code = block.replace('"facebook/dinov3-vits16-pretrain-lvd1689m"', repr(str(folder)))
    names = {"mlx_depth": mlx_depth}
    exec(code.replace('"photo.jpg"', repr(str(ROOT / "examples/coffee.jpg"))), names)
    assert names["features"].grid_size == (32, 48)
    assert names["patches"].shape == (32, 48, 32)
    assert names["image"].shape == (1, 32)


def test_the_block_of_scenes_runs(tmp_path):
    """With a tiny network for the one that would be downloaded."""
    require("reference", "torch")
    import reference_da3

    block = block_with("predict_views")
    folder = reference_da3.save(reference_da3.ANY_VIEW, tmp_path / "small")
    shutil.copytree(ROOT / "examples", tmp_path / "room", ignore=shutil.ignore_patterns("*.py", "macos"))
    shutil.copy(ROOT / "examples/coffee.jpg", tmp_path / "photo.jpg")
    assert '"depth-anything-3-small"' in block
    code = block.replace('"depth-anything-3-small"', repr(str(folder)))
    code = code.replace('predict("photo.jpg")', 'predict("photo.jpg", model="mlx-depth-demo")')
    done = subprocess.run(
        [sys.executable, "-c", f"import mlx_depth\n{code}\nprint(len(points), scene)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"[1-9]\d* SceneResult\(3 views of ", done.stdout)
    assert "<canvas" in (tmp_path / "room.html").read_text()
    assert (tmp_path / "photo.ply").stat().st_size > 1_000_000


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_picture_is_what_the_tool_makes():
    result = mlx_depth.predict(ROOT / "examples/summer_palace.jpg", model="mlx-depth-demo", dtype="float32")
    shipped = np.asarray(Image.open(ROOT / "examples/pictures/summer_palace_side-by-side.png"))
    difference = np.abs(result.side_by_side().astype(int) - shipped)
    assert (difference > 2).mean() < 0.001  # a rounded value may fall to the next color


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(script, tmp_path):
    arguments = [str(tmp_path)] if script.name in ("quickstart.py", "scene.py") else []
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert 8 <= len(script.read_text().splitlines()) <= 30


def test_every_model_is_in_the_readme():
    for name in MODELS:
        stem = re.sub(r"-(base|large)$", "-small", name)
        assert f"`{stem}`" in README or f"`{name}`" in README, name


def _table_of_models() -> list[list[str]]:
    """The cells of each row: what for, names, parameters, kind, license, speed."""
    table = README[README.index("| you want | take |") :].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.parametrize("row", _table_of_models(), ids=lambda row: row[1])
def test_the_table_of_models_says_what_the_registry_says(row):
    """A name may be short for the one before it: `-large`."""
    _, names, parameters, kind, license, _ = row
    first, *others = re.findall(r"`([^`]+)`", names)
    specs = [MODELS[first], *(MODELS[re.sub(r"-[a-z]+$", name, first) if name[0] == "-" else name] for name in others)]
    for spec in specs:
        count = spec.parameters
        size = f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"
        assert size in parameters, (spec.name, size)
        assert kind == spec.depth_kind.value.replace("_", " "), spec.name
        assert license.removesuffix(", bundled") == spec.license, spec.name


def test_the_changelog_has_this_version():
    assert f"## {mlx_depth.__version__}" in (ROOT / "CHANGELOG.md").read_text()
