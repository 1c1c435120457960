"""DINOv2 and a DPT head as a Core ML graph: the trunk of several families."""

from typing import ClassVar

import numpy as np

from mlx_depth.heads.dpt import RESAMPLINGS, DPTConfig
from mlx_depth_convert.coreml.emitters import fold
from mlx_depth_convert.coreml.emitters.base import Layer, Size, Var
from mlx_depth_convert.coreml.emitters.dinov2 import DINOv2Emitter

Map = tuple[Var, Size]  # (1, C, h, w) and its (h, w)

FLOOR_MARGIN = 1e-4  # Core ML floors size × factor, which must not fall one pixel short


class DINOv2DPTEmitter(DINOv2Emitter):
    """What the families share; each says how its last values become maps."""

    head_norm: ClassVar[str] = "backbone.norm"
    """The LayerNorm whose affine the head's projections take."""

    def decode(self, tapped: list[Var], grid_size: Size, name: str) -> list[Var]:
        """Tokens of the tapped layers to depth and extras."""
        fused = self.fuse([self.reassemble(x, level, grid_size) for level, x in enumerate(tapped)])
        patch = self.backbone.patch_size
        return self.activate(self.read_out(fused, (grid_size[0] * patch, grid_size[1] * patch)), name)

    def activate(self, values: Var, name: str) -> list[Var]:
        """What is read out, (1, K, H, W), to depth and extras; the depth's operation is called ``name``."""
        raise NotImplementedError

    def reassemble(self, x: Var, level: int, grid_size: Size) -> Map:
        name, path = f"reassemble{level}", f"head.reassemble.{level}"
        x = self.project(x, level, grid_size, name)
        x = self.place(x, grid_size, name)
        resampling, (h, w) = RESAMPLINGS[level], grid_size
        if resampling in ("up4", "up2"):
            factor = int(resampling[-1])
            layer = fold.transposed_convolution(self.weights, f"{path}.resample")
            x = self.mb.conv_transpose(
                x=x, weight=layer.weight, bias=layer.bias, strides=[factor, factor], name=f"{name}_resample"
            )
            h, w = h * factor, w * factor
        elif resampling == "down2":
            layer = fold.convolution(self.weights, f"{path}.resample")
            x = self.convolve(x, layer, f"{name}_resample", stride=2, pad=1)
            h, w = (h + 1) // 2, (w + 1) // 2
        adapt = fold.convolution(self.weights, f"{path}.adapt")
        return self.convolve(x, adapt, f"{name}_adapt", pad=1), (h, w)

    def project(self, x: Var, level: int, grid_size: Size, name: str) -> Var:
        """Tokens of a tapped layer to a map of the head's channels."""
        projection = fold.fold_projection(self.weights, f"head.reassemble.{level}.projection", self.head_norm)
        x = self.to_map(self.patches(x, f"{name}_patches"), grid_size, name)
        return self.convolve(x, projection, f"{name}_projection")

    def place(self, x: Var, size: Size, name: str) -> Var:
        """A map, told where its pixels are in the image; here it is not told."""
        return x

    def fuse(self, maps: list[Map]) -> Map:
        """Merge maps, finest first, from coarse to fine."""
        levels = list(reversed(maps))
        path, path_size = levels[0]
        for level, size in enumerate(self.path_sizes([size for _, size in levels])):
            if level > 0:
                finer = self.grow(*levels[level], path_size, f"fusion{level}_finer", align_corners=False)
                refined = self.residual_unit(finer, level, 1)
                path = self.mb.add(x=path, y=refined, name=f"fusion{level}_add")
            path = self.residual_unit(path, level, 2)
            # Upstream grows before this 1×1 convolution; interpolation weights sum to one, so they commute.
            path = self.convolve(
                path, fold.convolution(self.weights, f"head.fusion.{level}.projection"), f"fusion{level}_projection"
            )
            path, path_size = self.grow(path, path_size, size, f"fusion{level}"), size
        return path, path_size

    def path_sizes(self, sizes: list[Size]) -> list[Size]:
        """The size of the path after each fusion, given those of the maps, coarsest first."""
        h, w = sizes[-1]
        return [*sizes[1:], (2 * h, 2 * w)]

    def residual_unit(self, x: Var, level: int, unit: int) -> Var:
        name, path = f"fusion{level}_unit{unit}", f"head.fusion.{level}.residual_conv_unit{unit}"
        y = x
        for conv in ("conv1", "conv2"):
            y = self.mb.relu(x=y, name=f"{name}_{conv}_relu")
            y = self.convolve(y, fold.convolution(self.weights, f"{path}.{conv}"), f"{name}_{conv}", pad=1)
        return self.mb.add(x=x, y=y, name=name)

    def grow(self, x: Var, size: Size, to: Size, name: str, *, align_corners: bool = True) -> Var:
        if size == to:
            return x
        factors = [(wanted + FLOOR_MARGIN) / side for wanted, side in zip(to, size, strict=True)]
        return self.mb.upsample_bilinear(
            x=x,
            scale_factor_height=np.float32(factors[0]),
            scale_factor_width=np.float32(factors[1]),
            align_corners=align_corners,
            name=f"{name}_grown",
        )

    def read_out(self, fused: Map, size: Size) -> Var:
        """The fused map to the values before their activations, (1, K, H, W)."""
        x = self.convolve(fused[0], fold.convolution(self.weights, "head.conv1"), "head_conv1", pad=1)
        x = self.place(self.grow(x, fused[1], size, "head"), size, "head")
        hidden, last = self.last_layers()
        x = self.convolve(x, hidden, "head_conv2", pad=1)
        x = self.mb.relu(x=x, name="head_relu")
        return self.convolve(x, last, "head_conv3")

    def last_layers(self) -> tuple[Layer, Layer]:
        """The last two convolutions."""
        return fold.convolution(self.weights, "head.conv2"), fold.convolution(self.weights, "head.conv3")

    def activate_depth(self, value: Var, name: str) -> Var:
        """The last value of a DPT head to depth, as its config says."""
        head: DPTConfig = self.spec.config.head
        activate = {"relu": self.mb.relu, "sigmoid": self.mb.sigmoid, "exp": self.mb.exp}[head.activation]
        if head.max_depth == 1 and head.activation != "sigmoid":
            return activate(x=value, name=name)
        value = activate(x=value, name=f"head_{head.activation}")
        return self.mb.mul(x=value, y=np.float32(head.max_depth), name=name)
