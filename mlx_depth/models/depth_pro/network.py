"""Depth Pro (Bochkovskii et al., 2025): sharp inverse depth of one size, and the field of view that makes it metres.

Upstream: ``depth_pro/depth_pro.py`` and transformers' ``modeling_depth_pro.py``.
"""

from dataclasses import dataclass

import mlx.core as mx

from mlx_depth.backbones.dinov2 import DINOv2Config
from mlx_depth.backbones.pyramid import PyramidConfig, PyramidEncoder
from mlx_depth.heads.multires import TIMES_GRID, MultiresConfig, MultiresHead
from mlx_depth.models.base import DepthNetwork, DepthOutputs, NetworkConfig, Size
from mlx_depth.models.depth_pro.field_of_view import FieldOfView
from mlx_depth.models.vit_network import check_head_fits
from mlx_depth.nn import ops
from mlx_depth.result import DepthKind

LEAST_INVERSE, MOST_INVERSE = 1e-4, 1e4  # 1/metres, to which the inverse depth is held


@dataclass(frozen=True)
class DepthProConfig(NetworkConfig):
    """The network, with or without the part that estimates the field of view."""

    pyramid: PyramidConfig
    head: MultiresConfig
    field_of_view: bool = True
    depth_kind = DepthKind.METRIC
    max_depth = 1 / LEAST_INVERSE

    def __post_init__(self) -> None:
        encoder = self.pyramid.encoder
        fitting = encoder.patch_size * TIMES_GRID * encoder.table_size // self.pyramid.image_size
        check_head_fits((encoder.embed_dim, encoder.patch_size), (self.head.in_dim, fitting))


class DepthPro(DepthNetwork):
    """Normalized images of one size to canonical inverse depth and the field of view."""

    def __init__(self, config: DepthProConfig):
        super().__init__()
        self._config = config
        self.encoder = PyramidEncoder(config.pyramid)
        self.head = MultiresHead(config.head)
        if config.field_of_view:
            self.field_of_view = FieldOfView(config.pyramid.encoder, config.head.features)

    @property
    def multiple_of(self) -> int:
        """The patch size."""
        return self._config.pyramid.encoder.patch_size

    @property
    def only_size(self) -> Size:
        """The size of the finest level of the pyramid: 1536 × 1536."""
        return (self._config.pyramid.image_size,) * 2

    def __call__(self, pixel_values: mx.array, *, field_of_view: bool = True) -> DepthOutputs:
        """Predict inverse depth, one image after another.

        Args:
            pixel_values: Normalized RGB, ``(B, 1536, 1536, 3)``.
            field_of_view: Estimate it, too, where the weights can: a third of the parameters, which a known focal
                length makes needless.
        Returns:
            ``depth`` ``(B, 1536, 1536)``: canonical inverse depth >= 0, larger = nearer; times the width of the photo
            over its focal length it is in 1/metres. ``field_of_view`` ``(B,)``, in degrees.
        Raises:
            OptionError: If the shape does not fit.
        """
        self.check(pixel_values.shape)
        estimates = field_of_view and self._config.field_of_view

        def compute(images: list[mx.array]) -> list[mx.array]:
            maps = self.encoder(images[0])
            depth, coarsest = self.head(maps)
            return [depth, self.field_of_view(maps.small, coarsest)] if estimates else [depth]

        # An image is 35 windows, enough to fill a GPU, and has maps of 150 million values.
        depth, *angle = ops.in_batches(compute, [pixel_values], at_once=1)
        return DepthOutputs(depth, field_of_view=angle[0] if angle else None)

    def prepare(self, size: Size) -> list[mx.array]:
        """The position tables, which are of one size."""
        return self.encoder.shared()

    def largest_map(self, size: Size) -> int:
        """Values of the head's fused path."""
        return self.head.largest_map(self._config.pyramid.encoder.table_size)


def depth_pro_config() -> DepthProConfig:
    """The published network: DINOv2's large, 16 pixels a patch, 24 × 24 patches a window."""
    encoder = DINOv2Config(
        embed_dim=1024,
        num_layers=24,
        num_heads=16,
        out_layers=(5, 11, 23),
        raw_layers=(5, 11),
        patch_size=16,
        table_size=24,
    )
    return DepthProConfig(PyramidConfig(encoder), MultiresConfig(in_dim=1024))
