"""The bundled demo on real photos: real weights through every stage, against transformers and a golden."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import reference
from support import correlation, relative_error

import mlx_depth

EXAMPLES = Path(__file__).parents[1] / "examples"
PHOTOS = sorted(EXAMPLES.glob("*.jpg"))
GOLDEN = Path(__file__).parent / "goldens" / "demo.npz"
STRIDE = 4


@pytest.fixture(scope="module")
def model() -> mlx_depth.DepthModel:
    return mlx_depth.load("mlx-depth-demo", dtype="float32", reference="transformers")


def test_the_photos_are_there():
    assert len(PHOTOS) >= 2


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
def test_eight_bits_follow_the_float32_original(photo, model):
    """The golden is transformers' float32 output of the float16 checkpoint that the demo was packed from."""
    pixel_values = model.processor(mlx_depth.load_image(photo).pixels)
    depth = np.array(model.network(pixel_values).depth)[0]
    assert correlation(depth[::STRIDE, ::STRIDE], np.load(GOLDEN)[photo.stem]) >= 0.9996


def test_the_golden_says_where_it_comes_from():
    provenance = json.loads(str(np.load(GOLDEN)["provenance"]))
    assert provenance.keys() == {"reference", "weights", "command", "values"}


def test_real_weights_equal_transformers_on_real_photos(model):
    """The same weights on both sides, so the gate is the float32 one."""
    upstream = reference.transformers.DepthAnythingForDepthEstimation(reference.config("small")).eval()
    reference.fill_from_ours(upstream, model.network)
    for photo in PHOTOS[:2]:
        pixel_values = model.processor(mlx_depth.load_image(photo).pixels, input_size=252)
        expected = reference.run(upstream, np.array(pixel_values), zeros=0.6)
        found = np.array(model.network(pixel_values).depth)
        assert relative_error(found, expected) <= 1e-4
        assert correlation(found, expected) >= 0.99999


def test_the_depth_map_is_right_to_the_eye():
    """The pagoda photo: sky farthest, the bushes at the bottom nearest, the pagoda between them."""
    result = mlx_depth.predict(EXAMPLES / "summer_palace.jpg", model="mlx-depth-demo")
    height, width = result.depth.shape
    sky = result.depth[: height // 8, : width // 3].mean()
    pagoda = result.depth[height // 3 : height // 2, width // 4 : width // 3].mean()
    bushes = result.depth[-height // 10 :].mean()
    assert sky < 0.2 * pagoda
    assert pagoda < 0.8 * bushes
    assert result.kind is mlx_depth.DepthKind.RELATIVE_INVERSE
    assert mx.default_device() == mx.Device(mx.cpu) or result.dtype == "float16"
