"""Metres and sky: what Depth Anything 3 does with the depth that its networks give.

Upstream: ``depth_anything_3/utils/alignment.py`` and ``model/da3.py``. Where upstream takes quantiles of 100,000 values
drawn at random, these are of all values.
"""

import mlx.core as mx

from mlx_depth.models.base import DepthOutputs

FOCAL_LENGTH = 300.0  # of the camera, in network pixels, whose depth the metric network gives in metres
LEAST_SKY = 0.3  # values of sky from here on are sky
LEAST_PIXELS = 10  # so few or fewer of sky, or of ground, tell nothing
LEAST_DEPTH, LEAST_METRES = 1e-3, 1e-2  # what is nearer has no say in the scale
FARTHEST_GROUND = 0.99  # quantile of the ground's depth at which sky is put
MOST_METRES = 200.0


def fill_sky(depth: mx.array, sky: mx.array) -> mx.array:
    """Put the sky of each image at the distance of its farthest ground.

    Args:
        depth: ``(B, H, W)``, larger = farther.
        sky: ``(B, H, W)``, 0 or above.
    Returns:
        ``(B, H, W)``; an image that is nearly all sky, or has hardly any, stays as it is.
    """
    ground = sky < LEAST_SKY
    count = ground.sum(axis=(1, 2))[:, None, None]
    tells = (count > LEAST_PIXELS) & (ground[0].size - count > LEAST_PIXELS)
    return mx.where(ground | ~tells, depth, _quantile(depth, ground, FARTHEST_GROUND)[:, None, None])


def metres(depth: mx.array, focal_length: mx.array) -> mx.array:
    """What the metric network gives, ``(…, H, W)``, in metres.

    Args:
        depth: Of the network.
        focal_length: ``(…)``, in network pixels.
    """
    return depth * (focal_length / FOCAL_LENGTH)[..., None, None]


def in_metres(outputs: DepthOutputs, metric_depth: mx.array, sky: mx.array) -> DepthOutputs:
    """Scale the depth and the cameras of each scene so that they agree with the metric network's depth.

    Args:
        outputs: Of the network for any number of views.
        metric_depth: Of the metric network, ``(B, V, H, W)``.
        sky: Of the metric network, ``(B, V, H, W)``.
    Returns:
        ``outputs`` in metres, with sky, scale and ``metric_depth``.
    """
    depth, confidence = outputs.depth, _given(outputs.confidence)
    intrinsics, extrinsics = _given(outputs.intrinsics), _given(outputs.extrinsics)
    target = metres(metric_depth, (intrinsics[..., 0, 0] + intrinsics[..., 1, 1]) / 2)
    ground = sky < LEAST_SKY
    sure = confidence >= _quantile(confidence, ground, 0.5)[:, None, None, None]
    used = sure & ground & (target > LEAST_METRES) & (depth > LEAST_DEPTH)
    scale = _sum(depth * target, used) / mx.maximum(_sum(depth * depth, used), 1e-12)
    scale = mx.where(ground.sum(axis=(1, 2, 3)) > LEAST_PIXELS, scale, mx.nan)
    depth = depth * scale[:, None, None, None]
    farthest = mx.minimum(_quantile(depth, ground, FARTHEST_GROUND), MOST_METRES)
    farthest = mx.where(mx.isnan(scale), scale, farthest)[:, None, None, None]
    moved = extrinsics[..., 3:] * scale[:, None, None, None]
    return outputs._replace(
        depth=mx.where(ground, depth, farthest),
        confidence=mx.where(ground, confidence, 1.0),
        extrinsics=mx.concatenate([extrinsics[..., :3], moved], axis=-1),
        sky=sky,
        metric_depth=metric_depth,
        scale=scale,
    )


def _given(x: mx.array | None) -> mx.array:
    """An output that the network for any number of views always has."""
    assert x is not None
    return x


def _sum(x: mx.array, mask: mx.array) -> mx.array:
    """Of each scene's masked values, in steps that lose few digits."""
    return mx.where(mask, x, 0).sum(axis=-1).sum(axis=-1).sum(axis=-1)


def _quantile(x: mx.array, mask: mx.array, share: float) -> mx.array:
    """Of the masked values of each item, ``(B,)``, between its neighbors in proportion; infinite without any."""
    values = mx.sort(mx.where(mask, x.astype(mx.float32), mx.inf).flatten(1), axis=1)
    count = mask.flatten(1).sum(axis=1)
    place = mx.maximum((count - 1).astype(mx.float32), 0) * share
    below = mx.floor(place).astype(mx.int32)
    above = mx.minimum(below + 1, mx.maximum(count - 1, 0))
    low, high = (mx.take_along_axis(values, index[:, None], axis=1)[:, 0] for index in (below, above))
    return mx.where(high > low, low + (high - low) * (place - below), low)
