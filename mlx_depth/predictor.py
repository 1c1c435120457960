"""The front door: a model by its name, and depth in one call."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import mlx.core as mx

from mlx_depth.checkpoints.checkpoint import build_network, following, read_checkpoint
from mlx_depth.checkpoints.resolve import Resolved, canonical_name, resolve
from mlx_depth.io.find import are_many
from mlx_depth.io.image import ImageSource
from mlx_depth.io.prompt import PromptSource, PromptUnit
from mlx_depth.model import Color, DepthModel
from mlx_depth.processor import InputSize, Reference
from mlx_depth.result import DepthResult
from mlx_depth.runtime.forward import resolve_dtype
from mlx_depth.runtime.process import computing

DEFAULT_MODEL = "depth-anything-v2-small"


def load(
    source: str | Path = DEFAULT_MODEL,
    *,
    dtype: str | mx.Dtype | None = None,
    revision: str | None = None,
    reference: Reference | None = None,
    progress: bool = True,
) -> DepthModel:
    """Load a model into memory; download it first where that is needed.

    Args:
        source: A registry name or alias (``mlx-depth models`` lists them), a folder or ``.safetensors`` file, or a Hub
            repository ``owner/name[@revision]``.
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``; None: float16 on a GPU, float32 on a CPU.
        revision: Branch, tag or commit of the Hub repository.
        reference: Whose rules for resizing photos, position tables and depth maps to follow: ``"original"`` (the
            authors' code) or ``"transformers"``; None: what the checkpoint says, which is the authors' for Hub files.
        progress: Show the Hub's progress bar on stderr.
    Returns:
        The model.
    Raises:
        ModelNotFoundError: If there is no such model, or it cannot be downloaded.
        CheckpointError: If its files are damaged or not exactly what the model needs.
        OptionError: If an argument cannot work.
    """
    chosen = resolve_dtype(dtype)
    return _read(resolve(source, revision=revision, progress=progress), chosen, reference)


@computing
def _read(found: Resolved, dtype: mx.Dtype, reference: Reference | None) -> DepthModel:
    checkpoint = read_checkpoint(found.path, found.spec, name=found.repo)
    if reference is not None:
        checkpoint = following(checkpoint, reference)
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    network = build_network(checkpoint, dtype=dtype, expand=on_cpu, hand_over=True)
    return DepthModel(checkpoint.spec, network, checkpoint.spec.processor, dtype, found.revision)


@overload
def predict(  # type: ignore[overload-overlap]  # a str is a sequence and an open file an iterator: each is one image
    image: ImageSource,
    *,
    prompt: PromptSource | None = ...,
    prompt_unit: PromptUnit | None = ...,
    model: str | Path = ...,
    dtype: str | mx.Dtype | None = ...,
    revision: str | None = ...,
    reference: Reference | None = ...,
    input_size: InputSize | None = ...,
    background: Color | None = ...,
    focal_length_px: float | None = ...,
) -> DepthResult: ...
@overload
def predict(
    image: Sequence[ImageSource] | Iterator[ImageSource],
    *,
    prompt: str | Path | Iterable[PromptSource] | None = ...,
    prompt_unit: PromptUnit | None = ...,
    model: str | Path = ...,
    dtype: str | mx.Dtype | None = ...,
    revision: str | None = ...,
    reference: Reference | None = ...,
    input_size: InputSize | None = ...,
    background: Color | None = ...,
    focal_length_px: float | None = ...,
) -> Iterator[DepthResult]: ...
def predict(
    image: Any,
    *,
    prompt: Any = None,
    prompt_unit: PromptUnit | None = None,
    model: str | Path = DEFAULT_MODEL,
    dtype: str | mx.Dtype | None = None,
    revision: str | None = None,
    reference: Reference | None = None,
    input_size: InputSize | None = None,
    background: Color | None = None,
    focal_length_px: float | None = None,
) -> DepthResult | Iterator[DepthResult]:
    """Predict the depth of one image, or of many. The model of the last call stays in memory.

    Args:
        image: One image (path, URL, bytes, binary file, PIL image, array); or many: a list or iterator of images, a
            folder, or a pattern such as ``"photos/*.jpg"``.
        prompt: As for ``DepthModel.predict``; of many images as ``prompts`` of ``DepthModel.predict_batch``.
        prompt_unit: As for ``DepthModel.predict``.
        model: As ``source`` of ``load``.
        dtype: As for ``load``.
        revision: As for ``load``.
        reference: As for ``load``.
        input_size: As for ``DepthModel.predict``.
        background: As for ``DepthModel.predict``.
        focal_length_px: As for ``DepthModel.predict``.
    Returns:
        One result; for many images an iterator of results in the same order.
    Raises:
        MlxDepthError: As ``load`` and ``DepthModel.predict``.

    Example:
        >>> import mlx_depth
        >>> result = mlx_depth.predict("photo.jpg")
        >>> result.depth.shape, result.kind
        ((1080, 1920), <DepthKind.RELATIVE_INVERSE: 'relative_inverse'>)
        >>> result.save("depth.png")
    """
    loaded = _keep(canonical_name(model), resolve_dtype(dtype), revision, reference)
    options: dict[str, Any] = {
        "prompt_unit": prompt_unit,
        "input_size": input_size,
        "background": background,
        "focal_length_px": focal_length_px,
    }
    if are_many(image):
        return loaded.predict_batch(image, prompts=prompt, **options)
    return loaded.predict(image, prompt=prompt, **options)


@functools.lru_cache(maxsize=1)
def _keep(model: str | Path, dtype: mx.Dtype, revision: str | None, reference: Reference | None) -> DepthModel:
    return load(model, dtype=dtype, revision=revision, reference=reference)
