"""Work in rows and tiles: the whole, in order, on one core or several. ``tests/linux_cpu`` has the routes of a CPU."""

import sys

import mlx.core as mx
import mlx.nn as nn
import pytest
from support import seeded

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
