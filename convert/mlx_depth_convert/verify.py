"""Two networks on the same pixels, compared stage by stage."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from tqdm import tqdm

from mlx_depth.checkpoints.checkpoint import Checkpoint, build_network, following
from mlx_depth.errors import OptionError
from mlx_depth.io.image import ImageSource
from mlx_depth.models.base import DepthOutputs, Stage
from mlx_depth.processor import InputSize
from mlx_depth.result import DepthKind
from mlx_depth_convert.difference import Gate, correlation, measure
from mlx_depth_convert.inputs import Inputs, generated_conditions
from mlx_depth_convert.opening import open_checkpoint
from mlx_depth_convert.recorder import recording
from mlx_depth_convert.references import NAMES, REFERENCES, reference_of
from mlx_depth_convert.references.base import Reference
from mlx_depth_convert.report import FINAL, MLX, DepthError, Report, StageError

Arrays = dict[str, np.ndarray]
QUATERNIONS = "gaussians rotations"

# float32: the same numbers in another order. 8 bits: what the depth of depth-anything.cpp's q8_0 reaches. 6 and 4 bits
# are extrapolated: each two bits less make the step 4 times as large, and with it 1 − correlation 16 times.
# A factor of the whole depth, to which correlation is blind, is held to a hundredth at 8 bits and follows the step.
_LOSS_8_BITS, _FACTOR_8_BITS = 4e-4, 0.01
GATES = {
    "float32": Gate(1e-4, 0.99999),
    "float16": Gate(None, 0.9999, 0.001),
    "bfloat16": Gate(None, 0.999, 0.01),
    "8-bit": Gate(None, 1 - _LOSS_8_BITS, _FACTOR_8_BITS),
    "6-bit": Gate(None, 1 - 16 * _LOSS_8_BITS, 4 * _FACTOR_8_BITS),
    "4-bit": Gate(None, 1 - 256 * _LOSS_8_BITS, 16 * _FACTOR_8_BITS),
}
FAR_SHARE = 0.01  # below this share of the largest reference value a ratio of depths says nothing


class Side(Protocol):
    """One of the two implementations."""

    name: str

    def run(self, pixel_values: mx.array, stages: Sequence[Stage]) -> tuple[Arrays, Arrays]:
        """Stages and outputs, each name → values."""

    def stage_of(self, path: str) -> Stage | None:
        """The stage that compares the layer at this path of our network; None where this side has none."""


def verify(
    model: str | Path,
    *,
    against: str | Path | None = None,
    images: Iterable[ImageSource] = (),
    views: int = 1,
    input_size: InputSize | None = None,
    progress: bool = False,
) -> Report:
    """Compare a model with a reference, stage by stage and output by output, in float32 on the same pixels.

    Args:
        model: What ``convert`` takes as source: usually a folder that it wrote.
        against: Another such source, or the package that the model's family is proved against (``"transformers"``,
            ``"depth-anything-3"``): its implementation, with the weights of the model's source where that is on the
            Hub, else with the model's own. None: the source that the model's config.json records; for an unconverted
            checkpoint that package.
        images: Photos to run on; none: generated pictures.
        views: Photos that a network for several sees at once.
        input_size: As for ``DepthModel.predict``.
        progress: Show progress bars on stderr.
    Returns:
        The errors, judged by the gate of the model's number format (``GATES``).
    Raises:
        OptionError: If there is nothing to compare with, or a package is wanted and missing.
        ModelNotFoundError: If there is no such source, or it cannot be downloaded.
        CheckpointError: If a checkpoint is damaged, or the two are not the same architecture.
    """
    with ExitStack() as stack:
        checkpoint, origin = stack.enter_context(open_checkpoint(model, progress=progress))
        in_package: Reference | None = None
        if against in NAMES or (against is None and checkpoint.dialect != "mlx"):
            in_package = reference_of(checkpoint.spec, None if against is None else str(against))
        recorded = in_package is not None or against is None
        source = _recorded(checkpoint) if recorded else against
        if source is None and in_package is None:
            raise OptionError(f"{model} records no source on the Hub: say what to compare it with (--against SOURCE).")
        reference, other = checkpoint, origin
        if source is not None:
            beside = _recorded_backbone(checkpoint) if recorded else None
            reference, other = stack.enter_context(open_checkpoint(source, backbone=beside, progress=progress))
        return compare(
            checkpoint,
            reference,
            model=origin.id,
            against=f"{in_package.name} with the weights of {other.id}" if in_package is not None else other.id,
            in_package=in_package is not None,
            images=images,
            views=views,
            input_size=input_size,
            progress=progress,
        )


def compare(
    checkpoint: Checkpoint,
    reference: Checkpoint,
    *,
    model: str,
    against: str,
    in_package: bool = False,
    images: Iterable[ImageSource] = (),
    views: int = 1,
    input_size: InputSize | None = None,
    progress: bool = False,
) -> Report:
    """``verify`` for two checkpoints that are open.

    Args:
        checkpoint: The model.
        reference: Whose weights the other side has.
        model: Name for the report.
        against: Name for the report.
        in_package: Run the reference's weights in the family's package instead of MLX; ours then follows its rule for
            position tables.
        images: As for ``verify``.
        views: As for ``verify``.
        input_size: As for ``verify``.
        progress: As for ``verify``.
    """
    package = reference_of(checkpoint.spec) if in_package else None
    if package is not None:
        checkpoint, reference = following(checkpoint, package.rules), following(reference, package.rules)
    if checkpoint.spec.config != reference.spec.config:
        raise OptionError(f"{model} and {against} are different architectures: name the model's own source.")
    ours = MlxSide(checkpoint)
    theirs = _other_side(reference, in_package)
    precision = _precision(checkpoint) if _precision(checkpoint) != _precision(reference) else "float32"
    gate = GATES[precision]
    stages = checkpoint.family.stages(checkpoint.spec.config)
    found: list[list[StageError]] = []
    depths: list[DepthError] = []
    drifting: mx.array | None = None
    most_pixels = package.most_pixels if package is not None else None
    inputs = Inputs(checkpoint.spec.processor, ours.takes, views, input_size, most_pixels)
    for name, pixel_values in tqdm(inputs.of(images), unit="image", disable=not progress):
        (within, outputs), (within_theirs, expected) = ours.run(pixel_values, stages), theirs.run(pixel_values, stages)
        found.append([_compared(stage.name, within, within_theirs, name) for stage in stages])
        last = sorted(outputs, key=lambda output: output == FINAL)  # the depth
        found[-1] += [_compared(output, outputs, expected, name) for output in last]
        depths.append(depth_error(name, outputs[FINAL], expected[FINAL], checkpoint.spec.depth_kind))
        if drifting is None and not all(error.passes(gate) for error in found[-1]):
            drifting = pixel_values
    worst = tuple(_worst(errors) for errors in zip(*found, strict=True))
    first = next((error.stage for error in worst if not error.passes(gate)), None)
    module = _first_module(ours, theirs, drifting, gate) if drifting is not None else None
    own = REFERENCES.get(checkpoint.spec.family)
    proof = own.name if own is not None else None
    return Report(model, against, precision, gate, worst, tuple(depths), first, module, theirs.name, proof)


class MlxSide:
    """Runs our network in float32 and hands out stages."""

    name = MLX

    def __init__(self, checkpoint: Checkpoint):
        self.network = build_network(checkpoint, dtype=mx.float32, expand=True)
        self.takes = self.network.takes

    def _outputs(self, pixel_values: mx.array) -> DepthOutputs:
        call: Callable[..., DepthOutputs] = self.network  # each has options of its own
        return call(pixel_values, **self.network.everything, **generated_conditions(self.network, len(pixel_values)))

    def run(self, pixel_values: mx.array, stages: Sequence[Stage]) -> tuple[Arrays, Arrays]:
        """Stages and outputs, each name → values."""
        wanted: dict[str, list[Stage]] = {}
        for stage in stages:
            wanted.setdefault(stage.module, []).append(stage)
        values: dict[str, np.ndarray] = {}

        def on_call(path: str, _: nn.Module, argument: mx.array, result: Any) -> None:
            for stage in wanted.pop(path, ()):  # of a layer that runs several times, the first counts
                values[stage.name] = _as_float32(argument if stage.at == "input" else result)

        with recording(self.network, on_call):
            outputs = named_outputs(self._outputs(pixel_values))
            mx.eval(outputs)
        return values, {name: _as_float32(array) for name, array in outputs.items()}

    def stage_of(self, path: str) -> Stage | None:
        """Both sides have the same layers."""
        return Stage(path, path)

    def leaves(self, pixel_values: mx.array) -> list[str]:
        """Paths of the layers that hold parameters, in the order in which they compute."""
        called: list[str] = []

        def on_call(path: str, module: nn.Module, argument: mx.array, result: Any) -> None:
            if not module.children() and tree_flatten(module.parameters()):
                called.append(path)

        with recording(self.network, on_call):
            self._outputs(pixel_values)
        return list(dict.fromkeys(called))


def named_outputs(outputs: DepthOutputs) -> dict[str, mx.array]:
    """All arrays of a network's outputs, by name; those of a group as ``gaussians means``."""
    flat: dict[str, mx.array] = {}
    for name, value in outputs.present().items():
        flat |= {name: value} if isinstance(value, mx.array) else {f"{name} {key}": x for key, x in value.items()}
    return flat


def _as_float32(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32))


def _other_side(reference: Checkpoint, in_package: bool) -> Side:
    if not in_package:
        return MlxSide(reference)
    from mlx_depth_convert.references.side import ReferenceSide

    return ReferenceSide(reference)


def _recorded(checkpoint: Checkpoint) -> str | None:
    """The Hub source that a converted folder names; None for others."""
    source = checkpoint.source
    if source is None or source.get("revision") is None:
        return None
    return f"{source['id']}@{source['revision']}"


def _recorded_backbone(checkpoint: Checkpoint) -> str | None:
    """Where the backbone of a converted folder comes from, if not from its source."""
    backbone = (checkpoint.source or {}).get("backbone")
    return None if backbone is None else str(backbone["source"])


def _precision(checkpoint: Checkpoint) -> str:
    """The coarsest number format of the stored weights."""
    if checkpoint.quantization is not None:
        return f"{min(checkpoint.quantization.bits, *checkpoint.quantization.layers.values(), 8)}-bit"
    types = {array.dtype for array in checkpoint.weights.values()}
    return "bfloat16" if mx.bfloat16 in types else "float16" if mx.float16 in types else "float32"


def _compared(stage: str, ours: Arrays, reference: Arrays, image: str) -> StageError:
    """``stage_error`` of what both have: a side may run a module some images at a time, and the first call counts."""
    a, b = ours[stage], reference[stage]
    if a.size == b.size and a.shape[-1:] == b.shape[-1:]:
        b = b.reshape(a.shape)  # one batch of all views there, views of a batch here
    if stage == QUATERNIONS:
        b = np.where((a * b).sum(axis=-1, keepdims=True) < 0, -b, b)  # both are the same rotation
    count = min(len(a), len(b))
    return stage_error(stage, a[:count], b[:count], image)


def stage_error(stage: str, ours: np.ndarray, reference: np.ndarray, image: str) -> StageError:
    """``measure`` with the stage and the image that the figures are of."""
    return StageError(**vars(measure(ours, reference)), stage=stage, shape=ours.shape, image=image)


def _worst(errors: Sequence[StageError]) -> StageError:
    """The figures of the image with the largest relative error; the lowest correlation and worst factor of all."""
    largest = max(errors, key=lambda error: error.relative)
    return dataclasses.replace(
        largest,
        correlation=min(error.correlation for error in errors),
        factor=max((error.factor for error in errors), key=lambda factor: abs(factor - 1)),
    )


def depth_error(image: str, ours: np.ndarray, reference: np.ndarray, kind: DepthKind) -> DepthError:
    """AbsRel and δ<1.25; depth of unknown scale is first fitted to the reference by least squares."""
    a, b = ours.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    if kind is not DepthKind.METRIC:
        spread = a - a.mean()
        scale = (spread @ (b - b.mean())) / (spread @ spread) if spread.any() else 0.0
        a = scale * spread + b.mean()
    near = b > FAR_SHARE * b.max()
    a, b = a[near], b[near]
    size = (ours.shape[-2], ours.shape[-1])
    if not b.size:
        return DepthError(image, size, float("nan"), float("nan"), correlation(ours, reference))
    ratio = np.maximum(a, np.finfo(float).tiny) / b
    return DepthError(
        image,
        size,
        float((np.abs(a - b) / b).mean()),
        float((np.maximum(ratio, 1 / ratio) < 1.25).mean()),
        correlation(ours.astype(np.float64), reference.astype(np.float64)),
    )


def _first_module(ours: MlxSide, theirs: Side, pixel_values: mx.array, gate: Gate) -> str | None:
    """Between the stages: the first single layer past the gate."""
    stages = [stage for path in ours.leaves(pixel_values) if (stage := theirs.stage_of(path)) is not None]
    (results, _), (expected, _) = ours.run(pixel_values, stages), theirs.run(pixel_values, stages)
    for stage in stages:
        a, b = results[stage.name], expected[stage.name]
        # A layer may run at another size there: a 1×1 convolution before a resize instead of after it.
        if a.shape[1:] == b.shape[1:] and not _compared(stage.name, results, expected, "").passes(gate):
            return stage.name
    return None
