"""Level 0: OpenCV's 8-bit resizing, bit for bit (one level off on ARM: ``opencv.py``)."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opencv import LEVELS_OFF, cv2, without_ipp

from mlx_depth.errors import OptionError
from mlx_depth.nn.resize_opencv import resize_opencv

AREA_SIZES = [
    ((480, 640), (378, 504)),
    ((427, 640), (336, 504)),
    ((1333, 1000), (504, 378)),
    ((378, 505), (378, 504)),
    ((505, 378), (504, 378)),
    ((1008, 756), (504, 378)),  # halves: 2 × 2 pixels
    ((1512, 1134), (504, 378)),
    ((2016, 1512), (504, 378)),
    ((756, 1512), (378, 504)),  # 2 × 3
    ((41, 7), (2, 1)),
    ((1, 1000), (1, 504)),
    ((2000, 1), (37, 1)),
    ((9, 9), (1, 1)),
    ((64, 4001), (64, 2000)),  # near halves, overlaps below a thousandth of a pixel
    ((4001, 64), (2000, 64)),
]
CUBIC_SIZES = [
    ((300, 200), (504, 336)),
    ((377, 504), (378, 504)),
    ((336, 504), (322, 518)),  # one side shrinks
    ((252, 252), (504, 504)),
    ((283, 504), (280, 518)),
    ((97, 131), (61, 29)),
    ((5, 3), (504, 302)),
    ((1, 7), (72, 504)),
    ((1, 1), (14, 14)),
    ((3, 2), (5, 1)),
]


def noise(shape, levels=256):
    return np.random.RandomState(14).randint(0, levels, shape).astype(np.uint8) * np.uint8(255 // (levels - 1))


def levels_off(image, size, method):
    flag = {"area": cv2.INTER_AREA, "cubic": cv2.INTER_CUBIC}[method]
    with without_ipp():
        reference = cv2.resize(image, size[::-1], interpolation=flag).reshape(*size, -1)
    ours = resize_opencv(image, size, method=method)
    assert ours.dtype == np.uint8
    return np.abs(ours.astype(int) - reference).max()


@pytest.mark.parametrize("levels", [2, 256])
@pytest.mark.parametrize(("in_size", "out_size"), AREA_SIZES)
def test_area(in_size, out_size, levels):
    assert levels_off(noise((*in_size, 3), levels), out_size, "area") <= LEVELS_OFF


@pytest.mark.parametrize("levels", [2, 256])
@pytest.mark.parametrize(("in_size", "out_size"), CUBIC_SIZES)
def test_cubic(in_size, out_size, levels):
    assert levels_off(noise((*in_size, 3), levels), out_size, "cubic") <= LEVELS_OFF


@settings(max_examples=300, deadline=None)
@given(st.tuples(*[st.integers(1, 90)] * 4), st.integers(1, 4), st.sampled_from([2, 256]))
@example((64, 64, 63, 63), 3, 256)
def test_any_sizes(sides, channels, levels):
    H, W, height, width = sides
    image = noise((H, W, channels), levels)
    assert levels_off(image, (height, width), "cubic") <= LEVELS_OFF
    assert levels_off(image, (min(height, H), min(width, W)), "area") <= LEVELS_OFF


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.integers(1, 20)] * 2), st.tuples(*[st.integers(1, 9)] * 2))
def test_area_of_whole_blocks(size, steps):
    image = noise((size[0] * steps[0], size[1] * steps[1], 3))
    assert levels_off(image, size, "area") <= LEVELS_OFF


def test_halves_go_up_in_blocks_of_2_and_to_the_even_number_elsewhere():
    """As OpenCV on x86, stated in numbers."""
    halves = np.uint8([[0, 1], [1, 0]])[..., None]  # 0.5
    assert resize_opencv(halves, (1, 1), method="area") == 1
    assert resize_opencv(np.repeat(halves, 2, axis=0), (1, 1), method="area") == 0
    assert resize_opencv(np.repeat(halves + np.uint8(1), 2, axis=0), (1, 1), method="area") == 2


def test_a_view_of_an_image():
    image = noise((60, 40, 3))
    turned = image[::-1, ::-1].swapaxes(0, 1)
    expected = resize_opencv(np.ascontiguousarray(turned), (28, 42), method="area")
    np.testing.assert_array_equal(resize_opencv(turned, (28, 42), method="area"), expected)


@pytest.mark.parametrize("method", ["area", "cubic"])
def test_an_unchanged_size_is_the_identity(method):
    image = noise((5, 9, 3))
    assert resize_opencv(image, (5, 9), method=method) is image


@pytest.mark.parametrize(
    ("image", "size", "method", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), (2, 2), "area", "convert it first"),
        (np.zeros((4, 4), np.uint8), (2, 2), "area", "convert it first"),
        (np.zeros((4, 4, 3), np.uint8), (0, 2), "cubic", "at least 1"),
        (np.zeros((4, 4, 3), np.uint8), (2, 5), "area", "use cubic"),
    ],
)
def test_what_cannot_work(image, size, method, message):
    with pytest.raises(OptionError, match=message):
        resize_opencv(image, size, method=method)
