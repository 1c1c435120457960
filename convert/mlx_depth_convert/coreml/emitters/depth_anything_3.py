"""Depth Anything 3 as Core ML graphs: the network for any number of views, given one, and that for single views.

A view alone is its own reference view, and blocks that look at all views look at its tokens, with their own rotation.
"""

from collections.abc import Mapping
from typing import ClassVar

from mlx_depth.backbones.any_view import AnyViewConfig
from mlx_depth.heads import dual_dpt
from mlx_depth.models.depth_anything_3.metric import FOCAL_LENGTH, LEAST_SKY
from mlx_depth.models.depth_anything_3.network import DepthAnything3Config, DepthAnything3MonoConfig
from mlx_depth.nn.rope import common_rotation, grid_rotation
from mlx_depth_convert.coreml.emitters import fold
from mlx_depth_convert.coreml.emitters.base import Layer, Size, Var
from mlx_depth_convert.coreml.emitters.dinov2_dpt import DINOv2DPTEmitter
from mlx_depth_convert.coreml.names import CONFIDENCE, SKY


class AnyViewEmitter(DINOv2DPTEmitter):
    """One view to depth and confidence."""

    float_prefixes: ClassVar[tuple[str, ...]] = (*DINOv2DPTEmitter.float_prefixes, "camera_token", "rope_", "uv_")
    head_norm: ClassVar[str] = "head.norm"
    extras: ClassVar[Mapping[str, str]] = {CONFIDENCE: "How sure the depth is: above 1, larger = surer."}
    note: ClassVar[str] = "Of one view alone: cameras, rays and 3D Gaussians are not in the package."

    @staticmethod
    def refusal(config: DepthAnything3Config) -> str | None:
        """Giants are for scenes."""
        if not config.gaussians:
            return None
        return (
            "has 3D Gaussians, which no Core ML package holds: choose depth-anything-3-large-1.1, or predict scenes "
            "with `mlx-depth`"
        )

    @property
    def any_view(self) -> AnyViewConfig:
        config: AnyViewConfig = self.spec.config.backbone
        return config

    def transformer(self, x: Var, grid_size: Size) -> list[Var]:
        """Tokens to the normalized tokens of the tapped layers: within the view, and across."""
        config = self.any_view
        head_dim = config.embed_dim // config.num_heads
        within = self.rotation(grid_rotation(grid_size, head_dim), "rope_within")
        across = self.rotation(common_rotation(grid_size[0] * grid_size[1], head_dim), "rope_across")
        local = x
        tapped: list[Var] = []
        for index in range(max(config.out_layers) + 1):
            if index == config.alt_start:
                x = self.with_camera_token(x)
            if index >= config.alt_start and index % 2 == 1:
                x = self.block(x, index, across)
            else:
                x = local = self.block(x, index, within if index >= config.alt_start else None)
            if index in config.out_layers:
                tapped.append(self.tap(local, x, f"tap{len(tapped)}"))
        return tapped

    def with_camera_token(self, x: Var) -> Var:
        """The class token gives its place to the camera token."""
        camera = self.mb.const(val=self.token_constant(fold.fold_camera_token(self.weights)), name="camera_token")
        values = [camera, self.patches(x, "camera_patches")]
        return self.mb.concat(values=values, axis=self.token_axis, name="camera_tokens")

    def tap(self, local: Var, x: Var, name: str) -> Var:
        """What the view alone gave and, normalized, what all views gave, normalized together by the head."""
        affine = fold.fold_stream_norm(self.weights, "backbone.norm")
        x = self.norm(x, f"{name}_across", eps=fold.stream_eps(self.any_view.norm_eps), affine=affine)
        x = self.mb.concat(values=[local, x], axis=self.channel_axis(x), name=f"{name}_both")
        return self.norm(x, f"{name}_norm", eps=fold.stream_eps(dual_dpt.NORM_EPS))

    def place(self, x: Var, size: Size, name: str) -> Var:
        """Add the UV embedding."""
        rows, columns = fold.fold_uv(size, x.shape[1])
        x = self.mb.add(x=x, y=rows, name=f"uv_{name}_rows")
        return self.mb.add(x=x, y=columns, name=f"uv_{name}_columns")

    def activate(self, values: Var, name: str) -> list[Var]:
        depth, confidence = self.mb.split(x=values, num_splits=2, axis=1, name="head_values")
        confidence = self.mb.exp(x=confidence, name="confidence_exp")
        return [self.mb.exp(x=depth, name=name), self.mb.add(x=confidence, y=1.0, name=CONFIDENCE)]


class MonoEmitter(DINOv2DPTEmitter):
    """One image to depth and sky."""

    extras: ClassVar[Mapping[str, str]] = {SKY: f"Sky where it is {LEAST_SKY} or more; it has no upper end."}
    note: ClassVar[str] = (
        f"Sky is left as it is: where the sky output is {LEAST_SKY} or more, the depth means nothing. There, mlx-depth "
        "puts the distance of the farthest ground (its 0.99 quantile)."
    )

    @staticmethod
    def focal_length(config: DepthAnything3MonoConfig) -> float | None:
        """The metric model's."""
        return FOCAL_LENGTH if config.metric else None

    def last_layers(self) -> tuple[Layer, Layer]:
        """Those of depth and of sky, which read the same map, side by side."""
        hidden, sky_hidden, last, sky_last = (
            fold.convolution(self.weights, f"head.{path}") for path in ("conv2", "sky_conv2", "conv3", "sky_conv3")
        )
        return fold.stacked(hidden, sky_hidden), fold.side_by_side(last, sky_last)

    def activate(self, values: Var, name: str) -> list[Var]:
        depth, sky = self.mb.split(x=values, num_splits=2, axis=1, name="head_values")
        return [self.activate_depth(depth, name), self.mb.relu(x=sky, name=SKY)]
