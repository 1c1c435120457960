"""MoGe-2's network as a Core ML graph: DINOv2, the pyramid, and the heads of points, mask, normals and scale.

The camera is fitted behind the network, by the app: what is written here ends where ``models/moge/network.py`` does.
"""

from collections.abc import Mapping
from typing import ClassVar

import mlx.core as mx
import numpy as np

from mlx_depth.heads.conv_stack import LEVELS, ConvStackConfig
from mlx_depth.models.base import VALID, DepthOutputs
from mlx_depth.models.moge.network import MoGeConfig, at_size, raw_maps
from mlx_depth_convert.coreml.emitters import fold
from mlx_depth_convert.coreml.emitters.base import SMALLEST_RANGE, Size, Var
from mlx_depth_convert.coreml.emitters.dinov2 import DINOv2Emitter
from mlx_depth_convert.coreml.names import DEPTH, MASK, NORMALS, POINTS, SCALE

FINEST = 2 ** (LEVELS - 1)  # pixels of the finest map along a patch


class MoGeEmitter(DINOv2Emitter):
    """One image to points but for the camera: z for depth, and what the app makes metres of."""

    float_prefixes: ClassVar[tuple[str, ...]] = (*DINOv2Emitter.float_prefixes, "uv_", SCALE)
    float32_prefixes: ClassVar[tuple[str, ...]] = (SCALE,)  # one number, by which everything is multiplied
    extras: ClassVar[Mapping[str, str]] = {
        POINTS: "x right, y down and z forward of each pixel, but for a shift of z and the factor to metres: "
        "scale * (x, y, z + shift). The shift is to be fitted.",
        MASK: f"Where it is {VALID} or less, depth, points and normals mean nothing.",
        NORMALS: "Unit vectors: x right, y down, z forward.",
        SCALE: "Metres in a unit of the points.",
    }
    raw_only: ClassVar[str] = "z of the points, larger = farther, without a unit until its shift is fitted."
    note: ClassVar[str] = (
        "The camera is not in the package: an app fits the shift of z, and the focal length where it knows none, and "
        "multiplies by the scale output, as mlx-depth does."
    )

    @staticmethod
    def expected(outputs: DepthOutputs) -> Mapping[str, mx.array]:
        """The points as they are read out, which the network multiplies by the scale."""
        assert outputs.raw is not None  # that network gives them
        _, height, width = outputs.depth.shape
        points = at_size(raw_maps(outputs.raw), (height, width)).points
        return {**outputs.present(), DEPTH: points[..., 2], POINTS: points}

    @property
    def config(self) -> MoGeConfig:
        config: MoGeConfig = self.spec.config
        return config

    def decode(self, tapped: list[Var], grid_size: Size, name: str) -> list[Var]:
        """Normalized tokens to z, points, mask, perhaps normals, and scale."""
        pyramid = self.neck(tapped, grid_size)
        depth, points = self.points(self.head(POINTS, pyramid), name)
        mask = self.mb.sigmoid(x=self.head(MASK, pyramid), name=MASK)
        normals = [self.unit_vectors(self.head(NORMALS, pyramid))] if self.config.normals else []
        return [depth, points, mask, *normals, self.scale(tapped[-1])]

    def neck(self, tapped: list[Var], grid_size: Size) -> list[Var]:
        """The tapped layers' sum and where each pixel is, refined at five sizes."""
        x = self.project(tapped[0], 0, grid_size)
        for index in range(1, len(tapped)):
            x = self.mb.add(x=x, y=self.project(tapped[index], index, grid_size), name=f"projected{index}")
        x = self.convolve(x, fold.fold_map_input(self.weights, "neck.levels.0.input"), "neck_level0_map")
        refined = [self.refine(self.place(x, 0, grid_size), "neck", 0, self.config.neck)]
        for level in range(1, LEVELS):
            x = self.grow(refined[-1], "neck", level)
            refined.append(self.refine(self.place(x, level, grid_size), "neck", level, self.config.neck))
        return refined

    def project(self, x: Var, index: int, grid_size: Size) -> Var:
        """A tapped layer's patch tokens to a map of the neck's width."""
        name = f"projection{index}"
        x = self.to_map(self.patches(x, f"{name}_patches"), grid_size, name)
        return self.convolve(x, fold.fold_projection(self.weights, f"projections.{index}", "backbone.norm"), name)

    def place(self, x: Var, level: int, grid_size: Size) -> Var:
        """Tell a map of the neck where its pixels are in the image: rows, then columns."""
        size = (grid_size[0] << level, grid_size[1] << level)
        aspect = grid_size[1] / grid_size[0]
        rows, columns = fold.fold_plane(self.weights, f"neck.levels.{level}.input", size, aspect)
        x = self.mb.add(x=x, y=rows, name=f"uv_level{level}_rows")
        return self.mb.add(x=x, y=columns, name=f"uv_level{level}_columns")

    def head(self, output: str, pyramid: list[Var]) -> Var:
        """What a head reads out of the pyramid, before its activation, at the image's size: (1, C, H, W)."""
        path = f"{output}_head"
        x = None
        for level, refined in enumerate(pyramid):
            layer = fold.convolution(self.weights, f"{path}.levels.{level}.input")
            y = self.convolve(refined, layer, f"{path}_level{level}_input")
            if x is not None:
                y = self.mb.add(x=y, y=self.grow(x, path, level), name=f"{path}_level{level}_sum")
            x = self.refine(y, path, level, self.config.heads)
        x = self.convolve(x, fold.convolution(self.weights, f"{path}.read_out"), f"{path}_read_out")
        return self.resize(x, self.backbone.patch_size / FINEST, f"{path}_resized")

    def refine(self, x: Var, path: str, level: int, config: ConvStackConfig) -> Var:
        """A level's residual units."""
        for unit in range(config.num_blocks[level]):
            block, name = f"{path}.levels.{level}.blocks.{unit}", f"{path}_level{level}_unit{unit}"
            y = x
            for conv in ("conv1", "conv2"):
                y = self.mb.relu(x=y, name=f"{name}_{conv}_relu")
                y = self.convolve_edge(y, f"{block}.{conv}", f"{name}_{conv}")
            x = self.mb.add(x=x, y=y, name=name)
        return x

    def grow(self, x: Var, path: str, level: int) -> Var:
        """A map to twice its size, the level's: by weights, and to the finest level between the pixels."""
        growth, name = f"{path}.growths.{level - 1}", f"{path}_growth{level}"
        if level == LEVELS - 1:
            x = self.resize(x, 2, f"{name}_resized")
        else:
            layer = fold.transposed_convolution(self.weights, f"{growth}.transposed")
            x = self.mb.conv_transpose(
                x=x, weight=layer.weight, bias=layer.bias, strides=[2, 2], name=f"{name}_transposed"
            )
        return self.convolve_edge(x, f"{growth}.conv", name)

    def convolve_edge(self, x: Var, path: str, name: str) -> Var:
        """A 3×3 convolution beyond whose border the outermost pixels go on."""
        x = self.mb.pad(x=x, pad=[1, 1, 1, 1], mode="replicate", name=f"{name}_edge")
        return self.convolve(x, fold.convolution(self.weights, path), name)

    def resize(self, x: Var, factor: float, name: str) -> Var:
        """By a factor that float32 holds exactly, and that gives whole sides: eighths of whole numbers."""
        factor = np.float32(factor)
        return self.mb.upsample_bilinear(
            x=x, scale_factor_height=factor, scale_factor_width=factor, align_corners=False, name=name
        )

    def points(self, values: Var, name: str) -> tuple[Var, Var]:
        """x / z, y / z and log z to z, whose operation is called ``name``, and to x, y and z."""
        across, down, log = self.mb.split(x=values, num_splits=3, axis=1, name="points_values")
        z = self.mb.exp(x=log, name=name)
        x, y = self.mb.mul(x=across, y=z, name="points_x"), self.mb.mul(x=down, y=z, name="points_y")
        return z, self.mb.concat(values=[x, y, z], axis=1, name=POINTS)

    def unit_vectors(self, values: Var) -> Var:
        """Vectors to length 1; divided by their largest part first, no square leaves float16."""
        size = self.mb.abs(x=values, name="normals_sizes")
        largest = self.mb.reduce_max(x=size, axes=[1], keep_dims=True, name="normals_largest")
        largest = self.mb.maximum(x=largest, y=np.float32(SMALLEST_RANGE), name="normals_largest_positive")
        x = self.mb.real_div(x=values, y=largest, name="normals_scaled")
        length = self.mb.reduce_l2_norm(x=x, axes=[1], keep_dims=True, name="normals_length")
        length = self.mb.maximum(x=length, y=np.float32(1), name="normals_length_positive")
        return self.mb.real_div(x=x, y=length, name=NORMALS)

    def scale(self, x: Var) -> Var:
        """The last layer's class token to metres in a unit of the points, (1,)."""
        *hidden, last = fold.fold_scale_head(self.weights)
        x = self.class_token(x, "head_scale_token")
        for index, layer in enumerate(hidden):
            x = self.linear(x, layer, f"head_scale_hidden{index}")
            x = self.mb.relu(x=x, name=f"head_scale_relu{index}")
        x = self.mb.exp(x=self.linear(x, last, f"{SCALE}_log"), name=f"{SCALE}_exp")
        return self.mb.reshape(x=x, shape=[1], name=SCALE)
