"""Small Depth Anything models whose weights are filled from our own parameter names: no files, no torch."""

import functools
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from support import seeded

from mlx_depth.backbones.any_view import AnyViewConfig
from mlx_depth.backbones.dinov2 import DINOv2Config
from mlx_depth.backbones.dinov3 import DINOv3Config
from mlx_depth.checkpoints.checkpoint import Checkpoint
from mlx_depth.heads.conv_stack import ConvStackConfig
from mlx_depth.heads.dpt import DPTConfig
from mlx_depth.heads.dual_dpt import DualDPTConfig
from mlx_depth.heads.sdt import SDTConfig
from mlx_depth.models.anydepth.family import PROCESSOR as ANYDEPTH
from mlx_depth.models.anydepth.network import AnyDepthConfig
from mlx_depth.models.depth_anything.network import DepthAnythingConfig
from mlx_depth.models.depth_anything_3.network import NORM_EPS, DepthAnything3Config, DepthAnything3MonoConfig
from mlx_depth.models.dpt.family import METRIC_PROCESSOR
from mlx_depth.models.dpt.network import DPTMetricConfig, dpt_dinov2_config
from mlx_depth.models.families import FAMILIES
from mlx_depth.models.moge.family import PROCESSOR as MOGE
from mlx_depth.models.moge.network import MoGeConfig
from mlx_depth.processor import Processor
from mlx_depth.registry import DEPTH_ANYTHING_3, MODELS, ModelSpec

SIZE = (70, 98)  # 5 × 7 patches
TINY = DepthAnythingConfig(
    DINOv2Config(embed_dim=64, num_layers=4, num_heads=2, out_layers=(0, 1, 2, 3)),
    DPTConfig(in_dim=64, features=16, out_channels=(8, 16, 24, 32), hidden_channels=8),
)


SKY_BIAS = -1.5  # part of the picture has no sky


@functools.cache
def tiny(*, max_depth: float | None = None, **backbone: Any) -> Checkpoint:
    """A four-layer model; ``backbone`` replaces fields of its backbone's config."""
    head = TINY.head if max_depth is None else replace(TINY.head, activation="sigmoid", max_depth=max_depth)
    config = DepthAnythingConfig(replace(TINY.backbone, **backbone), head)
    return filled(ModelSpec("tiny-depth", "depth_anything", config, Processor(), license="Apache-2.0"))


@functools.cache
def tiny_any_view(**backbone: Any) -> Checkpoint:
    """Depth Anything 3 for any number of views: four layers, of which the last three look across, within and across."""
    sizes: dict[str, Any] = {"embed_dim": 64, "num_layers": 4, "num_heads": 2, "out_layers": (0, 1, 2, 3)}
    config = DepthAnything3Config(
        AnyViewConfig(**{**sizes, "alt_start": 1, "norm_eps": NORM_EPS, **backbone}),
        DualDPTConfig(in_dim=128, features=16, out_channels=(8, 16, 24, 32), hidden_channels=8),
        gaussians=False,
    )
    return filled(ModelSpec("tiny-views", "depth_anything_3", config, DEPTH_ANYTHING_3, license="Apache-2.0"))


@functools.cache
def tiny_mono(*, metric: bool = False) -> Checkpoint:
    """Depth Anything 3 for single views, of four layers."""
    config = DepthAnything3MonoConfig(
        replace(TINY.backbone, norm_eps=NORM_EPS), replace(TINY.head, activation="exp"), metric=metric
    )
    mono = filled(ModelSpec("tiny-mono", "depth_anything_3_mono", config, DEPTH_ANYTHING_3, license="Apache-2.0"))
    return changed(mono, head__sky_conv3__bias=np.full(1, SKY_BIAS, np.float32))


def tiny_anydepth(**backbone: Any) -> Checkpoint:
    """AnyDepth of four layers; ``backbone`` replaces fields of its backbone's config."""
    sizes: dict[str, Any] = {"embed_dim": 64, "num_layers": 4, "num_heads": 2, "hidden_dim": 128}
    config = AnyDepthConfig(
        DINOv3Config(**{**sizes, "out_layers": (0, 1, 2, 3), "normalized": False, **backbone}),
        SDTConfig(in_dim=64, features=16, hidden_channels=8),
    )
    return filled(ModelSpec("tiny-anydepth", "anydepth", config, ANYDEPTH, license="Apache-2.0"))


def tiny_dpt(*, head: dict[str, Any] | None = None, **backbone: Any) -> Checkpoint:
    """DPT on DINOv2 of four layers; ``head`` and ``backbone`` replace fields of their configs."""
    published = dpt_dinov2_config("small").head
    sizes = {"in_dim": 64, "features": 16, "out_channels": (8, 16, 24, 32), "hidden_channels": 8}
    config = DPTMetricConfig(
        replace(TINY.backbone, **{"position_rule": "size", "raw_layers": TINY.backbone.out_layers, **backbone}),
        replace(published, **{**sizes, **(head or {})}),
    )
    processor = replace(METRIC_PROCESSOR, multiple_of=config.backbone.patch_size)
    return filled(ModelSpec("tiny-dpt", "dpt_dinov2", config, processor, license="Apache-2.0"))


def tiny_moge(*, normals: bool = True) -> Checkpoint:
    """MoGe-2 of three layers, two of them tapped, whose mask leaves part of the picture out."""
    channels = (24, 16, 16, 8, 8)
    config = MoGeConfig(
        replace(TINY.backbone, num_layers=3, out_layers=(0, 2)),
        neck=ConvStackConfig(channels, (0, 2, 1, 1, 0)),
        heads=ConvStackConfig(channels, (0, 1, 1, 1, 0)),
        normals=normals,
    )
    return filled(ModelSpec("tiny-moge", "moge", config, MOGE, license="MIT"))


@functools.lru_cache(maxsize=1)
def full_size(name: str) -> Checkpoint:
    """A published model with weights filled from names."""
    return filled(MODELS[name])


def filled(spec: ModelSpec) -> Checkpoint:
    parameters = tree_flatten(FAMILIES[spec.family].network(spec.config).parameters())
    weights = {name: mx.array(weight(name, array.shape)) for name, array in parameters}
    if spec.family.startswith("depth_anything_3"):  # logarithms of depth, which are small
        weights["head.conv3.weight"] *= 0.25
    if spec.family == "anydepth":  # maps whose pixels differ
        weights |= {name: 4 * weights[name] for name in weights if "projection" in name}
    return Checkpoint(spec, "mlx", weights)


def changed(checkpoint: Checkpoint, **tensors: Any) -> Checkpoint:
    """The checkpoint with some tensors replaced; dots of names are written as double underscores."""
    names = {key.replace("__", "."): mx.array(value) for key, value in tensors.items()}
    assert names.keys() <= checkpoint.weights.keys()
    return replace(checkpoint, weights={**checkpoint.weights, **names})


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Products keep their scale, gains stay near one, embeddings are small, so that LayerNorm's epsilon counts."""
    if name.endswith("rope_periods"):
        return (100 ** (np.arange(shape[0]) / shape[0])).astype(np.float32)
    if name.endswith("init_pos"):  # as DySample's: of four pixels, a quarter to each side; groups, then pixels
        return np.repeat([[-1, 1, -1, 1], [-1, -1, 1, 1]], shape[1] // 8, axis=0).reshape(shape).astype(np.float32) / 4
    if name.endswith("gamma"):
        return 0.3 + seeded(name, shape, 0.05)
    if "patch_embed" in name or name.endswith(("_token", "_tokens", "pos_embed")):
        return seeded(name, shape, 0.03 / np.sqrt(np.prod(shape[1:]) if "weight" in name else 1))
    if len(shape) == 1:
        return seeded(name, shape, 0.1) + ("norm" in name and name.endswith("weight"))
    transposed = any(f"reassemble.{level}.resample" in name for level in (0, 1))
    fan_in = shape[-1] if transposed else int(np.prod(shape[1:]))
    values = seeded(name, shape, fan_in**-0.5)
    # A mean above zero in the last convolution keeps the ReLU output alive; the tests assert that it is.
    return values + fan_in**-0.5 if name.endswith(("head.conv3.weight", "head.sky_conv3.weight")) else values
