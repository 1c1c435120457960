"""Several photos of one scene through a network of views: what goes in, and the scene that comes out."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_depth.camera import Camera
from mlx_depth.errors import ImageError, OptionError
from mlx_depth.gaussians import Gaussians
from mlx_depth.geometry.alignment import align_poses
from mlx_depth.geometry.checks import check_extrinsics, check_intrinsics
from mlx_depth.geometry.poses import as_3x4, camera_centers, normalize_extrinsics
from mlx_depth.geometry.ray_pose import cameras_from_rays
from mlx_depth.io.image import LoadedImage
from mlx_depth.models.base import DepthOutputs, Family, Photo, PhotoOutputs
from mlx_depth.processor import InputSize, Processor
from mlx_depth.result import DepthResult
from mlx_depth.scene import SceneResult
from mlx_depth.views import Offset, intrinsics_to_network, intrinsics_to_photo, unify

PoseFrom = Literal["camera", "rays"]
Size = tuple[int, int]
Floats = npt.NDArray[np.floating]

_RAW = {"raw", "raw_confidence"}  # of which Gaussians are made
VIEWS_FOR_RANSAC = 10  # from here on upstream aligns to given poses with RANSAC
POSE_SCALES = (1 / 3, 3.0)  # to which upstream holds the scale of Gaussians


@dataclass(frozen=True)
class Views:
    """The photos of a scene as one input of the network."""

    images: tuple[LoadedImage, ...]
    pixel_values: mx.array  # (1, V, H, W, 3)
    sizes: tuple[Size, ...]  # of each photo once it is resized, in network pixels
    offsets: tuple[Offset, ...]  # of what the network sees of it, as views of different sizes are cropped
    extrinsics: Floats | None = None  # (V, 3, 4), as given
    intrinsics: Floats | None = None  # (V, 3, 3), as given, in network pixels

    @property
    def size(self) -> Size:
        """``(H, W)`` that the network sees."""
        H, W = self.pixel_values.shape[2:4]
        return H, W

    def conditions(self) -> dict[str, mx.array]:
        """What the network gets beside the pixels."""
        if self.extrinsics is None or self.intrinsics is None:
            return {}
        given = {"extrinsics": normalize_extrinsics(self.extrinsics), "intrinsics": self.intrinsics}
        return {name: mx.array(array.astype(np.float32))[None] for name, array in given.items()}


def prepare_views(
    images: Sequence[LoadedImage],
    processor: Processor,
    *,
    input_size: InputSize | None,
    extrinsics: npt.ArrayLike | None,
    intrinsics: npt.ArrayLike | None,
    size: Size | None = None,
) -> Views:
    """Resize photos to a common size, and bring given cameras to it.

    Args:
        images: The photos, of any sizes: those of other shapes are cropped to the smallest height and width.
        processor: Of the model.
        input_size: As for ``DepthModel.predict_views``, like the cameras.
        size: The common size, in network pixels; None: of the smallest height and width.
    Raises:
        OptionError: If there is no photo, one is smaller than ``size``, or the cameras do not fit them.
    """
    if not images:
        raise OptionError("a scene has at least one photo: give some.")
    sizes = tuple(processor.network_size(image.info.size, input_size) for image in images)
    pixel_values, offsets = unify([processor(image.pixels, input_size=input_size) for image in images], size)
    views = Views(tuple(images), pixel_values, sizes, offsets)
    if extrinsics is None and intrinsics is None:
        return views
    if extrinsics is None or intrinsics is None:
        raise OptionError("a known camera has extrinsics and intrinsics: give both, or none.")
    poses, matrices = as_3x4(extrinsics, name="extrinsics"), np.asarray(intrinsics, np.float64)
    check_extrinsics(poses, len(images))
    check_intrinsics(matrices, len(images))
    seen = [
        intrinsics_to_network(matrix, image.info.size, size, offset=offset)
        for matrix, image, size, offset in zip(matrices, images, sizes, offsets, strict=True)
    ]
    return dataclasses.replace(views, extrinsics=poses, intrinsics=np.stack(seen))


def needed(outputs: DepthOutputs, pose_from: PoseFrom) -> dict[str, Any]:
    """Of the outputs, in the form that ``evaluate`` takes, those that a scene is made of."""
    present = outputs.present()
    if outputs.gaussians is not None:
        unused = {field.name for field in dataclasses.fields(Gaussians)} if pose_from == "rays" else _RAW
        present["gaussians"] = {name: x for name, x in outputs.gaussians.items() if name not in unused}
    return present


def with_ray_cameras(outputs: DepthOutputs, size: Size, config: Any, family: Family) -> DepthOutputs:
    """The outputs with cameras that come from the rays instead of the camera tokens."""
    if outputs.rays is None or outputs.ray_confidence is None:
        raise OptionError("this model has no rays: leave pose_from out.")
    found = cameras_from_rays(np.array(outputs.rays[0]), np.array(outputs.ray_confidence[0]), size)
    extrinsics, intrinsics = (mx.array(array.astype(np.float32))[None] for array in found)
    return family.with_cameras(config, outputs._replace(extrinsics=extrinsics, intrinsics=intrinsics))


@dataclass(frozen=True)
class Facts:
    """What a result says of the model behind it."""

    family: Family
    config: Any
    processor: Processor
    facts: Mapping[str, Any]  # fields of DepthResult and SceneResult: model, revision, dtype, license


def scene_of(outputs: DepthOutputs, views: Views, model: Facts, evaluate: Callable[[Any], None]) -> SceneResult:
    """Put the outputs together, in the world and unit of given cameras where there are some.

    Args:
        outputs: Of one scene, B = 1.
        views: What went in.
        model: The model behind them.
        evaluate: Computes arrays.
    Raises:
        ImageError: If the network gave no depth.
        OptionError: If given cameras stand so that they tell no scale.
    """
    if outputs.intrinsics is None or outputs.extrinsics is None:
        raise OptionError("this model gives no cameras: take one for several views, such as depth-anything-3-small.")
    own, own_intrinsics = np.array(outputs.extrinsics[0], np.float64), np.array(outputs.intrinsics[0], np.float64)
    scale = 1.0 if views.extrinsics is None else _scale_to(own, views.extrinsics)
    outputs = outputs._replace(depth=outputs.depth / scale)
    extrinsics = own if views.extrinsics is None else views.extrinsics
    intrinsics = own_intrinsics if views.intrinsics is None else views.intrinsics
    maps = {
        "depth": outputs.depth[0].astype(mx.float32),
        "confidence": None if outputs.confidence is None else outputs.confidence[0].astype(mx.float32),
        "sky": None if outputs.sky is None else mx.minimum(outputs.sky[0].astype(mx.float32), 1.0),
        "rays": None if outputs.rays is None else outputs.rays[0],
        "ray_confidence": None if outputs.ray_confidence is None else outputs.ray_confidence[0],
    }
    present = {name: array for name, array in maps.items() if array is not None}
    evaluate(present)
    arrays: dict[str, Any] = {name: np.array(array) for name, array in present.items()}
    if not np.isfinite(arrays["depth"]).any():
        raise ImageError(f"the scene has no depth: {model.family.no_depth}.")
    return SceneResult(
        **arrays,
        intrinsics=intrinsics,
        extrinsics=extrinsics,
        images=[_picture(pixels, model.processor) for pixels in views.pixel_values[0]],
        kind=model.config.depth_kind,
        gaussians=_gaussians(outputs, views),
        views=tuple(
            _view(outputs, index, views, Camera(_of_photo(intrinsics[index], index, views), extrinsics[index]), model)
            for index in range(len(views.images))
        ),
        names=tuple(str(image.info.source) for image in views.images),
        scale_factor=None if outputs.scale is None else float(np.array(outputs.scale[0])) / scale,
        **model.facts,
    )


def _scale_to(own: Floats, given: Floats) -> float:
    """Units of the network per unit of the given cameras."""
    if len(given) < 2:
        return 1.0  # one camera tells no scale
    try:
        return align_poses(own, given, ransac=len(given) >= VIEWS_FOR_RANSAC).scale
    except OptionError:  # on a line: upstream stops, as that leaves the rotation open, but it does not the scale
        spreads = [np.linalg.norm(centers - centers.mean(axis=0)) for centers in map(camera_centers, (own, given))]
    if not (np.isfinite(spreads).all() and min(spreads) > 0):
        raise OptionError("the given cameras stand in one place, which tells no scale: give views from several places.")
    return float(spreads[0] / spreads[1])


def _gaussians(outputs: DepthOutputs, views: Views) -> Gaussians | None:
    """In the unit of the depth. Upstream's keep the network's own unit where another network gives metres."""
    if outputs.gaussians is None:
        return None
    properties = {field.name: np.array(outputs.gaussians[field.name][0]) for field in dataclasses.fields(Gaussians)}
    factor = 1.0 if outputs.scale is None else float(np.array(outputs.scale[0]))
    if views.extrinsics is not None and outputs.extrinsics is not None:
        factor *= _gaussian_scale(np.array(outputs.extrinsics[0], np.float64), views.extrinsics)
    for name in ("means", "scales"):
        properties[name] = (properties[name] * factor).astype(np.float32)
    return Gaussians(**properties)


def _gaussian_scale(own: Floats, given: Floats) -> float:
    """Upstream's: to the normalized given cameras, within bounds; 1 where they tell none."""
    try:
        scale = align_poses(normalize_extrinsics(given), own).scale
    except OptionError:
        return 1.0
    return float(np.clip(scale, *POSE_SCALES))


def _view(outputs: DepthOutputs, index: int, views: Views, camera: Camera, model: Facts) -> DepthResult:
    """One photo's result at its own size; what the crop left out has no depth."""
    image, (H, W) = views.images[index], views.size
    whole, (top, left) = views.sizes[index], views.offsets[index]
    ends = [
        tuple(round(place * photo / resized) for place in (start, start + length))
        for start, length, photo, resized in zip((top, left), (H, W), image.info.size, whole, strict=True)
    ]
    rows, columns = (slice(*pair) for pair in ends)
    size = (rows.stop - rows.start, columns.stop - columns.start)
    one = DepthOutputs(
        **{name: array[:, index] for name, array in outputs.present().items() if name in ("depth", "confidence", "sky")}
    )
    photo = Photo(size, (H, W), image.info.focal_length_px, image.info.focal_length_given)
    grown: PhotoOutputs = model.family.postprocess(model.config, one, model.processor, photo)
    maps: dict[str, Any] = {}
    for name, array in grown.present().items():
        maps[name] = np.full(image.info.size, np.nan if name == "depth" else 0, np.float32)
        maps[name][rows, columns] = np.array(array)
    return DepthResult(
        **maps,
        kind=model.config.depth_kind,
        camera=camera,
        image_size=image.info.size,
        input_size=(H, W),
        image=image.pixels,
        focal_length_px=image.info.focal_length_px,
        source=image.info.source,
        **model.facts,
    )


def _of_photo(intrinsics: Floats, index: int, views: Views) -> Floats:
    size = views.images[index].info.size
    return intrinsics_to_photo(intrinsics, size, views.sizes[index], offset=views.offsets[index])


def _picture(pixel_values: mx.array, processor: Processor) -> npt.NDArray[np.uint8]:
    """What the network saw, as RGB."""
    mean, std = (np.array(each, np.float32) for each in (processor.mean, processor.std))
    pixels = (np.array(pixel_values) * std + mean) * 255
    picture: npt.NDArray[np.uint8] = np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
    return picture
