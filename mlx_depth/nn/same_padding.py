"""Padding as TensorFlow's ``SAME``: as little as makes ``ceil(side / stride)`` places, the odd pixel behind."""

import mlx.core as mx


def pad_same(x: mx.array, kernel_size: int, stride: int) -> mx.array:
    """Put zeros around maps for a convolution, or a pooling of values >= 0, that has no padding of its own.

    Args:
        x: ``(B, H, W, C)``, any float type.
        kernel_size: Side of the kernel.
        stride: Pixels from one place to the next.
    Returns:
        ``(B, H + down, W + across, C)``, same type; ``x`` itself where nothing is missing.
    """
    down, across = (_around(side, kernel_size, stride) for side in x.shape[1:3])
    return mx.pad(x, [(0, 0), down, across, (0, 0)]) if any((*down, *across)) else x


def _around(side: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Zeros before and behind one axis."""
    missing = max((-(-side // stride) - 1) * stride + kernel_size - side, 0)
    return missing // 2, missing - missing // 2
