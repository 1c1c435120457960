"""AnyDepth's checkpoints with name-seeded weights, under each way of naming their tensors."""

import functools
import json
from pathlib import Path
from typing import Any

import authors_sdt
import numpy as np
import reference_dinov3
from safetensors.numpy import save_file
from support import seeded

GOLDEN = Path(__file__).parent / "goldens" / "anydepth.npz"
BACKBONES: dict[str, tuple[str | None, dict[str, int]]] = {
    "tiny": (None, {"num_hidden_layers": 4}),
    "small": ("small", {}),
}
FEATURES = {"tiny": 32, "small": 256}
PIXELS = {"tiny": (2, 48, 80), "small": (1, 256, 320)}

State = dict[str, np.ndarray]


def backbone(size: str) -> Any:
    """transformers' network."""
    name, options = BACKBONES[size]
    return reference_dinov3.model(name, **options)


def backbone_config(size: str) -> dict[str, Any]:
    """Its config.json."""
    return {key: value for key, value in backbone(size).config.to_dict().items() if value is not None}


@functools.cache
def backbone_state(size: str) -> State:
    """The backbone under the names of Hub files."""
    state = {name: tensor.numpy() for name, tensor in backbone(size).state_dict().items()}
    return reference_dinov3.hub_names(state)


def meta_state(size: str) -> State:
    """The same backbone as Meta names it."""
    upstream = backbone(size)
    pairs = upstream.config.hidden_size // upstream.config.num_attention_heads // 4
    periods = (100 ** (np.arange(pairs) / pairs)).astype(np.float32)
    state = {name: tensor.numpy() for name, tensor in upstream.state_dict().items()}
    return reference_dinov3.authors_names(state, periods)


def head_state(size: str) -> State:
    """The decoder under the authors' names."""
    shapes = json.loads(str(np.load(GOLDEN)["facts"]))["shapes"][size]
    return authors_sdt.state({name: tuple(shape) for name, shape in shapes.items()})


def authors_state(size: str) -> State:
    """A whole checkpoint of the authors."""
    return {
        **{f"0.encoder.backbone.{name}": x for name, x in meta_state(size).items()},
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
    coarse = seeded(f"anydepth pixels {size}", (B, H // 16, W // 16, 3)).repeat(16, 1).repeat(16, 2)
    return coarse + seeded("anydepth noise", (B, H, W, 3), 0.3)
