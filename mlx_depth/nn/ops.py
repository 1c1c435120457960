"""The operations that a device may compute in ways of its own: the one seam to them. Elsewhere all are MLX's.

Networks call these, and name no device.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.nn import activations

try:
    from mlx_depth.linux_cpu import kernels
    from mlx_depth.linux_cpu.streams import cores, in_parts
except ModuleNotFoundError:  # that folder may be left out
    kernels = None  # type: ignore[assignment]

    def cores() -> int:
        """How many parts ``in_parts`` makes of work."""
        return 1

    def in_parts(f: Callable[[int, int], mx.array], length: int) -> list[mx.array]:
        """A range in one part."""
        return [f(0, length)]


IMAGES_AT_ONCE = 8  # enough to fill a GPU
ROWS_AT_ONCE = 4096  # on each core; that of a long sequence of tokens
MAX_SCORES = 1 << 26  # that exist at once, 128 MB in half precision, where no kernel does without them
_FUSED_ON_METAL = (64, 80, 128)  # channels of a head for which Metal has such a kernel

_POINTWISE = ((1, 1), (1, 1), (0, 0), 1, 1)  # size, stride, padding, dilation, groups
_SAME_3X3 = ((3, 3), (1, 1), (1, 1), 1, 1)
_INSIDE_3X3 = ((3, 3), (1, 1), (0, 0), 1, 1)


def attention(query: mx.array, key: mx.array, value: mx.array, *, scale: float) -> mx.array:
    """Scaled dot-product attention.

    Args:
        query: ``(B, heads, N, D)``, any float type.
        key: ``(B, heads, M, D)``.
        value: ``(B, heads, M, D)``.
        scale: Factor of the scores before the softmax.
    Returns:
        ``(B, heads, N, D)``.

    No more than ``MAX_SCORES`` of the N × M scores exist at once, or those of one query.
    """
    if _has_kernels(query):
        return kernels.attention(query, key, value, scale=scale)
    B, heads, N, D = query.shape
    step = max(MAX_SCORES // (B * heads * key.shape[2]), 1)
    if step >= N or _is_fused(D):
        return mx.fast.scaled_dot_product_attention(query, key, value, scale=scale)
    tiles: list[mx.array] = []
    for start in range(0, N, step):
        some = query[:, :, start : start + step]
        if tiles:
            (some,) = mx.depends([some], tiles[-1:])
        tiles.append(mx.fast.scaled_dot_product_attention(some, key, value, scale=scale))
    return mx.concatenate(tiles, axis=2)


def gelu(x: mx.array) -> mx.array:
    """Exact (erf) GELU of any shape and float type."""
    return kernels.gelu(x) if _has_kernels(x) else activations.gelu(x)


def conv2d(layer: nn.Conv2d, x: mx.array) -> mx.array:
    """What an ``nn.Conv2d`` computes.

    Args:
        layer: Weights, bias and geometry.
        x: ``(B, H, W, C)``, any float type.
    Returns:
        ``(B, height, width, D)``.
    """
    geometry = (layer.weight.shape[1:3], layer.stride, layer.padding, layer.dilation, layer.groups)
    if _has_kernels(x) and geometry in (_POINTWISE, _SAME_3X3, _INSIDE_3X3):
        routes = {_POINTWISE: kernels.conv_1x1, _SAME_3X3: kernels.conv_3x3, _INSIDE_3X3: kernels.conv_3x3_inside}
        bias = layer.bias if "bias" in layer else mx.zeros(layer.weight.shape[:1])
        return routes[geometry](x, layer.weight, bias)
    return nn.Conv2d.__call__(layer, x)


def conv_transpose2d(layer: nn.ConvTranspose2d, x: mx.array) -> mx.array:
    """What an ``nn.ConvTranspose2d`` computes.

    Args:
        layer: Weights, bias and geometry.
        x: ``(B, H, W, C)``, any float type.
    Returns:
        ``(B, height, width, D)``.
    """
    geometry = (layer.stride, layer.padding, layer.output_padding, layer.dilation)
    if _has_kernels(x) and geometry == (layer.weight.shape[1:3], (0, 0), (0, 0), 1) and "bias" in layer:
        return kernels.conv_transpose_tiles(x, layer.weight, layer.bias)
    return nn.ConvTranspose2d.__call__(layer, x)


def cache_bytes(x: mx.array) -> int | None:
    """Bytes of a tile that the caches next to a core hold; None where tiles save memory but no time.

    Args:
        x: What the work starts from; its type decides.
    """
    return kernels.CACHE_BYTES if _has_kernels(x) else None


def row_wise(f: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    """``f(x)`` for a function that treats the rows of axis 1 apart (tokens, or rows of a map).

    On each core no more than ``ROWS_AT_ONCE`` at a time.
    """
    return build_tiles(lambda x, start, stop: f(x[:, start:stop]), x, x.shape[1], ROWS_AT_ONCE)


def build_rows(f: Callable[[int, int], mx.array], length: int) -> mx.array:
    """An array of which each core may build some rows of axis 1.

    Args:
        f: Builds the rows from its first index to the one before its second.
        length: Number of rows.
    """
    return mx.concatenate(in_parts(f, length), axis=1)


def in_batches(
    f: Callable[[list[mx.array]], Sequence[mx.array]], arrays: Sequence[mx.array], *, at_once: int | None = None
) -> list[mx.array]:
    """Some images at a time, one batch after another: only its temporaries are alive at once.

    Args:
        f: Arrays of some images → arrays of their outputs.
        arrays: Of all images, ``(B, …)`` each.
        at_once: How many images a batch has; None: as many as fill the device.
    Returns:
        The outputs of all images, ``(B, …)`` each.
    """
    step = at_once or (1 if _has_kernels(arrays[0]) else IMAGES_AT_ONCE)  # there an image alone fits the caches
    done: list[Sequence[mx.array]] = []
    for start in range(0, len(arrays[0]), step):
        batch = [array[start : start + step] for array in arrays]
        if done:
            batch = mx.depends(batch, list(done[-1]))
        done.append(f(batch))
    return [parts[0] if len(parts) == 1 else mx.concatenate(list(parts)) for parts in zip(*done, strict=True)]


def build_tiles(f: Callable[[mx.array, int, int], mx.array], x: mx.array, length: int, step: int) -> mx.array:
    """``build_rows``, one tile on each core at a time: only their temporaries are alive at once.

    Args:
        f: As for ``build_rows``, given ``x`` before.
        x: What ``f`` works on.
        length: Number of rows.
        step: Rows of a tile; the last ones may be lower.
    """
    tiles: list[mx.array] = []
    for top in range(0, length, step * cores()):
        if tiles:
            (x,) = mx.depends([x], tiles[-cores() :])
        tiles += in_parts(_shifted(f, x, top), min(step * cores(), length - top))
    return mx.concatenate(tiles, axis=1)


def _shifted(f: Callable[[mx.array, int, int], mx.array], x: mx.array, top: int) -> Callable[[int, int], mx.array]:
    return lambda start, stop: f(x, top + start, top + stop)


def _is_fused(head_dim: int) -> bool:
    return head_dim in _FUSED_ON_METAL and mx.default_device() == mx.Device(mx.gpu) and mx.metal.is_available()


def _has_kernels(x: mx.array) -> bool:
    return kernels is not None and kernels.fast_paths(x)
