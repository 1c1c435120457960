"""Arguments of the wrong type or beyond reason: an error of ours with the next step, never one from inside."""

import copy
import pickle
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlx_depth
from mlx_depth import DepthModel, OptionError
from mlx_depth.processor import Processor

PHOTO = np.zeros((30, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def model() -> DepthModel:
    return mlx_depth.load("mlx-depth-demo")


SIZES = ["518", float("nan"), 56.0, (14,), (14, 14, 14), (14.0, 28), (True, 14), True, {}, type, [14], (None, 14)]


@pytest.mark.parametrize("size", SIZES, ids=repr)
def test_input_sizes(size: Any, model: DepthModel) -> None:
    for call in (model.predict, lambda *_, **options: next(model.predict_batch([PHOTO], **options))):
        with pytest.raises(OptionError, match=r"is no size: give a whole number of pixels, or \(height, width\)"):
            call(PHOTO, input_size=size)


@pytest.mark.parametrize("size", [np.int64(56), (np.int32(56), np.int64(70)), [56, 70]])
def test_other_forms_of_a_size(size: Any, model: DepthModel) -> None:
    assert model.predict(PHOTO, input_size=size).input_size == (56, 70)


@pytest.mark.parametrize("batch_size", ["4", 0, -1, 2.0, None, True])
def test_batch_sizes(batch_size: Any, model: DepthModel) -> None:
    with pytest.raises(OptionError, match=r"batch_size is .*: give 1 or more"):
        model.predict_batch([PHOTO], batch_size=batch_size)


@pytest.mark.parametrize("images", [None, 5, 2.5])
def test_what_is_no_list(images: Any, model: DepthModel) -> None:
    with pytest.raises(OptionError, match="predict_batch takes a list or iterator of images"):
        model.predict_batch(images)


@pytest.mark.parametrize("source", [b"mlx-depth-demo", None, 5, ["mlx-depth-demo"]])
def test_names_of_models(source: Any) -> None:
    with pytest.raises(OptionError, match="a model is named by text or a path, not"):
        mlx_depth.load(source)


def test_infer_takes_arrays_of_mlx(model: DepthModel) -> None:
    with pytest.raises(OptionError, match=r"infer takes an mx\.array, not ndarray"):
        model.infer(np.zeros((1, 14, 14, 3), np.float32))  # type: ignore[arg-type]
    for shape in ((), (3,), (14, 3), (14, 14, 3)):
        with pytest.raises(OptionError, match="pixel_values have shape"):
            model.infer(mx.zeros(shape))


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_model_says_how_to_share_it(way: Any, model: DepthModel) -> None:
    with pytest.raises(OptionError, match=r"load it there by its name or folder, mlx_depth\.load"):
        way(model)


@pytest.mark.parametrize(
    ("image", "target"), [((10, 20_000), 56), ((20_000, 10), 56), ((1, 5000), 518), ((1, 10**6), 518)]
)
def test_lines_are_refused_with_a_size_that_works(image: tuple[int, int], target: int) -> None:
    processor = Processor()
    with pytest.raises(OptionError, match=r"far more than it holds: crop it, or give an exact input_size") as caught:
        processor.network_size(image, target)
    fitting = eval(str(caught.value).rpartition("such as ")[2].rstrip("."))
    height, width = processor.network_size(image, fitting)
    assert (height, width) == fitting
    assert height * width <= max(32 * (max(target, 112) + 14) ** 2, image[0] * image[1])


@pytest.mark.parametrize("image", [(1200, 12_000), (400, 3200), (9000, 600), (64, 64), (2, 3), (37, 300)])
def test_panoramas_and_small_pictures_are_not(image: tuple[int, int]) -> None:
    assert min(Processor().network_size(image)) == 518
