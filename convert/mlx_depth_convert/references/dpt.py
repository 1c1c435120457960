"""DPT in transformers, on each of its backbones."""

from collections.abc import Callable, Mapping
from typing import Any

from mlx_depth.backbones.hybrid_vit import TAPPED_STAGES, HybridViTConfig
from mlx_depth.errors import OptionError
from mlx_depth.models.dpt.network import DPTNetworkConfig
from mlx_depth_convert.references import in_transformers
from mlx_depth_convert.references.base import Outputs, Reference


def _build(of_backbone: Callable[[Any, DPTNetworkConfig], dict[str, Any]]) -> Callable[[DPTNetworkConfig], Any]:
    def build(config: DPTNetworkConfig) -> Any:
        import torch
        import transformers

        head = config.head
        with torch.device("meta"):
            return transformers.DPTForDepthEstimation(
                transformers.DPTConfig(
                    readout_type=head.readout,
                    neck_hidden_sizes=list(head.out_channels),
                    fusion_hidden_size=head.features,
                    use_bias_in_fusion_residual=head.residual_bias,
                    add_projection=head.projection,
                    **of_backbone(transformers, config),
                )
            )

    return build


def _vit(_: Any, config: DPTNetworkConfig) -> dict[str, Any]:
    backbone = config.backbone
    return {
        "hidden_size": backbone.embed_dim,
        "num_hidden_layers": backbone.num_layers,
        "num_attention_heads": backbone.num_heads,
        "intermediate_size": backbone.hidden_dim,
        "layer_norm_eps": backbone.block_eps,
        "image_size": backbone.table_size * backbone.patch_size,
        "patch_size": backbone.patch_size,
        "backbone_out_indices": list(backbone.out_layers),
    }


def _hybrid(transformers: Any, config: DPTNetworkConfig) -> dict[str, Any]:
    backbone = config.backbone
    assert isinstance(backbone, HybridViTConfig)
    resnet = transformers.BitConfig(
        embedding_size=backbone.stem_channels,
        hidden_sizes=list(backbone.stage_channels),
        depths=list(backbone.stage_depths),
        num_groups=backbone.norm_groups,
        layer_type="bottleneck",
        global_padding="same",
        embedding_dynamic_padding=True,
        out_features=[f"stage{i + 1}" for i in range(len(backbone.stage_depths))],
    )
    side = backbone.table_size
    return {
        **_vit(transformers, config),
        "is_hybrid": True,
        "backbone_config": resnet.to_dict(),
        "backbone_featmap_shape": [1, backbone.stage_channels[-1], side, side],
        "backbone_out_indices": [*range(TAPPED_STAGES), *backbone.out_layers],
    }


def _dinov2(transformers: Any, config: DPTNetworkConfig) -> dict[str, Any]:
    backbone = config.backbone
    return {
        "backbone_config": transformers.Dinov2Config(
            **in_transformers.dinov2_facts(backbone),
            out_indices=[layer + 1 for layer in backbone.out_layers],
            apply_layernorm=not backbone.raw_layers,
            reshape_hidden_states=False,
        )
    }


def _run_squares(network: Any, pixel_values: Any, *, everything: bool) -> Outputs:
    _, H, W, _ = pixel_values.shape
    if H != W:
        raise OptionError(f"transformers' DPT on a ViT takes squares alone, not {H} × {W} pixels: give one input size.")
    if network.config.is_hybrid:  # it asks for its own size first, and resizes the positions all the same
        network.dpt.embeddings.image_size = (H, W)
    return in_transformers.run(network, pixel_values, everything=everything)


_HEAD = {
    "reassemble {i}": "neck.convs.{i}",
    "fusion {i}": "neck.fusion_stage.layers.{i}",
    "head": "head.head.0",
}
_VIT = {
    "patch embedding": "dpt.embeddings.patch_embeddings.projection",
    "with positions": "dpt.encoder.layer.0",
    "layer {i}": "dpt.encoder.layer.{i}",
}
_HYBRID = {
    **_VIT,
    "patch embedding": "dpt.embeddings.projection",
    "ResNet {i}": "dpt.embeddings.backbone.bit.encoder.stages.{i}",
}
_DINOV2 = {
    "patch embedding": "backbone.embeddings.patch_embeddings.projection",
    "with positions": "backbone.encoder.layer.0",
    "layer {i}": "backbone.encoder.layer.{i}",
}


def _reference(
    of_backbone: Callable[[Any, DPTNetworkConfig], dict[str, Any]], twins: Mapping[str, str], run: Any = _run_squares
) -> Reference:
    return Reference(
        name=in_transformers.NAME,
        install=in_transformers.INSTALL,
        dialect="transformers",
        rules="transformers",
        build=_build(of_backbone),
        run=run,
        save=in_transformers.save,
        load=in_transformers.loader("DPTForDepthEstimation"),
        twins={**twins, **_HEAD},
    )


PLAIN = _reference(_vit, _VIT)
HYBRID = _reference(_hybrid, _HYBRID)
METRIC = _reference(_dinov2, _DINOV2, in_transformers.run)
