"""The layer table of a forward pass: complete, right, and without a trace in the classes."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_depth_convert import inspect_model
from mlx_depth_convert.inspect_model import Inspection, _is_block, plot_depth
from mlx_depth_convert.recorder import recording
from PIL import Image

import mlx_depth
from mlx_depth.cli import main
from mlx_depth.errors import OptionError, SaveError
from mlx_depth.nn.attention import Attention

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZE = 98


@pytest.fixture(scope="module")
def found() -> Inspection:
    return inspect_model("mlx-depth-demo", image=EXAMPLES / "coffee.jpg", input_size=SIZE)


def test_v2_small_has_33_convolution_layers_and_12_blocks(found: Inspection) -> None:
    """1 patch embedding, 4 projections, 3 resamplings, 4 adaptations, 7 units of 2, 4 fusions, 3 in the head."""
    assert (found.convolutions, found.blocks) == (1 + 4 + 3 + 4 + 7 * 2 + 4 + 3, 12) == (33, 12)
    assert sum(row.type in ("Conv2d", "ConvTranspose2d") for row in found.rows) == 33
    assert sum(row.type == "Block" for row in found.rows) == 12
    assert found.summary == "mlx-depth-demo: 33 convolution layers, 12 transformer blocks, 24,710,849 parameters"


def test_a_module_that_runs_several_times_is_one_row(found: Inspection) -> None:
    (row,) = [row for row in found.rows if row.name == "backbone.norm"]
    assert row.calls == 4
    assert len({row.name for row in found.rows}) == len(found.rows)


def test_own_parameters_add_up_to_all(found: Inspection) -> None:
    assert sum(row.parameters for row in found.rows) == found.parameters == 24_710_849


def test_every_layer_of_the_network_is_there(found: Inspection) -> None:
    network = mlx_depth.load("mlx-depth-demo").network
    leaves = {path for path, module in network.named_modules() if path and not module.children()}
    assert leaves <= {row.name for row in found.rows}
    names = [row.name for row in found.rows]
    assert names.index("backbone.blocks.3") < names.index("backbone.blocks.3.attn") < names.index("backbone.blocks.4")


def test_statistics_are_those_of_the_outputs(found: Inspection) -> None:
    model = mlx_depth.load("mlx-depth-demo", dtype="float32")
    pixels = mlx_depth.load_image(EXAMPLES / "coffee.jpg").pixels
    pixel_values = model.processor(pixels, input_size=SIZE)
    output = np.array(model.network.backbone.patch_embed(pixel_values))
    row = next(row for row in found.rows if row.name == "backbone.patch_embed.proj")
    assert row.shape == output.shape
    assert (row.min, row.max) == (output.min(), output.max())
    assert row.mean == pytest.approx(output.mean(), abs=1e-6)
    assert row.std == pytest.approx(output.std(), rel=1e-4)
    assert row.zeros == (output == 0).mean()
    assert np.array_equal(found.depth, np.array(model.network(pixel_values).depth[0]))


def test_another_network_of_the_same_classes_is_not_reported() -> None:
    one, other = nn.Linear(2, 3), nn.Linear(2, 3)
    seen: list[str] = []
    with recording(nn.Sequential(one), lambda path, *_: seen.append(path)):
        one(mx.ones((1, 2)))
        other(mx.ones((1, 2)))
    assert seen == ["layers.0"]


def test_classes_are_restored_even_after_an_error() -> None:
    before = nn.Linear.__call__

    def broken() -> None:
        with recording(nn.Sequential(nn.Linear(2, 2)), lambda *_: None):
            assert nn.Linear.__call__ is not before
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert nn.Linear.__call__ is before


def test_compiled_parts_are_seen() -> None:
    layer = nn.Linear(2, 3)
    layer.update({"weight": mx.ones((3, 2)), "bias": mx.zeros(3)})
    compiled = mx.compile(lambda x: layer(x))
    x = mx.ones((1, 2))
    compiled(x)
    values: list[float] = []
    with recording(nn.Sequential(layer), lambda path, module, x, result: values.append(result.sum().item())):
        compiled(x)
        compiled(2 * x)
    assert values == [6, 12]
    assert compiled(x).sum().item() == 6


def test_a_block_is_what_owns_an_attention() -> None:
    """Whatever its class: other families have blocks of their own."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixing = Attention(4, 2)

        def __call__(self, x: mx.array) -> mx.array:
            return self.mixing(x)

    assert _is_block(Layer())
    assert not _is_block(Attention(4, 2))
    assert not _is_block(nn.Sequential(Layer()))


# The command


def test_text_csv_and_json(found: Inspection, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", "mlx-depth-demo", "--image", str(EXAMPLES / "coffee.jpg"), "--input-size", str(SIZE)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "type", "calls", "shape", "min", "max", "mean", "std", "zeros", "parameters"]
    assert lines[-1] == found.summary
    assert len(lines) == len(found.rows) + 3
    assert main([*arguments, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["name"] for row in rows] == [row.name for row in found.rows]
    assert float(rows[3]["std"]) == pytest.approx(found.rows[3].std)
    assert main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["convolutions"], len(facts["rows"])) == (33, len(found.rows))


def test_inner_modules_are_indented_below_the_module_that_runs_them(found: Inspection) -> None:
    lines = {line.split()[0]: len(line) - len(line.lstrip()) for line in found.as_text().splitlines() if line}
    assert (lines["backbone"], lines["backbone.patch_embed"], lines["backbone.patch_embed.proj"]) == (0, 2, 4)
    assert (lines["backbone.blocks.0"], lines["backbone.blocks.0.attn.query_proj"]) == (2, 6)  # a list does not run


def test_plot(found: Inspection, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "depth.png"
    assert main(["inspect", "mlx-depth-demo", "--input-size", "70", "--plot", str(picture)]) == 0
    assert f"wrote {picture}" in capsys.readouterr().err
    with Image.open(picture) as image:
        assert image.size == (1200, 800)
    with pytest.raises(SaveError, match="exists"):
        plot_depth(found.depth, picture)
    assert plot_depth(found.depth, tmp_path / "depth.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(OptionError, match=r"give a name that ends with \.png"):
        plot_depth(found.depth, tmp_path / "depth.bmp")


def test_plot_without_matplotlib(found: Inspection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OptionError, match=r"pip install 'mlx-depth\[plot\]'"):
        plot_depth(found.depth, tmp_path / "depth.png")


def test_the_tool_imports_no_heavy_package() -> None:
    script = "import sys, mlx_depth.cli.convert, mlx_depth.cli.coreml, mlx_depth_convert; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    for name in ("torch", "transformers", "matplotlib", "gguf", "coremltools", "huggingface_hub"):
        assert f"'{name}'" not in loaded
