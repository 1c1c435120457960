"""The upstream model in the containers in which people have it, names stated from the programs that write them."""

import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import gguf
import reference
from reference import torch

# depth-anything.cpp's `scripts/gguf_keys.py`, from the authors' names; axes are left as they are.
_GGUF = {
    "pretrained.": "vit.",
    "blocks.": "blk.",
    "attn.qkv": "attn_qkv",
    "attn.proj": "attn_proj",
    "mlp.fc": "mlp_fc",
    ".gamma": "",
    "patch_embed.proj": "patch_embed",
    "depth_head.": "head.",
    "head.projects": "head.proj",
    "resize_layers": "resize",
    "refinenet": "rn",
    "resConfUnit": "rc",
    ".conv1.": ".c1.",
    ".conv2.": ".c2.",
    "out_conv": "out",
    "output_conv1": "out1",
    "output_conv2.0": "out2a",
    "output_conv2.2": "out2b",
}


def save_pth(upstream: Any, path: Path, *, key: str | None = None, legacy: bool = False) -> Path:
    """A file of the authors: their names, written by ``torch.save``; ``key`` wraps it as training scripts do."""
    state = reference.authors_names(upstream.state_dict())
    content = {key: {f"module.{name}": value for name, value in state.items()}, "epoch": 7} if key else state
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def save_gguf(
    upstream: Any, path: Path, *, kind: gguf.GGMLQuantizationType | None = None, prefix: str = "", **facts: Any
) -> Path:
    """A file of depth-anything.cpp's exporter; ``kind`` quantizes the blocks' linear layers, ``facts`` replace keys."""
    writer = gguf.GGUFWriter(path, "depthanything3")
    for name, value in {**_gguf_metadata(upstream.config), **facts}.items():
        _add(writer, f"depthanything3.{name}", value)
    for name, value in reference.authors_names(upstream.state_dict()).items():
        if not name.endswith("mask_token"):
            _add_tensor(writer, prefix, _gguf_name(name), value.numpy(), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name: str) -> str:
    for old, new in _GGUF.items():
        name = name.replace(old, new)
    return name


def _gguf_metadata(config: Any) -> dict[str, Any]:
    backbone = config.backbone_config
    return {
        "arch": "depthanything2",
        "patch_size": backbone.patch_size,
        "vit.embed_dim": backbone.hidden_size,
        "vit.depth": backbone.num_hidden_layers,
        "vit.num_heads": backbone.num_attention_heads,
        "vit.out_layers": [index - 1 for index in backbone.out_indices],
        "vit.ffn_type": "mlp",
        "vit.pos_embed_grid": backbone.image_size // backbone.patch_size,
        "vit.num_register_tokens": 0,
        "vit.alt_start": -1,
        "vit.rope_start": -1,
        "vit.qknorm_start": -1,
        "vit.cat_token": False,
        "vit.qkv_bias": True,
        "vit.interpolate_antialias": False,
        "head.features": config.fusion_hidden_size,
        "head.out_channels": list(config.neck_hidden_sizes),
        "head.output_dim": 1,
        "head.pos_embed": False,
        "head.norm_type": "idt",
        **({"head.max_depth": float(config.max_depth)} if config.depth_estimation_type == "metric" else {}),
    }


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    methods = {str: "add_string", bool: "add_bool", int: "add_int32", float: "add_float32", list: "add_array"}
    getattr(writer, methods[type(value)])(name, value)


def _add_tensor(
    writer: gguf.GGUFWriter, prefix: str, name: str, array: Any, kind: gguf.GGMLQuantizationType | None
) -> None:
    if kind is None or not name.startswith("vit.blk.") or array.ndim != 2:
        writer.add_tensor(prefix + name, array)
    else:
        writer.add_tensor(prefix + name, gguf.quants.quantize(array, kind), raw_dtype=kind)


class Hostile:
    """Unpickled by the standard library, it would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/mlx-depth-was-here",)


def save_hostile(path: Path) -> Path:
    """A torch archive whose pickle asks for ``os.system``."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": Hostile()}, protocol=2))
        archive.writestr("archive/version", "3\n")
    return path


def save_outside(path: Path) -> Path:
    """A torch archive with a member that points outside it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive.writestr("archive/data/../../../evil", "x")
    return path
