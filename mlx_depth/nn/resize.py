"""Resizing by separable filters: torch's, OpenCV's and Pillow's rules, in MLX."""

from functools import lru_cache
from typing import Literal, NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError
from mlx_depth.nn import ops

Method = Literal["nearest", "bilinear", "bicubic", "opencv_cubic", "opencv_area"]
PillowMethod = Literal["bilinear", "bicubic"]

# Two forms of one filter: a dense matrix, or a few gathers ("taps"). Dense makes fp16 networks 1.6–1.9 times
# faster on a GPU. In float32 taps win: GPUs may round factors to TF32, and CPUs are up to 3 times slower dense.
_DENSE_TYPES = (mx.float16, mx.bfloat16)
_DENSE_MIN_CHANNELS = 8  # a product with 1–4 columns (a depth map, an image) wastes the matrix unit
_DENSE_MAX_ELEMENTS = 1 << 20  # in × out, as the work: room for a network's axis (592 → 1036), not a photo's

_BICUBIC_A = -0.75  # torch and OpenCV
_ANTIALIAS_BICUBIC_A = -0.5  # Pillow, and torch with antialias=True
_PILLOW_PRECISION_BITS = 32 - 8 - 2  # Pillow, src/libImaging/Resample.c


class _AxisRule(NamedTuple):
    """All that decides the filter of one axis; the key of the caches."""

    in_size: int
    out_size: int
    method: Method
    align_corners: bool
    antialias: bool
    scale: float | None


class _Taps(NamedTuple):
    """One axis of a resize: output ``i`` is the sum over ``j`` of ``weights[i, j] * x[indices[i, j]]``."""

    indices: npt.NDArray[np.int32]  # (out, k)
    weights: npt.NDArray[np.float64]  # (out, k)


def resize(
    x: mx.array,
    size: tuple[int, int],
    *,
    method: Method = "bilinear",
    align_corners: bool = False,
    antialias: bool = False,
    scale: tuple[float, float] | None = None,
) -> mx.array:
    """Resize images or feature maps to an exact size; an axis that keeps its size is left untouched.

    Args:
        x: Images, ``(B, H, W, C)``, any float or integer type.
        size: Output ``(height, width)`` in pixels, both >= 1.
        method: ``nearest``, ``bilinear`` and ``bicubic`` are torch's. ``opencv_cubic`` is
            ``cv2.INTER_CUBIC`` on float images: bicubic, but source coordinates rounded to float32.
            ``opencv_area`` is ``cv2.INTER_AREA`` on float images, shrinking only.
        align_corners: The centres of the corner pixels stay in place (bilinear, bicubic).
        antialias: Widen the filter when shrinking, as Pillow does with its softer cubic (bilinear, bicubic).
        scale: Output pixels per input pixel, ``(vertical, horizontal)``: sets the coordinates instead of the
            ratio of the sizes, as torch's ``scale_factor``. Both axes are then resampled (bicubic).
    Returns:
        ``(B, height, width, C)``, same type as ``x``; float32 for an integer ``x`` (except ``nearest``).
    Raises:
        OptionError: If ``x`` is not 4-D, a size is below 1, or the options exclude each other.

    Same numbers as torch's ``interpolate`` and OpenCV's ``resize``.
    """
    _check(x, size, method, align_corners, antialias, scale)
    tile_bytes = ops.cache_bytes(x)
    if tile_bytes and not antialias and scale is None and size[0] >= x.shape[1] and size[1] > x.shape[2]:
        return _grow(x, size, method, align_corners, tile_bytes)
    is_float = mx.issubdtype(x.dtype, mx.floating)
    dtype = x.dtype if is_float or method == "nearest" else mx.float32
    for axis in _shrink_first(x, size):
        axis_scale = scale[axis - 1] if scale else None
        if x.shape[axis] == size[axis - 1] and axis_scale is None:
            continue
        rule = _AxisRule(x.shape[axis], size[axis - 1], method, align_corners, antialias, axis_scale)
        x = _resize_axis(x, axis, rule)
    return x.astype(dtype)


def _grow(x: mx.array, size: tuple[int, int], method: Method, align_corners: bool, tile_bytes: int) -> mx.array:
    """``resize`` in tiles of the output that the caches hold."""

    def rows(x: mx.array, start: int, stop: int) -> mx.array:
        return resize_rows(x, size, (start, stop), method=method, align_corners=align_corners)

    row_bytes = x.nbytes // (x.shape[1] * x.shape[2]) * size[1]
    return ops.build_tiles(rows, x, size[0], max(tile_bytes // row_bytes, 1))


def resize_rows(
    x: mx.array,
    size: tuple[int, int],
    rows: tuple[int, int],
    *,
    method: Method = "bilinear",
    align_corners: bool = False,
) -> mx.array:
    """Some rows of a resized map, from the input rows that they need.

    Args:
        x: Maps, ``(B, H, W, C)``, any float type.
        size: ``(height, width)`` that the whole output would have.
        rows: First output row, and the one after the last.
        method: As for ``resize``.
        align_corners: As for ``resize``.
    Returns:
        ``(B, rows[1] - rows[0], width, C)``, same type as ``x``.

    Same numbers as slicing ``resize(x, size)``.
    """
    down, across = (
        _AxisRule(x.shape[axis], size[axis - 1], method, align_corners, antialias=False, scale=None) for axis in (1, 2)
    )
    needed = _axis_taps(down).indices[slice(*rows)]
    first, end = int(needed.min()), int(needed.max()) + 1
    x = _resize_axis(x[:, first:end], 2, across)
    if _prefers_dense(x, down):
        return _apply_dense(x, 1, _device_matrix(down)[slice(*rows), first:end])
    indices, weights = _device_taps(down)
    return _apply_taps(x, 1, indices[slice(*rows)] - first, weights[slice(*rows)])


def resize_pillow(x: mx.array, size: tuple[int, int], *, method: PillowMethod = "bicubic") -> mx.array:
    """Resize 8-bit images exactly as Pillow does, columns first.

    Args:
        x: Images, ``(B, H, W, C)``, uint8.
        size: Output ``(height, width)`` in pixels, both >= 1.
        method: Pillow's filter.
    Returns:
        ``(B, height, width, C)``, uint8; each pass is rounded and clipped to 0..255.
    Raises:
        OptionError: If ``x`` is not 4-D uint8, or a size is below 1.

    Pillow's ``src/libImaging/Resample.c``, bit for bit. Pillow 13 takes the rows
    first where the height shrinks and the width does not, or much less; this is the order of all versions before it.
    """
    _check(x, size, method, align_corners=False, antialias=True, scale=None)
    if x.dtype != mx.uint8:
        raise OptionError(f"Pillow's rule resizes uint8 images, not {x.dtype}: call resize for other types.")
    for axis in (2, 1):
        if x.shape[axis] != size[axis - 1]:
            x = _pillow_pass(x, axis, size[axis - 1], method)
    return x


def _check(
    x: mx.array,
    size: tuple[int, int],
    method: Method,
    align_corners: bool,
    antialias: bool,
    scale: tuple[float, float] | None,
) -> None:
    if x.ndim != 4:
        raise OptionError(f"resize takes (B, H, W, C), not the shape {x.shape}: add or merge axes first.")
    if min(size) < 1:
        raise OptionError(f"cannot resize to {size[0]} × {size[1]} pixels: give sides of at least 1.")
    if (align_corners or antialias) and method not in ("bilinear", "bicubic"):
        raise OptionError(f"{method} has no align_corners and no antialias: use bilinear or bicubic.")
    if scale and method != "bicubic":
        raise OptionError(f"{method} has no scale: use bicubic.")
    if sum([align_corners, antialias, scale is not None]) > 1:
        raise OptionError("align_corners, antialias and scale exclude each other: give one of them.")
    if method == "opencv_area" and (size[0] > x.shape[1] or size[1] > x.shape[2]):
        raise OptionError(f"opencv_area cannot enlarge {x.shape[1:3]} to {size}: use opencv_cubic.")


def _shrink_first(x: mx.array, size: tuple[int, int]) -> list[int]:
    """The axes, the one that shrinks most (or grows least) first: the map in between stays small."""
    return sorted((1, 2), key=lambda axis: size[axis - 1] / x.shape[axis])


def _resize_axis(x: mx.array, axis: int, rule: _AxisRule) -> mx.array:
    if rule.method == "nearest":
        return mx.take(x, _device_taps(rule)[0][:, 0], axis=axis)
    if _prefers_dense(x, rule):
        return _apply_dense(x, axis, _device_matrix(rule))
    indices, weights = _device_taps(rule)
    if axis == 2:
        return ops.row_wise(lambda rows: _apply_taps(rows, 2, indices, weights), x)
    return ops.build_rows(lambda i, j: _apply_taps(x, 1, indices[i:j], weights[i:j]), rule.out_size)


def _prefers_dense(x: mx.array, rule: _AxisRule) -> bool:
    elements = rule.in_size * rule.out_size
    return x.dtype in _DENSE_TYPES and x.shape[3] >= _DENSE_MIN_CHANNELS and elements <= _DENSE_MAX_ELEMENTS


def _apply_dense(x: mx.array, axis: int, matrix: mx.array) -> mx.array:
    """``matrix @ x`` along an axis, in the type of ``x`` (products accumulate in float32)."""
    matrix = matrix.astype(x.dtype)
    if axis == 2:
        return matrix @ x  # (out, W) @ (B, H, W, C)
    batch, height, width, channels = x.shape
    rows = matrix @ x.reshape(batch, height, width * channels)
    return rows.reshape(batch, -1, width, channels)


def _apply_taps(x: mx.array, axis: int, indices: mx.array, weights: mx.array) -> mx.array:
    """The weighted sum along an axis in float32, returned in the type of a float ``x``."""
    dtype = x.dtype if mx.issubdtype(x.dtype, mx.floating) else mx.float32
    return _weighted_sum(x, axis, indices, weights, mx.array(0.0)).astype(dtype)


def _pillow_pass(x: mx.array, axis: int, out_size: int, method: PillowMethod) -> mx.array:
    indices, weights = _device_pillow_taps(x.shape[axis], out_size, method)
    half = mx.array(1 << (_PILLOW_PRECISION_BITS - 1), dtype=mx.int32)  # so that the shift rounds
    total = _weighted_sum(x, axis, indices, weights, half)
    return mx.minimum(mx.maximum(total, 0) >> _PILLOW_PRECISION_BITS, 255).astype(mx.uint8)


def _weighted_sum(x: mx.array, axis: int, indices: mx.array, weights: mx.array, start: mx.array) -> mx.array:
    """``start`` plus ``k`` weighted gathers along an axis, in the type of ``weights``."""
    if axis == 2:  # gathering rows of the turned image is five times faster than gathering 3-channel pixels
        return _weighted_sum(x.swapaxes(1, 2), 1, indices, weights, start).swapaxes(1, 2)
    batch, height, width, channels = x.shape
    rows = x.reshape(batch, height, width * channels)
    total = start
    for tap in range(indices.shape[1]):
        gathered = mx.take(rows, indices[:, tap], axis=1).astype(weights.dtype)
        total = total + gathered * weights[:, tap, None]
    return total.reshape(batch, -1, width, channels)


# Constants are made from numpy, never by an operation: what mx.compile is tracing must not be cached.


@lru_cache(maxsize=32)  # up to 4 MiB each
def _device_matrix(rule: _AxisRule) -> mx.array:
    return mx.array(_matrix(_axis_taps(rule), rule.in_size).astype(np.float32))  # (out, in)


@lru_cache(maxsize=128)
def _device_taps(rule: _AxisRule) -> tuple[mx.array, mx.array]:
    taps = _axis_taps(rule)
    return mx.array(taps.indices), mx.array(taps.weights.astype(np.float32))


@lru_cache(maxsize=32)
def _device_pillow_taps(in_size: int, out_size: int, method: PillowMethod) -> tuple[mx.array, mx.array]:
    taps = _antialias_taps(in_size, out_size, method)
    fixed_point = np.trunc(taps.weights * (1 << _PILLOW_PRECISION_BITS) + np.copysign(0.5, taps.weights))
    return mx.array(taps.indices), mx.array(fixed_point.astype(np.int32))


def _matrix(taps: _Taps, in_size: int) -> npt.NDArray[np.float64]:
    matrix = np.zeros((len(taps.indices), in_size))
    np.add.at(matrix, (np.arange(len(matrix))[:, None], taps.indices), taps.weights)
    return matrix


@lru_cache(maxsize=128)
def _axis_taps(rule: _AxisRule) -> _Taps:
    if rule.method == "nearest":
        return _nearest_taps(rule.in_size, rule.out_size)
    if rule.method == "opencv_area":
        return _area_taps(rule.in_size, rule.out_size)
    if rule.antialias:
        return _antialias_taps(rule.in_size, rule.out_size, rule.method)
    coordinates = _source_coordinates(rule)
    if rule.method == "opencv_cubic":
        coordinates = coordinates.astype(np.float32).astype(np.float64)
    return _interpolation_taps(coordinates, rule.in_size, rule.method)


def _source_coordinates(rule: _AxisRule) -> npt.NDArray[np.float64]:
    position = np.arange(rule.out_size, dtype=np.float64)
    if rule.align_corners:
        return position * ((rule.in_size - 1) / max(rule.out_size - 1, 1))
    step = rule.in_size / rule.out_size if rule.scale is None else 1 / rule.scale
    return (position + 0.5) * step - 0.5


def _interpolation_taps(coordinates: npt.NDArray[np.float64], in_size: int, method: Method) -> _Taps:
    """The 2 or 4 pixels around each coordinate; beyond the border its pixel is repeated."""
    offsets = np.arange(0, 2) if method == "bilinear" else np.arange(-1, 3)
    first = np.floor(coordinates)
    distances = (coordinates - first)[:, None] - offsets
    weights = _triangle(distances) if method == "bilinear" else _cubic(distances, _BICUBIC_A)
    indices = np.clip(first[:, None] + offsets, 0, in_size - 1)
    return _Taps(indices.astype(np.int32), weights)


def _antialias_taps(in_size: int, out_size: int, method: Method) -> _Taps:
    """All pixels under the widened filter, cut at the border, normalized: Pillow's ``precompute_coeffs``."""
    step = in_size / out_size
    width = max(step, 1.0)
    support = (1.0 if method == "bilinear" else 2.0) * width
    centres = (np.arange(out_size) + 0.5) * step
    first = np.maximum(np.trunc(centres - support + 0.5), 0)[:, None]
    end = np.minimum(np.trunc(centres + support + 0.5), in_size)[:, None]
    pixels = first + np.arange(int((end - first).max()))
    distances = (pixels - centres[:, None] + 0.5) * (1 / width)
    weights = _triangle(distances) if method == "bilinear" else _cubic(distances, _ANTIALIAS_BICUBIC_A)
    weights = np.where(pixels < end, weights, 0.0)
    indices = np.minimum(pixels, in_size - 1)
    return _Taps(indices.astype(np.int32), weights / weights.sum(axis=1, keepdims=True))


def _area_taps(in_size: int, out_size: int) -> _Taps:
    """Each output pixel is the mean over its cell of the input; pixels count by their overlap with it."""
    step = in_size / out_size
    start = (np.arange(out_size) * step)[:, None]
    pixels = np.floor(start) + np.arange(int(np.ceil(step)) + 1)
    overlap = np.minimum(pixels + 1, start + step) - np.maximum(pixels, start)
    indices = np.minimum(pixels, in_size - 1)
    weights = np.where(pixels < in_size, np.maximum(overlap, 0.0), 0.0)
    return _Taps(indices.astype(np.int32), weights / weights.sum(axis=1, keepdims=True))


def _nearest_taps(in_size: int, out_size: int) -> _Taps:
    step = np.float32(in_size) / np.float32(out_size)  # torch floors a float32 product, which decides ties
    indices = np.minimum(np.floor(np.arange(out_size, dtype=np.float32) * step), in_size - 1)
    return _Taps(indices.astype(np.int32)[:, None], np.ones((out_size, 1)))


def _triangle(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    weights: npt.NDArray[np.float64] = np.maximum(1 - np.abs(distance), 0.0)
    return weights


def _cubic(distance: npt.NDArray[np.float64], a: float) -> npt.NDArray[np.float64]:
    """Keys' cubic convolution kernel (IEEE ASSP 1981)."""
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
