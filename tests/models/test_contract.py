"""A family that only these tests know goes through everything: load, predict, batches, files, conversion and proof."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import toy
from mlx_depth_convert import convert, inspect_model, verify
from safetensors.numpy import save_file
from support import seeded

import mlx_depth
from mlx_depth import DepthKind, ImageError, OptionError
from mlx_depth.checkpoints.detect import detect
from mlx_depth.errors import CheckpointError
from mlx_depth.io.image import with_focal_length
from mlx_depth.models.base import DepthOutputs, Evidence, Photo, PhotoOutputs, owner, to_photo
from mlx_depth.models.families import FAMILIES
from mlx_depth.processor import Processor

WIDTH = 64


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(FAMILIES, "toy", toy.TOY)
    return


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The authors' file of a toy model."""
    shapes = {"stem.weight": (WIDTH, 3, 8, 8), "stem.bias": (WIDTH,), "out.weight": (2, WIDTH), "out.bias": (2,)}
    folder = tmp_path / "toy-model"
    folder.mkdir()
    tensors = {name: seeded(name, shape, 0.2) for name, shape in shapes.items()}
    save_file(tensors, folder / "weights.safetensors")
    return folder


def photo(height: int, width: int) -> np.ndarray:
    return np.clip(seeded(f"{height}x{width}", (height, width, 3), 60) + 128, 0, 255).astype(np.uint8)


def test_everything_that_the_network_computes_reaches_the_result(source: Path) -> None:
    model = mlx_depth.load(source, dtype="float32")
    result = model.predict(photo(48, 80))
    pixel_values = model.processor(photo(48, 80))
    outputs = model.network(pixel_values)
    assert (result.kind, result.unit, result.max_depth, result.model) == (DepthKind.METRIC, "m", 10.0, "toy-model")
    assert result.depth.shape == result.confidence.shape == (48, 80)
    assert 0 < result.depth.min() < result.depth.max() < 10
    assert np.ptp(result.confidence) > 0
    # The camera is in pixels of the photo: 80 columns, of which the network saw 56.
    assert outputs.intrinsics[0, 0, 0].item() == pixel_values.shape[2] == 56
    assert result.camera.intrinsics.tolist() == [[80, 0, 40], [0, 48 / 32 * 56, 24], [0, 0, 1]]
    assert result.camera.extrinsics.tolist() == [[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1]]
    assert result.sky is None


def test_batches_hold_the_same(source: Path) -> None:
    model = mlx_depth.load(source, dtype="float32")
    images = [photo(48, 80), photo(40, 40), photo(48, 80) // 2]
    for image, result in zip(images, model.predict_batch(images, batch_size=2), strict=True):
        alone = model.predict(image)
        np.testing.assert_allclose(result.depth, alone.depth, rtol=1e-5)
        np.testing.assert_allclose(result.confidence, alone.confidence, rtol=1e-5)
        np.testing.assert_array_equal(result.camera.intrinsics, alone.camera.intrinsics)


def test_confidence_and_camera_are_in_the_files(source: Path, tmp_path: Path) -> None:
    result = mlx_depth.load(source, dtype="float32").predict(photo(48, 80))
    with np.load(result.save(tmp_path / "x.npz")) as stored:
        np.testing.assert_array_equal(stored["confidence"], result.confidence)
        np.testing.assert_array_equal(stored["intrinsics"], result.camera.intrinsics)
        np.testing.assert_array_equal(stored["extrinsics"], result.camera.extrinsics)
    facts = json.loads(result.save(tmp_path / "x.json").read_text())
    assert facts["camera"]["intrinsics"] == result.camera.intrinsics.tolist()
    assert facts["camera"]["extrinsics"] == result.camera.extrinsics.tolist()


def test_the_tools_take_it(source: Path, tmp_path: Path) -> None:
    packed = convert(source, tmp_path / "packed", quantize=8)
    assert mlx_depth.load(packed).predict(photo(48, 80)).confidence is not None
    assert json.loads((packed / "config.json").read_text())["config"] == {"width": WIDTH}
    plain = convert(source, tmp_path / "plain", dtype="float32")
    report = verify(packed, against=source)
    outputs = ["confidence", "intrinsics", "extrinsics", "depth"]
    assert [stage.stage for stage in report.stages] == ["embedding", *outputs]
    assert report.passed
    assert verify(plain, against=source).stages[-1].max_abs == 0
    rows = inspect_model(plain).rows
    assert [(row.name, row.type, row.parameters) for row in rows] == [
        ("embed", "Conv2d", WIDTH * 3 * 64 + WIDTH),
        ("head", "Linear", 2 * WIDTH + 2),
    ]
    with pytest.raises(OptionError, match="transformers, which has no toy"):
        verify(plain, against="transformers")


# Detection.


def evidence(names: list[str], config: dict[str, object] | None = None) -> Evidence:
    return Evidence(dict.fromkeys(names, (1,)), config)


def test_families_that_share_a_tensor_do_not_steal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two relatives with the same stem: each knows the other by what only that one has, or by the config."""
    relative = dataclasses.replace(
        toy.TOY,
        name="relative",
        dialects={
            "original": dataclasses.replace(
                toy.TOY.dialects["original"], owns=owner("stem.weight", "extra.weight", model_types=("relative",))
            )
        },
    )
    monkeypatch.setitem(FAMILIES, "relative", relative)
    path = Path("x")
    assert detect(evidence(["stem.weight", "out.weight"]), path)[0].name == "toy"
    assert detect(evidence(["stem.weight", "extra.weight"]), path)[0].name == "relative"
    both = ["stem.weight", "out.weight", "extra.weight"]
    assert detect(evidence(both, {"model_type": "relative"}), path)[0].name == "relative"
    assert detect(evidence(both, {"model_type": "toy"}), path)[0].name == "toy"
    with pytest.raises(CheckpointError, match=r"could be of toy \(original\) and relative \(original\)"):
        detect(evidence(both), path)


def test_a_relative_of_a_family_is_nobodys() -> None:
    """Video Depth Anything has V2's tensors and motion modules: it is not V2."""
    network = FAMILIES["depth_anything"]
    rules = network.dialects["original"].rules
    names = [rule.source.replace("{i}", "0").replace("{p}", "weight").replace("{c}", "1") for rule in rules]
    motion = [f"depth_head.motion_modules.{i}.norm.weight" for i in range(4)]
    with pytest.raises(CheckpointError, match=r"relative of depth_anything .*4 of its tensors .*motion_modules\.0"):
        detect(evidence(names + motion), Path("video.safetensors"))


def test_a_config_of_nobody_is_said() -> None:
    with pytest.raises(CheckpointError, match=r"no model that mlx-depth knows .*model_type 'dpt'"):
        detect(evidence(["dpt.embeddings.cls_token", "head.head.0.weight"], {"model_type": "dpt"}), Path("x"))


# What a family may need that this one does not.


def test_an_output_that_has_no_place_is_an_error_not_a_loss() -> None:
    outputs = DepthOutputs(mx.ones((1, 8, 8)), points=mx.ones((1, 8, 8, 3)))
    with pytest.raises(NotImplementedError, match=r"knows no points: give the family a postprocess of its own"):
        to_photo(outputs, Processor(), Photo((8, 8), (8, 8)))


def test_mask_and_normals_come_to_the_photo_s_size() -> None:
    share = mx.array([[[0.0, 1.0], [0.0, 1.0]]])
    normals = mx.stack([share, mx.zeros((1, 2, 2)), share - 1], axis=-1)  # z on the left, x on the right
    outputs = DepthOutputs(mx.full((1, 2, 2), 3.0), mask=share, normals=normals)
    found = to_photo(outputs, Processor(), Photo((4, 5), (2, 2)))
    depth, mask, grown = np.array(found.depth), np.array(found.mask), np.array(found.normals)
    assert (mask.dtype, mask.tolist()) == (bool, [[False, False, False, True, True]] * 4)  # above a half
    np.testing.assert_array_equal(depth, np.where(mask, np.float32(3), np.float32(np.inf)))
    np.testing.assert_array_equal(grown[:, :3], 0)  # outside the mask
    np.testing.assert_allclose(np.linalg.norm(grown[:, 3:], axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(grown[0, 3], np.array([0.75, 0, -0.25]) / np.hypot(0.75, 0.25), rtol=1e-6)


def test_mask_normals_and_a_focal_length_of_the_caller_s_reach_everything(
    source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Photo] = []

    def with_maps(_: object, outputs: DepthOutputs, processor: Processor, photo: Photo) -> PhotoOutputs:
        seen.append(photo)
        mask = outputs.depth > mx.median(outputs.depth)
        normals = mx.broadcast_to(mx.array([0.0, 0.0, -2.0]), (*mask.shape, 3))
        return to_photo(outputs._replace(mask=mask, normals=normals), processor, photo)

    monkeypatch.setitem(FAMILIES, "toy", dataclasses.replace(toy.TOY, postprocess=with_maps))
    model = mlx_depth.load(source, dtype="float32")
    result = model.predict(photo(48, 80), focal_length_px=70)
    assert result.mask.dtype == bool
    assert 0 < result.mask.sum() < result.mask.size
    np.testing.assert_array_equal(np.isfinite(result.depth), result.mask)
    np.testing.assert_array_equal(result.normals, np.where(result.mask[..., None], np.float32([0, 0, -1]), 0))
    with np.load(result.save(tmp_path / "x.npz")) as stored:
        np.testing.assert_array_equal(stored["mask"], result.mask)
        np.testing.assert_array_equal(stored["normals"], result.normals)
    model.predict(photo(48, 80))
    assert [(photo.focal_length_px, photo.focal_length_given) for photo in seen] == [(70, True), (None, False)]


def test_a_photo_that_is_all_masked_is_an_error(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: object, outputs: DepthOutputs, processor: Processor, photo: Photo) -> PhotoOutputs:
        return to_photo(outputs._replace(mask=mx.zeros(outputs.depth.shape)), processor, photo)

    monkeypatch.setitem(
        FAMILIES, "toy", dataclasses.replace(toy.TOY, postprocess=nothing, no_depth="its mask is empty")
    )
    with pytest.raises(ImageError, match=r"<array> has no depth: its mask is empty\."):
        mlx_depth.load(source, dtype="float32").predict(photo(48, 80))


def test_metres_that_need_a_focal_length_fail_for_that_photo_alone(
    source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def scaled(_: object, outputs: DepthOutputs, processor: Processor, photo: Photo) -> PhotoOutputs:
        if photo.focal_length_px is None:
            raise ImageError("no focal length: give one.")
        metres = outputs.depth * photo.focal_length_px / 300
        return to_photo(outputs._replace(depth=metres), processor, photo)

    monkeypatch.setitem(FAMILIES, "toy", dataclasses.replace(toy.TOY, postprocess=scaled))
    from PIL import Image

    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 27  # FocalLengthIn35mmFilm
    Image.fromarray(photo(40, 40)).save(tmp_path / "known.jpg", exif=exif)
    Image.fromarray(photo(40, 40)).save(tmp_path / "unknown.jpg")
    model = mlx_depth.load(source, dtype="float32")
    failed: list[object] = []
    paths = [tmp_path / "unknown.jpg", tmp_path / "known.jpg", tmp_path / "unknown.jpg"]
    results = list(model.predict_batch(paths, batch_size=3, on_error=lambda image, error: failed.append(image)))
    assert [result.source for result in results] == [str(tmp_path / "known.jpg")]
    assert failed == [paths[0], paths[2]]
    with pytest.raises(ImageError, match="no focal length"):
        model.predict(paths[0])


class Told(toy.Toy):
    """Wants to know the proportions of a photo."""

    conditions = ("aspect",)

    def __call__(self, pixel_values: mx.array, aspect: mx.array | None = None) -> DepthOutputs:
        assert aspect is not None
        outputs = super().__call__(pixel_values)
        return outputs._replace(depth=mx.ones_like(outputs.depth) * aspect[:, None, None])


def test_a_network_is_told_of_its_photos_and_outputs_are_read_first(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def read_first(outputs: DepthOutputs) -> mx.array:
        order.append("read")
        return outputs.depth

    def scaled(_: object, outputs: DepthOutputs, processor: Processor, photo: Photo) -> PhotoOutputs:
        order.append("postprocess")
        return to_photo(outputs._replace(depth=outputs.depth / outputs.depth.max().item()), processor, photo)

    family = dataclasses.replace(
        toy.TOY,
        network=Told,
        photo_conditions=lambda photos: {"aspect": mx.array([photo.size[1] / photo.size[0] for photo in photos])},
        read_first=read_first,
    )
    monkeypatch.setitem(FAMILIES, "toy", family)
    model = mlx_depth.load(source, dtype="float32")
    results = list(model.predict_batch([photo(48, 80), photo(48, 81)], batch_size=2))
    assert [result.depth[0, 0] for result in results] == [np.float32(80 / 48), np.float32(81 / 48)]
    monkeypatch.setitem(FAMILIES, "toy", dataclasses.replace(family, postprocess=scaled))
    assert next(iter(model.predict_batch([photo(48, 80)]))).depth[0, 0] == 1
    assert order == ["read", "read", "postprocess"]


class Asked(toy.Toy):
    """Computes its confidence on request."""

    def __call__(self, pixel_values: mx.array, *, confidence: bool = True) -> DepthOutputs:
        outputs = super().__call__(pixel_values)
        return outputs if confidence else outputs._replace(confidence=None)


def test_photos_that_ask_for_different_outputs_share_no_batch(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The family says what a photo needs; a batch mixes none of it, and the order stays."""
    asked: list[tuple[bool, int]] = []

    class Counted(Asked):
        def __call__(self, pixel_values: mx.array, *, confidence: bool = True) -> DepthOutputs:
            asked.append((confidence, len(pixel_values)))
            return super().__call__(pixel_values, confidence=confidence)

    def options(_: object, photo: Photo) -> dict[str, bool]:
        return {"confidence": photo.focal_length_px is None}

    monkeypatch.setitem(FAMILIES, "toy", dataclasses.replace(toy.TOY, network=Counted, options=options))
    monkeypatch.setattr("mlx_depth.runtime.forward.on_linux_cpu", lambda: False)  # which takes images one by one
    model = mlx_depth.load(source, dtype="float32")
    known = with_focal_length(mlx_depth.load_image(photo(40, 40)), 50)
    unknown = mlx_depth.load_image(photo(40, 40))
    results = list(model.predict_batch([known, unknown, known, unknown, unknown], batch_size=2))
    assert [result.confidence is None for result in results] == [True, False, True, False, False]
    assert sorted(asked) == [(False, 2), (True, 1), (True, 2)]
    plain = model.predict(unknown)
    for result in results:
        np.testing.assert_allclose(result.depth, plain.depth, rtol=1e-5)
    assert model.infer(model.processor(photo(40, 40))).confidence is not None


class Views(toy.Toy):
    """Several views at once, and what else comes in beside the pixels."""

    takes = "views"
    conditions = ("extrinsics",)


def test_the_shape_check_knows_what_a_network_takes() -> None:
    views = Views(toy.ToyConfig(4))
    views.check((1, 3, 16, 24, 3))
    for shape in ((3, 16, 24, 3), (16, 24, 3), (1, 0, 16, 24, 3), (1, 3, 16, 24, 4)):
        with pytest.raises(OptionError, match=r"pass \(B, V, H, W, 3\)"):
            views.check(shape)
    with pytest.raises(OptionError, match="are 16×25: make both sides multiples of 8"):
        views.check((1, 3, 16, 25, 3))


def test_a_network_of_one_size_refuses_others() -> None:
    fixed = Processor(input_size=64, policy="fixed", multiple_of=8)
    assert fixed.network_size((480, 640)) == (64, 64)
    assert fixed.network_size((480, 640), 64) == fixed.network_size((480, 640), (64, 64)) == (64, 64)
    for size in (72, (64, 72)):
        with pytest.raises(OptionError, match=r"takes 64 × 64 pixels alone: leave input_size out"):
            fixed.network_size((480, 640), size)
