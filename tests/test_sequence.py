import gc
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import toy_views
from PIL import Image
from scene_results import boxes, gaussians

import mlx_depth
from mlx_depth import sequence
from mlx_depth.errors import ImageError, OptionError
from mlx_depth.geometry.alignment import aligned
from mlx_depth.models.families import FAMILIES
from mlx_depth.scene import SceneResult

VIEWS, WINDOW, OVERLAP = 200, 24, 6
GATE = 1e-3


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "toy_views", toy_views.FAMILY)


@pytest.fixture(scope="module")
def truth():
    return toy_views.walk(VIEWS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    return toy_views.photos(tmp_path_factory.mktemp("walk"), VIEWS)


def test_two_hundred_views_come_out_as_one_world(truth, photos) -> None:
    network = toy_views.Known(truth)
    parts = list(toy_views.model(network).predict_sequence(photos, window=WINDOW, overlap=OVERLAP))
    assert len(parts) == len(network.moves) == 11
    assert max(map(len, parts)) <= WINDOW
    merged = mlx_depth.merge_scenes(parts)
    first = network.moves[0]
    ground = truth.sky == 0
    assert merged.depth.shape == truth.depth.shape
    assert np.abs(merged.depth / (first.scale * truth.depth) - 1)[ground].max() < GATE
    expected = aligned(truth.extrinsics, first)
    assert np.abs(merged.extrinsics[:, :, :3] - expected[:, :, :3]).max() < GATE
    assert np.abs(merged.extrinsics[:, :, 3] - expected[:, :, 3]).max() < GATE * first.scale
    np.testing.assert_allclose(merged.intrinsics, truth.intrinsics, rtol=1e-6)
    np.testing.assert_array_equal(merged.confidence, truth.confidence + 20 * truth.sky)
    np.testing.assert_array_equal(merged.sky, truth.sky)
    assert merged.names == tuple(map(str, photos))
    assert [int(image[0, 0, 0]) for image in merged.images] == list(range(VIEWS))
    # The gate can fail: without the joins the windows lie anywhere.
    loose = network.moves[1].scale / first.scale
    assert abs(loose - 1) > 100 * GATE
    # The photos' own results move along.
    for part in parts:
        for index, view in enumerate(part.views):
            np.testing.assert_array_equal(view.depth, part.depth[index])  # the photos have the size of the network
            np.testing.assert_array_equal(view.camera.extrinsics, part.extrinsics[index])


def test_known_points_of_all_windows_meet(truth, photos) -> None:
    """The points of the last window lie where those of the truth do, in the first one's world."""
    network = toy_views.Known(truth)
    parts = list(toy_views.model(network).predict_sequence(photos, window=WINDOW, overlap=OVERLAP))
    last = parts[-1]
    known = boxes(truth)
    part = slice(VIEWS - len(last), None)
    true = SceneResult(
        known.depth[part], known.intrinsics[part], known.extrinsics[part], images=known.images[part], kind=known.kind
    )
    everything = mlx_depth.PointFilter(edge_threshold=None, max_sky=None, confidence_percentile=None)
    difference = last.choose(everything).positions - network.moves[0].apply(true.choose(everything).positions)
    ground = truth.sky[part].reshape(-1) == 0
    assert np.abs(difference[ground]).max() < 3 * GATE * network.moves[0].scale


def test_fewer_photos_than_a_window_are_one_scene(truth, photos) -> None:
    network = toy_views.Known(truth)
    (scene,) = toy_views.model(network).predict_sequence(photos[:5], window=8, overlap=2)
    together = toy_views.model(toy_views.Known(truth)).predict_views(photos[:5])
    np.testing.assert_array_equal(scene.depth, together.depth)
    np.testing.assert_allclose(scene.extrinsics, together.extrinsics)


def test_memory_is_flat(truth, tmp_path) -> None:
    photos = toy_views.photos(tmp_path, VIEWS, (96, 128))

    def peak(count: int) -> int:
        model = toy_views.model(toy_views.Known(truth))
        gc.collect()
        tracemalloc.start()
        try:
            for _ in model.predict_sequence(photos[:count], window=8, overlap=2):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(20)  # what is made once
    short, long = peak(44), peak(VIEWS)  # 7 and 33 windows, of 8 views each
    assert long < 1.05 * short


def test_no_scene_waits_beside_the_next(truth, photos, monkeypatch) -> None:
    alive: list[weakref.ref] = []
    most = 0

    def counted(*arguments, **options) -> Iterator[SceneResult]:
        nonlocal most
        scene = original(*arguments, **options)
        alive.append(weakref.ref(scene))
        most = max(most, sum(reference() is not None for reference in alive))
        return scene

    model = toy_views.model(toy_views.Known(truth))
    original = type(model)._predict_scene
    monkeypatch.setattr(type(model), "_predict_scene", counted)
    for scene in model.predict_sequence(photos[:40], window=8, overlap=2):
        del scene
    assert len(alive) == 7
    assert most == 1


def test_photos_are_read_window_by_window(truth, photos, monkeypatch) -> None:
    reads: list[Path] = []
    load = mlx_depth.load_image
    monkeypatch.setattr("mlx_depth.model.load_image", lambda path: reads.append(path) or load(path))
    scenes = toy_views.model(toy_views.Known(truth)).predict_sequence(photos[:20], window=8, overlap=2)
    assert reads == []
    next(scenes)
    assert reads == photos[:8]
    next(scenes)
    assert reads == photos[:14]
    assert len(list(scenes)) == 1
    assert reads == photos[:20]  # each once


def test_windows_that_do_not_agree(truth, photos) -> None:
    model = toy_views.model(toy_views.Known(truth, same=False))
    scenes = model.predict_sequence(photos[:20], window=8, overlap=2)
    assert len(next(scenes)) == 8
    with pytest.raises(OptionError) as caught:
        next(scenes)
    assert str(caught.value).startswith(
        f"the windows that share {photos[6]} to {photos[7]} do not fit together (window 1"
    )
    assert str(caught.value).endswith("in the order they were taken, a larger overlap, or larger windows.")


# Sizes: the first window rules.


def test_larger_photos_are_cropped_to_the_first_window(truth, tmp_path) -> None:
    paths = toy_views.photos(tmp_path, 14)
    toy_views.photos(tmp_path, 1, (32, 24))  # the first one, anew, and upright
    network = toy_views.Known(truth)
    parts = list(toy_views.model(network).predict_sequence(paths, window=8, overlap=2))
    assert [(len(part), part.size) for part in parts] == [(8, (24, 24)), (6, (24, 24))]
    ground = truth.sky[8:14, :, 4:28] == 0
    assert np.abs(parts[1].depth / (network.moves[0].scale * truth.depth[8:14, :, 4:28]) - 1)[ground].max() < GATE


def test_smaller_photos_are_refused(truth, tmp_path) -> None:
    paths = toy_views.photos(tmp_path, 14, (48, 64))
    Image.new("RGB", (64, 24), (13, 0, 0)).save(paths[13])
    scenes = toy_views.model(toy_views.Known(truth)).predict_sequence(paths, window=8, overlap=2)
    next(scenes)
    with pytest.raises(OptionError, match=r"do not fit the first window, which has 24×32 network pixels \(a view of"):
        next(scenes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 4, "overlap": 4}, "windows of 4 views cannot overlap by 4: give 1 up to 3."),
        ({"pose_from": "guess"}, "no pose_from 'guess': choose one of camera, rays."),
        ({"input_size": 3}, "input_size"),
    ],
)
def test_bad_options_are_told_at_the_call(truth, photos, options, message) -> None:
    with pytest.raises(OptionError) as caught:
        toy_views.model(toy_views.Known(truth)).predict_sequence(photos, **options)
    assert message in str(caught.value)


def test_a_model_of_one_view(photos) -> None:
    with pytest.raises(OptionError, match="mlx-depth-demo takes one view: use predict, or a model for several"):
        mlx_depth.load("mlx-depth-demo").predict_sequence(photos)


def test_an_unreadable_photo(truth, photos, tmp_path) -> None:
    with pytest.raises(ImageError, match="there is no image"):
        list(toy_views.model(toy_views.Known(truth)).predict_sequence([*photos[:3], tmp_path / "no.png"]))


# Merging


def test_merged_scenes_keep_the_cameras_of_the_photos(truth, tmp_path) -> None:
    paths = toy_views.photos(tmp_path, 14, (48, 64))  # twice the size of the network
    parts = list(toy_views.model(toy_views.Known(truth)).predict_sequence(paths, window=8, overlap=2))
    merged = sequence.merge_scenes(iter(parts))
    assert merged.views == ()
    assert merged.photo_sizes == ((48, 64),) * 14
    sizes, intrinsics = merged.photo_cameras()
    assert sizes == [(48, 64)] * 14
    np.testing.assert_allclose(intrinsics, np.concatenate([part.photo_cameras()[1] for part in parts]))
    np.testing.assert_allclose(intrinsics[0, 0], 2 * truth.intrinsics[0, 0], rtol=1e-6)
    assert len(merged) == 14


@pytest.mark.parametrize(
    ("scenes", "message"),
    [
        ([], "there are no scenes to merge: give at least one."),
        ([boxes(), boxes(model="another")], "does not go with one of"),
        ([boxes(), boxes(sky=None)], "some of the scenes have no sky: merge those of one model."),
        ([boxes(gaussians=gaussians(5))], "scenes with Gaussians are not merged: predict those views together."),
    ],
)
def test_what_cannot_be_merged(scenes, message) -> None:
    with pytest.raises(OptionError) as caught:
        mlx_depth.merge_scenes(scenes)
    assert message in str(caught.value)
