"""Faster routes to the same numbers where MLX computes on a Linux CPU: its ``exp`` and ``erf`` are scalar there.

For inference in float32 alone: gradients do not pass. ``nn/conv.py`` holds the convolutions.
"""

import functools
import itertools
import math

import mlx.core as mx

from mlx_depth.linux_cpu.streams import in_parts, on_linux_cpu

_CHUNK_ELEMENTS = 1 << 19  # scores at a time: 2 MB, which the caches next to a core hold
_ROUND = 1.5 * 2**23  # adding and taking away rounds a float32 to an integer
_ONE_BITS = 127.0 * 2**23  # the bits of 1.0 as an integer
_LOG2_E = math.log2(math.e)

# 2**23 * (2**(f + 0.5) - 1) for f in -0.5..0.5, relative error 8e-8 of the power; a minimax fit.
_POWER = (3474676.0, 8222999.0, 2849812.0, 658496.8125, 114783.6875, 15750.2548828125)
# log2(Φ(-a)) - 0.5 for a >= 0, error 7e-9 in a * Φ(-a); a minimax fit that keeps falling beyond its range, 6.5.
_TAIL = (
    -1.499998927116394,
    -1.151123285293579,
    -0.4591154456138611,
    -0.05271419882774353,
    0.007333383429795504,
    -0.00032334175193682313,
    -0.00011446279677329585,
    2.5083327273023315e-05,
    -1.6904029962461209e-06,
)


def fast_paths(x: mx.array) -> bool:
    """Whether ``x`` takes the routes of this module and of ``nn/conv.py``: float32 on a Linux CPU."""
    return x.dtype == mx.float32 and on_linux_cpu()


def attention(query: mx.array, key: mx.array, value: mx.array, *, scale: float) -> mx.array:
    """Scaled dot-product attention, some queries of one head at a time.

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
    chunk = max(32, _CHUNK_ELEMENTS // key.shape[2])
    query = query * (scale * _LOG2_E)
    query, key, value = (mx.contiguous(x).flatten(0, 1) for x in (query, key, value))  # (B * heads, N, D)
    outputs: list[list[mx.array]] = []
    for q, k, v in zip(query, key, value, strict=True):
        if outputs:
            # MLX queues about a hundred operations: without this one core's, of all heads, and the others idle.
            (q,) = mx.depends([q], outputs[-1])
        outputs.append(in_parts(functools.partial(_attend_in_chunks, q, k, v, chunk), N))
    return mx.stack([mx.concatenate(parts) for parts in outputs]).reshape(B, heads, N, -1)


def _attend_in_chunks(query: mx.array, key: mx.array, value: mx.array, chunk: int, start: int, stop: int) -> mx.array:
    edges = [*range(start, stop, chunk), stop]
    return mx.concatenate([_attend(query[i:j], key, value) for i, j in itertools.pairwise(edges)])


def _attend(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
    """(n, D), (M, D), (M, D) → (n, D). Scores have the keys first: reducing over rows is four times faster."""
    scores = key @ query.T  # (M, n)
    largest = scores.max(axis=0)
    weights = _power_of_two(scores - (largest + 0.5))
    total = weights.sum(axis=0) + (largest - largest)  # NaN where the largest is not finite
    return (weights.T @ value) / total[:, None]


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


@mx.compile
def _power_bits(y: mx.array) -> mx.array:
    """The bits of 2**(y + 0.5) as int32: the exponent's and the mantissa's, added."""
    c = _POWER
    n = (y + _ROUND) - _ROUND
    f = y - n
    f2 = f * f
    mantissa = (c[5] * f + c[4]) * (f2 * f2) + ((c[3] * f + c[2]) * f2 + (c[1] * f + c[0]))
    exponent = n * 2.0**23 + _ONE_BITS
    return mx.maximum(mantissa.astype(mx.int32) + exponent.astype(mx.int32), 0)


@mx.compile
def _tail_exponent(x: mx.array) -> mx.array:
    """log2(Φ(-|x|)) - 0.5."""
    c = _TAIL
    a = mx.abs(x)
    a2 = a * a
    a4 = a2 * a2
    low = (c[1] * a + c[0]) + (c[3] * a + c[2]) * a2
    high = (c[5] * a + c[4]) + (c[7] * a + c[6]) * a2
    return (low + high * a4) + c[8] * (a4 * a4)


@mx.compile
def _subtract_tail(x: mx.array, tail: mx.array) -> mx.array:
    """max(x, 0) - |x| * tail."""
    a = mx.abs(x)
    return (0.5 * x + 0.5 * a) - a * tail
