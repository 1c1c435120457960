"""The benchmark's figures and tables; how fast anything is, is not asserted."""

import json
import statistics
from pathlib import Path

import pytest
import reference
from mlx_depth_convert import bench, convert
from mlx_depth_convert.bench import Benchmark, Measurement, Timing, plot_benchmark
from PIL import Image

from mlx_depth.cli import main
from mlx_depth.errors import OptionError

HEAD = ["model", "input", "batch", "dtype", "bits", "load (ms)", "first (ms)", "mean ± std (ms)"]
HEAD += ["median (ms)", "p95 (ms)", "images/s", "peak (MB)", "parameters", "on disk (MB)"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference.save(reference.model("tiny"), tmp_path_factory.mktemp("bench") / "tiny")


@pytest.fixture(scope="module")
def compared(tiny: Path) -> Benchmark:
    return bench([tiny], input_sizes=[70], dtypes=["float32"], compare="torch", runs=2)


def test_every_combination_is_measured(tiny: Path) -> None:
    found = bench([tiny], input_sizes=[70, (70, 98)], batches=[1, 2], dtypes=["float32"], runs=2)
    assert [(row.input_size, row.batch) for row in found.measurements] == [
        ((70, 70), 1),
        ((70, 70), 2),
        ((70, 98), 1),
        ((70, 98), 2),
    ]
    for row in found.measurements:
        assert len(row.mlx.runs) == 2
        assert min(row.mlx.load, row.mlx.first, *row.mlx.runs) > 0
        assert row.mlx.peak_bytes > row.disk_bytes
        assert (row.model, row.dtype, row.bits, row.torch, row.ratio) == ("tiny", "float32", None, None, None)
    assert {"machine", "system", "Python", "MLX", "device"} == set(found.machine)


def test_quantized_layers_take_less_on_disk(tmp_path: Path) -> None:
    plain = convert("mlx-depth-demo", tmp_path / "plain", dtype="float16")
    rows = bench([plain], input_sizes=[70], dtypes=["float32"], quantize=[None, 4], runs=1).measurements
    assert [row.bits for row in rows] == [None, 4]
    assert rows[1].disk_bytes < 0.45 * rows[0].disk_bytes
    assert {row.parameters for row in rows} == {24_785_089}
    with pytest.raises(OptionError, match="quantized already"):
        bench(["mlx-depth-demo"], quantize=[4])


def test_torch_runs_in_turn(compared: Benchmark) -> None:
    (row,) = compared.measurements
    assert row.torch is not None
    assert len(row.torch.runs) == 2
    assert row.ratio == row.mlx.median / row.torch.median
    assert min(row.torch.load, row.torch.first, row.torch.peak_bytes) > 0


def test_figures() -> None:
    timing = Timing(1.0, 0.5, (0.1, 0.2, 0.6), 1000)
    assert (timing.median, timing.std) == (0.2, pytest.approx(statistics.stdev(timing.runs)))
    assert 0.5 < timing.p95 < 0.6
    assert Timing(1.0, 0.5, (0.1,), 1000).std == 0
    row = Measurement("m", (70, 70), 4, "float32", None, 10, 40, timing, Timing(1, 1, (0.4,), 1))
    assert (row.images_per_second, row.ratio) == (pytest.approx(20), pytest.approx(0.5))


def test_markdown_and_plot(compared: Benchmark, tmp_path: Path) -> None:
    machine, blank, head, rule, row = compared.as_markdown().splitlines()
    assert machine.startswith("machine ")
    assert "MLX " in machine
    assert blank == ""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, rule, row)]
    assert cells[0] == [*HEAD, "torch load (ms)", "torch median (ms)", "ratio"]
    assert len({len(line) for line in cells}) == 1
    assert cells[2][:5] == ["tiny", "70×70", "1", "float32", "–"]
    picture = plot_benchmark(compared, tmp_path / "bench.png")
    with Image.open(picture) as image:
        assert image.size == (800, 210)


def test_command(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", str(tiny), "--input-size", "70x98", "--batch", "1", "2", "--runs", "1", "--quantize", "8"]
    assert main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [row["batch"] for row in facts["measurements"]] == [1, 2]
    assert {row["bits"] for row in facts["measurements"]} == {8}
    assert facts["measurements"][0]["mlx"]["median"] > 0
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("\n| tiny | 70×98 |") == 2


def test_options_that_cannot_work(tiny: Path) -> None:
    with pytest.raises(OptionError, match="the choice is 'torch'"):
        bench([tiny], compare="jax")
    with pytest.raises(OptionError, match="start at 1"):
        bench([tiny], runs=0)
    with pytest.raises(OptionError, match="multiples of 14"):
        bench([tiny], input_sizes=[71])


def test_missing_transformers_is_said_once(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "transformers.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(OptionError, match=r"pip install 'mlx-depth\[reference\]'.*leave --compare torch out"):
        bench([tiny], input_sizes=[70], compare="torch", runs=1)
