"""From images to results: batches, order, laziness, errors, number formats, and what every result knows.

A tiny network with name-seeded weights stands for the real ones where only the line around it matters.
"""

import dataclasses
import io
import itertools
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import correlation, relative_error, seeded

import mlx_depth
from mlx_depth import model as model_module
from mlx_depth import predictor
from mlx_depth.backbones.dinov2 import DINOv2Config
from mlx_depth.checkpoints import hub
from mlx_depth.errors import ImageError, ModelNotFoundError, OptionError
from mlx_depth.heads.dpt import DPTConfig
from mlx_depth.model import DepthModel
from mlx_depth.models.base import DepthOutputs
from mlx_depth.models.depth_anything.network import DepthAnything, DepthAnythingConfig
from mlx_depth.processor import Processor
from mlx_depth.registry import DEMO_FOLDER, ModelSpec
from mlx_depth.result import DepthKind, DepthResult
from mlx_depth.runtime import stream
from mlx_depth.weights.rules import parameter_shapes

DEMO = "mlx-depth-demo"
# Network sizes at input_size 28: (28, 28), (28, 42), (42, 28) and (28, 56).
SIZES = ((20, 20), (30, 45), (50, 34), (33, 66))


def tiny_model(dtype: mx.Dtype = mx.float32, *, max_depth: float | None = None) -> DepthModel:
    config = DepthAnythingConfig(
        DINOv2Config(embed_dim=32, num_layers=4, num_heads=2, out_layers=(0, 1, 2, 3)),
        DPTConfig(
            in_dim=32,
            features=16,
            out_channels=(8, 16, 24, 32),
            activation="relu" if max_depth is None else "sigmoid",
            max_depth=max_depth or 1.0,
        ),
    )
    network = DepthAnything(config)
    shapes = parameter_shapes(network)
    network.load_weights([(name, mx.array(weight(name, shape)).astype(dtype)) for name, shape in shapes.items()])
    spec = ModelSpec("tiny", "depth_anything", config, Processor(input_size=28), "Apache-2.0")
    return DepthModel(spec, network, spec.processor, dtype, "abc123")


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 1:
        return seeded(name, shape, 0.1) + ("norm" in name or name == "head.conv3.bias")
    return seeded(name, shape, 0.5 if shape[0] == 1 and len(shape) == 3 else float(np.prod(shape[1:])) ** -0.5)


def photo(height: int, width: int, name: str = "") -> np.ndarray:
    """RGB noise over a gradient, its own for each name."""
    gradient = np.linspace(0, 200, width)[None, :, None]
    return np.clip(gradient + seeded(f"{name}{height}x{width}", (height, width, 3), 40) + 20, 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format)
    return stream.getvalue()


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mlx-depth-decode")]


@pytest.fixture(scope="module")
def tiny() -> DepthModel:
    return tiny_model()


@pytest.fixture
def fresh_cache() -> Iterator[None]:
    """What ``predict`` keeps is forgotten before and after."""
    predictor._keep.cache_clear()
    yield
    predictor._keep.cache_clear()


# One image.


def test_result_says_everything(tiny: DepthModel, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 27  # FocalLengthIn35mmFilm
    pixels = photo(30, 45)
    Image.fromarray(pixels).save(path, exif=exif)
    result = tiny.predict(path)
    assert isinstance(result, DepthResult)
    assert result.source == str(path)
    assert (result.image_size, result.input_size) == ((30, 45), (28, 42))
    assert result.depth.shape == (30, 45)
    assert result.depth.dtype == np.float32
    assert np.ptp(result.depth) > 0
    assert (result.kind, result.unit, result.max_depth) == (DepthKind.RELATIVE_INVERSE, "", None)
    assert (result.model, result.revision, result.dtype, result.license) == ("tiny", "abc123", "float32", "Apache-2.0")
    assert result.image is not None
    assert result.image.shape == (30, 45, 3)
    # 27 mm on film's diagonal of 43.27 mm, in pixels of an image with a diagonal of 54.08.
    assert result.focal_length_px == pytest.approx(27 * np.hypot(30, 45) / np.hypot(24, 36))


def test_metric_model_gives_metres() -> None:
    result = tiny_model(max_depth=20.0).predict(photo(30, 45))
    assert (result.kind, result.unit, result.max_depth) == (DepthKind.METRIC, "m", 20.0)
    assert 0 < result.depth.min() < result.depth.max() < 20


def test_every_kind_of_source_gives_the_same_depth(tiny: DepthModel, tmp_path: Path) -> None:
    pixels = photo(20, 33)
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(pixels))
    expected = tiny.predict(path).depth
    sources = {
        "str": str(path),
        "bytes": encoded(pixels),
        "PIL": Image.fromarray(pixels),
        "uint8": pixels,
        "float": pixels.astype(np.float64) / 255,
        "mx uint8": mx.array(pixels),
        "mx float": mx.array(pixels.astype(np.float32) / 255),
    }
    for name, source in sources.items():
        np.testing.assert_array_equal(tiny.predict(source).depth, expected, err_msg=name)
    with path.open("rb") as file:
        np.testing.assert_array_equal(tiny.predict(file).depth, expected)


@pytest.mark.parametrize(
    ("input_size", "network"), [(None, (28, 42)), (56, (56, 84)), ((70, 14), (70, 14)), ((28, 28), (28, 28))]
)
def test_input_size(tiny: DepthModel, input_size: int | tuple[int, int] | None, network: tuple[int, int]) -> None:
    result = tiny.predict(photo(30, 45), input_size=input_size)
    assert result.input_size == network
    assert result.depth.shape == (30, 45)


@pytest.mark.parametrize("input_size", [0, -14, 13, (28, 30), (0, 28), (14_000, 14_000)])
def test_impossible_input_size_is_the_callers_error(tiny: DepthModel, input_size: int | tuple[int, int]) -> None:
    with pytest.raises(OptionError):
        tiny.predict(photo(30, 45), input_size=input_size)
    with pytest.raises(OptionError):  # at the call, not at the first result
        tiny.predict_batch([photo(30, 45)], input_size=input_size, on_error=lambda *_: pytest.fail("blamed an image"))


@pytest.mark.parametrize(("dtype", "gate"), [(mx.float16, 5e-3), (mx.bfloat16, 4e-2)])
def test_half_precision_is_near_float32(tiny: DepthModel, dtype: mx.Dtype, gate: float) -> None:
    """float16 has 11 significant bits, bfloat16 eight: its gate is that much wider."""
    image = photo(90, 120)
    expected, half = tiny.predict(image), tiny_model(dtype).predict(image)
    assert half.dtype == str(dtype).removeprefix("mlx.core.")
    assert half.depth.dtype == np.float32
    assert np.isfinite(half.depth).all()
    assert relative_error(half.depth, expected.depth) <= gate


def test_half_precision_of_the_demo_is_near_float32() -> None:
    image = photo(90, 120)
    expected = mlx_depth.load(DEMO, dtype="float32").predict(image, input_size=70).depth
    half = mlx_depth.load(DEMO, dtype="float16").predict(image, input_size=70)
    assert half.dtype == "float16"
    assert np.isfinite(half.depth).all()
    assert correlation(half.depth, expected) >= 0.9999


# Batches.


@settings(max_examples=25, deadline=None)
@given(order=st.lists(st.sampled_from(SIZES), max_size=9), batch_size=st.integers(1, 5))
def test_batches_equal_single_predictions_in_order(order: list[tuple[int, int]], batch_size: int) -> None:
    model = tiny_model()
    images = [photo(*size, name=str(number)) for number, size in enumerate(order)]
    results = list(model.predict_batch(images, batch_size=batch_size))
    assert [result.image_size for result in results] == order
    for image, result in zip(images, results, strict=True):
        np.testing.assert_array_equal(result.image, image)
        assert relative_error(result.depth, model.predict(image).depth) <= 1e-5


def test_images_of_one_network_size_share_a_batch(tiny: DepthModel, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[tuple[int, ...]] = []

    def forward(pixel_values: mx.array, conditions: dict[str, mx.array]) -> DepthOutputs:
        batches.append(pixel_values.shape)
        return tiny.infer(pixel_values, conditions)

    monkeypatch.setattr(model_module, "forward_of", lambda network, dtype, options: forward)
    model = dataclasses.replace(tiny)
    images = [photo(*size) for size in ((20, 20), (30, 45), (24, 24), (32, 48), (20, 20))]
    assert len(list(model.predict_batch(images, batch_size=2))) == 5
    assert sorted(batches) == [(1, 28, 28, 3), (2, 28, 28, 3), (2, 28, 42, 3)]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_images_are_taken_lazily_and_in_bounds(tiny: DepthModel, batch_size: int) -> None:
    taken = 0

    def many() -> Iterator[np.ndarray]:
        """One lonely size, then another many times: the lonely one must not wait for company that never comes."""
        nonlocal taken
        while taken < 500:
            taken += 1
            yield photo(30, 45) if taken == 1 else photo(20, 20)

    results = tiny.predict_batch(many(), batch_size=batch_size)
    assert taken == 0  # nothing before the first result is asked for
    for handed_out in range(1, 13):
        next(results)
        assert taken - handed_out <= 4 * batch_size + max(batch_size, stream.DECODING_THREADS) + 1
    results.close()


def test_many_broken_images_behind_a_lonely_one_are_bounded(tiny: DepthModel) -> None:
    taken = 0

    def mostly_broken() -> Iterator[np.ndarray | bytes]:
        nonlocal taken
        while taken < 500:
            taken += 1
            yield photo(30, 45) if taken == 1 else b"broken"

    results = tiny.predict_batch(mostly_broken(), batch_size=4, on_error=lambda *_: None)
    assert next(results).image_size == (30, 45)
    assert taken < 40
    results.close()


@pytest.mark.parametrize("batch_size", [0, -1])
def test_impossible_batch_size(tiny: DepthModel, batch_size: int) -> None:
    with pytest.raises(OptionError, match="1 or more"):
        tiny.predict_batch([photo(20, 20)], batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_broken_image_ends_the_results_after_those_before_it(tiny: DepthModel, batch_size: int) -> None:
    results = tiny.predict_batch([photo(20, 20), photo(30, 45), b"broken", photo(20, 20)], batch_size=batch_size)
    assert [next(results).image_size, next(results).image_size] == [(20, 20), (30, 45)]
    with pytest.raises(ImageError, match="<bytes> is not an image"):
        next(results)
    assert list(results) == []


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_on_error_hears_of_broken_images_in_order(tiny: DepthModel, batch_size: int) -> None:
    events: list[object] = []
    images = [b"first", photo(20, 20), b"", photo(30, 45), photo(20, 20), b"last"]
    for result in tiny.predict_batch(
        images, batch_size=batch_size, on_error=lambda source, error: events.append((source, type(error)))
    ):
        events.append(result.image_size)
    assert events == [
        (b"first", ImageError),
        (20, 20),
        (b"", ImageError),
        (30, 45),
        (20, 20),
        (b"last", ImageError),
    ]


def test_image_too_long_for_the_network_is_its_own_error(tiny: DepthModel) -> None:
    """A panorama of 1:7,000 would have 28 × 196,000 network pixels at 28, and 98 × 686,000 at 98."""
    long = np.zeros((1, 7_000, 3), np.uint8)
    errors: list[ImageError] = []
    results = tiny.predict_batch([long, photo(20, 20)], input_size=98, on_error=lambda _, error: errors.append(error))
    assert [result.image_size for result in results] == [(20, 20)]
    assert len(errors) == 1
    assert "<array>" in str(errors[0])


def test_fault_of_the_callers_iterator_reaches_the_caller(tiny: DepthModel) -> None:
    def images() -> Iterator[np.ndarray]:
        yield photo(20, 20)
        raise RuntimeError("the camera is gone")

    with pytest.raises(RuntimeError, match="the camera is gone"):
        list(tiny.predict_batch(images()))


def test_closing_the_iterator_stops_the_threads(tiny: DepthModel) -> None:
    results = tiny.predict_batch(itertools.repeat(encoded(photo(20, 20))), batch_size=2)
    next(results)
    assert decoding_threads()
    results.close()
    deadline = time.monotonic() + 10
    while decoding_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert decoding_threads() == []


def test_a_batch_is_evaluated_once(tiny: DepthModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.predict(photo(20, 20))
    evaluated: list[list[dict[str, mx.array]]] = []
    monkeypatch.setattr(mx, "eval", evaluated.append)  # what follows evaluates by itself
    assert len(list(tiny.predict_batch([photo(20, 20), photo(24, 24)], batch_size=2))) == 2
    assert [[list(arrays) for arrays in each] for each in evaluated] == [[["depth"], ["depth"]]]


def test_infer_is_the_network_of_predict(tiny: DepthModel) -> None:
    image = photo(28, 42)
    pixel_values = tiny.processor(image)
    depth = tiny.infer(pixel_values).depth
    assert (depth.shape, depth.dtype) == (pixel_values.shape[:3], mx.float32)
    np.testing.assert_array_equal(np.array(depth[0]), tiny.predict(image).depth)
    with pytest.raises(OptionError, match="multiples of 14"):
        tiny.infer(pixel_values[:, 1:])
    with pytest.raises(OptionError, match=r"have shape \(28, 42, 3\)"):
        tiny.infer(pixel_values[0])


# predict(): one call for all.


def test_predict_keeps_the_model_for_the_next_call(fresh_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[tuple[object, object]] = []
    model = tiny_model()

    def load(source: object, *, dtype: object, revision: object, reference: object) -> DepthModel:
        loads.append((source, dtype))
        return model

    monkeypatch.setattr(predictor, "load", load)
    for name in (DEMO, "demo", "MLX-Depth-Demo"):
        assert mlx_depth.predict(photo(20, 20), model=name).model == "tiny"
    assert loads == [(DEMO, mx.float32)]
    mlx_depth.predict(photo(20, 20), model=DEMO, dtype="float32")  # what None means here
    assert len(loads) == 1
    mlx_depth.predict(photo(20, 20), model=DEMO, dtype="float16")
    assert loads[1:] == [(DEMO, mx.float16)]


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_predict_of_many_is_an_iterator_in_order(fresh_cache: None, kind: type) -> None:
    images = [photo(20, 20), photo(30, 45), photo(20, 21)]
    results = mlx_depth.predict(kind(images), model=DEMO, input_size=28)
    assert isinstance(results, Iterator)
    assert [result.image_size for result in results] == [(20, 20), (30, 45), (20, 21)]
    assert list(mlx_depth.predict(kind([]), model=DEMO)) == []


def test_predict_of_one_is_one_result(fresh_cache: None, tmp_path: Path) -> None:
    pixels = photo(20, 20)
    (tmp_path / "a.png").write_bytes(encoded(pixels))
    with (tmp_path / "a.png").open("rb") as file:  # an open file is an iterator of lines, too
        sources = (str(tmp_path / "a.png"), tmp_path / "a.png", encoded(pixels), memoryview(encoded(pixels)), file)
        results = [mlx_depth.predict(source, model=DEMO, input_size=28) for source in sources]
    assert all(isinstance(result, DepthResult) for result in results)
    assert all(np.array_equal(result.depth, results[0].depth) for result in results)


def test_predict_takes_the_real_demo_through_load(fresh_cache: None) -> None:
    image = photo(40, 60)
    kept = mlx_depth.predict(image, model=DEMO, input_size=56)
    loaded = mlx_depth.load(DEMO).predict(image, input_size=56)
    np.testing.assert_array_equal(kept.depth, loaded.depth)
    assert kept.model == DEMO
    assert kept.license == "Apache-2.0"


# load(): names, options and the license notice.


def test_unknown_names_and_options() -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean 'mlx-depth-demo'"):
        mlx_depth.load("mlx-depth-dem")
    with pytest.raises(ModelNotFoundError, match="not released"):
        mlx_depth.load("depth-anything-v2-giant")
    with pytest.raises(OptionError, match="choose one of float32, float16, bfloat16"):
        mlx_depth.load(DEMO, dtype="float8")
    with pytest.raises(OptionError, match="leave revision 'main' out"):
        mlx_depth.load(DEMO, revision="main")


@pytest.mark.parametrize(
    ("name", "cached", "said"),
    [
        ("da2-base", False, True),
        ("depth-anything/Depth-Anything-V2-Base-hf", False, True),
        ("depth-anything/Depth-Anything-V2-Base-hf@main", False, True),
        ("depth-anything-v2-metric-outdoor-large", False, True),
        ("da2-base", True, False),
        ("da2-small", False, False),
        ("da1-large", False, False),
    ],
)
def test_non_commercial_license_is_said_before_the_first_download(
    name: str, cached: bool, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fetch(repo: str, revision: str, **_: object) -> tuple[Path, str]:
        asked.append(repo)
        raise ModelNotFoundError("offline")

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(hub, "is_cached", lambda repo: cached)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ModelNotFoundError, match="offline"):
            mlx_depth.load(name)
    notices = [str(warning.message) for warning in caught if "commercial" in str(warning.message)]
    assert len(notices) == said
    assert all("CC-BY-NC-4.0: not for commercial use" in notice for notice in notices)
    assert asked == [name.partition("@")[0] if "/" in name else mlx_depth.find_model(name).hub_id]


def test_license_notice_points_at_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "is_cached", lambda repo: False)
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: (DEMO_FOLDER, "f" * 40))
    with pytest.warns(UserWarning, match="not for commercial use") as caught:
        mlx_depth.load("da2-base")
    assert caught[0].filename == __file__


def test_arrays_that_are_not_evaluated_yet(tiny):
    """MLX evaluates an array in the thread that made it."""
    random = mx.random.uniform(shape=(30, 40, 3))
    assert [result.image_size for result in tiny.predict_batch([random * 0.5, random])] == [(30, 40)] * 2


def test_a_loaded_image_is_one_image(tiny):
    loaded = mlx_depth.load_image(np.zeros((30, 40, 3), np.uint8))
    assert tiny.predict(loaded).image_size == (30, 40)
    assert [result.image_size for result in tiny.predict_batch([loaded])] == [(30, 40)]


@pytest.mark.parametrize("one", ["photo.jpg", b"bytes", Path("photo.jpg")])
def test_a_batch_is_not_one_image(tiny, one):
    with pytest.raises(OptionError, match="takes a list or iterator of images, and this is one: use predict"):
        tiny.predict_batch(one)


def test_a_model_says_what_it_is(tiny):
    assert repr(tiny) == f"DepthModel({tiny.spec.name!r}, {tiny.spec.depth_kind.description}, float32)"


def test_an_input_size_that_is_too_large_blames_no_image(tiny):
    with pytest.raises(OptionError, match="100000 × 100000 pixels would become"):
        tiny.predict_batch([], input_size=100_000)


# Folders, patterns, and iterators that fail or reuse their memory.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos and a text file."""
    for name, size in (("b.png", (20, 20)), ("a.jpg", (30, 45))):
        Image.fromarray(photo(*size)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("buy milk\n")
    return tmp_path


@pytest.mark.parametrize("as_path", [str, Path])
def test_a_folder_and_a_pattern_are_many_images(tiny: DepthModel, folder: Path, as_path: type) -> None:
    sizes = [result.image_size for result in tiny.predict_batch(as_path(folder))]
    assert sizes == [(30, 45), (20, 20)]  # by name
    assert [result.image_size for result in tiny.predict_batch(str(folder / "*.png"))] == [(20, 20)]


def test_predict_takes_a_folder_as_the_command_line_does(fresh_cache: None, folder: Path) -> None:
    results = mlx_depth.predict(folder, model=DEMO, input_size=28)
    assert [result.image_size for result in results] == [(30, 45), (20, 20)]


def test_a_folder_without_images(tiny: DepthModel, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds no image"):
        tiny.predict_batch(tmp_path)


def test_what_came_before_an_error_of_the_callers_iterator_is_not_lost(tiny: DepthModel) -> None:
    def camera() -> Iterator[np.ndarray]:
        yield photo(20, 20)
        yield photo(30, 45)
        raise ConnectionError("the camera is gone")

    results = tiny.predict_batch(camera(), batch_size=4)
    assert [next(results).image_size, next(results).image_size] == [(20, 20), (30, 45)]
    with pytest.raises(ConnectionError, match="the camera is gone"):
        next(results)


def test_what_came_before_an_error_of_the_network_is_not_lost(
    tiny: DepthModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_group = DepthModel._predict_group

    def out_of_memory(model: DepthModel, images: list, input_size: object) -> list:
        if images[0].image.info.size == (50, 34):
            raise RuntimeError("out of memory")
        return predict_group(model, images, input_size)

    monkeypatch.setattr(DepthModel, "_predict_group", out_of_memory)
    results = tiny.predict_batch([photo(20, 20), photo(30, 45), photo(50, 34)], batch_size=4)
    assert [next(results).image_size, next(results).image_size] == [(20, 20), (30, 45)]
    with pytest.raises(RuntimeError, match="out of memory"):
        next(results)


def test_a_frame_buffer_that_is_reused(tiny: DepthModel) -> None:
    """As ``cv2.VideoCapture.read(buffer)`` gives frames: each depth is its own frame's."""
    frames = [photo(20, 20, str(number)) for number in range(12)]

    def video() -> Iterator[np.ndarray]:
        buffer = np.empty_like(frames[0])
        for frame in frames:
            buffer[:] = frame
            yield buffer

    for frame, result in zip(frames, tiny.predict_batch(video(), batch_size=3), strict=True):
        np.testing.assert_array_equal(result.image, frame)
        assert relative_error(result.depth, tiny.predict(frame).depth) <= 1e-5
