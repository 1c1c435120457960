"""The position embedding of maps against Depth Anything 3's own."""

import mlx.core as mx
import numpy as np
import pytest
from da3 import import_reference
from support import relative_error, seeded

from mlx_depth.errors import OptionError
from mlx_depth.nn.uv_position import add_uv_position, uv_position

GATE = 1e-6
CASES = [((1, 1), 4, 1.0), ((3, 5), 8, 5 / 3), ((36, 27), 256, 0.75), ((37, 52), 32, 518 / 728), ((126, 1), 128, 0.3)]


def upstream(size: tuple[int, int], channels: int, aspect: float) -> np.ndarray:
    utils = import_reference("model.utils.head_utils")
    grid = utils.create_uv_grid(size[1], size[0], aspect_ratio=aspect)
    return (utils.position_grid_to_embed(grid, channels) * 0.1).numpy()


@pytest.mark.parametrize(("size", "channels", "aspect"), CASES)
def test_tables(size, channels, aspect):
    rows, columns = (np.array(table) for table in uv_position(size, channels, aspect))
    expected = upstream(size, channels, aspect)
    assert rows.shape == (size[0], channels // 2)
    assert columns.shape == (size[1], channels // 2)
    found = np.concatenate(np.broadcast_arrays(columns[None], rows[:, None]), axis=-1)
    assert relative_error(found, expected) <= GATE


@pytest.mark.parametrize(("size", "channels", "aspect"), CASES)
def test_added_to_a_map_and_to_strips_of_it(size, channels, aspect):
    x = seeded("x", (2, *size, channels))
    expected = x + upstream(size, channels, aspect)
    whole = add_uv_position(mx.array(x), size, aspect)
    assert relative_error(np.array(whole), expected) <= GATE
    cut = size[0] // 2
    strips = [
        add_uv_position(mx.array(x[:, start:stop]), size, aspect, start=start)
        for start, stop in ((0, cut), (cut, size[0]))
        if start < stop
    ]
    assert mx.array_equal(mx.concatenate(strips, axis=1), whole)


def test_half_precision_stays():
    assert add_uv_position(mx.zeros((1, 2, 3, 8), mx.float16), (2, 3), 1.5).dtype == mx.float16


def test_channels_that_do_not_part():
    with pytest.raises(OptionError, match="multiple of 4"):
        uv_position((2, 3), 6, 1.0)
