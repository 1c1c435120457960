"""How far a package's outputs are from the model's, and how far they may be."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_depth.models.depth_anything_3.metric import LEAST_SKY
from mlx_depth_convert.coreml.names import COLORS, DEPTH, NORMALS, SKY
from mlx_depth_convert.difference import Difference, Gate, measure

# By name: depth (1, 1, H, W), extras (1, C, H, W) or (1,), perhaps colors (1, 3, H, W)
Outputs = Mapping[str, npt.NDArray[np.float32]]

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
        extras: Difference of each output beside depth and colors; normals are judged by their mean error.
        absent: Those extras that the picture does not show, as sky in a room: judged by their error as a share of 1.
        numbers: Those extras that are one for all pixels, and so correlate with nothing: judged by their error.
    """

    depth: Difference
    color_error: float | None = None
    extras: Mapping[str, Difference] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """Largest absolute difference over the largest absolute depth."""
        return self.depth.relative

    @property
    def correlation(self) -> float:
        """Pearson's, of the depth."""
        return self.depth.correlation

    def __str__(self) -> str:
        texts = [_text(self.depth)]
        texts += [self._extra_text(name, found) for name, found in self.extras.items()]
        return "  ".join(texts if self.color_error is None else [*texts, f"colors {self.color_error:.2f} of 255"])

    def _error(self, name: str, found: Difference) -> float:
        """What is judged of an extra; of normals the mean, for the direction of a vector near 0 is noise."""
        if name in self.absent:
            return found.max_abs
        return found.mean_abs if name == NORMALS else found.relative

    def _extra_text(self, name: str, found: Difference) -> str:
        if name in self.absent:
            return f"{name} error {found.max_abs:.2e}, none in the picture"
        text = f"{name} {'mean ' if name == NORMALS else ''}error {self._error(name, found):.2e}"
        return text if name in self.numbers else f"{text}  correlation {found.correlation:.8f}"

    def as_json(self) -> dict[str, Any]:
        """For ``json.dumps``."""
        extras = {
            name: {
                "error": self._error(name, found),
                "correlation": None if name in self.numbers else found.correlation,
                "absent": name in self.absent,
            }
            for name, found in self.extras.items()
        }
        return {
            "error": self.error,
            "correlation": self.correlation,
            "color_error": self.color_error,
            "extras": extras,
        }

    def faults(self, gate: Gate) -> list[str]:
        """What the gate refuses, in words; NaN is refused."""
        found = gate.faults(self.depth)
        for name, extra in self.extras.items():
            judged = replace(extra, relative=self._error(name, extra))
            alone = name in self.absent or name in self.numbers  # nothing to correlate with
            limits = replace(gate, correlation=-1.0) if alone else gate
            found += [f"{name}: {fault}" for fault in limits.faults(judged)]
        if self.color_error is not None and not self.color_error <= MAX_COLOR_ERROR:
            found.append(f"the colors are {self.color_error:.2g} of 255 off, above {MAX_COLOR_ERROR:g}")
        return found


def compare(outputs: Outputs, expected: Outputs) -> Agreement:
    """Measure outputs against those that they should be; all but the depth only where both have them."""
    differences = {
        name: measure(outputs[name].ravel(), expected[name].ravel())  # a device may leave the leading axes out
        for name in expected
        if name == DEPTH or (name in outputs and name != COLORS)
    }
    painted = COLORS in outputs and COLORS in expected
    color_error = float(np.abs(outputs[COLORS] - expected[COLORS]).mean()) if painted else None
    no_sky = SKY in expected and float(expected[SKY].max()) < LEAST_SKY
    depth = differences.pop(DEPTH)
    numbers = tuple(name for name in differences if expected[name].size == 1)
    return Agreement(depth, color_error, differences, (SKY,) if no_sky else (), numbers)


def _text(found: Difference) -> str:
    return f"error {found.relative:.2e}  correlation {found.correlation:.8f}"
