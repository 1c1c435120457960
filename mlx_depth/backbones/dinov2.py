"""DINOv2 (Oquab et al., 2023), with or without register tokens (Darcet et al., 2023), and what else is built so.

Upstream: ``dinov2/models/vision_transformer.py`` and transformers' ``modeling_dinov2.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.errors import CheckpointError
from mlx_depth.nn.block import Block
from mlx_depth.nn.grid_tables import GridTables
from mlx_depth.nn.mlp import swiglu_hidden_dims
from mlx_depth.nn.patch_embed import PatchEmbed
from mlx_depth.nn.position import PositionRule, resize_position_table
from mlx_depth.weights.config_values import added_later, check_at_least
from mlx_depth.weights.rules import Drop, Rename, Rule, Split
from mlx_depth.weights.transformers_config import check_counts, read_keys

LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True)
class DINOv2Config:
    """Sizes of a DINOv2 backbone and the layers that it hands out."""

    embed_dim: int
    num_layers: int
    num_heads: int
    out_layers: tuple[int, ...]  # zero-based
    mlp_ratio: int = 4
    swiglu: bool = False
    patch_size: int = 14
    table_size: int = 37  # side of the position table, in patches
    num_register_tokens: int = 0
    position_rule: PositionRule = "scale"
    norm_eps: float = added_later(LAYER_NORM_EPS)  # of the last norm
    raw_layers: tuple[int, ...] = added_later(())  # those of out_layers that are handed out before the last norm
    layer_scale: bool = added_later(True)  # False: the blocks have none
    block_eps: float = added_later(LAYER_NORM_EPS)  # of the blocks' norms

    def __post_init__(self) -> None:
        sizes = ("embed_dim", "num_layers", "num_heads", "mlp_ratio", "patch_size", "table_size")
        check_at_least(self, {**dict.fromkeys(sizes, 1), "out_layers": 0, "num_register_tokens": 0})
        check_transformer(self)
        if not {*self.raw_layers} <= {*self.out_layers}:
            raise CheckpointError(
                f"raw_layers are {self.raw_layers}, not all of out_layers {self.out_layers}: "
                "take the config.json of the original checkpoint."
            )
        if not 0 < self.block_eps < 1:
            raise CheckpointError(
                f"block_eps is {self.block_eps}, not between 0 and 1: take the config.json of the original checkpoint."
            )

    @property
    def hidden_dim(self) -> int:
        """Width of the feed-forward layers."""
        mlp_dim = self.embed_dim * self.mlp_ratio
        return swiglu_hidden_dims(mlp_dim) if self.swiglu else mlp_dim


def check_transformer(config: Any) -> None:
    """Raise ``CheckpointError`` unless heads, ``norm_eps`` and ``out_layers`` of a backbone's config are possible."""
    if config.embed_dim % config.num_heads:
        raise CheckpointError(
            f"{config.num_heads} heads cannot share an embed_dim of {config.embed_dim}: "
            "take the config.json of the original checkpoint."
        )
    if not 0 < config.norm_eps < 1:
        raise CheckpointError(
            f"norm_eps is {config.norm_eps}, not between 0 and 1: take the config.json of the original checkpoint."
        )
    layers = config.out_layers
    if list(layers) != sorted({*layers}) or max(layers, default=0) >= config.num_layers:
        raise CheckpointError(
            f"out_layers (zero-based) are {layers}, not rising and below {config.num_layers}: "
            "take the config.json of the original checkpoint."
        )


class LayerTokens(NamedTuple):
    """The output of one tapped layer, after the backbone's last norm (unless its config says otherwise)."""

    patch_tokens: mx.array  # (B, gh * gw, C)
    cls_token: mx.array  # (B, C)


class DINOv2(nn.Module):
    """Images to the normalized tokens of chosen layers."""

    def __init__(self, config: DINOv2Config):
        super().__init__()
        self._config = config
        dims = config.embed_dim
        self.patch_embed = PatchEmbed(dims, config.patch_size)
        self.cls_token = mx.zeros((1, 1, dims))
        self.pos_embed = mx.zeros((1, 1 + config.table_size**2, dims))
        if config.num_register_tokens:
            self.register_tokens = mx.zeros((1, config.num_register_tokens, dims))
        self.blocks = [self._block(index) for index in range(config.num_layers)]
        self.norm = nn.LayerNorm(dims, eps=config.norm_eps)
        self._positions: GridTables[mx.array] = GridTables()

    def _block(self, index: int) -> Block:
        config = self._config
        return Block(
            config.embed_dim,
            config.num_heads,
            config.hidden_dim,
            eps=config.block_eps,
            swiglu=config.swiglu,
            layer_scale=config.layer_scale,
        )

    def shared(self, grid_size: tuple[int, int]) -> list[mx.array]:
        """What images of a patch grid share: the position table."""
        return [self.positions(grid_size)]

    def positions(self, grid_size: tuple[int, int]) -> mx.array:
        """The position table for a patch grid, (1, gh * gw, C), kept for the next images of that size."""
        table = self.pos_embed
        return self._positions.get(
            grid_size, table, lambda: resize_position_table(table[:, 1:], grid_size, self._config.position_rule)
        )

    def embed(self, pixel_values: mx.array) -> mx.array:
        """Patch, class and register tokens with their positions: (B, H, W, 3) → (B, 1 + registers + gh * gw, C)."""
        patches = self.patch_embed(pixel_values)
        B, gh, gw, C = patches.shape
        patch_tokens = patches.reshape(B, gh * gw, C) + self.positions((gh, gw))  # map → tokens
        lead = [mx.broadcast_to(self.cls_token + self.pos_embed[:, :1], (B, 1, C))]
        if self._config.num_register_tokens:
            lead.append(mx.broadcast_to(self.register_tokens, (B, *self.register_tokens.shape[1:])))
        return mx.concatenate([*lead, patch_tokens], axis=1)

    def __call__(self, pixel_values: mx.array) -> list[LayerTokens]:
        """Run the transformer.

        Args:
            pixel_values: Normalized images, ``(B, H, W, 3)``; H and W are multiples of the patch size.
        Returns:
            One ``LayerTokens`` for each of ``out_layers``, from the first to the last.
        """
        return self._tapped(self.embed(pixel_values))

    def _tapped(self, x: mx.array) -> list[LayerTokens]:
        tapped = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self._config.out_layers:
                tapped.append(self._handed_out(x if index in self._config.raw_layers else self.norm(x)))
        return tapped

    def _handed_out(self, x: mx.array) -> LayerTokens:
        return LayerTokens(x[:, 1 + self._config.num_register_tokens :], x[:, 0])


# transformers' own defaults: Hub files leave out what equals them.
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "image_size": 224,
    "patch_size": 14,
    "out_indices": None,
    "use_swiglu_ffn": False,
}
_COUNTS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "image_size", "patch_size")
_FIXED: dict[str, Any] = {
    "model_type": "dinov2",
    "hidden_act": "gelu",
    "layer_norm_eps": LAYER_NORM_EPS,
    "num_channels": 3,
    "qkv_bias": True,
}
_FIXED_WHERE_TAPPED: dict[str, Any] = {"apply_layernorm": True, "reshape_hidden_states": False}
_NO_EFFECT_ON_INFERENCE = (
    "attention_probs_dropout_prob",
    "drop_path_rate",
    "hidden_dropout_prob",
    "initializer_range",
    "layerscale_value",
    "out_features",
    "stage_names",
    "use_mask_token",
)


def read_transformers_config(
    data: Mapping[str, Any], *, where: str = "config.json", tapped: int | None = None
) -> DINOv2Config:
    """Read transformers' config of a DINOv2.

    Args:
        data: The JSON object, such as what another model's config.json has as its ``backbone_config``.
        where: What is read, for the messages.
        tapped: How many layers its ``out_indices`` name; None: they have no say, and the last layer is handed out.
    Raises:
        CheckpointError: If a key is not known, or a value not supported.
    """
    fixed = _FIXED if tapped is None else {**_FIXED, **_FIXED_WHERE_TAPPED}
    idle = _NO_EFFECT_ON_INFERENCE if tapped else (*_NO_EFFECT_ON_INFERENCE, *_FIXED_WHERE_TAPPED)
    values = read_keys(where, data, _DEFAULTS, fixed, idle)
    check_counts(where, values, dict.fromkeys(_COUNTS, 1) | ({} if tapped is None else {"out_indices": tapped}))
    if type(values["use_swiglu_ffn"]) is not bool:
        raise CheckpointError(f"{where}: use_swiglu_ffn is neither true nor false: take the original file.")
    layers = (values["num_hidden_layers"] - 1,) if tapped is None else (index - 1 for index in values["out_indices"])
    return DINOv2Config(
        embed_dim=values["hidden_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=values["num_attention_heads"],
        out_layers=tuple(layers),
        mlp_ratio=values["mlp_ratio"],
        swiglu=values["use_swiglu_ffn"],
        patch_size=values["patch_size"],
        table_size=values["image_size"] // values["patch_size"],
    )


# The tables are relative to the backbone; a family puts its own prefixes in front with `prefixed`.
_MASK_TOKEN = "training only: it replaces masked patches"

ORIGINAL: tuple[Rule, ...] = (
    Rename("cls_token", "cls_token"),
    Rename("camera_token", "camera_token"),
    Drop("mask_token", _MASK_TOKEN),
    Rename("register_tokens", "register_tokens"),
    Rename("pos_embed", "pos_embed"),
    Rename("patch_embed.proj.{p}", "patch_embed.proj.{p}"),
    Rename("blocks.{i}.norm1.{p}", "blocks.{i}.norm1.{p}"),
    Split(
        "blocks.{i}.attn.qkv.{p}",
        (
            "blocks.{i}.attn.query_proj.{p}",
            "blocks.{i}.attn.key_proj.{p}",
            "blocks.{i}.attn.value_proj.{p}",
        ),
    ),
    Rename("blocks.{i}.attn.q_norm.{p}", "blocks.{i}.attn.query_norm.{p}"),
    Rename("blocks.{i}.attn.k_norm.{p}", "blocks.{i}.attn.key_norm.{p}"),
    Rename("blocks.{i}.attn.proj.{p}", "blocks.{i}.attn.out_proj.{p}"),
    Rename("blocks.{i}.ls1.gamma", "blocks.{i}.layer_scale1.gamma"),
    Rename("blocks.{i}.norm2.{p}", "blocks.{i}.norm2.{p}"),
    Rename("blocks.{i}.mlp.fc1.{p}", "blocks.{i}.mlp.fc1.{p}"),
    Rename("blocks.{i}.mlp.fc2.{p}", "blocks.{i}.mlp.fc2.{p}"),
    Split("blocks.{i}.mlp.w12.{p}", ("blocks.{i}.mlp.gate_proj.{p}", "blocks.{i}.mlp.up_proj.{p}")),
    Rename("blocks.{i}.mlp.w3.{p}", "blocks.{i}.mlp.down_proj.{p}"),
    Rename("blocks.{i}.ls2.gamma", "blocks.{i}.layer_scale2.gamma"),
    Rename("norm.{p}", "norm.{p}"),
)

# Hub files keep the old names (`attention.attention.query`); transformers 5 uses the new ones in memory.
TRANSFORMERS: tuple[Rule, ...] = (
    Rename("embeddings.cls_token", "cls_token"),
    Drop("embeddings.mask_token", _MASK_TOKEN),
    Rename("embeddings.register_tokens", "register_tokens"),
    Rename("embeddings.position_embeddings", "pos_embed"),
    Rename("embeddings.patch_embeddings.projection.{p}", "patch_embed.proj.{p}"),
    Rename("encoder.layer.{i}.norm1.{p}", "blocks.{i}.norm1.{p}"),
    Rename("encoder.layer.{i}.attention.attention.query.{p}", "blocks.{i}.attn.query_proj.{p}"),
    Rename("encoder.layer.{i}.attention.attention.key.{p}", "blocks.{i}.attn.key_proj.{p}"),
    Rename("encoder.layer.{i}.attention.attention.value.{p}", "blocks.{i}.attn.value_proj.{p}"),
    Rename("encoder.layer.{i}.attention.output.dense.{p}", "blocks.{i}.attn.out_proj.{p}"),
    Rename("encoder.layer.{i}.attention.q_proj.{p}", "blocks.{i}.attn.query_proj.{p}"),
    Rename("encoder.layer.{i}.attention.k_proj.{p}", "blocks.{i}.attn.key_proj.{p}"),
    Rename("encoder.layer.{i}.attention.v_proj.{p}", "blocks.{i}.attn.value_proj.{p}"),
    Rename("encoder.layer.{i}.attention.o_proj.{p}", "blocks.{i}.attn.out_proj.{p}"),
    Rename("encoder.layer.{i}.layer_scale1.lambda1", "blocks.{i}.layer_scale1.gamma"),
    Rename("encoder.layer.{i}.norm2.{p}", "blocks.{i}.norm2.{p}"),
    Rename("encoder.layer.{i}.mlp.fc1.{p}", "blocks.{i}.mlp.fc1.{p}"),
    Rename("encoder.layer.{i}.mlp.fc2.{p}", "blocks.{i}.mlp.fc2.{p}"),
    Split(
        "encoder.layer.{i}.mlp.weights_in.{p}",
        ("blocks.{i}.mlp.gate_proj.{p}", "blocks.{i}.mlp.up_proj.{p}"),
    ),
    Rename("encoder.layer.{i}.mlp.weights_out.{p}", "blocks.{i}.mlp.down_proj.{p}"),
    Rename("encoder.layer.{i}.mlp.gate_proj.{p}", "blocks.{i}.mlp.gate_proj.{p}"),
    Rename("encoder.layer.{i}.mlp.up_proj.{p}", "blocks.{i}.mlp.up_proj.{p}"),
    Rename("encoder.layer.{i}.mlp.down_proj.{p}", "blocks.{i}.mlp.down_proj.{p}"),
    Rename("encoder.layer.{i}.layer_scale2.lambda1", "blocks.{i}.layer_scale2.gamma"),
    Rename("layernorm.{p}", "norm.{p}"),
)

# depth-anything.cpp (`scripts/gguf_keys.py`): names change, axes do not; the mask token is left out.
GGUF: tuple[Rule, ...] = (
    Rename("cls_token", "cls_token"),
    Rename("camera_token", "camera_token"),
    Rename("pos_embed", "pos_embed"),
    Rename("patch_embed.{p}", "patch_embed.proj.{p}"),
    Rename("blk.{i}.norm1.{p}", "blocks.{i}.norm1.{p}"),
    Split(
        "blk.{i}.attn_qkv.{p}",
        ("blocks.{i}.attn.query_proj.{p}", "blocks.{i}.attn.key_proj.{p}", "blocks.{i}.attn.value_proj.{p}"),
    ),
    Rename("blk.{i}.attn_qnorm.{p}", "blocks.{i}.attn.query_norm.{p}"),
    Rename("blk.{i}.attn_knorm.{p}", "blocks.{i}.attn.key_norm.{p}"),
    Rename("blk.{i}.attn_proj.{p}", "blocks.{i}.attn.out_proj.{p}"),
    Rename("blk.{i}.ls1", "blocks.{i}.layer_scale1.gamma"),
    Rename("blk.{i}.norm2.{p}", "blocks.{i}.norm2.{p}"),
    Rename("blk.{i}.mlp_fc1.{p}", "blocks.{i}.mlp.fc1.{p}"),
    Rename("blk.{i}.mlp_fc2.{p}", "blocks.{i}.mlp.fc2.{p}"),
    Split("blk.{i}.mlp_w12.{p}", ("blocks.{i}.mlp.gate_proj.{p}", "blocks.{i}.mlp.up_proj.{p}")),
    Rename("blk.{i}.mlp_w3.{p}", "blocks.{i}.mlp.down_proj.{p}"),
    Rename("blk.{i}.ls2", "blocks.{i}.layer_scale2.gamma"),
    Rename("norm.{p}", "norm.{p}"),
)
