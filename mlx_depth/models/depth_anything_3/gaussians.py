"""3D Gaussians of Depth Anything 3, one a pixel of each view, in world space.

Upstream: ``model/gs_adapter.py``, as ``configs/da3-giant.yaml`` sets it up. It is followed where it surprises:
depth is taken along the ray here, not along z; pixel centers are at + 0.5; and quaternions are turned with their
components in another order than the one they are written in.
"""

from collections.abc import Mapping

import mlx.core as mx

from mlx_depth.nn.rotations import apply_matrix, matrix_to_quaternion, positive_real, quaternion_product
from mlx_depth.nn.spherical_harmonics import rotate_harmonics

RAW_CHANNELS = 37
POSE_SCALES = (1 / 3, 3.0)  # where poses are given, upstream holds their scale to this range

_ENDS = (2, 5, 9, 36)  # of the raw channels: offset in pixels, scales, quaternion, harmonics; then an offset in depth
_MIN_SCALE, _MAX_SCALE = 1e-5, 30.0  # in tenths of a pixel's two sides together
_TENTH = 0.1
_HARMONIC_WEIGHTS = (1.0, *(0.025,) * 3, *(0.00625,) * 5)  # 0.1 / 4 ** degree beyond the constant


def world_gaussians(
    depth: mx.array, raw: mx.array, confidence: mx.array, extrinsics: mx.array, intrinsics: mx.array
) -> dict[str, mx.array]:
    """Make 3D Gaussians of what the head read out.

    Args:
        depth: ``(B, V, H, W)``, in any unit: that of the poses.
        raw: ``(B, V, H, W, 37)``, the linear channels of the Gaussian head.
        confidence: ``(B, V, H, W)``, 0..1, the head's last channel.
        extrinsics: ``(B, V, 3, 4)``, world → camera, OpenCV axes.
        intrinsics: ``(B, V, 3, 3)``, in network pixels, of the form ``[[fx, s, cx], [0, fy, cy], [0, 0, 1]]``.
    Returns:
        Float32 arrays of N = V * H * W Gaussians, view after view, row after row: ``means`` ``(B, N, 3)``, ``scales``
        ``(B, N, 3)``, the standard deviations, both in the unit of the depth; ``rotations`` ``(B, N, 4)``, w x y z;
        ``harmonics`` ``(B, N, 3, 9)``, of R, G, B, in the basis of 3D Gaussian splatting; ``opacities`` ``(B, N)``,
        0..1.

    Where the offset in depth is larger than the depth, upstream's scales are negative, and so are these. Upstream:
    ``GaussianAdapter``, and ``map_pdf_to_opacity``, which without a warm-up maps a confidence to itself.
    """
    depth, raw, confidence, extrinsics, intrinsics = (
        x.astype(mx.float32) for x in (depth, raw, confidence, extrinsics, intrinsics)
    )
    B, V, H, W = depth.shape
    offsets, scales, quaternions, harmonics, depth_offset = mx.split(raw, _ENDS, axis=-1)
    depth = depth[..., None] + depth_offset
    rotation = extrinsics[..., :3].swapaxes(-1, -2)  # camera → world
    center = -apply_matrix(rotation, extrinsics[..., 3])
    world = rotation[:, :, None, None]  # broadcasts over pixels
    sides = _pixel_sides(intrinsics)[:, :, None, None, None]
    harmonics = harmonics.reshape(B, V, H, W, 3, 9) * mx.array(_HARMONIC_WEIGHTS)
    properties = {
        "means": center[:, :, None, None] + apply_matrix(world, _rays(offsets, intrinsics)) * depth,
        "scales": (_MIN_SCALE + (_MAX_SCALE - _MIN_SCALE) * mx.sigmoid(scales)) * depth * sides,
        "rotations": _rotations(quaternions, matrix_to_quaternion(world)),
        "harmonics": rotate_harmonics(harmonics, world[:, :, :, :, None]),
        "opacities": confidence,
    }
    return {name: x.flatten(1, 3) for name, x in properties.items()}  # views, rows, columns → Gaussians


def rescaled(gaussians: Mapping[str, mx.array], scale: float | mx.array) -> dict[str, mx.array]:
    """The same Gaussians in another unit of length.

    Args:
        gaussians: As of ``world_gaussians``.
        scale: How many new units an old one is; a number, or ``(B,)``.
    Returns:
        All properties; means and scales are multiplied.

    The same as scaling camera centers and depths before, as upstream does by the scale of given poses.
    """
    factor = mx.array(scale).reshape(-1, 1, 1)
    return {name: x * factor if name in ("means", "scales") else x for name, x in gaussians.items()}


def _rays(offsets: mx.array, intrinsics: mx.array) -> mx.array:
    """Unit vectors through the pixels, moved by their offsets (B, V, H, W, 2), in camera axes: (B, V, H, W, 3)."""
    H, W = offsets.shape[2:4]
    fx, skew, cx, fy, cy = (intrinsics[..., i, j, None, None] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2)))
    y = (mx.arange(H)[:, None] + 0.5 + offsets[..., 1] - cy) / fy
    x = (mx.arange(W) + 0.5 + offsets[..., 0] - cx - skew * y) / fx
    length = mx.sqrt(x * x + y * y + 1)
    return mx.stack([x / length, y / length, 1 / length], axis=-1)


def _pixel_sides(intrinsics: mx.array) -> mx.array:
    """A tenth of a pixel's sides together, at depth 1: the entries of the inverse's upper left, summed. (B, V)."""
    fx, skew, fy = (intrinsics[..., i, j] for i, j in ((0, 0), (0, 1), (1, 1)))
    return _TENTH * (1 / fx + 1 / fy - skew / (fx * fy))


def _rotations(quaternions: mx.array, camera: mx.array) -> mx.array:
    """Turn the head's x y z w by the camera's x y z w: w x y z.

    Upstream writes w in front before it multiplies, as if the order were x y z w; and takes the result, of which the
    last component is >= 0, for w x y z.
    """
    turned = quaternion_product(camera, mx.roll(quaternions, 1, -1))
    return positive_real(turned / mx.sqrt((turned * turned).sum(-1, keepdims=True)))
