"""How a photo becomes network input, and a depth map photo-sized again: sizes, filters and normalization as data."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_depth.errors import CheckpointError, OptionError
from mlx_depth.nn.resize import resize, resize_pillow

Reference = Literal["original", "transformers"]
"""Whose code a model is compared with: the authors' or Hugging Face transformers'."""

Policy = Literal["lower_bound", "upper_bound", "minimal"]
Resample = Literal["opencv", "pillow"]
DepthMethod = Literal["bilinear", "bicubic"]
InputSize = int | tuple[int, int]
"""The side that the size rule works towards, or the exact ``(height, width)``, in network pixels."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# 62 times the usual 518 × 518, 85,000 patches: beyond it attention runs for minutes and head maps pass 2 GB each.
MAX_NETWORK_PIXELS = 4096 * 4096


@dataclass(frozen=True)
class Processor:
    """Turns RGB images into normalised network pixels. The defaults are the Depth Anything authors' rules;
    ``follow("transformers")`` gives those of the published ``-hf`` numbers."""

    input_size: int = 518
    """Wanted side of the network image in pixels; ``policy`` says which side."""

    policy: Policy = "lower_bound"
    """With the aspect kept, both sides are scaled so that the short side (``lower_bound``), the long side
    (``upper_bound``) or the side that needs the least scaling (``minimal``) becomes ``input_size``."""

    multiple_of: int = 14
    """Both sides are rounded to a multiple of this: the patch size."""

    keep_aspect: bool = True
    """False stretches the image to a square."""

    resample: Resample = "opencv"
    """``opencv``: cubic (a = −0.75) on float pixels, no antialias. ``pillow``: Pillow's antialiased bicubic
    (a = −0.5) on 8-bit pixels, rounded and clipped to 0..255 after each axis."""

    restore: DepthMethod = "bilinear"
    """How depth maps come back to the size of the photo: the ``method`` of ``resize_depth``."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of the RGB values, 0..1."""

    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of the RGB values, 0..1."""

    def __post_init__(self) -> None:
        for name, kind in (("policy", Policy), ("resample", Resample), ("restore", DepthMethod)):
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise OptionError(f"no {name} {getattr(self, name)!r} for a Processor: choose one of {choices}.")

    def __call__(self, image: npt.NDArray[np.uint8], *, input_size: InputSize | None = None) -> mx.array:
        """Resize and normalise one image.

        Args:
            image: RGB uint8, ``(H, W, 3)``.
            input_size: As for ``network_size``.
        Returns:
            Pixel values, ``(1, h, w, 3)``, float32: ``(pixel / 255 − mean) / std``.
        Raises:
            OptionError: If ``image`` is not RGB uint8, or ``input_size`` cannot work.

        The authors' ``depth_anything_v2/util/transform.py`` on ``image / 255.0``, or transformers'
        ``DPTImageProcessor``.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise OptionError(
                f"the processor takes RGB uint8 (H, W, 3), not {image.dtype} {image.shape}: use load_image first."
            )
        size = self.network_size((image.shape[0], image.shape[1]), input_size)
        pixels = mx.array(image)[None]
        if self.resample == "pillow":
            pixels = resize_pillow(pixels, size)
        else:
            pixels = resize(pixels, size, method="opencv_cubic")
        scale, offset = self._scale_and_offset()
        return pixels * scale + offset

    def network_size(self, image_size: tuple[int, int], input_size: InputSize | None = None) -> tuple[int, int]:
        """The size that an image has inside the network.

        Args:
            image_size: ``(height, width)`` of the image in pixels.
            input_size: Replaces the processor's ``input_size``; or the exact ``(height, width)``, multiples of
                ``multiple_of``.
        Returns:
            ``(height, width)`` in network pixels, multiples of ``multiple_of``; 1080 × 1920 gives 518 × 924.
        Raises:
            OptionError: If ``input_size`` is below ``multiple_of``, or an exact one not a multiple of it, or if the
                result has more than ``MAX_NETWORK_PIXELS``.

        ``Resize.get_size`` of the authors' ``util/transform.py``.
        """
        if isinstance(input_size, tuple):
            size = self._exact_size(input_size)
        else:
            size = self._scaled_size(image_size, self.input_size if input_size is None else input_size)
        if size[0] * size[1] > MAX_NETWORK_PIXELS:
            raise OptionError(
                f"an image of {image_size[0]} × {image_size[1]} pixels would become {size[0]} × {size[1]} in the "
                f"network, more than {MAX_NETWORK_PIXELS:,} pixels: crop it, or give a smaller input_size or an "
                "exact one, (height, width)."
            )
        return size

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Processor":
        """Read the ``preprocessor_config.json`` of a transformers checkpoint.

        Sizes and normalisation are the file's; the rules stay the authors': ``follow("transformers")`` changes them.

        Args:
            config: The parsed JSON.
        Raises:
            CheckpointError: If a key is missing or unknown, or has a value that would change the pixels in a way
                that this class does not know.

        The keys of transformers' ``DPTImageProcessor``.
        """
        _check_config(config)
        return cls(
            input_size=config["size"]["height"],
            multiple_of=config["ensure_multiple_of"],
            keep_aspect=config["keep_aspect_ratio"],
            mean=tuple(config["image_mean"]),
            std=tuple(config["image_std"]),
        )

    def follow(self, reference: Reference) -> "Processor":
        """The same sizes and normalisation under the rules of the authors (``"original"``) or of transformers.

        Args:
            reference: Whose ``policy``, ``resample`` and ``restore`` to use.

        Sources as for calling a processor and for ``resize_depth``.
        """
        if reference == "transformers":
            return replace(self, policy="minimal", resample="pillow", restore="bicubic")
        return replace(self, policy="lower_bound", resample="opencv", restore="bilinear")

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
        scales = (target / image_size[0], target / image_size[1])
        if self.keep_aspect:
            scales = (self._common_scale(scales),) * 2
        height, width = (self._round_side(scale * side, target) for scale, side in zip(scales, image_size, strict=True))
        return height, width

    def _common_scale(self, scales: tuple[float, float]) -> float:
        if self.policy == "lower_bound":
            return max(scales)
        if self.policy == "upper_bound":
            return min(scales)
        return min(scales, key=lambda scale: abs(1 - scale))  # of equal ones the height's, as upstream

    def _round_side(self, side: float, target: int) -> int:
        """The nearest multiple (of two, the even one), unless it breaks the bound; at least one patch."""
        count = round(side / self.multiple_of)
        if self.policy == "lower_bound" and count * self.multiple_of < target:
            count = math.ceil(side / self.multiple_of)
        if self.policy == "upper_bound" and count * self.multiple_of > target:
            count = math.floor(side / self.multiple_of)
        return max(count, 1) * self.multiple_of

    def _scale_and_offset(self) -> tuple[mx.array, mx.array]:
        mean, std = np.array(self.mean), np.array(self.std)
        return mx.array((1 / (255 * std)).astype(np.float32)), mx.array((-mean / std).astype(np.float32))


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
    transformers.
    """
    maps = depth.astype(mx.float32)[..., None]
    return resize(maps, size, method=method, align_corners=method == "bilinear")[..., 0]


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_square(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"height", "width"} and value["height"] == value["width"]


def _are_three(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(number) in (int, float) for number in value)


# Keys of preprocessor_config.json that Processor reads, and what their values have to be.
_READ_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "size": (
        "an equal height and width, whole numbers above 0",
        lambda value: _is_square(value) and _is_count(value["height"]),
    ),
    "ensure_multiple_of": ("a whole number above 0", _is_count),
    "keep_aspect_ratio": ("true or false", lambda value: isinstance(value, bool)),
    "image_mean": ("three numbers", _are_three),
    "image_std": ("three numbers above 0", lambda value: _are_three(value) and min(value) > 0),
}
# Keys that change pixels, with the only values that Processor knows.
_FIXED_KEYS: dict[str, tuple[Any, ...]] = {
    "image_processor_type": ("DPTImageProcessor", "DPTImageProcessorFast", "DPTImageProcessorPil"),
    "feature_extractor_type": ("DPTFeatureExtractor",),
    "do_resize": (True,),
    "do_rescale": (True,),
    "do_normalize": (True,),
    "do_pad": (False, None),
    "do_center_crop": (False, None),
    "size_divisor": (None,),
    "resample": (3,),  # PIL's BICUBIC
    "rescale_factor": (1 / 255,),
}
# Keys that leave the pixels of an RGB image alone.
_INERT_KEYS = (
    "_valid_processor_keys",
    "crop_size",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "do_convert_rgb",
    "do_reduce_labels",
    "image_seq_length",
    "input_data_format",
    "pad_size",
    "processor_class",
    "return_tensors",
)


def _check_config(config: Mapping[str, Any]) -> None:
    missing = sorted(set(_READ_KEYS) - set(config))
    if missing:
        raise CheckpointError(
            f"preprocessor_config.json lacks {', '.join(missing)}: take the file of the original checkpoint."
        )
    unknown = sorted(set(config) - set(_READ_KEYS) - set(_FIXED_KEYS) - set(_INERT_KEYS))
    if unknown:
        raise CheckpointError(
            f"preprocessor_config.json has unknown keys: {', '.join(unknown)}. Remove those that leave pixels alone, "
            "or pass pixel values to the network yourself."
        )
    for key, known in _FIXED_KEYS.items():
        if key in config and config[key] not in known:
            raise CheckpointError(
                f"preprocessor_config.json has {key} = {config[key]!r}, but only {known[0]!r} is supported: "
                "correct the file, or pass pixel values to the network yourself."
            )
    for key, (wanted, is_right) in _READ_KEYS.items():
        if not is_right(config[key]):
            raise CheckpointError(
                f"preprocessor_config.json has {key} = {config[key]!r:.60}, not {wanted}: "
                "take the file of the original checkpoint, and give other sizes as input_size."
            )
