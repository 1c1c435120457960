"""The routes of a Linux CPU compute what the plain operations compute, and no other device takes them.

Errors are relative to the scale of the operation: what its result would be if nothing cancelled.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import seeded

from mlx_depth.heads import dpt
from mlx_depth.heads.dpt import DPTConfig, DPTHead
from mlx_depth.linux_cpu import kernels
from mlx_depth.nn import conv
from mlx_depth.nn.attention import Attention
from mlx_depth.nn.mlp import MLP
from mlx_depth.nn.resize import resize_rows

TOLERANCE = 1e-6
DEVICES = {"linux": mx.cpu, "darwin": mx.cpu, "gpu": mx.gpu}
MINTING = Path(__file__).parents[1] / "minting" / "polynomials.py"
sides = st.integers(1, 9)


def array(name: str, *shape: int, scale: float = 1.0) -> mx.array:
    return mx.array(seeded(name, shape, scale))


def largest_error(ours: mx.array, exact: Any, scale: Any) -> float:
    return float(np.max(np.abs(np.asarray(ours, np.float64) - np.asarray(exact, np.float64)) / scale))


def exact_attention(query: mx.array, key: mx.array, value: mx.array, scale: float) -> np.ndarray:
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    scores = q @ k.swapaxes(-1, -2) * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def exact_gelu(x: np.ndarray) -> np.ndarray:
    return np.array([value * 0.5 * math.erfc(-value / math.sqrt(2)) for value in x.ravel().astype(float)]).reshape(
        x.shape
    )


def pretend(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    """As if on Linux without a GPU, on a Mac's CPU, or on Linux with a GPU; MLX itself computes as before."""
    device = mx.Device(DEVICES[platform])
    monkeypatch.setattr(sys, "platform", "darwin" if platform == "darwin" else "linux")
    monkeypatch.setattr(mx, "default_device", lambda: device)


# The rule


@pytest.mark.parametrize(("platform", "expected"), [("linux", True), ("darwin", False), ("gpu", False)])
def test_only_a_linux_cpu_takes_them(monkeypatch: pytest.MonkeyPatch, platform: str, expected: bool) -> None:
    pretend(monkeypatch, platform)
    assert kernels.fast_paths(mx.zeros(1)) is expected
    assert not kernels.fast_paths(mx.zeros(1, dtype=mx.float16))


def layers() -> list[tuple[nn.Module, mx.array]]:
    """A layer of each kind that has a faster route, with an input."""
    pixels, tokens = array("pixels", 2, 5, 6, 8), array("tokens", 2, 30, 8)
    return [
        (Attention(8, 2), tokens),
        (MLP(8, 32), tokens),
        (conv.Conv2d(8, 4, kernel_size=1), pixels),
        (conv.Conv2d(8, 4, kernel_size=3, padding=1), pixels),
        (conv.Conv2d(8, 4, kernel_size=3, padding=1, bias=False), pixels),
        (conv.EdgeConv2d(8, 4), pixels),
        (conv.ConvTranspose2d(8, 4, kernel_size=2, stride=2), pixels),
    ]


ROUTES = ["attention", "gelu", "conv_1x1", "conv_3x3", "conv_3x3_inside", "conv_transpose_tiles"]


@pytest.mark.parametrize("platform", DEVICES)
def test_layers_follow_the_rule(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    calls: list[str] = []

    def recording(name: str, route: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def call(*arguments: Any, **options: Any) -> mx.array:
            calls.append(name)
            return route(*arguments, **options)

        return call

    for name in ROUTES:
        monkeypatch.setattr(kernels, name, recording(name, getattr(kernels, name)))
    pretend(monkeypatch, platform)
    for layer, x in layers():
        layer(x)
    taken = ["attention", "gelu", "conv_1x1", "conv_3x3", "conv_3x3", "conv_3x3_inside", "conv_transpose_tiles"]
    assert calls == (taken if platform == "linux" else [])


@pytest.mark.parametrize("index", range(7))
def test_layers_agree_with_their_plain_route(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    layer, x = layers()[index]
    pretend(monkeypatch, "linux")
    fast = np.array(layer(x))
    pretend(monkeypatch, "darwin")
    plain = np.array(layer(x))
    assert plain.std() > 0.01
    assert largest_error(fast, plain, np.abs(plain).max()) <= TOLERANCE


@pytest.mark.parametrize(
    "options",
    [{"stride": 2, "padding": 1}, {"stride": 2}, {"padding": 2, "dilation": 2}, {"padding": 1, "groups": 2}],
)
def test_other_convolutions_stay_mlx_s(monkeypatch: pytest.MonkeyPatch, options: dict[str, int]) -> None:
    layer, x = conv.Conv2d(4, 6, kernel_size=3, **options), array("x", 1, 7, 8, 4)
    pretend(monkeypatch, "linux")
    assert mx.array_equal(layer(x), nn.Conv2d.__call__(layer, x))


def test_other_transposed_convolutions_stay_mlx_s(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = conv.ConvTranspose2d(4, 6, kernel_size=3, stride=2, padding=1), array("x", 1, 7, 8, 4)
    pretend(monkeypatch, "linux")
    assert mx.array_equal(layer(x), nn.ConvTranspose2d.__call__(layer, x))


# Attention


@given(
    B=st.integers(1, 2),
    heads=st.integers(1, 3),
    N=st.integers(1, 70),
    M=st.integers(1, 70),
    D=st.sampled_from([1, 2, 8, 64]),
    spread=st.sampled_from([0.01, 1.0, 3.0]),
)
def test_attention(B: int, heads: int, N: int, M: int, D: int, spread: float) -> None:
    query, key = array("query", B, heads, N, D, scale=spread), array("key", B, heads, M, D)
    value = array("value", B, heads, M, D)
    ours = kernels.attention(query, key, value, scale=D**-0.5)
    plain = mx.fast.scaled_dot_product_attention(query, key, value, scale=D**-0.5)
    scale = np.abs(np.array(value)).max()
    assert ours.shape == plain.shape
    assert largest_error(ours, exact_attention(query, key, value, D**-0.5), scale) <= TOLERANCE
    assert largest_error(ours, plain, scale) <= 2 * TOLERANCE  # each may stray by one


def test_attention_in_several_chunks() -> None:
    """A network's own shape: 1,370 tokens do not divide into chunks of equal size."""
    N = 1370
    assert N % (kernels._CHUNK_ELEMENTS // N)
    query, key, value = (array(name, 1, 2, N, 64) for name in ("query", "key", "value"))
    ours = kernels.attention(query, key, value, scale=0.125)
    scale = np.abs(np.array(value)).max()
    assert largest_error(ours, exact_attention(query, key, value, 0.125), scale) <= TOLERANCE


@pytest.fixture
def few_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 12 keys were a long sequence, of which 5 fit at a time."""
    monkeypatch.setattr(kernels, "_MOST_KEYS", 11)
    monkeypatch.setattr(kernels, "_SOME_KEYS", 5)


@pytest.mark.usefixtures("few_keys")
@pytest.mark.parametrize("M", [11, 12, 15, 16, 70])
@pytest.mark.parametrize("spread", [0.01, 1.0, 3.0])
def test_attention_to_some_keys_at_a_time(M: int, spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = recorded_scores(monkeypatch)
    query, key = array("query", 2, 3, 9, 8, scale=spread), array("key", 2, 3, M, 8)
    value = array("value", 2, 3, M, 8)
    ours = kernels.attention(query, key, value, scale=0.5)
    assert largest_error(ours, exact_attention(query, key, value, 0.5), np.abs(np.array(value)).max()) <= TOLERANCE
    assert len(shapes) == 6 * (1 if M == 11 else math.ceil(M / 5))


def recorded_scores(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of each tile, (keys, queries)."""
    shapes: list[tuple[int, int]] = []
    attend = kernels._attend

    def recording(query: mx.array, key: mx.array, value: mx.array) -> Any:
        shapes.append((key.shape[0], query.shape[0]))
        return attend(query, key, value)

    monkeypatch.setattr(kernels, "_attend", recording)
    return shapes


@pytest.mark.parametrize("count", [1, 1370, 2048, 2049, 27680, 500_000])
def test_scores_fit_the_caches_whatever_the_keys(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is evaluated: 500,000 tokens are 600 views."""
    shapes = recorded_scores(monkeypatch)
    queries, keys = mx.zeros((1, 1, min(count, 2000), 64)), mx.zeros((1, 1, count, 64))
    kernels.attention(queries, keys, keys, scale=1.0)
    assert max(keys * queries for keys, queries in shapes) * 4 <= kernels.CACHE_BYTES
    assert sum(keys * queries for keys, queries in shapes) == count * queries.shape[2]


@pytest.mark.skipif(sys.platform != "linux", reason="tiles of scores are for a Linux CPU")
def test_few_tiles_of_scores_exist_at_once() -> None:
    """1,200 queries meet 20 tiles of keys, three times: 60 tiles of 2 MB, made one after another."""
    query, key = array("query", 1, 1, 1200, 8), array("key", 1, 1, 20_000, 8)
    mx.eval(query, key)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(kernels.attention(query, key, key, scale=1.0))
    assert mx.get_peak_memory() - before < 10 * kernels.CACHE_BYTES


@pytest.mark.usefixtures("few_keys")
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", [0, 8, 19])
def test_a_score_that_is_not_finite_reaches_its_query_alone(poison: float, index: int) -> None:
    """One infinity below all scores weighs nothing; the others leave no number."""
    query, value = mx.array([[[[1.0], [0.0]]]]), array("value", 1, 1, 20, 3)
    scores = seeded("key", (1, 1, 20, 1))
    scores[0, 0, index, 0] = poison
    ours = np.array(kernels.attention(query, mx.array(scores), value, scale=1.0))
    plain = np.array(mx.fast.scaled_dot_product_attention(query, mx.array(scores), value, scale=1.0))
    assert np.array_equal(np.isnan(ours), np.isnan(plain))
    if poison == -math.inf:
        assert largest_error(ours[..., 0, :], plain[..., 0, :], 1.0) <= 2 * TOLERANCE


@pytest.mark.usefixtures("few_keys")
def test_keys_that_weigh_nothing_all_together() -> None:
    """A tile of keys of which none counts, before and after those that do."""
    key = mx.array(np.array([-math.inf] * 5 + [1.0, 2, 3, 4, 5] + [-3e38] * 5, np.float32).reshape(1, 1, 15, 1))
    query, value = mx.ones((1, 1, 2, 1)), array("value", 1, 1, 15, 3)
    ours = kernels.attention(query, key, value, scale=1.0)
    assert largest_error(ours, exact_attention(query, key, value, 1.0), np.abs(np.array(value)).max()) <= TOLERANCE


@pytest.mark.parametrize("low", [-50.0, -100.0, -1e4, -1e9, -3e38, -math.inf])
def test_attention_with_hopeless_keys(low: float) -> None:
    """Scores far below the best one weigh nothing, even when that is far below zero itself."""
    key, value = mx.array([[[[-40.0], [low], [-41.0]]]]), array("value", 1, 1, 3, 5)
    query = mx.ones((1, 1, 2, 1))
    ours = kernels.attention(query, key, value, scale=1.0)
    assert largest_error(ours, exact_attention(query, key, value, 1.0), np.abs(np.array(value)).max()) <= TOLERANCE


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_attention_is_nan_where_the_plain_one_is(poison: float, where: str) -> None:
    arrays = {name: seeded(name, (1, 1, 4, 3)) for name in ("query", "key", "value")}
    arrays[where][0, 0, 1, 2] = poison
    inputs = [mx.array(arrays[name]) for name in ("query", "key", "value")]
    plain = np.isnan(np.array(mx.fast.scaled_dot_product_attention(*inputs, scale=1.0)))
    assert where == "value" or plain.any()
    assert np.array_equal(np.isnan(np.array(kernels.attention(*inputs, scale=1.0))), plain)


@given(st.lists(st.floats(-130, 0, width=32), min_size=1, max_size=40))
def test_powers_of_two(values: list[float]) -> None:
    y = np.array(values, np.float32)
    exact = np.exp2(y.astype(np.float64) + 0.5)
    # Below 2**-126 floats lose digits, and the errors are of the size of 2**-127.
    assert largest_error(kernels._power_of_two(mx.array(y)), exact, exact + 2.0**-104) <= 4e-7


def test_powers_of_two_end_in_zero() -> None:
    far = mx.array([-128.0, -200.0, -256.0, -383.5, -400.0, -1e6, -(2.0**23), -1e9, -3e38, -math.inf, math.nan])
    assert np.array(kernels._power_of_two(far)).tolist() == [0.0] * far.size


def test_the_fitted_polynomials_err_as_little_as_their_comments_say() -> None:
    """Fitting takes seconds; the errors of the constants as they are do not."""
    done = subprocess.run([sys.executable, MINTING, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert {name: tuple(line["coefficients"]) for name, line in found.items()} == {
        "_POWER": kernels._POWER,
        "_TAIL": kernels._TAIL,
    }
    assert 5e-8 < found["_POWER"]["error"] <= 8e-8
    assert 5e-9 < found["_TAIL"]["error"] <= 7.1e-9


# GELU


@given(st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=1, max_size=40))
def test_gelu(values: list[float]) -> None:
    x = np.array(values, np.float32)
    scale = np.maximum(1, np.abs(x).astype(np.float64))
    ours = kernels.gelu(mx.array(x))
    assert largest_error(ours, exact_gelu(x), scale) <= TOLERANCE
    assert largest_error(ours, nn.gelu(mx.array(x)), scale) <= TOLERANCE


def test_gelu_everywhere_it_bends() -> None:
    x = np.linspace(-10, 10, 200_001, dtype=np.float32)
    ours = kernels.gelu(mx.array(x))
    assert largest_error(ours, exact_gelu(x), np.maximum(1, np.abs(x))) <= 2e-7


def test_gelu_of_what_is_not_finite() -> None:
    assert np.isnan(np.array(kernels.gelu(mx.array([math.nan, math.inf, -math.inf])))).all()


# Convolutions


@settings(deadline=None)
@given(B=st.integers(1, 3), H=sides, W=sides, C=sides, D=sides)
def test_conv_3x3(B: int, H: int, W: int, C: int, D: int) -> None:
    x, weight, bias = array("x", B, H, W, C), array("w", D, 3, 3, C), array("b", D)
    plain = mx.conv2d(x, weight, padding=1) + bias
    scale = np.array(mx.conv2d(mx.abs(x), mx.abs(weight), padding=1) + mx.abs(bias))
    assert largest_error(kernels.conv_3x3(x, weight, bias), plain, scale) <= TOLERANCE


@settings(deadline=None)
@given(B=st.integers(1, 3), H=sides, W=sides, C=sides, D=sides)
def test_conv_3x3_inside(B: int, H: int, W: int, C: int, D: int) -> None:
    x, weight, bias = array("x", B, H + 2, W + 2, C), array("w", D, 3, 3, C), array("b", D)
    plain = mx.conv2d(x, weight) + bias
    scale = np.array(mx.conv2d(mx.abs(x), mx.abs(weight)) + mx.abs(bias))
    assert largest_error(kernels.conv_3x3_inside(x, weight, bias), plain, scale) <= TOLERANCE


@settings(deadline=None)
@given(B=st.integers(1, 3), H=sides, W=sides, C=sides, D=sides)
def test_conv_1x1(B: int, H: int, W: int, C: int, D: int) -> None:
    x, weight, bias = array("x", B, H, W, C), array("w", D, 1, 1, C), array("b", D)
    plain = mx.conv2d(x, weight) + bias
    scale = np.array(mx.conv2d(mx.abs(x), mx.abs(weight)) + mx.abs(bias))
    assert largest_error(kernels.conv_1x1(x, weight, bias), plain, scale) <= TOLERANCE


@settings(deadline=None)
@given(B=st.integers(1, 2), H=sides, W=sides, C=sides, D=sides, kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_conv_transpose_tiles(B: int, H: int, W: int, C: int, D: int, kernel: tuple[int, int]) -> None:
    x, weight, bias = array("x", B, H, W, C), array("w", D, *kernel, C), array("b", D)
    plain = mx.conv_transpose2d(x, weight, stride=kernel) + bias
    scale = np.array(mx.conv_transpose2d(mx.abs(x), mx.abs(weight), stride=kernel) + mx.abs(bias))
    assert largest_error(kernels.conv_transpose_tiles(x, weight, bias), plain, scale) <= TOLERANCE


def test_convolutions_of_what_is_not_finite() -> None:
    """A NaN reaches the pixels around it and no others: none wraps into the next row or image."""
    pixels = seeded("x", (2, 4, 5, 2))
    pixels[0, 1, 4, 0] = math.nan
    x, weight = mx.array(pixels), array("w", 3, 3, 3, 2)
    ours, plain = kernels.conv_3x3(x, weight, mx.zeros(3)), mx.conv2d(x, weight, padding=1)
    assert np.array_equal(np.isnan(np.array(ours)), np.isnan(np.array(plain)))


# Strips


@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize("grid_size", [(2, 3), (9, 4), (10, 5)])
def test_head_in_strips(monkeypatch: pytest.MonkeyPatch, grid_size: tuple[int, int], platform: str) -> None:
    """One strip, a last one of two rows, and a last one of twelve; a GPU and a Mac take as many rows as fit."""
    assert dpt.STRIP_ROWS == 64
    head = DPTHead(DPTConfig(in_dim=16, features=8, out_channels=(8, 8, 16, 16), activation="sigmoid"))
    head.update({"conv3": {"weight": array("w", 1, 1, 1, 32)}})
    tokens = [array(f"tokens {i}", 2, grid_size[0] * grid_size[1], 16) for i in range(4)]
    pretend(monkeypatch, "darwin")
    whole = np.array(head(tokens, grid_size))
    pretend(monkeypatch, platform)
    monkeypatch.setattr(dpt, "STRIP_BYTES", 1)
    heights: list[int] = []
    monkeypatch.setattr(dpt, "resize_rows", lambda *x, **more: recorded(heights, resize_rows(*x, **more)))
    strips = np.array(head(tokens, grid_size))
    assert len(heights) == -(-grid_size[0] * 14 // 64)
    assert whole.std() > 0.001
    assert largest_error(strips, whole, 1.0) <= TOLERANCE
    compiled = mx.compile(lambda *tokens: head(tokens, grid_size))(*tokens)
    assert largest_error(compiled, whole, 1.0) <= TOLERANCE


def recorded(heights: list[int], rows: mx.array) -> mx.array:
    heights.append(rows.shape[1])
    return rows


# Without a compiler


CODE = """
import mlx.core as mx, mlx.nn as nn
from mlx_depth.linux_cpu import kernels
x = mx.random.normal((1, 1, 50, 8))
plain = mx.fast.scaled_dot_product_attention(x, x, x, scale=1.0)
attention, gelu = kernels.attention(x, x, x, scale=1.0), kernels.gelu(x)
print(mx.abs(attention - plain).max().item(), mx.abs(gelu - nn.gelu(x)).max().item())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="MLX calls a compiler for its CPU loops; off Linux they are unused")
def test_no_compiler_is_needed() -> None:
    """mx.compile leaves functions as they are where there is no g++; the numbers stay right."""
    environment = {**os.environ, "PATH": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    errors = [float(word) for word in done.stdout.split()]
    assert len(errors) == 2
    assert max(errors) <= 3 * TOLERANCE
