"""AnyDepth as a Core ML graph: DINOv3, whose positions are rotations, and the SDT head, which reads between pixels.

Where a map is read is computed in float32 in every package: float16 has steps of an eighth of a pixel in the right half
of a map of 256, the last that is doubled for an image of 512.
"""

from typing import ClassVar

import numpy as np

from mlx_depth.backbones.dinov3 import DINOv3Config, default_periods
from mlx_depth.heads.sdt import DOUBLINGS, LAYERS, SDTConfig
from mlx_depth.nn.rope import centered_rotation
from mlx_depth_convert.coreml.emitters import fold
from mlx_depth_convert.coreml.emitters.base import Size, Var
from mlx_depth_convert.coreml.emitters.vit import ViTEmitter


class AnyDepthEmitter(ViTEmitter):
    """One image to inverse depth."""

    float_prefixes: ClassVar[tuple[str, ...]] = (*ViTEmitter.float_prefixes, "rope_", "offsets", "positions")
    float32_prefixes: ClassVar[tuple[str, ...]] = ("positions", "sampled")  # the latter read float16 maps

    @property
    def backbone(self) -> DINOv3Config:
        backbone: DINOv3Config = self.spec.config.backbone
        return backbone

    @property
    def head(self) -> SDTConfig:
        head: SDTConfig = self.spec.config.head
        return head

    @property
    def block_eps(self) -> float:
        """That of all LayerNorms."""
        return self.backbone.norm_eps

    def transformer(self, x: Var, grid_size: Size) -> list[Var]:
        """Tokens to the tokens of the tapped layers, normalized where the config says so."""
        config = self.backbone
        periods = self.weights["backbone.rope_periods"] if config.stored_periods else default_periods(config)
        rotation = centered_rotation(grid_size, periods, 1 + config.num_register_tokens)
        turn = self.rotation(rotation, "rope")
        tapped: list[Var] = []
        for index in range(max(config.out_layers) + 1):
            x = self.block(x, index, turn)
            if index in config.out_layers:
                tapped.append(self.tap(x, f"tap{len(tapped)}") if config.normalized else x)
        return tapped

    def tap(self, x: Var, name: str) -> Var:
        eps, affine = fold.stream_eps(self.backbone.norm_eps), fold.fold_stream_norm(self.weights, "backbone.norm")
        return self.norm(x, f"{name}_norm", eps=eps, affine=affine)

    def decode(self, tapped: list[Var], grid_size: Size, name: str) -> list[Var]:
        """Tokens on the scaled stream to depth."""
        x, size = self.fuse(tapped, grid_size), grid_size
        for level in range(DOUBLINGS):
            x, size = self.double(x, size, level), (2 * size[0], 2 * size[1])
            if level % 2:
                x = self.refine(x, f"refinements.{level // 2}", f"refinement{level // 2}")
        x = self.refine(self.refine(x, "conv1", "head_conv1"), "conv2", "head_conv2")
        x = self.convolve(x, fold.convolution(self.weights, "head.conv3"), "head_conv3")
        x = self.mb.relu(x=x, name="head_relu")
        return [self.mb.add(x=x, y=np.float32(self.head.least_depth), name=name)]

    def fuse(self, tapped: list[Var], grid_size: Size) -> Var:
        """Tokens of the layers to one map: their weighted sum, and what sharpens it."""
        shares = fold.fold_shares(self.weights)
        layers = [self.project(x, level, shares[level]) for level, x in enumerate(tapped)]
        x = layers[0]
        for level in range(1, LAYERS):
            x = self.mb.add(x=x, y=layers[level], name=f"fused{level}")
        x = self.to_map(x, grid_size, "fused")
        layer = fold.convolution(self.weights, "head.enhancer")
        y = self.mb.conv(
            x=x,
            weight=layer.weight,
            bias=layer.bias,
            pad_type="custom",
            pad=[1] * 4,
            groups=self.head.features,
            name="enhancer",
        )
        return self.mb.relu(x=self.mb.add(x=x, y=y, name="enhanced_sum"), name="enhanced")

    def project(self, x: Var, level: int, share: np.float32) -> Var:
        """Patch tokens, each mixed with the class token, at the width of the fused map."""
        name = f"projection{level}"
        patch, image, projection = fold.fold_readout(self.weights, level)
        shared = self.linear(self.class_token(x, f"{name}_class"), image, f"{name}_image")
        x = self.linear(self.patches(x, f"{name}_patches"), patch, f"{name}_patch")
        x = self.mb.gelu(x=self.mb.add(x=x, y=shared, name=f"{name}_sum"), mode="EXACT", name=f"{name}_readout")
        x = self.mb.gelu(x=self.linear(x, projection, f"{name}_narrow"), mode="EXACT", name=name)
        return self.mb.mul(x=x, y=share, name=f"{name}_share")

    def refine(self, x: Var, path: str, name: str) -> Var:
        x = self.convolve(x, fold.convolution(self.weights, f"head.{path}"), name, pad=1)
        return self.mb.relu(x=x, name=f"{name}_relu")

    def double(self, x: Var, size: Size, level: int) -> Var:
        """A map to the doubled one: read at learned positions, then convolved."""
        y = self.sample(x, self.positions(x, size, level), size, f"sampled{level}")
        return self.refine(y, f"doublings.{level}.conv", f"doubling{level}")

    def positions(self, x: Var, size: Size, level: int) -> Var:
        """Where each group of channels is read, (groups, 2 h, 2 w, 2): across, down, -1 and 1 being the map's edges."""
        name, (h, w) = f"offsets{level}", size
        offset, scope, start = fold.fold_offsets(self.weights, level)
        opened = self.mb.sigmoid(x=self.convolve(x, scope, f"{name}_scope"), name=f"{name}_opened")
        x = self.mb.mul(x=self.convolve(x, offset, f"{name}_learned"), y=opened, name=f"{name}_scoped")
        x = self.mb.add(x=x, y=start, name=f"{name}_started")
        x = self.mb.pixel_shuffle(x=x, upscale_factor=2, name=name)
        x = self.mb.reshape(x=x, shape=[2, self.head.groups, 2 * h, 2 * w], name=f"{name}_axes")
        x = self.mb.transpose(x=x, perm=[1, 2, 3, 0], name=f"{name}_pairs")
        name = f"positions{level}"
        x = self.mb.mul(x=x, y=np.array([2 / w, 2 / h], np.float32), name=f"{name}_offsets")
        rows, columns = fold.fold_pixel_centers(size)
        x = self.mb.add(x=x, y=rows, name=f"{name}_rows")
        return self.mb.add(x=x, y=columns, name=name)

    def sample(self, x: Var, positions: Var, size: Size, name: str) -> Var:
        """A map read at positions; groups of channels stand for a batch."""
        half, groups, features = self.plan.precision == "float16", self.head.groups, self.head.features
        x = self.mb.reshape(x=x, shape=[groups, features // groups, *size], name=f"groups_{name}")
        if half:  # the positions alone are float32
            x = self.mb.cast(x=x, dtype="fp16", name=f"groups_{name}_half")
        x = self.mb.resample(
            x=x,
            coordinates=positions,
            sampling_mode="bilinear",
            padding_mode="border",
            padding_value=np.float16(0) if half else np.float32(0),
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=False,
            name=name,
        )
        if half:
            x = self.mb.cast(x=x, dtype="fp32", name=f"groups_{name}_whole")
        return self.mb.reshape(x=x, shape=[1, features, 2 * size[0], 2 * size[1]], name=f"doubled_{name}")
