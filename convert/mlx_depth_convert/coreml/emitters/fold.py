"""Our weights, folded in float64 into the fewest operations that a Core ML graph needs.

Into the neighbouring linear layers go LayerScale, the LayerNorm affine and the softmax scale; into the patch
convolution most of the normalization of pixels. The residual stream is divided by a power of two, which is exact and
leaves every block's input as it was, for LayerNorm takes it out again: a hedge against overflow in float16.
"""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_depth.backbones.dinov2 import LAYER_NORM_EPS, DINOv2Config
from mlx_depth.nn.position import resize_position_table
from mlx_depth.processor import Processor
from mlx_depth_convert.coreml.emitters.base import Array, Layer, Weights

Wide = npt.NDArray[np.float64]

# 2 ** -STREAM_SHIFT on the residual stream. Two is the most that keeps LayerNorm's epsilon representable in float16.
STREAM_SHIFT = 2
STREAM_SCALE = 2.0**-STREAM_SHIFT
STREAM_EPS = LAYER_NORM_EPS * STREAM_SCALE**2

PIXEL_SCALE = 2.0**-6  # (pixel − whole number) / 64 is exact in float16 for every 8-bit pixel


@dataclass(frozen=True)
class Block:
    """A transformer block without LayerScale and with bare LayerNorms."""

    query: Layer
    key: Layer
    value: Layer
    out: Layer
    mlp: tuple[Layer, ...]  # fc1, fc2; SwiGLU: gate, up, down


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


def fold_tokens(config: DINOv2Config, weights: Weights) -> Array:
    """The class token with its position, then the register tokens: ``(1 + registers, C)``, on the scaled stream."""
    cls_token = _wide(weights["backbone.cls_token"])[0] + _wide(weights["backbone.pos_embed"])[0, :1]
    rows = [cls_token]
    if config.num_register_tokens:
        rows.append(_wide(weights["backbone.register_tokens"])[0])
    return (np.concatenate(rows) * STREAM_SCALE).astype(np.float32)


def fold_positions(config: DINOv2Config, weights: Weights, grid_size: tuple[int, int]) -> Array:
    """The position table at a grid's size, by the checkpoint's rule: ``(gh * gw, C)``, on the scaled stream."""
    table = weights["backbone.pos_embed"][:, 1:].astype(mx.float32)
    resized = resize_position_table(table, grid_size, config.position_rule)
    return (_wide(resized)[0] * STREAM_SCALE).astype(np.float32)


def fold_block(config: DINOv2Config, weights: Weights, index: int, *, softmax_scale: bool) -> Block:
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
    scale = (config.embed_dim // config.num_heads) ** -0.5 if softmax_scale else 1.0
    hidden = ("gate_proj", "up_proj") if config.swiglu else ("fc1",)
    last = "down_proj" if config.swiglu else "fc2"
    return Block(
        query=_after_norm(weights, f"{path}.norm1", f"{path}.attn.query_proj", scale),
        key=_after_norm(weights, f"{path}.norm1", f"{path}.attn.key_proj"),
        value=_after_norm(weights, f"{path}.norm1", f"{path}.attn.value_proj"),
        out=_before_stream(weights, f"{path}.attn.out_proj", f"{path}.layer_scale1.gamma"),
        mlp=(
            *(_after_norm(weights, f"{path}.norm2", f"{path}.mlp.{name}") for name in hidden),
            _before_stream(weights, f"{path}.mlp.{last}", f"{path}.layer_scale2.gamma"),
        ),
    )


def fold_projection(weights: Weights, level: int) -> Layer:
    """The projection that reads a tapped layer, with the backbone's last LayerNorm: ``(O, I, 1, 1)``."""
    path = f"head.reassemble.{level}.projection"
    kernel = _wide(weights[f"{path}.weight"])[:, 0, 0, :]  # O11I → OI
    folded = _affine(weights, "backbone.norm", kernel, _wide(weights[f"{path}.bias"]))
    return _layer(folded[0][:, :, None, None], folded[1])


def convolution(weights: Weights, path: str) -> Layer:
    """A convolution as it is, in Core ML's layout."""
    return _layer(_wide(weights[f"{path}.weight"]).transpose(0, 3, 1, 2), _bias(weights, path))  # OhwI → OIhw


def transposed_convolution(weights: Weights, path: str) -> Layer:
    """A transposed convolution as it is, in Core ML's layout."""
    return _layer(_wide(weights[f"{path}.weight"]).transpose(3, 0, 1, 2), _bias(weights, path))  # OhwI → IOhw


def _after_norm(weights: Weights, norm: str, path: str, scale: float = 1.0) -> Layer:
    """A linear layer that takes the affine of the LayerNorm before it."""
    kernel, bias = _affine(weights, norm, _wide(weights[f"{path}.weight"]), _wide(weights[f"{path}.bias"]))
    return _layer(kernel * scale, bias * scale)


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
