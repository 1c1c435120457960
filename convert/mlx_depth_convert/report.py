"""What a comparison of two networks found, and how it is written down."""

import dataclasses
from dataclasses import dataclass
from typing import Any

FINAL = "depth"


@dataclass(frozen=True)
class Gate:
    """How far a stage may be from its reference."""

    relative: float | None  # largest error over largest value; None: not judged
    correlation: float
    factor: float | None = None  # the final depth's best factor, away from 1: what correlation does not see


@dataclass(frozen=True)
class StageError:
    """Error of one stage, the worst over all images."""

    stage: str
    shape: tuple[int, ...]
    max_abs: float
    mean_abs: float
    relative: float  # max_abs over the reference's largest absolute value
    correlation: float
    factor: float  # by which the reference comes closest, in least squares
    worst: tuple[int, ...]  # index of max_abs
    image: str  # where the relative error is largest

    def passes(self, gate: Gate) -> bool:
        """Whether the stage is within the gate."""
        near = gate.relative is None or self.relative <= gate.relative
        scaled = self.stage == FINAL and gate.factor is not None and not abs(self.factor - 1) <= gate.factor
        return near and not scaled and self.correlation >= gate.correlation


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

    @property
    def passed(self) -> bool:
        """Whether all stages are within the gate."""
        return self.first_drift is None

    def as_json(self) -> dict[str, Any]:
        """For ``json.dumps``."""
        return {**dataclasses.asdict(self), "passed": self.passed}

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
        if self.passed:
            return [*lines, "passed"]
        place = f", first layer past it: {self.first_module}" if self.first_module else ""
        return [*lines, f"FAILED: first stage past the gate: {self.first_drift}{place}"]
