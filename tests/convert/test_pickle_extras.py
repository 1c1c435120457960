"""What training loops keep beside the weights: written by torch, and of no matter to the weights."""

import argparse
import collections
import dataclasses
import datetime
import pathlib
import shutil
import warnings
from pathlib import Path
from typing import Any

import containers
import mlx.core as mx
import numpy as np
import pytest
import reference
from mlx_depth_convert.opening import open_checkpoint
from reference import torch

from mlx_depth.cli import main


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference.save(reference.model("tiny", max_depth=20), tmp_path_factory.mktemp("plain") / "hub")


@pytest.fixture(scope="module")
def expected(plain: Path) -> dict[str, mx.array]:
    return weights_of(plain)


def weights_of(source: Path) -> dict[str, mx.array]:
    with open_checkpoint(source) as (checkpoint, _):
        mx.eval(checkpoint.weights)
        return dict(checkpoint.weights)


@dataclasses.dataclass
class Settings:
    rate: float


def extras() -> dict[str, Any]:
    """Values that torch itself pickles, of kinds that the weights do not need."""
    return {
        "numpy scalar": np.float64(0.1),
        "numpy array": np.arange(6.0).reshape(2, 3),
        "numpy texts": np.array(["a", "b"], object),
        "numpy rng": np.random.RandomState(0).get_state(),
        "numpy generator": np.random.default_rng(0),
        "torch rng": torch.get_rng_state(),
        "namespace": argparse.Namespace(lr=1e-4),
        "defaultdict": collections.defaultdict(list, {"loss": [1.0]}),
        "counter": collections.Counter("aab"),
        "deque": collections.deque([1, 2], maxlen=3),
        "path": pathlib.PurePosixPath("/data"),
        "date": datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
        "delta": datetime.timedelta(3),
        "set": {1, (2, 3)},
        "frozenset": frozenset("ab"),
        "bytes": b"\0" * 9,
        "bytearray": bytearray(b"abc"),
        "complex": 2 + 3j,
        "big": 10**60,
        "slice": slice(1, 2),
        "keys of all kinds": {(1, 2): 3, None: 4, 1.5: 5, b"x": 6, True: 7},
        "a class of their own": Settings(0.1),
        "a function": main,
        "a class": Settings,
        "device": torch.device("cpu"),
        "size": torch.Size([2, 3]),
        "dtype": torch.float8_e4m3fn,
        "double": torch.ones(2, dtype=torch.float64),
        "complex tensor": torch.ones(2, dtype=torch.complex64),
        "8-bit floats": torch.ones(2).to(torch.float8_e4m3fn),
        "uint16": torch.ones(2, dtype=torch.uint16),
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "conjugate": torch.ones(2, dtype=torch.complex64).conj(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "module": torch.nn.Linear(2, 2),
        "storage": torch.ones(2).untyped_storage(),
        "itself": itself(),
        "hostile": containers.Hostile(),
    }


def itself() -> list[Any]:
    items: list[Any] = [1]
    items.append(items)
    return items


with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # torch calls some of these kinds unfinished
    EXTRAS = extras()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("place", ["under a key", "beside model", "older format", "in a list", "protocol 4"])
@pytest.mark.parametrize("case", list(EXTRAS))
def test_what_lies_beside_the_weights_does_not_matter(
    case: str, place: str, plain: Path, expected: dict[str, mx.array], tmp_path: Path
) -> None:
    state = reference.authors_names(reference.model("tiny", max_depth=20).state_dict())
    extra = EXTRAS[case]
    if place == "older format" and case in ("storage", "conjugate", "sparse", "csr"):
        place = "under a key"  # torch does not write these in its older format, or only through NumPy
    content = (
        {"extra": {"deeper": extra}, "model": state} if place != "beside model" else {"model": state, "extra": extra}
    )
    options: dict[str, Any] = {"pickle_protocol": 4} if place == "protocol 4" else {}
    if place == "older format":
        options = {"_use_new_zipfile_serialization": False}
    torch.save([extra, content] if place == "in a list" else content, tmp_path / "run.pth", **options)
    shutil.copy(plain / "config.json", tmp_path)
    found = weights_of(tmp_path / "run.pth")
    assert all(mx.array_equal(found[name], value) for name, value in expected.items())
    assert not Path("/tmp/mlx-depth-was-here").exists()
