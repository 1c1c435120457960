"""Is a package equal to its model? The saved graph in numpy against the MLX network, function by function."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from mlx_depth.checkpoints.checkpoint import Checkpoint, build_network, fetch_checkpoint
from mlx_depth.errors import CheckpointError, OptionError
from mlx_depth.io.colormaps import colormap_table
from mlx_depth.io.image import ImageSource, load_image
from mlx_depth.nn.resize import resize
from mlx_depth.registry import ModelSpec
from mlx_depth.result import DepthResult
from mlx_depth_convert.coreml import device
from mlx_depth_convert.coreml.agreement import GATES, Agreement, Gate, Outputs, compare
from mlx_depth_convert.coreml.device import DeviceRun
from mlx_depth_convert.coreml.emit_dinov2_dpt import COLORS, DEPTH, IMAGE
from mlx_depth_convert.coreml.evaluate import Program, Structure, read_package, read_structure, run_function
from mlx_depth_convert.coreml.package import METADATA

FLOAT16_LIMIT = float(np.finfo(np.float16).max)
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
        interface_faults: What is wrong with the images that an app gives and gets, in words.
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
        if precision == "float16":
            found += self._float16_faults()
        if self.structure.largest_rank > MAX_RANK:
            found.append(f"a tensor has rank {self.structure.largest_rank}, the Neural Engine takes {MAX_RANK}")
        if self.structure.largest_side > MAX_SIDE:
            found.append(f"a tensor has a side of {self.structure.largest_side}, the Neural Engine takes {MAX_SIDE}")
        device_gate = GATES[compress or "float16"]  # the depth image is float16 whatever the precision
        return found + [f"on {run.unit} {fault}" for run in self.devices for fault in run.faults(device_gate)]

    def _float16_faults(self) -> list[str]:
        overflowing = [f"{name} reaches {peak:.3g}" for peak, name in self.largest.values() if not peak < FLOAT16_LIMIT]
        wide = [f"{name} computes in float32" for name in self.structure.float32]
        return [f"{fault}, beyond float16" for fault in overflowing] + wide

    @property
    def final(self) -> Agreement:
        """Agreement in the arithmetic that the package asks for."""
        return self.float32 if self.float16 is None else self.float16


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
        facts = dataclasses.asdict(self)
        return {**facts, "path": str(self.path), "passed": self.passed, "faults": self.faults}

    def as_text(self) -> str:
        """For a terminal."""
        lines = [
            f"{self.path.name} against {self.model}: {self.precision}" + (f", {self.compress}" if self.compress else "")
        ]
        for function in self.functions:
            lines += _function_lines(function)
        lines += [f"FAULT {fault}" for fault in self.faults]
        gate = self.gate
        verdict = "passed" if self.passed else "FAILED"
        lines.append(f"{verdict}: error at most {gate.error:g}, correlation at least {gate.correlation:g}")
        if self.passed and not any(function.devices for function in self.functions):
            lines.append("Proved: graph, weights and interface. Apple's kernels: run this command on a Mac.")
        return "\n".join(lines)


def check_package(
    path: str | Path, model: str | Path | Checkpoint | None = None, image: "ImageSource | None" = None
) -> PackageReport:
    """Compare a saved package with the model that it was made from.

    Both see the same 8-bit pixels. The package runs in numpy, in float32 arithmetic and with float16 rounding
    simulated; the model runs in MLX, in float32 on the CPU. On a Mac, Core ML then runs on each compute unit.

    Args:
        path: The package.
        model: As ``model`` of ``export_coreml``; None: the one that the package names, at the Hub's commit of then.
        image: As for ``mlx_depth.predict``; None: a drawn one.
    Returns:
        The report; ``passed`` says whether all gates hold.
    Raises:
        CheckpointError: If the package cannot be read, or was not made by ``export_coreml`` from such a model.
        OptionError: If coremltools is missing, or the model has to be named.
        ImageError: If the image cannot be read.
    """
    path = Path(path).expanduser()
    program = read_package(path)
    facts = program.facts(METADATA)
    if "output" not in facts:
        raise CheckpointError(f"{path} was not exported by mlx-depth: check a package of `mlx-depth coreml`.")
    checkpoint = _original(facts, path) if model is None else _given(model)
    _check_model(facts, checkpoint.spec, path)
    with mx.stream(mx.cpu):
        network = build_network(checkpoint, dtype=mx.float32, expand=True)
    photo = None if image is None else load_image(image).pixels
    functions = tuple(
        _check_function(path, program, name, checkpoint.spec, network, photo) for name in program.functions
    )
    return PackageReport(path, checkpoint.spec.name, facts["precision"], facts["compress"] or None, functions)


def _original(facts: dict[str, str], path: Path) -> Checkpoint:
    if not facts["source"]:
        raise OptionError(f"{path} was made from local files of {facts['model']}: name their folder or file as well.")
    return fetch_checkpoint(facts["source"], revision=facts["revision"] or None)[0]


def _given(model: str | Path | Checkpoint) -> Checkpoint:
    return model if isinstance(model, Checkpoint) else fetch_checkpoint(model)[0]


def _check_model(facts: dict[str, str], spec: ModelSpec, path: Path) -> None:
    max_depth = "" if spec.config.max_depth is None else str(spec.config.max_depth)
    if (facts["depth_kind"], facts["max_depth"]) != (spec.depth_kind.value, max_depth):
        raise CheckpointError(
            f"{path} was made from {facts['model']} ({facts['depth_kind']} depth {facts['max_depth']}), not from "
            f"{spec.name} ({spec.depth_kind.value} depth {max_depth}): name the model that it was made from."
        )


def _check_function(
    path: Path,
    program: Program,
    name: str,
    spec: ModelSpec,
    network: nn.Module,
    photo: npt.NDArray[np.uint8] | None,
) -> FunctionReport:
    function, facts = program.functions[name], program.facts(METADATA)
    height, width = function.inputs[IMAGE].shape[2:]
    pixels = drawn_image((height, width)) if photo is None else _fill(photo, (height, width))
    output, colormap = facts["output"], facts["colormap"] or None
    expected = expected_depth(network, spec, pixels, output=output)

    def agreement(outputs: Outputs) -> Agreement:
        colors = {} if colormap is None else {COLORS: painted(outputs[DEPTH], spec, output=output, colormap=colormap)}
        return compare(outputs, {DEPTH: expected, **colors})

    exact = run_function(function, pixels, float16=False)
    rounded = run_function(function, pixels, float16=True) if facts["precision"] == "float16" else None
    devices = device.run_units(path, name, pixels, {DEPTH: expected}) if sys.platform == "darwin" else []
    return FunctionReport(
        name=name,
        size=(height, width),
        float32=agreement(exact.outputs),
        float16=None if rounded is None else agreement(rounded.outputs),
        largest=exact.largest,
        structure=read_structure(function),
        interface_faults=tuple(_interface_faults(program.interface(name), colormap, (height, width))),
        devices=tuple(devices),
    )


def _interface_faults(
    interface: dict[str, tuple[str, int, int]], colormap: str | None, size: tuple[int, int]
) -> list[str]:
    spaces = {IMAGE: "RGB", DEPTH: "GRAYSCALE_FLOAT16"} | ({} if colormap is None else {COLORS: "RGB"})
    expected = {name: (space, *size) for name, space in spaces.items()}
    return [
        f"the image {name!r} is declared as {interface.get(name)}, not {expected.get(name)}"
        for name in sorted(interface.keys() | expected.keys())
        if interface.get(name) != expected.get(name)
    ]


def drawn_image(size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A picture with ramps, edges and grain in all three channels, the same each time: RGB uint8 ``(H, W, 3)``."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]] / np.array(size).reshape(2, 1, 1)
    layers = [rows, columns, 0.5 + 0.5 * np.sin(9 * rows + 7 * columns**2)]
    discs = [((rows - y) ** 2 + (columns - x) ** 2 < r**2) for y, x, r in ((0.6, 0.3, 0.2), (0.4, 0.7, 0.25))]
    grain = np.random.RandomState(0).standard_normal((*size, 3)) * 0.03
    picture = np.stack(layers, axis=-1) * 0.6 + np.stack([*discs, ~discs[0]], axis=-1) * 0.3 + grain
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def expected_depth(
    network: nn.Module, spec: ModelSpec, pixels: npt.NDArray[np.uint8], *, output: str
) -> npt.NDArray[np.float32]:
    """The depth that a package should give, computed by the MLX network in float32.

    Args:
        network: The model's network, in float32.
        spec: The model.
        pixels: RGB uint8 ``(H, W, 3)`` at the network's size.
        output: One of ``options.OUTPUTS``.
    Returns:
        ``(1, 1, H, W)``, in the unit of the output.
    """
    size = pixels.shape[:2]
    with mx.stream(mx.cpu):
        depth = np.array(network(spec.processor(pixels, input_size=size)).depth)[0]
    return (_nearness(depth, spec) if output == "normalized" else depth)[None, None]


def painted(depth: npt.NDArray[np.float32], spec: ModelSpec, *, output: str, colormap: str) -> npt.NDArray[np.float32]:
    """The colours that a package should give for the depth that it gave: errors of the depth are judged by themselves.

    Args:
        depth: The package's, ``(1, 1, H, W)``.
        spec: The model.
        output: One of ``options.OUTPUTS``: the unit of the depth.
        colormap: A colour map's name.
    Returns:
        RGB ``(1, 3, H, W)``, 0..255.
    """
    near = depth[0, 0] if output == "normalized" else _nearness(depth[0, 0], spec)
    table = colormap_table(colormap).astype(np.float32)
    entries = np.arange(len(table)) / (len(table) - 1)
    return np.stack([np.interp(near, entries, table[:, channel]) for channel in range(3)])[None].astype(np.float32)


def _nearness(depth: npt.NDArray[np.float32], spec: ModelSpec) -> npt.NDArray[np.float32]:
    size = depth.shape
    return DepthResult(depth, spec.depth_kind, model=spec.name, image_size=size, input_size=size).normalized()


def _fill(photo: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Stretch a photo to the size, as Vision's ``scaleFill`` does."""
    stretched = resize(mx.array(photo)[None], size, method="bicubic", antialias=True)
    return np.array(mx.clip(mx.round(stretched[0]), 0, 255).astype(mx.uint8))


def _function_lines(function: FunctionReport) -> list[str]:
    height, width = function.size
    structure = function.structure
    lines = [f"{function.name} {height}x{width}", f"  float32 arithmetic   {function.float32}"]
    if function.float16 is not None:
        lines.append(f"  simulated float16    {function.float16}")
    lines += [f"  Core ML {run.unit:<12} {run}" for run in function.devices]
    words = [f"{kind} {count}" for kind, count in structure.operations.items()]
    peaks = sorted(function.largest.items(), key=lambda item: -item[1][0])
    return [
        *lines,
        f"  operations           {sum(structure.operations.values())}: {', '.join(words)}",
        f"  in float32           {len(structure.float32)}",
        f"  tensors              rank at most {structure.largest_rank}, side at most {structure.largest_side}",
        f"  largest values       (float16 ends at {FLOAT16_LIMIT:g})",
        *(f"    {kind:<18} {peak:10.4g}  {where}" for kind, (peak, where) in peaks),
    ]
