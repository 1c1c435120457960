"""What a child process is told; ``tests/linux_cpu`` has the rest."""

import os

import pytest

from mlx_depth.linux_cpu import openblas
from mlx_depth.runtime import cpu


def test_a_child_computes_on_its_own_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(openblas.SWITCH, "/usr/lib/libopenblas.so.0")
    assert cpu.environment_without_openblas() == {**os.environ, openblas.SWITCH: "off"}
    assert os.environ[openblas.SWITCH] == "/usr/lib/libopenblas.so.0"
