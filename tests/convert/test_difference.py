"""The measure of all comparisons, and the gates that judge it."""

import dataclasses

import numpy as np
import pytest
from mlx_depth_convert.difference import Gate, measure
from support import relative_error, seeded

THEIRS = np.abs(seeded("theirs", (3, 4, 5))) + 1


def test_figures() -> None:
    ours = THEIRS + seeded("noise", THEIRS.shape, 0.01)
    ours[1, 2, 3] += 1
    found = measure(ours, THEIRS)
    difference = np.abs(ours.astype(np.float64) - THEIRS)
    assert (found.max_abs, found.worst) == (difference.max(), (1, 2, 3))
    assert found.mean_abs == pytest.approx(difference.mean())
    assert found.relative == pytest.approx(relative_error(ours, THEIRS))
    assert found.correlation == pytest.approx(np.corrcoef(ours.ravel(), THEIRS.ravel())[0, 1])
    assert measure(1.25 * THEIRS, THEIRS).factor == pytest.approx(1.25)


def test_zeros_and_constants() -> None:
    zeros = np.zeros((2, 2))
    assert (measure(zeros, zeros).relative, measure(zeros, zeros).correlation) == (0, 1)
    assert (measure(zeros + 1, zeros).relative, np.isnan(measure(zeros + 1, zeros).factor)) == (1, True)
    assert measure(np.eye(2), zeros + 1).correlation == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_on_either_side(bad: float) -> None:
    broken = THEIRS.copy()
    broken[0, 0, 1] = bad
    for ours, theirs in ((broken, THEIRS), (THEIRS, broken), (broken, broken)):
        found = measure(ours, theirs)
        assert found.worst == (0, 0, 1)
        assert len(Gate(1e3, 1e-9, 1e3).faults(found)) >= 2


def test_a_gate_says_what_it_refuses_and_judges_no_limit_that_is_none() -> None:
    found = dataclasses.replace(measure(THEIRS, THEIRS), relative=0.5, correlation=0.5, factor=1.5)
    assert Gate(0.1, 0.9, 0.1).faults(found) == [
        "the error is 0.5, above 0.1",
        "the correlation is 0.500000, below 0.9",
        "the values are off by a factor of 1.5, beyond 1 ± 0.1",
    ]
    assert Gate(None, 0.4).faults(found) == []
    assert Gate(0.5, 0.5, 0.5).faults(found) == []
