"""The rules for resizing a position table, stated in torch."""

import mlx.core as mx
import numpy as np
import pytest
from support import relative_error, require, seeded

from mlx_depth.nn.position import resize_position_table

torch = require("reference", "torch")
GRIDS = [(36, 37), (28, 37), (37, 52), (1, 1), (5, 7), (74, 74), (66, 37)]


def stated(table: np.ndarray, grid: tuple[int, int], rule: str) -> np.ndarray:
    x = torch.from_numpy(table).reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    grow = {"scale_factor": ((grid[0] + 0.1) / 37, (grid[1] + 0.1) / 37)}
    options = grow if rule == "scale" else {"size": grid, "antialias": rule == "antialias"}
    x = torch.nn.functional.interpolate(
        x, mode="bilinear" if rule == "bilinear" else "bicubic", align_corners=False, **options
    )
    assert tuple(x.shape[2:]) == grid
    return x.permute(0, 2, 3, 1).reshape(1, grid[0] * grid[1], -1).numpy()


@pytest.mark.parametrize("rule", ["size", "scale", "antialias", "bilinear"])
@pytest.mark.parametrize("grid", GRIDS)
def test_equals_torch(grid, rule):
    table = seeded("table", (1, 37 * 37, 24))
    found = np.array(resize_position_table(mx.array(table), grid, rule))
    assert relative_error(found, stated(table, grid, rule)) <= 1e-5


@pytest.mark.parametrize("rule", ["size", "scale", "antialias", "bilinear"])
def test_the_tables_own_grid_is_left_alone(rule):
    table = mx.array(seeded("table", (1, 37 * 37, 8)))
    assert mx.array_equal(resize_position_table(table, (37, 37), rule), table)


def test_half_precision_tables_are_resized_in_float32():
    table = mx.array(seeded("table", (1, 37 * 37, 8))).astype(mx.float16)
    found = resize_position_table(table, (20, 30), "scale")
    exact = resize_position_table(table.astype(mx.float32), (20, 30), "scale").astype(mx.float16)
    assert found.dtype == mx.float16
    assert mx.array_equal(found, exact)
