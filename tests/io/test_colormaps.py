import re

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from mlx_depth.errors import OptionError
from mlx_depth.io.colormaps import COLORMAPS, apply_colormap, colormap_table


def matplotlib_rgb(values: np.ndarray, name: str) -> np.ndarray:
    return matplotlib.colormaps[name](values, bytes=True)[..., :3]


def test_names():
    assert COLORMAPS == ("Spectral_r", "viridis", "plasma", "magma", "inferno", "turbo", "gray", "gray_r")


@pytest.mark.parametrize("name", COLORMAPS)
def test_every_entry_equals_matplotlib(name):
    np.testing.assert_array_equal(colormap_table(name), matplotlib_rgb(np.arange(256), name))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", COLORMAPS)
def test_floats_take_the_entry_that_matplotlib_takes(name, dtype):
    edges = np.arange(257) / 256
    values = np.concatenate([edges, np.nextafter(edges, 0), np.nextafter(edges, 1)]).astype(dtype)
    values = np.clip(values, 0, 1).reshape(3, 257)
    np.testing.assert_array_equal(apply_colormap(values, name), matplotlib_rgb(values, name))


@given(
    arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(0, 1, width=32)),
    st.sampled_from(COLORMAPS),
)
def test_any_image_equals_matplotlib(values, name):
    painted = apply_colormap(values, name)
    assert painted.shape == (*values.shape, 3)
    assert painted.dtype == np.uint8
    np.testing.assert_array_equal(painted, matplotlib_rgb(values, name))


def test_uint8_values_are_entries():
    entries = np.array([[0, 7, 128], [254, 255, 1]], np.uint8)
    np.testing.assert_array_equal(apply_colormap(entries, "turbo"), matplotlib_rgb(entries, "turbo"))


def test_values_out_of_range_take_the_ends():
    values = np.array([[-np.inf, -1.0, np.nan, 2.0, np.inf]], np.float32)
    first, last = colormap_table("viridis")[[0, 255]]
    np.testing.assert_array_equal(apply_colormap(values, "viridis")[0], [first, first, first, last, last])


def test_values_are_left_alone():
    values = np.array([[np.nan, 2.0]], np.float32)
    apply_colormap(values, "magma")
    np.testing.assert_array_equal(values, np.array([[np.nan, 2.0]], np.float32))


@pytest.mark.parametrize(
    ("name", "message"),
    [("spectral_r", "did you mean 'Spectral_r'"), ("jet", "Choose one of Spectral_r, viridis")],
)
def test_unknown_name(name, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        apply_colormap(np.zeros((2, 2), np.float32), name)


def test_integers_that_are_not_entries():
    with pytest.raises(OptionError, match="values are int64: give floats"):
        apply_colormap(np.zeros((2, 2), np.int64), "gray")
