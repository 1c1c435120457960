"""What images of one size share, kept for the sizes that were used last."""

from collections.abc import Callable
from typing import Generic, TypeVar

import mlx.core as mx

KEPT_GRIDS = 8  # 3 MB each for the position table of a large DINOv2 in half precision
T = TypeVar("T")


class GridTables(Generic[T]):
    """Tables for patch grids, each made once as long as the array that they come from stays."""

    def __init__(self) -> None:
        self._source: mx.array | None = None
        self._tables: dict[tuple[int, int], T] = {}

    def get(self, grid_size: tuple[int, int], source: mx.array, make: Callable[[], T]) -> T:
        """The table for a grid, from ``make`` where it is not kept.

        Args:
            grid_size: Patches ``(gh, gw)``.
            source: The array that ``make`` starts from; another one than before, and all are made again.
            make: Makes the table.
        """
        if self._source is not source:
            self._source, self._tables = source, {}
        if grid_size not in self._tables:
            if len(self._tables) == KEPT_GRIDS:
                del self._tables[next(iter(self._tables))]
            self._tables[grid_size] = make()
        return self._tables[grid_size]
