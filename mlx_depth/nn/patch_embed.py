"""Images to patch tokens."""

import mlx.core as mx
import mlx.nn as nn


class PatchEmbed(nn.Module):
    """Cut an image into square patches and project each: (B, H, W, 3) → (B, gh, gw, C)."""

    def __init__(self, dims: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dims, kernel_size=patch_size, stride=patch_size)

    def __call__(self, pixel_values: mx.array) -> mx.array:
        return self.proj(pixel_values)
