"""The upstream Depth Anything (transformers) with name-seeded weights, and the authors' rules where they differ."""

import functools
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from support import require, seeded

from mlx_depth.models.depth_anything.family import FAMILY
from mlx_depth.weights.rules import apply

torch = require("reference", "torch")
transformers = require("reference", "transformers")

T = TypeVar("T")

SIZES = {
    # hidden, layers, heads, fusion, neck, V2's out_indices (one-based)
    "tiny": (32, 4, 2, 16, (8, 16, 24, 32), (1, 2, 3, 4)),
    "small": (384, 12, 6, 64, (48, 96, 192, 384), (3, 6, 9, 12)),
    "base": (768, 12, 12, 128, (96, 192, 384, 768), (3, 6, 9, 12)),
    "large": (1024, 24, 16, 256, (256, 512, 1024, 1024), (5, 12, 18, 24)),
    "giant": (1536, 40, 24, 384, (1536, 1536, 1536, 1536), (10, 20, 30, 40)),
}


def config(size: str, *, version: int = 2, max_depth: int | None = None, swiglu: bool | None = None) -> Any:
    """transformers' config of a published size, or of ``tiny``."""
    hidden, layers, heads, fusion, neck, spread = SIZES[size]
    return transformers.DepthAnythingConfig(
        backbone_config=transformers.Dinov2Config(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            image_size=518,
            patch_size=14,
            out_indices=list(spread if version == 2 else range(layers - 3, layers + 1)),
            reshape_hidden_states=False,
            use_swiglu_ffn=size == "giant" if swiglu is None else swiglu,
        ),
        reassemble_hidden_size=hidden,
        neck_hidden_sizes=list(neck),
        fusion_hidden_size=fusion,
        depth_estimation_type="relative" if max_depth is None else "metric",
        max_depth=max_depth or 1,
    )


def meta_model(size: str, **options: Any) -> Any:
    """The module tree without memory, for names and shapes at full size."""
    with torch.device("meta"):
        return transformers.DepthAnythingForDepthEstimation(config(size, **options))


@functools.lru_cache(maxsize=2)
def model(size: str, *, version: int = 2, max_depth: int | None = None, swiglu: bool | None = None) -> Any:
    """The whole upstream model in float32, every parameter filled from its name."""
    upstream = meta_model(size, version=version, max_depth=max_depth, swiglu=swiglu)
    upstream = upstream.to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, parameter in upstream.named_parameters():
            parameter.copy_(torch.from_numpy(weight(name, tuple(parameter.shape), relu=max_depth is None)))
    return upstream


def weight(name: str, shape: tuple[int, ...], *, relu: bool = True) -> np.ndarray:
    """A parameter's values from its name: products keep their scale, gains stay near one."""
    if name.endswith("lambda1"):
        return 0.3 + seeded(name, shape, 0.05)
    if len(shape) == 1:
        return seeded(name, shape, 0.1) + ("norm" in name and name.endswith("weight"))
    if name.endswith(("token", "position_embeddings")):
        return seeded(name, shape, 0.5)
    fan_in = shape[0] if "layers.0.resize" in name or "layers.1.resize" in name else int(np.prod(shape[1:]))
    values = seeded(name, shape, fan_in**-0.5)
    # A mean above zero in the last convolution keeps a ReLU output alive; `run` asserts that it is.
    return values + fan_in**-0.5 if name == "head.conv3.weight" and relu else values


def save(upstream: Any, folder: Path) -> Path:
    """Write the model as the Hub has it: config.json and safetensors under the old names."""
    upstream.save_pretrained(folder)
    return folder


def pixels(*shape: int) -> np.ndarray:
    """Normalized pixels, NHWC, smooth enough to look like a photo to the network."""
    B, H, W = shape
    coarse = seeded(f"pixels{shape}", (B, 3, H // 14 + 2, W // 14 + 2))
    smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse), size=(H, W), mode="bicubic")
    return np.ascontiguousarray((smooth.numpy() + seeded("noise", (B, 3, H, W), 0.1)).transpose(0, 2, 3, 1))


def run(upstream: Any, pixel_values: np.ndarray, *, zeros: float = 0.1) -> np.ndarray:
    """Upstream's depth, (B, H, W), for NHWC pixels; at most a share of ``zeros`` may be zero (sky, in a photo)."""
    with torch.no_grad():
        depth = upstream(nchw(pixel_values)).predicted_depth.numpy()
    assert depth.std() > 0.05 * np.abs(depth).mean(), "a reference that hardly varies proves nothing"
    assert (depth == 0).mean() <= zeros, "a dead reference proves nothing"
    return depth


def nchw(x: np.ndarray) -> Any:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def with_authors_positions(upstream: Any) -> Any:
    """Give the model the authors' rule for its position table: the factor (n + 0.1) / 37 instead of the size.

    Stated from ``interpolate_pos_encoding`` of Depth-Anything-V2's ``dinov2.py``.
    """

    def interpolate(self: Any, embeddings: Any, height: int, width: int) -> Any:
        table = self.position_embeddings
        gh, gw = height // 14, width // 14
        if (gh, gw) == (37, 37):
            return table
        grid = table[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
        factor = ((gh + 0.1) / 37, (gw + 0.1) / 37)
        grid = torch.nn.functional.interpolate(grid, scale_factor=factor, mode="bicubic", antialias=False)
        assert grid.shape[2:] == (gh, gw)
        return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).reshape(1, gh * gw, -1)], dim=1)

    embeddings = upstream.backbone.embeddings
    embeddings.interpolate_pos_encoding = types.MethodType(interpolate, embeddings)
    return upstream


def without_authors_positions(upstream: Any) -> Any:
    """Undo ``with_authors_positions``."""
    del upstream.backbone.embeddings.interpolate_pos_encoding
    return upstream


def tensors(state: dict[str, Any]) -> dict[str, mx.array]:
    """A torch state as MLX arrays, names and layout unchanged; meta tensors become lazy zeros."""
    return {
        name: mx.zeros(tuple(value.shape)) if value.is_meta else mx.array(value.numpy())
        for name, value in state.items()
    }


def hub_names(state: Mapping[str, T]) -> dict[str, T]:
    """The names of Hub files, for a state under transformers' own: they differ in the attention and in SwiGLU."""
    old = {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
    }
    return {_replaced(name, old): value for name, value in state.items()}


_AUTHORS_BACKBONE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.down_proj": "mlp.w3",
    "encoder.layer": "blocks",
}
_AUTHORS_HEAD = {
    ".projection": ".out_conv",
    "residual_layer": "resConfUnit",
    "convolution": "conv",
    "head.conv1": "depth_head.scratch.output_conv1",
    "head.conv2": "depth_head.scratch.output_conv2.0",
    "head.conv3": "depth_head.scratch.output_conv2.2",
    **{f"neck.convs.{i}": f"depth_head.scratch.layer{i + 1}_rn" for i in range(4)},
    **{f"neck.fusion_stage.layers.{i}": f"depth_head.scratch.refinenet{4 - i}" for i in range(4)},
}
_FUSED = {
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "mlp.w12": ("mlp.gate_proj", "mlp.up_proj"),
}


def authors_backbone(state: Mapping[str, Any]) -> dict[str, Any]:
    """A transformers backbone (numpy or torch) under the names of the authors' ``dinov2.py``."""
    names: dict[str, Any] = {}
    for name, value in state.items():
        joined = next((key for key, parts in _FUSED.items() if parts[0] in name), None)
        if joined is not None:
            parts = [state[name.replace(_FUSED[joined][0], part)] for part in _FUSED[joined]]
            names[_replaced(name, {**_AUTHORS_BACKBONE, _FUSED[joined][0]: joined})] = _concatenated(parts)
        elif not any(part in name for parts in _FUSED.values() for part in parts):
            names[_replaced(name, _AUTHORS_BACKBONE)] = value
    return names


def authors_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """A whole transformers model under the names of the authors' files, stated from their ``dpt.py``."""
    prefix = "backbone."
    backbone = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    names = {f"pretrained.{name}": value for name, value in authors_backbone(backbone).items()}
    for name, value in state.items():
        if name.startswith("neck.reassemble_stage"):
            _, _, _, level, part, kind = name.split(".")
            names[f"depth_head.{'projects' if part == 'projection' else 'resize_layers'}.{level}.{kind}"] = value
        elif not name.startswith(prefix):
            names[_replaced(name, _AUTHORS_HEAD)] = value
    return names


def _replaced(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def _concatenated(parts: list[Any]) -> Any:
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else torch.cat(parts)


def fill_from_ours(upstream: Any, network: Any) -> Any:
    """Give an upstream model the weights of a network of ours; what we do not hold (unused upstream) becomes zero."""
    from mlx.utils import tree_flatten

    names = list(upstream.state_dict())
    table = apply(FAMILY.dialects["transformers"].rules, {name: mx.array([i]) for i, name in enumerate(names)})
    ours = {names[int(table[name][0])]: np.array(array) for name, array in tree_flatten(network.parameters())}
    with torch.no_grad():
        for name, parameter in upstream.named_parameters():
            if name not in ours:
                parameter.zero_()
                continue
            value = ours[name]
            if value.ndim == 4:
                transposed = "reassemble_stage.layers.0.resize" in name or "reassemble_stage.layers.1.resize" in name
                value = value.transpose((3, 0, 1, 2) if transposed else (0, 3, 1, 2))
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return upstream
