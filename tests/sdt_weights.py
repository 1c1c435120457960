"""Weights of an SDT head in the authors' names, each drawn from its own: for tests and for minting their goldens."""

import math
from collections.abc import Mapping

import numpy as np
from support import seeded

GAINS = {"scope": 2.0, "offset": 2.0}  # with the features' size, positions that move by more than a pixel
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "init_pos")  # what is no parameter


def state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A tensor for each name: trained batch statistics, offsets that matter, and no layer that dies.

    Args:
        shapes: The authors' names and shapes.
    """
    return {name: _tensor(name, tuple(shape)) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return np.array(1000)
    if kind == "init_pos":
        return initial_positions(shape[1] // 8).reshape(shape)
    if kind == "running_var":
        return np.exp(seeded(name, shape, 0.5))
    if len(shape) > 1:
        gain = next((gain for part, gain in GAINS.items() if f".{part}." in name), math.sqrt(2))
        return seeded(name, shape, gain / math.sqrt(math.prod(shape[1:])))
    return seeded(name, shape, 0.3) + np.float32(name == "output_conv.4.bias" or kind == "weight")


def initial_positions(groups: int) -> np.ndarray:
    """A quarter of a pixel outward, (axis, group, row, column) of the four pixels: first across, then down."""
    quarter = np.array([-0.25, 0.25], np.float32)
    across = np.broadcast_to(quarter, (groups, 2, 2))
    return np.stack([across, across.swapaxes(1, 2)])


def features(name: str, in_dim: int, grid_size: tuple[int, int], batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Patch tokens ``(B, gh * gw, C)`` and the class token ``(B, C)`` of four layers."""
    patches = math.prod(grid_size)
    return [
        (seeded(f"{name}.patches{i}", (batch, patches, in_dim)), seeded(f"{name}.class{i}", (batch, in_dim)))
        for i in range(4)
    ]
