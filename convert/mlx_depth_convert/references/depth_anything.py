"""Depth Anything V1 and V2 in transformers."""

from pathlib import Path
from typing import Any

from mlx_depth.models.depth_anything.network import DepthAnythingConfig
from mlx_depth_convert.references.base import Outputs, Reference


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


def _run(network: Any, pixel_values: Any, *, everything: bool) -> Outputs:
    return {"depth": network(pixel_values.permute(0, 3, 1, 2)).predicted_depth}


def _save(network: Any, folder: Path) -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    network.save_pretrained(folder)


def _load(_: DepthAnythingConfig, folder: Path, dtype: Any) -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers.DepthAnythingForDepthEstimation.from_pretrained(folder, dtype=dtype)


REFERENCE = Reference(
    name="transformers",
    install="pip install 'mlx-depth[reference]'",
    dialect="transformers",
    rules="transformers",
    build=_build,
    run=_run,
    save=_save,
    load=_load,
    twins={
        "patch embedding": "backbone.embeddings.patch_embeddings.projection",
        "with positions": "backbone.encoder.layer.0",
        "layer {i}": "backbone.encoder.layer.{i}",
        "reassemble {i}": "neck.convs.{i}",
        "fusion {i}": "neck.fusion_stage.layers.{i}",
        "head": "head.conv1",
    },
)
