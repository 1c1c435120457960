"""Compiled graphs compute what the network computes, one a shape; MLX's limits come and go."""

import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from support import relative_error, seeded

from mlx_depth.backbones.dinov2 import DINOv2Config
from mlx_depth.heads.dpt import DPTConfig
from mlx_depth.linux_cpu import openblas, streams
from mlx_depth.models.depth_anything.network import DepthAnything, DepthAnythingConfig, depth_anything_config
from mlx_depth.runtime import forward as runtime
from mlx_depth.runtime.forward import cores_for, evaluate, forward_of, working_bytes

TINY = DepthAnythingConfig(
    DINOv2Config(embed_dim=16, num_layers=4, num_heads=2, out_layers=(0, 1, 2, 3), table_size=3),
    DPTConfig(in_dim=16, features=8, out_channels=(8, 8, 16, 16)),
)
SHAPES = [(1, 28, 42, 3), (2, 28, 42, 3), (1, 42, 42, 3)]


class Counted(DepthAnything):
    """Counts how often Python builds the network's graph."""

    def __init__(self) -> None:
        super().__init__(TINY)
        self.built: list[tuple[int, ...]] = []
        self.update(filled(self))

    def __call__(self, pixel_values: mx.array) -> Any:
        self.built.append(pixel_values.shape)
        return super().__call__(pixel_values)


def filled(network: nn.Module) -> dict[str, Any]:
    names = nn.utils.tree_flatten(network.parameters())
    return nn.utils.tree_unflatten([(name, mx.array(seeded(name, value.shape, 0.3))) for name, value in names])


def pixels(shape: tuple[int, ...]) -> mx.array:
    return mx.array(seeded("pixels", shape))


@pytest.fixture
def network() -> Counted:
    return Counted()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choices of a GPU; MLX itself computes as before."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))


def test_compiled_graphs_are_kept_by_shape_and_type(network: Counted, gpu: None) -> None:
    forward = forward_of(network, mx.float32)
    expected = {shape: np.array(network(pixels(shape)).depth) for shape in SHAPES}
    network.built.clear()
    for shape in SHAPES * 2:
        depth = forward(pixels(shape)).depth
        assert depth.dtype == mx.float32
        assert relative_error(np.array(depth), expected[shape]) <= 1e-5
        assert expected[shape].std() > 0
    assert network.built == SHAPES
    forward(pixels(SHAPES[0]).astype(mx.float16))
    assert network.built == [*SHAPES, SHAPES[0]]


def test_the_oldest_graph_goes(network: Counted, gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "COMPILED_SHAPES", 2)
    forward = forward_of(network, mx.float32)
    for shape in [*SHAPES, SHAPES[2], SHAPES[0]]:
        forward(pixels(shape))
    assert network.built == [*SHAPES, SHAPES[0]]


def test_a_graph_holds_resized_positions_rather_than_their_resizing(gpu: None, tmp_path: Path) -> None:
    needless = gathers(Counted(), (1, 42, 42, 3), tmp_path)  # the table's own grid
    assert gathers(Counted(), (1, 28, 42, 3), tmp_path) == needless
    unprepared = Counted()
    unprepared.prepare = lambda size: [mx.array(0)]  # type: ignore[method-assign]
    assert gathers(unprepared, (1, 28, 42, 3), tmp_path) > needless


def gathers(network: Counted, shape: tuple[int, ...], folder: Path) -> int:
    mx.export_to_dot(str(folder / "graph"), forward_of(network, mx.float32)(pixels(shape)).depth)
    operations = re.findall(r'label ="(\w+)', (folder / "graph").read_text())
    assert "Convolution" in operations
    return operations.count("Gather")


def test_a_cpu_compiles_nothing(network: Counted) -> None:
    forward = forward_of(network, mx.float32)
    for _ in range(2):
        forward(pixels(SHAPES[0]))
    assert network.built == [SHAPES[0]] * 2


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_linux_cpu_takes_images_one_by_one(network: Counted, platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = pixels((3, 28, 42, 3))
    expected = np.array(network(batch).depth)
    network.built.clear()
    monkeypatch.setattr(sys, "platform", platform)
    depth = forward_of(network, mx.float32)(batch).depth
    assert network.built == ([SHAPES[0]] * 3 if platform == "linux" else [batch.shape])
    assert relative_error(np.array(depth), expected) <= 1e-5
    assert min(np.abs(expected[0] - expected[1]).max(), expected.std()) > 0


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_depth_is_float32(network: Counted, dtype: mx.Dtype) -> None:
    network.set_dtype(dtype)
    assert forward_of(network, dtype)(pixels(SHAPES[0])).depth.dtype == mx.float32


@pytest.mark.skipif(sys.platform != "linux", reason="work is spread on Linux only")
def test_small_images_take_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openblas, "threads", lambda: 2)
    for size, count in (((280, 280), 2), ((280, 266), 1), ((14, 14000), 2)):
        with cores_for(size):
            assert streams.cores() == count


# Limits.


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """What the limits of memory and of idle buffers are while something is evaluated; the real ones come back."""
    memory, cache = mx.get_memory_limit(), mx.set_cache_limit(0)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(mx, "eval", lambda arrays: seen.append(current_limits()))
    yield seen
    mx.set_memory_limit(memory)
    mx.set_cache_limit(cache)


def current_limits() -> tuple[int, int]:
    cache = mx.set_cache_limit(0)
    mx.set_cache_limit(cache)
    return mx.get_memory_limit(), cache


def test_limits_hold_while_evaluating(limits: list[tuple[int, int]]) -> None:
    mx.set_memory_limit(10**12)
    mx.set_cache_limit(10**12)
    evaluate([], 10**9)
    assert limits == [(mx.get_active_memory() + 10**9, 10**12 // 8)]
    assert current_limits() == (10**12, 10**12)


def test_lower_limits_of_the_user_stay(limits: list[tuple[int, int]]) -> None:
    mx.set_memory_limit(10**8)
    mx.set_cache_limit(1000)
    evaluate([], 10**9)
    assert limits == [(10**8, 1000)]
    assert current_limits() == (10**8, 1000)


def test_limits_come_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arrays: object) -> None:
        raise RuntimeError

    before = current_limits()
    monkeypatch.setattr(mx, "eval", fail)
    with pytest.raises(RuntimeError):
        evaluate([], 10**9)
    assert current_limits() == before


def test_two_at_once_share_the_limits(limits: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second adds what it needs; the first to end leaves them to the other."""
    mx.set_memory_limit(10**12)
    mx.set_cache_limit(10**12)
    with runtime._limits(10**9):
        first = mx.get_memory_limit()
        thread = threading.Thread(target=evaluate, args=([], 10**8))
        thread.start()
        thread.join()
        assert limits == [(first + 10**8, 10**12 // 8)]
        assert current_limits() == limits[0]
    assert current_limits() == (10**12, 10**12)


def test_what_a_network_needs_follows_its_largest_map(network: Counted) -> None:
    large = depth_anything_config("large")
    assert working_bytes(network, (1, 28, 42, 3), mx.float16) == 1 << 27
    network = DepthAnything(large)
    path = 296 * 296 * 256
    assert network.largest_map((518, 518)) == path
    assert working_bytes(network, (8, 518, 518, 3), mx.float16) == 4 * 8 * path * 2
    assert working_bytes(network, (8, 518, 518, 3), mx.float32) == 4 * 8 * path * 4


def test_the_largest_map_is_the_fused_path(network: Counted) -> None:
    maps = [mx.zeros((1, *size, 8)) for size in ((8, 12), (4, 6), (2, 3), (1, 2))]
    assert network.head.fuse(maps).size == network.largest_map((28, 42))
