"""Depth Pro in transformers."""

from typing import Any

from mlx_depth.backbones.pyramid import LEVELS, TAPS
from mlx_depth.heads.multires import MAPS
from mlx_depth.models.depth_pro.field_of_view import HALVINGS
from mlx_depth.models.depth_pro.network import DepthProConfig
from mlx_depth_convert.references import in_transformers
from mlx_depth_convert.references.base import Outputs, Reference


def _build(config: DepthProConfig) -> Any:
    import torch
    import transformers

    with torch.device("meta"):
        return transformers.DepthProForDepthEstimation(_transformers_config(transformers, config))


def _transformers_config(transformers: Any, config: DepthProConfig) -> Any:
    pyramid, head = config.pyramid, config.head
    encoder = {"model_type": "dinov2", **in_transformers.dinov2_facts(pyramid.encoder)}
    return transformers.DepthProConfig(
        patch_size=pyramid.window,
        fusion_hidden_size=head.features,
        intermediate_hook_ids=list(reversed(pyramid.encoder.out_layers[:-1])),
        intermediate_feature_dims=[head.features] * TAPS,
        scaled_images_ratios=[0.5 ** (LEVELS - 1 - level) for level in range(LEVELS)],
        scaled_images_overlap_ratios=list(pyramid.overlaps),
        scaled_images_feature_dims=list(head.level_channels),
        merge_padding_value=pyramid.padding,
        use_fov_model=config.field_of_view,
        num_fov_head_layers=HALVINGS,
        **{f"{part}_model_config": dict(encoder) for part in ("image", "patch", "fov")},
    )


def _run(network: Any, pixel_values: Any, *, everything: bool) -> Outputs:
    outputs = network(pixel_values.permute(0, 3, 1, 2))
    angle = {} if outputs.field_of_view is None else {"field_of_view": outputs.field_of_view}
    return {"depth": outputs.predicted_depth, **angle}


_ENCODER, _NECK = "depth_pro.encoder", "depth_pro.neck"
REFERENCE = Reference(
    name=in_transformers.NAME,
    install=in_transformers.INSTALL,
    dialect="transformers",
    rules="transformers",
    build=_build,
    run=_run,
    save=in_transformers.save,
    load=in_transformers.loader("DepthProForDepthEstimation"),
    twins={
        "patch embedding": f"{_ENCODER}.patch_encoder.model.embeddings.patch_embeddings.projection",
        "window layer {i}": f"{_ENCODER}.patch_encoder.model.encoder.layer.{{i}}",
        "image layer {i}": f"{_ENCODER}.image_encoder.model.encoder.layer.{{i}}",
        **{f"growth {level}": f"{_NECK}.feature_upsample.scaled_images.{level}" for level in range(LEVELS)},
        **{f"growth {LEVELS + tap}": f"{_NECK}.feature_upsample.intermediate.{tap}" for tap in range(TAPS)},
        "merged with the image": f"{_NECK}.fuse_image_with_low_res",
        "adapted {i}": f"{_NECK}.feature_projection.projections.{{i}}",
        f"fusion {MAPS - 1}": "fusion_stage.final",
        "fusion {i}": "fusion_stage.intermediate.{i}",
        "head": "head.layers.0",
        "field of view layer {i}": "fov_model.fov_encoder.model.encoder.layer.{i}",
        "field of view, halved": "fov_model.conv",
    },
)
