"""A model in memory: from images to results, walking the whole line once."""

import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_map

from mlx_depth.errors import ImageError, OptionError
from mlx_depth.io.find import are_many, find_photos
from mlx_depth.io.image import ImageSource, LoadedImage, load_image, with_focal_length
from mlx_depth.io.prompt import PromptSource, PromptUnit, check_same_field, load_prompt, prompts_of
from mlx_depth.models.base import PROMPT, DepthNetwork, DepthOutputs, Family, Meaning, Photo, PhotoOutputs, Size
from mlx_depth.models.families import FAMILIES
from mlx_depth.multiview import Facts, PoseFrom, needed, prepare_views, scene_of, with_ray_cameras
from mlx_depth.processor import InputSize, Processor
from mlx_depth.registry import ModelSpec
from mlx_depth.result import Camera, DepthResult
from mlx_depth.runtime.forward import Conditions, Forward, cores_for, evaluate, forward_of, warn_slow, working_bytes
from mlx_depth.runtime.process import check_fork, computing
from mlx_depth.runtime.stream import DECODING_THREADS, Batches, LoadedShot, OnError, Shot, stream
from mlx_depth.scene import SceneResult
from mlx_depth.sequence import predict_windows
from mlx_depth.weights.safetensors_io import dtype_name

Color = tuple[int, int, int]
Options = tuple[tuple[str, Any], ...]  # of the network, by name
Terms = tuple[Size, Options]
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

    @property
    def family(self) -> Family:
        """What the model's family says of it."""
        return FAMILIES[self.spec.family]

    def predict(
        self,
        image: ImageSource,
        *,
        prompt: PromptSource | None = None,
        prompt_unit: PromptUnit | None = None,
        input_size: InputSize | None = None,
        background: Color | None = None,
        focal_length_px: float | None = None,
    ) -> DepthResult:
        """Predict the depth of one image.

        Args:
            image: Path, URL, bytes, binary file, PIL image, numpy or MLX array; see ``load_image``.
            prompt: A coarse map of distances in the photo, ``(h, w)``, such as a phone's LiDAR gives, for models that
                take one: a 16-bit PNG, .npy, .npz, .tiff, .pfm, .exr, array or PIL image; see
                ``io.prompt.load_prompt``. Without one their depth is relative.
            prompt_unit: ``"m"`` or ``"mm"``; None: millimetres for whole numbers, metres for floats.
            input_size: Short side in network pixels (for Depth Anything 3 the long one, for MoGe that of a square of
                equal area), or an exact ``(height, width)`` in multiples of the patch size; None: the model's own.
                Larger shows finer detail, slower.
            background: RGB, 0..255, under transparent pixels; None: white.
            focal_length_px: Focal length in pixels of the photo, where it is known: for models whose metres need it
                (None: from EXIF) and for those that else estimate it (None: they do).
        Returns:
            Depth at the original size, float32, with its kind and unit.
        Raises:
            ImageError: If the image or the prompt cannot be read.
            OptionError: If the input size cannot work, or the model takes no prompt.
        """
        self.check_prompts(prompt)
        shot = _shot_reader(background, focal_length_px, prompt_unit)(Shot(image, prompt))
        outcome = self._predict_group([shot], input_size)[0]
        if isinstance(outcome, ImageError):
            raise outcome
        return outcome

    def predict_batch(
        self,
        images: str | Path | Iterable[ImageSource],
        *,
        prompts: str | Path | Iterable[PromptSource] | None = None,
        prompt_unit: PromptUnit | None = None,
        batch_size: int = 4,
        input_size: InputSize | None = None,
        background: Color | None = None,
        focal_length_px: float | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[DepthResult]:
        """Predict many images of any mix of sizes; decoding runs ahead of the network.

        Images of equal network size share a batch. Memory stays bounded: no more than ``4 * batch_size`` images wait,
        and while it predicts MLX holds little beyond what the network needs at once: see ``runtime.forward.evaluate``.

        Args:
            images: A list or any iterator of what ``predict`` takes; or a folder or a pattern such as
                ``"photos/*.jpg"``, whose images come by name.
            prompts: A depth prompt for each image, as for ``predict``, in the same order; or a folder of files that are
                called like the images.
            prompt_unit: As for ``predict``.
            batch_size: Images that the network sees at once.
            input_size: As for ``predict``.
            background: As for ``predict``.
            focal_length_px: As for ``predict``, of every photo.
            on_error: Called with each unreadable image and its error, which is then left out; None: raise the error
                once the results before it are out.
        Yields:
            One result an image, in the order given.
        Raises:
            ImageError: If an image or its prompt cannot be read and there is no ``on_error``.
            OptionError: If the batch size or the input size cannot work, if the model takes no prompts, or if there is
                not one for each image.
        """
        if isinstance(images, (str, Path)) and are_many(images):
            images = find_photos(images)
        if isinstance(images, (str, bytes, bytearray, memoryview, Path, LoadedImage)):
            raise OptionError("predict_batch takes a list or iterator of images, and this is one: use predict.")
        if not isinstance(images, Iterable):
            raise OptionError(f"predict_batch takes a list or iterator of images, not {type(images).__name__}.")
        self.check_input_size(input_size)
        self.check_prompts(prompts)
        return predict_stream(
            lambda: self,
            _shots(images, prompts),
            prompt_unit=prompt_unit,
            batch_size=batch_size,
            input_size=input_size,
            background=background,
            focal_length_px=focal_length_px,
            on_error=on_error,
        )

    def predict_views(
        self,
        images: str | Path | Iterable[ImageSource],
        *,
        extrinsics: npt.ArrayLike | None = None,
        intrinsics: npt.ArrayLike | None = None,
        pose_from: PoseFrom = "camera",
        reference_view: str = "saddle_balanced",
        input_size: InputSize | None = None,
        gaussians: bool = False,
        background: Color | None = None,
    ) -> SceneResult:
        """Predict several photos of one scene together: their depth and cameras in one world.

        Args:
            images: The photos, as for ``predict_batch``; of photos of other shapes the network sees the middle.
            extrinsics: Known cameras, ``(V, 3, 4)`` or ``(V, 4, 4)``, world → camera, OpenCV axes; None: estimated.
                The scene is then in their world and unit.
            intrinsics: Theirs, ``(V, 3, 3)``, in pixels of the photos.
            pose_from: Estimate cameras from the network's ``"camera"`` tokens, or from its ``"rays"``, slower.
            reference_view: The view to which the others are seen, of 3 or more without known cameras:
                ``"saddle_balanced"``, ``"saddle_sim_range"``, ``"middle"`` or ``"first"``.
            input_size: Long side in network pixels (504), or an exact ``(height, width)`` in multiples of 14.
            gaussians: Make 3D Gaussians, too, which the giant models can.
            background: As for ``predict``.
        Returns:
            The scene, at the size that the network saw; its ``views`` hold each photo's depth and camera at its own.
        Raises:
            ImageError: If an image cannot be read, or the scene is nothing but sky and its metres are asked for.
            OptionError: If the model takes one view alone, or an option cannot work.
        """
        self._check_views(pose_from, input_size)
        found = find_photos(images) if isinstance(images, (str, Path)) else images
        loaded = [_reader(background, None)(image) for image in found]
        return self._predict_scene(
            loaded,
            extrinsics,
            intrinsics,
            pose_from,
            input_size,
            {"reference_view": reference_view, "gaussians": gaussians},
        )

    def predict_sequence(
        self,
        images: str | Path | Iterable[ImageSource],
        *,
        window: int = 32,
        overlap: int = 8,
        pose_from: PoseFrom = "camera",
        reference_view: str = "saddle_balanced",
        input_size: InputSize | None = None,
        background: Color | None = None,
    ) -> Iterator[SceneResult]:
        """Predict more photos of one scene than fit at once, such as frames of a walk, in overlapping windows.

        Args:
            images: In order, as for ``predict_views``, like the other options; photos are read window by window.
            window: Photos that the network sees together at most.
            overlap: Photos that a window shares with the one before, by which it is joined.
        Yields:
            The new views of each window, in the world and unit of the first. ``merge_scenes`` makes one scene of them.
        Raises:
            ImageError: As for ``predict_views``.
            OptionError: As for ``predict_views``, or if two windows do not fit together where they overlap.
        """
        self._check_views(pose_from, input_size)
        found = find_photos(images) if isinstance(images, (str, Path)) else list(images)
        options = {"reference_view": reference_view, "gaussians": False}
        return predict_windows(
            found,
            _reader(background, None),
            lambda group, size: self._predict_scene(group, None, None, pose_from, input_size, options, size),
            window=window,
            overlap=overlap,
        )

    def _check_views(self, pose_from: PoseFrom, input_size: InputSize | None) -> None:
        if self.network.takes != "views":
            raise OptionError(
                f"{self.spec.name} takes one view: use predict, or a model for several, such as depth-anything-3-small."
            )
        if pose_from not in get_args(PoseFrom):
            raise OptionError(f"no pose_from {pose_from!r}: choose one of {', '.join(get_args(PoseFrom))}.")
        self.check_input_size(input_size)

    @computing
    def _predict_scene(
        self,
        images: Sequence[LoadedImage],
        extrinsics: npt.ArrayLike | None,
        intrinsics: npt.ArrayLike | None,
        pose_from: PoseFrom,
        input_size: InputSize | None,
        options: dict[str, Any],
        size: Size | None = None,
    ) -> SceneResult:
        warn_slow()
        views = prepare_views(
            images, self.processor, input_size=input_size, extrinsics=extrinsics, intrinsics=intrinsics, size=size
        )
        forward = self._forward_with(options)
        limit = working_bytes(self.network, views.pixel_values.shape, self.dtype)
        with cores_for(views.size):
            outputs = forward(views.pixel_values, views.conditions())
            evaluate(needed(outputs, pose_from), limit)
            if pose_from == "rays":
                outputs = with_ray_cameras(outputs, views.size, self.spec.config, self.family)
            model = Facts(self.family, self.spec.config, self.processor, self._facts())
            return scene_of(outputs, views, model, lambda arrays: evaluate(arrays, limit))

    def infer(self, pixel_values: mx.array, conditions: Conditions | None = None) -> DepthOutputs:
        """Run the network alone, as fast as ``predict`` does.

        Args:
            pixel_values: Normalized RGB, ``(B, H, W, 3)``, any float type; H and W are multiples of the patch size.
            conditions: What comes in beside the pixels, by name: of ``network.conditions``.
        Returns:
            What the network computes, evaluated: ``depth`` ``(B, H, W)``, float32, in the kind and unit of the model,
            and what else it has.
        Raises:
            OptionError: If a shape does not fit, or the network has no such condition.
        """
        if not isinstance(pixel_values, mx.array):
            raise OptionError(f"infer takes an mx.array, not {type(pixel_values).__name__}: wrap it in mx.array(…).")
        unknown = [name for name in conditions or {} if name not in self.network.conditions]
        if unknown:
            known = ", ".join(self.network.conditions) or "nothing"
            raise OptionError(f"{self.spec.name} takes no {', '.join(unknown)} beside the pixels: it takes {known}.")
        check_fork()
        mx.eval(pixel_values, conditions or {})  # in the thread that built them
        return self._infer(pixel_values, conditions or {})

    @computing
    def _infer(self, pixel_values: mx.array, conditions: Conditions) -> DepthOutputs:
        with cores_for(pixel_values.shape[-3:-1]):
            outputs = self._forward_with({})(pixel_values, conditions)
            evaluate(outputs.present(), working_bytes(self.network, pixel_values.shape, self.dtype))
        return outputs

    def _forward_with(self, options: Mapping[str, Any]) -> Forward:
        """The network as it is run with some options, kept."""
        key = tuple(options.items())
        if key not in self._forwards:
            self._forwards[key] = forward_of(self.network, self.dtype, options)
        return self._forwards[key]

    @functools.cached_property
    def _forwards(self) -> dict[Options, Forward]:
        return {}

    def check_input_size(self, input_size: InputSize | None) -> None:
        """Raise OptionError if an input size cannot work, so that no image is blamed for it."""
        side = self.processor.input_size if input_size is None else input_size
        self.processor.network_size(side if isinstance(side, tuple) else (side, side), input_size)

    def check_prompts(self, prompts: object | None) -> None:
        """Raise OptionError if there are depth prompts, and the model takes none."""
        if prompts is not None and PROMPT not in self.network.conditions:
            raise OptionError(
                f"{self.spec.name} takes no depth prompt: leave it out, or take a model that does, such as "
                "prompt-depth-anything-small."
            )

    def _terms(self, image: LoadedImage, input_size: InputSize | None) -> Terms:
        """The network size of a photo, and with which options of the network it is computed."""
        size = self.processor.network_size(image.info.size, input_size)
        return size, tuple(self.family.options(self.spec.config, _photo(image, size)).items())

    def _batch_key(self, shot: LoadedShot, input_size: InputSize | None) -> Hashable | ImageError:
        """What the photos of a batch have in common: their terms, and the size of their prompts."""
        info = shot.image.info
        try:
            terms = self._terms(shot.image, input_size)
        except OptionError as error:
            return ImageError(f"{info.source}: {error}")
        return terms, None if shot.prompt is None else shot.prompt.shape

    @computing
    def _predict_group(
        self, shots: Sequence[LoadedShot], input_size: InputSize | None
    ) -> list[DepthResult | ImageError]:
        """Photos of one ``_batch_key``, one batch."""
        warn_slow()
        images = [shot.image for shot in shots]
        conditions = [{} if shot.prompt is None else {PROMPT: shot.prompt} for shot in shots]
        size, options = self._terms(images[0], input_size)
        forward = self._forward_with(dict(options))
        photo_bytes = sum(image.info.size[0] * image.info.size[1] for image in images) * PHOTO_PIXEL_BYTES
        photos = [_photo(image, size) for image in images]
        with cores_for(size):
            pixel_values = mx.concatenate([self.processor(image.pixels, input_size=input_size) for image in images])
            limit = photo_bytes + working_bytes(self.network, pixel_values.shape, self.dtype)
            if self.network.takes == "views":
                outputs = forward(pixel_values[:, None]).first_view()  # scenes of one view
            else:
                given = {**_stacked(conditions), **self.family.photo_conditions(photos)}
                outputs = forward(pixel_values, given)
            if (first := self.family.read_first(outputs)) is not None:
                evaluate(first, limit)
            grown = [self._grown(outputs, index, image, photos[index]) for index, image in enumerate(images)]
            arrays = [each.present() for each in grown if isinstance(each, PhotoOutputs)]
            evaluate(arrays, limit)
        return [
            each if isinstance(each, ImageError) else self._result(image, each, size, self.spec.config.meaning(given))
            for image, each, given in zip(images, grown, conditions, strict=True)
        ]

    def _grown(self, outputs: DepthOutputs, index: int, image: LoadedImage, photo: Photo) -> PhotoOutputs | ImageError:
        """One image's outputs at the photo's size, as its family has it."""
        one = DepthOutputs(**tree_map(lambda array: array[index : index + 1], outputs.present()))
        try:
            return self.family.postprocess(self.spec.config, one, self.processor, photo)
        except ImageError as error:
            return ImageError(f"{image.info.source}: {error}")

    def _result(
        self, image: LoadedImage, outputs: PhotoOutputs, size: Size, meaning: Meaning
    ) -> DepthResult | ImageError:
        arrays: dict[str, Any] = {name: np.array(array) for name, array in outputs.present().items()}
        if not np.isfinite(arrays["depth"]).any():
            return ImageError(f"{image.info.source} has no depth: {self.family.no_depth}.")
        extrinsics = arrays.pop("extrinsics", None)
        intrinsics = arrays.pop("intrinsics", None)
        return DepthResult(
            **arrays,
            kind=meaning.kind,
            camera=None if intrinsics is None else Camera(intrinsics, extrinsics),
            image_size=image.info.size,
            input_size=size,
            image=image.pixels,
            focal_length_px=image.info.focal_length_px,
            max_depth=meaning.max_depth,
            source=image.info.source,
            **self._facts(),
        )

    def _facts(self) -> dict[str, Any]:
        """What every result says of the model."""
        return {
            "model": self.spec.name,
            "revision": self.revision,
            "dtype": dtype_name(self.dtype),
            "license": self.spec.license,
        }


def predict_stream(
    open_model: Callable[[], DepthModel],
    shots: Iterable[Shot],
    *,
    prompt_unit: PromptUnit | None = None,
    batch_size: int,
    input_size: InputSize | None,
    background: Color | None,
    focal_length_px: float | None = None,
    on_error: OnError | None,
) -> Iterator[DepthResult]:
    """``DepthModel.predict_batch`` with a model that is opened once the first image is readable.

    Args:
        open_model: Gives the model; not called where there is nothing to predict.
        shots: The photos, as for ``predict_batch``, like the options.
    Yields:
        As ``predict_batch``.
    Raises:
        OptionError: If the batch size cannot work.
    """
    if type(batch_size) is not int or batch_size < 1:
        raise OptionError(f"batch_size is {batch_size!r:.40}: give 1 or more.")
    model = functools.cache(open_model)
    batches: Batches[DepthResult] = Batches(
        lambda shot: model()._batch_key(shot, input_size),
        lambda group: model()._predict_group(group, input_size),
        batch_size,
    )
    ahead = max(batch_size, DECODING_THREADS)
    read = _shot_reader(background, focal_length_px, prompt_unit)
    return stream(batches, shots, read=read, ahead=ahead, on_error=on_error)


def _shots(images: Iterable[ImageSource], prompts: str | Path | Iterable[PromptSource] | None) -> Iterable[Shot]:
    """One a photo; what can be told of the number of prompts at once is an error at once."""
    if prompts is None:
        return map(Shot, images)
    if isinstance(prompts, (str, Path)):
        images = list(images)
        prompts = prompts_of(images, Path(prompts))
    if not isinstance(prompts, Iterable):
        raise OptionError(f"prompts takes one for each image, in a list, not {type(prompts).__name__}.")
    if isinstance(images, Sized) and isinstance(prompts, Sized) and len(images) != len(prompts):
        raise OptionError(f"there are {len(prompts)} prompts for {len(images)} images: give one for each.")
    return _paired(images, prompts)


_END = object()


def _paired(images: Iterable[ImageSource], prompts: Iterable[PromptSource]) -> Iterator[Shot]:
    pairs = itertools.zip_longest(images, prompts, fillvalue=_END)
    for number, (image, prompt) in enumerate(pairs):
        if image is _END or prompt is _END:
            raise OptionError(f"the {'images' if image is _END else 'prompts'} end after {number}: give one for each.")
        yield Shot(image, prompt)  # type: ignore[arg-type]  # neither is the end


def _stacked(conditions: Sequence[dict[str, npt.NDArray[Any]]]) -> Conditions:
    """Of single photos → of their batch."""
    return {name: mx.array(np.stack([each[name] for each in conditions])) for name in conditions[0]}


def _shot_reader(
    background: Color | None, focal_length_px: float | None, prompt_unit: PromptUnit | None
) -> Callable[[Shot], LoadedShot]:
    read = _reader(background, focal_length_px)

    def read_shot(shot: Shot) -> LoadedShot:
        image = read(shot.image)
        if shot.prompt is None:
            return LoadedShot(image)
        prompt = load_prompt(shot.prompt, unit=prompt_unit)
        check_same_field(prompt, image.info)
        return LoadedShot(image, prompt)

    return read_shot


def _photo(image: LoadedImage, size: Size) -> Photo:
    return Photo(image.info.size, size, image.info.focal_length_px, image.info.focal_length_given)


def _reader(background: Color | None, focal_length_px: float | None) -> Callable[[ImageSource], LoadedImage]:
    read = load_image if background is None else functools.partial(load_image, background=background)
    return read if focal_length_px is None else lambda image: with_focal_length(read(image), focal_length_px)
