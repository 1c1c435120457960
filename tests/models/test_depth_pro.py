"""Depth Pro against transformers, from the same pixels and from a photo to metres; what a known focal length saves."""

import dataclasses
import io
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import reference
import reference_depth_pro
from mlx.utils import tree_flatten
from mlx_depth_convert import convert, inspect_model, verify
from mlx_depth_convert.recorder import recording
from PIL import Image
from support import correlation, relative_error

import mlx_depth
from mlx_depth import CheckpointError, DepthKind, ImageError, OptionError
from mlx_depth.backbones import pyramid
from mlx_depth.backbones.dinov2 import DINOv2Config
from mlx_depth.checkpoints.checkpoint import read_checkpoint
from mlx_depth.model import DepthModel
from mlx_depth.models.base import Evidence
from mlx_depth.models.depth_pro.family import FAMILY
from mlx_depth.models.depth_pro.network import DepthPro, depth_pro_config
from mlx_depth.models.depth_pro.weights import PROCESSOR, published_name, read_processor
from mlx_depth.registry import MODELS, find_model
from mlx_depth.result import DepthResult
from mlx_depth.weights.rules import apply, check_complete, to_mlx_layout

GATE, CORRELATION = 1e-4, 0.99999  # float32, from the same pixels
FROM_A_PHOTO = 1e-3
PHOTO = Path(__file__).parents[2] / "examples" / "coffee.jpg"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Depth Pro as the Hub has it."""
    return reference_depth_pro.save(reference_depth_pro.model("tiny"), tmp_path_factory.mktemp("depth-pro") / "tiny")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> DepthModel:
    return mlx_depth.load(folder, dtype="float32")


@pytest.fixture(scope="module")
def without_angle(tmp_path_factory: pytest.TempPathFactory) -> DepthModel:
    """Weights that estimate no field of view."""
    upstream = reference_depth_pro.model("tiny", field_of_view=False)
    return mlx_depth.load(reference_depth_pro.save(upstream, tmp_path_factory.mktemp("plain") / "x"), dtype="float32")


@pytest.fixture(scope="module")
def expected() -> tuple[np.ndarray, np.ndarray]:
    """Of two images."""
    return reference_depth_pro.run(reference_depth_pro.model("tiny"), reference_depth_pro.pixels(2, 256))


def assert_equal(found: mx.array, expected: np.ndarray) -> None:
    assert relative_error(np.array(found), expected) <= GATE
    assert correlation(np.array(found), expected) >= CORRELATION


def assert_angle(found: mx.array | None, expected: np.ndarray) -> None:
    """By its distance from the middle: a bias would hide what the network adds to it."""
    middle = reference_depth_pro.DEGREES
    assert relative_error(np.array(found) - middle, expected - middle) <= GATE


# From the same pixels.


def test_depth_and_field_of_view_equal_transformers(tiny: DepthModel, expected: tuple[np.ndarray, np.ndarray]) -> None:
    outputs = tiny.infer(mx.array(reference_depth_pro.pixels(2, 256)))
    assert_equal(outputs.depth, expected[0])
    assert_angle(outputs.field_of_view, expected[1])
    assert (outputs.depth.dtype, outputs.field_of_view.dtype) == (mx.float32, mx.float32)


def test_the_published_windows_equal_transformers(tmp_path: Path) -> None:
    """Narrow layers, but the 35 windows, patches and joints of 1536 × 1536 pixels."""
    upstream = reference_depth_pro.model("narrow")
    network = mlx_depth.load(reference_depth_pro.save(upstream, tmp_path), dtype="float32").network
    published = depth_pro_config().pyramid
    ours = network._config.pyramid
    assert (ours.window, ours.overlaps, ours.padding) == (published.window, published.overlaps, published.padding)
    pixel_values = reference_depth_pro.pixels(1, 1536)
    depth, angle = reference_depth_pro.run(upstream, pixel_values)
    outputs = network(mx.array(pixel_values))
    assert_equal(outputs.depth, depth)
    assert_angle(outputs.field_of_view, angle)


@pytest.mark.nightly
def test_the_whole_network_at_full_size_equals_transformers(tmp_path: Path) -> None:
    """952 million parameters and 13 TFLOP on each side; 4 GB of disk and 13 GB of memory."""
    upstream = reference_depth_pro.model("large")
    reference_depth_pro.save(upstream, tmp_path)
    pixel_values = reference_depth_pro.pixels(1, 1536)
    depth, angle = reference_depth_pro.run(upstream, pixel_values)
    reference_depth_pro.model.cache_clear()
    del upstream
    outputs = mlx_depth.load(tmp_path, dtype="float32").infer(mx.array(pixel_values))
    assert_equal(outputs.depth, depth)
    assert_angle(outputs.field_of_view, angle)


DRIFTS = {
    "layer-scale-of-the-windows-dropped": ("encoder.patch_encoder.blocks.1.layer_scale1.gamma", mx.ones_like),
    "image-encoder-left-out": ("head.image_doubling.weight", mx.zeros_like),
    "a-tap-of-one-growth": ("head.growths.4.doublings.2.weight", lambda w: w.at[0, 0, 0, 0].add(0.5)),
    "a-doubling-transposed": ("head.fusion.2.doubling.weight", lambda w: w.swapaxes(1, 2)),
}


def drifted(folder: Path, name: str, change: object) -> DepthPro:
    network = mlx_depth.load(folder, dtype="float32").network
    parameters = dict(tree_flatten(network.parameters()))
    network.load_weights([(name, change(parameters[name]))], strict=False)
    return network


@pytest.mark.parametrize("name", DRIFTS)
def test_an_injected_drift_fails_the_gate_of_depth(
    name: str, folder: Path, expected: tuple[np.ndarray, np.ndarray]
) -> None:
    outputs = drifted(folder, *DRIFTS[name])(mx.array(reference_depth_pro.pixels(2, 256)[:1]), field_of_view=False)
    with pytest.raises(AssertionError):
        assert_equal(outputs.depth, expected[0][:1])


def test_an_injected_drift_fails_the_gate_of_the_field_of_view(
    folder: Path, expected: tuple[np.ndarray, np.ndarray]
) -> None:
    network = drifted(folder, "field_of_view.projection.bias", lambda b: b + 0.01)
    outputs = network(mx.array(reference_depth_pro.pixels(2, 256)))
    assert_equal(outputs.depth, expected[0])
    with pytest.raises(AssertionError):
        assert_angle(outputs.field_of_view, expected[1])


@pytest.mark.parametrize("fault", ["columns-first", "one-patch-less-is-cut"])
def test_windows_that_are_cut_or_joined_otherwise_fail_the_gate(
    fault: str, tiny: DepthModel, expected: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "columns-first":
        cut = pyramid.cut
        monkeypatch.setattr(pyramid, "cut", lambda image, *sides: cut(image.swapaxes(1, 2), *sides))
    else:
        join = pyramid.join

        def joined(windows: list[mx.array], lost: int) -> mx.array:
            rolled = [mx.roll(window, 1, axis=1) for window in windows]
            return join(rolled if len(windows) == 49 else windows, lost)

        monkeypatch.setattr(pyramid, "join", joined)
    with pytest.raises(AssertionError):
        assert_equal(
            tiny.network(mx.array(reference_depth_pro.pixels(2, 256)[:1]), field_of_view=False).depth, expected[0][:1]
        )


@pytest.mark.parametrize(("dtype", "gate"), [("float16", 2e-2), ("bfloat16", 1e-1)])
def test_half_precision_stays_close(
    dtype: str, gate: float, folder: Path, expected: tuple[np.ndarray, np.ndarray]
) -> None:
    outputs = mlx_depth.load(folder, dtype=dtype).infer(mx.array(reference_depth_pro.pixels(2, 256)[:1]))
    assert relative_error(np.array(outputs.depth), expected[0][:1]) <= gate
    assert relative_error(np.array(outputs.field_of_view), expected[1][:1]) <= gate


def test_the_last_layers_alone_compute_in_float32(folder: Path) -> None:
    network = mlx_depth.load(folder, dtype="float16").network
    types: dict[str, set[mx.Dtype]] = {}

    def on_call(path: str, module: nn.Module, argument: object, result: object) -> None:
        if not module.children():
            arrays = [value for _, value in tree_flatten([argument, result]) if isinstance(value, mx.array)]
            types[path] = {value.dtype for value in arrays}

    with recording(network, on_call):
        network(mx.array(reference_depth_pro.pixels(1, 256)).astype(mx.float16))
    assert {path for path, module in network.named_modules() if not module.children()} <= types.keys()
    assert {path for path, found in types.items() if found != {mx.float16}} == {"head.conv3", "field_of_view.last"}


# From a photo to metres.


def test_a_photo_becomes_metres_and_a_camera(tiny: DepthModel) -> None:
    result = tiny.predict(PHOTO)
    expected, focal = reference_depth_pro.metres(reference_depth_pro.model("tiny"), result.image, None)
    assert (result.kind, result.unit, result.max_depth) == (DepthKind.METRIC, "m", 10_000.0)
    assert (result.depth.shape, result.input_size) == (result.image_size, (256, 256))
    assert np.ptp(expected) > 0.1 * expected.mean()
    assert relative_error(1 / result.depth, 1 / expected) <= FROM_A_PHOTO
    near = expected < np.quantile(expected, 0.95)  # where the inverse depth is near its end, metres explode
    assert relative_error(result.depth[near], expected[near]) <= FROM_A_PHOTO
    height, width = result.image_size
    assert result.focal_length_px is None
    assert result.camera.focal_length_px == pytest.approx(focal, rel=1e-4)
    middle = [[result.camera.focal_length_px, 0, (width - 1) / 2], [0, result.camera.focal_length_px, (height - 1) / 2]]
    np.testing.assert_allclose(result.camera.intrinsics, [*middle, [0, 0, 1]], rtol=1e-6)


def test_metres_of_a_known_focal_length_equal_the_authors(tiny: DepthModel) -> None:
    result = tiny.predict(PHOTO, focal_length_px=700)
    expected, _ = reference_depth_pro.metres(reference_depth_pro.model("tiny"), result.image, 700)
    assert relative_error(1 / result.depth, 1 / expected) <= FROM_A_PHOTO
    assert (result.focal_length_px, result.camera) == (700, None)


def photo_of(focal_length_mm: int | None = None) -> bytes:
    """The photo with the focal length in its EXIF, in millimetres of 35 mm film."""
    exif = Image.Exif()
    if focal_length_mm is not None:
        exif.get_ifd(0x8769)[0xA405] = focal_length_mm
    stream = io.BytesIO()
    with Image.open(PHOTO) as image:
        image.resize((96, 64)).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


@pytest.fixture(scope="module")
def alone(tiny: DepthModel) -> dict[int | None, DepthResult]:
    """What the photo gives by itself, by its focal length."""
    return {focal_length_mm: tiny.predict(photo_of(focal_length_mm)) for focal_length_mm in (None, 27)}


def test_a_known_focal_length_scales_the_metres(alone: dict[int | None, DepthResult]) -> None:
    known, unknown = alone[27], alone[None]
    assert known.focal_length_px == pytest.approx(27 * np.hypot(96, 64) / np.hypot(36, 24))
    assert (known.camera, unknown.focal_length_px) == (None, None)
    ratio = known.focal_length_px / unknown.camera.focal_length_px
    inside = (unknown.depth < 5e3) & (known.depth < 5e3)
    np.testing.assert_allclose(known.depth[inside], ratio * unknown.depth[inside], rtol=1e-4)


def test_a_batch_of_known_and_unknown_focal_lengths(tiny: DepthModel, alone: dict[int | None, DepthResult]) -> None:
    """The field of view is estimated where it is unknown alone."""
    order = [None, 27, None]
    called: list[str] = []
    with recording(tiny.network, lambda path, *_: called.append(path)):
        results = list(tiny.predict_batch(map(photo_of, order), batch_size=4))
    assert called.count("field_of_view.last") == 2
    assert called.count("head.conv1") == 3
    for focal_length_mm, result in zip(order, results, strict=True):
        assert (result.camera is None) == (focal_length_mm is not None)
        np.testing.assert_allclose(result.depth, alone[focal_length_mm].depth, rtol=1e-5)


def test_weights_without_a_field_of_view_need_a_focal_length(without_angle: DepthModel) -> None:
    with pytest.raises(ImageError, match=r"estimate no field of view, .*give it in pixels of the photo"):
        without_angle.predict(photo_of())
    failed: list[object] = []
    photos = [photo_of(), photo_of(27)]
    results = list(without_angle.predict_batch(photos, on_error=lambda image, error: failed.append(image)))
    assert ([result.depth.shape for result in results], failed) == ([(64, 96)], photos[:1])


@pytest.mark.parametrize("focal_length_px", [0, -3.0, float("nan"), float("inf")])
def test_a_focal_length_that_is_none(tiny: DepthModel, focal_length_px: float) -> None:
    with pytest.raises(OptionError, match=r"focal_length_px is .*: give a number of pixels above 0"):
        tiny.predict(photo_of(), focal_length_px=focal_length_px)


@pytest.mark.parametrize(
    ("name", "value"),
    [("field_of_view.last.bias", -1e4), ("field_of_view.last.bias", 1e4), ("head.conv1.bias", np.nan)],
)
def test_a_network_without_sense_gives_no_depth(name: str, value: float, folder: Path) -> None:
    """A field of view that no camera has, or numbers that are none, are not a wall at the limit."""
    model = mlx_depth.load(folder, dtype="float32")
    parameters = dict(tree_flatten(model.network.parameters()))
    model.network.load_weights([(name, mx.full(parameters[name].shape, value))], strict=False)
    with pytest.raises(ImageError, match=r"has no depth: .*no field of view: .* a focal length may help"):
        model.predict(photo_of())


# Bad input.


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 1536, 1536), r"pass \(B, H, W, 3\), channels last"),
        ((1, 1536, 1520, 3), "are 1536×1520: this network takes 1536×1536 alone"),
        ((1, 3072, 3072, 3), "are 3072×3072: this network takes 1536×1536 alone"),
    ],
)
def test_wrong_pixel_values(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        DepthPro(depth_pro_config())(mx.zeros(shape))


def test_other_input_sizes_are_refused(tiny: DepthModel) -> None:
    with pytest.raises(OptionError, match="takes 256 × 256 pixels alone: leave input_size out"):
        tiny.predict(PHOTO, input_size=1024)


ENCODER = {
    "model_type": "dinov2",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "patch_size": 16,
}
CONFIG = {
    "model_type": "depth_pro",
    "patch_size": 128,
    "fusion_hidden_size": 16,
    "intermediate_hook_ids": [2, 1],
    "intermediate_feature_dims": [16, 16],
    "scaled_images_feature_dims": [24, 20, 12],
    "merge_padding_value": 1,
    "use_fov_model": True,
    **{f"{part}_model_config": ENCODER for part in ("image", "patch", "fov")},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scaled_images_ratios": [0.5, 1]}, r"scaled_images_ratios is \[0\.5, 1\], and only \[0\.25, 0\.5, 1\]"),
        ({"use_batch_norm_in_fusion_residual": True}, "use_batch_norm_in_fusion_residual is True, and only False"),
        ({"windows": 35}, "keys that mlx-depth does not know: windows"),
        ({"fusion_hidden_size": "16"}, "fusion_hidden_size is '16', not a whole number above 0"),
        ({"intermediate_hook_ids": [1, 2]}, r"out_layers \(zero-based\) are \(2, 1, 3\), not rising"),
        ({"intermediate_hook_ids": [3, 1]}, r"\(1, 3, 3\), not rising"),
        ({"intermediate_hook_ids": [2]}, r"hands out the layers \(2, 3\) \(zero-based\) of 4, not 2 and the last"),
        ({"intermediate_hook_ids": 2}, "intermediate_hook_ids is 2, which no published Depth Pro has"),
        ({"intermediate_feature_dims": [16, 8]}, r"intermediate_feature_dims is \[16, 8\], which no published"),
        ({"scaled_images_overlap_ratios": [0.0, 0.5, 1.0]}, "scaled_images_overlap_ratios is .*which no published"),
        ({"scaled_images_overlap_ratios": [0.0, 0.5, 0.3]}, "windows of 128 pixels that overlap by 0.3 .*do not join"),
        ({"merge_padding_value": 3}, "overlap by 0.25 and lose 2 patches do not join to the 512 pixels"),
        ({"use_fov_model": 1}, "use_fov_model is 1, which no published Depth Pro has"),
        ({"patch_model_config": None}, "config.json has no patch_model_config: take"),
        ({"image_model_config": ENCODER | {"hidden_size": 32}}, "image_model_config, fov_model_config differ"),
        ({"fov_model_config": ENCODER | {"model_type": "vit"}}, "fov_model_config: model_type is 'vit', and only 'din"),
        ({"patch_size": 64}, "do not join to"),
    ],
)
def test_configs_that_no_published_model_has(change: dict[str, object], message: str) -> None:
    read = FAMILY.dialects["transformers"].read
    assert read(Evidence({}, CONFIG)).config.field_of_view is True
    with pytest.raises(CheckpointError, match=message):
        read(Evidence({}, CONFIG | change))


def test_patches_of_another_size_are_refused() -> None:
    fine = {**ENCODER, "patch_size": 8}
    with pytest.raises(CheckpointError, match=r"width and patch size are \(64, 8\), the head's \(64, 16\)"):
        FAMILY.dialects["transformers"].read(
            Evidence(
                {}, CONFIG | {"patch_size": 64, **{f"{part}_model_config": fine for part in ("image", "patch", "fov")}}
            )
        )


def test_raw_layers_are_of_those_handed_out() -> None:
    with pytest.raises(CheckpointError, match=r"raw_layers are \(1,\), not all of out_layers \(0, 2\)"):
        DINOv2Config(32, 3, 2, (0, 2), raw_layers=(1,))


PIXELS = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "DepthProImageProcessorFast",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 1536, "width": 1536},
}


def test_the_published_processor() -> None:
    assert read_processor(PIXELS) == PROCESSOR
    assert (
        read_processor(PIXELS | {"image_mean": 0.5, "image_std": 0.5, "do_pad": None, "antialias": False}) == PROCESSOR
    )
    assert PROCESSOR.network_size((480, 640)) == PROCESSOR.network_size((2000, 100)) == (1536, 1536)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resample": 3}, "resample is 3, and only 2"),
        ({"do_resize": False}, "do_resize is False, and only True"),
        ({"size": {"height": 1536, "width": 1024}}, "no square"),
        ({"size": {"height": 0, "width": 0}}, "height is 0, not a whole number above 0"),
        ({"image_std": [0.5, 0, 0.5]}, "not above 0"),
        ({"image_mean": [0.5, 0.5]}, "no three numbers"),
        ({"image_processor_type": "DPTImageProcessor"}, "not DepthProImageProcessor"),
        ({"crop_pct": 0.9}, "does not know: crop_pct"),
        ({"antialias": True}, "antialias is True, which no published Depth Pro has"),
    ],
)
def test_processors_that_are_not_known(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_processor(PIXELS | change)


# Names, at full size.


DIALECTS = {
    "transformers-new-names": ("transformers", lambda state: state),
    "transformers-hub-names": ("transformers", reference.hub_names),
    "original": ("original", reference_depth_pro.authors_names),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("field_of_view", [True, False])
def test_every_tensor_of_upstream_has_its_place_at_full_size(dialect: str, field_of_view: bool) -> None:
    table, rename = DIALECTS[dialect]
    upstream = reference_depth_pro.meta_model("large", field_of_view=field_of_view)
    tensors = reference.tensors(rename(upstream.state_dict()))
    evidence = Evidence({name: array.shape for name, array in tensors.items()})
    assert [name for name, dialect in FAMILY.dialects.items() if dialect.owns(evidence)] == [table]
    reading = FAMILY.dialects[table].read(evidence)
    assert reading.config == dataclasses.replace(depth_pro_config(), field_of_view=field_of_view)
    network = DepthPro(reading.config)
    weights = to_mlx_layout(network, apply(FAMILY.dialects[table].rules, tensors))
    check_complete(network, weights)


def test_the_published_model() -> None:
    upstream = reference_depth_pro.meta_model("large")
    spec = MODELS["depth-pro"]
    assert spec.parameters == sum(parameter.numel() for parameter in upstream.parameters()) == 951_994_402
    assert FAMILY.dialects["transformers"].read(Evidence({}, upstream.config.to_dict())).config == spec.config
    assert (spec.license, spec.commercial, spec.hub_id) == ("apple-amlr", False, "apple/DepthPro-hf")
    assert find_model("DepthPro") is find_model("depth_pro") is spec
    for name in ("depth_pro", "DepthPro", "DepthPro-hf", "depth-pro"):
        assert published_name(name) == spec.name
    assert published_name("my-depth-pro-finetune") is None


# The tools.


def test_the_authors_file_and_the_hubs_folder_convert_to_the_same(folder: Path, tmp_path: Path) -> None:
    torch = reference_depth_pro.torch
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    named = reference_depth_pro.authors_names(reference_depth_pro.model("tiny").state_dict())
    torch.save(named, theirs / "depth_pro.pt")
    for name in ("config.json", "preprocessor_config.json"):
        (theirs / name).write_bytes((folder / name).read_bytes())
    one = read_checkpoint(convert(theirs / "depth_pro.pt", tmp_path / "one"))
    other = read_checkpoint(convert(folder, tmp_path / "other"))
    assert (one.spec.config, one.spec.processor) == (other.spec.config, other.spec.processor)
    assert one.weights.keys() == other.weights.keys()
    assert all(mx.array_equal(one.weights[name], other.weights[name]).item() for name in one.weights)


def test_a_converted_and_packed_model_predicts(
    folder: Path, tiny: DepthModel, alone: dict[int | None, DepthResult], tmp_path: Path
) -> None:
    packed = convert(folder, tmp_path / "packed", quantize=8)
    quantized = mlx_depth.load(packed, dtype="float32")
    assert quantized.spec.config == tiny.spec.config
    found = quantized.predict(photo_of(27))
    assert 0 < relative_error(1 / found.depth, 1 / alone[27].depth) < 0.05
    tops = {row.name for row in inspect_model(packed).rows if "." not in row.name}
    assert tops == {"encoder", "head", "field_of_view"}


def test_every_stage_and_output_equals_transformers(folder: Path) -> None:
    report = verify(folder, against="transformers")
    assert report.passed, report.as_text()
    assert [error.stage for error in report.stages][-2:] == ["field_of_view", "depth"]
    assert len(report.stages) == len(FAMILY.stages(read_checkpoint(folder).spec.config)) + 2
    assert all(error.relative <= GATE for error in report.stages)
