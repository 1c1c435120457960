"""Maps read between their pixels, at positions that a network computed."""

import functools

import mlx.core as mx

from mlx_depth.errors import OptionError
from mlx_depth.nn import ops


def grid_sample(x: mx.array, grid: mx.array) -> mx.array:
    """Read maps at positions in units of their half sides.

    Args:
        x: Maps, ``(B, H, W, C)``, any float type.
        grid: Positions ``(across, down)``, ``(B, h, w, 2)``: -1 and 1 are the outer edges of the first and last pixels.
            What lies beyond the center of a border pixel reads that pixel; NaN gives NaN.
    Returns:
        ``(B, h, w, C)``, same type as ``x``.
    Raises:
        OptionError: If the shapes do not fit.

    Same numbers as ``torch.nn.functional.grid_sample``, bilinear, ``padding_mode="border"``, ``align_corners=False``.
    """
    if x.ndim != 4 or grid.ndim != 4 or grid.shape[0] != x.shape[0] or grid.shape[3] != 2:
        raise OptionError(
            f"grid_sample takes maps (B, H, W, C) and positions (B, h, w, 2), not {x.shape} and {grid.shape}: "
            "add or merge axes first."
        )
    _, H, W, _ = x.shape
    grid = grid.astype(mx.float32)
    columns, rows = (((grid[..., i : i + 1] + 1) * side - 1) / 2 for i, side in enumerate((W, H)))
    return sample_bilinear(x, rows, columns)


def sample_bilinear(x: mx.array, rows: mx.array, columns: mx.array) -> mx.array:
    """Read maps at positions in pixels, each group of channels at its own.

    Args:
        x: Maps, ``(B, H, W, C)``, any float type.
        rows: ``(B, h, w, groups)``, float32; 0 is the center of the first row. Positions beyond the border read the
            border's pixel; NaN gives NaN.
        columns: As ``rows``, for the other axis.
    Returns:
        ``(B, h, w, C)``, same type as ``x``; a group is ``C / groups`` channels that stand together.
    Raises:
        OptionError: If the shapes do not fit.
    """
    if x.ndim != 4 or rows.ndim != 4 or rows.shape != columns.shape or rows.shape[0] != x.shape[0]:
        raise OptionError(
            f"maps (B, H, W, C) are read at rows and columns (B, h, w, groups), not {x.shape} at {rows.shape} and "
            f"{columns.shape}: add or merge axes first."
        )
    B, _, _, C = x.shape
    groups = rows.shape[3]
    if 0 in (*x.shape, *rows.shape):
        raise OptionError(f"a map {x.shape} read at {rows.shape} positions has no pixels: give sides of at least 1.")
    if C % groups:
        raise OptionError(f"{C} channels do not make {groups} equal groups: give positions for a divisor of {C}.")

    def read(x: mx.array, start: int, stop: int) -> mx.array:
        return _read(x, rows[:, start:stop], columns[:, start:stop])

    height, width = rows.shape[1:3]
    row_bytes = B * width * C * x.dtype.size
    tile_bytes = ops.cache_bytes(x) or height * row_bytes
    return ops.build_tiles(read, x, height, max(tile_bytes // row_bytes, 1))


def _read(x: mx.array, rows: mx.array, columns: mx.array) -> mx.array:
    B, H, W, C = x.shape
    groups = rows.shape[3]
    vectors = x.reshape(B * H * W * groups, C // groups)  # what one position reads lies together
    image, group = mx.arange(B)[:, None, None, None], mx.arange(groups)
    above, below, down = _neighbors(rows, H)
    before, behind, across = _neighbors(columns, W)
    top, bottom = ((image * H + row) * (W * groups) + group for row in (above, below))
    left, right = (column * groups for column in (before, behind))
    corners = (
        (top + left, (1 - down) * (1 - across)),
        (top + right, (1 - down) * across),
        (bottom + left, down * (1 - across)),
        (bottom + right, down * across),
    )
    shares = (weight[..., None] * mx.take(vectors, index, axis=0) for index, weight in corners)
    total = functools.reduce(mx.add, shares)  # (B, h, w, groups, C / groups), float32
    return total.astype(x.dtype).reshape(*rows.shape[:3], C)


def _neighbors(position: mx.array, size: int) -> tuple[mx.array, mx.array, mx.array]:
    """The pixels before and after a position along an axis, int32, and the share of the latter."""
    inside = mx.clip(position.astype(mx.float32), 0, size - 1)
    before = mx.nan_to_num(mx.floor(inside)).astype(mx.int32)
    return before, mx.minimum(before + 1, size - 1), inside - before
