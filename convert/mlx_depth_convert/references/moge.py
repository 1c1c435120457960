"""MoGe-2 in its authors' package, as PyPI has it: dlr-moge, with dlr-utils3d."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlx_depth.backbones.dinov2 import DINOv2Config
from mlx_depth.heads.conv_stack import LEVELS, ConvStackConfig
from mlx_depth.models.moge.network import PLANE, MoGeConfig
from mlx_depth.processor import IMAGENET_MEAN, IMAGENET_STD
from mlx_depth_convert.references.base import Outputs, Reference

PACKAGE = "moge"
_VERSIONS = "dlr-moge==2.0.0 dlr-utils3d==1.3"
_FILE = "model.pt"
_HEADS = {"points": "points_head", "mask": "mask_head", "normals": "normal_head"}
_VALUES = {"points": 3, "mask": 1, "normals": 3}


def _module(name: str) -> Any:
    return importlib.import_module(f"{PACKAGE}.model.{name}")


def _stack(config: ConvStackConfig, dim_in: list[int], values: int | None) -> Any:
    return _module("modules").ConvStack(
        dim_in=dim_in,
        dim_res_blocks=list(config.channels),
        dim_out=[None] * (LEVELS - 1) + [values],
        resamplers=["conv_transpose"] * (LEVELS - 2) + ["bilinear"],
        num_res_blocks=list(config.num_blocks),
        res_block_in_norm="none",
        res_block_hidden_norm="none",
    )


def _backbone(config: DINOv2Config) -> Any:
    return _module("dinov2.models.vision_transformer").DinoVisionTransformer(
        img_size=config.table_size * config.patch_size,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.num_layers,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        init_values=1.0,
        block_chunks=0,
        interpolate_offset=0.1,
        drop_path_uniform=True,  # no rate for any block, and no numbers to read off a tensor without values
    )


def _bare(kind: Any) -> Any:
    """A module of a class whose own constructor knows DINOv2's sizes by name alone."""
    import torch

    network = kind.__new__(kind)
    torch.nn.Module.__init__(network)
    return network


def _encoder(config: MoGeConfig) -> Any:
    import torch

    dims, channels = config.backbone.embed_dim, config.neck.channels[0]
    encoder = _bare(_module("modules").DINOv2Encoder)
    encoder.backbone = _backbone(config.backbone)
    encoder.intermediate_layers = list(config.backbone.out_layers)
    encoder.output_projections = torch.nn.ModuleList(
        torch.nn.Conv2d(dims, channels, kernel_size=1) for _ in config.backbone.out_layers
    )
    return encoder


def _build(config: MoGeConfig) -> Any:
    import torch

    dims, channels = config.backbone.embed_dim, list(config.neck.channels)
    with torch.device("meta"):
        network = _bare(_module("v2").MoGeModel)
        network.remap_output = "exp"
        network.encoder = _encoder(config)
        network.neck = _stack(config.neck, [channels[0] + PLANE] + [PLANE] * (LEVELS - 1), None)
        for name, theirs in _HEADS.items():
            if name != "normals" or config.normals:
                setattr(network, theirs, _stack(config.heads, channels, _VALUES[name]))
        network.scale_head = _module("modules").MLP([dims, dims, dims, 1])
    for name, values in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)):
        network.encoder.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
    return network


def _run(network: Any, pixel_values: Any, *, everything: bool) -> Outputs:
    """With the size of the pixel values as that of the photo."""
    _, H, W, _ = pixel_values.shape
    patch = network.encoder.backbone.patch_size
    image = pixel_values.permute(0, 3, 1, 2) * network.encoder.image_std + network.encoder.image_mean
    raw: dict[str, Any] = {}
    handles = [_keep(getattr(network, theirs), f"raw {name}", raw) for name, theirs in _present(network).items()]
    try:
        with exact_resizes():
            found = network(image, num_tokens=(H // patch) * (W // patch))
    finally:
        for handle in handles:
            handle.remove()
    points = found["points"] * found["metric_scale"][:, None, None, None]
    normals = {"normals": found["normal"]} if "normal" in found else {}
    facts = {"points": points, "depth": points[..., 2], "mask": found["mask"], "scale": found["metric_scale"]}
    return {**facts, **normals, **raw}


@contextmanager
def exact_resizes() -> Iterator[None]:
    """Let upstream resize its maps in float64 inside the block.

    In float32 torch rounds the coordinates, too: 1e-4 on maps of random weights, and more where normals become 1 long.
    """
    v2 = _module("v2")
    plain = v2.F

    def interpolate(maps: Any, size: tuple[int, int], **options: Any) -> Any:
        return plain.interpolate(maps.double(), size, **options).to(maps.dtype)

    v2.F = SimpleNamespace(interpolate=interpolate, normalize=plain.normalize)
    try:
        yield
    finally:
        v2.F = plain


def _present(network: Any) -> Mapping[str, str]:
    return {name: theirs for name, theirs in _HEADS.items() if hasattr(network, theirs)}


def _keep(head: Any, name: str, kept: dict[str, Any]) -> Any:
    """Remember what a head reads out of its finest level."""

    def keep(_: Any, __: Any, outputs: Any) -> None:
        kept[name] = outputs[-1].permute(0, 2, 3, 1)

    return head.register_forward_hook(keep)


def _save(network: Any, folder: Path) -> None:
    import torch

    torch.save({"model_config": {}, "model": network.state_dict()}, folder / _FILE)


def _load(config: MoGeConfig, folder: Path, dtype: Any) -> Any:
    import torch

    network = _build(config)
    state = torch.load(folder / _FILE, map_location="cpu", weights_only=True)["model"]
    network.load_state_dict(state, strict=False, assign=True)
    return network.to(dtype).eval()  # an error, if a parameter was not there


REFERENCE = Reference(
    name=PACKAGE,
    install=f"pip install 'mlx-depth[reference]' && pip install --no-deps {_VERSIONS}",
    dialect="original",
    rules="original",
    build=_build,
    run=_run,
    save=_save,
    load=_load,
    twins={
        "patch embedding": "encoder.backbone.patch_embed.proj",
        "layer {i}": "encoder.backbone.blocks.{i}",
        "neck {i}": "neck.res_blocks.{i}",
        **{f"{name} head": f"{theirs}.output_blocks.{LEVELS - 1}" for name, theirs in _HEADS.items()},
        "scale head": "scale_head.4",
    },
)
