"""DINOv3 (Siméoni et al., 2025): a vision transformer with register tokens whose positions are rotations.

Upstream: ``dinov3/models/vision_transformer.py`` and transformers' ``modeling_dinov3_vit.py``.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_depth.backbones.dinov2 import LayerTokens, check_transformer
from mlx_depth.errors import CheckpointError
from mlx_depth.nn.block import Block
from mlx_depth.nn.grid_tables import GridTables
from mlx_depth.nn.patch_embed import PatchEmbed
from mlx_depth.nn.rope import Rotation, centered_rotation
from mlx_depth.weights.config_values import check_at_least
from mlx_depth.weights.rules import Drop, Rename, Rule, Split
from mlx_depth.weights.transformers_config import check_counts, read_keys

PERIODS = "rope_embed.periods"  # the authors' name of a tensor that not all files have
MODEL_TYPE = "dinov3_vit"  # transformers' name of the architecture


@dataclass(frozen=True)
class DINOv3Config:
    """Sizes of a DINOv3 backbone and the layers that it hands out."""

    embed_dim: int
    num_layers: int
    num_heads: int
    hidden_dim: int  # width of the feed-forward layers
    out_layers: tuple[int, ...]  # zero-based
    swiglu: bool = False
    qkv_bias: bool = True  # of queries and values
    key_bias: bool = False
    patch_size: int = 16
    num_register_tokens: int = 4
    rope_theta: float = 100.0
    stored_periods: bool = False
    """Whether the checkpoint holds the periods of the rotations, which else follow from ``rope_theta``: the authors'
    files do, rounded to bfloat16, and transformers' do not. Each is followed for its own files."""
    norm_eps: float = 1e-5
    normalized: bool = True  # False: tapped tokens do not go through the last norm

    def __post_init__(self) -> None:
        sizes = ("embed_dim", "num_layers", "num_heads", "hidden_dim", "patch_size")
        check_at_least(self, {**dict.fromkeys(sizes, 1), "out_layers": 0, "num_register_tokens": 0})
        check_transformer(self)
        if self.head_dim % 4:
            raise CheckpointError(
                f"heads of {self.head_dim} channels cannot turn by row and column: "
                "take the config.json of the original checkpoint."
            )
        if not 1 < self.rope_theta < math.inf:
            raise CheckpointError(
                f"rope_theta is {self.rope_theta}, not a number above 1: "
                "take the config.json of the original checkpoint."
            )

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.embed_dim // self.num_heads


class DINOv3(nn.Module):
    """Images to the tokens of chosen layers."""

    def __init__(self, config: DINOv3Config):
        super().__init__()
        self._config = config
        dims = config.embed_dim
        self.patch_embed = PatchEmbed(dims, config.patch_size)
        self.cls_token = mx.zeros((1, 1, dims))
        if config.num_register_tokens:
            self.register_tokens = mx.zeros((1, config.num_register_tokens, dims))
        if config.stored_periods:
            self.rope_periods = mx.ones((config.head_dim // 4,))
        else:
            self._periods = default_periods(config)
        self.blocks = [
            Block(
                dims,
                config.num_heads,
                config.hidden_dim,
                eps=config.norm_eps,
                swiglu=config.swiglu,
                qv_bias=config.qkv_bias,
                key_bias=config.key_bias,
            )
            for _ in range(config.num_layers)
        ]
        self.norm = nn.LayerNorm(dims, eps=config.norm_eps)
        self._rotations: GridTables[Rotation] = GridTables()

    def rotation(self, grid_size: tuple[int, int]) -> Rotation:
        """How the tokens of a patch grid turn, kept for the next images of that size."""
        periods = self.rope_periods if self._config.stored_periods else self._periods
        leading = 1 + self._config.num_register_tokens
        return self._rotations.get(grid_size, periods, lambda: centered_rotation(grid_size, periods, leading))

    def shared(self, grid_size: tuple[int, int]) -> list[mx.array]:
        """What images of a patch grid share, for ``DepthNetwork.prepare``."""
        return [*self.rotation(grid_size)]

    def embed(self, pixel_values: mx.array) -> mx.array:
        """Class, register and patch tokens: (B, H, W, 3) → (B, 1 + registers + gh * gw, C)."""
        patches = self.patch_embed(pixel_values).flatten(1, 2)  # map → tokens
        B, _, C = patches.shape
        lead = [self.cls_token, self.register_tokens] if self._config.num_register_tokens else [self.cls_token]
        return mx.concatenate([*(mx.broadcast_to(x, (B, x.shape[1], C)) for x in lead), patches], axis=1)

    def __call__(self, pixel_values: mx.array) -> list[LayerTokens]:
        """Run the transformer.

        Args:
            pixel_values: Normalized images, ``(B, H, W, 3)``; H and W are multiples of the patch size.
        Returns:
            One ``LayerTokens`` for each of ``out_layers``, from the first to the last.
        """
        _, H, W, _ = pixel_values.shape
        rotation = self.rotation((H // self._config.patch_size, W // self._config.patch_size))
        x = self.embed(pixel_values)
        tapped = []
        for index, block in enumerate(self.blocks):
            x = block(x, rotation)
            if index in self._config.out_layers:
                tapped.append(self._finish(x))
        return tapped

    def _finish(self, x: mx.array) -> LayerTokens:
        if self._config.normalized:
            x = self.norm(x)
        return LayerTokens(x[:, 1 + self._config.num_register_tokens :], x[:, 0])


def default_periods(config: DINOv3Config) -> mx.array:
    """Periods of the rotation that follow from ``rope_theta``: ``(head_dim / 4,)``, float32."""
    pairs = config.head_dim // 4
    return mx.array(config.rope_theta ** (np.arange(pairs) / pairs), mx.float32)


# name → (embed_dim, layers, heads, width of the feed-forward layers, SwiGLU, bias of queries and values), as upstream's
# `hub/backbones.py`.
SIZES: dict[str, tuple[int, int, int, int, bool, bool]] = {
    "small": (384, 12, 6, 1536, False, True),
    "small-plus": (384, 12, 6, 1536, True, True),
    "base": (768, 12, 12, 3072, False, True),
    "large": (1024, 24, 16, 4096, False, True),
    "huge-plus": (1280, 32, 20, 5120, True, True),
    "7b": (4096, 40, 32, 8192, True, False),
}


def dinov3_config(size: str, *, out_layers: tuple[int, ...] | None = None, normalized: bool = True) -> DINOv3Config:
    """The published sizes: ``small``, ``small-plus``, ``base``, ``large``, ``huge-plus`` and ``7b``.

    Args:
        size: Name of the size.
        out_layers: Zero-based, rising; None: the last layer. ``spread_layers`` gives four.
        normalized: Whether tapped tokens go through the last norm.
    """
    embed_dim, num_layers, num_heads, hidden_dim, swiglu, qkv_bias = SIZES[size]
    return DINOv3Config(
        embed_dim,
        num_layers,
        num_heads,
        hidden_dim,
        (num_layers - 1,) if out_layers is None else out_layers,
        swiglu=swiglu,
        qkv_bias=qkv_bias,
        normalized=normalized,
    )


def spread_layers(num_layers: int) -> tuple[int, ...]:
    """Four layers at even intervals, zero-based: those that upstream's depth heads tap."""
    if num_layers == 24:
        return (4, 11, 17, 23)  # a slip that upstream keeps for its checkpoints
    return tuple(num_layers // 4 * quarter - 1 for quarter in range(1, 5))


def config_from_shapes(
    shapes: Mapping[str, tuple[int, ...]], *, out_layers: tuple[int, ...] | None = None, normalized: bool = True
) -> DINOv3Config:
    """The published backbone whose tensors, under the authors' names, have these shapes.

    Args:
        shapes: Source name → shape, without what stands before the backbone's names.
        out_layers: As for ``dinov3_config``.
        normalized: As for ``dinov3_config``.
    Raises:
        CheckpointError: If no published one does: heads and the rotation's base do not show in shapes.
    """
    swiglu = "blocks.0.mlp.w1.weight" in shapes
    first = "blocks.0.mlp.w1.weight" if swiglu else "blocks.0.mlp.fc1.weight"
    patches = "patch_embed.proj.weight"
    missing = [name for name in (patches, first) if len(shapes.get(name, ())) < 2]
    if missing:
        raise CheckpointError(f"the checkpoint lacks {', '.join(missing)}: take the original file.")
    num_layers = len({found[1] for name in shapes if (found := re.match(r"blocks\.(\d+)\.", name))})
    embed_dim, hidden_dim, patch_size = shapes[patches][0], shapes[first][0], shapes[patches][-1]
    for size, (dims, layers, _, hidden, gated, _) in SIZES.items():
        config = dinov3_config(size, out_layers=out_layers, normalized=normalized)
        if (dims, layers, hidden, gated, config.patch_size) == (embed_dim, num_layers, hidden_dim, swiglu, patch_size):
            return replace(
                config,
                qkv_bias="blocks.0.attn.qkv.bias" in shapes,
                num_register_tokens=shapes.get("storage_tokens", (1, 0))[1],
                stored_periods=PERIODS in shapes,
            )
    raise CheckpointError(
        f"no published DINOv3 has {num_layers} layers of width {embed_dim} with {'gated' if swiglu else 'plain'} "
        f"feed-forward layers of {hidden_dim} on patches of {patch_size} pixels: take the original file."
    )


# transformers' own defaults.
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "patch_size": 16,
    "num_register_tokens": 0,
    "use_gated_mlp": False,
    "hidden_act": "gelu",
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "rope_theta": 100.0,
    "layer_norm_eps": 1e-5,
    "out_indices": None,
    "out_features": None,
}
_COUNTS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
_SWITCHES = ("use_gated_mlp", "query_bias", "key_bias", "value_bias")
_NUMBERS = ("rope_theta", "layer_norm_eps")
_FIXED: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "apply_layernorm": True,
    "num_channels": 3,
    "proj_bias": True,
    "mlp_bias": True,
}
_NO_EFFECT_ON_INFERENCE = (
    "image_size",  # positions follow the image
    "pos_embed_shift",
    "pos_embed_jitter",
    "pos_embed_rescale",
    "attention_dropout",
    "drop_path_rate",
    "initializer_range",
    "layerscale_value",
    "reshape_hidden_states",
    "return_class_token",
    "stage_names",
)


def read_transformers_config(
    data: Mapping[str, Any],
    *,
    where: str = "config.json",
    out_layers: tuple[int, ...] | None = None,
    normalized: bool = True,
) -> DINOv3Config:
    """Read transformers' config of a DINOv3.

    Args:
        data: The JSON object: a config.json, or what another model's has as its ``backbone_config``.
        where: What is read, for the messages.
        out_layers: Zero-based, rising; None: those that the config names, or the last.
        normalized: Whether tapped tokens go through the last norm.
    Raises:
        CheckpointError: If a key is not known, or a value not supported.
    """
    values = read_keys(where, data, _DEFAULTS, _FIXED, _NO_EFFECT_ON_INFERENCE)
    check_counts(where, values, dict.fromkeys(_COUNTS, 1))
    for key in _SWITCHES:
        if type(values[key]) is not bool:
            raise CheckpointError(f"{where}: {key} is neither true nor false: take the original file.")
    for key in _NUMBERS:
        if type(values[key]) not in (int, float):
            raise CheckpointError(f"{where}: {key} is no number: take the original file.")
    gated = values["use_gated_mlp"]
    activation = "silu" if gated else "gelu"
    if values["hidden_act"] != activation or values["query_bias"] != values["value_bias"]:
        raise CheckpointError(
            f"{where}: only {activation!r} is supported as hidden_act where use_gated_mlp is {json.dumps(gated)}, and "
            "query_bias only together with value_bias: this is another architecture. Take another model."
        )
    return DINOv3Config(
        embed_dim=values["hidden_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=values["num_attention_heads"],
        hidden_dim=values["intermediate_size"],
        out_layers=_tapped(where, values) if out_layers is None else out_layers,
        swiglu=gated,
        qkv_bias=values["query_bias"],
        key_bias=values["key_bias"],
        patch_size=values["patch_size"],
        num_register_tokens=values["num_register_tokens"],
        rope_theta=float(values["rope_theta"]),
        norm_eps=float(values["layer_norm_eps"]),
        normalized=normalized,
    )


def _tapped(where: str, values: Mapping[str, Any]) -> tuple[int, ...]:
    """The layers that a config names: transformers counts them from 1, and calls them stages."""
    num_layers, indices, names = values["num_hidden_layers"], values["out_indices"], values["out_features"]
    if indices is None and names is None:
        return (num_layers - 1,)
    counted = isinstance(indices, list) and all(type(index) is int and 1 <= index <= num_layers for index in indices)
    if not counted or not indices or names not in (None, [f"stage{index}" for index in indices]):
        raise CheckpointError(
            f"{where}: out_indices {indices!r:.60} and out_features {names!r:.60} do not name the same layers of "
            f"{num_layers}: take the file of the original checkpoint."
        )
    return tuple(index - 1 for index in indices)


def read_config(shapes: Mapping[str, tuple[int, ...]], written: Mapping[str, Any] | None) -> DINOv3Config:
    """The backbone of a checkpoint: as transformers' config says where there is one, else by shapes.

    Args:
        shapes: As for ``config_from_shapes``.
        written: As for ``read_transformers_config``.
    Raises:
        CheckpointError: As these two.
    """
    if written is None:
        return config_from_shapes(shapes)
    return replace(read_transformers_config(written), stored_periods=PERIODS in shapes)


# The tables are relative to the backbone; a family puts its own prefixes in front with `prefixed`.
_MASK_TOKEN = "training only: it replaces masked patches"
_LOCAL_NORM = "training only: it normalizes the class tokens of local crops"

ORIGINAL: tuple[Rule, ...] = (
    Rename("cls_token", "cls_token"),
    Rename("storage_tokens", "register_tokens"),
    Drop("mask_token", _MASK_TOKEN),
    Rename("patch_embed.proj.{p}", "patch_embed.proj.{p}"),
    Rename(PERIODS, "rope_periods"),
    Rename("blocks.{i}.norm1.{p}", "blocks.{i}.norm1.{p}"),
    Split(
        "blocks.{i}.attn.qkv.weight",
        (
            "blocks.{i}.attn.query_proj.weight",
            "blocks.{i}.attn.key_proj.weight",
            "blocks.{i}.attn.value_proj.weight",
        ),
    ),
    # In the published files the mask hides all three parts (facebookresearch/dinov3#195).
    Split(
        "blocks.{i}.attn.qkv.bias",
        ("blocks.{i}.attn.query_proj.bias", None, "blocks.{i}.attn.value_proj.bias"),
        mask="blocks.{i}.attn.qkv.bias_mask",
    ),
    Drop("blocks.{i}.attn.qkv.bias_mask", "taken into the bias"),
    Rename("blocks.{i}.attn.proj.{p}", "blocks.{i}.attn.out_proj.{p}"),
    Rename("blocks.{i}.ls1.gamma", "blocks.{i}.layer_scale1.gamma"),
    Rename("blocks.{i}.norm2.{p}", "blocks.{i}.norm2.{p}"),
    Rename("blocks.{i}.mlp.fc1.{p}", "blocks.{i}.mlp.fc1.{p}"),
    Rename("blocks.{i}.mlp.fc2.{p}", "blocks.{i}.mlp.fc2.{p}"),
    Rename("blocks.{i}.mlp.w1.{p}", "blocks.{i}.mlp.gate_proj.{p}"),
    Rename("blocks.{i}.mlp.w2.{p}", "blocks.{i}.mlp.up_proj.{p}"),
    Rename("blocks.{i}.mlp.w3.{p}", "blocks.{i}.mlp.down_proj.{p}"),
    Rename("blocks.{i}.ls2.gamma", "blocks.{i}.layer_scale2.gamma"),
    Rename("norm.{p}", "norm.{p}"),
    Drop("local_cls_norm.{p}", _LOCAL_NORM),
)


def _transformers(feed_forward: Mapping[str, str]) -> tuple[Rule, ...]:
    layer = {
        "norm1.{p}": "norm1.{p}",
        "attention.q_proj.{p}": "attn.query_proj.{p}",
        "attention.k_proj.{p}": "attn.key_proj.{p}",
        "attention.v_proj.{p}": "attn.value_proj.{p}",
        "attention.o_proj.{p}": "attn.out_proj.{p}",
        "layer_scale1.lambda1": "layer_scale1.gamma",
        "norm2.{p}": "norm2.{p}",
        **{f"mlp.{source}.{{p}}": f"mlp.{target}.{{p}}" for source, target in feed_forward.items()},
        "layer_scale2.lambda1": "layer_scale2.gamma",
    }
    return (
        Rename("embeddings.cls_token", "cls_token"),
        Rename("embeddings.register_tokens", "register_tokens"),
        Drop("embeddings.mask_token", _MASK_TOKEN),
        Rename("embeddings.patch_embeddings.{p}", "patch_embed.proj.{p}"),
        # Files have the first form; transformers 5 uses the second in memory.
        *(
            Rename(f"{layers}.{{i}}.{source}", f"blocks.{{i}}.{target}")
            for layers in ("layer", "model.layer")
            for source, target in layer.items()
        ),
        Rename("norm.{p}", "norm.{p}"),
    )


# A plain and a gated feed-forward layer share two names there, and only two: each has its own table.
TRANSFORMERS = _transformers({"up_proj": "fc1", "down_proj": "fc2"})
TRANSFORMERS_SWIGLU = _transformers({"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"})


def table_of(names: Collection[str]) -> tuple[Rule, ...]:
    """The table for a checkpoint whose tensors have these names, without what stands before them."""
    if "cls_token" in names:
        return ORIGINAL
    return TRANSFORMERS_SWIGLU if any(".mlp.gate_proj." in name for name in names) else TRANSFORMERS
