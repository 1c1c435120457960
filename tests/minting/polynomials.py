"""Fit the polynomials of ``mlx_depth/linux_cpu/kernels.py``: ``python tests/minting/polynomials.py [--check]``.

Prints coefficients, rounded to float32, and their largest errors, which the comments beside the constants state.
``--check`` fits nothing and prints the errors of the constants as they are.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.polynomial.polynomial import polyval

from mlx_depth.linux_cpu import kernels

ROUNDS = 300  # of reweighting; the largest error then shrinks by less than a hundredth

Function = Callable[[np.ndarray], np.ndarray]


class Problem(NamedTuple):
    """A function, and what an error of its polynomial weighs."""

    target: Function
    weight: Function
    error: Callable[[np.ndarray, np.ndarray], np.ndarray]  # of the polynomial's values, behind their arguments
    degree: int
    fitted: np.ndarray  # arguments
    checked: np.ndarray


def power(f: np.ndarray) -> np.ndarray:
    return 2.0**23 * (np.exp2(f + 0.5) - 1)


def power_weight(f: np.ndarray) -> np.ndarray:
    """A relative error of the power."""
    return 1 / (2.0**23 * np.exp2(f + 0.5))


def power_error(f: np.ndarray, value: np.ndarray) -> np.ndarray:
    return power_weight(f) * (value - power(f))


def normal_tail(a: np.ndarray) -> np.ndarray:
    """Φ(-a) of the normal distribution."""
    return np.array([0.5 * math.erfc(value / math.sqrt(2)) for value in a])


def tail(a: np.ndarray) -> np.ndarray:
    return np.log2(normal_tail(a)) - 0.5


def tail_weight(a: np.ndarray) -> np.ndarray:
    """An error of a * Φ(-a), for small errors of the exponent."""
    return math.log(2) * a * normal_tail(a)


def tail_error(a: np.ndarray, value: np.ndarray) -> np.ndarray:
    return a * (np.exp2(value + 0.5) - normal_tail(a))


LARGE = np.geomspace(6.5, 1e6, 1000)  # the tail is not fitted there, and the polynomial has to keep falling
PROBLEMS = {
    "_POWER": Problem(
        power, power_weight, power_error, 5, np.linspace(-0.5, 0.5, 2001), checked=np.linspace(-0.5, 0.5, 100_001)
    ),
    "_TAIL": Problem(
        tail,
        tail_weight,
        tail_error,
        8,
        np.linspace(0, 6.5, 2001),
        checked=np.concatenate([np.linspace(0, 6.5, 100_001), LARGE]),
    ),
}


def fit(problem: Problem) -> tuple[float, ...]:
    """Coefficients, lowest first. Each in turn is rounded, and those above it make up for what that costs."""
    x = problem.fitted
    rest, weight = problem.target(x), problem.weight(x)
    rounded: list[float] = []
    for lowest in range(problem.degree + 1):
        powers = x[:, None] ** np.arange(lowest, problem.degree + 1)
        rounded.append(float(np.float32(minimax(powers, rest, weight)[0])))
        rest = rest - rounded[-1] * x**lowest
    return tuple(rounded)


def minimax(columns: np.ndarray, target: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The sum of columns whose largest weighted error is smallest: least squares, reweighted as Lawson does (1961)."""
    scale = np.abs(columns).max(axis=0)
    share = np.ones(len(target))
    best, least = np.zeros(len(scale)), math.inf
    for _ in range(ROUNDS):
        row = np.sqrt(share) * weight
        found = np.linalg.lstsq(columns / scale * row[:, None], target * row, rcond=None)[0]
        error = np.abs(weight * (columns / scale @ found - target))
        if error.max() < least:
            best, least = found / scale, error.max()
        share = share * error
        share /= share.sum()
    return best


def largest_error(problem: Problem, coefficients: Sequence[float]) -> float:
    return float(np.abs(problem.error(problem.checked, polyval(problem.checked, coefficients))).max())


def main(arguments: Sequence[str]) -> None:
    check = list(arguments) == ["--check"]
    for name, problem in PROBLEMS.items():
        coefficients = getattr(kernels, name) if check else fit(problem)
        error = largest_error(problem, coefficients)
        print(json.dumps({"name": name, "error": error, "coefficients": coefficients}))


if __name__ == "__main__":
    main(sys.argv[1:])
