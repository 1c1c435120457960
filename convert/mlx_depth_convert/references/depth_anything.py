"""Depth Anything V1 and V2 in transformers."""

from typing import Any

from mlx_depth.models.depth_anything.network import DepthAnythingConfig
from mlx_depth_convert.references.base import Reference


def _build(transformers: Any, config: DepthAnythingConfig) -> Any:
    network = transformers.DepthAnythingForDepthEstimation(_transformers_config(transformers, config))
    network.head.max_depth = config.head.max_depth  # transformers' config takes whole metres alone
    return network


def _transformers_config(transformers: Any, config: DepthAnythingConfig) -> Any:
    backbone, head = config.backbone, config.head
    return transformers.DepthAnythingConfig(
        backbone_config=transformers.Dinov2Config(
            hidden_size=backbone.embed_dim,
            num_hidden_layers=backbone.num_layers,
            num_attention_heads=backbone.num_heads,
            mlp_ratio=backbone.mlp_ratio,
            image_size=backbone.table_size * backbone.patch_size,
            patch_size=backbone.patch_size,
            out_indices=[layer + 1 for layer in backbone.out_layers],
            reshape_hidden_states=False,
            use_swiglu_ffn=backbone.swiglu,
        ),
        patch_size=head.patch_size,
        reassemble_hidden_size=head.in_dim,
        neck_hidden_sizes=list(head.out_channels),
        fusion_hidden_size=head.features,
        head_hidden_size=head.hidden_channels,
        depth_estimation_type="metric" if head.activation == "sigmoid" else "relative",
        max_depth=1,
    )


REFERENCE = Reference(
    build=_build,
    depth=lambda outputs: outputs.predicted_depth,
    twins={
        "patch embedding": "backbone.embeddings.patch_embeddings.projection",
        "with positions": "backbone.encoder.layer.0",
        "layer {i}": "backbone.encoder.layer.{i}",
        "reassemble {i}": "neck.convs.{i}",
        "fusion {i}": "neck.fusion_stage.layers.{i}",
        "head": "head.conv1",
    },
)
