"""What the check of a package found, and how it is written down."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_depth_convert.coreml.agreement import GATES, Agreement
from mlx_depth_convert.coreml.device import DeviceRun
from mlx_depth_convert.coreml.evaluate import Structure
from mlx_depth_convert.coreml.options import FLOAT16_LIMIT
from mlx_depth_convert.difference import Gate

MAX_RANK, MAX_SIDE = 4, 16384  # of a tensor on the Neural Engine


@dataclass(frozen=True)
class FunctionReport:
    """One function of a package.

    Attributes:
        name: The function's.
        size: ``(height, width)`` of its image, in pixels.
        float32: Agreement with all arithmetic in float32: graph and stored weights.
        float16: Agreement with every float16 result rounded; None for a float32 package.
        largest: Operation type → largest magnitude in float32 arithmetic, and the operation.
        structure: Operations, ranks and sides.
        interface_faults: What is wrong with the images that an app gives and gets, in words: their declarations, and
            depth that they cannot hold.
        devices: What Core ML itself did on each compute unit; empty off macOS.
    """

    name: str
    size: tuple[int, int]
    float32: Agreement
    float16: Agreement | None
    largest: dict[str, tuple[float, str]]
    structure: Structure
    interface_faults: tuple[str, ...] = ()
    devices: tuple[DeviceRun, ...] = ()

    def faults(self, precision: str, compress: str | None) -> list[str]:
        """What is wrong with it, in words."""
        where = "in float32 arithmetic" if self.float16 is None else "in simulated float16"
        found = [
            *self.interface_faults,
            *(f"{where} {fault}" for fault in self.final.faults(GATES[compress or precision])),
        ]
        found += self._float16_faults() if precision == "float16" else self._float32_faults()
        if self.structure.largest_rank > MAX_RANK:
            found.append(f"a tensor has rank {self.structure.largest_rank}, the Neural Engine takes {MAX_RANK}")
        if self.structure.largest_side > MAX_SIDE:
            found.append(f"a tensor has a side of {self.structure.largest_side}, the Neural Engine takes {MAX_SIDE}")
        device_gate = GATES[compress or "float16"]  # the depth image is float16 whatever the precision
        return found + [f"on {run.unit} {fault}" for run in self.devices for fault in run.faults(device_gate)]

    def _float32_faults(self) -> list[str]:
        return [f"{name} overflows" for peak, name in self.largest.values() if not math.isfinite(peak)]

    def _float16_faults(self) -> list[str]:
        overflowing = [f"{name} reaches {peak:.3g}" for peak, name in self.largest.values() if not peak < FLOAT16_LIMIT]
        wide = [f"{name} computes in float32" for name in self.structure.float32]
        return [f"{fault}, beyond float16" for fault in overflowing] + wide

    @property
    def final(self) -> Agreement:
        """Agreement in the arithmetic that the package asks for."""
        return self.float32 if self.float16 is None else self.float16

    def as_json(self) -> dict[str, Any]:
        """For ``json.dumps``."""
        agreements = {
            "float32": self.float32.as_json(),
            "float16": None if self.float16 is None else self.float16.as_json(),
        }
        return {**dataclasses.asdict(self), **agreements, "devices": [run.as_json() for run in self.devices]}

    def as_text(self) -> str:
        """For a terminal."""
        height, width = self.size
        structure = self.structure
        lines = [f"{self.name} {height}x{width}", f"  float32 arithmetic   {self.float32}"]
        if self.float16 is not None:
            lines.append(f"  simulated float16    {self.float16}")
        kept = f", and {len(structure.kept)} on purpose" if structure.kept else ""
        lines += [f"  Core ML {run.unit:<12} {run}" for run in self.devices]
        words = [f"{kind} {count}" for kind, count in structure.operations.items()]
        peaks = sorted(self.largest.items(), key=lambda item: -item[1][0])
        return "\n".join(
            [
                *lines,
                f"  operations           {sum(structure.operations.values())}: {', '.join(words)}",
                f"  in float32           {len(structure.float32)}{kept}",
                f"  tensors              rank at most {structure.largest_rank}, side at most {structure.largest_side}",
                f"  largest values       (float16 ends at {FLOAT16_LIMIT:g})",
                *(f"    {kind:<18} {peak:10.4g}  {where}" for kind, (peak, where) in peaks),
            ]
        )


@dataclass(frozen=True)
class PackageReport:
    """What ``check_package`` found."""

    path: Path
    model: str
    precision: str
    compress: str | None
    functions: tuple[FunctionReport, ...]

    @property
    def gate(self) -> Gate:
        return GATES[self.compress or self.precision]

    @property
    def faults(self) -> list[str]:
        """Every fault, with its function."""
        return [
            f"{function.name}: {fault}"
            for function in self.functions
            for fault in function.faults(self.precision, self.compress)
        ]

    @property
    def passed(self) -> bool:
        return not self.faults

    def as_json(self) -> dict[str, Any]:
        """For ``json.dumps``."""
        return {
            "path": str(self.path),
            "model": self.model,
            "precision": self.precision,
            "compress": self.compress,
            "functions": [function.as_json() for function in self.functions],
            "passed": self.passed,
            "faults": self.faults,
        }

    def as_text(self) -> str:
        """For a terminal: the verdict, what is wrong, then the figures."""
        gate = self.gate
        verdict = "passed" if self.passed else "FAILED"
        lines = [f"{verdict}: error at most {gate.relative:g}, correlation at least {gate.correlation:g}"]
        if self.passed and not any(function.devices for function in self.functions):
            lines.append("Proved: graph, weights and interface. Apple's kernels: run this command on a Mac.")
        absent = sorted({name for function in self.functions for name in function.final.absent})
        lines += [
            f"Not proved: {name}, of which the picture has none. Check with an --image that shows some."
            for name in absent
        ]
        lines += [f"FAULT {fault}" for fault in self.faults]
        compress = f", {self.compress}" if self.compress else ""
        lines += ["", f"{self.path.name} against {self.model}: {self.precision}{compress}"]
        return "\n".join([*lines, *(function.as_text() for function in self.functions)])
