"""Prompt Depth Anything (Lin et al., 2024): Depth Anything V2 that takes coarse distances beside the photo.

Upstream: ``promptda/promptda.py`` and transformers' ``modeling_prompt_depth_anything.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy.typing as npt

from mlx_depth.backbones.dinov2 import DINOv2
from mlx_depth.errors import OptionError
from mlx_depth.heads.prompt_dpt import PromptDPTHead
from mlx_depth.models.base import PROMPT, DepthOutputs, Meaning
from mlx_depth.models.depth_anything.network import DepthAnythingConfig, depth_anything_config
from mlx_depth.models.vit_network import ViTNetwork
from mlx_depth.result import DepthKind


@dataclass(frozen=True)
class PromptDepthAnythingConfig(DepthAnythingConfig):
    """One Prompt Depth Anything network."""

    @property
    def depth_kind(self) -> DepthKind:
        """Metric: in the metres of the prompt."""
        return DepthKind.METRIC

    @property
    def max_depth(self) -> float | None:
        """None: each prompt has its own range."""
        return None

    def meaning(self, conditions: Mapping[str, npt.NDArray[Any]]) -> Meaning:
        """Metres, that a sigmoid head holds within the prompt's; without a prompt relative depth."""
        if PROMPT not in conditions:
            return Meaning(DepthKind.RELATIVE, None)
        return Meaning(DepthKind.METRIC, float(conditions[PROMPT].max()) if self.head.activation == "sigmoid" else None)


class PromptDepthAnything(ViTNetwork):
    """Normalized images and depth prompts to depth at the size of the images."""

    conditions = (PROMPT,)

    def __init__(self, config: PromptDepthAnythingConfig):
        super().__init__()
        self._config = config
        self.backbone = DINOv2(config.backbone)
        self.head = PromptDPTHead(config.head)

    def __call__(self, pixel_values: mx.array, prompt_depth: mx.array | None = None) -> DepthOutputs:
        """Predict depth.

        Args:
            pixel_values: Normalized RGB, ``(B, H, W, 3)``; H and W are multiples of the patch size, 14.
            prompt_depth: Metres, ``(B, h, w)`` of any size, float32, two different ones in each image: with one alone
                the depth is not a number. None: no prompt.
        Returns:
            ``depth`` ``(B, H, W)``: metres; without a prompt unitless, larger = farther, unknown scale and shift.
        Raises:
            OptionError: If a shape does not fit.
        """
        self.check(pixel_values.shape)
        B, H, W, _ = pixel_values.shape
        grid_size = self._grid_size((H, W))
        tokens = [layer.patch_tokens for layer in self.backbone(pixel_values)]
        if prompt_depth is None:
            return DepthOutputs(self.head(tokens, grid_size))
        if prompt_depth.ndim != 3 or prompt_depth.shape[0] != B or 0 in prompt_depth.shape:
            raise OptionError(f"prompt_depth has shape {prompt_depth.shape}: pass (B, h, w) with B = {B}.")
        near = prompt_depth.min(axis=(1, 2), keepdims=True)
        span = prompt_depth.max(axis=(1, 2), keepdims=True) - near
        prompt = ((prompt_depth - near) / span).astype(pixel_values.dtype)
        return DepthOutputs(self.head(tokens, grid_size, prompt[..., None]) * span + near)


def with_prompt(config: DepthAnythingConfig) -> PromptDepthAnythingConfig:
    """The same network with a prompt; upstream never multiplies by a ``max_depth``."""
    return PromptDepthAnythingConfig(config.backbone, replace(config.head, max_depth=1.0))


def prompt_depth_anything_config(size: str) -> PromptDepthAnythingConfig:
    """The published sizes: ``small`` and ``large``."""
    return with_prompt(depth_anything_config(size, max_depth=1.0))
