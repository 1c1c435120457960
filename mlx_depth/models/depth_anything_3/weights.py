"""Depth Anything 3's checkpoints: how they name their tensors, and what says how the network is built."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from mlx_depth.backbones import dinov2
from mlx_depth.errors import CheckpointError
from mlx_depth.heads import dpt, dual_dpt, gaussian_dpt
from mlx_depth.models.base import Dialect, Evidence, NetworkConfig, Reading, owner
from mlx_depth.models.depth_anything_3.camera import DECODER_ORIGINAL, ENCODER_ORIGINAL
from mlx_depth.models.depth_anything_3.network import (
    DepthAnything3Config,
    DepthAnything3MonoConfig,
    DepthAnything3NestedConfig,
    any_view_config,
    mono_config,
    nested_config,
)
from mlx_depth.weights.rules import Rule, prefixed

# What upstream's config.json calls the architectures, the 1.1 weights included.
ARCHITECTURES: dict[str, NetworkConfig] = {
    "da3-small": any_view_config("small"),
    "da3-base": any_view_config("base"),
    "da3-large": any_view_config("large"),
    "da3-giant": any_view_config("giant"),
    "da3mono-large": mono_config(metric=False),
    "da3metric-large": mono_config(metric=True),
    "da3nested-giant-large": nested_config(),
}
_READ_KEYS = ("model_name", "config")  # upstream builds by the name alone
_BACKBONE = "backbone.pretrained."
_BLOCK = "blocks.0.attn.qkv.weight"
_RAYS = "head.scratch.refinenet1_aux.out_conv.weight"
_SKY = "head.scratch.sky_output_conv2.0.weight"

_ANY_VIEW: tuple[Rule, ...] = (
    *prefixed(dinov2.ORIGINAL, _BACKBONE, "backbone."),
    *prefixed(dual_dpt.ORIGINAL, "head.", "head."),
    *prefixed(ENCODER_ORIGINAL, "cam_enc.", "camera_encoder."),
    *prefixed(DECODER_ORIGINAL, "cam_dec.", "camera_decoder."),
    *prefixed(gaussian_dpt.ORIGINAL, "gs_head.", "gaussian_head."),
)
_MONO: tuple[Rule, ...] = (
    *prefixed(dinov2.ORIGINAL, _BACKBONE, "backbone."),
    *prefixed(dpt.SKY_ORIGINAL, "head.", "head."),
)
_NESTED: tuple[Rule, ...] = (
    *prefixed(_ANY_VIEW, "da3.", "any_view."),
    *prefixed(_MONO, "da3_metric.", "metric."),
)


def _named(config: Mapping[str, Any], kind: type[NetworkConfig]) -> NetworkConfig:
    """The architecture that a config.json names."""
    unknown = sorted(set(config) - set(_READ_KEYS))
    name = config.get("model_name")
    if unknown or name is None:
        raise CheckpointError(
            f"config.json is not Depth Anything 3's, which holds a model_name such as 'da3-small' (keys here: "
            f"{', '.join(sorted(config)):.200}): take the file of the original checkpoint."
        )
    if name not in ARCHITECTURES:
        raise CheckpointError(
            f"config.json says model_name {name!r:.60}: the known ones are {', '.join(ARCHITECTURES)}."
        )
    found = ARCHITECTURES[name]
    if type(found) is not kind:
        raise CheckpointError(
            f"config.json says model_name {name!r}, but the tensors are not that model's, or only a part of them: "
            "take the whole original checkpoint."
        )
    return found


def _by_width(evidence: Evidence, table: str, kind: type[NetworkConfig]) -> NetworkConfig:
    """The published architecture with a backbone of this width."""
    width = evidence.shapes[table][-1]
    candidates = [config for config in ARCHITECTURES.values() if type(config) is kind and _width(config) == width]
    if not candidates:
        raise CheckpointError(
            f"no published Depth Anything 3 of this kind is {width} wide: put its config.json beside the weights."
        )
    return candidates[0]


def _width(config: Any) -> int:
    backbone: dinov2.DINOv2Config = (config.any_view if hasattr(config, "any_view") else config).backbone
    return backbone.embed_dim


def _reader(kind: type[NetworkConfig], table: str, *, certain: bool = True) -> Callable[[Evidence], Reading]:
    def read(evidence: Evidence) -> Reading:
        if evidence.config is not None:
            return Reading(_named(evidence.config, kind))
        return Reading(_by_width(evidence, table, kind), certain=certain)

    return read


ANY_VIEW_DIALECTS = {
    "original": Dialect(
        rules=_ANY_VIEW,
        owns=owner(_BACKBONE + _BLOCK, _BACKBONE + "camera_token", _RAYS),
        read=_reader(DepthAnything3Config, _BACKBONE + "cls_token"),
    )
}
MONO_DIALECTS = {
    "original": Dialect(
        rules=_MONO,
        owns=owner(_BACKBONE + _BLOCK, _SKY, without=("camera_token",)),
        # The relative and the metric model have the same tensors.
        read=_reader(DepthAnything3MonoConfig, _BACKBONE + "cls_token", certain=False),
    )
}
NESTED_DIALECTS = {
    "original": Dialect(
        rules=_NESTED,
        owns=owner(f"da3.{_BACKBONE}{_BLOCK}", f"da3.{_RAYS}", f"da3_metric.{_BACKBONE}{_BLOCK}", f"da3_metric.{_SKY}"),
        read=_reader(DepthAnything3NestedConfig, f"da3.{_BACKBONE}cls_token"),
    )
}

OFFICIAL = re.compile(r"da3-?(?P<kind>nested-giant-|mono-|metric-)?(?P<size>small|base|large|giant)(?P<new>-1\.1)?")
_OFFICIAL_GGUF = re.compile(
    r"depth-anything-(?:(?P<kind>mono-|metric-)?(?P<size>small|base|large|giant)-(?:f32|f16|q8-0|q[654]-k)"
    r"|nested-(?:anyview|metric)(?:-(?:f32|f16|q8-0|q[654]-k))?)"
)


def published_name(name: str) -> str | None:
    """The model of the registry that has this official file name: the authors', or depth-anything.cpp's."""
    name = name.lower().replace("_", "-")
    if found := OFFICIAL.fullmatch(name):
        return f"depth-anything-3-{found['kind'] or ''}{found['size']}{found['new'] or ''}"
    if found := _OFFICIAL_GGUF.fullmatch(name):
        return f"depth-anything-3-{found['kind'] or ''}{found['size'] or 'nested-giant-large'}"
    return None
