"""LayerScale (Touvron et al., 2021, "Going deeper with Image Transformers")."""

import mlx.core as mx
import mlx.nn as nn


class LayerScale(nn.Module):
    """Multiply each channel by a learnt factor."""

    def __init__(self, dims: int):
        super().__init__()
        self.gamma = mx.ones((dims,))

    def __call__(self, x: mx.array) -> mx.array:
        return x * self.gamma
