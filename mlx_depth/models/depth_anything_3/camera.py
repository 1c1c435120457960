"""Depth Anything 3's cameras: known ones to tokens, tokens to cameras.

Upstream: ``depth_anything_3/model/cam_enc.py``, ``cam_dec.py`` and ``utils/transform.py``.
"""

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.nn.activations import relu
from mlx_depth.nn.block import Block
from mlx_depth.nn.mlp import MLP
from mlx_depth.nn.rotations import apply_matrix, matrix_to_quaternion, quaternion_to_matrix
from mlx_depth.weights.rules import Rename, Rule, Split

ENCODING_DIMS = 9  # center of the camera, quaternion, vertical and horizontal field of view
ENCODER_BLOCKS = 4
ENCODER_HEADS = 16
NORM_EPS = 1e-5
MIN_TANGENT = 1e-6  # of half a field of view: the widest focal length that is told apart


class CameraEncoder(nn.Module):
    """Known cameras to the tokens that stand for them."""

    def __init__(self, dims: int):
        super().__init__()
        self.embed = MLP(ENCODING_DIMS, dims // 2, dims)
        self.embed_norm = nn.LayerNorm(dims, eps=NORM_EPS)
        self.blocks = [Block(dims, ENCODER_HEADS, 4 * dims, eps=NORM_EPS) for _ in range(ENCODER_BLOCKS)]
        self.norm = nn.LayerNorm(dims, eps=NORM_EPS)

    def __call__(self, extrinsics: mx.array, intrinsics: mx.array, size: tuple[int, int]) -> mx.array:
        """Encode cameras.

        Args:
            extrinsics: ``(B, V, 3, 4)``, world → camera.
            intrinsics: ``(B, V, 3, 3)``, in network pixels.
            size: ``(H, W)`` in network pixels.
        Returns:
            ``(B, V, C)``.
        """
        encoding = encode(extrinsics.astype(mx.float32), intrinsics.astype(mx.float32), size)
        x = self.embed_norm(self.embed(encoding.astype(self.norm.weight.dtype)))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class CameraDecoder(nn.Module):
    """Camera tokens to cameras, in float32."""

    def __init__(self, dims: int):
        super().__init__()
        self.layers = [nn.Linear(dims, dims), nn.Linear(dims, dims)]
        self.center = nn.Linear(dims, 3)
        self.quaternion = nn.Linear(dims, 4)
        self.field_of_view = nn.Linear(dims, 2)

    def __call__(self, tokens: mx.array, size: tuple[int, int]) -> tuple[mx.array, mx.array]:
        """Decode cameras.

        Args:
            tokens: ``(B, V, C)``.
            size: ``(H, W)`` in network pixels.
        Returns:
            Extrinsics ``(B, V, 3, 4)``, world → camera, and intrinsics ``(B, V, 3, 3)`` in network pixels.
        """
        for layer in self.layers:
            tokens = relu(layer(tokens))
        tokens = tokens.astype(mx.float32)
        fov = relu(self.field_of_view(tokens))
        return decode(mx.concatenate([self.center(tokens), self.quaternion(tokens), fov], axis=-1), size)


def encode(extrinsics: mx.array, intrinsics: mx.array, size: tuple[int, int]) -> mx.array:
    """Cameras as ``(B, V, 9)``; arguments as for ``CameraEncoder``, float32."""
    pose = inverse(extrinsics)
    H, W = size
    fields = [2 * mx.arctan(side / 2 / intrinsics[..., axis, axis]) for side, axis in ((H, 1), (W, 0))]
    quaternion = matrix_to_quaternion(pose[..., :3])
    return mx.concatenate([pose[..., 3], quaternion, mx.stack(fields, axis=-1)], axis=-1)


def decode(encoding: mx.array, size: tuple[int, int]) -> tuple[mx.array, mx.array]:
    """``(B, V, 9)`` as extrinsics and intrinsics; the principal point is the middle of the image."""
    H, W = size
    rotation = quaternion_to_matrix(encoding[..., 3:7])
    extrinsics = inverse(mx.concatenate([rotation, encoding[..., :3, None]], axis=-1))
    tangent_y, tangent_x = (mx.maximum(mx.tan(encoding[..., i] / 2), MIN_TANGENT) for i in (7, 8))
    zero, one = mx.zeros_like(tangent_x), mx.ones_like(tangent_x)
    rows = [[W / 2 / tangent_x, zero, W / 2 * one], [zero, H / 2 / tangent_y, H / 2 * one], [zero, zero, one]]
    return extrinsics, mx.stack([mx.stack(row, axis=-1) for row in rows], axis=-2)


def inverse(pose: mx.array) -> mx.array:
    """World → camera of camera → world, and back, ``(…, 3, 4)``."""
    turned = pose[..., :3].swapaxes(-1, -2)
    return mx.concatenate([turned, -apply_matrix(turned, pose[..., 3])[..., None]], axis=-1)


_BLOCK: tuple[Rule, ...] = (
    Rename("trunk.{i}.norm1.{p}", "blocks.{i}.norm1.{p}"),
    Split(
        "trunk.{i}.attn.qkv.{p}",
        ("blocks.{i}.attn.query_proj.{p}", "blocks.{i}.attn.key_proj.{p}", "blocks.{i}.attn.value_proj.{p}"),
    ),
    Rename("trunk.{i}.attn.proj.{p}", "blocks.{i}.attn.out_proj.{p}"),
    Rename("trunk.{i}.ls1.gamma", "blocks.{i}.layer_scale1.gamma"),
    Rename("trunk.{i}.norm2.{p}", "blocks.{i}.norm2.{p}"),
    Rename("trunk.{i}.mlp.{layer}.{p}", "blocks.{i}.mlp.{layer}.{p}"),
    Rename("trunk.{i}.ls2.gamma", "blocks.{i}.layer_scale2.gamma"),
)
ENCODER_ORIGINAL: tuple[Rule, ...] = (
    *_BLOCK,
    Rename("pose_branch.{layer}.{p}", "embed.{layer}.{p}"),
    Rename("token_norm.{p}", "embed_norm.{p}"),
    Rename("trunk_norm.{p}", "norm.{p}"),
)
DECODER_ORIGINAL: tuple[Rule, ...] = (
    Rename("backbone.0.{p}", "layers.0.{p}"),
    Rename("backbone.2.{p}", "layers.1.{p}"),
    Rename("fc_t.{p}", "center.{p}"),
    Rename("fc_qvec.{p}", "quaternion.{p}"),
    Rename("fc_fov.0.{p}", "field_of_view.{p}"),
)
DECODER_GGUF: tuple[Rule, ...] = (
    Rename("bb0.{p}", "layers.0.{p}"),
    Rename("bb2.{p}", "layers.1.{p}"),
    Rename("fc_t.{p}", "center.{p}"),
    Rename("fc_q.{p}", "quaternion.{p}"),
    Rename("fc_fov.{p}", "field_of_view.{p}"),
)
