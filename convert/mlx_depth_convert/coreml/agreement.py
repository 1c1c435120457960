"""How far two sets of outputs are apart, and how far they may be."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlx_depth_convert.coreml.emit_dinov2_dpt import COLORS, DEPTH

Outputs = Mapping[str, npt.NDArray[np.float32]]  # by name: depth (1, 1, H, W), perhaps colors (1, 3, H, W)

MAX_COLOR_ERROR = 1.0  # mean, of 255


@dataclass(frozen=True)
class Gate:
    """The least that a package has to reach; the error is relative to the largest depth."""

    error: float
    correlation: float


# Precision or compression → gate. Correlation alone would miss a wrong scale, as of metres.
GATES = {
    "float32": Gate(error=1e-5, correlation=0.999999),
    "float16": Gate(error=0.02, correlation=0.9999),
    "int8": Gate(error=0.1, correlation=0.999),
    "palette8": Gate(error=0.1, correlation=0.999),
    "palette6": Gate(error=0.2, correlation=0.99),
}


@dataclass(frozen=True)
class Agreement:
    """How far depth is from the model's.

    Attributes:
        error: Largest absolute difference over the largest absolute depth.
        correlation: Pearson's.
        color_error: Mean absolute difference of the colours from those of the package's own depth, of 255; None without
            a colour map.
    """

    error: float
    correlation: float
    color_error: float | None = None

    def __str__(self) -> str:
        text = f"error {self.error:.2e}  correlation {self.correlation:.8f}"
        return text if self.color_error is None else f"{text}  colours {self.color_error:.2f} of 255"

    def faults(self, gate: Gate) -> list[str]:
        """What the gate refuses, in words; NaN is refused."""
        found = []
        if not self.error <= gate.error:
            found.append(f"the error is {self.error:.2g}, above {gate.error:g}")
        if not self.correlation >= gate.correlation:
            found.append(f"the correlation is {self.correlation:.6f}, below {gate.correlation:g}")
        if self.color_error is not None and not self.color_error <= MAX_COLOR_ERROR:
            found.append(f"the colours are {self.color_error:.2g} of 255 off, above {MAX_COLOR_ERROR:g}")
        return found


def compare(outputs: Outputs, expected: Outputs) -> Agreement:
    """Measure outputs against those that they should be; colours only where both have them."""
    ours, theirs = (each[DEPTH].astype(np.float64).ravel() for each in (outputs, expected))
    with np.errstate(invalid="ignore", divide="ignore"):  # constant or infinite depth gives NaN, which no gate passes
        error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        correlation = float(np.corrcoef(ours, theirs)[0, 1])
    if COLORS not in outputs or COLORS not in expected:
        return Agreement(error, correlation)
    return Agreement(error, correlation, float(np.abs(outputs[COLORS] - expected[COLORS]).mean()))
