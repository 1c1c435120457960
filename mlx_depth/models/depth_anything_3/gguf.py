"""Depth Anything 3 in depth-anything.cpp's files: names, and the metadata that says how the network is built.

Upstream: ``scripts/gguf_keys.py``, ``convert_da3_to_gguf.py``, ``convert_mono_to_gguf.py`` and
``convert_nested_to_gguf.py`` there. The nested model is a pair of files, whose names do not meet.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mlx_depth.backbones import dinov2
from mlx_depth.backbones.any_view import AnyViewConfig
from mlx_depth.backbones.dinov2 import DINOv2Config
from mlx_depth.errors import CheckpointError
from mlx_depth.heads import dpt, dual_dpt, gaussian_dpt
from mlx_depth.heads.dpt import DPTConfig
from mlx_depth.heads.dual_dpt import DualDPTConfig
from mlx_depth.models.base import Dialect, Evidence, Reading, owner
from mlx_depth.models.depth_anything_3.camera import DECODER_GGUF
from mlx_depth.models.depth_anything_3.network import (
    NORM_EPS,
    DepthAnything3Config,
    DepthAnything3MonoConfig,
    DepthAnything3NestedConfig,
)
from mlx_depth.models.depth_anything_3.weights import ARCHITECTURES, OFFICIAL
from mlx_depth.weights.gguf_metadata import arch_of, backbone_facts, backbone_keys, head_facts, head_keys, read_facts
from mlx_depth.weights.rules import Rule, prefixed

_ARCH = "depthanything3"
_BLOCK, _CAMERA = "vit.blk.0.attn_qkv.weight", "vit.camera_token"
_METRIC_BLOCK, _RAYS = "m_vit.blk.0.attn_qkv.weight", "head.scratch.out2b_aux.weight"
_GAUSSIANS, _SKY = "gs.merger.0.weight", "head.scratch.sky_out2a.weight"
_GAUSSIAN_CHANNELS = gaussian_dpt.GaussianDPTConfig.raw_channels + 1
_ANY_VIEW: tuple[Rule, ...] = (
    *prefixed(dinov2.GGUF, "vit.", "backbone."),
    *prefixed(dual_dpt.GGUF, "head.", "head."),
    *prefixed(DECODER_GGUF, "cam.", "camera_decoder."),
    *prefixed(gaussian_dpt.GGUF, "gs.", "gaussian_head."),
)
_MONO: tuple[Rule, ...] = (
    *prefixed(dinov2.GGUF, "vit.", "backbone."),
    *prefixed(dpt.SKY_GGUF, "head.", "head."),
)
_NESTED: tuple[Rule, ...] = (
    *prefixed(_ANY_VIEW, "", "any_view."),
    *prefixed(_MONO, "m_", "metric."),
)
_GAUSSIANS_FIXED = {
    "gs.output_dim": _GAUSSIAN_CHANNELS,
    "gs.sh_degree": 2,
    "gs.pred_offset_depth": True,
    "gs.pred_offset_xy": True,
    "gs.pred_color": False,
}


def _backbone_fixed(vit: str, *, any_view: bool) -> dict[str, Any]:
    unused = {} if any_view else dict.fromkeys((f"{vit}.{name}_start" for name in ("alt", "rope", "qknorm")), -1)
    return {
        "arch": _ARCH,
        f"{vit}.num_register_tokens": 0,
        f"{vit}.rope_freq": 100.0,
        f"{vit}.cat_token": any_view,
        f"{vit}.qkv_bias": True,
        f"{vit}.interpolate_antialias": False,
        **unused,
    }


def _read_any_view(evidence: Evidence) -> Reading:
    """Such files have no place for known cameras, and the rays' part of the head on request alone."""
    rays, gaussians = _RAYS in evidence.shapes, _GAUSSIANS in evidence.shapes
    fixed = {
        **_backbone_fixed("vit", any_view=True),
        "head.output_dim": 2,
        "head.pos_embed": True,
        "head.down_ratio": 1,
        "head.activation": "exp",
        "head.conf_activation": "expp1",
        **({"head.has_aux": True, "head.aux_ray_dim": dual_dpt.RAY_CHANNELS - 1} if rays else {}),
        **(_GAUSSIANS_FIXED if gaussians else {}),
    }
    needed = ("vit.alt_start", "vit.rope_start", "vit.qknorm_start", *(head_keys("gs") if gaussians else ()))
    needed = (*backbone_keys("vit"), *head_keys("head"), *needed)
    facts = read_facts(evidence.metadata, fixed, needed, "Depth Anything 3 for any number of views")
    head = head_facts(facts, "head", len(dpt.RESAMPLINGS))
    if gaussians and head_facts(facts, "gs", len(dpt.RESAMPLINGS)) != head:
        raise CheckpointError(
            "the GGUF file's two heads differ in width, which no published model's do: export it again."
        )
    starts = [facts[f"vit.{name}_start"] for name in ("alt", "rope", "qknorm")]
    if starts != [starts[0]] * 3:
        raise CheckpointError(f"the GGUF file's alt_, rope_ and qknorm_start differ ({starts}): export it again.")
    backbone = AnyViewConfig(**backbone_facts(facts, "vit"), norm_eps=NORM_EPS, alt_start=facts["vit.alt_start"])
    whole = DepthAnything3Config(backbone, DualDPTConfig(in_dim=2 * backbone.embed_dim, **head), gaussians=gaussians)
    part = replace(whole, head=replace(whole.head, rays=rays), camera_encoder=False)
    return Reading(part, whole=whole)


def _metric_by_name(facts: Mapping[str, Any]) -> bool | None:
    """Whether the checkpoint that a file was made of is the metric one; None where its name does not tell."""
    official = OFFICIAL.fullmatch(str(facts.get("checkpoint_name")).lower())
    return {"metric-": True, "mono-": False}.get(official["kind"] or "") if official else None


def _read_mono(evidence: Evidence, start: str = "") -> Reading:
    vit, head = f"{start}vit", f"{start}head"
    fixed = {
        **_backbone_fixed(vit, any_view=False),
        f"{head}.output_dim": 1,
        f"{head}.down_ratio": 1,
        f"{head}.activation": "exp",
        f"{head}.sky_activation": "relu",
        f"{head}.norm_type": "idt",
        **({} if start else {f"{head}.pos_embed": False}),
    }
    needed = (*backbone_keys(vit), *head_keys(head))
    facts = read_facts(evidence.metadata, fixed, needed, "Depth Anything 3 for single views")
    backbone = DINOv2Config(**backbone_facts(facts, vit), norm_eps=NORM_EPS)
    sizes = head_facts(facts, head, len(dpt.RESAMPLINGS))
    metric = _metric_by_name(facts)
    config = DepthAnything3MonoConfig(
        backbone, DPTConfig(in_dim=backbone.embed_dim, activation="exp", **sizes), metric=bool(start or metric)
    )
    if not start and metric is None and config not in ARCHITECTURES.values():
        raise CheckpointError(
            f"the GGUF file's checkpoint_name {facts.get('checkpoint_name')!r:.60} does not tell whether the depth is "
            "metric: export it from a folder named DA3MONO-LARGE or DA3METRIC-LARGE."
        )
    return Reading(config, certain=bool(start) or metric is not None)


def _read_nested(evidence: Evidence) -> Reading:
    any_view, metric = _read_any_view(evidence), _read_mono(evidence, "m_")
    return Reading(
        DepthAnything3NestedConfig(any_view.config, metric.config),
        whole=DepthAnything3NestedConfig(any_view.whole, metric.config),
    )


def _owns(*tensors: str, without: tuple[str, ...] = ()) -> Callable[[Evidence], bool]:
    """The file says of itself what it is: a config.json beside it is not asked."""
    by_names = owner(*tensors, without=without)
    return lambda evidence: arch_of(evidence.metadata) == _ARCH and by_names(replace(evidence, config=None))


ANY_VIEW_DIALECTS = {
    "gguf": Dialect(
        rules=_ANY_VIEW,
        owns=_owns(_BLOCK, _CAMERA, without=("m_vit.",)),
        read=_read_any_view,
        lost_axes=True,
    )
}
MONO_DIALECTS = {
    "gguf": Dialect(
        rules=_MONO,
        owns=_owns(_BLOCK, _SKY, without=("camera_token", "m_vit.")),
        read=_read_mono,
        lost_axes=True,
    )
}
NESTED_DIALECTS = {
    "gguf": Dialect(
        rules=_NESTED,
        owns=_owns(_BLOCK, _CAMERA, _METRIC_BLOCK),
        read=_read_nested,
        lost_axes=True,
    )
}
