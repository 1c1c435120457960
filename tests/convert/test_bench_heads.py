"""What decoders cost: parameters and multiplications to the last one; how fast anything is, is not asserted."""

import json
import math

import pytest
from mlx_depth_convert import bench_heads as module
from mlx_depth_convert.bench_heads import BaselineDPT, bench_heads, macs

from mlx_depth.cli import main
from mlx_depth.errors import OptionError
from mlx_depth.heads.dpt import DPTConfig, DPTHead
from mlx_depth.heads.sdt import SDTConfig, SDTHead
from mlx_depth.weights.rules import parameter_shapes

# FLOPs of AnyDepth's own decoders, one output, on tokens of 512×512 pixels: torch.utils.flop_counter of torch 2.13.0
# on model/sdt_head.py and model/dpt_head.py of commit 8603751493ce8c439079c8b978a6d0d9a1b66939.
AUTHORS_FLOPS = {
    "small": (919_312_269_312, 1_043_802_882_048),
    "base": (927_365_332_992, 1_151_839_764_480),
    "large": (935_418_396_672, 1_235_356_745_728),
}
PAPER_DPT_MILLIONS = {"small": 50.83, "base": 76.05, "large": 99.58}  # its table of decoders
GRID = (32, 32)
N = math.prod(GRID)


def test_one_layer_by_hand() -> None:
    """The last but one convolution of an SDT head: 3 × 3 × 16 × 5 weights at each of 64 × 48 pixels."""
    applied = module._sdt_positions((4, 3))
    assert applied["conv2"] == 64 * 48
    network = SDTHead(SDTConfig(8, 32, hidden_channels=5))
    wider = SDTHead(SDTConfig(8, 32, hidden_channels=6))
    assert macs(wider, (4, 3)) - macs(network, (4, 3)) == (3 * 3 * 16 + 1) * 64 * 48  # and one weight of the last


def test_odd_grids_are_halved_upward() -> None:
    """Only the fourth map of a DPT head is smaller than the grid: 5 × 7 patches make it 3 × 4."""
    network = DPTHead(DPTConfig(8, 4, (4, 4, 4, 4), patch_size=16))
    wider = DPTHead(DPTConfig(8, 4, (4, 4, 4, 5), patch_size=16))
    # Its projection at 35 patches, its shrinking convolution (5² instead of 4²) and its adaptation at 12.
    assert macs(wider, (5, 7)) - macs(network, (5, 7)) == 8 * 35 + 9 * (25 - 16) * 12 + 9 * 4 * 12


@pytest.mark.parametrize("backbone", AUTHORS_FLOPS)
def test_as_many_as_the_authors_less_what_is_saved(backbone: str) -> None:
    width = module.WIDTHS[backbone]
    sdt, dpt = AUTHORS_FLOPS[backbone]
    readout = 4 * (N - 1) * width * width  # the class token's half, once an image
    assert 2 * (macs(module._BUILD["SDT"](backbone), GRID) + readout) == sdt
    baseline = module._BUILD["DPT, 512"](backbone)
    projections = 3 * 512 * 512 * (16 + 4 + 1 + 1 / 4) * N  # theirs come when a map has grown fourfold
    assert 2 * (macs(baseline, GRID) + readout + projections) == dpt


@pytest.mark.parametrize("backbone", PAPER_DPT_MILLIONS)
def test_baseline_has_the_parameters_of_the_paper(backbone: str) -> None:
    count = sum(map(math.prod, parameter_shapes(module._BUILD["DPT, 512"](backbone)).values()))
    assert round(count / 1e6, 2) == PAPER_DPT_MILLIONS[backbone]


def test_every_weight_counts_once() -> None:
    """A part that the table does not know cannot go uncounted."""
    head = DPTHead(DPTConfig(8, 4, (4, 4, 4, 4), patch_size=16))
    head.stray = head.conv1
    with pytest.raises(ValueError, match="unpack"):
        macs(head, (5, 7))


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same decoders with few channels."""
    few = DPTConfig(384, 8, (8, 8, 8, 8), patch_size=16)
    monkeypatch.setitem(module._BUILD, "SDT", lambda backbone: SDTHead(SDTConfig(384, 8)))
    monkeypatch.setitem(module._BUILD, "DPT, 512", lambda backbone: BaselineDPT(few))
    monkeypatch.setitem(module._BUILD, "DPT, V2", lambda backbone: DPTHead(few))


@pytest.mark.usefixtures("narrow")
def test_every_decoder_is_measured() -> None:
    found = bench_heads(["small"], input_sizes=[32, (16, 48)], dtypes=["float32"], runs=2)
    rows = found.measurements
    assert [(row.head, row.input_size) for row in rows] == [
        (head, size) for size in ((32, 32), (16, 48)) for head in ("SDT", "DPT, 512", "DPT, V2")
    ]
    for row in rows:
        assert len(row.runs) == 2
        assert 0 < min(row.runs) <= row.median <= max(row.runs)
        assert row.peak_bytes > 16 * 48 * 8 * 4
        assert (row.backbone, row.dtype) == ("small", "float32")
    assert rows[0].macs == macs(SDTHead(SDTConfig(384, 8)), (2, 2))
    assert {"machine", "system", "Python", "MLX", "device"} == set(found.machine)
    machine, _, head, _, *lines, _, note = found.as_markdown().splitlines()
    assert machine.startswith("machine ")
    assert len(lines) == len(rows)
    assert {line.count("|") for line in (head, *lines)} == {9}
    assert lines[0].startswith("| small | 32×32 | SDT | float32 | 1,200,873 | 0.0 |")
    assert note == module.NOTE


@pytest.mark.usefixtures("narrow")
def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "--heads", "small", "--input-size", "16", "--runs", "1", "--dtype", "float32"]
    assert main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [row["head"] for row in facts["measurements"]] == ["SDT", "DPT, 512", "DPT, V2"]
    assert facts["note"] == module.NOTE
    assert facts["measurements"][0]["median"] > 0
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("\n| small | 16×16 |") == 3
    assert main([*arguments, "--batch", "2", "--compare", "torch"]) == 2
    assert "leave --batch, --compare out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("backbones", "options", "message"),
    [
        (["giant"], {}, "the choices are small, base, large"),
        (["small"], {"runs": 0}, "at least 1"),
        (["small"], {"input_sizes": [518]}, "multiples of 16 pixels, not 518×518"),
        (["small"], {"input_sizes": [(0, 16)]}, "multiples of 16 pixels"),
    ],
)
def test_options_that_cannot_work(backbones: list[str], options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        bench_heads(backbones, **options)
