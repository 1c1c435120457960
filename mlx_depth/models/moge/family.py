"""MoGe-2 as a family: from points that are known but for the camera to metres."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_depth.errors import ImageError
from mlx_depth.geometry.focal_shift import fit_focal_and_shift, fit_shift
from mlx_depth.heads.conv_stack import LEVELS
from mlx_depth.models import authors_alone
from mlx_depth.models.base import VALID, DepthOutputs, Family, Photo, PhotoOutputs, Stage
from mlx_depth.models.moge.network import MoGe, MoGeConfig, at_size, raw_maps, view_plane
from mlx_depth.models.moge.weights import DIALECTS, published_name
from mlx_depth.models.vit_network import backbone_stages, quantizable
from mlx_depth.nn.resize import resize
from mlx_depth.processor import Processor

PROCESSOR = Processor(input_size=840, policy="area", resample="antialias")  # 3600 patches, upstream's finest level
SAMPLES = (64, 64)  # of the maps, for the camera


def _aspects(photos: Sequence[Photo]) -> dict[str, mx.array]:
    return {"aspect": mx.array([photo.size[1] / photo.size[0] for photo in photos])}


def _on_photo(_: MoGeConfig, outputs: DepthOutputs, processor: Processor, photo: Photo) -> PhotoOutputs:
    """``infer`` of upstream's ``v2.py``: the camera, and by it the depth.

    A focal length that the caller gives is taken, as upstream's ``fov_x`` is; that of EXIF is not, as upstream has it.
    """
    assert outputs.raw is not None  # that network gives both
    assert outputs.scale is not None
    maps = at_size(raw_maps(outputs.raw), photo.size)
    mask = maps.mask > VALID
    focal, shift = _camera(maps.points, mask, photo)
    z = maps.points[0, ..., 2] + shift
    valid = mask[0] & (z > 0)
    normals = maps.normals
    return PhotoOutputs(
        depth=mx.where(valid, z * outputs.scale[0], mx.inf),
        mask=valid,
        normals=None if normals is None else mx.where(valid[..., None], normals[0], 0.0),
        intrinsics=mx.array(
            [[focal, 0.0, (photo.size[1] - 1) / 2], [0.0, focal, (photo.size[0] - 1) / 2], [0.0, 0.0, 1.0]]
        ),
    )


def _camera(points: mx.array, mask: mx.array, photo: Photo) -> tuple[float, float]:
    """Focal length in pixels of the photo, and the shift of z, from a sample of the points ``(1, H, W, 3)``."""
    size = photo.size
    whole = (points, view_plane(size, mx.array([size[1] / size[0]])), mask[..., None].astype(mx.float32))
    some, plane, seen = (np.array(resize(x, SAMPLES, method="nearest"))[0] for x in whole)
    chosen = seen[..., 0] > 0
    half_diagonal = (size[0] ** 2 + size[1] ** 2) ** 0.5 / 2
    if photo.focal_length_given and photo.focal_length_px is not None:
        focal = photo.focal_length_px / half_diagonal
        shift = fit_shift(some[chosen], plane[chosen], focal)
    else:
        focal, shift = fit_focal_and_shift(some[chosen], plane[chosen])
    if not (np.isfinite([focal, shift]).all() and focal > 0):
        raise ImageError(
            "the model's points fit no camera: give the focal length in pixels of the photo "
            "(focal_length_px=, --focal-length), or dtype='float32' if the model is in half precision."
        )
    return focal * half_diagonal, shift


def _stages(config: MoGeConfig) -> tuple[Stage, ...]:
    heads = ("points", "mask", *(["normals"] if config.normals else []))
    return (
        *backbone_stages(config.backbone.out_layers),
        *(Stage(f"neck {level}", f"neck.levels.{level}") for level in range(LEVELS)),
        *(Stage(f"{name} head", f"{name}_head.read_out") for name in heads),
        Stage("scale head", "scale_head.layers.2"),
    )


FAMILY = Family(
    name="moge",
    config_type=MoGeConfig,
    network=MoGe,
    processor=PROCESSOR,
    dialects=DIALECTS,
    read_processor=authors_alone.no_processor("MoGe"),
    follow=authors_alone.follow("MoGe"),
    published_name=published_name,
    photo_conditions=_aspects,
    read_first=lambda outputs: [outputs.raw, outputs.scale],
    postprocess=_on_photo,
    no_depth="the model's mask leaves no pixel, as for nothing but sky: give a photo with ground",
    quantizable=quantizable,
    stages=_stages,
)
