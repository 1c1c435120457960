"""How far a package's outputs are from the model's, and how far they may be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_depth_convert.coreml.names import COLORS, DEPTH
from mlx_depth_convert.difference import Difference, Gate, measure

Outputs = Mapping[str, npt.NDArray[np.float32]]  # by name: depth (1, 1, H, W), perhaps colors (1, 3, H, W)

MAX_COLOR_ERROR = 1.0  # mean, of 255

# Precision or compression → gate. Correlation alone would miss a wrong scale, as of metres.
GATES = {
    "float32": Gate(relative=1e-5, correlation=0.999999),
    "float16": Gate(relative=0.02, correlation=0.9999),
    "int8": Gate(relative=0.1, correlation=0.999),
    "palette8": Gate(relative=0.1, correlation=0.999),
    "palette6": Gate(relative=0.2, correlation=0.99),
}


@dataclass(frozen=True)
class Agreement:
    """How far the outputs are from the model's.

    Attributes:
        depth: Difference of the depth.
        color_error: Mean absolute difference of the colors from those of the package's own depth, of 255; None without
            a color map.
    """

    depth: Difference
    color_error: float | None = None

    @property
    def error(self) -> float:
        """Largest absolute difference over the largest absolute depth."""
        return self.depth.relative

    @property
    def correlation(self) -> float:
        """Pearson's, of the depth."""
        return self.depth.correlation

    def __str__(self) -> str:
        text = f"error {self.error:.2e}  correlation {self.correlation:.8f}"
        return text if self.color_error is None else f"{text}  colors {self.color_error:.2f} of 255"

    def as_json(self) -> dict[str, Any]:
        """For ``json.dumps``."""
        return {"error": self.error, "correlation": self.correlation, "color_error": self.color_error}

    def faults(self, gate: Gate) -> list[str]:
        """What the gate refuses, in words; NaN is refused."""
        found = gate.faults(self.depth)
        if self.color_error is not None and not self.color_error <= MAX_COLOR_ERROR:
            found.append(f"the colors are {self.color_error:.2g} of 255 off, above {MAX_COLOR_ERROR:g}")
        return found


def compare(outputs: Outputs, expected: Outputs) -> Agreement:
    """Measure outputs against those that they should be; colors only where both have them."""
    depth = measure(outputs[DEPTH].ravel(), expected[DEPTH].ravel())  # a device may leave the leading axes out
    if COLORS not in outputs or COLORS not in expected:
        return Agreement(depth)
    return Agreement(depth, float(np.abs(outputs[COLORS] - expected[COLORS]).mean()))
