"""Depth Anything 3 as three families: any number of views, one view, and both, in metres."""

from dataclasses import replace
from typing import Any

import mlx.core as mx

from mlx_depth.errors import ImageError
from mlx_depth.heads.dpt import RESAMPLINGS
from mlx_depth.models import authors_alone
from mlx_depth.models.base import DepthOutputs, Family, Photo, PhotoOutputs, Stage, to_photo
from mlx_depth.models.depth_anything_3 import gguf, weights
from mlx_depth.models.depth_anything_3.gaussians import world_gaussians
from mlx_depth.models.depth_anything_3.metric import fill_sky, in_metres, metres
from mlx_depth.models.depth_anything_3.network import (
    DepthAnything3,
    DepthAnything3Config,
    DepthAnything3Mono,
    DepthAnything3MonoConfig,
    DepthAnything3Nested,
    DepthAnything3NestedConfig,
)
from mlx_depth.models.vit_network import dpt_stages, quantizable
from mlx_depth.processor import Processor

PROCESSOR = Processor(input_size=504, policy="long_side", resample="opencv_area")


def _one_view(_: Any, outputs: DepthOutputs, processor: Processor, photo: Photo) -> PhotoOutputs:
    """A view alone: its rays and its scale belong to a scene."""
    of_scenes: dict[str, Any] = dict.fromkeys(("rays", "ray_confidence", "metric_depth", "scale", "gaussians"))
    return to_photo(outputs._replace(**of_scenes, sky=_share(outputs.sky)), processor, photo)


def _any_view_with_cameras(_: Any, outputs: DepthOutputs) -> DepthOutputs:
    """Gaussians stand where the cameras do."""
    read, extrinsics, intrinsics = outputs.gaussians, outputs.extrinsics, outputs.intrinsics
    if read is None or extrinsics is None or intrinsics is None:
        return outputs
    made = world_gaussians(outputs.depth, read["raw"], read["raw_confidence"], extrinsics, intrinsics)
    return outputs._replace(gaussians={**read, **made})


def _nested_with_cameras(config: Any, outputs: DepthOutputs) -> DepthOutputs:
    """The metric network's depth goes with the focal length, and with it the length of a metre."""
    assert outputs.metric_depth is not None  # that network gives them
    assert outputs.scale is not None
    assert outputs.sky is not None
    own = outputs._replace(depth=outputs.depth / outputs.scale[:, None, None, None])
    return in_metres(_any_view_with_cameras(config, own), outputs.metric_depth, outputs.sky)


def _mono(config: DepthAnything3MonoConfig, outputs: DepthOutputs, processor: Processor, photo: Photo) -> PhotoOutputs:
    assert outputs.sky is not None  # that network gives it
    depth = fill_sky(outputs.depth, outputs.sky)
    if config.metric:
        depth = metres(depth, _focal_length(photo))
    return to_photo(outputs._replace(depth=depth, sky=_share(outputs.sky)), processor, photo)


def _focal_length(photo: Photo) -> mx.array:
    """``(1,)``, in network pixels."""
    if photo.focal_length_px is None:
        raise ImageError(
            "this model's metres need the focal length, which the photo does not tell: give it in pixels of the photo "
            "(focal_length_px=, --focal-length), or take depth-anything-3-nested-giant-large, which estimates it."
        )
    scale = sum(seen / own for seen, own in zip(photo.input_size, photo.size, strict=True)) / 2
    return mx.array([photo.focal_length_px * scale])


def _share(sky: mx.array | None) -> mx.array | None:
    """Sky as 0..1: the network's value has no upper end."""
    return None if sky is None else mx.minimum(sky, 1.0)


def _any_view_stages(config: DepthAnything3Config, where: str = "") -> tuple[Stage, ...]:
    *depth, head = dpt_stages(config.backbone.out_layers, where)
    levels = range(len(RESAMPLINGS) if config.head.rays else 0)
    return (
        *depth,
        *(Stage(f"ray fusion {i}", f"{where}head.ray_fusion.{i}") for i in levels),
        head,
        Stage("camera", f"{where}camera_decoder.quaternion"),
    )


def _mono_stages(config: DepthAnything3MonoConfig) -> tuple[Stage, ...]:
    return dpt_stages(config.backbone.out_layers)


def _nested_stages(config: DepthAnything3NestedConfig) -> tuple[Stage, ...]:
    metric = dpt_stages(config.metric.backbone.out_layers, "metric.")
    return (
        *_any_view_stages(config.any_view, "any_view."),
        *(replace(stage, name=f"metric {stage.name}") for stage in metric),
    )


ANY_VIEW = Family(
    name="depth_anything_3",
    config_type=DepthAnything3Config,
    network=DepthAnything3,
    processor=PROCESSOR,
    dialects={**weights.ANY_VIEW_DIALECTS, **gguf.ANY_VIEW_DIALECTS},
    read_processor=authors_alone.no_processor("Depth Anything 3"),
    follow=authors_alone.follow("Depth Anything 3"),
    published_name=weights.published_name,
    postprocess=_one_view,
    with_cameras=_any_view_with_cameras,
    quantizable=quantizable,
    stages=_any_view_stages,
)
MONO = replace(
    ANY_VIEW,
    name="depth_anything_3_mono",
    config_type=DepthAnything3MonoConfig,
    network=DepthAnything3Mono,
    dialects={**weights.MONO_DIALECTS, **gguf.MONO_DIALECTS},
    postprocess=_mono,
    stages=_mono_stages,
)
NESTED = replace(
    ANY_VIEW,
    name="depth_anything_3_nested",
    config_type=DepthAnything3NestedConfig,
    network=DepthAnything3Nested,
    dialects={**weights.NESTED_DIALECTS, **gguf.NESTED_DIALECTS},
    with_cameras=_nested_with_cameras,
    no_depth="it shows nothing but sky, so the length of a metre is unknown: give a photo with ground",
    stages=_nested_stages,
)
