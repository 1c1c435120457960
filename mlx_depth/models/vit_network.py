"""What networks of a vision transformer and a head have in common: how images relate to patches."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlx_depth.errors import CheckpointError
from mlx_depth.models.base import DepthNetwork, Size


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
