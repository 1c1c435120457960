"""More photos of one scene than a network sees at once: window by window, joined into one world.

The published code has no such thing; the rules here are our own.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_depth.camera import Camera
from mlx_depth.errors import OptionError, printable
from mlx_depth.geometry.joining import JoinedView, Window, join, plan_windows
from mlx_depth.io.image import ImageSource, LoadedImage
from mlx_depth.result import DepthResult
from mlx_depth.scene import SceneResult

Size = tuple[int, int]

SKY = 0.5  # from here on a pixel is sky, whose depth means nothing
_MAPS = ("depth", "confidence", "sky", "rays", "ray_confidence")
_FACTS = ("kind", "model", "revision", "dtype", "license")


def predict_windows(
    images: Sequence[ImageSource],
    read: Callable[[ImageSource], LoadedImage],
    predict: Callable[[Sequence[LoadedImage], Size | None], SceneResult],
    *,
    window: int,
    overlap: int,
) -> Iterator[SceneResult]:
    """Predict a sequence in windows, each joined to the one before.

    Args:
        images: All photos, in order; each is read once.
        read: Decodes one.
        predict: Makes one scene of a window's photos, of the given size in network pixels; None: of its own choice.
        window: Photos that a window has at most.
        overlap: Photos that it shares with the one before.
    Yields:
        The views of each window that the one before does not have, in the world and unit of the first window;
        ``rays`` stay in that of their own.
    Raises:
        OptionError: If the numbers do not make windows, a photo is smaller than those of the first window, or two
            windows do not fit together.

    The first window rules: its common size is that of all, and larger photos are cropped to it. Memory holds the photos
    and maps of one window, and those of the overlap with the one before, however long the sequence.
    """
    plan = plan_windows(len(images), window, overlap)
    return _joined(_scenes(images, plan, read, predict, overlap), overlap)


def merge_scenes(scenes: Iterable[SceneResult]) -> SceneResult:
    """Make one scene of those that ``DepthModel.predict_sequence`` yields.

    Args:
        scenes: Of one world and one model, with no Gaussians. The photo-sized ``views`` of each are let go before the
            next is asked for; the cameras in pixels of the photos stay, as ``photo_intrinsics``.
    Returns:
        All their views.
    Raises:
        OptionError: If there are none, they do not fit together, or they hold Gaussians.
    """
    maps: dict[str, list[Any]] = {name: [] for name in (*_MAPS, "intrinsics", "extrinsics", "photo_intrinsics")}
    lists: dict[str, list[Any]] = {"images": [], "names": [], "photo_sizes": []}
    facts: dict[str, Any] = {}
    size: Size | None = None
    scale_factor: float | None = None
    count = 0
    for scene in scenes:
        if scene.gaussians is not None:
            raise OptionError("scenes with Gaussians are not merged: predict those views together.")
        own = {name: getattr(scene, name) for name in _FACTS}
        if count and (scene.size != size or own != facts):
            raise OptionError(f"a scene of {scene.size} pixels and {own} does not go with one of {size} and {facts}.")
        facts, size, count = own, scene.size, count + len(scene)
        scale_factor = scene.scale_factor if scale_factor is None else scale_factor
        sizes, intrinsics = scene.photo_cameras()
        values = {name: getattr(scene, name) for name in maps if name != "photo_intrinsics"}
        for name, array in {**values, "photo_intrinsics": intrinsics}.items():
            maps[name] += [] if array is None else [array]
        for name, items in {"images": scene.images, "names": scene.names, "photo_sizes": sizes}.items():
            lists[name] += items
        del scene, values
    if not count:
        raise OptionError("there are no scenes to merge: give at least one.")
    arrays = {name: np.concatenate(parts) if parts else None for name, parts in maps.items()}
    for name, values_or_none in arrays.items():
        if values_or_none is not None and len(values_or_none) != count:
            raise OptionError(f"some of the scenes have no {name}: merge those of one model.")
    return SceneResult(
        **arrays,  # type: ignore[arg-type]  # depth and cameras are there
        images=lists["images"],
        names=tuple(lists["names"]),
        photo_sizes=tuple(lists["photo_sizes"]),
        scale_factor=scale_factor,
        **facts,
    )


def _scenes(
    images: Sequence[ImageSource],
    plan: Sequence[range],
    read: Callable[[ImageSource], LoadedImage],
    predict: Callable[[Sequence[LoadedImage], Size | None], SceneResult],
    overlap: int,
) -> Iterator[SceneResult]:
    """Each window in a world of its own, all of one size."""
    photos: list[LoadedImage] = []
    size: Size | None = None
    for views in plan:
        photos = [*photos, *(read(images[index]) for index in views[len(photos) :])]
        try:
            scene = predict(photos, size)
        except OptionError as error:
            if size is None:
                raise
            raise OptionError(
                f"photos {_from_to(photos)} do not fit the first window, which has {size[0]}×{size[1]} network pixels "
                f"({error}) Give an input_size (H, W) that suits all."
            ) from error
        photos, size = photos[-overlap:], scene.size
        yield scene
        del scene  # not beside the next one


def _from_to(photos: Sequence[LoadedImage]) -> str:
    first, last = (printable(photo.info.source) for photo in (photos[0], photos[-1]))
    return f"{first} to {last}"


def _joined(scenes: Iterable[SceneResult], overlap: int) -> Iterator[SceneResult]:
    waiting: list[Window] = []
    views = join(iter(waiting.pop, None), overlap)  # takes a window when it is asked for its first view
    known = 0
    for scene in scenes:
        waiting.append(_window(scene))
        try:
            new = list(itertools.islice(views, len(scene) - known))
        except OptionError as error:
            shared = " to ".join(printable(name) for name in (scene.names[0], scene.names[overlap - 1]))
            raise OptionError(
                f"the windows that share {shared} do not fit together ({str(error).partition(':')[0]}): give photos "
                "of one scene in the order they were taken, a larger overlap, or larger windows."
            ) from error
        yield _part(scene, new, known)
        known = overlap
        del scene, new


def _window(scene: SceneResult) -> Window:
    confidence = scene.confidence
    if scene.sky is not None:
        sure = np.float32(1) if confidence is None else confidence
        confidence = np.where(scene.sky < SKY, sure, np.float32(0))
    return Window(scene.depth, scene.intrinsics, scene.extrinsics, confidence)


def _part(scene: SceneResult, new: Sequence[JoinedView], known: int) -> SceneResult:
    """The scene without its first views, in the world of the joined ones."""
    similarity = new[0].similarity
    maps: dict[str, Any] = {name: _without(getattr(scene, name), known) for name in _MAPS if name != "depth"}
    return dataclasses.replace(
        scene,
        **maps,
        depth=np.stack([view.depth for view in new]),
        intrinsics=np.stack([view.intrinsics for view in new]),
        extrinsics=np.stack([view.extrinsics for view in new]),
        images=list(scene.images[known:]),
        names=scene.names[known:],
        photo_sizes=scene.photo_sizes[known:],
        photo_intrinsics=_without(scene.photo_intrinsics, known),
        views=tuple(
            _moved(view, joined, similarity.scale) for view, joined in zip(scene.views[known:], new, strict=True)
        ),
        scale_factor=None if scene.scale_factor is None else scene.scale_factor * similarity.scale,
    )


def _without(array: npt.NDArray[Any] | None, known: int) -> npt.NDArray[Any] | None:
    """A copy, so that the rest can be let go."""
    return None if array is None else array[known:].copy()


def _moved(result: DepthResult, joined: JoinedView, scale: float) -> DepthResult:
    camera = result.camera and Camera(result.camera.intrinsics, joined.extrinsics)
    return dataclasses.replace(result, depth=result.depth * np.float32(scale), camera=camera)
