import itertools
import tracemalloc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import boxes, render

from mlx_depth.errors import OptionError
from mlx_depth.geometry import joining
from mlx_depth.geometry.alignment import Similarity, aligned, umeyama
from mlx_depth.geometry.joining import MIN_POINTS, Window, join, plan_windows

GATE = 1e-3
COUNT, LENGTH, OVERLAP = 14, 6, 2
FIELDS = ("depth", "intrinsics", "extrinsics", "confidence")


def rotation(random: np.random.Generator) -> np.ndarray:
    Q, R = np.linalg.qr(random.normal(size=(3, 3)))
    Q = Q * np.sign(np.diag(R))
    return Q * np.linalg.det(Q)


def similarity(random: np.random.Generator) -> Similarity:
    return Similarity(rotation(random), random.normal(0, 3, 3), float(np.exp(random.normal(0, 0.7))))


def moves(random: np.random.Generator) -> Iterator[Similarity]:
    """Where windows are: the first in the world of the scene, others anywhere."""
    yield Similarity(np.eye(3), np.zeros(3), 1.0)
    while True:
        yield similarity(random)


def cut(scene, plan: list[range], seed: int, *, noise=0.0, outliers=0.0) -> Iterator[Window]:
    """Windows of a scene as a network would give them: each in a world and unit of its own, with its own errors.

    A depth is off by a share of itself, of the size ``noise`` over its confidence; of ``outliers`` by anything, and
    their confidence tells nothing.
    """
    random = np.random.default_rng(seed)
    for views, move in zip(plan, moves(np.random.default_rng(seed)), strict=False):
        part = slice(views.start, views.stop)
        sky = scene.sky[part] > 0
        confidence = 1 + np.exp(random.normal(0, 1, sky.shape))
        depth = scene.depth[part] * (1 + random.normal(0, noise, sky.shape) / confidence)
        wrong = random.random(sky.shape) < outliers
        depth = np.where(wrong, depth * random.uniform(0.3, 3, sky.shape), depth)
        depth = np.where(sky, 40 * random.uniform(0.5, 2), move.scale * depth).astype(np.float32)
        confidence = np.where(sky, 0, confidence).astype(np.float32)
        yield Window(depth, scene.intrinsics[part], aligned(scene.extrinsics[part], move), confidence)


@pytest.fixture(scope="module")
def scene():
    return boxes(COUNT)


@pytest.fixture(scope="module")
def large_scene():
    return boxes(10, (144, 192))


def worst(scene, views) -> float:
    """Largest error of the joined cameras, in units of the scene, and of the depth's scale."""
    extrinsics = np.stack([view.extrinsics for view in views])
    assert len(extrinsics) == len(scene.depth)
    scales = [
        abs(float(np.median(view.depth[sky == 0] / truth[sky == 0])) - 1)
        for view, truth, sky in zip(views, scene.depth, scene.sky, strict=True)
    ]
    return max(float(np.abs(extrinsics - scene.extrinsics).max()), *scales)


# Plans


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(2, 40), st.data())
def test_plans(count, size, data):
    overlap = data.draw(st.integers(1, size - 1))
    plan = plan_windows(count, size, overlap)
    assert plan[0].start == 0
    assert plan[-1].stop == count
    assert all(before.stop - after.start == overlap for before, after in itertools.pairwise(plan))
    lengths = [len(window) for window in plan]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert len(plan) == 1 or len(plan) - 1 < (count - overlap) / (size - overlap)  # one fewer is not enough
    assert len(plan) == 1 or min(lengths) > overlap


def test_a_plan():
    assert plan_windows(10, 4, 2) == [range(0, 4), range(2, 6), range(4, 8), range(6, 10)]
    assert plan_windows(9, 5, 1) == [range(0, 5), range(4, 9)]
    assert plan_windows(3, 8, 2) == [range(3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 2), r"0 views make no sequence: give at least one\."),
        ((9, 4, 4), r"windows of 4 views cannot overlap by 4: give 1 up to 3\."),
        ((9, 4, 0), "windows of 4 views cannot overlap by 0"),
    ],
)
def test_bad_plans(arguments, message):
    with pytest.raises(OptionError, match=message):
        plan_windows(*arguments)


# Joins


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_known_similarities_come_back(seed):
    scene = boxes(COUNT)
    views = list(join(cut(scene, plan_windows(COUNT, LENGTH, OVERLAP), seed), OVERLAP))
    assert worst(scene, views) < 1e-5


def error(found: Similarity, move: Similarity) -> float:
    """Largest of the errors of scale, rotation and translation, of a similarity that should undo ``move``."""
    turned = np.abs(found.rotation @ move.rotation - np.eye(3)).max()
    return max(abs(found.scale * move.scale - 1), turned, np.abs(found.apply(move.translation)).max())


@pytest.mark.parametrize("seed", range(3))
def test_noise_and_outliers(large_scene, seed):
    plan = plan_windows(10, LENGTH, OVERLAP)
    *_, view = join(cut(large_scene, plan, seed, noise=0.01, outliers=0.2), OVERLAP)
    _, move = itertools.islice(moves(np.random.default_rng(seed)), 2)
    assert error(view.similarity, move) < GATE


def test_without_reweighting_outliers_fail_the_gate(large_scene, monkeypatch):
    monkeypatch.setattr(joining, "ROUNDS", 1)
    monkeypatch.setattr(joining, "MAX_DISAGREEMENT", 1)
    plan = plan_windows(10, LENGTH, OVERLAP)
    *_, view = join(cut(large_scene, plan, 0, noise=0.01, outliers=0.2), OVERLAP)
    _, move = itertools.islice(moves(np.random.default_rng(0)), 2)
    assert error(view.similarity, move) > 10 * GATE


def test_as_good_as_knowing_the_outliers(scene):
    """Few pixels and much noise: the mean error is that of a fit that knows how far off each point is on average."""
    ours, best = [], []
    plan = plan_windows(COUNT, LENGTH, OVERLAP)[:2]
    shared = slice(plan[1].start, plan[0].stop)
    for seed in range(12):
        first, second = cut(scene, plan, seed, noise=0.02, outliers=0.2)
        _, move = itertools.islice(moves(np.random.default_rng(seed)), 2)
        *_, view = join([first, second], OVERLAP)
        ours.append(error(view.similarity, move))
        held = Window(*(getattr(first, name)[-OVERLAP:] for name in FIELDS))
        truth, sure = scene.depth[shared], (held.confidence, second.confidence[:OVERLAP])
        off = [np.abs(held.depth / truth - 1), np.abs(second.depth[:OVERLAP] / move.scale / truth - 1)]
        known = np.flatnonzero((off[0] * sure[0] < 0.08) & (off[1] * sure[1] < 0.08) & (scene.sky[shared] == 0))
        weights = 1 / (sum(c.ravel()[known] ** -2.0 for c in sure) * truth.ravel()[known] ** 2)
        points = joining._unproject(held, known), joining._unproject(second, known)
        best.append(error(umeyama(*points, weights=weights, symmetric=True), move))
    assert np.mean(ours) < 1.25 * np.mean(best)


def test_one_overlapping_view_is_enough(scene):
    windows = cut(scene, plan_windows(COUNT, 4, 1), 1)
    assert worst(scene, list(join(windows, 1))) < 1e-5


def test_something_that_moves(scene):
    """A fifth of each overlapping image is somewhere else in the next window, all in the same way."""
    windows = list(cut(scene, plan_windows(COUNT, LENGTH, OVERLAP), 2))
    for window in windows[1:]:
        window.depth[:OVERLAP, :, : window.depth.shape[2] // 5] *= 0.8
    extrinsics = np.stack([view.extrinsics for view in join(windows, OVERLAP)])
    np.testing.assert_allclose(extrinsics, scene.extrinsics, atol=1e-5)


def test_what_a_view_keeps(scene):
    plan = plan_windows(COUNT, LENGTH, OVERLAP)
    windows = list(cut(scene, plan, 3))
    views = list(join(windows, OVERLAP))
    for index, view in enumerate(views):
        number = next(number for number, window in enumerate(plan) if index in window)  # the earlier of two
        inside = index - plan[number].start
        window = windows[number]
        assert np.array_equal(view.intrinsics, window.intrinsics[inside])
        assert np.array_equal(view.confidence, window.confidence[inside])
        assert view.depth.dtype == np.float32
        np.testing.assert_allclose(view.depth, window.depth[inside] * view.similarity.scale, rtol=1e-6)
        np.testing.assert_allclose(view.extrinsics, aligned(window.extrinsics[inside], view.similarity), atol=1e-12)
        assert not np.shares_memory(view.depth, window.depth)
    assert np.array_equal(np.stack([view.depth for view in views[:LENGTH]]), windows[0].depth)  # bit by bit
    assert np.array_equal(np.stack([view.extrinsics for view in views[:LENGTH]]), windows[0].extrinsics)


def test_one_window_may_be_shorter_than_the_overlap(scene):
    window = Window(scene.depth[:1], scene.intrinsics[:1], scene.extrinsics[:1])
    (view,) = join([window], 5)
    assert view.confidence is None
    assert np.array_equal(view.depth, scene.depth[0])
    assert list(join([], 5)) == []


def test_no_confidence_and_other_intrinsics():
    """Holes are left out; a window may have its own idea of the lens."""
    scene = boxes(8)
    plan = plan_windows(8, 5, 2)
    whole = list(cut(scene, plan, 4))
    windows = [Window(np.where(w.confidence > 0, w.depth, np.nan), w.intrinsics, w.extrinsics) for w in whole]
    windows[1].depth[:, 0] = -1
    windows[1].depth[:, 1] = np.inf
    views = list(join(windows, 2))
    np.testing.assert_allclose([view.extrinsics for view in views], scene.extrinsics, atol=1e-5)
    zoomed = scene.intrinsics * np.array([1.25, 1.25, 1])[:, None]
    other = render(zoomed, scene.extrinsics)
    np.testing.assert_allclose([view.extrinsics for view in join(cut(other, plan, 5), 2)], scene.extrinsics, atol=1e-5)


# Memory


def random_windows(count: int, *, keep: bool = False) -> Iterator[Window]:
    """Views at random, each the same in both of its windows."""
    size = (48, 64)
    alive: list[weakref.ref[Window]] = []
    intrinsics = np.array([[100.0, 0, 31], [0, 110, 23], [0, 0, 1]])
    for views in plan_windows(count, 8, 2):
        assert keep or not any(window() for window in alive), "the window before is still held"
        depth = np.empty((len(views), *size), np.float32)
        extrinsics = np.empty((len(views), 3, 4))
        for place, view in enumerate(views):
            random = np.random.default_rng(view)
            depth[place] = random.uniform(1, 5, size)
            extrinsics[place] = np.column_stack([rotation(random), random.normal(size=3)])
        moved = similarity(np.random.default_rng(1000 + views.start))
        window = Window(
            (depth * moved.scale).astype(np.float32),
            np.tile(intrinsics, (len(views), 1, 1)),
            aligned(extrinsics, moved),
            np.ones_like(depth),
        )
        alive.append(weakref.ref(window))
        yield window
        del window


def peak_of(count: int) -> tuple[int, int]:
    tracemalloc.start()
    try:
        views = sum(1 for _ in join(random_windows(count), 2))
        return views, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_flat():
    few, at_few = peak_of(50)
    many, at_many = peak_of(200)
    assert (few, many) == (50, 200)
    assert at_many < 1.05 * at_few


def test_long_chains_hardly_drift():
    views = list(join(random_windows(200), 2))
    world = similarity(np.random.default_rng(1000))
    for index in (0, 100, 199):
        random = np.random.default_rng(index)
        random.uniform(1, 5, (48, 64))
        truth = aligned(np.column_stack([rotation(random), random.normal(size=3)]), world)
        np.testing.assert_allclose(views[index].extrinsics, truth, atol=1e-5)


# Errors


def windows_of(scene) -> list[Window]:
    return list(cut(scene, plan_windows(COUNT, LENGTH, OVERLAP), 6))


def changed(window: Window, **values) -> Window:
    fields = {name: getattr(window, name) for name in FIELDS}
    return Window(**(fields | values))


def test_too_few_confident_points(scene):
    windows = windows_of(scene)
    sure = np.zeros_like(windows[1].confidence)
    sure[0, -1, : MIN_POINTS - 60] = 1
    message = (
        r"window 1 shares only 40 points with the one before that both are sure of \(confidence 1 and up\), and 100 "
        r"are needed: overlap by more views, or lower min_confidence\."
    )
    with pytest.raises(OptionError, match=message):
        list(join([windows[0], changed(windows[1], confidence=sure)], OVERLAP))
    with pytest.raises(OptionError, match=r"window 1 shares only 0 points .* \(confidence 0 and up\)"):
        list(join([windows[0], changed(windows[1], confidence=0 * sure)], OVERLAP))
    with pytest.raises(OptionError, match=r"window 1 shares only 0 points .* \(confidence 1e\+03 and up\)"):
        list(join(windows, OVERLAP, min_confidence=1000))
    with pytest.raises(OptionError, match="shares only 0 points"):
        list(join([windows[0], changed(windows[1], depth=np.nan * windows[1].depth)], OVERLAP))


def test_views_come_before_the_error(scene):
    windows = windows_of(scene)
    joined = join([windows[0], changed(windows[1], confidence=0 * windows[1].confidence)], OVERLAP)
    assert [next(joined).depth.shape for _ in range(LENGTH)] == [scene.size] * LENGTH
    with pytest.raises(OptionError, match="window 1 shares"):
        next(joined)


def test_windows_that_do_not_follow():
    windows = list(random_windows(26, keep=True))
    message = r"window 1 and the one before disagree by \d+% .* its first 2 views are the last of the one before"
    with pytest.raises(OptionError, match=message):
        list(join([windows[0], windows[2]], 2))
    with pytest.raises(OptionError, match=message):
        list(join([windows[1], windows[0]], 2))


def test_points_on_a_line(scene):
    """One row of a wall."""
    confidence = np.zeros((3, 4, 300), np.float32)
    confidence[:, 2] = 1
    pose = np.tile(np.eye(3, 4), (3, 1, 1))
    window = Window(np.full((3, 4, 300), 2.0), np.tile(np.diag([100.0, 100, 1]), (3, 1, 1)), pose, confidence)
    with pytest.raises(OptionError, match="window 1 cannot be joined to the one before: the points lie on a line"):
        list(join([window, window], 1))


def test_windows_that_do_not_fit(scene):
    windows = windows_of(scene)
    short = Window(*(getattr(windows[1], name)[:2] for name in FIELDS))
    with pytest.raises(OptionError, match="window 1 has 2 views, and 2 of them overlap: give it at least one more"):
        list(join([windows[0], short], 2))
    with pytest.raises(OptionError, match="window 0 has 2 views, fewer than the overlap of 3: make it longer"):
        list(join([short, windows[2]], 3))
    smaller = changed(windows[1], depth=windows[1].depth[:, 1:], confidence=None)
    with pytest.raises(
        OptionError, match=r"window 1 has depth of size \(47, 64\), .* of \(48, 64\): predict all at one"
    ):
        list(join([windows[0], smaller], 2))
    with pytest.raises(OptionError, match="overlap by 0 views cannot be joined: give 1 or more"):
        join(windows, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": [[[1.0]]]}, "depth is no numpy array but list: give an array"),
        ({"extrinsics": None}, "extrinsics is no numpy array but NoneType"),
        ({"depth": np.ones((5, 6))}, r"depth of shape \(5, 6\) and type float64 is none: give \(V, H, W\) floats"),
        ({"depth": np.ones((5, 6, 7), int)}, "type int64 is none"),
        ({"depth": np.ones((5, 6, 7))}, r"5 depth maps have intrinsics of shape \(6, 3, 3\) and .*: give \(5, 3, 3\)"),
        ({"extrinsics": np.ones((6, 3, 4))}, "extrinsics hold a matrix that is no rotation"),
        ({"intrinsics": np.zeros((6, 3, 3))}, "intrinsics lack finite focal lengths above 0 or a last row of 0 0 1"),
        ({"intrinsics": np.full((6, 3, 3), np.nan)}, "intrinsics lack finite focal lengths"),
        ({"confidence": np.ones((6, 2, 2))}, r"a confidence of shape \(6, 2, 2\) does not fit depth of shape"),
    ],
)
def test_bad_windows(scene, values, message):
    with pytest.raises(OptionError, match=message):
        changed(windows_of(scene)[0], **values)
