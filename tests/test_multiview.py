"""From photos of one scene to depth and cameras, against upstream's own ``inference`` on the same files."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference_da3 as upstream
from da3 import import_reference
from opencv import without_ipp
from PIL import Image
from support import relative_error, seeded

import mlx_depth
from mlx_depth import DepthKind, DepthModel, ImageError, OptionError
from mlx_depth.multiview import _scale_to

GATE = 1e-3  # from files
SIZE = 140  # of the network's long side
SHAPES = ((120, 160), (120, 160), (120, 160))
MIXED = ((120, 160), (150, 100), (90, 160))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("networks")


@pytest.fixture(scope="module")
def models(folder: Path) -> Mapping[str, DepthModel]:
    names = (upstream.ANY_VIEW, upstream.GIANT, upstream.NESTED, upstream.MONO)
    return {name: mlx_depth.load(upstream.save(name, folder / name), dtype="float32") for name in names}


def photos(folder: Path, shapes: tuple[tuple[int, int], ...]) -> list[str]:
    """Files, as upstream wants paths."""
    paths = []
    for number, (H, W) in enumerate(shapes):
        coarse = np.clip(seeded(f"photo {number}", (H // 10, W // 10, 3), 60) + 128, 0, 255).astype(np.uint8)
        path = folder / f"{number}-{H}x{W}.png"
        Image.fromarray(coarse).resize((W, H), Image.Resampling.BICUBIC).save(path)
        paths.append(str(path))
    return paths


def inference(name: str, paths: list[str], **options: Any) -> Any:
    """Upstream's prediction; its network computes in float32, where upstream's ``forward`` goes down to bfloat16."""
    api = import_reference("api")
    whole = api.DepthAnything3.__new__(api.DepthAnything3)
    upstream.torch.nn.Module.__init__(whole)
    whole.model, whole.device = upstream.model(name, tiny=True), upstream.torch.device("cpu")
    # One thread: what OpenCV takes from Intel's library is chosen thread by thread.
    whole.input_processor = functools.partial(api.InputProcessor(), sequential=True)
    whole.output_processor = api.OutputProcessor()

    def forward(image, extrinsics, intrinsics, layers, infer_gs, use_ray_pose, strategy):
        with upstream.torch.inference_mode():
            return whole.model(image, extrinsics, intrinsics, layers, infer_gs, use_ray_pose, strategy)

    whole.forward = forward
    with without_ipp():
        return whole.inference(paths, process_res=SIZE, **options)


def assert_equal(scene: mlx_depth.SceneResult, expected: Any) -> None:
    assert relative_error(scene.depth, expected.depth) <= GATE
    assert relative_error(scene.confidence, expected.conf) <= GATE
    np.testing.assert_allclose(scene.extrinsics, expected.extrinsics[:, :3], rtol=0, atol=GATE)
    np.testing.assert_allclose(scene.intrinsics, expected.intrinsics, rtol=GATE)


@pytest.mark.parametrize("name", [upstream.ANY_VIEW, upstream.NESTED])
@pytest.mark.parametrize("shapes", [SHAPES, MIXED, SHAPES[:1], SHAPES[:2]], ids=["3", "mixed", "1", "2"])
def test_files_give_what_upstreams_inference_gives(
    name: str, shapes: tuple[tuple[int, int], ...], models: Mapping[str, DepthModel], tmp_path: Path
) -> None:
    paths = photos(tmp_path, shapes)
    scene, expected = models[name].predict_views(paths, input_size=SIZE), inference(name, paths)
    assert_equal(scene, expected)
    assert np.abs(np.stack(scene.images).astype(int) - expected.processed_images).max() <= 1  # upstream cuts
    assert scene.kind is (DepthKind.METRIC if name == upstream.NESTED else DepthKind.RELATIVE)
    assert scene.names == tuple(paths)
    if name == upstream.NESTED:
        assert scene.scale_factor == pytest.approx(expected.scale_factor, rel=GATE)


@pytest.mark.parametrize("V", [3, 12], ids=["least squares", "RANSAC"])
@pytest.mark.parametrize("name", [upstream.ANY_VIEW, upstream.NESTED])
def test_known_cameras_are_the_scenes(name: str, V: int, models: Mapping[str, DepthModel], tmp_path: Path) -> None:
    paths = photos(tmp_path, SHAPES[:1] * V)
    extrinsics, intrinsics = upstream.cameras(V, SHAPES[0])
    extrinsics[:, :, 3] *= 7  # in another unit than the network's
    square = np.concatenate([extrinsics, np.broadcast_to(np.float32([0, 0, 0, 1]), (V, 1, 4))], axis=1)
    scene = models[name].predict_views(paths, extrinsics=extrinsics, intrinsics=intrinsics, input_size=SIZE)
    assert_equal(scene, inference(name, paths, extrinsics=square, intrinsics=intrinsics))
    np.testing.assert_allclose(scene.extrinsics, extrinsics, rtol=1e-6)
    for view, matrix in zip(scene.views, intrinsics, strict=True):
        np.testing.assert_allclose(view.camera.intrinsics, matrix, rtol=1e-6)
    assert relative_error(scene.depth, models[name].predict_views(paths, input_size=SIZE).depth) > 10 * GATE


def test_known_cameras_on_a_line_give_the_scale(models: Mapping[str, DepthModel], tmp_path: Path) -> None:
    """Upstream stops here: such cameras leave a rotation open, which no depth depends on."""
    V = 4
    paths = photos(tmp_path, SHAPES[:1] * V)
    extrinsics, intrinsics = upstream.cameras(V, SHAPES[0])
    extrinsics[:, :, :3] = np.eye(3)
    extrinsics[:, :, 3] = np.arange(V)[:, None] * np.float32([1, 0.5, 0.25])
    near = models[upstream.ANY_VIEW].predict_views(paths, extrinsics=extrinsics, intrinsics=intrinsics, input_size=SIZE)
    extrinsics[:, :, 3] *= 10
    far = models[upstream.ANY_VIEW].predict_views(paths, extrinsics=extrinsics, intrinsics=intrinsics, input_size=SIZE)
    np.testing.assert_allclose(far.depth, 10 * near.depth, rtol=1e-4)
    two = extrinsics[:2].astype(np.float64)
    assert _scale_to(two * [1, 1, 1, 3], two) == pytest.approx(3)
    assert _scale_to(two[:1], two[:1] * [1, 1, 1, 3]) == 1
    extrinsics[:] = extrinsics[:1]
    with pytest.raises(OptionError, match="stand in one place, which tells no scale"):
        models[upstream.ANY_VIEW].predict_views(paths, extrinsics=extrinsics, intrinsics=intrinsics, input_size=SIZE)


def test_cameras_from_rays_are_upstreams(
    models: Mapping[str, DepthModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream draws at random: its draws are taken for ours (tests/geometry compares them one by one)."""
    paths = photos(tmp_path, SHAPES)
    scene = models[upstream.ANY_VIEW].predict_views(paths, pose_from="rays", input_size=SIZE)
    plain = models[upstream.ANY_VIEW].predict_views(paths, input_size=SIZE)
    np.testing.assert_array_equal(scene.depth, plain.depth)
    assert np.abs(scene.extrinsics - plain.extrinsics).max() > 10 * GATE
    again = models[upstream.ANY_VIEW].predict_views(paths, pose_from="rays", input_size=SIZE)
    np.testing.assert_array_equal(scene.extrinsics, again.extrinsics)


def test_rays_move_the_metres_and_the_gaussians(models: Mapping[str, DepthModel], tmp_path: Path) -> None:
    """The metric network goes with the focal length, and Gaussians stand where the cameras do."""
    paths = photos(tmp_path, SHAPES[:2])
    nested = models[upstream.NESTED]
    tokens = nested.predict_views(paths, input_size=SIZE, gaussians=True)
    rays = nested.predict_views(paths, input_size=SIZE, pose_from="rays", gaussians=True)
    assert rays.scale_factor != pytest.approx(tokens.scale_factor, rel=0.01)
    np.testing.assert_allclose(rays.depth / rays.scale_factor, tokens.depth / tokens.scale_factor, rtol=1e-3)
    assert relative_error(rays.gaussians.means, tokens.gaussians.means) > 0.01


def test_gaussians_are_in_the_unit_of_the_depth(models: Mapping[str, DepthModel], tmp_path: Path) -> None:
    paths = photos(tmp_path, SHAPES[:2])
    scene = models[upstream.GIANT].predict_views(paths, input_size=SIZE, gaussians=True)
    expected = inference(upstream.GIANT, paths, infer_gs=True).gaussians
    for name, values in scene.gaussians.arrays().items():
        assert relative_error(values, getattr(expected, name)[0].numpy()) <= GATE, name
    nested = models[upstream.NESTED].predict_views(paths, input_size=SIZE, gaussians=True)
    theirs = inference(upstream.NESTED, paths, infer_gs=True).gaussians.means[0].numpy()
    assert relative_error(nested.gaussians.means, theirs * nested.scale_factor) <= GATE
    assert models[upstream.GIANT].predict_views(paths, input_size=SIZE).gaussians is None


def test_each_photo_has_its_depth_and_camera_at_its_own_size(models: Mapping[str, DepthModel], tmp_path: Path) -> None:
    paths = photos(tmp_path, MIXED)
    scene = models[upstream.NESTED].predict_views(paths, input_size=SIZE)
    assert [view.depth.shape for view in scene.views] == list(MIXED)
    assert {view.sky.shape for view in scene.views} == set(MIXED)
    for index, view in enumerate(scene.views):
        np.testing.assert_allclose(view.camera.extrinsics, scene.extrinsics[index])
        # The middle of what the network saw is the middle of the photo, and keeps its depth.
        H, W = scene.depth.shape[1:]
        height, width = view.depth.shape
        inner = view.depth[height // 2 - 2 : height // 2 + 2, width // 2 - 2 : width // 2 + 2].mean()
        assert inner == pytest.approx(
            scene.depth[index, H // 2 - 2 : H // 2 + 2, W // 2 - 2 : W // 2 + 2].mean(), rel=0.1
        )
        matrix = scene.intrinsics[index]
        middle = view.camera.intrinsics[:2, 2] / (width, height)
        np.testing.assert_allclose(middle, matrix[:2, 2] / (W, H), atol=0.02)
    tall = scene.views[1]  # cropped above and below
    assert np.isnan(tall.depth[0]).all()
    assert np.isnan(tall.depth[-1]).all()
    assert np.isfinite(tall.depth[60:90]).all()
    assert np.isfinite(scene.views[2].depth).mean() > 0.5


def test_a_photo_alone_is_a_scene_of_one(models: Mapping[str, DepthModel], tmp_path: Path) -> None:
    (path,) = photos(tmp_path, SHAPES[:1])
    for name in (upstream.ANY_VIEW, upstream.NESTED):
        alone, scene = models[name].predict(path, input_size=SIZE), models[name].predict_views([path], input_size=SIZE)
        np.testing.assert_allclose(alone.depth, scene.views[0].depth, rtol=1e-5)
        np.testing.assert_allclose(alone.confidence, scene.views[0].confidence, rtol=1e-5)
        np.testing.assert_allclose(alone.camera.intrinsics, scene.views[0].camera.intrinsics, rtol=1e-5)
        np.testing.assert_allclose(alone.camera.extrinsics, scene.views[0].camera.extrinsics, atol=1e-5)


def test_photos_alone_share_batches(models: Mapping[str, DepthModel], tmp_path: Path) -> None:
    paths = photos(tmp_path, SHAPES)
    for name in (upstream.ANY_VIEW, upstream.NESTED, upstream.MONO):
        results = models[name].predict_batch(paths, batch_size=2, input_size=SIZE)
        for path, result in zip(paths, results, strict=True):
            assert relative_error(result.depth, models[name].predict(path, input_size=SIZE).depth) <= 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extrinsics": np.zeros((1, 3, 4))}, "has extrinsics and intrinsics: give both, or none"),
        ({"extrinsics": np.eye(3, 4)[None], "intrinsics": np.eye(3)[None]}, "given for one view, depth for 2 views"),
        ({"extrinsics": np.full((2, 3, 4), np.nan), "intrinsics": np.stack([np.eye(3)] * 2)}, "not finite"),
        ({"extrinsics": np.stack([np.eye(3, 4)] * 2), "intrinsics": np.zeros((2, 3, 3))}, "singular or no camera's"),
        (
            {"extrinsics": np.stack([2 * np.eye(3, 4)] * 2), "intrinsics": np.stack([np.eye(3)] * 2)},
            "no rotation|rigid",
        ),
        ({"pose_from": "gps"}, "no pose_from 'gps': choose one of camera, rays"),
        ({"reference_view": "best"}, "no reference_view 'best'"),
        ({"gaussians": True}, "has no 3D Gaussians"),
        ({"input_size": 3}, "below one patch"),
    ],
)
def test_what_cannot_be_is_said(
    options: dict[str, Any], message: str, models: Mapping[str, DepthModel], tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        models[upstream.ANY_VIEW].predict_views(photos(tmp_path, SHAPES[:2]), **options)


def test_what_is_no_scene_is_said(models: Mapping[str, DepthModel], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="at least one photo"):
        models[upstream.ANY_VIEW].predict_views([])
    with pytest.raises(OptionError, match="takes one view: use predict, or a model for several"):
        models[upstream.MONO].predict_views(photos(tmp_path, SHAPES[:2]))
    with pytest.raises(ImageError, match="no image"):
        models[upstream.ANY_VIEW].predict_views([str(tmp_path / "missing.png")])


def test_nothing_but_sky_is_said(models: Mapping[str, DepthModel], folder: Path, tmp_path: Path) -> None:
    model = mlx_depth.load(folder / upstream.NESTED, dtype="float32")
    model.network.load_weights([("metric.head.sky_conv3.bias", mx.array([100.0]))], strict=False)
    paths = photos(tmp_path, SHAPES[:2])
    with pytest.raises(ImageError, match="the scene has no depth: it shows nothing but sky"):
        model.predict_views(paths, input_size=SIZE)
    with pytest.raises(ImageError, match=r"0-120x160\.png has no depth: it shows nothing but sky"):
        model.predict(paths[0], input_size=SIZE)
