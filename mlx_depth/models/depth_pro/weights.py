"""Depth Pro's checkpoints: how they name their tensors, and what says how the network and its pixels are."""

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlx_depth.backbones import dinov2
from mlx_depth.backbones.pyramid import LEVELS, TAPS, PyramidConfig
from mlx_depth.errors import CheckpointError
from mlx_depth.heads import multires
from mlx_depth.heads.multires import MultiresConfig
from mlx_depth.models.base import Dialect, Evidence, Reading, owner
from mlx_depth.models.depth_pro import field_of_view
from mlx_depth.models.depth_pro.field_of_view import HALVINGS
from mlx_depth.models.depth_pro.network import DepthProConfig, depth_pro_config
from mlx_depth.processor import Processor
from mlx_depth.weights.rules import prefixed
from mlx_depth.weights.transformers_config import check_counts, read_keys

MODEL_TYPE = "depth_pro"  # transformers' name of the architecture
PROCESSOR = Processor(
    input_size=1536,
    policy="fixed",
    multiple_of=16,
    keep_aspect=False,
    resample="bilinear",
    restore="bilinear_half_pixel",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)

# transformers' own defaults: Hub files leave out what equals them.
_DEFAULTS: dict[str, Any] = {
    "fusion_hidden_size": 256,
    "patch_size": 384,
    "intermediate_hook_ids": [11, 5],
    "intermediate_feature_dims": [256, 256],
    "scaled_images_overlap_ratios": [0.0, 0.5, 0.25],
    "scaled_images_feature_dims": [1024, 1024, 512],
    "merge_padding_value": 3,
    "use_fov_model": False,
    "image_model_config": None,
    "patch_model_config": None,
    "fov_model_config": None,
}
_COUNTS = {
    "fusion_hidden_size": 1,
    "patch_size": 1,
    "intermediate_feature_dims": TAPS,
    "scaled_images_feature_dims": LEVELS,
    "merge_padding_value": 1,
}
_FIXED: dict[str, Any] = {
    "scaled_images_ratios": [0.25, 0.5, 1],
    "use_batch_norm_in_fusion_residual": False,
    "use_bias_in_fusion_residual": True,
    "num_fov_head_layers": HALVINGS,
}
_NO_EFFECT_ON_INFERENCE = ("initializer_range",)


def _read_transformers_config(data: Mapping[str, Any]) -> DepthProConfig:
    model = read_keys("config.json", data, _DEFAULTS, _FIXED, _NO_EFFECT_ON_INFERENCE)
    check_counts("config.json", model, _COUNTS)
    features, hooks = model["fusion_hidden_size"], model["intermediate_hook_ids"]
    kinds: dict[str, bool] = {
        "intermediate_hook_ids": isinstance(hooks, list) and all(type(hook) is int and hook >= 0 for hook in hooks),
        "intermediate_feature_dims": set(model["intermediate_feature_dims"]) == {features},
        "scaled_images_overlap_ratios": _are_shares(model["scaled_images_overlap_ratios"]),
        "use_fov_model": type(model["use_fov_model"]) is bool,
    }
    odd = [key for key, fits in kinds.items() if not fits]
    if odd:
        raise CheckpointError(
            f"config.json: {odd[0]} is {model[odd[0]]!r:.60}, which no published Depth Pro has: "
            "take the file of the original checkpoint."
        )
    encoder = _encoder(model)
    taps = tuple(reversed(hooks))  # deepest first, there
    encoder = replace(encoder, out_layers=(*taps, *encoder.out_layers), raw_layers=taps)
    return DepthProConfig(
        PyramidConfig(encoder, tuple(model["scaled_images_overlap_ratios"]), model["merge_padding_value"]),
        MultiresConfig(encoder.embed_dim, tuple(model["scaled_images_feature_dims"]), features),
        field_of_view=model["use_fov_model"],
    )


def _encoder(model: Mapping[str, Any]) -> dinov2.DINOv2Config:
    """That of the windows, of which the other encoders are copies with weights of their own."""
    wanted = ("patch_model_config", "image_model_config", *(("fov_model_config",) if model["use_fov_model"] else ()))
    found = []
    for key in wanted:
        data = model[key]
        if not isinstance(data, Mapping):
            raise CheckpointError(f"config.json has no {key}: take the one of the model's Hub page.")
        found.append(dinov2.read_transformers_config({**data, "image_size": model["patch_size"]}, where=key))
    if any(other != found[0] for other in found):
        raise CheckpointError(
            f"config.json: {', '.join(wanted)} differ, which no published Depth Pro's do: "
            "take the file of the original checkpoint."
        )
    return found[0]


def _are_shares(values: Any) -> bool:
    return (
        isinstance(values, list)
        and len(values) == LEVELS
        and all(type(value) in (int, float) and 0 <= value < 1 for value in values)
    )


# The fields of the authors' ``DepthProConfig``, where a config.json holds them.
_AUTHORS_FIXED: dict[str, Any] = {
    "patch_encoder_preset": "dinov2l16_384",
    "image_encoder_preset": "dinov2l16_384",
    "fov_encoder_preset": "dinov2l16_384",
    "decoder_features": 256,
}


def _read_original(evidence: Evidence) -> Reading:
    """The authors' file holds tensors alone, of their one network; the field of view may be left out."""
    if evidence.model_type is not None:
        return Reading(_read_transformers_config(evidence.config or {}))
    read_keys("config.json", evidence.config or {}, {}, _AUTHORS_FIXED, ("checkpoint_uri", "use_fov_head"))
    estimates = any(name.startswith("fov.") for name in evidence.shapes)
    return Reading(replace(depth_pro_config(), field_of_view=estimates))


def _read_transformers(evidence: Evidence) -> Reading:
    if evidence.config is not None:
        return Reading(_read_transformers_config(evidence.config))
    estimates = any(name.startswith("fov_model.") for name in evidence.shapes)
    return Reading(replace(depth_pro_config(), field_of_view=estimates))


_PROCESSORS = ("DepthProImageProcessor", "DepthProImageProcessorFast")
_PROCESSOR_DEFAULTS: dict[str, Any] = {
    "image_processor_type": _PROCESSORS[0],
    "size": {"height": 1536, "width": 1536},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
_PROCESSOR_FIXED: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "resample": 2,  # PIL's BILINEAR
    "rescale_factor": 1 / 255,
}
_PROCESSOR_OFF = ("antialias", "do_center_crop", "do_pad", "size_divisor")  # else the pixels are others
_PROCESSOR_IDLE = (
    *("_valid_processor_keys", "crop_size", "data_format", "default_to_square", "device", "disable_grouping"),
    *("do_convert_rgb", "image_seq_length", "input_data_format", "pad_size", "processor_class", "return_tensors"),
)


def read_processor(config: Mapping[str, Any]) -> Processor:
    """Read preprocessor_config.json; what it would change that ``Processor`` does not know is an error.

    Raises:
        CheckpointError: If a key is unknown, or has a value that is not supported.
    """
    where = "preprocessor_config.json"
    on = [key for key in _PROCESSOR_OFF if config.get(key) not in (None, False)]
    if on:
        raise CheckpointError(
            f"{where}: {on[0]} is {config[on[0]]!r:.60}, which no published Depth Pro has: "
            "take the file of the original checkpoint."
        )
    idle = (*_PROCESSOR_IDLE, *_PROCESSOR_OFF)
    values = read_keys(where, config, _PROCESSOR_DEFAULTS, _PROCESSOR_FIXED, idle)
    size, kind = values["size"], values["image_processor_type"]
    if not isinstance(size, Mapping) or {*size} != {"height", "width"} or size["height"] != size["width"]:
        raise CheckpointError(f"{where}: size is {size!r:.60}, no square: take the file of the original checkpoint.")
    check_counts(where, size, {"height": 1})
    if kind not in _PROCESSORS:
        raise CheckpointError(
            f"{where}: image_processor_type is {kind!r:.60}, not {_PROCESSORS[0]}: "
            "take the file of the original checkpoint."
        )
    mean, std = (_of_colors(where, values, key) for key in ("image_mean", "image_std"))
    if min(std) <= 0:
        raise CheckpointError(f"{where}: image_std is {std}, not above 0: take the file of the original checkpoint.")
    return replace(PROCESSOR, input_size=size["height"], mean=mean, std=std)


def _of_colors(where: str, values: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    """One number a color, or one for all."""
    found = values[key] if isinstance(values[key], list) else [values[key]] * 3
    if len(found) != 3 or not all(type(x) in (int, float) and abs(x) <= sys.float_info.max for x in found):
        raise CheckpointError(f"{where}: {key} is {found!r:.60}, no three numbers: take the original file.")
    return float(found[0]), float(found[1]), float(found[2])


_OFFICIAL = re.compile(r"(apple[-_])?depth[-_]?pro([-_]?hf)?")


def published_name(name: str) -> str | None:
    """The model of the registry that has this official file name."""
    return "depth-pro" if _OFFICIAL.fullmatch(name.lower()) else None


_HF = "depth_pro.encoder."
DIALECTS = {
    "original": Dialect(
        rules=(
            *prefixed(dinov2.ORIGINAL, "encoder.patch_encoder.", "encoder.patch_encoder."),
            *prefixed(dinov2.ORIGINAL, "encoder.image_encoder.", "encoder.image_encoder."),
            *prefixed(multires.ORIGINAL, "", "head."),
            *prefixed(field_of_view.ORIGINAL, "fov.", "field_of_view."),
        ),
        owns=owner(
            "encoder.patch_encoder.blocks.0.attn.qkv.weight",
            "decoder.fusions.0.out_conv.weight",
            "head.4.weight",
            model_types=(MODEL_TYPE,),
        ),
        read=_read_original,
    ),
    "transformers": Dialect(
        rules=(
            *prefixed(dinov2.TRANSFORMERS, f"{_HF}patch_encoder.model.", "encoder.patch_encoder."),
            *prefixed(dinov2.TRANSFORMERS, f"{_HF}image_encoder.model.", "encoder.image_encoder."),
            *prefixed(multires.TRANSFORMERS, "", "head."),
            *prefixed(field_of_view.TRANSFORMERS, "fov_model.", "field_of_view."),
        ),
        owns=owner(
            f"{_HF}patch_encoder.model.embeddings.cls_token",
            "fusion_stage.final.projection.weight",
            "head.layers.4.weight",
            model_types=(MODEL_TYPE,),
        ),
        read=_read_transformers,
    ),
}
