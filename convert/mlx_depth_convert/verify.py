"""Two networks on the same pixels, compared stage by stage."""

import dataclasses
from collections.abc import Iterable, Sequence
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
from mlx_depth.io.image import ImageSource, load_image
from mlx_depth.models.base import Stage
from mlx_depth.processor import InputSize, Reference
from mlx_depth.result import DepthKind
from mlx_depth_convert.difference import Gate, correlation, measure
from mlx_depth_convert.opening import open_checkpoint
from mlx_depth_convert.pictures import generated_picture
from mlx_depth_convert.recorder import recording
from mlx_depth_convert.report import FINAL, DepthError, Report, Runner, StageError

TRANSFORMERS: Reference = "transformers"

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

    name: Runner

    def run(self, pixel_values: mx.array, stages: Sequence[Stage]) -> dict[str, np.ndarray]:
        """Stage name → values, and the final depth under ``depth``."""

    def stage_of(self, path: str) -> Stage | None:
        """The stage that compares the layer at this path of our network; None where this side has none."""


def verify(
    model: str | Path,
    *,
    against: str | Path | None = None,
    images: Iterable[ImageSource] = (),
    input_size: InputSize | None = None,
    progress: bool = False,
) -> Report:
    """Compare a model with a reference, stage by stage, in float32 on the same pixels.

    Args:
        model: What ``convert`` takes as source: usually a folder that it wrote.
        against: Another such source, or ``"transformers"``: its implementation, with the weights of the model's source
            where that is on the Hub, else with the model's own. None: the source that the model's config.json records;
            for an unconverted checkpoint ``"transformers"``.
        images: Photos to run on; none: a generated picture.
        input_size: As for ``DepthModel.predict``.
        progress: Show progress bars on stderr.
    Returns:
        The errors, judged by the gate of the model's number format (``GATES``).
    Raises:
        OptionError: If there is nothing to compare with, or transformers is wanted and missing.
        ModelNotFoundError: If there is no such source, or it cannot be downloaded.
        CheckpointError: If a checkpoint is damaged, or the two are not the same architecture.
    """
    with ExitStack() as stack:
        checkpoint, origin = stack.enter_context(open_checkpoint(model, progress=progress))
        with_transformers = against == TRANSFORMERS or (against is None and checkpoint.dialect != "mlx")
        source = _recorded(checkpoint) if with_transformers or against is None else against
        if source is None and not with_transformers:
            raise OptionError(f"{model} records no source on the Hub: say what to compare it with (--against SOURCE).")
        reference, other = checkpoint, origin
        if source is not None:
            reference, other = stack.enter_context(open_checkpoint(source, progress=progress))
        return compare(
            checkpoint,
            reference,
            model=origin.id,
            against=f"transformers with the weights of {other.id}" if with_transformers else other.id,
            with_transformers=with_transformers,
            images=images,
            input_size=input_size,
            progress=progress,
        )


def compare(
    checkpoint: Checkpoint,
    reference: Checkpoint,
    *,
    model: str,
    against: str,
    with_transformers: bool = False,
    images: Iterable[ImageSource] = (),
    input_size: InputSize | None = None,
    progress: bool = False,
) -> Report:
    """``verify`` for two checkpoints that are open.

    Args:
        checkpoint: The model.
        reference: Whose weights the other side has.
        model: Name for the report.
        against: Name for the report.
        with_transformers: Run the reference's weights in transformers instead of MLX; ours then follows its rule for
            position tables.
        images: As for ``verify``.
        input_size: As for ``verify``.
        progress: As for ``verify``.
    """
    if with_transformers:
        checkpoint, reference = following(checkpoint, TRANSFORMERS), following(reference, TRANSFORMERS)
    if checkpoint.spec.config != reference.spec.config:
        raise OptionError(f"{model} and {against} are different architectures: name the model's own source.")
    ours = MlxSide(checkpoint)
    theirs = _other_side(reference, with_transformers)
    precision = _precision(checkpoint) if _precision(checkpoint) != _precision(reference) else "float32"
    gate = GATES[precision]
    stages = checkpoint.family.stages(checkpoint.spec.config)
    found: list[list[StageError]] = []
    depths: list[DepthError] = []
    drifting: mx.array | None = None
    for name, pixels in tqdm(_pictures(images), unit="image", disable=not progress):
        pixel_values = checkpoint.spec.processor(pixels, input_size=input_size)
        results, expected = ours.run(pixel_values, stages), theirs.run(pixel_values, stages)
        names = [*(stage.name for stage in stages), FINAL]
        found.append([stage_error(stage, results[stage], expected[stage], name) for stage in names])
        depths.append(depth_error(name, results[FINAL], expected[FINAL], checkpoint.spec.depth_kind))
        if drifting is None and not all(error.passes(gate) for error in found[-1]):
            drifting = pixel_values
    worst = tuple(_worst(errors) for errors in zip(*found, strict=True))
    first = next((error.stage for error in worst if not error.passes(gate)), None)
    module = _first_module(ours, theirs, drifting, gate) if drifting is not None else None
    return Report(model, against, precision, gate, worst, tuple(depths), first, module, theirs.name)


def _pictures(images: Iterable[ImageSource]) -> list[tuple[str, np.ndarray]]:
    photos = [(str(source), load_image(source).pixels) for source in images]
    return photos or [("generated picture", generated_picture())]


class MlxSide:
    """Runs our network in float32 and hands out stages."""

    name: Runner = "mlx"

    def __init__(self, checkpoint: Checkpoint):
        self.network = build_network(checkpoint, dtype=mx.float32, expand=True)

    def run(self, pixel_values: mx.array, stages: Sequence[Stage]) -> dict[str, np.ndarray]:
        """Stage name → values, and the final depth under ``depth``."""
        wanted: dict[str, list[Stage]] = {}
        for stage in stages:
            wanted.setdefault(stage.module, []).append(stage)
        values: dict[str, np.ndarray] = {}

        def on_call(path: str, _: nn.Module, argument: mx.array, result: Any) -> None:
            for stage in wanted.pop(path, ()):  # of a layer that runs several times, the first counts
                values[stage.name] = np.array((argument if stage.at == "input" else result).astype(mx.float32))

        with recording(self.network, on_call):
            depth = np.array(self.network(pixel_values).depth)
        return {**values, FINAL: depth}

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
            self.network(pixel_values)
        return list(dict.fromkeys(called))


def _other_side(reference: Checkpoint, with_transformers: bool) -> Side:
    if not with_transformers:
        return MlxSide(reference)
    from mlx_depth_convert.references.side import TransformersSide

    return TransformersSide(reference)


def _recorded(checkpoint: Checkpoint) -> str | None:
    """The Hub source that a converted folder names; None for others."""
    source = checkpoint.source
    if source is None or source.get("revision") is None:
        return None
    return f"{source['id']}@{source['revision']}"


def _precision(checkpoint: Checkpoint) -> str:
    """The coarsest number format of the stored weights."""
    if checkpoint.quantization is not None:
        return f"{min(checkpoint.quantization.bits, *checkpoint.quantization.layers.values(), 8)}-bit"
    types = {array.dtype for array in checkpoint.weights.values()}
    return "bfloat16" if mx.bfloat16 in types else "float16" if mx.float16 in types else "float32"


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
    if not b.size:
        return DepthError(image, ours.shape[1:], float("nan"), float("nan"), correlation(ours, reference))
    ratio = np.maximum(a, np.finfo(float).tiny) / b
    return DepthError(
        image,
        (ours.shape[1], ours.shape[2]),
        float((np.abs(a - b) / b).mean()),
        float((np.maximum(ratio, 1 / ratio) < 1.25).mean()),
        correlation(ours.astype(np.float64), reference.astype(np.float64)),
    )


def _first_module(ours: MlxSide, theirs: Side, pixel_values: mx.array, gate: Gate) -> str | None:
    """Between the stages: the first single layer past the gate."""
    stages = [stage for path in ours.leaves(pixel_values) if (stage := theirs.stage_of(path)) is not None]
    results, expected = ours.run(pixel_values, stages), theirs.run(pixel_values, stages)
    for stage in stages:
        a, b = results[stage.name], expected[stage.name]
        # A layer may run at another size there: a 1×1 convolution before a resize instead of after it.
        if a.shape == b.shape and not stage_error(stage.name, a, b, "").passes(gate):
            return stage.name
    return None
