"""How far one array is from another, and how far it may be: the one measure of all comparisons."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Wide = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """How far values are from their reference."""

    max_abs: float
    mean_abs: float
    relative: float  # max_abs over the reference's largest absolute value
    correlation: float
    factor: float  # by which the reference comes closest, in least squares
    worst: tuple[int, ...]  # index of max_abs


@dataclass(frozen=True)
class Gate:
    """How far values may be from their reference. A limit that is None is not judged."""

    relative: float | None  # largest error over largest value
    correlation: float
    factor: float | None = None  # how far the best factor may be from 1: correlation does not see a factor

    def faults(self, difference: Difference) -> list[str]:
        """What the gate refuses, in words; NaN is refused."""
        found = []
        if self.relative is not None and not difference.relative <= self.relative:
            found.append(f"the error is {difference.relative:.2g}, above {self.relative:g}")
        if not difference.correlation >= self.correlation:
            found.append(f"the correlation is {difference.correlation:.6f}, below {self.correlation:g}")
        if self.factor is not None and not abs(difference.factor - 1) <= self.factor:
            found.append(f"the values are off by a factor of {difference.factor:.4g}, beyond 1 ± {self.factor:g}")
        return found


def measure(ours: npt.NDArray[np.floating], reference: npt.NDArray[np.floating]) -> Difference:
    """Compare two arrays of the same shape, in float64.

    Args:
        ours: Any shape and unit.
        reference: The same.
    Returns:
        The figures. Values that are not finite give an error of NaN or infinity and a correlation of 0.
    """
    a, b = ours.astype(np.float64), reference.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite shows in the figures
        difference = np.abs(a - b)
        worst = np.unravel_index(int(np.argmax(np.where(np.isnan(difference), np.inf, difference))), a.shape)
        largest, scale = float(difference[worst]), float(np.abs(b).max())
        return Difference(
            max_abs=largest,
            mean_abs=float(difference.mean()),
            relative=float(np.divide(largest, scale)) if scale else float(largest > 0),
            correlation=correlation(a, b),
            factor=_factor(a, b),
            worst=tuple(int(index) for index in worst),
        )


def correlation(a: Wide, b: Wide) -> float:
    """Pearson's over all values; two constant arrays correlate, one with a varying one or what is not finite never."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 0.0
    a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b / norm) if norm else float(np.array_equal(a, b))


def _factor(a: Wide, b: Wide) -> float:
    """The factor of ``b`` that comes closest to ``a``; NaN where ``b`` is zero or a value is not finite."""
    power = float((b * b).sum())
    return float((a * b).sum() / power) if power and np.isfinite(power) else float("nan")
