"""What a comparison of two networks found, and how it is written down."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from mlx_depth_convert.difference import Difference, Gate

FINAL = "depth"
MLX = "mlx"
FEW_NUMBERS = ("camera", "extrinsics", "intrinsics", "scale")  # of which correlation tells little


@dataclass(frozen=True)
class StageError(Difference):
    """Error of one stage, the worst over all images."""

    stage: str
    shape: tuple[int, ...]
    image: str  # where the relative error is largest

    def passes(self, gate: Gate) -> bool:
        """Whether the stage is within the gate.

        A factor is judged on the final depth alone. Cameras and the scale, which are few numbers, are judged by their
        largest error: where the gate sets no limit to it, by the error that brings the correlation of many down to its.
        """
        judged = gate if self.stage == FINAL else dataclasses.replace(gate, factor=None)
        if self.stage in FEW_NUMBERS:
            allowed = math.sqrt(2 * (1 - gate.correlation)) if gate.relative is None else gate.relative
            judged = Gate(allowed, -math.inf)
        return not judged.faults(self)


@dataclass(frozen=True)
class DepthError:
    """Error of the final depth of one image, as depth benchmarks measure it."""

    image: str
    input_size: tuple[int, int]
    abs_rel: float
    delta1: float  # share of pixels within a factor of 1.25
    correlation: float


@dataclass(frozen=True)
class Report:
    """The whole comparison."""

    model: str
    against: str
    precision: str  # of the model where the reference has another; it chooses the gate
    gate: Gate
    stages: tuple[StageError, ...]
    depths: tuple[DepthError, ...]
    first_drift: str | None  # first stage past the gate
    first_module: str | None  # first layer past the gate, where there is a drifting stage
    runner: str  # what ran the other side: MLX, or the name of a package
    proof: str | None = None  # the package that the family is proved against

    @property
    def passed(self) -> bool:
        """Whether all stages are within the gate."""
        return self.first_drift is None

    @property
    def meaning(self) -> str:
        """What was compared with what, and what that proves."""
        if self.runner != MLX:
            return (
                f"{self.model} in MLX was compared with {self.against}, on the same pixels: a pass proves that the "
                "network is ported right."
            )
        further = f" For that, run mlx-depth verify with --against {self.proof}." if self.proof is not None else ""
        return (
            f"{self.model} was compared with {self.against}, both in MLX, on the same pixels: a pass proves that the "
            f"weights are stored right, not that the network is ported right.{further}"
        )

    def as_json(self) -> dict[str, Any]:
        """For ``json.dumps``."""
        return {**dataclasses.asdict(self), "passed": self.passed, "meaning": self.meaning}

    def as_text(self) -> str:
        """Aligned columns for a terminal."""
        head, *rows = self._rows()
        widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
        return "\n".join([self._title(), "", *(line.rstrip() for line in lines), "", *self._summary()])

    def as_markdown(self) -> str:
        """The same as a page."""
        head, *rows = self._rows()
        table = [head, ["---"] * len(head), *rows]
        lines = ["| " + " | ".join(row) + " |" for row in table]
        return "\n".join([f"# {self._title()}", "", *lines, "", *(f"- {line}" for line in self._summary())]) + "\n"

    def _title(self) -> str:
        return f"{self.model} against {self.against}"

    def _rows(self) -> list[list[str]]:
        head = ["stage", "shape", "max abs", "mean abs", "relative", "correlation", "worst index", ""]
        return [head, *(self._row(stage) for stage in self.stages)]

    def _row(self, error: StageError) -> list[str]:
        return [
            error.stage,
            "×".join(map(str, error.shape)),
            *(f"{number:.2e}" for number in (error.max_abs, error.mean_abs, error.relative)),
            f"{error.correlation:.7f}",
            ",".join(map(str, error.worst)),
            "ok" if error.passes(self.gate) else "DRIFTS",
        ]

    def _summary(self) -> list[str]:
        limit = f"relative ≤ {self.gate.relative:g}, " if self.gate.relative is not None else ""
        lines = [
            f"{depth.image} at {depth.input_size[0]}×{depth.input_size[1]}: AbsRel {depth.abs_rel:.2e}, "
            f"δ<1.25 {depth.delta1:.4f}, correlation {depth.correlation:.7f}"
            for depth in self.depths
        ]
        factor = f", factor of the depth within 1 ± {self.gate.factor:g}" if self.gate.factor is not None else ""
        lines.append(f"gate ({self.precision}): {limit}correlation ≥ {self.gate.correlation:.6g}{factor}")
        lines.append(f"factor of the depth: {self.stages[-1].factor:.5f}")
        lines.append(self.meaning)
        if self.passed:
            return [*lines, "passed"]
        place = f", first layer past it: {self.first_module}" if self.first_module else ""
        return [*lines, f"FAILED: first stage past the gate: {self.first_drift}{place}"]
