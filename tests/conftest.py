"""Imports mlx_depth before any test imports mlx.core, so that an installed OpenBLAS is used; and how workers share."""

import gc
import os
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # There is a worker a core: further threads of torch and OpenBLAS would spin while they wait for the other workers.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import mlx_depth  # noqa: F401

# Else each interpreter that a test starts compiles the package anew, and each worker every assertion.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_finish() -> None:
    """What is there by now stays: torch's and transformers' objects are looked through at no later collection."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Neighbors run in one worker, and so share what they export, save and load; who is done takes from the others."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None
