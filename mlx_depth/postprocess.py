"""From the network's output to the photo: pure functions on depth maps."""

from typing import Literal

import mlx.core as mx

from mlx_depth.nn.resize import resize

DepthMethod = Literal["bilinear", "bicubic"]


def resize_depth(depth: mx.array, size: tuple[int, int], *, method: DepthMethod = "bilinear") -> mx.array:
    """Bring depth maps back to the size of the photo.

    Args:
        depth: ``(B, h, w)``, any unit, any float type.
        size: ``(height, width)`` of the photo in pixels.
        method: ``bilinear`` with the corner pixels in place is the authors' rule, ``bicubic`` transformers'; the
            latter overshoots at edges.
    Returns:
        ``(B, height, width)``, float32, unit of ``depth``.
    Raises:
        OptionError: If ``depth`` is not 3-D or a side of ``size`` is below 1.

    ``infer_image`` of the authors' ``depth_anything_v2/dpt.py`` and ``post_process_depth_estimation`` of
    transformers; proved by ``tests/test_processor.py``.
    """
    maps = depth.astype(mx.float32)[..., None]
    return resize(maps, size, method=method, align_corners=method == "bilinear")[..., 0]
