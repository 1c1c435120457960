"""Views of different sizes as one batch, and intrinsics there and back, as Depth Anything 3 does it."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_depth.errors import OptionError
from mlx_depth.processor import IMAGENET_STD, Processor
from mlx_depth.views import intrinsics_to_network, intrinsics_to_photo, unify

PROCESSOR = Processor(input_size=504, policy="long_side", resample="opencv_area")
SIZES = [(504, 378), (480, 640), (300, 200), (1080, 1920)]
K = np.array([[900.0, 2.5, 310.25], [0, 880.5, 244.75], [0, 0, 1]])


def photos():
    random = np.random.RandomState(5)
    return [random.randint(0, 256, (*size, 3)).astype(np.uint8) for size in SIZES]


def upstream(images, intrinsics):
    """Pixels (V, H, W, 3) and intrinsics (V, 3, 3) of the authors' input processor; the gate for the pixels."""
    import da3
    import opencv

    module = da3.import_reference("utils.io.input_processor")
    with opencv.without_ipp():
        pixels, _, matrices = module.InputProcessor()(images, intrinsics=intrinsics, sequential=True)
    gate = 1e-6 + opencv.LEVELS_OFF / 255 / min(IMAGENET_STD)
    return pixels.permute(0, 2, 3, 1).numpy(), matrices.numpy(), gate


def test_views_and_intrinsics_equal_depth_anything_3s():
    images = photos()
    matrices = [K + 0.1 * view for view in range(len(images))]
    pixels, expected, gate = upstream(images, matrices)

    views = [PROCESSOR(image) for image in images]
    batch, offsets = unify(views)
    ours = [
        intrinsics_to_network(matrix, size, view.shape[1:3], offset=offset)
        for matrix, size, view, offset in zip(matrices, SIZES, views, offsets, strict=True)
    ]
    assert batch.shape == (1, *pixels.shape) == (1, 4, 280, 336, 3)
    assert offsets == ((112, 21), (49, 84), (112, 0), (0, 84))
    assert np.abs(np.array(batch)[0] - pixels).max() <= gate
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-4)


def test_crops_are_where_they_say():
    rows = mx.arange(42)[None, :, None, None] + mx.zeros((1, 42, 28, 3))
    columns = mx.arange(56)[None, None, :, None] + mx.zeros((1, 28, 56, 3))
    batch, offsets = unify([rows, columns])
    assert batch.shape == (1, 2, 28, 28, 3)
    assert offsets == ((7, 0), (0, 14))
    assert mx.array_equal(batch[0, 0, :, 0, 0], mx.arange(7, 35))
    assert mx.array_equal(batch[0, 1, 0, :, 0], mx.arange(14, 42))


def test_crops_to_a_size_that_is_asked_for():
    batch, offsets = unify([mx.zeros((1, 42, 28, 3)), mx.zeros((1, 28, 56, 3))], (14, 28))
    assert batch.shape == (1, 2, 14, 28, 3)
    assert offsets == ((14, 0), (7, 14))
    with pytest.raises(OptionError, match=r"a view of \(28, 28\) pixels does not hold \(28, 42\): give one input_size"):
        unify([mx.zeros((1, 42, 28, 3)), mx.zeros((1, 28, 56, 3))], (28, 42))


def test_equal_views_are_not_cut():
    view = mx.arange(2 * 3 * 3).reshape(1, 2, 3, 3)
    batch, offsets = unify([view, view + 1])
    assert mx.array_equal(batch, mx.stack([view, view + 1], axis=1))
    assert offsets == ((0, 0), (0, 0))


def test_both_roundings_of_upstream_agree_on_whole_patches():
    """Upstream crops pixels at ``round(border / 2)`` and intrinsics at ``border // 2``."""
    assert all(round(border / 2) == border // 2 for border in range(0, 14 * 200, 14))


@pytest.mark.parametrize(
    "shapes", [[], [(28, 28, 3)], [(2, 28, 28, 3)], [(1, 28, 28, 3), (1, 28, 28, 4)]], ids=lambda shapes: str(shapes)
)
def test_views_that_are_none(shapes):
    with pytest.raises(OptionError, match="of one or more photos"):
        unify([mx.zeros(shape) for shape in shapes])


def test_a_point_stays_on_its_pixel():
    """A corner of the photo's pixel grid, projected before and after, lands on the corner that it was resized to."""
    point = np.array([0.2, -0.1, 2.0])
    across, down, _ = K @ point / point[2]
    network = intrinsics_to_network(K, (480, 640), (378, 504), offset=(14, 42))
    u, v, w = network @ point / point[2]
    np.testing.assert_allclose((u, v, w), (across * 504 / 640 - 42, down * 378 / 480 - 14, 1))


sides = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


@settings(deadline=None)
@given(sides, sides, st.tuples(st.integers(0, 500), st.integers(0, 500)))
def test_intrinsics_come_back(image_size, network_size, offset):
    many = np.stack([K, K / 2])
    network = intrinsics_to_network(many, image_size, network_size, offset=offset)
    back = intrinsics_to_photo(network, image_size, network_size, offset=offset)
    scale = np.array(image_size[::-1]) / network_size[::-1]
    np.testing.assert_allclose(back, many, rtol=1e-12, atol=1e-12 * (1 + scale.max() * 500))


def test_intrinsics_keep_their_type_and_are_not_changed():
    given = K.astype(np.float32)
    assert intrinsics_to_network(given, (480, 640), (378, 504)).dtype == np.float32
    assert intrinsics_to_network(given.astype(int), (480, 640), (378, 504))[0, 0] == 900 * 504 / 640
    intrinsics_to_photo(given, (480, 640), (378, 504), offset=(1, 1))
    np.testing.assert_array_equal(given, K.astype(np.float32))


@pytest.mark.parametrize("change", [intrinsics_to_network, intrinsics_to_photo])
def test_intrinsics_that_cannot_work(change):
    with pytest.raises(OptionError, match="one matrix for each photo"):
        change(K[:2], (480, 640), (378, 504))
    with pytest.raises(OptionError, match="sides of at least 1"):
        change(K, (480, 0), (378, 504))
    with pytest.raises(OptionError, match="sides of at least 1"):
        change(K, (480, 640), (378, 0))
