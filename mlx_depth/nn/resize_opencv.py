"""OpenCV's resizing of 8-bit images, to the last bit, in NumPy: the same pixels on every machine.

Taps run over strips of rows that fit a cache, which is faster here than MLX on a CPU: 0.1 s for a 12-megapixel photo.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError

Method = Literal["area", "cubic"]

_STRIP = 32  # rows
_CUBIC_A = np.float32(-0.75)
_ONE = 1 << 11  # cubic weights are whole numbers of this part: INTER_RESIZE_COEF_SCALE
_LANES = 8  # OpenCV takes so many values of a row at once; the rest of a row is rounded in another way
_SLIVER = 1e-3  # a smaller overlap of a pixel with a cell does not count

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating]


class _Taps(NamedTuple):
    """One axis: output ``i`` is the sum over ``j``, in this order, of ``weights[i, j] * x[indices[i, j]]``."""

    indices: npt.NDArray[np.intp]  # (out, k)
    weights: npt.NDArray[np.float32]  # (out, k)


def resize_opencv(image: Image, size: tuple[int, int], *, method: Method) -> Image:
    """Resize an 8-bit image exactly as OpenCV does.

    Args:
        image: ``(H, W, C)``, uint8.
        size: Output ``(height, width)`` in pixels, both >= 1.
        method: ``area`` is ``cv2.INTER_AREA``, shrinking only: the mean over each output pixel's cell. ``cubic`` is
            ``cv2.INTER_CUBIC``: four pixels an axis, no antialias.
    Returns:
        ``(height, width, C)``, uint8; ``image`` itself if it has this size.
    Raises:
        OptionError: If ``image`` is not 3-D uint8, a size is below 1, or ``area`` is asked to enlarge.

    ``modules/imgproc/src/resize.cpp`` of OpenCV 4 and 5, with the float32 sums of x86. OpenCV itself may be a level
    off: on ARM, where it fuses products and sums, and with Intel's IPP, in 5 % of the values of ``cubic``.
    """
    if image.dtype != np.uint8 or image.ndim != 3:
        raise OptionError(f"OpenCV's rule resizes uint8 (H, W, C), not {image.dtype} {image.shape}: convert it first.")
    if min(size) < 1:
        raise OptionError(f"cannot resize to {size[0]} × {size[1]} pixels: give sides of at least 1.")
    height, width, channels = image.shape
    if size == (height, width):
        return image
    if method == "cubic":
        rows = _cubic(image, size)
    elif size[0] > height or size[1] > width:
        raise OptionError(f"area cannot enlarge {(height, width)} to {size}: use cubic.")
    else:
        rows = _area(image, size)
    return rows.clip(0, 255).astype(np.uint8).reshape(*size, channels)


def _area(image: Image, size: tuple[int, int]) -> Floats:
    steps = [in_size // out_size for in_size, out_size in zip(image.shape, size, strict=False)]
    if tuple(step * side for step, side in zip(steps, size, strict=True)) != image.shape[:2]:
        rows = _across(image, _area_taps(image.shape[1], size[1]))
        return np.rint(_down(rows, _area_taps(image.shape[0], size[0])))
    rows = _across(image, _block_taps(size[1], steps[1]))
    total = _down(rows, _block_taps(size[0], steps[0]))
    if steps == [2, 2]:
        return np.floor((total + 2) / 4)  # a half goes up here, and to the even number elsewhere
    return np.rint(total * (np.float32(1) / np.float32(steps[0] * steps[1])))


def _cubic(image: Image, size: tuple[int, int]) -> Floats:
    rows = _across(image, _cubic_taps(image.shape[1], size[1]))  # whole numbers below 2 ** 20
    down = _cubic_taps(image.shape[0], size[0])
    last_first = _Taps(down.indices[:, ::-1], down.weights[:, ::-1] / np.float32(_ONE**2))
    whole = rows.shape[1] // _LANES * _LANES
    vectors = np.rint(_down(rows[:, :whole], last_first))
    rest = np.floor(_down(rows[:, whole:].astype(np.float64), last_first) + 0.5)  # exact: OpenCV's are integers
    return np.concatenate([vectors, rest.astype(np.float32)], axis=1)


def _across(image: Image, taps: _Taps) -> Floats:
    """Filter each row: ``(H, W, C)`` → ``(H, out * C)``, float32."""
    height, _, channels = image.shape
    pixels = np.ascontiguousarray(image).reshape(height, -1).view(f"V{channels}")  # one copy moves all channels
    weights = np.repeat(taps.weights.T, channels, axis=1)
    total = np.zeros((height, weights.shape[1]), np.float32)
    for start in range(0, height, _STRIP):
        strip = pixels[start : start + _STRIP]
        for indices, weight in zip(taps.indices.T, weights, strict=True):
            total[start : start + _STRIP] += strip.take(indices, axis=1).view(np.uint8) * weight
    return total


def _down(rows: Floats, taps: _Taps) -> Floats:
    """Filter each column: ``(H, n)`` → ``(out, n)``, in the type of ``rows``."""
    total = np.zeros((len(taps.indices), rows.shape[1]), rows.dtype)
    for start in range(0, len(total), _STRIP):
        strip = slice(start, start + _STRIP)
        for indices, weight in zip(taps.indices[strip].T, taps.weights[strip].T, strict=True):
            total[strip] += rows[indices] * weight[:, None]
    return total


def _area_taps(in_size: int, out_size: int) -> _Taps:
    """The pixels under each cell, weighted by their share of it: ``computeResizeAreaTab``."""
    step = 1 / (out_size / in_size)
    start = np.arange(out_size)[:, None] * step
    end = start + step
    cell = np.minimum(step, in_size - start)
    last = np.minimum(np.floor(end), in_size - 1)
    first = np.minimum(np.ceil(start), last)
    pixels = first - 1 + np.arange(int((last - first).max()) + 2)
    before = np.where(first - start > _SLIVER, first - start, 0)
    after = np.where(end - last > _SLIVER, np.minimum(np.minimum(end - last, 1), cell), 0)
    overlap = np.where(pixels < first, before, np.where(pixels < last, 1, np.where(pixels == last, after, 0)))
    return _Taps(np.clip(pixels, 0, in_size - 1).astype(np.intp), (overlap / cell).astype(np.float32))


def _block_taps(out_size: int, step: int) -> _Taps:
    """Whole blocks of ``step`` pixels, added up."""
    indices = np.arange(out_size * step).reshape(out_size, step)
    return _Taps(indices, np.ones(indices.shape, np.float32))


def _cubic_taps(in_size: int, out_size: int) -> _Taps:
    """Keys' kernel, evaluated in float32 and rounded to 11 bits: ``interpolateCubic``; border pixels are repeated."""
    coordinates = ((np.arange(out_size) + 0.5) * (1 / (out_size / in_size)) - 0.5).astype(np.float32)
    first = np.floor(coordinates)
    x, one, a = coordinates - first, np.float32(1), _CUBIC_A
    far = ((a * (x + one) - 5 * a) * (x + one) + 8 * a) * (x + one) - 4 * a
    near, next_ = (((a + 2) * side - (a + 3)) * side * side + one for side in (x, one - x))
    weights = np.stack([far, near, next_, one - far - near - next_], axis=1)
    indices = np.clip(first[:, None] + np.arange(-1, 3), 0, in_size - 1)
    return _Taps(indices.astype(np.intp), np.rint(weights * np.float32(_ONE)))
