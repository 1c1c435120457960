"""Is a package equal to its model? The saved graph in numpy against the MLX network, function by function."""

import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_depth.checkpoints.checkpoint import Checkpoint, build_network, fetch_checkpoint
from mlx_depth.errors import CheckpointError, OptionError
from mlx_depth.io.colormaps import colormap_table
from mlx_depth.io.image import ImageSource, load_image
from mlx_depth.models.base import DepthNetwork
from mlx_depth.nn.resize import resize
from mlx_depth.processor import resize_depth
from mlx_depth.registry import ModelSpec
from mlx_depth.result import DepthResult
from mlx_depth_convert.coreml import device
from mlx_depth_convert.coreml.agreement import Agreement, Outputs, compare
from mlx_depth_convert.coreml.emitters import emitter_of
from mlx_depth_convert.coreml.evaluate import Program, read_package, read_structure, run_function
from mlx_depth_convert.coreml.names import COLORS, DEPTH, IMAGE, is_image
from mlx_depth_convert.coreml.options import FLOAT16_LIMIT
from mlx_depth_convert.coreml.package import METADATA
from mlx_depth_convert.coreml.report import FunctionReport, PackageReport
from mlx_depth_convert.pictures import generated_picture

Declaration = tuple[str | int, ...]  # of an image or array, as ``Program.interface`` gives it


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
    network: DepthNetwork,
    photo: npt.NDArray[np.uint8] | None,
) -> FunctionReport:
    function, facts = program.functions[name], program.facts(METADATA)
    height, width = function.inputs[IMAGE].shape[2:]
    pixels = generated_picture((height, width)) if photo is None else _fill(photo, (height, width))
    output, cmap = facts["output"], facts["colormap"] or None
    expected = expected_outputs(network, spec, pixels, output=output)

    def agreement(outputs: Outputs) -> Agreement:
        colors = {} if cmap is None else {COLORS: painted(outputs[DEPTH], spec, output=output, cmap=cmap)}
        return compare(outputs, {**expected, **colors})

    exact = run_function(function, pixels, float16=False)
    rounded = run_function(function, pixels, float16=True) if facts["precision"] == "float16" else None
    final = (exact if rounded is None else rounded).outputs
    declared: dict[str, Declaration] = {IMAGE: ("RGB", height, width)}
    declared |= {key: _declaration(key, values, facts, spec) for key, values in expected.items()}
    declared |= {} if cmap is None else {COLORS: declared[IMAGE]}
    interface = _interface_faults(program.interface(name), declared)
    devices = device.run_units(path, name, pixels, expected) if sys.platform == "darwin" else []
    return FunctionReport(
        name=name,
        size=(height, width),
        float32=agreement(exact.outputs),
        float16=None if rounded is None else agreement(rounded.outputs),
        largest=exact.largest,
        structure=read_structure(function, emitter_of(spec).float32_prefixes),
        interface_faults=(*interface, *_value_faults(final, expected)),
        devices=tuple(devices),
    )


def _declaration(name: str, values: npt.NDArray[np.float32], facts: dict[str, str], spec: ModelSpec) -> Declaration:
    if is_image(values.shape):
        return ("GRAYSCALE_FLOAT16", *values.shape[2:])
    half = facts["precision"] == "float16" and not name.startswith(emitter_of(spec).float32_prefixes)
    return ("FLOAT16" if half else "FLOAT32", *values.shape)


def _interface_faults(interface: dict[str, Declaration], expected: dict[str, Declaration]) -> list[str]:
    return [
        f"the {_feature(interface.get(name) or expected[name])} {name!r} is declared as {interface.get(name)}, "
        f"not {expected.get(name)}"
        for name in sorted(interface.keys() | expected.keys())
        if interface.get(name) != expected.get(name)
    ]


def _feature(declaration: Declaration) -> str:
    return "array" if declaration[0] in ("FLOAT16", "FLOAT32") else "image"


def _value_faults(outputs: Outputs, expected: Outputs) -> list[str]:
    """What a float16 image cannot hold, and what proves nothing."""
    found = []
    for name in (name for name, values in expected.items() if name in outputs and is_image(values.shape)):
        for whose, values in (("package", outputs[name]), ("model", expected[name])):
            peak = float(np.abs(values).max())
            if not peak <= FLOAT16_LIMIT:
                found.append(f"the {whose}'s {name} reaches {peak:.3g}, and a {name} image ends at {FLOAT16_LIMIT:g}")
    if expected[DEPTH].max() == expected[DEPTH].min():
        found.append("the model's depth is the same everywhere, which proves nothing: check with another --image")
    return found


def expected_outputs(
    network: DepthNetwork, spec: ModelSpec, pixels: npt.NDArray[np.uint8], *, output: str
) -> dict[str, npt.NDArray[np.float32]]:
    """What a package should give, its colors left out, computed by the MLX network in float32.

    Args:
        network: The model's network, in float32.
        spec: The model.
        pixels: RGB uint8 ``(H, W, 3)`` at the network's size.
        output: One of ``options.OUTPUTS``.
    Returns:
        By name, the depth in the unit of the output, ``(1, 1, H, W)``, resized as for a photo of that size where the
        network gives another, and those of the family's extras that the network has: ``(1, C, H, W)``, or ``(1,)``
        where it is one for all pixels.
    """
    emitter = emitter_of(spec)
    with mx.stream(mx.cpu):
        pixel_values = spec.processor(pixels, input_size=pixels.shape[:2])
        outputs = network(pixel_values[:, None]).first_view() if network.takes == "views" else network(pixel_values)
        given = dict(emitter.expected(outputs))
        given[DEPTH] = resize_depth(given[DEPTH], pixels.shape[:2], method=spec.processor.restore)
        found = {name: np.array(given[name]) for name in (DEPTH, *emitter.extras) if name in given}
    if output == "normalized":
        found[DEPTH] = _nearness(found[DEPTH][0], spec)[None]
    return {name: _channels_first(values) for name, values in found.items()}


def _channels_first(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(1, H, W) → (1, 1, H, W) and (1, H, W, C) → (1, C, H, W); (1,) as it is."""
    if values.ndim == 1:
        return values
    return values[:, None] if values.ndim == 3 else np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def painted(depth: npt.NDArray[np.float32], spec: ModelSpec, *, output: str, cmap: str) -> npt.NDArray[np.float32]:
    """The colors that a package should give for the depth that it gave: errors of the depth are judged by themselves.

    Args:
        depth: The package's, ``(1, 1, H, W)``.
        spec: The model.
        output: One of ``options.OUTPUTS``: the unit of the depth.
        cmap: A color map's name.
    Returns:
        RGB ``(1, 3, H, W)``, 0..255.
    """
    near = depth[0, 0] if output == "normalized" else _nearness(depth[0, 0], spec)
    table = colormap_table(cmap).astype(np.float32)
    entries = np.arange(len(table)) / (len(table) - 1)
    return np.stack([np.interp(near, entries, table[:, channel]) for channel in range(3)])[None].astype(np.float32)


def _nearness(depth: npt.NDArray[np.float32], spec: ModelSpec) -> npt.NDArray[np.float32]:
    size = depth.shape
    return DepthResult(depth, spec.depth_kind, model=spec.name, image_size=size, input_size=size).normalized()


def _fill(photo: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Stretch a photo to the size, as Vision's ``scaleFill`` does."""
    stretched = resize(mx.array(photo)[None], size, method="bicubic", antialias=True)
    return np.array(mx.clip(mx.round(stretched[0]), 0, 255).astype(mx.uint8))
