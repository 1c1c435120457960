"""The upstream DINOv3 (transformers) with name-seeded weights, and the names of the authors' files."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import reference
import torch
import transformers

_COMMON = {"num_register_tokens": 4, "rope_theta": 100.0, "layer_norm_eps": 1e-5}
_GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
_WIDTHS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")

# What transformers' conversion script says of the published checkpoints.
PUBLISHED: dict[str, dict[str, Any]] = {
    "small": dict(zip(_WIDTHS, (384, 12, 6, 1536), strict=True)),
    "small-plus": {**dict(zip(_WIDTHS, (384, 12, 6, 1536), strict=True)), **_GATED},
    "base": dict(zip(_WIDTHS, (768, 12, 12, 3072), strict=True)),
    "large": dict(zip(_WIDTHS, (1024, 24, 16, 4096), strict=True)),
    "huge-plus": {**dict(zip(_WIDTHS, (1280, 32, 20, 5120), strict=True)), **_GATED},
    "7b": {
        **dict(zip(_WIDTHS, (4096, 40, 32, 8192), strict=True)),
        **_GATED,
        "query_bias": False,
        "value_bias": False,
    },
}
TINY = dict(zip(_WIDTHS, (32, 3, 2, 48), strict=True))


def config(size: str | None = None, **options: Any) -> Any:
    """transformers' config of a published size, or of a tiny network."""
    return transformers.DINOv3ViTConfig(**{**_COMMON, **(TINY if size is None else PUBLISHED[size]), **options})


def meta_model(size: str | None, **options: Any) -> Any:
    """The module tree without memory, for names and shapes at full size."""
    with torch.device("meta"):
        return transformers.DINOv3ViTModel(config(size, **options))


@functools.lru_cache(maxsize=8)
def model(size: str | None = None, **options: Any) -> Any:
    """The whole upstream model in float32, every parameter filled from its name."""
    upstream = meta_model(size, **options).to_empty(device="cpu")
    upstream.rope_embeddings = type(upstream.rope_embeddings)(upstream.config)  # it has a table that is no parameter
    return fill(upstream)


def fill(upstream: Any) -> Any:
    """Fill every parameter from its name."""
    with torch.no_grad():
        for name, parameter in upstream.named_parameters():
            if parameter.numel():  # there may be 0 registers
                parameter.copy_(torch.from_numpy(reference.weight(name, tuple(parameter.shape))))
    return upstream.eval()


def layers(upstream: Any, pixel_values: np.ndarray) -> list[Any]:
    """Tokens after each layer, ``(B, 1 + registers + gh * gw, C)``, before the last norm, for NHWC pixels."""
    with torch.no_grad():
        return list(upstream(reference.nchw(pixel_values), output_hidden_states=True).hidden_states[1:])


def hub_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """The names of files, for a state under the names that transformers has in memory."""
    return {name.removeprefix("model."): value for name, value in state.items()}


_AUTHORS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.register_tokens": "storage_tokens",
    "embeddings.patch_embeddings": "patch_embed.proj",
    "model.layer": "blocks",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
_PLAIN = {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}
_GATED_NAMES = {"mlp.gate_proj": "mlp.w1", "mlp.up_proj": "mlp.w2", "mlp.down_proj": "mlp.w3"}
_PARTS = ("q_proj", "k_proj", "v_proj")


def authors_names(state: Mapping[str, Any], periods: np.ndarray, *, mask: tuple[float, ...] = (1, 0, 1)) -> dict:
    """A transformers state (numpy) under the names of the authors' ``vision_transformer.py``.

    Args:
        state: Of a ``DINOv3ViTModel``.
        periods: Of the rotations, which the authors keep in their files.
        mask: What multiplies the biases of queries, keys and values; in the published files it is 0 for all three.
    """
    gated = any("gate_proj" in name for name in state)
    table = {**_AUTHORS, **(_GATED_NAMES if gated else _PLAIN)}
    names: dict[str, Any] = {"rope_embed.periods": periods}
    for name, value in state.items():
        if not any(part in name for part in _PARTS):
            for old, new in table.items():
                name = name.replace(old, new)
            names[name] = value[0] if name == "mask_token" else value
        elif "q_proj" in name:
            parts = [state.get(name.replace("q_proj", part)) for part in _PARTS]
            fused = name.replace("model.layer", "blocks").replace("attention.q_proj", "attn.qkv")
            if name.endswith("bias"):  # what is masked may be anything
                parts = [np.full_like(value, 7) if part is None else part for part in parts]
                names[f"{fused}_mask"] = np.repeat(np.float32(mask), len(value))
            names[fused] = np.concatenate(parts)
    return names
