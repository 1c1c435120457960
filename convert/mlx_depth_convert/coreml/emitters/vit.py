"""A vision transformer as a Core ML graph, one fixed input size a function: what its families share.

Two layouts. ``ane``: tokens are (1, C, 1, S) and linear layers 1×1 convolutions, as Apple's "Deploying Transformers on
the Apple Neural Engine" (2022) advises. ``gpu``: tokens are (1, S, C). Maps are (1, C, h, w) in both.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mlx_depth.backbones.dinov2 import DINOv2Config
from mlx_depth.backbones.dinov3 import DINOv3Config
from mlx_depth.nn.attention import QK_NORM_EPS
from mlx_depth.nn.rope import Rotation
from mlx_depth_convert.coreml.emitters import fold
from mlx_depth_convert.coreml.emitters.base import Affine, Array, Emitter, Layer, Size, Var

Backbone = DINOv2Config | DINOv3Config

SPLIT_MAX_HEADS, SPLIT_MAX_LAYERS = 12, 12  # base; split, a large model compiles five times longer
PARTS = {1: "halves", 2: "quarters"}  # groups of channels → what they are split into


@dataclass(frozen=True)
class Turn:
    """How channels turn: what ``fold.fold_rotation`` gives as constants of the graph, and the groups that they form."""

    cos: Var
    sin: Var
    groups: int


class ViTEmitter(Emitter):
    """A network of a vision transformer and a head.

    A subclass writes ``transformer`` and ``decode``, and says the epsilon of its blocks.
    """

    float_prefixes: ClassVar[tuple[str, ...]] = ("patch_embed", "lead_tokens")
    """Embeddings: small, and every error in them stays."""

    @staticmethod
    def multiple_of(config: Any) -> int:
        """The patch size."""
        patch_size: int = config.backbone.patch_size
        return patch_size

    @staticmethod
    def splits_attention(config: Any) -> bool:
        """Up to the size of base."""
        backbone: Backbone = config.backbone
        return backbone.num_heads <= SPLIT_MAX_HEADS and backbone.num_layers <= SPLIT_MAX_LAYERS

    @property
    def backbone(self) -> Backbone:
        backbone: Backbone = self.spec.config.backbone
        return backbone

    @property
    def block_eps(self) -> float:
        """Epsilon of the LayerNorms of blocks."""
        raise NotImplementedError

    def maps(self, image: Var, size: Size, name: str) -> list[Var]:
        """8-bit RGB as floats, (1, 3, H, W), to depth and extras, (1, 1, H, W) each."""
        patch = self.backbone.patch_size
        grid_size = (size[0] // patch, size[1] // patch)
        return self.decode(self.transformer(self.embed(image, grid_size), grid_size), grid_size, name)

    def transformer(self, x: Var, grid_size: Size) -> list[Var]:
        """Tokens on the scaled residual stream to those that the head reads, of each tapped layer."""
        raise NotImplementedError

    def decode(self, tapped: list[Var], grid_size: Size, name: str) -> list[Var]:
        """What ``transformer`` gives to depth and extras; the depth's operation is called ``name``."""
        raise NotImplementedError

    def embed(self, image: Var, grid_size: Size) -> Var:
        """Image to tokens on the scaled residual stream."""
        offset, layer = fold.fold_pixels(self.spec.processor, self.weights)
        x = self.mb.mul(x=image, y=np.float32(fold.PIXEL_SCALE), name="pixels_scaled")
        x = self.mb.add(x=x, y=offset.reshape(1, 3, 1, 1), name="pixels")
        x = self.convolve(x, layer, "patch_embed", stride=self.backbone.patch_size)
        x = self.positioned(self.to_tokens(x, grid_size), grid_size)
        lead = self.mb.const(val=self.token_constant(fold.fold_tokens(self.weights)), name="lead_tokens")
        return self.mb.concat(values=[lead, x], axis=self.token_axis, name="tokens")

    def positioned(self, x: Var, grid_size: Size) -> Var:
        """Patch tokens, told where they are in the image; here they are not told."""
        return x

    def block(self, x: Var, index: int, turn: Turn | None = None) -> Var:
        sdpa = self.plan.attention == "sdpa"
        block = fold.fold_block(self.backbone, self.weights, index, softmax_scale=not sdpa)
        name, eps = f"block{index}", fold.stream_eps(self.block_eps)
        y = self.norm(x, f"{name}_norm1", eps=eps)
        query, key, value = (
            self.to_heads(self.linear(y, layer, f"{name}_{part}"), f"{name}_{part}", norm, part_turn)
            for part, layer, norm, part_turn in (
                ("query", block.query, block.query_norm, turn),
                ("key", block.key, block.key_norm, turn),
                ("value", block.value, None, None),
            )
        )
        y = self.from_heads(self.attend(query, key, value, name), f"{name}_merged")
        x = self.mb.add(x=x, y=self.linear(y, block.out, f"{name}_out"), name=f"{name}_attended")
        y = self.mlp(self.norm(x, f"{name}_norm2", eps=eps), block.mlp, name)
        return self.mb.add(x=x, y=y, name=name)

    def mlp(self, x: Var, layers: tuple[Layer, ...], name: str) -> Var:
        if self.backbone.swiglu:
            gate, up, down = layers
            activated = self.mb.silu(x=self.linear(x, gate, f"{name}_gate"), name=f"{name}_silu")
            hidden = self.mb.mul(x=activated, y=self.linear(x, up, f"{name}_up"), name=f"{name}_hidden")
            return self.linear(hidden, down, f"{name}_down")
        fc1, fc2 = layers
        hidden = self.mb.gelu(x=self.linear(x, fc1, f"{name}_fc1"), mode="EXACT", name=f"{name}_gelu")
        return self.linear(hidden, fc2, f"{name}_fc2")

    def attend(self, query: Var, key: Var, value: Var, name: str) -> Var:
        if self.plan.attention == "sdpa":
            return self.attend_sdpa(query, key, value, name)
        heads = self.backbone.num_heads
        if self.plan.attention == "batched" or heads == 1:
            return self.attend_heads(query, key, value, name)
        queries, keys, values = (
            self.mb.split(x=x, num_splits=heads, axis=1, name=f"{name}_{part}_split")
            for x, part in ((query, "query"), (key, "key"), (value, "value"))
        )
        attended = [
            self.attend_heads(q, k, v, f"{name}_head{index}")
            for index, (q, k, v) in enumerate(zip(queries, keys, values, strict=True))
        ]
        return self.mb.concat(values=attended, axis=1, name=f"{name}_heads")

    def attend_heads(self, query: Var, key: Var, value: Var, name: str) -> Var:
        """(1, heads, d, S) each for ``ane``, (1, heads, S, d) for ``gpu``; so is the result."""
        ane = self.is_ane
        scores = self.mb.matmul(x=query, y=key, transpose_x=ane, transpose_y=not ane, name=f"{name}_scores")
        attention = self.mb.softmax(x=scores, axis=-1, name=f"{name}_softmax")
        if ane:
            return self.mb.matmul(x=value, y=attention, transpose_y=True, name=f"{name}_attention")
        return self.mb.matmul(x=attention, y=value, name=f"{name}_attention")

    def attend_sdpa(self, query: Var, key: Var, value: Var, name: str) -> Var:
        if self.is_ane:
            query, key, value = (
                self.mb.transpose(x=x, perm=[0, 1, 3, 2], name=f"{name}_{part}_rows")
                for x, part in ((query, "query"), (key, "key"), (value, "value"))
            )
        y = self.mb.scaled_dot_product_attention(query=query, key=key, value=value, name=f"{name}_attention")
        return self.mb.transpose(x=y, perm=[0, 1, 3, 2], name=f"{name}_columns") if self.is_ane else y

    def rotation(self, rotation: Rotation, name: str) -> Turn:
        cos, sin = (self.token_constant(table) for table in fold.fold_rotation(rotation))
        groups = rotation.cos.shape[1]
        return Turn(self.mb.const(val=cos, name=f"{name}_cos"), self.mb.const(val=sin, name=f"{name}_sin"), groups)

    def turn(self, x: Var, turn: Turn, name: str) -> Var:
        """Rotary positions: each channel and the one that it turns with, along the channel axis."""
        axis = self.channel_axis(x)
        parts = self.mb.split(x=x, num_splits=2 * turn.groups, axis=axis, name=f"{name}_{PARTS[turn.groups]}")
        swapped = [part for a, b in zip(parts[::2], parts[1::2], strict=True) for part in (b, a)]
        partners = self.mb.concat(values=swapped, axis=axis, name=f"{name}_partners")
        straight = self.mb.mul(x=x, y=turn.cos, name=f"{name}_cos")
        return self.mb.add(x=straight, y=self.mb.mul(x=partners, y=turn.sin, name=f"{name}_sin"), name=name)

    # What differs between the layouts

    @property
    def is_ane(self) -> bool:
        return self.plan.layout == "ane"

    @property
    def token_axis(self) -> int:
        return 3 if self.is_ane else 1

    def channel_axis(self, x: Var) -> int:
        return 1 if self.is_ane else len(x.shape) - 1

    def token_constant(self, rows: Array) -> Array:
        """(S, C) → (1, C, 1, S) or (1, S, C)."""
        return np.ascontiguousarray(rows.T)[None, :, None] if self.is_ane else rows[None]

    def to_tokens(self, x: Var, grid_size: Size) -> Var:
        count, dims = grid_size[0] * grid_size[1], self.backbone.embed_dim
        if self.is_ane:
            return self.mb.reshape(x=x, shape=[1, dims, 1, count], name="patches")
        x = self.mb.reshape(x=x, shape=[1, dims, count], name="patch_columns")
        return self.mb.transpose(x=x, perm=[0, 2, 1], name="patches")

    def to_map(self, x: Var, grid_size: Size, name: str) -> Var:
        """Patch tokens → (1, C, gh, gw)."""
        if not self.is_ane:
            x = self.mb.transpose(x=x, perm=[0, 2, 1], name=f"{name}_columns")
        return self.mb.reshape(x=x, shape=[1, x.shape[1], *grid_size], name=f"{name}_map")

    def patches(self, x: Var, name: str) -> Var:
        """Tokens without the leading ones."""
        begin = [0] * len(x.shape)
        begin[self.token_axis] = 1 + self.backbone.num_register_tokens
        return self.mb.slice_by_index(x=x, begin=begin, end=[0] * len(begin), end_mask=[True] * len(begin), name=name)

    def class_token(self, x: Var, name: str) -> Var:
        """The first token alone."""
        end = list(x.shape)
        end[self.token_axis] = 1
        return self.mb.slice_by_index(x=x, begin=[0] * len(end), end=end, name=name)

    def norm(self, x: Var, name: str, *, eps: float, affine: Affine | None = None) -> Var:
        gain = {} if affine is None else {"gamma": affine.gamma, "beta": affine.beta}
        return self.mb.layer_norm(x=x, axes=[self.channel_axis(x)], epsilon=np.float32(eps), name=name, **gain)

    def linear(self, x: Var, layer: Layer, name: str) -> Var:
        if self.is_ane:
            return self.mb.conv(x=x, weight=layer.weight[:, :, None, None], bias=layer.bias, name=name)
        return self.mb.linear(x=x, weight=layer.weight, bias=layer.bias, name=name)

    def to_heads(self, x: Var, name: str, norm: Affine | None, turn: Turn | None) -> Var:
        """Tokens to (1, heads, d, S) for ``ane``, (1, heads, S, d) for ``gpu``, normalized and turned where wanted."""
        heads, tokens = self.backbone.num_heads, x.shape[self.token_axis]
        dims = self.backbone.embed_dim // heads
        if self.is_ane:
            if norm is not None or turn is not None:  # heads for a batch: LayerNorm likes the axis of the channels
                x = self.mb.reshape(x=x, shape=[heads, dims, 1, tokens], name=f"{name}_apart")
                x = self.normed_and_turned(x, name, norm, turn)
            return self.mb.reshape(x=x, shape=[1, heads, dims, tokens], name=f"{name}_heads")
        x = self.mb.reshape(x=x, shape=[1, tokens, heads, dims], name=f"{name}_heads_split")
        x = self.mb.transpose(x=x, perm=[0, 2, 1, 3], name=f"{name}_heads")
        return self.normed_and_turned(x, name, norm, turn)

    def normed_and_turned(self, x: Var, name: str, norm: Affine | None, turn: Turn | None) -> Var:
        if norm is not None:
            name = f"{name}_normed"
            x = self.norm(x, name, eps=QK_NORM_EPS, affine=norm)
        return x if turn is None else self.turn(x, turn, f"{name}_turned")

    def from_heads(self, x: Var, name: str) -> Var:
        dims = self.backbone.embed_dim
        if self.is_ane:
            return self.mb.reshape(x=x, shape=[1, dims, 1, x.shape[3]], name=name)
        x = self.mb.transpose(x=x, perm=[0, 2, 1, 3], name=f"{name}_rows")
        return self.mb.reshape(x=x, shape=[1, x.shape[1], dims], name=name)
