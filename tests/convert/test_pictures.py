"""The picture that everything is compared on where the user gives none."""

import numpy as np
import pytest
from mlx_depth_convert.pictures import generated_picture
from support import correlation


def test_generated_picture_is_always_the_same() -> None:
    assert np.array_equal(generated_picture(), generated_picture())
    assert (generated_picture().shape, generated_picture().dtype) == ((420, 560, 3), np.uint8)


@pytest.mark.parametrize("size", [(60, 80), (14, 14), (518, 294)])
def test_it_uses_all_channels_at_any_size(size: tuple[int, int]) -> None:
    picture = generated_picture(size)
    assert picture.shape == (*size, 3)
    assert picture.dtype == np.uint8
    assert min(picture[..., channel].std() for channel in range(3)) > 20
    assert correlation(picture[..., 0], picture[..., 2]) < 0.9
