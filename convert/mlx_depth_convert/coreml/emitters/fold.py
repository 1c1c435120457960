"""Our weights, folded in float64 into the fewest operations that a Core ML graph needs.

Into the neighbouring linear layers go LayerScale, the LayerNorm affine and the softmax scale; into the patch
convolution most of the normalization of pixels. The residual stream is divided by a power of two, which is exact and
leaves every block's input as it was, for LayerNorm takes it out again: a hedge against overflow in float16.
"""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_depth.backbones.dinov2 import DINOv2Config
from mlx_depth.backbones.dinov3 import DINOv3Config
from mlx_depth.models.moge.network import PLANE, view_plane
from mlx_depth.nn.position import resize_position_table
from mlx_depth.nn.rope import Rotation
from mlx_depth.nn.uv_position import uv_position
from mlx_depth.processor import DepthMethod, Processor, resize_depth
from mlx_depth_convert.coreml.emitters.base import Affine, Array, Layer, Size, Weights

Wide = npt.NDArray[np.float64]

# 2 ** -STREAM_SHIFT on the residual stream. Two is the most that keeps LayerNorm's epsilon representable in float16.
STREAM_SHIFT = 2
STREAM_SCALE = 2.0**-STREAM_SHIFT

PIXEL_SCALE = 2.0**-6  # (pixel − whole number) / 64 is exact in float16 for every 8-bit pixel


@dataclass(frozen=True)
class Block:
    """A transformer block without LayerScale and with bare LayerNorms, but for those of queries and keys."""

    query: Layer
    key: Layer
    value: Layer
    out: Layer
    mlp: tuple[Layer, ...]  # fc1, fc2; SwiGLU: gate, up, down
    query_norm: Affine | None = None  # of each head
    key_norm: Affine | None = None


def stream_eps(eps: float) -> float:
    """A LayerNorm's epsilon on the scaled residual stream."""
    return eps * STREAM_SCALE**2


def fold_pixels(processor: Processor, weights: Weights) -> tuple[Array, Layer]:
    """Split the normalization of 8-bit pixels between an exact offset and the patch convolution.

    Args:
        processor: Mean and standard deviation of the RGB values.
        weights: The checkpoint's.
    Returns:
        The offset ``(3,)`` of ``pixel * PIXEL_SCALE + offset``, and the convolution that takes the result, on the
        scaled residual stream.
    """
    mean, std = 255 * np.array(processor.mean), 255 * np.array(processor.std)
    centre = np.round(mean)
    kernel = _wide(weights["backbone.patch_embed.proj.weight"]).transpose(0, 3, 1, 2)  # OhwI → OIhw
    bias = _wide(weights["backbone.patch_embed.proj.bias"])
    bias = bias + np.einsum("oihw,i->o", kernel, (centre - mean) / std)
    kernel = kernel * (1 / (PIXEL_SCALE * std))[:, None, None]
    return (-centre * PIXEL_SCALE).astype(np.float32), _layer(kernel * STREAM_SCALE, bias * STREAM_SCALE)


def fold_tokens(weights: Weights) -> Array:
    """The class token with its position, then the register tokens: ``(1 + registers, C)``, on the scaled stream."""
    cls_token = _wide(weights["backbone.cls_token"])[0]
    if "backbone.pos_embed" in weights:
        cls_token = cls_token + _wide(weights["backbone.pos_embed"])[0, :1]
    rows = [cls_token]
    if "backbone.register_tokens" in weights:
        rows.append(_wide(weights["backbone.register_tokens"])[0])
    return (np.concatenate(rows) * STREAM_SCALE).astype(np.float32)


def fold_camera_token(weights: Weights) -> Array:
    """The token that stands for the camera of a view alone, ``(1, C)``, on the scaled stream."""
    return (_wide(weights["backbone.camera_token"])[0, :1] * STREAM_SCALE).astype(np.float32)  # [1]: of further views


def fold_rotation(rotation: Rotation) -> tuple[Array, Array]:
    """Factors of each token's channels and of the channels that turn with them, ``(S, d)`` each.

    Of each group of channels, halves a b have the partners b a: the sign goes into the sines.
    """
    cos, sin = (np.array(table) for table in rotation)  # (S, groups, d / groups)
    signs = np.repeat(np.array([-1, 1], np.float32), sin.shape[2] // 2)
    return cos.reshape(len(cos), -1), (sin * signs).reshape(len(sin), -1)


def fold_uv(size: Size, channels: int) -> tuple[Array, Array]:
    """The UV embedding of a map of the image's aspect: for its rows ``(1, C, h, 1)``, for its columns ``(1, C, 1, w)``.

    The first half of the channels sees the column alone, the second the row alone.
    """
    rows, columns = (np.array(table).T for table in uv_position(size, channels, size[1] / size[0]))  # (C / 2, length)
    rows, columns = np.concatenate([0 * rows, rows]), np.concatenate([columns, 0 * columns])
    return rows[None, :, :, None], columns[None, :, None]


def fold_map_input(weights: Weights, path: str) -> Layer:
    """Of a convolution that takes a map and the view plane: the map's part, without the bias."""
    kernel = _wide(weights[f"{path}.weight"])[..., :-PLANE]
    return _layer(kernel.transpose(0, 3, 1, 2), None)  # OhwI → OIhw


def fold_plane(weights: Weights, path: str, size: Size, aspect: float) -> tuple[Array, Array]:
    """What a 1×1 convolution makes of the view plane, its last inputs, and its bias.

    Args:
        weights: The checkpoint's.
        path: Of the convolution.
        size: ``(h, w)`` of the map.
        aspect: Width over height of the image.
    Returns:
        For rows ``(1, C, h, 1)``, with the bias, and for columns ``(1, C, 1, w)``: their sum is the result.
    """
    plane = np.array(view_plane(size, mx.array([aspect])))[0].astype(np.float64)  # (h, w, 2): across, down
    across, down = _wide(weights[f"{path}.weight"])[:, 0, 0, -PLANE:].T  # (C,) each
    rows = np.outer(down, plane[:, 0, 1]) + _wide(weights[f"{path}.bias"])[:, None]
    columns = np.outer(across, plane[0, :, 0])
    return rows[None, :, :, None].astype(np.float32), columns[None, :, None].astype(np.float32)


def fold_scale_head(weights: Weights) -> tuple[Layer, ...]:
    """MoGe's linear layers from the class token, the first with the affine of the LayerNorm before it."""
    first, *others = (f"scale_head.layers.{index}" for index in range(3))
    return (
        _after_norm(weights, "backbone.norm", first),
        *(_layer(_wide(weights[f"{path}.weight"]), _bias(weights, path)) for path in others),
    )


def fold_stream_norm(weights: Weights, path: str) -> Affine:
    """The affine of a LayerNorm whose result is on the scaled stream."""
    return _gain(weights, path, STREAM_SCALE)


def fold_positions(config: DINOv2Config, weights: Weights, grid_size: tuple[int, int]) -> Array:
    """The position table at a grid's size, by the checkpoint's rule: ``(gh * gw, C)``, on the scaled stream."""
    table = weights["backbone.pos_embed"][:, 1:].astype(mx.float32)
    resized = resize_position_table(table, grid_size, config.position_rule)
    return (_wide(resized)[0] * STREAM_SCALE).astype(np.float32)


def fold_block(config: DINOv2Config | DINOv3Config, weights: Weights, index: int, *, softmax_scale: bool) -> Block:
    """Fold one transformer block.

    Args:
        config: The backbone's.
        weights: The checkpoint's.
        index: Which block.
        softmax_scale: Fold ``head_dim ** -0.5`` into the queries; False where the attention operation applies it.
    Returns:
        The block; its two outputs are on the scaled residual stream.
    """
    path = f"backbone.blocks.{index}"
    has_norms = f"{path}.attn.query_norm.weight" in weights
    scale = (config.embed_dim // config.num_heads) ** -0.5 if softmax_scale else 1.0
    hidden = ("gate_proj", "up_proj") if config.swiglu else ("fc1",)
    last = "down_proj" if config.swiglu else "fc2"
    return Block(
        query=_after_norm(weights, f"{path}.norm1", f"{path}.attn.query_proj", 1.0 if has_norms else scale),
        key=_after_norm(weights, f"{path}.norm1", f"{path}.attn.key_proj"),
        value=_after_norm(weights, f"{path}.norm1", f"{path}.attn.value_proj"),
        out=_before_stream(weights, f"{path}.attn.out_proj", f"{path}.layer_scale1.gamma"),
        mlp=(
            *(_after_norm(weights, f"{path}.norm2", f"{path}.mlp.{name}") for name in hidden),
            _before_stream(weights, f"{path}.mlp.{last}", f"{path}.layer_scale2.gamma"),
        ),
        query_norm=_gain(weights, f"{path}.attn.query_norm", scale) if has_norms else None,
        key_norm=_gain(weights, f"{path}.attn.key_norm") if has_norms else None,
    )


def fold_projection(weights: Weights, path: str, norm: str | None) -> Layer:
    """The projection that reads a tapped layer, ``(O, I, 1, 1)``.

    Args:
        weights: The checkpoint's.
        path: Of the projection.
        norm: The LayerNorm before it, whose affine it takes; None: its tokens are on the scaled stream.
    """
    kernel = _wide(weights[f"{path}.weight"])[:, 0, 0, :]  # O11I → OI
    bias = _wide(weights[f"{path}.bias"])
    kernel, bias = (kernel / STREAM_SCALE, bias) if norm is None else _affine(weights, norm, kernel, bias)
    return _layer(kernel[:, :, None, None], bias)


def fold_readout(weights: Weights, path: str) -> tuple[Layer, Layer]:
    """A linear layer of patch tokens beside the class token, all on the scaled stream.

    Returns:
        The layers for the patch tokens and for the class token, whose results are added.
    """
    patch, image = np.split(_wide(weights[f"{path}.weight"]) / STREAM_SCALE, 2, axis=1)
    return _layer(patch, None), _layer(image, _bias(weights, path))


def fold_shares(weights: Weights) -> Array:
    """The share of each layer in the map that an SDT head makes of them: ``(layers,)``."""
    powers = np.exp(_wide(weights["head.layer_weights"]))
    return (powers / powers.sum()).astype(np.float32)


def fold_offsets(weights: Weights, level: int) -> tuple[Layer, Layer, Array]:
    """How far from a pixel's center a map is read, in pixels: offset · sigmoid(scope) + start, ``(1, C, 1, 1)``."""
    path = f"head.doublings.{level}.sample"
    kernel, bias = (_wide(weights[f"{path}.offset.{part}"]) / 2 for part in ("weight", "bias"))
    offset = _layer(kernel.transpose(0, 3, 1, 2), bias)  # OhwI → OIhw
    return offset, convolution(weights, f"{path}.scope"), _wide(weights[f"{path}.init_pos"]).astype(np.float32)


def fold_pixel_centers(size: Size) -> tuple[Array, Array]:
    """Centers of a map's pixels, each twice in a row, -1 and 1 being the map's edges.

    Of the pairs (across, down) rows give the second, ``(1, 2 h, 1, 2)``, and columns the first, ``(1, 1, 2 w, 2)``.
    """
    down, across = (np.repeat((2 * np.arange(side) + 1) / side - 1, 2) for side in size)
    rows, columns = np.stack([0 * down, down], axis=-1), np.stack([across, 0 * across], axis=-1)
    return rows[None, :, None].astype(np.float32), columns[None, None].astype(np.float32)


def fold_resize(size: Size, to: Size, method: DepthMethod) -> tuple[Array, Array]:
    """``resize_depth`` as two products, rows · depth · columns: ``(1, 1, H, h)`` and ``(1, 1, w, W)``."""
    rows, columns = (
        np.array(resize_depth(mx.eye(side)[None], (wanted, side), method=method)[0])
        for side, wanted in zip(size, to, strict=True)
    )
    return rows[None, None], np.ascontiguousarray(columns.T)[None, None]


def linear(weights: Weights, path: str) -> Layer:
    """A linear layer as it is."""
    return _layer(_wide(weights[f"{path}.weight"]), _bias(weights, path))


def convolution(weights: Weights, path: str) -> Layer:
    """A convolution as it is, in Core ML's layout."""
    return _layer(_wide(weights[f"{path}.weight"]).transpose(0, 3, 1, 2), _bias(weights, path))  # OhwI → OIhw


def transposed_convolution(weights: Weights, path: str) -> Layer:
    """A transposed convolution as it is, in Core ML's layout."""
    return _layer(_wide(weights[f"{path}.weight"]).transpose(3, 0, 1, 2), _bias(weights, path))  # OhwI → IOhw


def stacked(first: Layer, second: Layer) -> Layer:
    """Two convolutions of the same input as one; its output is the first's, then the second's."""
    assert first.bias is not None
    assert second.bias is not None
    return Layer(np.concatenate([first.weight, second.weight]), np.concatenate([first.bias, second.bias]))


def side_by_side(first: Layer, second: Layer) -> Layer:
    """Two convolutions as one that takes the input of the first, then that of the second."""
    widened = [
        Layer(np.pad(layer.weight, ((0, 0), (before, after), (0, 0), (0, 0))), layer.bias)
        for layer, before, after in (
            (first, 0, second.weight.shape[1]),
            (second, first.weight.shape[1], 0),
        )
    ]
    return stacked(*widened)


def _after_norm(weights: Weights, norm: str, path: str, scale: float = 1.0) -> Layer:
    """A linear layer that takes the affine of the LayerNorm before it, and has a bias from it at least."""
    own = _bias(weights, path)
    kernel, bias = _affine(weights, norm, _wide(weights[f"{path}.weight"]), np.float64(0) if own is None else own)
    return _layer(kernel * scale, bias * scale)


def _gain(weights: Weights, norm: str, scale: float = 1.0) -> Affine:
    gamma, beta = (_wide(weights[f"{norm}.{part}"]) * scale for part in ("weight", "bias"))
    return Affine(gamma.astype(np.float32), beta.astype(np.float32))


def _affine(weights: Weights, norm: str, kernel: Wide, bias: Wide) -> tuple[Wide, Wide]:
    """W (γ x + β) + b = (W γ) x + (W β + b)."""
    return kernel * _wide(weights[f"{norm}.weight"]), bias + kernel @ _wide(weights[f"{norm}.bias"])


def _before_stream(weights: Weights, path: str, gamma: str) -> Layer:
    """A linear layer that takes the LayerScale after it, and writes to the scaled residual stream."""
    factor = _wide(weights[gamma]) * STREAM_SCALE
    return _layer(_wide(weights[f"{path}.weight"]) * factor[:, None], _wide(weights[f"{path}.bias"]) * factor)


def _bias(weights: Weights, path: str) -> Wide | None:
    return _wide(weights[f"{path}.bias"]) if f"{path}.bias" in weights else None


def _layer(weight: Wide, bias: Wide | None) -> Layer:
    return Layer(
        np.ascontiguousarray(weight, dtype=np.float32), None if bias is None else np.asarray(bias, dtype=np.float32)
    )


def _wide(array: mx.array) -> Wide:
    return np.array(array.astype(mx.float32)).astype(np.float64)
