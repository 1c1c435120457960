"""transformers' ``DPTImageProcessor``, which DPT, Depth Anything and their relatives share: its file, and its rules."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mlx_depth.errors import CheckpointError
from mlx_depth.processor import Policy, Processor, Reference
from mlx_depth.weights.config_values import MAX_INTEGER

_NONE: Mapping[str, tuple[Any, ...]] = {}
BILINEAR, BICUBIC = 2, 3  # Pillow's numbers


def read_processor(config: Mapping[str, Any], *, fixed: Mapping[str, tuple[Any, ...]] = _NONE) -> Processor:
    """Read the ``preprocessor_config.json`` of a checkpoint.

    Sizes and normalization are the file's; the rules stay the authors': ``follow_reference`` changes them.

    Args:
        config: The parsed JSON.
        fixed: Keys with the only values that a relative's file may have.
    Raises:
        CheckpointError: If a key is missing or unknown, or has a value that would change the pixels in a way
            that ``Processor`` does not know.
    """
    _check_config(config, {**_FIXED_KEYS, **fixed})
    return Processor(
        input_size=config["size"]["height"],
        multiple_of=config["ensure_multiple_of"],
        keep_aspect=config["keep_aspect_ratio"],
        mean=tuple(config["image_mean"]),
        std=tuple(config["image_std"]),
    )


def read_any_processor(config: Mapping[str, Any]) -> Processor:
    """``read_processor`` for all ways of the class: with a bilinear filter, and photos that are padded as they are.

    Args:
        config: The parsed JSON.
    Raises:
        CheckpointError: As for ``read_processor``.
    """
    plain = dict(config)
    ways: dict[str, Any] = {}
    if _is_count(plain.get("size")):  # files of 2022
        plain["size"] = {"height": plain["size"], "width": plain["size"]}
    if plain.get("resample") == BILINEAR:
        ways["pillow_filter"] = "bilinear"
        del plain["resample"]
    if plain.get("do_rescale") is False:
        _check_values(plain, ("image_mean", "image_std"))
        plain |= {key: [number / 255 for number in plain[key]] for key in ("image_mean", "image_std")}
        del plain["do_rescale"]
    if plain.get("do_resize") is False:
        if plain.get("do_pad") is not True or not _is_count(plain.get("size_divisor")):
            raise CheckpointError(
                "preprocessor_config.json neither resizes nor pads photos to a size_divisor: correct the file, "
                "or pass pixel values to the network yourself."
            )
        ways |= {"policy": "pad", "multiple_of": plain["size_divisor"]}
        plain = {key: plain[key] for key in plain if key not in ("do_resize", "do_pad", "size_divisor")}
    return replace(read_processor(plain), **ways)


def follow_transformers(processor: Processor) -> Processor:
    """The same sizes and normalization under transformers' rules."""
    policy: Policy = "pad" if processor.policy == "pad" else "minimal"
    return replace(processor, policy=policy, resample="pillow", restore="bicubic")


def follow_reference(processor: Processor, reference: Reference) -> Processor:
    """The same sizes and normalization under the rules of the authors (``"original"``) or of transformers."""
    if reference == "transformers":
        return follow_transformers(processor)
    return replace(processor, policy="lower_bound", resample="opencv", restore="bilinear")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_INTEGER


def _is_square(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"height", "width"} and value["height"] == value["width"]


def _are_three(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_finite(number) for number in value)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


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
    "resample": (BICUBIC,),
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


def _check_values(config: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        wanted, is_right = _READ_KEYS[key]
        if not is_right(config.get(key)):
            raise CheckpointError(
                f"preprocessor_config.json has {key} = {config.get(key)!r:.60}, not {wanted}: "
                "take the file of the original checkpoint, and give other sizes as input_size."
            )


def _check_config(config: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]]) -> None:
    missing = sorted(set(_READ_KEYS) - set(config))
    if missing:
        raise CheckpointError(
            f"preprocessor_config.json lacks {', '.join(missing)}: take the file of the original checkpoint."
        )
    unknown = sorted(set(config) - set(_READ_KEYS) - set(fixed) - set(_INERT_KEYS))
    if unknown:
        raise CheckpointError(
            f"preprocessor_config.json has unknown keys: {', '.join(unknown)}. Remove those that leave pixels alone, "
            "or pass pixel values to the network yourself."
        )
    for key, known in fixed.items():
        if key in config and config[key] not in known:
            raise CheckpointError(
                f"preprocessor_config.json has {key} = {config[key]!r:.60}, but only {known[0]!r} is supported: "
                "correct the file, or pass pixel values to the network yourself."
            )
    _check_values(config, tuple(_READ_KEYS))
