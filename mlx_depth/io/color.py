"""Color: any kind of PIL image becomes RGB, 8 bits."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlx_depth.errors import ImageError
from mlx_depth.io import tiff

Color = tuple[int, int, int]


def to_rgb(image: Image.Image, name: str, background: Color) -> Image.Image:
    """Turn any mode into RGB.

    Args:
        image: Loaded, with pixels.
        name: For messages.
        background: Under transparent pixels.
    Returns:
        A PIL image in mode RGB.
    Raises:
        ImageError: If its values have no known range.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _wide_to_rgb(image, name, background)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        return composite(image.convert("RGBA"), background)
    return image.convert("RGB")


def composite(rgba: Image.Image, background: Color) -> Image.Image:
    """Lay an image on a color. Alpha that is 0 everywhere says nothing: screenshots leave the fourth byte empty."""
    alpha = rgba.getchannel("A")
    if alpha.getextrema()[1] == 0:
        return rgba.convert("RGB")
    canvas = Image.new("RGB", rgba.size, background)
    canvas.paste(rgba, mask=alpha)
    return canvas


def to_uint8(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    """Bring uint8, bool, uint16 or floats in 0..1, of any shape, to 0..255.

    Raises:
        ImageError: If the type, or the range of floats, is another.
    """
    kind, itemsize = values.dtype.kind, values.dtype.itemsize
    if kind == "u" and itemsize == 1:
        return values.view(np.uint8)
    if kind == "b":
        return np.where(values, 255, 0).astype(np.uint8)
    if kind == "u" and itemsize == 2:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if kind == "f":
        return _unit_to_uint8(values, name)
    raise ImageError(f"{name} has the type {values.dtype}: convert it to uint8, uint16, bool, or floats from 0 to 1.")


def _wide_to_rgb(image: Image.Image, name: str, background: Color) -> Image.Image:
    """Pillow's own conversion of these modes clips at 255."""
    values = np.asarray(image)
    if image.mode == "I":
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ImageError(f"{name} holds 32-bit values from {low} to {high}: scale them to 16 bits, 0 to 65535.")
        values = values.astype(np.uint16)
    tags = tiff.tags_of(image)
    if tags is not None and values.dtype.kind == "u":
        values = _as_sixteen_bits(values, *tiff.white_level(tags))
    rgb = Image.fromarray(to_uint8(values, name)).convert("RGB")
    if "transparency" not in image.info:
        return rgb
    rgb.putalpha(Image.fromarray(to_uint8(values != image.info["transparency"], name)))
    return composite(rgb, background)


def _as_sixteen_bits(values: npt.NDArray[Any], white: int, inverted: bool) -> npt.NDArray[np.uint16]:
    wide = np.minimum(values, white).astype(np.uint32)
    scaled = ((wide * 65535 + white // 2) // white).astype(np.uint16)
    return 65535 - scaled if inverted else scaled


def _unit_to_uint8(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    if not np.isfinite(values).all():
        raise ImageError(f"{name} holds NaN or infinite values: replace them, numpy.nan_to_num does.")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise ImageError(f"{name} holds floats from {low:g} to {high:g}: scale them to 0..1, or give uint8 (0 to 255).")
    wide = values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64)
    return np.rint(wide * 255).astype(np.uint8)
