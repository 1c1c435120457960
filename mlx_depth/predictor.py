"""The front door: from an image to a ``DepthResult``, walking the whole line once."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, overload

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlx_depth.checkpoints.checkpoint import build_network, following, read_checkpoint
from mlx_depth.checkpoints.resolve import Resolved, canonical_name, resolve
from mlx_depth.errors import ImageError, OptionError
from mlx_depth.io.find import are_many, find_photos
from mlx_depth.io.image import ImageSource, LoadedImage, load_image
from mlx_depth.models.base import DepthNetwork, DepthOutputs, Photo, PhotoOutputs
from mlx_depth.models.families import FAMILIES
from mlx_depth.processor import InputSize, Processor, Reference
from mlx_depth.registry import ModelSpec
from mlx_depth.result import Camera, DepthResult
from mlx_depth.runtime.forward import (
    Forward,
    cores_for,
    evaluate,
    forward_of,
    resolve_dtype,
    warn_slow,
    working_bytes,
)
from mlx_depth.runtime.process import check_fork, computing
from mlx_depth.runtime.stream import DECODING_THREADS, Batches, OnError, Size, stream
from mlx_depth.weights.safetensors_io import dtype_name

DEFAULT_MODEL = "depth-anything-v2-small"
Color = tuple[int, int, int]
PHOTO_PIXEL_BYTES = 64  # of a photo and its depth while they are resized


@dataclass(frozen=True, eq=False, repr=False)
class DepthModel:
    """A model in memory, ready to predict.

    Attributes:
        spec: Name, sizes, license and kind of depth.
        network: Normalized ``pixel_values`` (B, H, W, 3) → ``DepthOutputs`` with ``depth`` (B, H, W). Change its
            parameters before the first prediction: a GPU runs a compiled graph that keeps them.
        processor: How photos become ``pixel_values``, and depth maps photo-sized again.
        dtype: Number format that the network computes in.
        revision: Commit of the Hub repository; None for local weights.
    """

    spec: ModelSpec
    network: DepthNetwork
    processor: Processor
    dtype: mx.Dtype
    revision: str | None = None

    def __repr__(self) -> str:
        return f"DepthModel({self.spec.name!r}, {self.spec.depth_kind.description}, {dtype_name(self.dtype)})"

    def __reduce__(self) -> NoReturn:
        raise OptionError(
            "a model is not copied or sent to another process: load it there by its name or folder, "
            "mlx_depth.load(…); threads may share one."
        )

    def predict(
        self, image: ImageSource, *, input_size: InputSize | None = None, background: Color | None = None
    ) -> DepthResult:
        """Predict the depth of one image.

        Args:
            image: Path, URL, bytes, binary file, PIL image, numpy or MLX array; see ``load_image``.
            input_size: Short side in network pixels, or an exact ``(height, width)`` in multiples of 14; None: the
                model's own. Larger shows finer detail, slower.
            background: RGB, 0..255, under transparent pixels; None: white.
        Returns:
            Depth at the original size, float32, with its kind and unit.
        Raises:
            ImageError: If the image cannot be read.
            OptionError: If the input size cannot work.
        """
        outcome = self._predict_group([_reader(background)(image)], input_size)[0]
        if isinstance(outcome, ImageError):
            raise outcome
        return outcome

    def predict_batch(
        self,
        images: str | Path | Iterable[ImageSource],
        *,
        batch_size: int = 4,
        input_size: InputSize | None = None,
        background: Color | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[DepthResult]:
        """Predict many images of any mix of sizes; decoding runs ahead of the network.

        Images of equal network size share a batch. Memory stays bounded: no more than ``4 * batch_size`` images wait,
        and while it predicts MLX holds little beyond what the network needs at once: see ``runtime.forward.evaluate``.

        Args:
            images: A list or any iterator of what ``predict`` takes; or a folder or a pattern such as
                ``"photos/*.jpg"``, whose images come by name.
            batch_size: Images that the network sees at once.
            input_size: As for ``predict``.
            background: As for ``predict``.
            on_error: Called with each unreadable image and its error, which is then left out; None: raise the error
                once the results before it are out.
        Yields:
            One result an image, in the order given.
        Raises:
            ImageError: If an image cannot be read and there is no ``on_error``.
            OptionError: If the batch size or the input size cannot work.
        """
        if isinstance(images, (str, Path)) and are_many(images):
            images = find_photos(images)
        if isinstance(images, (str, bytes, bytearray, memoryview, Path, LoadedImage)):
            raise OptionError("predict_batch takes a list or iterator of images, and this is one: use predict.")
        if not isinstance(images, Iterable):
            raise OptionError(f"predict_batch takes a list or iterator of images, not {type(images).__name__}.")
        self.check_input_size(input_size)
        return predict_stream(
            lambda: self,
            images,
            batch_size=batch_size,
            input_size=input_size,
            background=background,
            on_error=on_error,
        )

    def infer(self, pixel_values: mx.array) -> DepthOutputs:
        """Run the network alone, as fast as ``predict`` does.

        Args:
            pixel_values: Normalized RGB, ``(B, H, W, 3)``, any float type; H and W are multiples of the patch size.
        Returns:
            What the network computes, evaluated: ``depth`` ``(B, H, W)``, float32, in the kind and unit of the model,
            and what else it has.
        Raises:
            OptionError: If the shape does not fit.
        """
        if not isinstance(pixel_values, mx.array):
            raise OptionError(f"infer takes an mx.array, not {type(pixel_values).__name__}: wrap it in mx.array(…).")
        check_fork()
        mx.eval(pixel_values)  # in the thread that built it
        return self._infer(pixel_values)

    @computing
    def _infer(self, pixel_values: mx.array) -> DepthOutputs:
        with cores_for(pixel_values.shape[-3:-1]):
            outputs = self._forward(pixel_values)
            evaluate(outputs.present(), working_bytes(self.network, pixel_values.shape, self.dtype))
        return outputs

    @functools.cached_property
    def _forward(self) -> Forward:
        return forward_of(self.network, self.dtype)

    def check_input_size(self, input_size: InputSize | None) -> None:
        """Raise OptionError if an input size cannot work, so that no image is blamed for it."""
        side = self.processor.input_size if input_size is None else input_size
        self.processor.network_size(side if isinstance(side, tuple) else (side, side), input_size)

    def _size_or_error(self, image: LoadedImage, input_size: InputSize | None) -> Size | ImageError:
        try:
            return self.processor.network_size(image.info.size, input_size)
        except OptionError as error:
            return ImageError(f"{image.info.source}: {error}")

    @computing
    def _predict_group(
        self, images: Sequence[LoadedImage], input_size: InputSize | None
    ) -> list[DepthResult | ImageError]:
        """Images of one network size, one batch."""
        warn_slow()
        size = self.processor.network_size(images[0].info.size, input_size)
        photo_bytes = sum(image.info.size[0] * image.info.size[1] for image in images) * PHOTO_PIXEL_BYTES
        with cores_for(size):
            pixel_values = mx.concatenate([self.processor(image.pixels, input_size=input_size) for image in images])
            outputs = self._forward(pixel_values)
            grown = [self._grown(outputs, index, image, size) for index, image in enumerate(images)]
            arrays = [each.present() for each in grown if isinstance(each, PhotoOutputs)]
            evaluate(arrays, photo_bytes + working_bytes(self.network, pixel_values.shape, self.dtype))
        return [
            each if isinstance(each, ImageError) else self._result(image, each, size)
            for image, each in zip(images, grown, strict=True)
        ]

    def _grown(self, outputs: DepthOutputs, index: int, image: LoadedImage, size: Size) -> PhotoOutputs | ImageError:
        """One image's outputs at the photo's size, as its family has it."""
        info = image.info
        one = DepthOutputs(**tree_map(lambda array: array[index : index + 1], outputs.present()))
        try:
            return FAMILIES[self.spec.family].postprocess(
                one, self.processor, Photo(info.size, size, info.focal_length_px)
            )
        except ImageError as error:
            return error

    def _result(self, image: LoadedImage, outputs: PhotoOutputs, size: Size) -> DepthResult:
        arrays = {name: np.array(array) for name, array in outputs.present().items()}
        extrinsics = arrays.pop("extrinsics", None)
        intrinsics = arrays.pop("intrinsics", None)
        return DepthResult(
            **arrays,
            kind=self.spec.depth_kind,
            camera=None if intrinsics is None else Camera(intrinsics, extrinsics),
            model=self.spec.name,
            image_size=image.info.size,
            input_size=size,
            image=image.pixels,
            focal_length_px=image.info.focal_length_px,
            max_depth=self.spec.config.max_depth,
            revision=self.revision,
            dtype=dtype_name(self.dtype),
            license=self.spec.license,
            source=image.info.source,
        )


def predict_stream(
    open_model: Callable[[], DepthModel],
    images: Iterable[ImageSource],
    *,
    batch_size: int,
    input_size: InputSize | None,
    background: Color | None,
    on_error: OnError | None,
) -> Iterator[DepthResult]:
    """``DepthModel.predict_batch`` with a model that is opened once the first image is readable.

    Args:
        open_model: Gives the model; not called where there is nothing to predict.
        images: As for ``predict_batch``, like the options.
    Yields:
        As ``predict_batch``.
    Raises:
        OptionError: If the batch size cannot work.
    """
    if type(batch_size) is not int or batch_size < 1:
        raise OptionError(f"batch_size is {batch_size!r:.40}: give 1 or more.")
    model = functools.cache(open_model)
    batches: Batches[DepthResult] = Batches(
        lambda image: model()._size_or_error(image, input_size),
        lambda group: model()._predict_group(group, input_size),
        batch_size,
    )
    ahead = max(batch_size, DECODING_THREADS)
    return stream(batches, images, read=_reader(background), ahead=ahead, on_error=on_error)


def _reader(background: Color | None) -> Callable[[ImageSource], LoadedImage]:
    return load_image if background is None else functools.partial(load_image, background=background)


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
    model: str | Path = ...,
    dtype: str | mx.Dtype | None = ...,
    revision: str | None = ...,
    reference: Reference | None = ...,
    input_size: InputSize | None = ...,
    background: Color | None = ...,
) -> DepthResult: ...
@overload
def predict(
    image: Sequence[ImageSource] | Iterator[ImageSource],
    *,
    model: str | Path = ...,
    dtype: str | mx.Dtype | None = ...,
    revision: str | None = ...,
    reference: Reference | None = ...,
    input_size: InputSize | None = ...,
    background: Color | None = ...,
) -> Iterator[DepthResult]: ...
def predict(
    image: Any,
    *,
    model: str | Path = DEFAULT_MODEL,
    dtype: str | mx.Dtype | None = None,
    revision: str | None = None,
    reference: Reference | None = None,
    input_size: InputSize | None = None,
    background: Color | None = None,
) -> DepthResult | Iterator[DepthResult]:
    """Predict the depth of one image, or of many. The model of the last call stays in memory.

    Args:
        image: One image (path, URL, bytes, binary file, PIL image, array); or many: a list or iterator of images, a
            folder, or a pattern such as ``"photos/*.jpg"``.
        model: As ``source`` of ``load``.
        dtype: As for ``load``.
        revision: As for ``load``.
        reference: As for ``load``.
        input_size: As for ``DepthModel.predict``.
        background: As for ``DepthModel.predict``.
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
    if are_many(image):
        return loaded.predict_batch(image, input_size=input_size, background=background)
    return loaded.predict(image, input_size=input_size, background=background)


@functools.lru_cache(maxsize=1)
def _keep(model: str | Path, dtype: mx.Dtype, revision: str | None, reference: Reference | None) -> DepthModel:
    return load(model, dtype=dtype, revision=revision, reference=reference)
