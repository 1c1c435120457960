"""Palettes of weights."""

import numpy as np
import pytest
from mlx_depth_convert.coreml.compress import palette
from support import seeded


@pytest.mark.parametrize(("size", "least_db"), [(64, 30.0), (256, 40.0)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_palette_is_near_the_best_for_normal_values(size, least_db, dtype):
    values = seeded("weights", (96, 256)).astype(dtype)
    table, indices = palette(values, size)
    assert (table.dtype, table.shape) == (values.dtype, (size,))
    assert (indices.dtype, indices.shape) == (np.uint8, (values.size,))
    assert np.all(np.diff(table) >= 0)
    noise = table[indices].astype(np.float64) - values.ravel()
    # Panter and Dite: 6.02 dB a bit minus 4.35 dB at best.
    assert 10 * np.log10(values.astype(np.float64).var() / noise.var()) > least_db


def test_palette_keeps_few_values_exactly():
    values = np.array([[-1.5, 0.25, 3.0]] * 50, np.float16)
    table, indices = palette(values, 64)
    assert np.array_equal(table[indices], values.ravel())


def test_palette_takes_the_nearest_entry_and_is_repeatable():
    values = seeded("weights", (4000,)).astype(np.float32)
    table, indices = palette(values, 64)
    distances = np.abs(values[:, None] - table[None])
    assert np.allclose(distances[np.arange(len(values)), indices], distances.min(axis=1))
    again = palette(values.copy(), 64)
    assert np.array_equal(table, again[0])
    assert np.array_equal(indices, again[1])


def test_palette_of_a_constant():
    table, indices = palette(np.full((40, 60), 0.5, np.float16), 64)
    assert np.all(table[indices] == 0.5)
