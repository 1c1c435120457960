"""Activations as plain operations.

Those of ``mlx.nn`` are each compiled by themselves: a GPU's graph is compiled whole anyway, and a Linux CPU would
take their libraries from a folder that all users share.
"""

import math

import mlx.core as mx


def relu(x: mx.array) -> mx.array:
    return mx.maximum(x, 0)


def gelu(x: mx.array) -> mx.array:
    """Exact (erf) GELU; same numbers as ``mlx.nn.gelu``."""
    return x * (1 + mx.erf(x / math.sqrt(2))) / 2


def silu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x)
