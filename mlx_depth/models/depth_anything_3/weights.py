"""Depth Anything 3's checkpoints: how they name their tensors, and what says how the network is built."""

from mlx_depth.backbones import dinov2
from mlx_depth.heads import dpt, dual_dpt
from mlx_depth.models.depth_anything_3.camera import DECODER_ORIGINAL, ENCODER_ORIGINAL
from mlx_depth.weights.rules import Rule, prefixed

ANY_VIEW_ORIGINAL: tuple[Rule, ...] = (
    *prefixed(dinov2.ORIGINAL, "backbone.pretrained.", "backbone."),
    *prefixed(dual_dpt.ORIGINAL, "head.", "head."),
    *prefixed(ENCODER_ORIGINAL, "cam_enc.", "camera_encoder."),
    *prefixed(DECODER_ORIGINAL, "cam_dec.", "camera_decoder."),
)
MONO_ORIGINAL: tuple[Rule, ...] = (
    *prefixed(dinov2.ORIGINAL, "backbone.pretrained.", "backbone."),
    *prefixed(dpt.SKY_ORIGINAL, "head.", "head."),
)
NESTED_ORIGINAL: tuple[Rule, ...] = (
    *prefixed(ANY_VIEW_ORIGINAL, "da3.", "any_view."),
    *prefixed(MONO_ORIGINAL, "da3_metric.", "metric."),
)
