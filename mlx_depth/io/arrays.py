"""NumPy and MLX arrays as images."""

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlx_depth.errors import ImageError
from mlx_depth.io.color import Color, composite, to_uint8

NAME = "<array>"


def is_array(source: object) -> bool:
    """Whether it is a NumPy or MLX array; without importing mlx, as who holds an ``mx.array`` has imported it."""
    module = sys.modules.get("mlx.core")
    return isinstance(source, np.ndarray) or (module is not None and isinstance(source, module.array))


def array_to_rgb(source: Any, background: Color) -> npt.NDArray[np.uint8]:
    """Read an array as an image.

    Args:
        source: ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` RGB or ``(H, W, 4)`` RGBA, of uint8, uint16, bool, or floats in
            0..1, NumPy or MLX.
        background: RGB color, 0..255, under transparent pixels.
    Returns:
        RGB uint8 ``(H, W, 3)``, C-contiguous; never the caller's memory, in which the next frame may be written.
    Raises:
        ImageError: If the shape, the type or the range is another.
    """
    array = np.asarray(source) if isinstance(source, np.ndarray) else _from_mlx(source)
    _check_shape(array.shape)
    values = to_uint8(array, NAME)
    if values.ndim == 2:
        values = values[:, :, np.newaxis]
    if values.shape[2] == 1:
        values = np.repeat(values, 3, axis=2)
    if values.shape[2] == 4:
        values = np.asarray(composite(Image.fromarray(np.ascontiguousarray(values)), background))
    return np.array(values, order="C", copy=np.may_share_memory(values, array) or None)


def _from_mlx(source: Any) -> npt.NDArray[Any]:
    import mlx.core as mx

    return np.array(source.astype(mx.float32) if source.dtype == mx.bfloat16 else source)


def _check_shape(shape: tuple[int, ...]) -> None:
    if 0 in shape:
        raise ImageError(f"the array of shape {shape} has no pixels: give an image of at least 1 x 1.")
    if len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4)):
        return
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        raise ImageError(
            f"the array of shape {shape} has its channels first: give (H, W, C), image.transpose(1, 2, 0)."
        )
    if len(shape) == 4:
        raise ImageError(f"the array of shape {shape} is a batch: give its images one at a time, images[0].")
    raise ImageError(f"the array of shape {shape} is not an image: give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).")
