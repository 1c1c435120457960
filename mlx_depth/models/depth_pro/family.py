"""Depth Pro as a family."""

import math
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.errors import ImageError
from mlx_depth.heads.multires import MAPS
from mlx_depth.models.base import DepthOutputs, Family, Photo, PhotoOutputs, Stage
from mlx_depth.models.depth_pro.network import LEAST_INVERSE, MOST_INVERSE, DepthPro, DepthProConfig
from mlx_depth.models.depth_pro.weights import DIALECTS, PROCESSOR, published_name, read_processor
from mlx_depth.processor import Processor, Reference, resize_depth


def _follow(config: Any, processor: Processor, reference: Reference) -> tuple[Any, Processor]:
    """Both references have the same rules: the position table is never resized, and photos are stretched alike."""
    return config, processor


def _options(config: DepthProConfig, photo: Photo) -> Mapping[str, Any]:
    """With a known focal length the field of view is not asked for."""
    return {"field_of_view": photo.focal_length_px is None}


def _metres(config: DepthProConfig, outputs: DepthOutputs, processor: Processor, photo: Photo) -> PhotoOutputs:
    """Inverse depth at the photo's size and for its focal length, turned over; the camera where it is estimated.

    ``DepthPro.infer`` of the authors and ``post_process_depth_estimation`` of transformers.
    """
    height, width = photo.size
    known, angle = photo.focal_length_px, outputs.field_of_view
    if known is None and angle is None:
        raise ImageError(
            "these weights estimate no field of view, and the photo does not tell its focal length: give it in pixels "
            "of the photo (focal_length_px=, --focal-length)."
        )
    focal = mx.array(known, mx.float32) if known is not None else _focal_length(angle, width)
    inverse = resize_depth(outputs.depth * (width / focal), photo.size, method=processor.restore)[0]
    intrinsics = mx.zeros((3, 3))
    intrinsics[0, 0] = intrinsics[1, 1] = focal
    intrinsics[:, 2] = mx.array([(width - 1) / 2, (height - 1) / 2, 1])
    return PhotoOutputs(
        depth=1 / mx.clip(inverse, LEAST_INVERSE, MOST_INVERSE), intrinsics=intrinsics if known is None else None
    )


def _focal_length(angle: mx.array | None, width: int) -> mx.array:
    """In pixels of the photo; NaN where the angle is none."""
    assert angle is not None
    radians = angle[0].astype(mx.float32) * (math.pi / 180)
    return mx.where((angle[0] > 0) & (angle[0] < 180), width / 2 / mx.tan(radians / 2), mx.nan)


def _quantizable(path: str, module: nn.Module) -> bool:
    return "encoder.blocks." in path and isinstance(module, nn.Linear)


def _stages(config: DepthProConfig) -> tuple[Stage, ...]:
    encoder = config.pyramid.encoder
    last = encoder.num_layers - 1
    stages = (
        Stage("patch embedding", "encoder.patch_encoder.patch_embed"),
        *(Stage(f"window layer {i}", f"encoder.patch_encoder.blocks.{i}") for i in encoder.out_layers),
        Stage(f"image layer {last}", f"encoder.image_encoder.blocks.{last}"),
        *(Stage(f"growth {i}", f"head.growths.{i}") for i in range(MAPS)),
        Stage("merged with the image", "head.image_merge"),
        *(Stage(f"adapted {i}", f"head.adapt.{i}") for i in range(MAPS - 1)),
        *(Stage(f"fusion {i}", f"head.fusion.{i}") for i in range(MAPS)),
        Stage("head", "head.conv1"),
    )
    if not config.field_of_view:
        return stages
    return (
        *stages,
        Stage(f"field of view layer {last}", f"field_of_view.encoder.blocks.{last}"),
        Stage("field of view, halved", "field_of_view.downsample"),
    )


FAMILY = Family(
    name="depth_pro",
    config_type=DepthProConfig,
    network=DepthPro,
    processor=PROCESSOR,
    dialects=DIALECTS,
    read_processor=read_processor,
    follow=_follow,
    published_name=published_name,
    postprocess=_metres,
    options=_options,
    no_depth="the network's numbers are not finite, or no field of view: dtype='float32' or a focal length may help",
    quantizable=_quantizable,
    stages=_stages,
)
