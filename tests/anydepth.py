"""AnyDepth's checkpoints with name-seeded weights, under each way of naming their tensors."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import reference
import sdt_weights
import torch
import transformers
from safetensors.numpy import save_file
from support import seeded

GOLDEN = Path(__file__).parent / "goldens" / "anydepth.npz"
SIZES = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64},
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
}
FEATURES = {"tiny": 32, "small": 256}
PIXELS = {"tiny": (2, 48, 80), "small": (1, 256, 320)}

State = dict[str, np.ndarray]


def backbone_config(size: str) -> Any:
    """transformers' config, with four registers as published."""
    return transformers.DINOv3ViTConfig(num_register_tokens=4, **SIZES[size])


@functools.cache
def backbone_state(size: str) -> State:
    """The backbone under the names of Hub files."""
    with torch.device("meta"):
        network = transformers.DINOv3ViTModel(backbone_config(size))
    shapes = {name.removeprefix("model."): tuple(x.shape) for name, x in network.state_dict().items()}
    return {name: reference.weight(name, shape) for name, shape in shapes.items()}


def meta_names(state: State) -> State:
    """The same backbone as Meta names it: queries, keys and values are one, and a mask takes the keys' bias away."""
    renamed: State = {}
    for name, array in state.items():
        for theirs, metas in (
            ("embeddings.patch_embeddings.", "patch_embed.proj."),
            ("embeddings.register_tokens", "storage_tokens"),
            ("embeddings.", ""),
            ("layer.", "blocks."),
            ("layer_scale1.lambda1", "ls1.gamma"),
            ("layer_scale2.lambda1", "ls2.gamma"),
            ("mlp.up_proj", "mlp.fc1"),
            ("mlp.down_proj", "mlp.fc2"),
            ("attention.o_proj", "attn.proj"),
        ):
            name = name.replace(theirs, metas)
        renamed[name] = array
    layers = sum(name.endswith("attention.q_proj.weight") for name in state)
    for block in (f"blocks.{i}" for i in range(layers)):
        query, key, value = (renamed.pop(f"{block}.attention.{part}_proj.weight") for part in "qkv")
        renamed[f"{block}.attn.qkv.weight"] = np.concatenate([query, key, value])
        biases = [renamed.pop(f"{block}.attention.{part}_proj.bias") for part in "qv"]
        ones = np.ones_like(biases[0])
        renamed[f"{block}.attn.qkv.bias"] = np.concatenate([biases[0], 9 * ones, biases[1]])
        renamed[f"{block}.attn.qkv.bias_mask"] = np.concatenate([ones, 0 * ones, ones])
    pairs = query.shape[1] // 4 // (2 if query.shape[1] == 32 else 6)
    renamed["rope_embed.periods"] = (100 ** (np.arange(pairs) / pairs)).astype(np.float32)
    return renamed


def head_state(size: str) -> State:
    """The decoder under the authors' names."""
    shapes = json.loads(str(np.load(GOLDEN)["facts"]))["shapes"][size]
    return sdt_weights.state(shapes)


def authors_state(size: str) -> State:
    """A whole checkpoint of the authors."""
    return {
        **{f"0.encoder.backbone.{name}": x for name, x in meta_names(backbone_state(size)).items()},
        **{f"0.decoder.{name}": x for name, x in head_state(size).items()},
    }


def save(state: State, folder: Path, config: dict[str, Any] | None = None) -> Path:
    """A folder with ``model.safetensors`` and, where given, a config.json."""
    folder.mkdir(parents=True)
    save_file({name: np.ascontiguousarray(x) for name, x in state.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def pixels(size: str) -> np.ndarray:
    """Normalized pixels, NHWC."""
    B, H, W = PIXELS[size]
    return seeded(f"anydepth pixels {size}", (B, H // 16, W // 16, 3)).repeat(16, 1).repeat(16, 2) + seeded(
        "anydepth noise", (B, H, W, 3), 0.3
    )
