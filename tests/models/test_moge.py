"""MoGe-2 against the unmodified upstream package: tables at full size, the same pixels, photos to metres."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference_moge as upstream
from mlx_depth_convert import convert, inspect_model, verify
from mlx_depth_convert.references.moge import exact_resizes
from PIL import Image
from support import correlation, relative_error

import mlx_depth
from mlx_depth import CheckpointError, DepthKind, DepthModel, ImageError, ModelNotFoundError, OptionError
from mlx_depth.checkpoints.detect import detect
from mlx_depth.models.base import DepthOutputs, Evidence, Photo
from mlx_depth.models.families import FAMILIES
from mlx_depth.models.moge.network import SIZES, MoGe, MoGeConfig, moge_config, view_plane
from mlx_depth.models.moge.weights import published_name
from mlx_depth.registry import MODELS, find_model
from mlx_depth.weights.rules import apply, check_complete, to_mlx_layout

torch = upstream.torch
GATE = 1e-4  # relative error from the same pixels, float32
PHOTO_GATE = 1e-3  # from a file to the final map
FAMILY = FAMILIES["moge"]
TOKENS, SIDE = 100, 140  # the same choice: 10 × 10 patches of a square
NAMES = [f"moge-2-{size}" for size in SIZES]
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast", "ignore:.*the weights are under 'model'")


def ours(config: MoGeConfig = upstream.TINY) -> MoGe:
    """Our network with the weights of upstream's, through the family's own table."""
    network = MoGe(config)
    tensors = {name: mx.array(value.numpy()) for name, value in upstream.model(config).state_dict().items()}
    weights = to_mlx_layout(network, apply(FAMILY.dialects["original"].rules, tensors))
    check_complete(network, weights)
    network.load_weights(list(weights.items()))
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' file, tiny."""
    return upstream.save(upstream.TINY, tmp_path_factory.mktemp("moge") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> DepthModel:
    """It, converted and loaded."""
    return mlx_depth.load(convert(folder, folder.parent / "ours"), dtype="float32")


# Tables


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_at_full_size(name: str) -> None:
    spec = find_model(name)
    network = upstream.build(spec.config)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    lazy = {key: mx.zeros(shape) for key, shape in shapes.items()}
    ours = MoGe(spec.config)
    check_complete(ours, to_mlx_layout(ours, apply(FAMILY.dialects["original"].rules, lazy)))
    assert sum(value.numel() for value in network.parameters()) == spec.parameters
    facts = upstream.model_config(spec.config)
    for evidence in (Evidence(shapes), Evidence(shapes, metadata={"model_config": facts}), Evidence(shapes, facts)):
        family, dialect = detect(evidence, Path("model.pt"))
        assert (family.name, dialect) == ("moge", "original")
        assert family.dialects[dialect].read(evidence).config == spec.config


def test_a_network_without_normals(tmp_path: Path) -> None:
    """The published moge-2-vitl."""
    config = dataclasses.replace(upstream.TINY, normals=False)
    assert moge_config("large", normals=False).normals is False
    loaded = mlx_depth.load(convert(upstream.save(config, tmp_path / "in"), tmp_path / "out"), dtype="float32")
    photo = upstream.image(60, 80)
    result = loaded.predict(photo, input_size=SIDE)
    assert result.normals is None
    expected = upstream.infer(upstream.model(config), photo, num_tokens=TOKENS)
    assert relative_error(result.depth[result.mask], expected["depth"][expected["mask"]]) <= PHOTO_GATE


# From the same pixels


def check(found: DepthOutputs, expected: Mapping[str, Any]) -> None:
    """Every output that upstream gives, each by the gate; points in metres, as ours are."""
    scale = expected["metric_scale"]
    references = {name: expected[theirs].numpy() for name, theirs in upstream.OUTPUTS.items()}
    references["points"] = references["points"] * scale[:, None, None, None].numpy()
    references["depth"] = references["points"][..., 2]
    for name, reference in references.items():
        values = np.array(getattr(found, name))
        assert relative_error(values, reference) <= GATE, name
        if name != "scale":
            assert reference.std() > 0.05 * np.abs(reference).mean(), "a reference that hardly varies proves nothing"
            assert correlation(values, reference) >= 0.99999, name


def run_both(network: MoGe, config: MoGeConfig, image: np.ndarray) -> tuple[DepthOutputs, Mapping[str, Any]]:
    """On ``(B, H, W, 3)`` of 0..1, whose sides the network takes."""
    pixels = torch.from_numpy(image).permute(0, 3, 1, 2)
    with torch.no_grad(), exact_resizes():
        expected = upstream.model(config)(pixels, num_tokens=image.shape[1] * image.shape[2] // 14**2)
    mean, std = (np.array(values, np.float32) for values in (FAMILY.processor.mean, FAMILY.processor.std))
    return network(mx.array((image - mean) / std)), expected


@pytest.mark.parametrize("shape", [(1, 70, 98), (2, 126, 84), (3, 14, 42)])
def test_a_tiny_network_equals_upstream(shape: tuple[int, int, int]) -> None:
    images = np.stack([upstream.image(*shape[1:]) // (1 + index) for index in range(shape[0])])
    check(*run_both(ours(), upstream.TINY, images.astype(np.float32) / 255))


def test_the_published_small_network_equals_upstream() -> None:
    config = find_model("moge-2-small").config
    check(*run_both(ours(config), config, upstream.image(70, 98)[None].astype(np.float32) / 255))


@pytest.mark.nightly
def test_the_published_small_network_equals_upstream_at_a_usual_size() -> None:
    config = find_model("moge-2-small").config
    check(*run_both(ours(config), config, upstream.image(448, 616)[None].astype(np.float32) / 255))


def test_the_gate_sees_a_drift() -> None:
    network = ours()
    network.neck.levels[1].blocks[1].conv2.bias += 2e-3
    with pytest.raises(AssertionError, match="points"):
        check(*run_both(network, upstream.TINY, upstream.image(70, 98)[None].astype(np.float32) / 255))


def test_the_view_plane() -> None:
    reference = upstream.import_reference("utils.geometry_torch").normalized_view_plane_uv
    for height, width, aspect in ((3, 5, 1.7), (16, 8, 0.4), (1, 1, 1.0)):
        expected = reference(width, height, aspect_ratio=aspect).numpy()
        np.testing.assert_allclose(np.array(view_plane((height, width), mx.array([aspect])))[0], expected, atol=1e-6)


def test_an_aspect_of_another_shape_is_refused() -> None:
    with pytest.raises(OptionError, match=r"aspect has shape \(1,\): give width over height of each image, \(2,\)"):
        ours()(mx.zeros((2, 14, 14, 3)), aspect=mx.ones(1))


# From a photo to metres


def check_photo(result: mlx_depth.DepthResult, expected: Mapping[str, np.ndarray]) -> None:
    mask = expected["mask"]
    assert 0.2 < mask.mean() < 0.98
    assert (result.mask != mask).mean() <= 1e-4  # where upstream's value is a half to the last digit
    both = result.mask & mask
    np.testing.assert_array_equal(np.isinf(result.depth), ~result.mask)
    pairs = {
        "depth": (result.depth[both], expected["depth"][both]),
        "points": (result.points[both], expected["points"][both]),
        "normals": (result.normals[both], expected["normal"][both]),
    }
    for name, (found, reference) in pairs.items():
        assert relative_error(found, reference) <= PHOTO_GATE, name
        assert correlation(found, reference) >= 0.99999, name
    assert np.median(np.abs(pairs["depth"][0] / pairs["depth"][1] - 1)) <= 1e-4
    assert not result.normals[~result.mask].any()
    height, width = result.image_size
    focal = expected["intrinsics"][[0, 1], [0, 1]] * [width, height]
    np.testing.assert_allclose(result.camera.intrinsics[[0, 1], [0, 1]], focal, rtol=PHOTO_GATE)
    assert result.camera.intrinsics[:2, 2].tolist() == [(width - 1) / 2, (height - 1) / 2]


@pytest.mark.parametrize("size", [(120, 160), (161, 97), (33, 40)])
def test_a_photo_becomes_what_upstream_infers(model: DepthModel, size: tuple[int, int], tmp_path: Path) -> None:
    photo = upstream.image(*size)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    result = model.predict(tmp_path / "photo.png", input_size=SIDE)
    assert (result.kind, result.unit, result.image_size) == (DepthKind.METRIC, "m", size)
    check_photo(result, upstream.infer(upstream.model(), photo, num_tokens=TOKENS))


def test_a_batch_of_shapes_that_the_network_sees_alike(model: DepthModel) -> None:
    """Photos of other proportions share a size of the network, and each keeps its own view plane."""
    photos = [upstream.image(height, 160) for height in (120, 119, 118)]
    results = list(model.predict_batch(photos, batch_size=3, input_size=SIDE))
    assert len({result.input_size for result in results}) == 1
    for photo, result in zip(photos, results, strict=True):
        check_photo(result, upstream.infer(upstream.model(), photo, num_tokens=TOKENS))


def test_the_levels_of_upstream_are_input_sizes() -> None:
    processor = find_model("moge-2-small").processor
    for height, width in ((1080, 1920), (3000, 4000), (512, 512), (1600, 700)):
        for tokens, input_size in ((3600, None), (1200, 485), (2500, 700)):
            aspect = width / height
            expected = round((tokens / aspect) ** 0.5) * 14, round((tokens * aspect) ** 0.5) * 14
            assert processor.network_size((height, width), input_size) == expected


def test_a_focal_length_that_the_caller_gives_is_the_camera_s(model: DepthModel) -> None:
    photo = upstream.image(120, 160)
    result = model.predict(photo, input_size=SIDE, focal_length_px=130.0)
    assert result.camera.intrinsics[0, 0] == result.camera.intrinsics[1, 1] == 130
    fov = math.degrees(2 * math.atan(80 / 130))
    check_photo(result, upstream.infer(upstream.model(), photo, num_tokens=TOKENS, fov_x=fov))


def test_a_focal_length_of_exif_is_not(model: DepthModel, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 28  # FocalLengthIn35mmFilm
    Image.fromarray(upstream.image(120, 160)).save(tmp_path / "photo.jpg", exif=exif)
    result = model.predict(tmp_path / "photo.jpg", input_size=SIDE)
    assert result.focal_length_px == pytest.approx(28 / math.hypot(36, 24) * 200, rel=1e-3)
    same = model.predict(mlx_depth.load_image(tmp_path / "photo.jpg").pixels, input_size=SIDE)
    assert result.camera.focal_length_px == same.camera.focal_length_px != result.focal_length_px


# Outputs that tell no camera, or nothing


def postprocess(points: np.ndarray, odds: np.ndarray, **facts: Any) -> Any:
    """What becomes of raw maps (h, w, 3) and (h, w) on a photo of that size."""
    raw = {
        "points": mx.array(points.astype(np.float32))[None],
        "mask": mx.array(odds.astype(np.float32))[None, ..., None],
    }
    outputs = DepthOutputs(raw["points"][..., 2], scale=mx.array([2.0]), raw=raw)
    return FAMILY.postprocess(upstream.TINY, outputs, FAMILY.processor, Photo(odds.shape, (14, 14), **facts))


def test_all_masked(model: DepthModel) -> None:
    found = postprocess(np.zeros((8, 8, 3)), np.full((8, 8), -1.0))
    assert not np.isfinite(np.array(found.depth)).any()
    network = ours()
    network.mask_head.read_out.bias -= 100
    with pytest.raises(ImageError, match=r"<array> has no depth: the model's mask leaves no pixel, .*: give a photo"):
        dataclasses.replace(model, network=network).predict(upstream.image(40, 40), input_size=56)


def test_one_pixel() -> None:
    odds = np.full((64, 64), -1.0)
    odds[5, 7] = 1
    found = postprocess(np.full((64, 64, 3), 0.5), odds)
    assert np.array(found.mask).sum() == 1
    depth = np.array(found.depth)
    assert depth[5, 7] == pytest.approx(2 * math.exp(0.5))  # no shift
    assert np.array(found.intrinsics)[0, 0] == pytest.approx(math.hypot(64, 64) / 2)  # upstream's 1


def test_points_that_fit_no_camera() -> None:
    mirrored = np.stack([*np.meshgrid(-np.arange(8) + 3.5, -np.arange(8) + 3.5), np.zeros((8, 8))], axis=-1)
    for points in (np.full((8, 8, 3), np.nan), np.zeros((8, 8, 3)), mirrored):
        with pytest.raises(ImageError, match=r"points fit no camera: give the focal length in pixels"):
            postprocess(points, np.ones((8, 8)))
    assert np.isfinite(
        np.array(postprocess(mirrored, np.ones((8, 8)), focal_length_px=9.0, focal_length_given=True)[0])
    ).any()


def test_what_lies_behind_the_camera_is_masked() -> None:
    """Where the shift takes points there: upstream's guard, without which depth would be negative."""
    rows, columns = np.mgrid[:64, :64]
    z = np.where(rows < 2, 0.01, 3.0) + 0 * columns
    seen = (2 * np.stack([columns, rows], axis=-1) + 1 - 64) / math.hypot(64, 64)
    points = np.concatenate([seen * ((z - 1) / z)[..., None], np.log(z)[..., None]], axis=-1)  # a shift of -1
    found = postprocess(points, np.ones((64, 64)))
    depth, mask = np.array(found.depth), np.array(found.mask)
    assert not mask[:2].any()
    assert mask[2:].all()
    np.testing.assert_allclose(depth[2:], 2 * 2.0, rtol=0.05)
    assert np.isinf(depth[:2]).all()


# Files


def test_the_tools(folder: Path, tmp_path: Path) -> None:
    packed = convert(folder, tmp_path / "packed", quantize=8)
    plain = convert(folder, tmp_path / "plain")
    report = verify(plain, against="moge", input_size=SIDE)
    assert report.passed
    stages = [stage.stage for stage in report.stages]
    outputs = ["mask", "normals", "points", "scale", "raw points", "raw mask", "raw normals", "depth"]
    assert stages == [stage.name for stage in FAMILY.stages(upstream.TINY)] + outputs
    assert verify(packed, against=folder, input_size=SIDE).passed
    rows = {row.name: row.type for row in inspect_model(plain, input_size=SIDE).rows}
    assert rows["points_head.read_out"] == "Conv2d"
    result = mlx_depth.load(packed).predict(upstream.image(60, 80), input_size=SIDE)
    assert result.mask.any()


def test_a_published_file_has_its_name_and_license(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if the tiny network were the published small one, in a copy of its repository."""
    published = dataclasses.replace(find_model("moge-2-small"), config=upstream.TINY)
    monkeypatch.setitem(MODELS, "moge-2-small", published)
    source = upstream.save(upstream.TINY, tmp_path / "moge-2-vits-normal")
    with pytest.raises(ModelNotFoundError, match=r"convert model\.pt first \(mlx-depth convert"):
        mlx_depth.load(source)
    spec = mlx_depth.load(convert(source, tmp_path / "out")).spec
    assert (spec.name, spec.license, spec.commercial, spec.parameters) == ("moge-2-small", "MIT", True, 35_103_656)
    assert spec.processor == published.processor


def facts(**changes: Any) -> dict[str, Any]:
    return {**upstream.model_config(upstream.TINY), **changes}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (facts(remap_output="sinh"), r"describes another MoGe .* \(remap_output 'sinh' where 'exp' is known\)"),
        (facts(neck={**facts()["neck"], "res_block_in_norm": "layer_norm"}), r"\(neck: res_block_in_norm 'layer_norm'"),
        (facts(mask_head={}), r"\(mask_head: resamplers None where \['conv_transpose'"),
        (facts(encoder={"intermediate_layers": 4}), r"says intermediate_layers 4, not a list of layers"),
        (
            facts(encoder={"intermediate_layers": [1, 9]}),
            r"out_layers \(zero-based\) are \(1, 9\), not rising and below 4",
        ),
        (facts(encoder={"intermediate_layers": [3]}), r"does not fit the model .*not expected: projections\.1"),
        (facts(encoder="dinov2_vitl14"), r"has no encoder with its arguments, as MoGe-2's has"),
    ],
)
def test_a_file_of_another_model_is_refused(said: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = upstream.save(upstream.TINY, tmp_path / "other", facts=said)
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "out")


def test_tensors_alone_tell_published_models_only(tmp_path: Path) -> None:
    torch.save(upstream.model().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"no published MoGe-2 is 128 wide with 4 layers of which 2 are tapped"):
        convert(tmp_path / "weights.pt", tmp_path / "out")


def test_transformers_has_none(folder: Path) -> None:
    with pytest.raises(OptionError, match="transformers has no MoGe: leave reference out"):
        mlx_depth.load(folder.parent / "ours", reference="transformers")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("moge-2-vits-normal", "moge-2-small"),
        ("Ruicheng/moge-2-vitl-normal", "moge-2-large"),
        ("MoGe_2_ViTB_Normal", "moge-2-base"),
        ("moge-2-vitl", None),
        ("moge-vitl", None),
        ("moge-2-vits-normal2", None),
    ],
)
def test_official_names(name: str, model: str | None) -> None:
    assert published_name(name) == model
