"""MoGe-2 (Wang et al., 2025): DINOv2, a pyramid of convolutions, and heads for points, mask, normals and scale.

Upstream: ``moge/model/v2.py`` and ``moge/model/modules.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_depth.backbones.dinov2 import DINOv2, DINOv2Config
from mlx_depth.errors import CheckpointError, OptionError
from mlx_depth.heads.conv_stack import LEVELS, ConvStack, ConvStackConfig, ConvStackHead, largest_map
from mlx_depth.models.base import DepthOutputs, NetworkConfig, Size, unit_vectors
from mlx_depth.models.vit_network import ViTNetwork
from mlx_depth.nn.activations import relu
from mlx_depth.nn.conv import Conv2d
from mlx_depth.nn.resize import resize
from mlx_depth.result import DepthKind

PLANE = 2  # coordinates of a pixel in the view plane


@dataclass(frozen=True)
class MoGeConfig(NetworkConfig):
    """One MoGe-2 network."""

    backbone: DINOv2Config
    neck: ConvStackConfig
    heads: ConvStackConfig  # that of each head
    normals: bool

    def __post_init__(self) -> None:
        if self.heads.channels != self.neck.channels:
            raise CheckpointError(
                f"the neck's channels are {self.neck.channels}, the heads' {self.heads.channels}: "
                "take the config.json of the original checkpoint."
            )

    @property
    def depth_kind(self) -> DepthKind:
        """Metric."""
        return DepthKind.METRIC


class RawMaps(NamedTuple):
    """What the heads read out at 16 × the patch grid, before it has the size of a photo."""

    points: mx.array  # (B, h, w, 3): x / z, y / z and log z
    mask: mx.array  # (B, h, w, 1): log odds
    normals: mx.array | None  # (B, h, w, 3), of any length


class Maps(NamedTuple):
    """The same as it is meant."""

    points: mx.array  # (B, H, W, 3), but for the shift of z and the factor to metres
    mask: mx.array  # (B, H, W), 0..1
    normals: mx.array | None  # (B, H, W, 3), unit vectors


class MoGe(ViTNetwork):
    """Normalized images to points at the same size."""

    conditions = ("aspect",)

    def __init__(self, config: MoGeConfig):
        super().__init__()
        self._config = config
        dims, channels = config.backbone.embed_dim, config.neck.channels
        self.backbone = DINOv2(config.backbone)
        self.projections = [Conv2d(dims, channels[0], kernel_size=1) for _ in config.backbone.out_layers]
        self.neck = ConvStack((channels[0] + PLANE, *(PLANE,) * (LEVELS - 1)), config.neck)
        self.points_head = ConvStackHead(channels, config.heads, 3)
        self.mask_head = ConvStackHead(channels, config.heads, 1)
        if config.normals:
            self.normals_head = ConvStackHead(channels, config.heads, 3)
        self.scale_head = ScaleHead(dims)

    def __call__(self, pixel_values: mx.array, aspect: mx.array | None = None) -> DepthOutputs:
        """Predict points.

        Args:
            pixel_values: Normalized RGB, ``(B, H, W, 3)``; H and W are multiples of the patch size, 14.
            aspect: ``(B,)``, width over height of the photos, which differs from that of their pixel values where
                sides are rounded. Default: W / H.
        Returns:
            ``points`` ``(B, H, W, 3)`` and ``depth``, their z, in metres but for a shift of z that is the same
            everywhere, which the camera tells (``family.py``); ``mask`` ``(B, H, W)``, ``normals``
            ``(B, H, W, 3)``, ``scale`` ``(B,)``; and the ``raw`` maps, of which the others are made.
        Raises:
            OptionError: If a shape does not fit.
        """
        self.check(pixel_values.shape)
        B, H, W, _ = pixel_values.shape
        if aspect is None:
            aspect = mx.full((B,), W / H)
        if aspect.shape != (B,):
            raise OptionError(f"aspect has shape {aspect.shape}: give width over height of each image, ({B},)")
        layers = self.backbone(pixel_values)
        scale = mx.exp(self.scale_head(layers[-1].cls_token).astype(mx.float32))
        raw = self._read_out(self._pyramid([layer.patch_tokens for layer in layers], (H, W), aspect))
        maps = at_size(raw, (H, W))
        points = maps.points * scale[:, None, None, None]
        return DepthOutputs(
            depth=points[..., 2],
            points=points,
            mask=maps.mask,
            normals=maps.normals,
            scale=scale,
            raw={name: x for name, x in raw._asdict().items() if x is not None},
        )

    def _pyramid(self, tokens: list[mx.array], size: Size, aspect: mx.array) -> list[mx.array]:
        """The tapped layers' sum and where each pixel is, refined at five sizes."""
        gh, gw = self._grid_size(size)
        B = len(aspect)
        layers = [x.reshape(B, gh, gw, -1) for x in tokens]  # tokens → map
        first, *others = (project(layer) for project, layer in zip(self.projections, layers, strict=True))
        x = sum(others, first)
        planes = [view_plane((gh << level, gw << level), aspect).astype(x.dtype) for level in range(LEVELS)]
        return self.neck([mx.concatenate([x, planes[0]], axis=-1), *planes[1:]])

    def _read_out(self, pyramid: list[mx.array]) -> RawMaps:
        return RawMaps(
            self.points_head(pyramid),
            self.mask_head(pyramid),
            self.normals_head(pyramid) if "normals_head" in self else None,
        )

    def largest_map(self, size: Size) -> int:
        """Values of the finest level while it grows, for one image."""
        return largest_map(self._grid_size(size), self._config.neck)


class ScaleHead(nn.Module):
    """The class token to the logarithm of the length of a unit in metres."""

    def __init__(self, dims: int):
        super().__init__()
        self.layers = [nn.Linear(dims, dims), nn.Linear(dims, dims), nn.Linear(dims, 1)]

    def __call__(self, cls_token: mx.array) -> mx.array:
        first, second, last = self.layers
        return last(relu(second(relu(first(cls_token)))).astype(mx.float32))[:, 0]


def at_size(raw: RawMaps, size: Size) -> Maps:
    """Bring raw maps to a size in pixels, and to what they mean; float32."""
    points, mask, normals = (
        None if x is None else resize(x.astype(mx.float32), size) for x in (raw.points, raw.mask, raw.normals)
    )
    assert points is not None  # nor is the mask
    assert mask is not None
    z = mx.exp(points[..., 2:])
    return Maps(
        mx.concatenate([points[..., :2] * z, z], axis=-1),
        mx.sigmoid(mask[..., 0]),
        None if normals is None else unit_vectors(normals),
    )


def raw_maps(outputs: Mapping[str, mx.array]) -> RawMaps:
    """The raw maps of ``DepthOutputs.raw``."""
    return RawMaps(outputs["points"], outputs["mask"], outputs.get("normals"))


def view_plane(size: Size, aspect: mx.array) -> mx.array:
    """Where the pixels of a map are in the image, whose half diagonal is 1 long.

    Args:
        size: ``(h, w)`` of the map.
        aspect: ``(B,)``, width over height of each image.
    Returns:
        ``(B, h, w, 2)``, float32, of the pixels' centers: to the right and down from the middle.

    ``normalized_view_plane_uv`` of upstream's ``utils/geometry_torch.py``.
    """
    aspect = aspect.astype(mx.float32)
    diagonal = mx.sqrt(1 + aspect * aspect)
    spans = mx.stack([aspect / diagonal, 1 / diagonal], axis=-1)  # (B, 2)
    return _centers(size) * spans[:, None, None]


@lru_cache(maxsize=64)
def _centers(size: Size) -> mx.array:
    """(h, w, 2), from -1 to 1; made from numpy, as all cached constants."""
    rows, columns = ((2 * np.arange(length) + 1 - length) / length for length in size)
    return mx.array(np.stack(np.meshgrid(columns, rows), axis=-1).astype(np.float32))


# name → (embed_dim, layers, heads, tapped layers, residual units of the neck's inner levels), as published.
SIZES: dict[str, tuple[int, int, int, tuple[int, ...], int]] = {
    "small": (384, 12, 6, (5, 11), 1),
    "base": (768, 12, 12, (5, 11), 1),
    "large": (1024, 24, 16, (5, 11, 17, 23), 2),
}


def moge_config(size: str, *, normals: bool = True) -> MoGeConfig:
    """The published sizes: ``small``, ``base`` and ``large``.

    Args:
        size: Name of the size.
        normals: Whether it gives normals, as all but one published model do.
    """
    embed_dim, num_layers, num_heads, out_layers, blocks = SIZES[size]
    channels = (embed_dim, 256, 128, 64, 32)
    return MoGeConfig(
        DINOv2Config(embed_dim, num_layers, num_heads, out_layers),
        neck=ConvStackConfig(channels, (0, blocks, blocks, blocks, 0)),
        heads=ConvStackConfig(channels, (0, 1, 1, 1, 0)),
        normals=normals,
    )
