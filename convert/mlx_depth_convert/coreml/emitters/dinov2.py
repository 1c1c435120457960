"""DINOv2 as a Core ML graph: its positions, and the tokens of the tapped layers."""

from typing import ClassVar

from mlx_depth.backbones.dinov2 import LAYER_NORM_EPS, DINOv2Config
from mlx_depth_convert.coreml.emitters import fold
from mlx_depth_convert.coreml.emitters.base import Size, Var
from mlx_depth_convert.coreml.emitters.vit import ViTEmitter


class DINOv2Emitter(ViTEmitter):
    """What the families on DINOv2 share; each writes its own head."""

    float_prefixes: ClassVar[tuple[str, ...]] = (*ViTEmitter.float_prefixes, "position_add")

    @property
    def backbone(self) -> DINOv2Config:
        backbone: DINOv2Config = self.spec.config.backbone
        return backbone

    @property
    def block_eps(self) -> float:
        """The same for all."""
        return LAYER_NORM_EPS

    def positioned(self, x: Var, grid_size: Size) -> Var:
        """Add the position table."""
        positions = fold.fold_positions(self.backbone, self.weights, grid_size)
        return self.mb.add(x=x, y=self.token_constant(positions), name="position_add")

    def transformer(self, x: Var, grid_size: Size) -> list[Var]:
        """Tokens to those of the tapped layers."""
        tapped: list[Var] = []
        for index in range(max(self.backbone.out_layers) + 1):
            x = self.block(x, index)
            if index in self.backbone.out_layers:
                tapped.append(self.hand_out(x, index, f"tap{len(tapped)}"))
        return tapped

    def hand_out(self, x: Var, index: int, name: str) -> Var:
        """The tokens of a tapped layer as the head takes them: normalized, and the affine is left to the head."""
        return self.norm(x, f"{name}_norm", eps=fold.stream_eps(self.backbone.norm_eps))
