"""Which tables are kept, and when they are made again."""

import mlx.core as mx

from mlx_depth.nn.grid_tables import KEPT_GRIDS, GridTables


def test_a_table_is_made_once_for_each_grid_and_source():
    tables: GridTables[tuple[int, int]] = GridTables()
    source, made = mx.zeros((1,)), []

    def get(grid_size, source):
        return tables.get(grid_size, source, lambda: made.append(grid_size) or grid_size)

    assert [get((1, 2), source), get((2, 1), source), get((1, 2), source)] == [(1, 2), (2, 1), (1, 2)]
    assert made == [(1, 2), (2, 1)]
    get((1, 2), mx.zeros((1,)))
    assert made == [(1, 2), (2, 1), (1, 2)], "an equal array is not the same one"


def test_the_oldest_goes_first():
    tables: GridTables[int] = GridTables()
    source, made = mx.zeros((1,)), []
    for side in [*range(KEPT_GRIDS + 1), KEPT_GRIDS, 1, 0]:
        tables.get((side, side), source, lambda side=side: made.append(side) or side)
    assert made == [*range(KEPT_GRIDS + 1), 0]
