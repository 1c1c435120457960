"""Depth Anything 3 in depth-anything.cpp's files, names and keys stated from the programs that write them.

``scripts/convert_da3_to_gguf.py``, ``convert_mono_to_gguf.py``, ``convert_nested_to_gguf.py``; ``src/quantize.cpp``.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Type = gguf.GGMLQuantizationType
Pack = Callable[[str, np.ndarray], tuple[np.ndarray, Type] | None]  # name, values → bytes and their type

_BACKBONE = {
    "backbone.pretrained.": "",
    "patch_embed.proj.": "patch_embed.",
    "blocks.": "blk.",
    "attn.qkv": "attn_qkv",
    "attn.proj": "attn_proj",
    "attn.q_norm": "attn_qnorm",
    "attn.k_norm": "attn_knorm",
    "mlp.": "mlp_",
    ".gamma": "",
}
_HEAD = {
    "projects.": "proj.",
    "resize_layers.": "resize.",
    "refinenet": "rn",
    "resConfUnit": "rc",
    ".conv1.": ".c1.",
    ".conv2.": ".c2.",
    "out_conv": "out",
    "sky_output_conv2.0": "sky_out2a",
    "sky_output_conv2.2": "sky_out2b",
    "output_conv1_aux.3": "out1_aux",
    "output_conv2_aux.3.0": "out2a_aux",
    "output_conv2_aux.3.5": "out2b_aux",
    "output_conv2_aux.0.2": "out2_aux_ln",
    "output_conv2.0": "out2a",
    "output_conv2.2": "out2b",
    "output_conv1.": "out1.",
    "images_merger.0": "merger.0",
    "images_merger.2": "merger.1",
    "images_merger.4": "merger.2",
}
_CAMERA = {"backbone.0": "bb0", "backbone.2": "bb2", "fc_qvec": "fc_q", "fc_fov.0": "fc_fov"}
_QUANTIZED = re.compile(
    r"vit\.blk\.\d+\.(attn_qkv|attn_proj|mlp_fc1|mlp_fc2|mlp_w12|mlp_w3)\.weight|cam\.(bb0|bb2|fc_t|fc_q|fc_fov)\.weight"
)


def save_any_view(
    network: Any, path: Path, checkpoint_name: str = "DA3-SMALL", *, rays: bool = False, **options: Any
) -> Path:
    """A ``DepthAnything3Net`` for any number of views; ``rays`` is the exporter's ``--with-aux``."""
    head = network.head
    facts = {
        **_general(checkpoint_name),
        **_backbone_facts(network, "vit"),
        **_image_facts(),
        **_head_facts(head, "head"),
        "head.output_dim": 2,
        "head.pos_embed": head.pos_embed,
        "head.conf_activation": head.conf_activation,
        **({"head.has_aux": True, "head.aux_ray_dim": 6, "head.aux_levels": head.aux_levels} if rays else {}),
        "cam.dim_in": 1536,  # whatever the width: nothing reads it
    }
    gaussians = network.gs_head is not None
    if gaussians:
        sizes = _head_facts(network.gs_head, "gs")
        adapter = network.gs_adapter
        facts |= {
            "gs.output_dim": network.gs_head.out_dim,
            "gs.features": sizes["gs.features"],
            "gs.out_channels": sizes["gs.out_channels"],
            "gs.sh_degree": adapter.sh_degree,
            "gs.scale_min": adapter.gaussian_scale_min,
            "gs.scale_max": adapter.gaussian_scale_max,
            "gs.pred_offset_depth": adapter.pred_offset_depth,
            "gs.pred_offset_xy": adapter.pred_offset_xy,
            "gs.pred_color": adapter.pred_color,
        }
    tensors = {
        **_renamed(network.backbone, "backbone.", "vit.", _BACKBONE),
        **_renamed(head, "", "head.", _HEAD),
        **_renamed(network.cam_dec, "", "cam.", _CAMERA),
        **(_renamed(network.gs_head, "", "gs.", _HEAD) if gaussians else {}),
    }
    unused = re.compile(r"head\.scratch\.output_conv\d_aux\." if rays else r".*_aux")
    return _write(path, facts, {name: x for name, x in tensors.items() if not unused.match(name)}, **options)


def save_mono(network: Any, path: Path, checkpoint_name: str = "DA3MONO-LARGE", **options: Any) -> Path:
    """A ``DepthAnything3Net`` for single views."""
    facts = {
        **_general(checkpoint_name),
        **_backbone_facts(network, "vit"),
        **_image_facts(),
        **_sky_head_facts(network.head, "head"),
        "head.pos_embed": network.head.pos_embed,
    }
    tensors = {
        **_renamed(network.backbone, "backbone.", "vit.", _BACKBONE),
        **_renamed(network.head, "", "head.", _HEAD),
    }
    return _write(path, facts, tensors, **options)


def save_metric_half(network: Any, path: Path, checkpoint_name: str, **options: Any) -> Path:
    """The metric branch of a nested model."""
    facts = {
        **_general(checkpoint_name),
        **_backbone_facts(network, "m_vit"),
        **_sky_head_facts(network.head, "m_head"),
    }
    tensors = {
        **_renamed(network.backbone, "backbone.", "m_vit.", _BACKBONE),
        **_renamed(network.head, "", "m_head.", _HEAD),
    }
    return _write(path, facts, tensors, **options)


def save_nested(network: Any, folder: Path, *, start: str = "mine", rays: bool = False) -> tuple[Path, Path]:
    """A ``NestedDepthAnything3Net`` as its two files."""
    name = "DA3NESTED-GIANT-LARGE"
    return (
        save_any_view(network.da3, folder / f"{start}-anyview.gguf", f"{name}-anyview", rays=rays),
        save_metric_half(network.da3_metric, folder / f"{start}-metric.gguf", f"{name}-metric"),
    )


def quantizable(name: str, values: np.ndarray) -> bool:
    """What ``src/quantize.cpp`` touches."""
    return values.ndim == 2 and _QUANTIZED.fullmatch(name) is not None


def shapes(network: Any, *, rays: bool = False, start: str = "") -> dict[str, tuple[int, ...]]:
    """Names and shapes of a whole ``DepthAnything3Net``, whose tensors may be on the meta device."""
    parts = [(network.backbone, "backbone.", "vit.", _BACKBONE), (network.head, "", "head.", _HEAD)]
    if network.cam_dec is not None:
        parts.append((network.cam_dec, "", "cam.", _CAMERA))
    if network.gs_head is not None:
        parts.append((network.gs_head, "", "gs.", _HEAD))
    named = {start + name: tuple(x.shape) for part in parts for name, x in _named(*part).items()}
    unused = re.compile(r"head\.scratch\.output_conv\d_aux\." if rays else r".*_aux")
    return {name: shape for name, shape in named.items() if not unused.match(name)}


def metadata(network: Any, checkpoint_name: str) -> dict[str, Any]:
    """What ``save_any_view`` or ``save_mono`` would say, with the prefix."""
    kept: dict[str, Any] = {}
    save = save_mono if network.cam_dec is None else save_any_view
    save(network, Path(), checkpoint_name, into=kept)
    return {f"depthanything3.{key}": value for key, value in kept.items()}


def _named(module: Any, start: str, target: str, table: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for name, value in module.named_parameters():  # which names a shared tensor once
        name = start + name
        for old, new in table.items():
            name = name.replace(old, new)
        found[target + name] = value
    return found


def _renamed(module: Any, start: str, target: str, table: Mapping[str, str]) -> dict[str, np.ndarray]:
    named = _named(module, start, target, table)
    return {name: value.detach().numpy() for name, value in named.items() if not value.is_meta}


def _general(checkpoint_name: str) -> dict[str, Any]:
    return {"arch": "depthanything3", "checkpoint_name": checkpoint_name, "patch_size": 14}


def _image_facts() -> dict[str, Any]:
    return {
        "img.mean": [0.485, 0.456, 0.406],
        "img.std": [0.229, 0.224, 0.225],
        "img.resize_mode": "upper_bound",
        "img.resize_target": 504,
    }


def _backbone_facts(network: Any, vit: str) -> dict[str, Any]:
    backbone = network.backbone.pretrained
    mlp = backbone.blocks[0].mlp
    swiglu = hasattr(mlp, "w12")
    facts = {
        "embed_dim": backbone.embed_dim,
        "depth": backbone.n_blocks,
        "num_heads": backbone.num_heads,
        "head_dim": backbone.embed_dim // backbone.num_heads,
        "mlp_hidden": mlp.w3.in_features if swiglu else mlp.fc1.out_features,
        "num_register_tokens": backbone.num_register_tokens,
        "init_values": 0.0,
        "alt_start": backbone.alt_start,
        "rope_start": backbone.rope_start,
        "qknorm_start": backbone.qknorm_start,
        "rope_freq": 100.0,
        "cat_token": backbone.cat_token,
        "qkv_bias": True,
        "ln_eps": 1e-6,
        "interpolate_offset": backbone.interpolate_offset,
        "interpolate_antialias": backbone.interpolate_antialias,
        "pos_embed_grid": round((backbone.pos_embed.shape[1] - 1) ** 0.5),
        "ffn_type": "swiglu" if swiglu else "mlp",
        "out_layers": list(network.backbone.out_layers),
    }
    return {f"{vit}.{name}": value for name, value in facts.items()}


def _head_facts(head: Any, start: str) -> dict[str, Any]:
    return {
        f"{start}.features": head.scratch.layer1_rn.out_channels,
        f"{start}.out_channels": [projection.out_channels for projection in head.projects],
        f"{start}.down_ratio": head.down_ratio,
        f"{start}.activation": head.activation,
    }


def _sky_head_facts(head: Any, start: str) -> dict[str, Any]:
    return {
        **_head_facts(head, start),
        f"{start}.output_dim": head.out_dim,
        f"{start}.conf_activation": head.conf_activation,
        f"{start}.sky_activation": head.sky_activation,
        f"{start}.norm_type": "idt",
    }


def _write(
    path: Path,
    facts: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    pack: Pack = lambda name, values: None,
    rewritten: bool = False,
    changed: Mapping[str, Any] | None = None,
    into: dict[str, Any] | None = None,
) -> Path:
    """``rewritten``: by the quantizer, without axes of length 1 in front; ``changed`` facts, None: left out."""
    facts = {key: value for key, value in {**facts, **(changed or {})}.items() if value is not None}
    if into is not None:
        into.update(facts)
        return path
    methods = {str: "add_string", bool: "add_bool", int: "add_int32", float: "add_float32", list: "add_array"}
    writer = gguf.GGUFWriter(path, "depthanything3")
    for key, value in facts.items():
        getattr(writer, methods[type(value)])(f"depthanything3.{key}", value)
    for name, values in tensors.items():
        packed = pack(name, values)
        while rewritten and values.ndim > 1 and len(values) == 1:
            values = values[0]
        if packed is None:
            writer.add_tensor(name, np.ascontiguousarray(values))
        else:
            writer.add_tensor(name, packed[0], raw_dtype=packed[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
