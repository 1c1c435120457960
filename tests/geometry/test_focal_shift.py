import math

import numpy as np
import pytest
from support import require

from mlx_depth.geometry.focal_shift import fit_focal_and_shift, fit_shift

SIZE = (24, 32)


def plane() -> np.ndarray:
    height, width = SIZE
    rows, columns = np.mgrid[:height, :width]
    diagonal = math.hypot(height, width)
    return np.stack([2 * columns + 1 - width, 2 * rows + 1 - height], axis=-1).reshape(-1, 2) / diagonal


def scene(seed: int, noise: float) -> tuple[np.ndarray, float, float]:
    """Points that a camera of a focal length sees, before a shift, float32."""
    random = np.random.RandomState(seed)
    focal, shift = random.uniform(0.5, 4), random.uniform(-0.5, 3)
    z = np.exp(random.randn(SIZE[0] * SIZE[1]) * 0.4) + shift + 0.6
    points = np.concatenate([plane() * z[:, None] / focal, (z - shift)[:, None]], axis=1)
    return (points + noise * random.randn(*points.shape)).astype(np.float32), focal, shift


@pytest.mark.parametrize("seed", range(5))
def test_exact_points_give_their_camera_back(seed: int) -> None:
    points, focal, shift = scene(seed, 0)
    assert fit_focal_and_shift(points, plane()) == pytest.approx((focal, shift), rel=1e-3)
    assert fit_shift(points, plane(), focal) == pytest.approx(shift, rel=1e-3)


def test_the_same_steps_as_the_reference() -> None:
    """Which ends before the minimum: the points here are so noisy that the minimum itself is elsewhere."""
    require("reference", "utils3d")
    reference = require("reference", "moge.utils.geometry_numpy")
    for seed in range(40):
        points, focal, _ = scene(seed, 0.1 * (seed % 5))
        expected_shift, expected_focal = reference.solve_optimal_focal_shift(plane(), points)
        found_focal, found_shift = fit_focal_and_shift(points, plane())
        assert found_focal == pytest.approx(expected_focal, rel=2e-6)
        assert found_shift == pytest.approx(expected_shift, rel=2e-6, abs=2e-6)
        expected = reference.solve_optimal_shift(plane(), points, focal)
        assert fit_shift(points, plane(), focal) == pytest.approx(expected, rel=2e-6, abs=2e-6)


def test_a_drift_is_seen() -> None:
    """With the plane a hundredth of a pixel aside, the test above would fail."""
    points, *_ = scene(0, 0.1)
    moved = plane() + np.array([0.01 / math.hypot(*SIZE), 0])
    assert fit_focal_and_shift(points, moved)[0] != pytest.approx(fit_focal_and_shift(points, plane())[0], rel=2e-6)


def test_too_few_points() -> None:
    for count in (0, 1):
        points, at = np.ones((count, 3), np.float32), np.ones((count, 2))
        assert fit_focal_and_shift(points, at) == (1.0, 0.0)
        assert fit_shift(points, at, 2.0) == 0.0


def test_a_point_repeated_tells_no_shift() -> None:
    points = np.full((9, 3), 2, np.float32)
    at = np.full((9, 2), 0.5)
    assert fit_focal_and_shift(points, at) == (0.5, 0.0)
    assert fit_shift(points, at, 0.25) == pytest.approx(-1)  # 0.25 · 2 / (2 − 1) = 0.5


def test_what_is_not_finite_gives_no_number() -> None:
    for bad in (np.nan, np.inf, 0.0):
        points = np.full((9, 3), bad, np.float32)
        assert not np.isfinite(fit_focal_and_shift(points, np.full((9, 2), 0.5))).all()
        assert not np.isfinite(fit_shift(points, np.full((9, 2), 0.5), 1.0))


def test_the_longest_search_ends() -> None:
    """The best shift is infinitely far: no camera sees points of one depth all at one place."""
    points = np.concatenate([np.random.RandomState(0).randn(50, 2), np.ones((50, 1))], axis=1)
    assert np.isfinite(fit_shift(points, np.zeros((50, 2)), 1.0))
