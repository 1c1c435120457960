"""Depth Anything V1 and V2 as a Core ML graph."""

from mlx_depth_convert.coreml.emitters.base import Var
from mlx_depth_convert.coreml.emitters.dinov2_dpt import DINOv2DPTEmitter


class DepthAnythingEmitter(DINOv2DPTEmitter):
    """Depth Anything V1 and V2: depth alone."""

    def activate(self, values: Var, name: str) -> list[Var]:
        return [self.activate_depth(values, name)]
