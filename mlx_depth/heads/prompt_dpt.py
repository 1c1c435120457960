"""DPT with a depth prompt (Lin et al., 2024): each fusion adds what a few convolutions make of the prompt.

Upstream: ``promptda/model/blocks.py`` and transformers' ``modeling_prompt_depth_anything.py``.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.heads import dpt
from mlx_depth.heads.dpt import RESAMPLINGS, DPTConfig, DPTHead, Fusion, fuse
from mlx_depth.nn.activations import relu
from mlx_depth.nn.conv import Conv2d
from mlx_depth.nn.resize import resize
from mlx_depth.weights.rules import Rename, Rule


class PromptLayer(nn.Module):
    """A prompt as features, at its own size."""

    def __init__(self, features: int):
        super().__init__()
        self.conv1 = Conv2d(1, features, kernel_size=3, padding=1)
        self.conv2 = Conv2d(features, features, kernel_size=3, padding=1)
        self.conv3 = Conv2d(features, features, kernel_size=3, padding=1)

    def __call__(self, prompt: mx.array) -> mx.array:
        features: mx.array = self.conv3(relu(self.conv2(relu(self.conv1(prompt)))))
        return features


class PromptFusion(Fusion):
    """A fusion that adds a prompt of any size to the merged map, where there is one."""

    def __init__(self, features: int, *, coarsest: bool):
        super().__init__(features, coarsest=coarsest)
        self.prompt = PromptLayer(features)

    def __call__(
        self, path: mx.array, finer: mx.array | None, size: tuple[int, int], prompt: mx.array | None = None
    ) -> mx.array:
        path = self.merge(path, finer)
        if prompt is not None:
            path = path + self.prompt(resize(prompt, (path.shape[1], path.shape[2])))
        return self.grow(path, size)


class PromptDPTHead(DPTHead):
    """A DPT head whose fusions take a depth prompt."""

    def __init__(self, config: DPTConfig):
        super().__init__(config)
        self.fusion = [PromptFusion(config.features, coarsest=level == 0) for level in range(len(RESAMPLINGS))]

    def __call__(  # type: ignore[override]
        self, patch_tokens: Sequence[mx.array], grid_size: tuple[int, int], prompt: mx.array | None = None
    ) -> mx.array:
        """Decode depth.

        Args:
            patch_tokens: As for ``DPTHead``, like ``grid_size``.
            prompt: ``(B, h, w, 1)`` of any size, 0..1; None: depth without one.
        Returns:
            Depth ``(B, gh * patch_size, gw * patch_size)``, between the least and the most of the prompt as 0 and 1.
        """
        maps = self.maps(patch_tokens, grid_size)
        path = fuse(self.fusion, maps) if prompt is None else fuse(self.fusion, maps, prompt)
        return self.read_out(path, grid_size)


# The tables are relative to the head, as those of ``dpt``.
_LEVELS = range(len(RESAMPLINGS))

ORIGINAL: tuple[Rule, ...] = (
    *dpt.ORIGINAL,
    *(
        Rename(
            f"scratch.refinenet{len(_LEVELS) - level}.resConfUnit_depth.{2 * number}.{{p}}",
            f"fusion.{level}.prompt.conv{number + 1}.{{p}}",
        )
        for level in _LEVELS
        for number in range(3)
    ),
)
TRANSFORMERS: tuple[Rule, ...] = (
    *dpt.TRANSFORMERS,
    Rename("neck.fusion_stage.layers.{i}.prompt_depth_layer.convolution{c}.{p}", "fusion.{i}.prompt.conv{c}.{p}"),
)
