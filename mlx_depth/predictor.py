"""From images to results: the one place that walks the whole line, once, from the path to the ``DepthResult``."""

import dataclasses
import functools
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, overload

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_depth.checkpoints import hub
from mlx_depth.checkpoints.checkpoint import Checkpoint, build_network, read_checkpoint
from mlx_depth.errors import ImageError, ModelNotFoundError, OptionError
from mlx_depth.io.image import ImageSource, LoadedImage, load_image
from mlx_depth.linux_cpu import openblas
from mlx_depth.processor import InputSize, Processor, Reference, resize_depth
from mlx_depth.registry import ModelSpec, find_model, find_published
from mlx_depth.result import DepthResult
from mlx_depth.runtime.forward import Forward, cores_for, depth_of, evaluate, working_bytes
from mlx_depth.weights.safetensors_io import DTYPES, dtype_name

DEFAULT_MODEL = "depth-anything-v2-small"
DECODING_THREADS = 4  # large photos take longer to decode than a small network on a GPU
PHOTO_PIXEL_BYTES = 64  # of a photo and its depth while they are resized
WINDOW = 4  # batches' worth of images that may wait for others of their size

OnError = Callable[[ImageSource, ImageError], None]


@dataclass(frozen=True, eq=False, repr=False)
class DepthModel:
    """A model in memory, ready to predict.

    Attributes:
        spec: Name, sizes, licence and kind of depth.
        network: The ``nn.Module``: normalised ``pixel_values`` (B, H, W, 3) → named outputs with ``depth`` (B, H, W).
            Change its parameters before the first prediction: a GPU runs a compiled graph that keeps them.
        processor: How photos become ``pixel_values``, and depth maps photo-sized again.
        dtype: Number format that the network computes in.
        revision: Commit of the Hub repository; None for local weights.
    """

    spec: ModelSpec
    network: nn.Module
    processor: Processor
    dtype: mx.Dtype
    revision: str | None = None

    def __repr__(self) -> str:
        return f"DepthModel({self.spec.name!r}, {self.spec.depth_kind.description}, {dtype_name(self.dtype)})"

    def predict(self, image: ImageSource, *, input_size: InputSize | None = None) -> DepthResult:
        """Predict the depth of one image.

        Args:
            image: Path, URL, bytes, binary file, PIL image, numpy or MLX array; see ``load_image``.
            input_size: Short side in network pixels, or an exact ``(height, width)`` in multiples of 14; None: the
                model's own. Larger shows finer detail, slower.
        Returns:
            Depth at the original size, float32, with its kind and unit.
        Raises:
            ImageError: If the image cannot be read.
            OptionError: If the input size cannot work.
        """
        return self._predict_group([load_image(image)], input_size)[0]

    def predict_batch(
        self,
        images: Iterable[ImageSource],
        *,
        batch_size: int = 4,
        input_size: InputSize | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[DepthResult]:
        """Predict many images of any mix of sizes; decoding runs ahead of the network.

        Images of equal network size share a batch. Memory stays bounded: no more than ``4 * batch_size`` images wait,
        and while it predicts MLX holds little beyond what the network needs at once: see ``inference.evaluate``.

        Args:
            images: A list or any iterator of what ``predict`` takes.
            batch_size: Images that the network sees at once.
            input_size: As for ``predict``.
            on_error: Called with each unreadable image and its error, which is then left out; None: raise the error
                once the results before it are out.
        Yields:
            One result an image, in the order given.
        Raises:
            ImageError: If an image cannot be read and there is no ``on_error``.
            OptionError: If the batch size or the input size cannot work.
        """
        if isinstance(images, (str, bytes, bytearray, memoryview, Path, LoadedImage)):
            raise OptionError("predict_batch takes a list or iterator of images, and this is one: use predict.")
        self.check_input_size(input_size)
        return predict_stream(lambda: self, images, batch_size=batch_size, input_size=input_size, on_error=on_error)

    def infer(self, pixel_values: mx.array) -> mx.array:
        """Run the network alone, as fast as ``predict`` does.

        Args:
            pixel_values: Normalised RGB, ``(B, H, W, 3)``, any float type; H and W are multiples of the patch size.
        Returns:
            Depth ``(B, H, W)``, float32, evaluated, in the kind and unit of the model.
        Raises:
            OptionError: If the shape does not fit.
        """
        with cores_for(pixel_values.shape[1:3]):
            depth = self._forward(pixel_values)
            evaluate(depth, working_bytes(self.network, pixel_values.shape, self.dtype))
        return depth

    @functools.cached_property
    def _forward(self) -> Forward:
        return depth_of(self.network, self.dtype)

    def check_input_size(self, input_size: InputSize | None) -> None:
        """Raise OptionError if an input size cannot work, so that no image is blamed for it."""
        side = self.processor.input_size if input_size is None else input_size
        self.processor.network_size(side if isinstance(side, tuple) else (side, side), input_size)

    def _size_or_error(self, image: LoadedImage, input_size: InputSize | None) -> tuple[int, int] | ImageError:
        try:
            return self.processor.network_size(image.info.size, input_size)
        except OptionError as error:
            return ImageError(f"{image.info.source}: {error}")

    def _predict_group(self, images: list[LoadedImage], input_size: InputSize | None) -> list[DepthResult]:
        """Images of one network size, one batch."""
        _warn_slow()
        photo_bytes = sum(image.info.size[0] * image.info.size[1] for image in images) * PHOTO_PIXEL_BYTES
        with cores_for(self.processor.network_size(images[0].info.size, input_size)):
            pixel_values = mx.concatenate([self.processor(image.pixels, input_size=input_size) for image in images])
            depth = self._forward(pixel_values)
            full = [
                resize_depth(depth[i : i + 1], image.info.size, method=self.processor.restore)[0]
                for i, image in enumerate(images)
            ]
            evaluate(full, photo_bytes + working_bytes(self.network, pixel_values.shape, self.dtype))
        return [
            self._result(image, np.array(array), (depth.shape[1], depth.shape[2]))
            for image, array in zip(images, full, strict=True)
        ]

    def _result(self, image: LoadedImage, depth: "np.ndarray", input_size: tuple[int, int]) -> DepthResult:
        return DepthResult(
            depth,
            self.spec.depth_kind,
            model=self.spec.name,
            image_size=image.info.size,
            input_size=input_size,
            image=image.pixels,
            focal_length_px=image.info.focal_length_px,
            max_depth=self.spec.config.max_depth,
            revision=self.revision,
            dtype=dtype_name(self.dtype),
            licence=self.spec.licence,
            source=image.info.source,
        )


def predict_stream(
    open_model: Callable[[], DepthModel],
    images: Iterable[ImageSource],
    *,
    batch_size: int,
    input_size: InputSize | None,
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
    if batch_size < 1:
        raise OptionError(f"batch_size is {batch_size}: give 1 or more.")
    return _stream(functools.cache(open_model), images, batch_size, input_size, on_error)


def _stream(
    model: Callable[[], DepthModel],
    images: Iterable[ImageSource],
    batch_size: int,
    input_size: InputSize | None,
    on_error: OnError | None,
) -> Iterator[DepthResult]:
    groups: dict[tuple[int, int], dict[int, LoadedImage]] = {}  # network size → waiting images by number
    done: dict[int, DepthResult | tuple[ImageSource, ImageError]] = {}
    due = 0  # number of the next image to hand out

    def run(group: dict[int, LoadedImage]) -> None:
        done.update(zip(group, model()._predict_group(list(group.values()), input_size), strict=True))

    def hand_out() -> Iterator[DepthResult]:
        nonlocal due
        while due in done:
            outcome = done.pop(due)
            due += 1
            if isinstance(outcome, DepthResult):
                yield outcome
            elif on_error is None:
                raise outcome[1]
            else:
                on_error(*outcome)

    with _decoding(images, max(batch_size, DECODING_THREADS)) as decoded:
        for number, (source, loaded) in enumerate(decoded):
            size = loaded if isinstance(loaded, ImageError) else model()._size_or_error(loaded, input_size)
            if isinstance(size, ImageError):
                done[number] = (source, size)
            else:
                groups.setdefault(size, {})[number] = cast(LoadedImage, loaded)
                if len(groups[size]) == batch_size:
                    run(groups.pop(size))
            if number - due >= WINDOW * batch_size and due not in done:
                run(groups.pop(next(size for size, group in groups.items() if due in group)))
            yield from hand_out()
    for group in groups.values():
        run(group)
        yield from hand_out()


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
    checkpoint, commit = fetch(source, revision=revision, progress=progress)
    if reference is not None:
        checkpoint = _follow(checkpoint, reference)
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    network = build_network(checkpoint, dtype=chosen, expand=on_cpu, hand_over=True)
    return DepthModel(checkpoint.spec, network, checkpoint.spec.processor, chosen, commit)


def fetch(source: str | Path, *, revision: str | None = None, progress: bool = True) -> tuple[Checkpoint, str | None]:
    """Find a model, download it where that is needed, and read its checkpoint.

    Args:
        source: As for ``load``.
        revision: As for ``load``.
        progress: As for ``load``.
    Returns:
        The checkpoint, its tensors still on disk, and the Hub's commit.
    Raises:
        ModelNotFoundError: If there is no such model, or it cannot be downloaded.
        CheckpointError: If its files are damaged or not exactly what the model needs.
    """
    location, spec = locate_model(source, revision=revision, progress=progress)
    return read_checkpoint(location.path, spec, name=location.repo), location.revision


def locate_model(
    source: str | Path, *, revision: str | None = None, progress: bool = True, convertible: bool = False
) -> tuple[hub.Location, ModelSpec | None]:
    """Find a model's files, download them where that is needed.

    Args:
        source: As for ``load``.
        revision: As for ``load``.
        progress: As for ``load``.
        convertible: As for ``hub.locate``.
    Returns:
        Where the files are, and the registry's entry if they are those of a published model.
    Raises:
        ModelNotFoundError: If there is no such model, or it cannot be downloaded.
    """
    spec = find_model(str(source)) if hub.is_name(source) else None
    if spec is not None and spec.folder is not None:
        if revision is not None:
            raise OptionError(f"{spec.name} is on this disk in one version: leave revision {revision!r} out.")
        return hub.Location(spec.folder), spec
    if spec is not None and spec.hub_id is None:
        raise ModelNotFoundError(f"the weights of {spec.name} are not released: choose another of `mlx-depth models`.")
    if spec is not None and spec.hub_id is not None:
        source, revision = spec.hub_id, revision or "main"  # a given revision always means the Hub
    repo = str(source).partition("@")[0]
    published = find_published(repo)
    if published is not None and not hub.is_path(source):
        _warn_licence(published, repo)
    location = hub.locate(source, revision=revision, progress=progress, convertible=convertible)
    return location, find_published(location.repo) if location.repo is not None else None


@overload
def predict(  # type: ignore[overload-overlap]  # a str is a sequence and an open file an iterator: each is one image
    image: ImageSource,
    *,
    model: str | Path = ...,
    dtype: str | mx.Dtype | None = ...,
    revision: str | None = ...,
    input_size: InputSize | None = ...,
) -> DepthResult: ...
@overload
def predict(
    image: Sequence[ImageSource] | Iterator[ImageSource],
    *,
    model: str | Path = ...,
    dtype: str | mx.Dtype | None = ...,
    revision: str | None = ...,
    input_size: InputSize | None = ...,
) -> Iterator[DepthResult]: ...
def predict(
    image: Any,
    *,
    model: str | Path = DEFAULT_MODEL,
    dtype: str | mx.Dtype | None = None,
    revision: str | None = None,
    input_size: InputSize | None = None,
) -> DepthResult | Iterator[DepthResult]:
    """Predict depth; the loaded model is kept for the next call.

    Args:
        image: One image (path, URL, bytes, binary file, PIL image, array), or a list or iterator of images.
        model: As ``source`` of ``load``.
        dtype: As for ``load``.
        revision: As for ``load``.
        input_size: As for ``DepthModel.predict``.
    Returns:
        One result; for a list or iterator an iterator of results in the same order.
    Raises:
        MlxDepthError: As ``load`` and ``DepthModel.predict``.
    """
    name = find_model(model).name if isinstance(model, str) and hub.is_name(model) else model
    loaded = _keep(name, resolve_dtype(dtype), revision)
    if _are_many(image):
        return loaded.predict_batch(image, input_size=input_size)
    return loaded.predict(image, input_size=input_size)


def _are_many(image: Any) -> bool:
    if isinstance(image, (str, bytes, bytearray, memoryview, LoadedImage)) or hasattr(image, "read"):
        return False
    return isinstance(image, (Sequence, Iterator))


@functools.lru_cache(maxsize=1)
def _keep(model: str | Path, dtype: mx.Dtype, revision: str | None) -> DepthModel:
    return load(model, dtype=dtype, revision=revision)


def _warn_licence(spec: ModelSpec, repo: str) -> None:
    """Before a first download: its licence, where that forbids commercial use."""
    if spec.commercial or hub.is_cached(repo):
        return
    warnings.warn(
        f"{spec.name} is licensed {spec.licence}: not for commercial use; `mlx-depth models` lists all licences.",
        stacklevel=5,
    )


def resolve_dtype(name: str | mx.Dtype | None) -> mx.Dtype:
    """The number format that ``load`` takes for ``dtype``; None: float16 on a GPU, float32 on a CPU.

    Raises:
        OptionError: If there is no such one, or it is not for networks.
    """
    if name is None:
        return mx.float32 if mx.default_device() == mx.Device(mx.cpu) else mx.float16
    if isinstance(name, mx.Dtype) and name in DTYPES.values():
        return name
    if isinstance(name, str) and name in DTYPES:
        return DTYPES[name]
    raise OptionError(f"no dtype {str(name)!r}: choose one of {', '.join(DTYPES)}")


def _follow(checkpoint: Checkpoint, reference: Reference) -> Checkpoint:
    spec = checkpoint.spec
    config = checkpoint.family.follow(spec.config, reference)
    return dataclasses.replace(
        checkpoint,
        spec=dataclasses.replace(spec, config=config, processor=spec.processor.follow(reference)),
    )


@contextmanager
def _decoding(
    images: Iterable[ImageSource], ahead: int
) -> Iterator[Iterator[tuple[ImageSource, LoadedImage | ImageError]]]:
    """Threads that load images in order, at most ``ahead`` of them before they are asked for."""
    pool = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="mlx-depth-decode")
    try:
        yield _decode_ahead(pool, images, ahead)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _decode_ahead(
    pool: ThreadPoolExecutor, images: Iterable[ImageSource], ahead: int
) -> Iterator[tuple[ImageSource, LoadedImage | ImageError]]:
    queue: deque[tuple[ImageSource, Future[LoadedImage | ImageError]]] = deque()
    for source in images:
        queue.append((source, _start_loading(pool, source)))
        if len(queue) > ahead:
            source, future = queue.popleft()
            yield source, future.result()
    while queue:
        source, future = queue.popleft()
        yield source, future.result()


def _start_loading(pool: ThreadPoolExecutor, source: ImageSource) -> Future[LoadedImage | ImageError]:
    """Load in a thread; but an MLX array here: only the thread that made it can evaluate it."""
    if not isinstance(source, mx.array):
        return pool.submit(_try_load, source)
    loaded: Future[LoadedImage | ImageError] = Future()
    loaded.set_result(_try_load(source))
    return loaded


def _try_load(source: ImageSource) -> LoadedImage | ImageError:
    try:
        return load_image(source)
    except ImageError as error:
        return error


@functools.cache
def _warn_slow() -> None:
    """Once a process: say how to get a fast BLAS where MLX computes on a slow one."""
    hint = openblas.hint() if mx.default_device() == mx.Device(mx.cpu) else None
    if hint is not None:
        warnings.warn(hint, stacklevel=4)
