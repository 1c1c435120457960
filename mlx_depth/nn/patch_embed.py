"""Images to patch tokens."""

import mlx.core as mx
import mlx.nn as nn


class PatchEmbed(nn.Module):
    """Cut an image, or a map, into square patches and project each: (B, H, W, channels) → (B, gh, gw, C)."""

    def __init__(self, dims: int, patch_size: int, channels: int = 3):
        super().__init__()
        self.proj = nn.Conv2d(channels, dims, kernel_size=patch_size, stride=patch_size)

    def __call__(self, pixel_values: mx.array) -> mx.array:
        return self.proj(pixel_values)
