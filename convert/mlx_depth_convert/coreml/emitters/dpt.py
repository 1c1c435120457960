"""DPT on DINOv2, for metres as in NYUv2 and in KITTI, as a Core ML graph.

Fusions double the path, so the network's depth is larger than its input: it is brought to the size of the image as
``mlx-depth predict`` brings it to a photo's, by two products, for Core ML has no bicubic operation.
"""

from typing import ClassVar

from mlx_depth.heads.dpt import DPTConfig
from mlx_depth_convert.coreml.emitters import fold
from mlx_depth_convert.coreml.emitters.base import Size, Var
from mlx_depth_convert.coreml.emitters.dinov2_dpt import DINOv2DPTEmitter


class DPTMetricEmitter(DINOv2DPTEmitter):
    """One image to depth in metres."""

    float_prefixes: ClassVar[tuple[str, ...]] = (*DINOv2DPTEmitter.float_prefixes, "restore_")
    note: ClassVar[str] = (
        "mlx-depth takes a photo as it is, with a rim to whole patches; a photo that is stretched to this size instead "
        "is another input, and its metres are others."
    )

    @property
    def head(self) -> DPTConfig:
        head: DPTConfig = self.spec.config.head
        return head

    def hand_out(self, x: Var, index: int, name: str) -> Var:
        """On the scaled stream: raw, or normalized where the config says so."""
        if index in self.backbone.raw_layers:
            return x
        affine = fold.fold_stream_norm(self.weights, "backbone.norm")
        return self.norm(x, f"{name}_norm", eps=fold.stream_eps(self.backbone.norm_eps), affine=affine)

    def project(self, x: Var, level: int, grid_size: Size, name: str) -> Var:
        """Patch tokens, told what the class token holds, to a map."""
        tokens = self.patches(x, f"{name}_patches")
        if self.head.readout == "project":
            tokens = self.read(tokens, self.class_token(x, f"{name}_class"), level, name)
            layer = fold.convolution(self.weights, f"head.reassemble.{level}.projection")
        else:
            if self.head.readout == "add":
                tokens = self.mb.add(x=tokens, y=self.class_token(x, f"{name}_class"), name=f"{name}_readout")
            layer = fold.fold_projection(self.weights, f"head.reassemble.{level}.projection", norm=None)
        return self.convolve(self.to_map(tokens, grid_size, name), layer, f"{name}_projection")

    def read(self, tokens: Var, class_token: Var, level: int, name: str) -> Var:
        """One linear layer of both as one of each, of which that of the class token is computed once."""
        patch, image = fold.fold_readout(self.weights, f"head.reassemble.{level}.readout")
        shared = self.linear(class_token, image, f"{name}_image")
        x = self.linear(tokens, patch, f"{name}_patch")
        return self.mb.gelu(x=self.mb.add(x=x, y=shared, name=f"{name}_sum"), mode="EXACT", name=f"{name}_readout")

    def path_sizes(self, sizes: list[Size]) -> list[Size]:
        """Each twice the one before."""
        if not self.head.doubling:
            return super().path_sizes(sizes)
        h, w = sizes[0]
        return [(h << level, w << level) for level in range(1, len(sizes) + 1)]

    def decode(self, tapped: list[Var], grid_size: Size, name: str) -> list[Var]:
        """Tokens of the tapped layers to depth at the size of the image."""
        x, (h, w) = self.fuse([self.reassemble(x, level, grid_size) for level, x in enumerate(tapped)])
        image_size = (grid_size[0] * self.head.patch_size, grid_size[1] * self.head.patch_size)
        if self.head.projection:
            x = self.convolve(x, fold.convolution(self.weights, "head.projection"), "head_projection", pad=1)
            x = self.mb.relu(x=x, name="head_projection_relu")
        size = (2 * h, 2 * w) if self.head.doubling else image_size
        depth = self.activate_depth(self.read_out((x, (h, w)), size), "head_depth")
        return [self.restore(depth, size, image_size, name)]

    def restore(self, depth: Var, size: Size, to: Size, name: str) -> Var:
        """The network's depth at the size of the image."""
        rows, columns = fold.fold_resize(size, to, self.spec.processor.restore)
        down, across = self.mb.const(val=rows, name="restore_rows"), self.mb.const(val=columns, name="restore_columns")
        x = self.mb.matmul(x=down, y=depth, name="head_restored_rows")
        return self.mb.matmul(x=x, y=across, name=name)
