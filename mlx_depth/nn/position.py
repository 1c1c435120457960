"""Learnt position tables, resized to the grid of the image."""

from typing import Literal

import mlx.core as mx

from mlx_depth.nn.resize import Method, resize

PositionRule = Literal["size", "scale", "antialias", "bilinear"]
SCALE_OFFSET = 0.1  # added to the grid before dividing: DINOv2's interpolate_offset


def resize_position_table(table: mx.array, grid_size: tuple[int, int], rule: PositionRule) -> mx.array:
    """Resize a square table of position embeddings to a patch grid in float32, bicubically unless the rule is another.

    Args:
        table: ``(1, n * n, C)``, the patch positions without the class token's.
        grid_size: Patches ``(gh, gw)``.
        rule: ``"size"`` takes sampling coordinates from the two sizes (transformers); ``"scale"`` from the factor
            ``(grid + 0.1) / n`` (the DINOv2 and Depth Anything authors); ``"antialias"`` is ``"size"`` with a filter
            that widens where the table shrinks (DINOv2 with registers, in both code bases); ``"bilinear"`` is DPT's for
            the plain ViT.
    Returns:
        ``(1, gh * gw, C)``, the table's dtype; the table itself where the grid is n × n.

    Upstream: ``interpolate_pos_encoding`` in both code bases.
    """
    count, dims = table.shape[1:]
    n = round(count**0.5)
    if grid_size == (n, n):
        return table
    gh, gw = grid_size
    scale = ((gh + SCALE_OFFSET) / n, (gw + SCALE_OFFSET) / n) if rule == "scale" else None
    grid = table.reshape(1, n, n, dims).astype(mx.float32)
    method: Method = "bilinear" if rule == "bilinear" else "bicubic"
    resized = resize(grid, grid_size, method=method, scale=scale, antialias=rule == "antialias")
    return resized.reshape(1, gh * gw, dims).astype(table.dtype)
