"""How a photo becomes network input, and a depth map photo-sized again: sizes, filters and normalization as data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError
from mlx_depth.nn.resize import Method, PillowMethod, resize, resize_pillow
from mlx_depth.nn.resize_opencv import resize_opencv
from mlx_depth.weights.config_values import added_later

Reference = Literal["original", "transformers"]
"""Whose code a model is compared with: the authors' or Hugging Face transformers'."""

Policy = Literal["lower_bound", "upper_bound", "minimal", "fixed", "long_side", "short_side", "shrink", "area", "pad"]
Resample = Literal["opencv", "pillow", "opencv_area", "area", "bilinear", "antialias"]
DepthMethod = Literal["bilinear", "bicubic", "bilinear_half_pixel"]
InputSize = int | tuple[int, int]
"""The side that the size rule works towards, or the exact ``(height, width)``, in network pixels."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_TWO_STEPS = ("long_side", "short_side")

# 62 times the usual 518 × 518, 85,000 patches: beyond it attention runs for minutes and head maps pass 2 GB each.
MAX_NETWORK_PIXELS = 4096 * 4096
# A photo that is not resized may have so many: 2048 × 2048, 21,000 patches.
MAX_PADDED_PIXELS = 2048 * 2048
# Beyond this aspect an image has to hold itself the pixels that the network would see: a line is no photo.
MAX_STRETCH = 32


@dataclass(frozen=True)
class Processor:
    """Turns RGB images into normalized network pixels. The defaults are the Depth Anything authors' rules."""

    input_size: int = 518
    """Wanted side of the network image in pixels; ``policy`` says which side."""

    policy: Policy = "lower_bound"
    """With the aspect kept, both sides are scaled so that the short side (``lower_bound``), the long side
    (``upper_bound``) or the side that needs the least scaling (``minimal``) becomes ``input_size``; ``fixed`` stretches
    every image to a square of that side, the only one that the network takes. ``long_side`` and ``short_side`` go in
    two steps: that side becomes ``input_size``, then each side its nearest multiple, of two the larger. ``shrink``
    makes the long side ``input_size`` at most, enlarges nothing, and rounds down. ``area``: the image gets about as
    many patches as a square of that side has. ``pad`` leaves the photo its size and puts zeros around it, behind
    normalization; a size that is asked for is reached as by ``minimal``."""

    multiple_of: int = 14
    """Both sides are rounded to a multiple of this: the patch size."""

    keep_aspect: bool = True
    """False stretches the image to a square."""

    resample: Resample = "opencv"
    """``opencv``: cubic (a = −0.75) on float pixels, no antialias. ``pillow``: Pillow's antialiased bicubic
    (a = −0.5) on 8-bit pixels, rounded and clipped to 0..255 after each axis. ``opencv_area``: on 8-bit pixels,
    rounded after each step; cubic (a = −0.75) where a side grows, else the mean over the area. ``area``: the mean over
    the area of float pixels where no side grows, else as ``opencv``. ``bilinear``: on float pixels, no antialias.
    ``antialias``: the same, torch's filter, which widens where a side shrinks."""

    pillow_filter: Literal["bicubic", "bilinear"] = added_later("bicubic")
    """What ``pillow`` takes instead of its bicubic filter."""

    restore: DepthMethod = "bilinear"
    """How depth maps come back to the size of the photo: the ``method`` of ``resize_depth``."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of the RGB values, 0..1."""

    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of the RGB values, 0..1."""

    def __post_init__(self) -> None:
        kinds = {"policy": Policy, "resample": Resample, "pillow_filter": PillowMethod, "restore": DepthMethod}
        for name, kind in kinds.items():
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise OptionError(f"no {name} {getattr(self, name)!r} for a Processor: choose one of {choices}.")

    def __call__(self, image: npt.NDArray[np.uint8], *, input_size: InputSize | None = None) -> mx.array:
        """Resize and normalize one image.

        Args:
            image: RGB uint8, ``(H, W, 3)``.
            input_size: As for ``network_size``.
        Returns:
            Pixel values, ``(1, h, w, 3)``, float32: ``(pixel / 255 − mean) / std``.
        Raises:
            OptionError: If ``image`` is not RGB uint8, or ``input_size`` cannot work.

        The authors' ``depth_anything_v2/util/transform.py`` on ``image / 255.0``, transformers'
        ``DPTImageProcessor`` and ``DepthProImageProcessor``, or ``utils/io/input_processor.py`` of ``depth_anything_3``
        without its crops.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise OptionError(
                f"the processor takes RGB uint8 (H, W, 3), not {image.dtype} {image.shape}: use load_image first."
            )
        size = (image.shape[0], image.shape[1])
        pixels = self._resampled(image, self._steps(size, input_size))
        scale, offset = self._scale_and_offset()
        return _padded(pixels * scale + offset, self.network_size(size, input_size))

    def network_size(self, image_size: tuple[int, int], input_size: InputSize | None = None) -> tuple[int, int]:
        """The size that an image has inside the network.

        Args:
            image_size: ``(height, width)`` of the image in pixels.
            input_size: Replaces the processor's ``input_size``; or the exact ``(height, width)``, multiples of
                ``multiple_of``.
        Returns:
            ``(height, width)`` in network pixels, multiples of ``multiple_of``; 1080 × 1920 gives 518 × 924.
        Raises:
            OptionError: If ``input_size`` is no size, below ``multiple_of``, or an exact one not a multiple of it; if
                the result has more than ``MAX_NETWORK_PIXELS``, or far more pixels than a very long image has.

        ``Resize.get_size`` of the authors' ``util/transform.py``; ``upper_bound_resize`` and ``lower_bound_resize`` of
        ``depth_anything_3`` are ``long_side`` and ``short_side`` (which leave no side below ``multiple_of``).
        """
        input_size = _checked(input_size)
        if self.policy == "fixed":
            return self._fixed_size(input_size)
        if self.policy == "pad" and input_size is None:
            return self._padded_size(image_size)
        if isinstance(input_size, tuple):
            size = self._exact_size(input_size)
        else:
            size = self._scaled_size(image_size, self.input_size if input_size is None else input_size)
            self._check_stretch(image_size, size, self.input_size if input_size is None else input_size)
        if size[0] * size[1] > MAX_NETWORK_PIXELS:
            raise OptionError(
                f"an image of {image_size[0]} × {image_size[1]} pixels would become {size[0]} × {size[1]} in the "
                f"network, more than {MAX_NETWORK_PIXELS:,} pixels: crop it, or give a smaller input_size or an "
                "exact one, (height, width)."
            )
        return size

    def _steps(self, image_size: tuple[int, int], input_size: InputSize | None) -> list[tuple[int, int]]:
        """The sizes that an image takes, one after the other."""
        size = self.network_size(image_size, input_size)
        target = self.input_size if input_size is None else _checked(input_size)
        if self.policy in _TWO_STEPS and isinstance(target, int):
            return [self._bounded_size(image_size, target), size]
        return [] if self.policy == "pad" and input_size is None else [size]

    def _resampled(self, image: npt.NDArray[np.uint8], sizes: Sequence[tuple[int, int]]) -> mx.array:
        if self.resample == "opencv_area":
            for size in sizes:
                grows = size[0] > image.shape[0] or size[1] > image.shape[1]
                image = resize_opencv(image, size, method="cubic" if grows else "area")
            return mx.array(image)[None]
        pixels = mx.array(image)[None]
        for size in sizes:
            if self.resample == "pillow":
                pixels = resize_pillow(pixels, size, method=self.pillow_filter)
            elif self.resample == "area" and size[0] <= pixels.shape[1] and size[1] <= pixels.shape[2]:
                pixels = resize(pixels, size, method="opencv_area")
            elif self.resample == "antialias":
                pixels = resize(pixels, size, method="bilinear", antialias=True)
            else:
                pixels = resize(pixels, size, method="bilinear" if self.resample == "bilinear" else "opencv_cubic")
        return pixels

    def _fixed_size(self, input_size: InputSize | None) -> tuple[int, int]:
        side = self.input_size
        if input_size not in (None, side, (side, side)):
            raise OptionError(f"the network takes {side} × {side} pixels alone: leave input_size out.")
        return side, side

    def _padded_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        height, width = (math.ceil(side / self.multiple_of) * self.multiple_of for side in image_size)
        if height * width > MAX_PADDED_PIXELS:
            raise OptionError(
                f"this model takes photos as they are, and {image_size[0]} × {image_size[1]} pixels are more than "
                f"{MAX_PADDED_PIXELS:,}: give an input_size, such as {self.input_size}, to which they are resized."
            )
        return height, width

    def _exact_size(self, size: tuple[int, int]) -> tuple[int, int]:
        nearest = tuple(max(round(side / self.multiple_of), 1) * self.multiple_of for side in size)
        if size != nearest:
            raise OptionError(
                f"input_size {size} is not made of multiples of {self.multiple_of}: the nearest valid one is {nearest}."
            )
        return size

    def _scaled_size(self, image_size: tuple[int, int], target: int) -> tuple[int, int]:
        if target < self.multiple_of:
            raise OptionError(f"input_size {target} is below one patch: give at least {self.multiple_of} pixels.")
        if self.policy == "area":
            return self._size_of_area(image_size, target)
        sides = self._exact_sides(image_size, target)
        if self.policy in _TWO_STEPS:
            sides = self._bounded_size(image_size, target)
        height, width = (self._round_side(side, target) for side in sides)
        return height, width

    def _size_of_area(self, image_size: tuple[int, int], target: int) -> tuple[int, int]:
        """MoGe's ``forward``, whose ``num_tokens`` are the patches of the square."""
        patches, aspect = (target / self.multiple_of) ** 2, image_size[1] / image_size[0]
        rows, columns = round((patches / aspect) ** 0.5), round((patches * aspect) ** 0.5)
        return max(rows, 1) * self.multiple_of, max(columns, 1) * self.multiple_of

    def _bounded_size(self, image_size: tuple[int, int], target: int) -> tuple[int, int]:
        """The size after the first of two steps."""
        height, width = self._exact_sides(image_size, target)
        return max(round(height), 1), max(round(width), 1)

    def _exact_sides(self, image_size: tuple[int, int], target: int) -> tuple[float, float]:
        scales = (target / image_size[0], target / image_size[1])
        if self.keep_aspect:
            scales = (self._common_scale(scales),) * 2
        return scales[0] * image_size[0], scales[1] * image_size[1]

    def _check_stretch(self, image_size: tuple[int, int], size: tuple[int, int], target: int) -> None:
        patch = self.multiple_of
        stretched = MAX_STRETCH * (max(target, 8 * patch) + patch) ** 2  # sides are rounded to whole patches
        limit = min(max(stretched, image_size[0] * image_size[1]), MAX_NETWORK_PIXELS)
        if size[0] * size[1] <= limit:
            return
        shrink = math.sqrt(limit / (size[0] * size[1]))
        sides = [max(int(side * shrink) // patch, 1) * patch for side in size]
        fitting = tuple(min(side, max(limit // min(sides) // patch, 1) * patch) for side in sides)
        raise OptionError(
            f"an image of {image_size[0]} × {image_size[1]} pixels would become {size[0]} × {size[1]} in the network, "
            f"far more than it holds: crop it, or give an exact input_size, (height, width), such as {fitting}."
        )

    def _common_scale(self, scales: tuple[float, float]) -> float:
        if self.policy in ("lower_bound", "short_side"):
            return max(scales)
        if self.policy in ("upper_bound", "long_side"):
            return min(scales)
        if self.policy == "shrink":
            return min(*scales, 1.0)
        return min(scales, key=lambda scale: abs(1 - scale))  # of equal ones the height's, as upstream

    def _round_side(self, side: float, target: int) -> int:
        """The nearest multiple (of two, the even one), unless the policy has another rule; at least one patch."""
        count = round(side / self.multiple_of)
        if self.policy in _TWO_STEPS:
            count = math.floor(side / self.multiple_of + 0.5)
        if self.policy == "lower_bound" and count * self.multiple_of < target:
            count = math.ceil(side / self.multiple_of)
        if self.policy == "shrink" or (self.policy == "upper_bound" and count * self.multiple_of > target):
            count = math.floor(side / self.multiple_of)
        return max(count, 1) * self.multiple_of

    def _scale_and_offset(self) -> tuple[mx.array, mx.array]:
        mean, std = np.array(self.mean), np.array(self.std)
        return mx.array((1 / (255 * std)).astype(np.float32)), mx.array((-mean / std).astype(np.float32))


def _padded(pixel_values: mx.array, size: tuple[int, int]) -> mx.array:
    """Zeros around an image that is smaller, the odd one below and to the right."""
    missing = [side - there for side, there in zip(size, pixel_values.shape[1:3], strict=True)]
    if not any(missing):
        return pixel_values
    around = [(count // 2, count - count // 2) for count in missing]
    return mx.pad(pixel_values, [(0, 0), *around, (0, 0)])


def _checked(input_size: object) -> InputSize | None:
    """Any form of a size as whole numbers; also NumPy's, and a list for a pair."""
    is_pair = isinstance(input_size, (tuple, list))
    sides: Sequence[object] = input_size if isinstance(input_size, (tuple, list)) else (input_size,)
    if input_size is None:
        return None
    whole = [int(side) for side in sides if isinstance(side, (int, np.integer)) and not isinstance(side, bool)]
    if len(whole) != len(sides) or len(whole) != (2 if is_pair else 1):
        raise OptionError(
            f"input_size {input_size!r:.40} is no size: give a whole number of pixels, or (height, width)."
        )
    return (whole[0], whole[1]) if is_pair else whole[0]


def resize_depth(depth: mx.array, size: tuple[int, int], *, method: DepthMethod = "bilinear") -> mx.array:
    """Bring depth maps back to the size of the photo.

    Args:
        depth: ``(B, h, w)``, any unit, any float type.
        size: ``(height, width)`` of the photo in pixels.
        method: ``bilinear`` with the corner pixels in place is the Depth Anything authors' rule, ``bicubic``
            transformers', which overshoots at edges; ``bilinear_half_pixel`` with the borders in place is Depth Pro's.
    Returns:
        ``(B, height, width)``, float32, unit of ``depth``.
    Raises:
        OptionError: If ``depth`` is not 3-D or a side of ``size`` is below 1.

    ``infer_image`` of the authors' ``depth_anything_v2/dpt.py`` and ``post_process_depth_estimation`` of
    transformers.
    """
    maps = depth.astype(mx.float32)[..., None]
    kind: Method = "bicubic" if method == "bicubic" else "bilinear"
    return resize(maps, size, method=kind, align_corners=method == "bilinear")[..., 0]
