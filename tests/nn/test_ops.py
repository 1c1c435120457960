"""Work in rows and tiles: the whole, in order, on one core or several. ``tests/linux_cpu`` has the routes of a CPU."""

import math
import sys
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from support import relative_error, seeded

from mlx_depth.linux_cpu import kernels, openblas
from mlx_depth.linux_cpu.streams import all_cores
from mlx_depth.nn import ops
from mlx_depth.nn.conv import Conv2d, ConvTranspose2d

linux = pytest.mark.skipif(sys.platform != "linux", reason="work is spread on Linux only")


@pytest.fixture(params=[1, 2, 3])
def count(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """As if OpenBLAS had that many threads."""
    monkeypatch.setattr(openblas, "threads", lambda: request.param)
    return request.param


def test_row_wise(count: int) -> None:
    x = mx.array(seeded("x", (2, 7, 3)))
    with all_cores():
        found = ops.row_wise(lambda rows: rows * 2 + 1, x)
        mx.eval(found)
    assert mx.array_equal(found, x * 2 + 1)


def test_build_rows(count: int) -> None:
    x = mx.array(seeded("x", (2, 7, 3)))
    with all_cores():
        found = ops.build_rows(lambda start, stop: x[:, start:stop] * 2, 7)
        mx.eval(found)
    assert mx.array_equal(found, x * 2)


@linux
def test_build_tiles(count: int) -> None:
    x = mx.array(seeded("x", (2, 11, 3)))
    heights: list[int] = []

    def tile(x: mx.array, start: int, stop: int) -> mx.array:
        heights.append(stop - start)
        return x[:, start:stop] * 2

    alone = ops.build_tiles(tile, x, 11, 2)
    assert heights == [2, 2, 2, 2, 2, 1]
    heights.clear()
    with all_cores():
        spread = ops.build_tiles(tile, x, 11, 2)
        mx.eval(spread)
    assert len(heights) == 6
    for whole in (alone, spread):
        assert mx.array_equal(whole, x * 2)


def test_row_wise_takes_few_rows_at_a_time(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "ROWS_AT_ONCE", 2)
    x = mx.array(seeded("x", (2, 7, 3)))
    heights: list[int] = []

    def twice(rows: mx.array) -> mx.array:
        heights.append(rows.shape[1])
        return rows * 2

    with all_cores():
        found = ops.row_wise(twice, x)
        mx.eval(found)
    assert mx.array_equal(found, x * 2)
    assert max(heights) <= 2


def test_the_tile_after_waits_for_the_tile_before(tmp_path) -> None:
    x = mx.array(seeded("x", (2, 9, 3)))
    found = ops.build_tiles(lambda x, start, stop: x[:, start:stop] * 2, x, 9, 3)
    mx.export_to_dot(str(tmp_path / "graph"), found)
    assert (tmp_path / "graph").read_text().count('label ="Depends"') == 2


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_caches_ask_for_tiles_on_a_linux_cpu(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    assert ops.cache_bytes(mx.zeros(1)) == (kernels.CACHE_BYTES if platform == "linux" else None)
    assert ops.cache_bytes(mx.zeros(1, dtype=mx.float16)) is None


def test_without_kernels_all_is_mlx_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "kernels", None)
    x, pixels = mx.array(seeded("x", (1, 2, 5, 8))), mx.array(seeded("pixels", (1, 5, 6, 8)))
    conv, grow = Conv2d(8, 4, kernel_size=3, padding=1), ConvTranspose2d(8, 4, kernel_size=2, stride=2)
    plain = mx.fast.scaled_dot_product_attention(x, x, x, scale=0.5)
    assert mx.array_equal(ops.attention(x, x, x, scale=0.5), plain)
    assert mx.array_equal(ops.gelu(x), nn.gelu(x))
    assert mx.array_equal(conv(pixels), nn.Conv2d.__call__(conv, pixels))
    assert mx.array_equal(grow(pixels), nn.ConvTranspose2d.__call__(grow, pixels))
    assert ops.cache_bytes(x) is None


# Attention where MLX has no kernel that does without a matrix of scores


def largest_array(query: mx.array, key: mx.array, value: mx.array) -> int:
    """Elements, of all that ``ops.attention`` computes."""
    records: list[dict[str, Any]] = []
    with mx.stream(mx.cpu):  # there, MLX's attention stands in the graph as its parts
        mx.export_function(records.append, lambda *inputs: ops.attention(*inputs, scale=0.5), query, key, value)
    shapes = [shape for record in records for _, shape, _ in record.get("outputs", ())]
    assert "Softmax" in {record["name"] for record in records if record["type"] == "primitive"}
    return max(math.prod(shape) for shape in shapes)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize(("bound", "largest"), [(1 << 26, 2 * 3 * 60 * 70), (6 * 70 * 7, 6 * 70 * 7), (1, 6 * 60 * 8)])
def test_attention_holds_few_scores(bound: int, largest: int, dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, seven queries at a time, and one at a time: then the output is larger."""
    monkeypatch.setattr(ops, "kernels", None)
    query = mx.array(seeded("query", (2, 3, 60, 8))).astype(dtype)
    key, value = (mx.array(seeded(name, (2, 3, 70, 8))).astype(dtype) for name in ("key", "value"))
    plain = mx.fast.scaled_dot_product_attention(query, key, value, scale=0.5).astype(mx.float32)
    monkeypatch.setattr(ops, "MAX_SCORES", bound)
    assert largest_array(query, key, value) == max(largest, 6 * 70 * 8)
    ours = ops.attention(query, key, value, scale=0.5)
    assert ours.dtype == dtype
    assert relative_error(np.array(ours.astype(mx.float32)), np.array(plain)) <= {4: 1e-6, 2: 4e-3}[dtype.size]


@pytest.mark.parametrize(
    ("device", "metal", "head_dim", "fused"),
    [(mx.gpu, True, 64, True), (mx.gpu, True, 72, False), (mx.gpu, False, 64, False), (mx.cpu, True, 64, False)],
)
def test_metal_s_own_kernel_needs_no_tiles(
    device: mx.DeviceType, metal: bool, head_dim: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "kernels", None)
    monkeypatch.setattr(ops, "MAX_SCORES", 1)
    chosen = mx.Device(device)
    monkeypatch.setattr(mx, "default_device", lambda: chosen)
    monkeypatch.setattr(mx.metal, "is_available", lambda: metal)
    calls: list[int] = []
    attend = mx.fast.scaled_dot_product_attention

    def recording(query: mx.array, *arrays: mx.array, scale: float) -> mx.array:
        calls.append(query.shape[2])
        return attend(query, *arrays, scale=scale)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", recording)
    x = mx.zeros((1, 1, 3, head_dim))
    ops.attention(x, x, x, scale=1.0)
    assert calls == ([3] if fused else [1, 1, 1])
