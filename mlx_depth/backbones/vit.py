"""The plain ViT (Dosovitskiy et al., 2021) as DPT has it: DINOv2 without LayerScale, its tokens not normalized.

Upstream: timm's ``vision_transformer.py`` and transformers' ``modeling_dpt.py``.
"""

from mlx_depth.backbones.dinov2 import DINOv2Config
from mlx_depth.weights.rules import Drop, Rename, Rule, Split

BLOCK_EPS = 1e-12  # transformers' own default, which its checkpoints have; the authors' is DINOv2's 1e-6


def vit_config(
    embed_dim: int, num_layers: int, num_heads: int, out_layers: tuple[int, ...], *, table_size: int = 24
) -> DINOv2Config:
    """A ViT on patches of 16 × 16 pixels, trained on 384 × 384.

    Args:
        embed_dim: Channels of a token.
        num_layers: Blocks.
        num_heads: Heads of attention.
        out_layers: The layers that are handed out, zero-based.
        table_size: Side of the position table, in patches.
    """
    return DINOv2Config(
        embed_dim=embed_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        out_layers=out_layers,
        patch_size=16,
        table_size=table_size,
        position_rule="bilinear",
        raw_layers=out_layers,
        layer_scale=False,
        block_eps=BLOCK_EPS,
    )


_CLASSIFIER = "ImageNet's classifier, behind the layers that are handed out"

# The tables are relative to the backbone, and leave out what turns pixels into patches.
ORIGINAL: tuple[Rule, ...] = (
    Rename("cls_token", "cls_token"),
    Rename("pos_embed", "pos_embed"),
    Rename("blocks.{i}.norm1.{p}", "blocks.{i}.norm1.{p}"),
    Split(
        "blocks.{i}.attn.qkv.{p}",
        (
            "blocks.{i}.attn.query_proj.{p}",
            "blocks.{i}.attn.key_proj.{p}",
            "blocks.{i}.attn.value_proj.{p}",
        ),
    ),
    Rename("blocks.{i}.attn.proj.{p}", "blocks.{i}.attn.out_proj.{p}"),
    Rename("blocks.{i}.norm2.{p}", "blocks.{i}.norm2.{p}"),
    Rename("blocks.{i}.mlp.fc1.{p}", "blocks.{i}.mlp.fc1.{p}"),
    Rename("blocks.{i}.mlp.fc2.{p}", "blocks.{i}.mlp.fc2.{p}"),
    Rename("norm.{p}", "norm.{p}"),
    Drop("head.{p}", _CLASSIFIER),
)
TRANSFORMERS: tuple[Rule, ...] = (
    Rename("embeddings.cls_token", "cls_token"),
    Rename("embeddings.position_embeddings", "pos_embed"),
    Rename("encoder.layer.{i}.layernorm_before.{p}", "blocks.{i}.norm1.{p}"),
    Rename("encoder.layer.{i}.attention.attention.query.{p}", "blocks.{i}.attn.query_proj.{p}"),
    Rename("encoder.layer.{i}.attention.attention.key.{p}", "blocks.{i}.attn.key_proj.{p}"),
    Rename("encoder.layer.{i}.attention.attention.value.{p}", "blocks.{i}.attn.value_proj.{p}"),
    Rename("encoder.layer.{i}.attention.output.dense.{p}", "blocks.{i}.attn.out_proj.{p}"),
    Rename("encoder.layer.{i}.layernorm_after.{p}", "blocks.{i}.norm2.{p}"),
    Rename("encoder.layer.{i}.intermediate.dense.{p}", "blocks.{i}.mlp.fc1.{p}"),
    Rename("encoder.layer.{i}.output.dense.{p}", "blocks.{i}.mlp.fc2.{p}"),
    Rename("layernorm.{p}", "norm.{p}"),
)
PATCHES_ORIGINAL: tuple[Rule, ...] = (Rename("patch_embed.proj.{p}", "patch_embed.proj.{p}"),)
PATCHES_TRANSFORMERS: tuple[Rule, ...] = (Rename("embeddings.patch_embeddings.projection.{p}", "patch_embed.proj.{p}"),)
