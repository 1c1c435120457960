"""What networks of a vision transformer and a head have in common: images as patches, and what stands where."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.errors import CheckpointError
from mlx_depth.heads.dpt import RESAMPLINGS
from mlx_depth.models.base import DepthNetwork, Size, Stage


class ViTNetwork(DepthNetwork):
    """Base of networks with a ``backbone``, whose position tables are shared by images of a size, and a ``head``."""

    _config: Any  # with a backbone

    @property
    def multiple_of(self) -> int:
        """The patch size."""
        return self._config.backbone.patch_size

    def prepare(self, size: Size) -> list[mx.array]:
        """The backbone's position tables for a size."""
        return self.backbone.shared(self._grid_size(size))

    def largest_map(self, size: Size) -> int:
        """Values of the head's fused path, for one image."""
        return self.head.largest_map(self._grid_size(size))

    def _grid_size(self, size: Sequence[int]) -> Size:
        return size[0] // self.multiple_of, size[1] // self.multiple_of


def check_head_fits(backbone: tuple[int, int], head: tuple[int, int]) -> None:
    """Raise ``CheckpointError`` unless the width and patch size of tokens are those that the head takes."""
    if backbone != head:
        raise CheckpointError(
            f"the backbone's width and patch size are {backbone}, the head's {head}: "
            "take the config.json of the original checkpoint."
        )


def quantizable(path: str, module: nn.Module) -> bool:
    """``Family.quantizable``: the linear layers of backbones' blocks."""
    return "backbone.blocks." in path and isinstance(module, nn.Linear)


def backbone_stages(out_layers: Sequence[int], where: str = "") -> tuple[Stage, ...]:
    """Stages of a backbone: its patches, and the layers that it hands out; ``where``: what stands before its path."""
    return (
        Stage("patch embedding", f"{where}backbone.patch_embed"),
        *(Stage(f"layer {i}", f"{where}backbone.blocks.{i}") for i in out_layers),
    )


def dpt_stages(out_layers: Sequence[int], where: str = "") -> tuple[Stage, ...]:
    """Stages of a backbone and a DPT head up to its first convolution; arguments as for ``backbone_stages``."""
    levels = range(len(RESAMPLINGS))
    return (
        *backbone_stages(out_layers, where),
        *(Stage(f"reassemble {i}", f"{where}head.reassemble.{i}") for i in levels),
        *(Stage(f"fusion {i}", f"{where}head.fusion.{i}") for i in levels),
        Stage("head", f"{where}head.conv1"),
    )


def positioned_dpt_stages(out_layers: Sequence[int]) -> tuple[Stage, ...]:
    """``dpt_stages``, and behind the patches the tokens with their positions."""
    patches, *others = dpt_stages(out_layers)
    return (patches, Stage("with positions", "backbone.blocks.0", at="input"), *others)
