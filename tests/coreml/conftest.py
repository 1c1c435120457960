"""Packages of the tiny model that many tests read. Who changes one, copies it first."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from coreml.quick import validated_once
from coreml.tiny import SIZE, tiny
from mlx_depth_convert.coreml import export_coreml


@pytest.fixture(scope="module")
def quick_exports(half_package: Path) -> Iterator[None]:
    """``half_package`` was exported as anyone does; a test compares its bytes with a quick export's."""
    with validated_once():
        yield


@pytest.fixture(scope="session")
def half_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float16, as by default."""
    return _export(tmp_path_factory)


@pytest.fixture(scope="session")
def full_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float32."""
    return _export(tmp_path_factory, precision="float32")


@pytest.fixture(scope="session")
def raw_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float16, the network's own output."""
    return _export(tmp_path_factory, output="raw")


def _export(tmp_path_factory: pytest.TempPathFactory, **options: Any) -> Path:
    return export_coreml(tiny(), tmp_path_factory.mktemp("coreml"), sizes=SIZE, **options)
