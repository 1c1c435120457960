"""Weights of MiDaS's networks in the authors' names, each drawn from its own: for tests and for minting goldens."""

import math
from collections.abc import Mapping

import numpy as np
from support import seeded


def state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A tensor for each name: trained batch statistics, and no layer that dies.

    Args:
        shapes: The authors' names and shapes.
    """
    return {name: _tensor(name, tuple(shape)) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return np.array(1000)
    if kind == "running_var":
        return np.exp(seeded(name, shape, 0.3))
    if name.endswith(("cls_token", "pos_embed")):
        return seeded(name, shape, 0.5)
    if name == "scratch.output_conv.4.weight":
        return np.abs(seeded(name, shape, 1 / math.sqrt(math.prod(shape[1:]))))
    if len(shape) > 1:
        transposed = name.startswith(("pretrained.act_postprocess1.4", "pretrained.act_postprocess2.4"))
        return seeded(name, shape, 1 / math.sqrt(shape[0] if transposed else math.prod(shape[1:])))
    quiet = 0.3 if ".bn3." in name else 1.0  # residual branches that do not drown what they are added to
    return seeded(name, shape, 0.1) + np.float32(quiet * (kind == "weight"))


def pixels(shape: tuple[int, int, int]) -> np.ndarray:
    """Normalized pixels of images ``(B, H, W)``, channels last, smooth with some noise."""
    B, H, W = shape
    coarse = seeded(f"pixels{shape}", (B, H // 16, W // 16, 3))
    return coarse.repeat(16, axis=1).repeat(16, axis=2) + seeded(f"noise{shape}", (B, H, W, 3), 0.2)
