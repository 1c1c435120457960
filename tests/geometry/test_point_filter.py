import re

import numpy as np
import pytest
import scenes
from support import require, seeded

from mlx_depth.errors import OptionError
from mlx_depth.geometry.point_filter import PointFilter, choose_points, depth_edges
from mlx_depth.geometry.unproject import unproject

SCENE = scenes.boxes()
OFF = {"confidence_percentile": None, "edge_threshold": None, "max_sky": None}
FLAT = np.ones((1, 20, 30), np.float32)


def choose(depth=None, *, confidence=None, sky=None, **options):
    """Of a depth map before plain cameras, all rules off but those that are given."""
    depth = np.asarray(depth, np.float32)
    views = len(depth)
    intrinsics, extrinsics = np.repeat(np.eye(3)[None], views, 0), np.repeat(np.eye(3, 4)[None], views, 0)
    rules = PointFilter(**(OFF | options))
    return choose_points(depth, intrinsics, extrinsics, confidence=confidence, sky=sky, filter=rules)


def choose_boxes(**options):
    rules = PointFilter(**options)
    cameras = (SCENE.intrinsics, SCENE.extrinsics)
    return choose_points(SCENE.depth, *cameras, confidence=SCENE.confidence, sky=SCENE.sky, filter=rules)


def test_only_a_finite_depth_above_zero_becomes_a_point():
    depth = np.array([[[1, np.nan, np.inf], [-np.inf, 0, -1]], [[np.float32(1e-30), 3, -0.0], [5, 6, 7]]], np.float32)
    chosen = choose(depth, max_points=100, voxel_size=1e-3, edge_threshold=1e9)
    assert set(chosen.pixels) <= {0, 6, 7, 9, 10, 11}
    np.testing.assert_array_equal(choose(depth).pixels, [0, 6, 7, 9, 10, 11])
    assert np.isfinite(chosen.positions).all()


def test_a_depth_that_takes_a_point_beyond_float32():
    depth = FLAT.copy()
    depth[0, 3, 3] = 3e38  # times a ray of 3, 3, 1
    chosen = choose(depth)
    assert np.isfinite(chosen.positions).all()
    np.testing.assert_array_equal(chosen.pixels, np.delete(np.arange(600), 3 * 30 + 3))


def test_positions_are_those_of_the_pixels():
    chosen = choose_boxes(voxel_size=0.1, max_points=300)
    assert len(chosen.pixels) == 300
    every = unproject(SCENE.depth, SCENE.intrinsics, SCENE.extrinsics)
    np.testing.assert_array_equal(chosen.positions, every[chosen.pixels])
    assert (np.diff(chosen.pixels) > 0).all()


# Confidence


def test_the_percentile_is_that_of_what_is_no_sky():
    confidence = np.arange(600, dtype=np.float32).reshape(1, 20, 30)
    sky = (confidence < 400).astype(np.float32)
    chosen = choose(FLAT, confidence=confidence, sky=sky, confidence_percentile=40, max_sky=0.5)
    np.testing.assert_array_equal(chosen.pixels, np.arange(480, 600))  # 40 % of 200 are 80; the 80th is 479.6
    everything = choose(FLAT, confidence=confidence, sky=sky, confidence_percentile=40)
    np.testing.assert_array_equal(everything.pixels, np.arange(240, 600))


@pytest.mark.parametrize(("least", "first"), [(None, 240), (100, 240), (500, 500), (1000, 600)])
def test_of_two_thresholds_the_higher_counts(least, first):
    confidence = np.arange(600, dtype=np.float32).reshape(1, 20, 30)
    chosen = choose(FLAT, confidence=confidence, min_confidence=least, confidence_percentile=40)
    np.testing.assert_array_equal(chosen.pixels, np.arange(first, 600))


@pytest.mark.parametrize("percentile", [0, 10, 40, 90, 100])
@pytest.mark.parametrize("least", [1.05, 2.0])
def test_same_threshold_as_the_reference(percentile, least):
    glb = require("reference", "da3").import_reference("utils.export.glb")
    prediction = type("Prediction", (), {"conf": SCENE.confidence})()
    # Ours has no upper bound: a user's min_confidence is kept to.
    threshold = glb.get_conf_thresh(prediction, SCENE.sky > 0.5, least, percentile, ensure_thresh_percentile=100)
    expected = (SCENE.confidence >= threshold) & (SCENE.sky < 0.5)
    chosen = choose_boxes(min_confidence=least, confidence_percentile=percentile, edge_threshold=None)
    np.testing.assert_array_equal(chosen.pixels, np.flatnonzero(expected))
    assert len(chosen.pixels) > 0


def test_a_confidence_that_is_no_number_is_none():
    confidence = np.ones(FLAT.shape, np.float32)
    confidence[0, 0, :3] = np.nan, np.inf, -np.inf
    chosen = choose(FLAT, confidence=confidence, confidence_percentile=40)
    np.testing.assert_array_equal(chosen.pixels, [1, *range(3, 600)])


def test_min_confidence_needs_a_confidence():
    with pytest.raises(OptionError, match="this scene has no confidence, which its model does not compute"):
        choose(FLAT, min_confidence=1.0)
    assert len(choose(FLAT, confidence_percentile=40).pixels) == FLAT.size


# Sky


def test_sky():
    sky = np.zeros((1, 1, 5), np.float32)
    sky[0, 0] = 0, 0.49, 0.5, 1, np.nan
    depth = np.ones((1, 1, 5))
    np.testing.assert_array_equal(choose(depth, sky=sky, max_sky=0.5).pixels, [0, 1])
    np.testing.assert_array_equal(choose(depth, sky=sky, max_sky=0.8).pixels, [0, 1, 2])
    assert len(choose(depth, sky=sky, max_sky=None).pixels) == 5
    assert len(choose(depth, max_sky=0.5).pixels) == 5


# Edges


def test_both_sides_of_an_edge_go():
    depth = np.array([[[1, 1, 1.5, 2, 2], [1, 1, 1.5, 2, 2], [1, 1, 1, 1, 1]]], np.float32)  # 1.5 hangs in the air
    edges = depth_edges(depth, 0.3)[0]
    np.testing.assert_array_equal(edges, [[0, 1, 1, 1, 0], [0, 1, 1, 1, 1], [0, 0, 1, 1, 1]])


def test_edges_do_not_depend_on_the_scale_nor_cross_views():
    depth = np.abs(seeded("depth", (2, 8, 9))) + 1
    edges = depth_edges(depth, 0.5)
    assert 0 < edges.sum() < edges.size
    np.testing.assert_array_equal(depth_edges(depth * 1024, 0.5), edges)
    np.testing.assert_array_equal(depth_edges(depth[1:], 0.5), edges[1:])
    assert not depth_edges(np.array([[[1.0]], [[5.0]]], np.float32), 0.1).any()


@pytest.mark.parametrize("nothing", [np.nan, np.inf, 0, -1])
def test_no_depth_makes_no_edge(nothing):
    depth = FLAT.copy()
    depth[0, 5, 5] = nothing
    assert not depth_edges(depth, 0.04).any()


@pytest.mark.parametrize(("degrees", "kept"), [(85, True), (88, False)])
def test_steep_surfaces_at_the_default(degrees, kept):
    """A plane through (0, 0, 10), turned about the vertical axis, by a camera of 400 pixels."""
    column = np.arange(-20, 21)
    depth = 10 / (1 - column / 400 * np.tan(np.radians(degrees)))
    edges = depth_edges(depth[None, None].astype(np.float32), PointFilter().edge_threshold)
    assert edges[0, 0, 20] != kept


# Voxels


def test_a_voxel_keeps_its_surest_point():
    side = 0.25
    rules = {"confidence_percentile": None, "edge_threshold": None}
    every, chosen = choose_boxes(**rules), choose_boxes(**rules, voxel_size=side)
    surest: dict[tuple[float, ...], tuple[float, int]] = {}
    for pixel, position in zip(every.pixels, every.positions.astype(np.float64), strict=True):
        sureness = SCENE.confidence.reshape(-1)[pixel]
        cube = tuple(np.floor(position / side))
        if cube not in surest or sureness > surest[cube][0]:
            surest[cube] = (sureness, pixel)
    np.testing.assert_array_equal(chosen.pixels, sorted(pixel for _, pixel in surest.values()))
    assert 100 < len(chosen.pixels) < len(every.pixels) / 2
    assert (chosen.positions < 0).any()  # cubes on both sides of the origin


def test_of_equals_in_a_voxel_the_first_stays():
    np.testing.assert_array_equal(choose(FLAT, voxel_size=1000.0).pixels, [0])
    np.testing.assert_array_equal(choose(FLAT * 1e30, voxel_size=1e-3).pixels, np.arange(600))  # no overflow


# Number of points


@pytest.mark.parametrize("count", [1, 7, 96, 960, 4799])
@pytest.mark.parametrize("width", [80, 81])
def test_max_points_are_spread_evenly(count, width):
    depth = np.ones((3, 60, width), np.float32)
    chosen = choose(depth, max_points=count)
    assert len(chosen.pixels) == len(set(chosen.pixels)) == count
    taken = np.zeros(depth.size)
    taken[chosen.pixels] = 1
    blocks = taken.reshape(3, 60, width)[:, :, :80].reshape(3, 4, 15, 4, 20).sum(axis=(2, 4))
    even = count / (3 * 60 * width) * 15 * 20
    assert np.abs(blocks - even).max() <= 2 + 0.15 * even
    if count >= 960:  # no row and no column of the three images is left out
        assert taken.reshape(3 * 60, width).sum(axis=0).min() > 0
        assert taken.reshape(3 * 60, width).sum(axis=1).min() > 0


def test_max_points_takes_the_same_ones_each_time():
    np.testing.assert_array_equal(choose_boxes(max_points=100).pixels, choose_boxes(max_points=100).pixels)
    every = choose_boxes()
    np.testing.assert_array_equal(choose_boxes(max_points=len(every.pixels)).pixels, every.pixels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_confidence": np.nan}, "min_confidence nan is not a finite number: give one, or None."),
        ({"confidence_percentile": -1}, "confidence_percentile -1 is not within 0..100: give a share."),
        ({"confidence_percentile": 100.5}, "confidence_percentile 100.5 is not within 0..100"),
        ({"confidence_percentile": np.nan}, "confidence_percentile nan is not within 0..100"),
        ({"edge_threshold": 0}, "edge_threshold 0 is not a finite number above 0: give one, or None."),
        ({"voxel_size": -0.1}, "voxel_size -0.1 is not a finite number above 0"),
        ({"voxel_size": np.inf}, "voxel_size inf is not a finite number above 0"),
        ({"max_sky": np.nan}, "max_sky nan is not a finite number above 0"),
        ({"max_points": 0}, "max_points 0 is not a whole number above 0: give one, or None."),
        ({"max_points": 1.5}, "max_points 1.5 is not a whole number above 0"),
    ],
)
def test_rules_are_checked(options, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        PointFilter(**options)
