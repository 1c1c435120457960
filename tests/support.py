"""Shared by the tests: loud skips, name-seeded weights and error figures."""

import importlib
import os
import shutil
import zlib
from types import ModuleType

import numpy as np
import pytest

REQUIRED = {word.strip() for word in os.environ.get("MLX_DEPTH_REQUIRE", "").split(",")} - {""}


def require(extra: str, module: str) -> ModuleType:
    """Import ``module``; where it is missing, skip, or fail if ``MLX_DEPTH_REQUIRE`` names ``extra``."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        reason = f"{module} is missing ({error}): pip install 'mlx-depth[{extra}]'"
        if extra in REQUIRED:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason, allow_module_level=True)


def require_program(extra: str, *names: str) -> str:
    """Path of the first program that is installed; else skip, or fail if ``MLX_DEPTH_REQUIRE`` names ``extra``."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        reason = f"none of the programs {', '.join(names)} is installed: install one"
        if extra in REQUIRED:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return found


def seeded(name: str, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """Normal float32 values that depend on the name alone."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    return (random.standard_normal(shape) * scale).astype(np.float32)


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute reference value."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def correlation(ours: np.ndarray, reference: np.ndarray) -> float:
    """Pearson correlation over all values."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    return float(np.corrcoef(ours.ravel(), reference.ravel())[0, 1])
