"""Depth Anything 3's backbone (Lin et al., 2025): DINOv2 whose later blocks look at all views by turns.

Upstream: ``depth_anything_3/model/dinov2/vision_transformer.py`` and ``model/reference_view_selector.py``.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import mlx.core as mx

from mlx_depth.backbones.dinov2 import LAYER_NORM_EPS, DINOv2, DINOv2Config
from mlx_depth.errors import CheckpointError, OptionError
from mlx_depth.nn import ops
from mlx_depth.nn.block import Block
from mlx_depth.nn.rope import Rotation, common_rotation, grid_rotation
from mlx_depth.weights.config_values import check_at_least

ReferenceView = Literal["saddle_balanced", "saddle_sim_range", "middle", "first"]
LEAST_VIEWS_TO_CHOOSE = 3  # below, the first view is the reference


@dataclass(frozen=True)
class AnyViewConfig(DINOv2Config):
    """A DINOv2 backbone with attention across views."""

    alt_start: int = -1
    """The first block with a camera token, normalized queries and keys, and rotary positions; from it on, blocks of odd
    number see all views."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, {"alt_start": 1})
        if self.alt_start >= self.num_layers or min(self.out_layers) < self.alt_start - 1:
            raise CheckpointError(
                f"alt_start is {self.alt_start}, with {self.num_layers} layers and out_layers {self.out_layers}: "
                "take the config.json of the original checkpoint."
            )
        if self.embed_dim // self.num_heads % 4:
            raise CheckpointError(
                f"heads of {self.embed_dim // self.num_heads} channels cannot turn by row and column: "
                "take the config.json of the original checkpoint."
            )


class ViewTokens(NamedTuple):
    """One tapped layer of all views: what the view alone gave, and, normalized, what all views gave."""

    patch_tokens: mx.array  # (B, V, gh * gw, 2 C)
    camera_token: mx.array  # (B, V, 2 C), neither half normalized


class AnyViewDINOv2(DINOv2):
    """Views of a scene to the tokens of chosen layers."""

    _config: AnyViewConfig

    def __init__(self, config: AnyViewConfig):
        super().__init__(config)
        self.camera_token = mx.zeros((1, 2, config.embed_dim))  # of the reference view, and of all others

    def _block(self, index: int) -> Block:
        config = self._config
        return Block(
            config.embed_dim,
            config.num_heads,
            config.hidden_dim,
            eps=LAYER_NORM_EPS,
            swiglu=config.swiglu,
            qk_norm=index >= config.alt_start,
        )

    def __call__(  # type: ignore[override]
        self,
        pixel_values: mx.array,
        camera_tokens: mx.array | None = None,
        *,
        reference_view: ReferenceView = "saddle_balanced",
    ) -> list[ViewTokens]:
        """Run the transformer.

        Args:
            pixel_values: Normalized views, ``(B, V, H, W, 3)``; H and W are multiples of the patch size.
            camera_tokens: Of known cameras, ``(B, V, C)``; None: the learnt ones, and with 3 views or more a reference
                view is chosen.
            reference_view: How it is chosen: the view that is most in the middle by likeness, norm and variance of its
                class token (``saddle_balanced``), the one whose likeness to others spreads most (``saddle_sim_range``),
                the ``middle`` one, or the ``first``.
        Returns:
            One ``ViewTokens`` for each of ``out_layers``, the views in the order given.
        Raises:
            OptionError: If there is no such way to choose.
        """
        ways = get_args(ReferenceView)
        if reference_view not in ways:
            raise OptionError(f"no reference_view {reference_view!r}: choose one of {', '.join(ways)}.")
        B, V, H, W, _ = pixel_values.shape
        patch, alt_start = self._config.patch_size, self._config.alt_start
        x = self.embed(pixel_values.reshape(B * V, H, W, 3))
        _, N, C = x.shape
        x = x.reshape(B, V, N, C)  # views are a batch until blocks look across
        head_dim = C // self._config.num_heads
        within, across = grid_rotation((H // patch, W // patch), head_dim), common_rotation(N - 1, head_dim)
        chooses = camera_tokens is None and V >= LEAST_VIEWS_TO_CHOOSE
        if camera_tokens is None:
            of_reference, of_others = self.camera_token[:, :1], self.camera_token[:, 1:]
            camera_tokens = mx.concatenate([of_reference, mx.repeat(of_others, V - 1, axis=1)], axis=1)
        local, order, tapped = x, None, []
        for index, block in enumerate(self.blocks):
            if chooses and index == alt_start - 1:
                order = order_of_views(x[:, :, 0], reference_view)
                x, local = _reordered(x, order), _reordered(local, order)
            if index == alt_start:
                tokens = mx.broadcast_to(camera_tokens.astype(x.dtype), (B, V, C))
                x = mx.concatenate([tokens[:, :, None], x[:, :, 1:]], axis=2)
            if index >= alt_start and index % 2 == 1:
                x = block(x.reshape(B, V * N, C), across).reshape(B, V, N, C)
            else:
                turned = within if index >= alt_start else None
                x = local = _each_view(block, x.reshape(B * V, N, C), turned).reshape(B, V, N, C)
            if index in self._config.out_layers:
                tapped.append(self._tap(local, x, order))
        return tapped

    def _tap(self, local: mx.array, x: mx.array, order: mx.array | None) -> ViewTokens:
        camera = mx.concatenate([local[:, :, 0], x[:, :, 0]], axis=-1)
        patches = mx.concatenate([local[:, :, 1:], self.norm(x[:, :, 1:])], axis=-1)
        if order is None:
            return ViewTokens(patches, camera)
        back = mx.argsort(order, axis=1)
        return ViewTokens(_reordered(patches, back), _reordered(camera, back))


def order_of_views(class_tokens: mx.array, reference_view: ReferenceView) -> mx.array:
    """The order in which views are processed: the reference view first, the others as they came.

    Args:
        class_tokens: ``(B, V, C)``.
        reference_view: How the reference is chosen.
    Returns:
        Numbers of the views, ``(B, V)``, int32.
    """
    B, V, _ = class_tokens.shape
    reference = _choose(class_tokens.astype(mx.float32), reference_view)[:, None]  # (B, 1)
    place = mx.broadcast_to(mx.arange(V), (B, V))
    order = mx.where(place == 0, reference, mx.where(place <= reference, place - 1, place))
    return order.astype(mx.int32)


def _choose(tokens: mx.array, reference_view: ReferenceView) -> mx.array:
    B, V, _ = tokens.shape
    if reference_view in ("first", "middle"):
        return mx.full((B,), V // 2 if reference_view == "middle" else 0, dtype=mx.int32)
    norm = mx.sqrt(mx.square(tokens).sum(axis=-1))  # (B, V)
    unit = tokens / norm[..., None]
    likeness = unit @ unit.swapaxes(1, 2) - mx.eye(V)  # (B, V, V)
    if reference_view == "saddle_sim_range":
        return mx.argmax(likeness.max(axis=-1) - likeness.min(axis=-1), axis=1)
    figures = (likeness.sum(axis=-1) / (V - 1), norm, mx.var(unit, axis=-1, ddof=1))
    distance = sum((mx.abs(_spread(figure) - 0.5) for figure in figures), start=mx.zeros((B, V)))
    return mx.argmin(distance, axis=1)


def _spread(figure: mx.array) -> mx.array:
    """``(B, V)`` → 0..1 over the views."""
    low, high = figure.min(axis=1, keepdims=True), figure.max(axis=1, keepdims=True)
    return (figure - low) / (high - low + 1e-8)


def _reordered(x: mx.array, order: mx.array) -> mx.array:
    """Views ``(B, V, …)`` in another order, ``(B, V)``."""
    B, V = order.shape
    places = order + V * mx.arange(B)[:, None]  # of B * V views: whole ones are moved, not values one by one
    return x.flatten(0, 1)[places]


def _each_view(block: Block, x: mx.array, rotation: Rotation | None) -> mx.array:
    """A block within views ``(B * V, N, C)``, of which few are worked on at once."""
    return ops.in_batches(lambda some: [block(some[0], rotation)], [x])[0]
