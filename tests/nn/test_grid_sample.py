"""Reading maps between their pixels, against torch."""

import mlx.core as mx
import numpy as np
import pytest
from support import relative_error, require, seeded

from mlx_depth.errors import OptionError
from mlx_depth.linux_cpu import kernels
from mlx_depth.nn.grid_sample import grid_sample, sample_bilinear

GATE = 1e-5


def torch_sample(x: np.ndarray, grid: np.ndarray) -> np.ndarray:
    torch = require("reference", "torch")
    nchw = torch.from_numpy(x).permute(0, 3, 1, 2)
    sampled = torch.nn.functional.grid_sample(
        nchw, torch.from_numpy(grid), mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 7, 5, 3), (4, 6)),
        ((1, 1, 1, 4), (3, 2)),
        ((3, 1, 9, 1), (1, 11)),
        ((1, 12, 1, 8), (5, 1)),
        ((2, 33, 65, 16), (31, 29)),
    ],
)
def test_equals_torch(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    """A third of the positions lie beyond the border."""
    x = seeded("map", shape).astype(np.float64)
    grid = seeded("grid", (shape[0], *size, 2))
    found = np.array(grid_sample(mx.array(x.astype(np.float32)), mx.array(grid)))
    assert relative_error(found, torch_sample(x, grid.astype(np.float64))) <= GATE


def test_positions_on_edges_and_centers() -> None:
    """Outer edges, centers of the border's pixels, pixel centers, the middle of the image, and far outside."""
    H, W = 6, 4
    x = seeded("edges", (1, H, W, 5))
    across = np.array([-1, 1, 1 / W - 1, 1 - 1 / W, 3 / W - 1, 0, -7, 1e6], np.float32)
    down = np.array([-1, 1, 1 / H - 1, 1 - 1 / H, 5 / H - 1, 0, -1e6, 9], np.float32)
    grid = np.stack(np.meshgrid(across, down), axis=-1)[None]
    found = np.array(grid_sample(mx.array(x), mx.array(grid)))
    assert relative_error(found, torch_sample(x, grid)) <= GATE
    np.testing.assert_array_equal(found[0, 0, 0], x[0, 0, 0])
    np.testing.assert_array_equal(found[0, 1, 1], x[0, -1, -1])
    np.testing.assert_array_equal(found[0, 7, 6], x[0, -1, 0])
    np.testing.assert_allclose(found[0, 4, 4], x[0, 2, 1], rtol=1e-6)


def test_half_precision_loses_no_position() -> None:
    """In float16 the pixels of a map 2049 wide could not be told apart."""
    x = seeded("wide", (1, 3, 2049, 4)).astype(np.float16)
    grid = seeded("wide grid", (1, 2, 400, 2), 0.6)
    found = grid_sample(mx.array(x), mx.array(grid))
    assert found.dtype == mx.float16
    expected = torch_sample(x.astype(np.float64), grid.astype(np.float64))
    assert relative_error(found, expected) <= 2**-11  # the rounding of the result


def test_what_is_not_finite() -> None:
    """Infinite positions are beyond the border; NaN is neither a crash nor a value."""
    x = seeded("finite", (1, 4, 6, 2))
    grid = np.array([[[[np.inf, 0], [-np.inf, np.inf], [np.nan, 0], [0, np.nan], [0, 0]]]], np.float32)
    found = np.array(grid_sample(mx.array(x), mx.array(grid)))[0, 0]
    np.testing.assert_allclose(found[0], (x[0, 1, 5] + x[0, 2, 5]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(found[1], x[0, 3, 0])
    assert np.isnan(found[2:4]).all()
    assert np.isfinite(found[4]).all()


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_each_group_has_positions_of_its_own(groups: int) -> None:
    x = seeded("groups", (2, 5, 8, 12))
    rows, columns = seeded("rows", (2, 4, 3, groups), 3.0), seeded("columns", (2, 4, 3, groups), 5.0)
    found = np.array(sample_bilinear(mx.array(x), mx.array(rows), mx.array(columns)))
    width = 12 // groups
    for group in range(groups):
        grid = np.stack([(2 * columns[..., group] + 1) / 8 - 1, (2 * rows[..., group] + 1) / 5 - 1], axis=-1)
        channels = slice(group * width, (group + 1) * width)
        expected = torch_sample(np.ascontiguousarray(x[..., channels]), grid)
        assert relative_error(found[..., channels], expected) <= GATE


def test_tiles_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    x = mx.array(seeded("tiles", (2, 9, 7, 4)))
    rows, columns = (mx.array(seeded(name, (2, 11, 5, 2), 4.0)) for name in ("rows", "columns"))
    whole = sample_bilinear(x, rows, columns)
    mx.eval(whole)
    monkeypatch.setattr(kernels, "CACHE_BYTES", 1)
    assert mx.array_equal(sample_bilinear(x, rows, columns), whole)


@pytest.mark.parametrize(
    ("x", "grid", "message"),
    [
        ((4, 4, 3), (1, 2, 2, 2), "add or merge axes"),
        ((1, 4, 4, 3), (1, 2, 2, 3), "add or merge axes"),
        ((2, 4, 4, 3), (1, 2, 2, 2), "add or merge axes"),
        ((1, 0, 4, 3), (1, 2, 2, 2), "has no pixels"),
        ((1, 4, 4, 3), (1, 2, 0, 2), "has no pixels"),
    ],
)
def test_shapes_that_do_not_fit(x: tuple[int, ...], grid: tuple[int, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        grid_sample(mx.zeros(x), mx.zeros(grid))


def test_groups_that_do_not_fit() -> None:
    x = mx.zeros((1, 4, 4, 6))
    with pytest.raises(OptionError, match="do not make 4 equal groups"):
        sample_bilinear(x, mx.zeros((1, 2, 2, 4)), mx.zeros((1, 2, 2, 4)))
    with pytest.raises(OptionError, match="add or merge axes"):
        sample_bilinear(x, mx.zeros((1, 2, 2, 3)), mx.zeros((1, 2, 2, 2)))
