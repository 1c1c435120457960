"""Faster routes to the same numbers where MLX computes on a Linux CPU.

Its ``exp`` and ``erf`` are scalar there, and convolutions are slower than matrix products by BLAS. For inference in
float32 alone: gradients do not pass.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from mlx_depth.linux_cpu.fused import fused
from mlx_depth.linux_cpu.streams import in_parts, on_linux_cpu

CACHE_BYTES = 1 << 21  # what the caches next to a core hold

_CHUNK_ELEMENTS = CACHE_BYTES // 4  # scores at a time
_MOST_KEYS = 2048  # of a chunk; of more, narrow chunks would make products slow
_SOME_KEYS = 1024
_ROUND = 1.5 * 2**23  # adding and taking away rounds a float32 to an integer
_ONE_BITS = 127.0 * 2**23  # the bits of 1.0 as an integer
_LOG2_E = math.log2(math.e)

# Fitted by tests/minting/polynomials.py: 2**23 * (2**(f + 0.5) - 1) for f in -0.5..0.5, to 8e-8 of the power.
_POWER = (3474676.0, 8222999.0, 2849813.25, 658494.8125, 114779.5703125, 15754.5439453125)
# By the same script: log2(Φ(-a)) - 0.5 for a in 0..6.5, to 7.1e-9 of a * Φ(-a); beyond, it keeps falling.
_TAIL = (
    -1.499998927116394,
    -1.1511226892471313,
    -0.459117591381073,
    -0.05271027609705925,
    0.007329460699111223,
    -0.0003210842260159552,
    -0.00011520455154823139,
    2.521205897210166e-05,
    -1.6995207943182322e-06,
)


def fast_paths(x: mx.array) -> bool:
    """Whether ``x`` takes the routes of this module: float32 on a Linux CPU."""
    return x.dtype == mx.float32 and on_linux_cpu()


def attention(query: mx.array, key: mx.array, value: mx.array, *, scale: float) -> mx.array:
    """Scaled dot-product attention, some queries of one head at a time, and of a long sequence to some keys.

    The scores of a core never take more than ``CACHE_BYTES``, however many keys there are.

    Args:
        query: ``(B, heads, N, D)``, float32.
        key: ``(B, heads, M, D)``, float32.
        value: ``(B, heads, M, D)``, float32.
        scale: Factor of the scores before the softmax.
    Returns:
        ``(B, heads, N, D)``; NaN where a query meets a score of NaN or plus infinity.

    Same numbers as ``mx.fast.scaled_dot_product_attention`` within 1e-6.
    """
    B, heads, N, _ = query.shape
    query = query * (scale * _LOG2_E)
    query, key, value = (mx.contiguous(x).flatten(0, 1) for x in (query, key, value))  # (B * heads, N, D)
    outputs: list[list[mx.array]] = []
    for q, k, v in zip(query, key, value, strict=True):
        if outputs:
            # MLX queues about a hundred operations: without this one core's, of all heads, and the others idle.
            (q,) = mx.depends([q], outputs[-1])
        outputs.append(in_parts(functools.partial(_attend_in_chunks, q, k, v), N))
    return mx.stack([mx.concatenate(parts) for parts in outputs]).reshape(B, heads, N, -1)


def _attend_in_chunks(query: mx.array, key: mx.array, value: mx.array, start: int, stop: int) -> mx.array:
    M = key.shape[0]
    count = 1 if M <= _MOST_KEYS else math.ceil(M / _SOME_KEYS)
    chunk = _CHUNK_ELEMENTS // math.ceil(M / count)
    edges = itertools.pairwise(M * i // count for i in range(count + 1))
    parts = [(key[first:end], value[first:end]) for first, end in edges]
    outputs: list[mx.array] = []
    for i, j in itertools.pairwise([*range(start, stop, chunk), stop]):
        some = query[i:j]
        if outputs:
            (some,) = mx.depends([some], outputs[-1:])  # else MLX makes the scores of many chunks at once
        outputs.append(_attend_to_parts(some, parts))
    return mx.concatenate(outputs)


def _attend_to_parts(query: mx.array, parts: Sequence[tuple[mx.array, mx.array]]) -> mx.array:
    """Keys and values in parts, one after another → (n, D)."""
    values, weights, largest = _attend(query, *parts[0])
    for key, value in parts[1:]:
        (query,) = mx.depends([query], [values, weights])
        part = _attend(query, key, value)
        larger = mx.maximum(largest, part.largest)
        before, after = (_power_of_two(one - (larger + 0.5)) for one in (largest, part.largest))
        values = values * before[:, None] + part.values * after[:, None]
        weights = weights * before + part.weights * after
        largest = larger
    return values / (weights + (largest - largest))[:, None]  # NaN where the largest is not finite


class _Sums(NamedTuple):
    """Over some keys, both in units of 2**largest."""

    values: mx.array  # weighted, (n, D)
    weights: mx.array  # (n,)
    largest: mx.array  # score, (n,)


def _attend(query: mx.array, key: mx.array, value: mx.array) -> _Sums:
    """(n, D), (M, D), (M, D). Scores have the keys first: reducing over rows is four times faster."""
    scores = key @ query.T  # (M, n)
    largest = scores.max(axis=0)
    weights = _power_of_two(scores - (largest + 0.5))
    return _Sums(weights.T @ value, weights.sum(axis=0), largest)


def gelu(x: mx.array) -> mx.array:
    """Exact (erf) GELU.

    Args:
        x: Any shape, float32.
    Returns:
        The shape of ``x``; NaN for infinities.

    Same numbers as ``mlx.nn.gelu`` within 1e-6 of the larger of 1 and ``|x|``.
    """
    return _subtract_tail(x, _power_of_two(_tail_exponent(x)))


def _power_of_two(y: mx.array) -> mx.array:
    """2**(y + 0.5) for y <= 0: relative error 3e-7 down to -126; 0 below -127 and for NaN."""
    return _power_bits(y).view(mx.float32)


# MLX fuses each of the following into one loop, if it fits the limits of mx.compile: 11 operations deep, no comparison
# of floats (which stops vectorisation). So the polynomials are split (Estrin's scheme) rather than nested.


@fused
def _power_bits(y: mx.array) -> mx.array:
    """The bits of 2**(y + 0.5) as int32: the exponent's and the mantissa's, added."""
    c = _POWER
    n = (y + _ROUND) - _ROUND
    f = y - n
    f2 = f * f
    mantissa = (c[5] * f + c[4]) * (f2 * f2) + ((c[3] * f + c[2]) * f2 + (c[1] * f + c[0]))
    exponent = n * 2.0**23 + _ONE_BITS
    return mx.maximum(mantissa.astype(mx.int32) + exponent.astype(mx.int32), 0)


@fused
def _tail_exponent(x: mx.array) -> mx.array:
    """log2(Φ(-|x|)) - 0.5."""
    c = _TAIL
    a = mx.abs(x)
    a2 = a * a
    a4 = a2 * a2
    low = (c[1] * a + c[0]) + (c[3] * a + c[2]) * a2
    high = (c[5] * a + c[4]) + (c[7] * a + c[6]) * a2
    return (low + high * a4) + c[8] * (a4 * a4)


@fused
def _subtract_tail(x: mx.array, tail: mx.array) -> mx.array:
    """max(x, 0) - |x| * tail."""
    a = mx.abs(x)
    return (0.5 * x + 0.5 * a) - a * tail


def conv_1x1(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """One matrix product over the pixels.

    Args:
        x: ``(B, H, W, C)``.
        weight: ``(D, 1, 1, C)``.
        bias: ``(D,)``.
    Returns:
        ``(B, H, W, D)``.

    Same numbers as ``mx.conv2d``.
    """
    B, H, W, C = x.shape
    return mx.addmm(bias, x.reshape(-1, C), weight.reshape(-1, C).T).reshape(B, H, W, -1)


def conv_3x3(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """Nine matrix products over all pixels: in the flattened, zero-padded image a shift is an offset of the rows.

    Args:
        x: ``(B, H, W, C)``.
        weight: ``(D, 3, 3, C)``.
        bias: ``(D,)``.
    Returns:
        ``(B, H, W, D)``, zero padding of one pixel.

    Same numbers as ``mx.conv2d``.
    """
    taps = mx.contiguous(weight.transpose(1, 2, 3, 0))  # (3, 3, C, D)
    H = x.shape[1]

    def rows(start: int, stop: int) -> mx.array:
        top, bottom = max(start - 1, 0), min(stop + 1, H)
        padded = mx.pad(x[:, top:bottom], [(0, 0), (1, 1), (1, 1), (0, 0)])
        return _conv_3x3(padded, taps, bias)[:, start - top : stop - top]

    return mx.concatenate(in_parts(rows, H), axis=1)


def conv_3x3_inside(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """As ``conv_3x3``, without padding.

    Args:
        x: ``(B, H, W, C)``.
        weight: ``(D, 3, 3, C)``.
        bias: ``(D,)``.
    Returns:
        ``(B, H - 2, W - 2, D)``.

    Same numbers as ``mx.conv2d``.
    """
    taps = mx.contiguous(weight.transpose(1, 2, 3, 0))  # (3, 3, C, D)
    return mx.concatenate(in_parts(lambda i, j: _conv_3x3(x[:, i : j + 2], taps, bias), x.shape[1] - 2), axis=1)


def _conv_3x3(x: mx.array, taps: mx.array, bias: mx.array) -> mx.array:
    """(B, H, W, C) → (B, H - 2, W - 2, D)."""
    B, H, W, C = x.shape
    pixels = x.reshape(-1, C)
    count = pixels.shape[0] - 2 * W - 2  # up to the last image's last output pixel
    y = bias
    for i in range(3):
        for j in range(3):
            offset = i * W + j
            y = mx.addmm(y, pixels[offset : offset + count], taps[i, j])
    D = taps.shape[3]
    return mx.as_strided(y, (B, H - 2, W - 2, D), (H * W * D, W * D, D, 1))  # without what crosses the border


def conv_transpose_tiles(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """A transposed convolution whose stride is its kernel: each pixel becomes a tile, by one matrix product.

    Args:
        x: ``(B, H, W, C)``.
        weight: ``(D, kh, kw, C)``.
        bias: ``(D,)``.
    Returns:
        ``(B, H * kh, W * kw, D)``.

    Same numbers as ``mx.conv_transpose2d``.
    """
    B, H, W, C = x.shape
    D, kh, kw, _ = weight.shape
    tiles = weight.transpose(1, 2, 0, 3).reshape(-1, C)  # (kh * kw * D, C)
    y = mx.addmm(mx.tile(bias, kh * kw), x.reshape(-1, C), tiles.T)
    return y.reshape(B, H, W, kh, kw, D).swapaxes(2, 3).reshape(B, H * kh, W * kw, D)
