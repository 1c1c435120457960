"""Pixels in and depth out: the size rule, both preprocessing references, and the way back to the photo's size."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from support import relative_error, require, seeded

from mlx_depth import processor as module
from mlx_depth.checkpoints.own_format import config_from_dict
from mlx_depth.errors import CheckpointError, OptionError
from mlx_depth.io.image import load_image
from mlx_depth.models.dpt_image_processor import follow_reference, read_processor
from mlx_depth.processor import IMAGENET_MEAN, IMAGENET_STD, MAX_NETWORK_PIXELS, MAX_STRETCH, Processor, resize_depth

AUTHORS = Processor()
TRANSFORMERS = follow_reference(AUTHORS, "transformers")
PHOTO_SIZES = [(518, 518), (392, 518), (1080, 1920), (70, 98), (33, 517), (640, 427)]
GATE = 1e-5

DEPTH_ANYTHING_3 = {  # by the method's name upstream
    "upper_bound_resize": Processor(input_size=504, policy="long_side", resample="opencv_area"),
    "lower_bound_resize": Processor(input_size=504, policy="short_side", resample="opencv_area"),
}
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.jpg"))

CONFIG = {  # as published with Depth-Anything-V2-Small-hf
    "do_normalize": True,
    "do_pad": False,
    "do_rescale": True,
    "do_resize": True,
    "ensure_multiple_of": 14,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "DPTImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "keep_aspect_ratio": True,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 518, "width": 518},
    "size_divisor": None,
}


def photo(size):
    """Shapes with soft shading, hard edges and sensor noise."""
    height, width = size
    y, x = np.mgrid[:height, :width] / max(size)
    shading = np.stack([x, y, 1 - x], axis=-1) * 200
    stripes = 120 * (np.sin(40 * x * (1 + y)) > 0)[..., None]
    disc = 255 * (np.hypot(x - 0.4, y - 0.3) < 0.15)[..., None] * np.array([1, 0.2, 0])
    grain = np.random.RandomState(7).normal(0, 6, (height, width, 3))
    return np.clip(shading + stripes - disc + grain, 0, 255).astype(np.uint8)


def authors_size(height, width, target):
    """``Resize.get_size`` with ``lower_bound`` and multiples of 14, restated."""
    scale = max(target / height, target / width)

    def constrain(value):
        nearest = int(np.round(value / 14) * 14)
        return int(np.ceil(value / 14) * 14) if nearest < target else nearest

    return constrain(scale * height), constrain(scale * width)


def transformers_processor(config):
    transformers = require("reference", "transformers.models.dpt.image_processing_pil_dpt")
    return transformers.DPTImageProcessorPil(**{key: config[key] for key in config if key != "image_processor_type"})


@pytest.mark.parametrize(
    ("image_size", "expected"),
    [
        ((1080, 1920), (518, 924)),
        ((1920, 1080), (924, 518)),
        ((518, 518), (518, 518)),
        ((480, 640), (518, 686)),
        ((33, 517), (518, 8120)),
        ((1, 1), (518, 518)),
    ],
)
def test_network_size(image_size, expected):
    assert AUTHORS.network_size(image_size) == expected


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(14, 1500))
@example(1000, 1500, 515)  # rounds down to 518's neighbour
@example(1000, 1500, 493)  # rounds below the bound: one patch more
def test_network_size_equals_the_authors_rule(height, width, target):
    assume(max(height, width) <= MAX_STRETCH * min(height, width))  # lines are refused: tests/robustness
    expected = authors_size(height, width, target)
    assume(math.prod(expected) <= MAX_NETWORK_PIXELS)
    assert AUTHORS.network_size((height, width), target) == expected


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(14, 1500), st.booleans())
@example(100, 400, 518, True)
@example(500, 540, 518, True)
def test_network_size_equals_transformers(height, width, target, keep_aspect):
    assume(max(height, width) <= MAX_STRETCH * min(height, width))
    module = require("reference", "transformers.models.dpt.image_processing_pil_dpt")
    image = np.broadcast_to(np.uint8(0), (3, height, width))
    expected = module.get_resize_output_image_size(image, (target, target), keep_aspect, 14)
    expected = (max(expected.height, 14), max(expected.width, 14))  # upstream rounds very long images to zero
    assume(math.prod(expected) <= MAX_NETWORK_PIXELS)
    processor = dataclasses.replace(TRANSFORMERS, keep_aspect=keep_aspect)
    assert processor.network_size((height, width), target) == expected


@pytest.mark.parametrize(
    ("image_size", "expected"), [((1080, 1920), (280, 504)), ((640, 427), (504, 336)), ((1, 10000), (14, 504))]
)
def test_upper_bound_fits_the_long_side(image_size, expected):
    processor = Processor(input_size=504, policy="upper_bound")
    assert processor.network_size(image_size) == expected


def test_upper_bound_never_rounds_above_the_bound():
    assert Processor(policy="upper_bound").network_size((600, 600), 515) == (504, 504)


def test_an_exact_input_size_is_kept():
    assert AUTHORS.network_size((1080, 1920), (392, 518)) == (392, 518)
    assert AUTHORS(photo((70, 98)), input_size=(28, 42)).shape == (1, 28, 42, 3)


@pytest.mark.parametrize(
    ("image_size", "input_size", "message"),
    [
        ((480, 640), 13, "at least 14"),
        ((480, 640), (500, 700), r"nearest valid one is \(504, 700\)"),
        ((480, 640), (0, 14), r"nearest valid one is \(14, 14\)"),
        ((1, 10000), None, "518 × 5180000 .* crop it"),
        ((480, 640), (4200, 4200), "smaller input_size"),
    ],
)
def test_input_sizes_that_cannot_work(image_size, input_size, message):
    with pytest.raises(OptionError, match=message):
        AUTHORS.network_size(image_size, input_size)


@pytest.mark.parametrize("size", PHOTO_SIZES)
def test_pixel_values_equal_the_authors_formula(size):
    cv2 = require("reference", "cv2")
    image = photo(size)
    height, width = authors_size(*size, 518)
    resized = cv2.resize(image / 255.0, (width, height), interpolation=cv2.INTER_CUBIC)
    reference = (resized - IMAGENET_MEAN) / IMAGENET_STD
    assert relative_error(AUTHORS(image)[0], reference) <= GATE


@pytest.mark.parametrize("size", [size for size in PHOTO_SIZES if size != (33, 517)])  # Pillow 13: rows first
def test_pixel_values_equal_transformers(size):
    image = photo(size)
    reference = transformers_processor(CONFIG)(Image.fromarray(image), return_tensors="np")["pixel_values"]
    ours = follow_reference(read_processor(CONFIG), "transformers")(image)
    # The bytes are equal, so what is left is float32 rounding; one grey level would be 7e-3.
    assert relative_error(ours, reference.transpose(0, 2, 3, 1)) <= 1e-6


def test_the_two_references_are_told_apart():
    image = photo((1080, 1920))
    assert relative_error(AUTHORS(image), TRANSFORMERS(image)) > 0.05
    assert follow_reference(TRANSFORMERS, "original") == AUTHORS


@pytest.fixture(scope="module")
def upstream_3():
    """Depth Anything 3's ``input_processor.py``."""
    import da3

    return da3.import_reference("utils.io.input_processor")


def assert_equals_depth_anything_3(image, source, upstream, target, method):
    """Ours from ``image`` against theirs from ``source``: the same bytes, up to float32 rounding."""
    import opencv

    ours = np.array(DEPTH_ANYTHING_3[method](image, input_size=target))
    reference = upstream_pixels(upstream, source, target, method)
    assert ours.shape == reference.shape
    assert np.abs(ours - reference).max() <= 1e-6 + opencv.LEVELS_OFF / 255 / min(IMAGENET_STD)


def upstream_pixels(upstream, source, target, method):
    import opencv

    with opencv.without_ipp():
        pixels, _, _ = upstream.InputProcessor()([source], None, None, target, method, sequential=True)
    return pixels.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("method", DEPTH_ANYTHING_3)
@pytest.mark.parametrize("target", [504, 700, 251])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_photos_become_the_pixels_of_depth_anything_3(upstream_3, path, target, method):
    assert_equals_depth_anything_3(load_image(path).pixels, str(path), upstream_3, target, method)


@pytest.mark.parametrize("method", DEPTH_ANYTHING_3)
@pytest.mark.parametrize(
    "size",
    [
        (504, 504),
        (504, 378),
        (756, 1008),  # to half the size
        (480, 853),
        (300, 200),
        (283, 504),  # no first step; then one side shrinks, 283 → 280
        (503, 377),  # the second step shrinks nothing and enlarges one side
        (1008, 30),  # long
        (18, 13),
    ],
)
def test_images_become_the_pixels_of_depth_anything_3(upstream_3, size, method):
    target = 504 if max(size) < 20 * min(size) else 251
    assert_equals_depth_anything_3(photo(size), photo(size), upstream_3, target, method)


def test_one_step_instead_of_two_would_be_seen(upstream_3):
    image = photo((480, 853))
    processor = DEPTH_ANYTHING_3["upper_bound_resize"]
    reference = upstream_pixels(upstream_3, image, 504, "upper_bound_resize")
    one_step = processor(image, input_size=processor.network_size(image.shape[:2]))
    assert np.abs(np.array(one_step) - reference).max() > 0.1  # 5 grey levels


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(14, 1500), st.sampled_from([*DEPTH_ANYTHING_3]))
@example(1000, 1500, 504, "upper_bound_resize")
@example(287, 504, 504, "upper_bound_resize")  # 20.5 patches: one up
@example(509, 1005, 1007, "upper_bound_resize")
def test_steps_equal_depth_anything_3s(upstream_3, height, width, target, method):
    """Upstream's own arithmetic, on images without pixels: the sizes of both steps, and the filter of each."""
    assume(max(height, width) <= MAX_STRETCH * min(height, width))
    expected, ours = [], []

    def resize(pixels, size, interpolation):
        expected.append((size[::-1], {1: "area", 2: "cubic"}[interpolation]))
        return SimpleNamespace(size=size)

    def resize_opencv(image, size, *, method):
        if size != image.shape[:2]:
            ours.append((size, method))
        return np.broadcast_to(np.uint8(0), (*size, 3))

    upstream = upstream_3.InputProcessor()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upstream_3, "cv2", SimpleNamespace(resize=resize, INTER_AREA=1, INTER_CUBIC=2))
        patch.setattr(upstream_3, "Image", SimpleNamespace(fromarray=lambda image: image))
        image = upstream._resize_image(SimpleNamespace(size=(width, height)), target, method)
        image = upstream._make_divisible_by_resize(image, 14)
        assume(min(image.size) >= 14 and math.prod(image.size) <= MAX_NETWORK_PIXELS)

        patch.setattr(module, "resize_opencv", resize_opencv)
        DEPTH_ANYTHING_3[method](np.broadcast_to(np.uint8(0), (height, width, 3)), input_size=target)
    assert DEPTH_ANYTHING_3[method].network_size((height, width), target) == image.size[::-1]
    assert ours == expected


@pytest.mark.parametrize(
    ("image_size", "input_size", "expected"),
    [
        ((1080, 1920), None, (280, 504)),
        ((4032, 3024), None, (504, 378)),
        ((4032, 3024), 1008, (1008, 756)),
        ((4032, 3024), 500, (504, 378)),
        ((1080, 1920), (392, 518), (392, 518)),
        ((1, 10_000), None, (14, 504)),  # upstream leaves 1 row, which no network takes
    ],
)
def test_the_long_side_decides(image_size, input_size, expected):
    assert DEPTH_ANYTHING_3["upper_bound_resize"].network_size(image_size, input_size) == expected


def test_a_line_is_no_photo_for_the_short_side():
    with pytest.raises(OptionError, match="far more than it holds: crop it"):
        DEPTH_ANYTHING_3["lower_bound_resize"].network_size((1, 5000))


AREA = Processor(input_size=840, policy="area", resample="antialias")


@pytest.mark.parametrize(
    ("size", "input_size", "expected"),
    [
        ((1080, 1920), None, (630, 1120)),  # 45 × 80 patches
        ((3000, 4000), None, (728, 966)),  # 52 × 69
        ((512, 512), None, (840, 840)),
        ((512, 512), 485, (490, 490)),  # 1200 patches: 35 × 35
        ((10, 20000), None, (14, 37562)),  # 1.3 × 2683 patches
        ((512, 512), (14, 28), (14, 28)),
    ],
)
def test_the_area_decides(size, input_size, expected):
    assert AREA.network_size(size, input_size) == expected


@pytest.mark.parametrize(("size", "input_size"), [((211, 320), 140), ((60, 45), 140), ((300, 900), (98, 98))])
def test_pixel_values_equal_torch_s_antialias(size, input_size):
    """MoGe's: ``F.interpolate(image, …, mode="bilinear", antialias=True)`` of 0..1, then ImageNet's normalization."""
    torch = require("reference", "torch")
    image = photo(size)
    found = np.array(AREA(image, input_size=input_size))
    pixels = torch.tensor(image / 255, dtype=torch.float32).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(pixels, found.shape[1:3], mode="bilinear", antialias=True)
    expected = (resized.permute(0, 2, 3, 1).numpy() - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    assert relative_error(found, expected) <= GATE
    cubic = np.array(dataclasses.replace(AREA, resample="opencv")(image, input_size=input_size))
    assert relative_error(cubic, expected) > 0.01  # another filter would be seen


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)])
def test_only_rgb_bytes_are_taken(image):
    with pytest.raises(OptionError, match="load_image"):
        AUTHORS(image)


@pytest.mark.parametrize("change", [{"policy": "exact"}, {"resample": "lanczos"}, {"restore": "nearest"}])
def test_unknown_rules_raise(change):
    with pytest.raises(OptionError, match="choose one of"):
        dataclasses.replace(AUTHORS, **change)


def test_config_of_a_published_checkpoint():
    assert read_processor(CONFIG) == AUTHORS
    assert read_processor(CONFIG | {"size": {"height": 364, "width": 364}}).input_size == 364


def test_config_that_transformers_writes_is_read(tmp_path):
    transformers_processor(CONFIG).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert read_processor(config) == AUTHORS


def test_our_own_form_survives_json():
    processor = dataclasses.replace(TRANSFORMERS, input_size=364, mean=(0.1, 0.2, 0.3))
    written = json.loads(json.dumps(dataclasses.asdict(processor)))
    assert config_from_dict(Processor, written) == processor


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resample": 2}, "resample = 2"),
        ({"do_pad": True}, "do_pad = True"),
        ({"do_normalize": False}, "do_normalize = False"),
        ({"rescale_factor": 1.0}, "rescale_factor = 1.0"),
        ({"size_divisor": 14}, "size_divisor = 14"),
        ({"image_processor_type": "ViTImageProcessor"}, "ViTImageProcessor"),
        ({"size": {"shortest_edge": 518}}, "shortest_edge"),
        ({"size": {"height": 392, "width": 518}}, "equal height and width"),
        ({"size": {"height": "518", "width": "518"}}, "whole numbers above 0"),
        ({"size": 518}, "whole numbers above 0"),
        ({"ensure_multiple_of": 0}, "ensure_multiple_of = 0, not a whole number above 0"),
        ({"keep_aspect_ratio": "yes"}, "keep_aspect_ratio = 'yes', not true or false"),
        ({"image_mean": None}, "image_mean = None, not three numbers"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean = \[0.5, 0.5\], not three numbers"),
        ({"image_std": [0.5, 0.5, 0]}, "not three numbers above 0"),
        ({"sharpen": 2}, "unknown keys: sharpen"),
    ],
)
def test_config_values_that_are_not_known_raise(change, message):
    with pytest.raises(CheckpointError, match=message):
        read_processor(CONFIG | change)


def test_config_without_a_needed_key_raises():
    config = {key: CONFIG[key] for key in CONFIG if key != "image_mean"}
    with pytest.raises(CheckpointError, match="lacks image_mean"):
        read_processor(config)


@pytest.mark.parametrize("size", [(1080, 1920), (96, 96), (33, 517), (1, 1)])
def test_bilinear_pixels_are_those_of_torch(size):
    """As Depth Pro has them: normalized first, then stretched, without antialias, in both of its references."""
    torch = require("reference", "torch")
    processor = Processor(input_size=96, policy="fixed", resample="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
    image = photo(size)
    normalized = (torch.tensor(image, dtype=torch.float64) / 255 - 0.5) / 0.5
    reference = torch.nn.functional.interpolate(normalized.permute(2, 0, 1)[None], size=(96, 96), mode="bilinear")
    found = np.array(processor(image))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference.permute(0, 2, 3, 1).numpy(), atol=1e-6)


@pytest.mark.parametrize("size", [(518, 518), (1080, 1920), (33, 517), (1, 1), (2000, 7)])
@pytest.mark.parametrize(
    ("method", "align_corners"), [("bilinear", True), ("bicubic", False), ("bilinear_half_pixel", False)]
)
def test_depth_comes_back_as_upstream_resizes_it(size, method, align_corners):
    torch = require("reference", "torch")
    depth = seeded("depth", (2, 70, 98))
    reference = torch.nn.functional.interpolate(
        torch.tensor(depth, dtype=torch.float64)[:, None],
        size=size,
        mode=method.removesuffix("_half_pixel"),
        align_corners=align_corners,
    )
    assert relative_error(resize_depth(mx.array(depth), size, method=method), reference[:, 0].numpy()) <= GATE


def test_depth_comes_back_in_float32():
    depth = mx.array(seeded("depth", (1, 14, 14))).astype(mx.float16)
    restored = resize_depth(depth, (20, 30))
    assert restored.dtype == mx.float32
    assert mx.array_equal(restored, resize_depth(depth.astype(mx.float32), (20, 30)))
