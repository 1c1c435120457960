"""Depth Anything 3 (Lin et al., 2025): one network for any number of views, one for a single view, one of both.

Upstream: ``depth_anything_3/model/da3.py`` and its ``configs/``.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_depth.backbones.any_view import AnyViewConfig, AnyViewDINOv2, ReferenceView
from mlx_depth.backbones.dinov2 import DINOv2, DINOv2Config
from mlx_depth.errors import OptionError
from mlx_depth.heads.dpt import DepthAndSky, DPTConfig, SkyDPTHead
from mlx_depth.heads.dual_dpt import DualDPTConfig, DualDPTHead, DualMaps
from mlx_depth.heads.gaussian_dpt import GaussianDPTConfig, GaussianDPTHead
from mlx_depth.models.base import DepthNetwork, DepthOutputs, NetworkConfig, Size
from mlx_depth.models.depth_anything_3.camera import CameraDecoder, CameraEncoder
from mlx_depth.models.depth_anything_3.gaussians import world_gaussians
from mlx_depth.models.depth_anything_3.metric import in_metres
from mlx_depth.models.vit_network import ViTNetwork, check_head_fits
from mlx_depth.nn import ops
from mlx_depth.result import DepthKind
from mlx_depth.weights.config_values import added_later

NORM_EPS = 1e-5  # of the backbone's last norm, in this family


@dataclass(frozen=True)
class DepthAnything3Config(NetworkConfig):
    """A network for any number of views."""

    backbone: AnyViewConfig
    head: DualDPTConfig
    gaussians: bool  # whether there is a head for 3D Gaussians
    camera_encoder: bool = added_later(True)  # whether known cameras can be given; some files leave it out

    def __post_init__(self) -> None:
        ours = (2 * self.backbone.embed_dim, self.backbone.patch_size)
        check_head_fits(ours, (self.head.in_dim, self.head.patch_size))

    @property
    def depth_kind(self) -> DepthKind:
        """Relative: unitless, larger = farther."""
        return DepthKind.RELATIVE


class DepthAnything3(ViTNetwork):
    """Views of a scene to their depth, cameras and rays."""

    takes = "views"
    conditions = ("extrinsics", "intrinsics")

    def __init__(self, config: DepthAnything3Config):
        super().__init__()
        self._config = config
        dims = config.backbone.embed_dim
        self.backbone = AnyViewDINOv2(config.backbone)
        self.head = DualDPTHead(config.head)
        if config.camera_encoder:
            self.camera_encoder = CameraEncoder(dims)
        self.camera_decoder = CameraDecoder(2 * dims)
        if config.gaussians:
            head = config.head
            self.gaussian_head = GaussianDPTHead(
                GaussianDPTConfig(head.in_dim, head.features, head.out_channels, patch_size=head.patch_size)
            )

    @property
    def everything(self) -> dict[str, Any]:
        """Gaussians, too, where the model can."""
        return {"gaussians": True} if self._config.gaussians else {}

    def __call__(
        self,
        pixel_values: mx.array,
        extrinsics: mx.array | None = None,
        intrinsics: mx.array | None = None,
        *,
        reference_view: ReferenceView = "saddle_balanced",
        gaussians: bool = False,
    ) -> DepthOutputs:
        """Predict depth, rays and cameras.

        Args:
            pixel_values: Normalized RGB, ``(B, V, H, W, 3)``; H and W are multiples of the patch size, 14.
            extrinsics: Known cameras, ``(B, V, 3, 4)``, world → camera, relative to the first view and of a median
                distance of 1 (``geometry.poses.normalize_extrinsics``); None: unknown.
            intrinsics: Theirs, ``(B, V, 3, 3)``, in network pixels; with ``extrinsics`` alone.
            reference_view: As for ``AnyViewDINOv2``.
            gaussians: Predict 3D Gaussians, too, where the model can.
        Returns:
            ``depth`` ``(B, V, H, W)``, unitless, larger = farther; ``confidence`` above 1; ``extrinsics``,
            ``intrinsics``; ``rays`` and ``ray_confidence``, where the weights have them, at 8 values a patch side;
            ``gaussians`` as of ``world_gaussians``, and ``raw`` and ``raw_confidence``, of which it makes them.
        Raises:
            OptionError: If a shape does not fit, or the weights have no head for Gaussians or no place for cameras.
        """
        self.check(pixel_values.shape)
        if gaussians and not self._config.gaussians:
            raise OptionError("this model has no 3D Gaussians: take depth-anything-3-giant-1.1, or leave them out.")
        B, V, H, W, _ = pixel_values.shape
        known = self._known_cameras(extrinsics, intrinsics, (B, V), (H, W))
        layers = self.backbone(pixel_values, known, reference_view=reference_view)
        grid_size = self._grid_size((H, W))
        tokens = [layer.patch_tokens.flatten(0, 1) for layer in layers]
        read = ops.in_batches(lambda some: [x for x in self.head(some, grid_size) if x is not None], tokens)
        maps = DualMaps(*(x.reshape(B, V, *x.shape[1:]) for x in read))
        own_extrinsics, own_intrinsics = self.camera_decoder(layers[-1].camera_token, (H, W))
        outputs = DepthOutputs(
            depth=maps.depth,
            confidence=maps.confidence,
            extrinsics=own_extrinsics,
            intrinsics=own_intrinsics,
            rays=maps.rays,
            ray_confidence=maps.ray_confidence,
        )
        if not gaussians:
            return outputs
        images = [*tokens, pixel_values.flatten(0, 1)]
        read = ops.in_batches(lambda some: self.gaussian_head(some[:-1], some[-1], grid_size), images)
        raw, sure = (x.reshape(B, V, *x.shape[1:]) for x in read)
        made = world_gaussians(maps.depth, raw, sure, own_extrinsics, own_intrinsics)
        return outputs._replace(gaussians={**made, "raw": raw, "raw_confidence": sure})

    def _known_cameras(
        self, extrinsics: mx.array | None, intrinsics: mx.array | None, views: tuple[int, int], size: Size
    ) -> mx.array | None:
        if extrinsics is None and intrinsics is None:
            return None
        if extrinsics is None or intrinsics is None:
            raise OptionError("a known camera has extrinsics and intrinsics: give both, or none.")
        if not self._config.camera_encoder:
            raise OptionError(
                "these weights take no known cameras, as their file left that part out: give none, or convert the "
                "authors' own file."
            )
        for name, given, wanted in (("extrinsics", extrinsics, (3, 4)), ("intrinsics", intrinsics, (3, 3))):
            if given.shape != (*views, *wanted):
                raise OptionError(f"{name} have shape {given.shape}: give {(*views, *wanted)}, one for each view.")
        return self.camera_encoder(extrinsics, intrinsics, size)


@dataclass(frozen=True)
class DepthAnything3MonoConfig(NetworkConfig):
    """A network for single views."""

    backbone: DINOv2Config
    head: DPTConfig
    metric: bool  # metres for a camera of 300 pixels' focal length, which others scale; else unitless

    def __post_init__(self) -> None:
        ours = (self.backbone.embed_dim, self.backbone.patch_size)
        check_head_fits(ours, (self.head.in_dim, self.head.patch_size))

    @property
    def depth_kind(self) -> DepthKind:
        """Metric, or relative: unitless, larger = farther."""
        return DepthKind.METRIC if self.metric else DepthKind.RELATIVE


class DepthAnything3Mono(ViTNetwork):
    """Images to depth and sky."""

    def __init__(self, config: DepthAnything3MonoConfig):
        super().__init__()
        self._config = config
        self.backbone = DINOv2(config.backbone)
        self.head = SkyDPTHead(config.head)

    def __call__(self, pixel_values: mx.array) -> DepthOutputs:
        """Predict depth and sky.

        Args:
            pixel_values: Normalized RGB, ``(B, H, W, 3)``; H and W are multiples of the patch size, 14.
        Returns:
            ``depth`` ``(B, H, W)``, larger = farther, where ``sky`` is below 0.3: unitless, or for a metric model in
            metres at a focal length of 300 network pixels. ``sky`` is 0 or above.
        Raises:
            OptionError: If the shape does not fit.
        """
        self.check(pixel_values.shape)
        depth, sky = self.maps(pixel_values)
        return DepthOutputs(depth, sky=sky)

    def maps(self, pixel_values: mx.array) -> DepthAndSky:
        """``__call__`` for pixel values that are known to fit."""
        tokens = [layer.patch_tokens for layer in self.backbone(pixel_values)]
        return self.head(tokens, self._grid_size(pixel_values.shape[1:3]))


@dataclass(frozen=True)
class DepthAnything3NestedConfig(NetworkConfig):
    """A network for any number of views, and one that tells it how long a metre is."""

    any_view: DepthAnything3Config
    metric: DepthAnything3MonoConfig

    @property
    def depth_kind(self) -> DepthKind:
        """Metric."""
        return DepthKind.METRIC


class DepthAnything3Nested(DepthNetwork):
    """Views of a scene to their depth in metres, cameras, rays and sky."""

    takes = "views"
    conditions = DepthAnything3.conditions

    def __init__(self, config: DepthAnything3NestedConfig):
        super().__init__()
        self.any_view = DepthAnything3(config.any_view)
        self.metric = DepthAnything3Mono(config.metric)

    @property
    def multiple_of(self) -> int:
        """The patch size."""
        return self.any_view.multiple_of

    @property
    def everything(self) -> dict[str, Any]:
        """Gaussians, too, where the model can."""
        return self.any_view.everything

    def __call__(
        self,
        pixel_values: mx.array,
        extrinsics: mx.array | None = None,
        intrinsics: mx.array | None = None,
        *,
        reference_view: ReferenceView = "saddle_balanced",
        gaussians: bool = False,
    ) -> DepthOutputs:
        """Predict depth in metres, rays, cameras and sky; arguments and axes as for ``DepthAnything3``.

        Returns:
            As ``DepthAnything3``, ``depth`` and the translations of ``extrinsics`` in metres, sky at the distance of
            the farthest ground; rays and Gaussians keep the unit of the first network. ``scale`` ``(B,)`` is the factor
            that made metres; it and all that it touched is NaN where a scene is nothing but sky.
        """
        self.check(pixel_values.shape)
        outputs = self.any_view(
            pixel_values, extrinsics, intrinsics, reference_view=reference_view, gaussians=gaussians
        )
        B, V = pixel_values.shape[:2]
        alone = ops.in_batches(lambda images: self.metric.maps(images[0]), [pixel_values.flatten(0, 1)])
        metric_depth, sky = (x.reshape(B, V, *x.shape[1:]) for x in alone)
        return in_metres(outputs, metric_depth, sky)

    def prepare(self, size: Size) -> list[mx.array]:
        """The position tables for a size."""
        return [*self.any_view.prepare(size), *self.metric.prepare(size)]

    def largest_map(self, size: Size) -> int:
        """Values of the larger head's fused path, for one view."""
        return max(self.any_view.largest_map(size), self.metric.largest_map(size))


# name → (embed_dim, layers, heads, tapped layers, alt_start, DPT features, DPT channels), as upstream's configs/.
SIZES: dict[str, tuple[int, int, int, tuple[int, ...], int, int, tuple[int, int, int, int]]] = {
    "small": (384, 12, 6, (5, 7, 9, 11), 4, 64, (48, 96, 192, 384)),
    "base": (768, 12, 12, (5, 7, 9, 11), 4, 128, (96, 192, 384, 768)),
    "large": (1024, 24, 16, (11, 15, 19, 23), 8, 256, (256, 512, 1024, 1024)),
    "giant": (1536, 40, 24, (19, 27, 33, 39), 13, 256, (256, 512, 1024, 1024)),
}


def any_view_config(size: str) -> DepthAnything3Config:
    """The published sizes: ``small``, ``base``, ``large``, and ``giant`` with 3D Gaussians."""
    embed_dim, num_layers, num_heads, out_layers, alt_start, features, channels = SIZES[size]
    return DepthAnything3Config(
        AnyViewConfig(
            embed_dim=embed_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            out_layers=out_layers,
            swiglu=size == "giant",
            norm_eps=NORM_EPS,
            alt_start=alt_start,
        ),
        DualDPTConfig(in_dim=2 * embed_dim, features=features, out_channels=channels),
        gaussians=size == "giant",
    )


def mono_config(*, metric: bool) -> DepthAnything3MonoConfig:
    """The published network for single views; both are large.

    Args:
        metric: DA3METRIC-LARGE's; else DA3MONO-LARGE's.
    """
    return DepthAnything3MonoConfig(
        DINOv2Config(embed_dim=1024, num_layers=24, num_heads=16, out_layers=(4, 11, 17, 23), norm_eps=NORM_EPS),
        DPTConfig(in_dim=1024, features=256, out_channels=(256, 512, 1024, 1024), activation="exp"),
        metric=metric,
    )


def nested_config() -> DepthAnything3NestedConfig:
    """DA3NESTED-GIANT-LARGE's."""
    return DepthAnything3NestedConfig(any_view_config("giant"), mono_config(metric=True))
