"""Depth Anything V1 and V2 in transformers."""

from typing import Any

from mlx_depth.models.depth_anything.network import DepthAnythingConfig
from mlx_depth_convert.references import in_transformers
from mlx_depth_convert.references.base import Reference


def _build(config: DepthAnythingConfig) -> Any:
    import torch
    import transformers

    with torch.device("meta"):
        network = transformers.DepthAnythingForDepthEstimation(transformers_config(transformers, config))
    network.head.max_depth = config.head.max_depth  # transformers' config takes whole metres alone
    return network


def transformers_config(transformers: Any, config: DepthAnythingConfig) -> Any:
    """Our config as transformers writes it."""
    backbone, head = config.backbone, config.head
    return transformers.DepthAnythingConfig(
        backbone_config=transformers.Dinov2Config(
            **in_transformers.dinov2_facts(backbone),
            out_indices=[layer + 1 for layer in backbone.out_layers],
            reshape_hidden_states=False,
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
    name=in_transformers.NAME,
    install=in_transformers.INSTALL,
    dialect="transformers",
    rules="transformers",
    build=_build,
    run=in_transformers.run,
    save=in_transformers.save,
    load=in_transformers.loader("DepthAnythingForDepthEstimation"),
    twins={
        "patch embedding": "backbone.embeddings.patch_embeddings.projection",
        "with positions": "backbone.encoder.layer.0",
        "layer {i}": "backbone.encoder.layer.{i}",
        "reassemble {i}": "neck.convs.{i}",
        "fusion {i}": "neck.fusion_stage.layers.{i}",
        "head": "head.conv1",
    },
)
