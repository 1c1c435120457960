"""The part that runs Core ML in child processes. Core ML itself is on Macs only."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from coreml.tiny import tiny
from mlx_depth_convert.coreml import check, check_package, device
from mlx_depth_convert.coreml.agreement import GATES
from mlx_depth_convert.pictures import generated_picture
from support import require, seeded

require("coreml", "coremltools")

PIXELS = generated_picture((28, 28))
EXPECTED = {"depth": np.abs(seeded("depth", (1, 1, 28, 28)))}


def _run(monkeypatch, child):
    monkeypatch.setattr(subprocess, "run", child)
    return device.run_units(Path("Some.mlpackage"), "main", PIXELS, EXPECTED)


def test_figures_of_each_unit_are_read(monkeypatch):
    def child(command, **_):
        folder = Path(command[-1])
        assert np.array_equal(np.load(folder / "pixels.npy"), PIXELS)
        np.savez(folder / "outputs.npz", depth=EXPECTED["depth"][0, 0] + 1e-4)
        (folder / "figures.json").write_text(
            json.dumps({"latency_ms": 12.5, "residency": {"NeuralEngine": 9, "CPU": 1}})
        )
        return subprocess.CompletedProcess(command, 0, "", "")

    runs = _run(monkeypatch, child)
    assert [run.unit for run in runs] == ["CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"]
    assert "12.5 ms  operations 9 on NeuralEngine, 1 on CPU" in str(runs[0])
    assert runs[0].faults(GATES["float16"]) == []
    assert set(runs[0].as_json()["agreement"]) == {"error", "correlation", "color_error", "extras"}


def test_a_crash_and_a_hang_are_faults(monkeypatch):
    def crash(command, **_):
        return subprocess.CompletedProcess(command, -11, "", "")

    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    assert _run(monkeypatch, crash)[0].faults(GATES["float16"]) == ["Core ML was killed by signal 11"]
    assert _run(monkeypatch, hang)[0].faults(GATES["float16"]) == ["did not finish within 1200 s"]


def test_a_wrong_depth_is_a_fault(monkeypatch):
    def child(command, **_):
        folder = Path(command[-1])
        np.savez(folder / "outputs.npz", depth=EXPECTED["depth"][0, 0].T)
        (folder / "figures.json").write_text(json.dumps({"latency_ms": 1.0, "residency": {}}))
        return subprocess.CompletedProcess(command, 0, "", "")

    run = _run(monkeypatch, child)[0]
    assert len(run.faults(GATES["float16"])) == 2
    assert str(run).endswith("operations unknown")


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML runs here")
def test_the_real_child_says_why_it_failed(half_package, monkeypatch):
    """Off macOS the whole line runs, up to Core ML, which is not there."""
    monkeypatch.setattr(device, "UNITS", ("CPU_ONLY",))
    monkeypatch.setattr(check.sys, "platform", "darwin")
    report = check_package(half_package, tiny())
    (fault,) = report.faults
    assert fault.startswith("main: on CPU_ONLY Core ML failed:")
    assert fault.split("failed:")[1].strip()
    assert "run this command on a Mac" not in report.as_text()
