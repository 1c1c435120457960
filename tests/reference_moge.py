"""The upstream MoGe-2 with name-seeded weights: at its published sizes, and tiny with equal structure."""

import functools
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import require, seeded

from mlx_depth.backbones.dinov2 import DINOv2Config
from mlx_depth.heads.conv_stack import ConvStackConfig
from mlx_depth.models.moge.network import MoGeConfig
from mlx_depth.processor import IMAGENET_MEAN, IMAGENET_STD

torch = require("reference", "torch")

TINY = MoGeConfig(
    DINOv2Config(embed_dim=128, num_layers=4, num_heads=2, out_layers=(1, 3)),
    neck=ConvStackConfig((48, 32, 24, 16, 8), (0, 2, 1, 1, 0)),
    heads=ConvStackConfig((48, 32, 24, 16, 8), (0, 1, 1, 1, 0)),
    normals=True,
)
BACKBONES = {384: "dinov2_vits14", 768: "dinov2_vitb14", 1024: "dinov2_vitl14"}
OUTPUTS = {"points": "points", "mask": "mask", "normals": "normal", "scale": "metric_scale"}
# Random weights would give a mask of nothing, and points that fit no camera: so the mask has a bias, and x and y are
# mostly where the pixels are, which the neck is told at each level.
_MASK_BIAS = {"mask_head.output_blocks.4.bias": 0.3}
_WIRES = {
    "neck.input_blocks.4.weight": 4.0,
    "points_head.input_blocks.4.weight": 1.0,
    "points_head.output_blocks.4.weight": 0.25,
}


def import_reference(module: str = "model.v2") -> Any:
    """A module of ``moge``; its package, with the numbers that it takes from ``utils3d``."""
    require("reference", "utils3d")
    return require("reference", f"moge.{module}")


def model_config(config: MoGeConfig) -> dict[str, Any]:
    """The arguments of upstream's class, as its files hold them."""

    def stack(stack: ConvStackConfig, dim_in: list[int], dim_out: list[int | None] | None) -> dict[str, Any]:
        return {
            "dim_in": dim_in,
            "dim_out": dim_out,
            "dim_res_blocks": list(stack.channels),
            "num_res_blocks": list(stack.num_blocks),
            "res_block_in_norm": "none",
            "res_block_hidden_norm": "none",
            "resamplers": ["conv_transpose"] * 3 + ["bilinear"],
        }

    dims, channels = config.backbone.embed_dim, list(config.neck.channels)
    heads = {"points_head": 3, "mask_head": 1, **({"normal_head": 3} if config.normals else {})}
    return {
        "encoder": {
            "backbone": BACKBONES.get(dims, "tiny"),
            "intermediate_layers": list(config.backbone.out_layers),
            "dim_out": channels[0],
        },
        "neck": stack(config.neck, [channels[0] + 2, 2, 2, 2, 2], None),
        **{name: stack(config.heads, channels, [None] * 4 + [values]) for name, values in heads.items()},
        "scale_head": {"dims": [dims, dims, dims, 1]},
        "remap_output": "exp",
        "num_tokens_range": [1200, 3600],
    }


def build(config: MoGeConfig) -> Any:
    """Upstream's class without memory; a backbone of another size is put where it looks for DINOv2's by name."""
    v2 = import_reference()
    backbones = importlib.import_module("moge.model.dinov2.hub.backbones")
    backbones.tiny = functools.partial(_backbone, config.backbone)
    on_cpu = functools.partial(torch.linspace, device="cpu")  # upstream reads numbers off one while it builds
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "linspace", on_cpu)
        return v2.MoGeModel(**model_config(config)).eval()


def _backbone(config: DINOv2Config, *, pretrained: bool) -> Any:
    assert not pretrained
    transformer = importlib.import_module("moge.model.dinov2.models.vision_transformer")
    return transformer.DinoVisionTransformer(
        img_size=config.table_size * config.patch_size,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.num_layers,
        num_heads=config.num_heads,
        init_values=1.0,
        block_chunks=0,
        interpolate_offset=0.1,
    )


@functools.lru_cache(maxsize=2)
def model(config: MoGeConfig = TINY) -> Any:
    """The whole upstream network in float32, every parameter filled from its name."""
    network = build(config)
    values = {name: weight(name, tuple(parameter.shape)) for name, parameter in network.named_parameters()}
    for name, pixel in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)):
        values[f"encoder.{name}"] = np.array(pixel, np.float32).reshape(1, 3, 1, 1)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()}, assign=True)
    return network


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of its name: gains around 1, the rest by the number of values that it sums."""
    if name in _MASK_BIAS:
        return np.full(shape, _MASK_BIAS[name], np.float32)
    if name in _WIRES:
        values = seeded(name, shape, 0.1)
        values[[0, 1], [0, 1]] += _WIRES[name]
        return values
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "gamma")):
        return 1 + seeded(name, shape, 0.1)
    if len(shape) < 2:
        return seeded(name, shape, 0.02)
    fan_in = int(np.prod(shape[:1] + shape[2:] if ".resamplers." in name and ".0." in name else shape[1:]))
    return seeded(name, shape, min(1.0, fan_in**-0.5))


def save(config: MoGeConfig, folder: Path, *, facts: dict[str, Any] | None = None) -> Path:
    """The authors' file, ``model.pt``, in a folder; ``facts`` replaces what it says of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = model_config(config) if facts is None else facts
    torch.save({"model_config": facts, "model": model(config).state_dict()}, folder / "model.pt")
    return folder


def image(height: int, width: int) -> np.ndarray:
    """A photo, RGB uint8, of soft shapes."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(9 * rows + 7 * columns), np.cos(11 * rows - 4 * columns), np.sin(5 * rows * columns + 3)]
    noise = seeded(f"{height}x{width}", (height, width, 3), 0.2)
    return np.clip(128 + 80 * (np.stack(waves, axis=-1) + noise), 0, 255).astype(np.uint8)


def tensor(pixels: np.ndarray) -> Any:
    """As upstream reads a photo: (H, W, 3) uint8 → (3, H, W), 0..1."""
    return torch.tensor(pixels / 255, dtype=torch.float32).permute(2, 0, 1)


def infer(network: Any, pixels: np.ndarray, **options: Any) -> dict[str, np.ndarray]:
    """Upstream's ``infer`` in float32 on a photo."""
    with torch.no_grad():
        found = network.infer(tensor(pixels), use_fp16=False, **options)
    return {name: value.numpy() for name, value in found.items()}
