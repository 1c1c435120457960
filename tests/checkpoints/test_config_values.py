"""Configs that lie: each is one error, told before anything is built, or the model as it is."""

import copy
import functools
import json
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import containers
import pytest
import reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_depth_convert import convert
from mlx_depth_convert.opening import open_checkpoint

from mlx_depth.checkpoints.checkpoint import assemble_checkpoint, expand_checkpoint
from mlx_depth.errors import MlxDepthError
from mlx_depth.models.base import DepthNetwork
from mlx_depth.weights.rules import check_complete
from mlx_depth.weights.safetensors_io import read_tensors

SECONDS = 5
MAX_GROWTH = 1 << 30  # bytes of memory; the models have less than a megabyte
WRONG: list[Any] = [10**9, 2**63, -14, 0, 1, 3.5, float("nan"), float("inf"), "14", "", True, None, [], [0], {}, [[1]]]
WRONG += [[1, 2], [1, 2, 3, 4, 5], [10**9] * 4, ["a"] * 4, [True] * 4, {"a": 1}, 10**300, "x" * 999]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference.save(reference.model("tiny", max_depth=20), tmp_path_factory.mktemp("configs") / "hub")


@pytest.fixture(scope="module")
def ours(hub: Path) -> Path:
    return convert(hub, hub.parent / "ours", quantize=8, group_size=32)


def places(data: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested JSON, the whole left out."""
    if way:
        yield way
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*way, key))


def edited(data: Any, way: tuple[Any, ...], value: Any) -> Any:
    data = copy.deepcopy(data)
    node = data
    for key in way[:-1]:
        node = node[key]
    node[way[-1]] = value
    return data


@contextmanager
def bounded() -> Iterator[None]:
    """Seconds, and memory: nothing is built of what a config merely claims."""
    start, before = time.perf_counter(), peak()
    yield
    assert time.perf_counter() - start < SECONDS
    assert peak() - before < MAX_GROWTH


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@functools.lru_cache(maxsize=16)
def network(build: type[DepthNetwork], config: Any) -> DepthNetwork:
    """Built once for all the files that say the same."""
    return build(config)


class Case:
    """A folder whose tensors are read once and whose config.json changes."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.tensors = read_tensors(folder)
        self.config = json.loads((folder / "config.json").read_text())
        self.folder = scratch
        self.places = list(places(self.config))

    def refused(self, config: Any) -> bool:
        """Whether it is refused, with an error of ours, soon and in little memory; else the weights fit the network."""
        (self.folder / "config.json").write_text(json.dumps(config))
        said = ""
        with bounded():
            try:
                checkpoint = expand_checkpoint(assemble_checkpoint(self.folder, self.tensors))
                check_complete(network(checkpoint.family.network, checkpoint.spec.config), checkpoint.weights)
            except MlxDepthError as error:
                said = str(error)
        assert "\n" not in said
        assert len(said) < 2000
        return bool(said)


@pytest.fixture(scope="module", params=["hub", "ours"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.getfixturevalue(request.param), tmp_path_factory.mktemp("case"))


def test_the_case_is_sound(case: Case) -> None:
    assert not case.refused(case.config)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_value_replaced_by_every_wrong_one(case: Case) -> None:
    count = sum(case.refused(edited(case.config, way, value)) for way in case.places for value in WRONG)
    assert count > 0.4 * len(case.places) * len(WRONG), "many keys have no effect, but most have"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("examples", [500, pytest.param(20_000, marks=pytest.mark.nightly)])
def test_configs_drawn_at_random(case: Case, examples: int) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    settings(max_examples=examples, deadline=None, suppress_health_check=checks)(given(data=st.data())(drawn))(case)


def drawn(case: Case, data: st.DataObject) -> None:
    config = case.config
    for _ in range(data.draw(st.integers(1, 3))):
        way = data.draw(st.sampled_from(case.places))
        try:
            config = edited(config, way, data.draw(JSON_VALUES))
        except (KeyError, TypeError, IndexError):
            break  # an earlier change took the place away
    assert case.refused(config) in (True, False)


def test_keys_that_steer_a_terminal_are_escaped(case: Case) -> None:
    inner = ("backbone_config",) if "backbone_config" in case.config else ("config",)
    for way in (("\x1b[2J\n",), (*inner, "\x1b[2J\n")):
        (case.folder / "config.json").write_text(json.dumps(edited(case.config, way, 1)))
        with pytest.raises(MlxDepthError, match=r"\\x1b\[2J\\n") as caught:
            assemble_checkpoint(case.folder, case.tensors)
        assert str(caught.value).isprintable()


SIZES = ["embed_dim", "num_layers", "num_heads", "table_size", "mlp_ratio", "patch_size", "features", "hidden_channels"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("number", [10**9, 0, -14])
def test_a_size_that_no_tensor_has_is_named(size: str, number: int, ours: Path, tmp_path: Path) -> None:
    case = Case(ours, tmp_path)
    way = next(way for way in case.places if way[0] == "config" and way[-1] == size)
    (tmp_path / "config.json").write_text(json.dumps(edited(case.config, way, number)))
    with pytest.raises(MlxDepthError, match=rf"{size}|embed_dim|patch size|halve"):
        assemble_checkpoint(tmp_path, case.tensors)


KEYS = ["patch_size", "vit.embed_dim", "vit.depth", "vit.num_heads", "vit.out_layers", "vit.ffn_type"]
KEYS += ["vit.pos_embed_grid", "head.features", "head.out_channels", "head.max_depth", "arch", "vit.cat_token"]
VALUES: list[Any] = [2**31 - 1, 0, -14, 1, 3.5, float("nan"), float("inf"), "14", True, [0], [1, 2, 3, 4, 5], [0] * 4]
VALUES += [[2**31 - 1] * 4, [-1, 0, 1, 2], ["a"] * 4, [3, 2, 1, 0]]


@pytest.mark.parametrize("key", KEYS)
def test_gguf_metadata_that_lies(key: str, tmp_path: Path) -> None:
    upstream = reference.model("tiny", max_depth=20)
    refused = []
    for value in VALUES:
        path = containers.save_gguf(upstream, tmp_path / "a.gguf", **{key: value})
        with bounded():
            try:
                with open_checkpoint(path) as (checkpoint, _):
                    check_complete(checkpoint.family.network(checkpoint.spec.config), checkpoint.weights)
            except MlxDepthError as error:
                refused.append(str(error))
    assert len(refused) >= len(VALUES) - 4
    assert not any("\n" in said for said in refused)


def test_a_preprocessor_that_lies(hub: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(hub, tmp_path / "hub"))
    mean = {"height": 518, "width": 518}
    good = {"size": mean, "ensure_multiple_of": 14, "keep_aspect_ratio": True}
    good |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2]}
    tensors = read_tensors(folder)
    for key in good:
        for value in WRONG:
            (folder / "preprocessor_config.json").write_text(json.dumps({**good, key: value}))
            if (key, value) in (("keep_aspect_ratio", True), ("ensure_multiple_of", 1), ("ensure_multiple_of", 10**9)):
                continue
            with pytest.raises(MlxDepthError, match=rf"preprocessor_config\.json has {key} = "):
                assemble_checkpoint(folder, tensors)
