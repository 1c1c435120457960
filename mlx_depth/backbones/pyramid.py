"""Depth Pro's encoder (Bochkovskii et al., 2025): windows of three sizes of an image, all seen by one transformer.

Upstream: ``depth_pro/network/encoder.py`` and transformers' ``modeling_depth_pro.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.backbones.dinov2 import DINOv2, DINOv2Config
from mlx_depth.errors import CheckpointError
from mlx_depth.nn import ops
from mlx_depth.nn.resize import resize
from mlx_depth.weights.config_values import check_at_least

LEVELS = 3  # sizes of the image, each twice as large as the one before; the coarsest is one window
TAPS = 2  # layers of the windows at the finest level that are handed out beside the last


@dataclass(frozen=True)
class PyramidConfig:
    """How windows are cut, seen and joined."""

    encoder: DINOv2Config  # of the windows; that of the whole image hands out the last layer alone
    overlaps: tuple[float, float, float] = (0.0, 0.5, 0.25)  # share of a window that the next one sees, coarsest first
    padding: int = 3  # patches that a window loses at inner edges of the finest level, twice as many of the next

    def __post_init__(self) -> None:
        check_at_least(self, {"padding": 1})
        encoder = self.encoder
        last = encoder.num_layers - 1
        if len(encoder.out_layers) != TAPS + 1 or encoder.out_layers[-1] != last:
            raise CheckpointError(
                f"the windows' encoder hands out the layers {encoder.out_layers} (zero-based) of "
                f"{encoder.num_layers}, not {TAPS} and the last: take the config.json of the original checkpoint."
            )
        if encoder.raw_layers != encoder.out_layers[:-1]:
            raise CheckpointError(
                f"raw_layers are {encoder.raw_layers}, not {encoder.out_layers[:-1]}: "
                "take the config.json of the original checkpoint."
            )
        for level in range(LEVELS):
            self._check_windows(level)

    def _check_windows(self, level: int) -> None:
        if not 0 <= self.overlaps[level] < 1 or self.stride(level) < 1:
            raise CheckpointError(
                f"windows that overlap by {self.overlaps[level]} are none: "
                "take the config.json of the original checkpoint."
            )
        patches, lost = self.encoder.table_size, 2 * self.cut(level)
        count, rest = divmod(self.side(level) - self.window, self.stride(level))
        joined = (count + 1) * patches - count * lost
        if rest or joined != patches * 2**level:
            raise CheckpointError(
                f"windows of {self.window} pixels that overlap by {self.overlaps[level]} and lose {self.cut(level)} "
                f"patches do not join to the {self.side(level)} pixels of their image: "
                "take the config.json of the original checkpoint."
            )

    @property
    def window(self) -> int:
        """Side of a window in pixels."""
        return self.encoder.table_size * self.encoder.patch_size

    @property
    def image_size(self) -> int:
        """Side of the whole image in pixels."""
        return self.side(LEVELS - 1)

    def side(self, level: int) -> int:
        """Side in pixels of the image at a level, the coarsest being 0."""
        return self.window * 2**level

    def stride(self, level: int) -> int:
        """Pixels from one window of a level to the next."""
        return int(self.window * (1 - self.overlaps[level]))

    def cut(self, level: int) -> int:
        """Patches that each window of a level loses where another joins it: a quarter of its side at the most."""
        return min(self.encoder.table_size // 4, self.padding * 2 ** (LEVELS - 1 - level))


class PyramidMaps(NamedTuple):
    """What is seen of an image, as maps of patches."""

    levels: list[mx.array]  # the windows' last layer, (B, n, n, C), (B, 2 n, 2 n, C) and (B, 4 n, 4 n, C)
    taps: list[mx.array]  # further layers at the finest level, the deepest first, (B, 4 n, 4 n, C), not normalized
    image: mx.array  # of the encoder that sees the whole image, (B, n, n, C)
    small: mx.array  # the image at the coarsest level, (B, window, window, 3)


class PyramidEncoder(nn.Module):
    """An image to maps at three levels."""

    def __init__(self, config: PyramidConfig):
        super().__init__()
        self._config = config
        self.patch_encoder = DINOv2(config.encoder)
        self.image_encoder = DINOv2(whole_image(config.encoder))

    def __call__(self, pixel_values: mx.array) -> PyramidMaps:
        """Run both transformers; few windows are worked on at once.

        Args:
            pixel_values: Normalized images, ``(B, image_size, image_size, 3)``.
        """
        config = self._config
        images = [resize(pixel_values, (config.side(level),) * 2) for level in range(LEVELS)]
        windows = [cut(image, config.window, config.stride(level)) for level, image in enumerate(images)]
        finest_first = mx.concatenate([window for level in reversed(windows) for window in level])
        layers = ops.in_batches(
            lambda some: [layer.patch_tokens for layer in self.patch_encoder(some[0])], [finest_first]
        )
        *taps, last = (self._as_maps(layer, len(pixel_values)) for layer in layers)
        levels, start = [], 0
        for level in reversed(range(LEVELS)):
            levels.append(join(last[start : start + len(windows[level])], config.cut(level)))
            start += len(windows[level])
        finest = slice(0, len(windows[-1]))
        (seen,) = self.image_encoder(images[0])
        return PyramidMaps(
            levels=levels[::-1],
            taps=[join(tap[finest], config.cut(LEVELS - 1)) for tap in reversed(taps)],
            image=self._as_maps(seen.patch_tokens, len(pixel_values))[0],
            small=images[0],
        )

    def shared(self) -> list[mx.array]:
        """The position tables."""
        grid_size = (self._config.encoder.table_size,) * 2
        return [*self.patch_encoder.shared(grid_size), *self.image_encoder.shared(grid_size)]

    def _as_maps(self, tokens: mx.array, batch: int) -> list[mx.array]:
        """Tokens of windows as maps, those of one place in all images together."""
        n = self._config.encoder.table_size
        maps = tokens.reshape(-1, batch, n, n, tokens.shape[-1])  # tokens → maps
        return [maps[index] for index in range(len(maps))]


def whole_image(encoder: DINOv2Config) -> DINOv2Config:
    """The config of an encoder of the same size that sees the whole image."""
    return replace(encoder, out_layers=(encoder.num_layers - 1,), raw_layers=())


def cut(image: mx.array, window: int, stride: int) -> list[mx.array]:
    """Square windows of a square image, row by row.

    Args:
        image: ``(B, side, side, C)``.
        window: Side of a window.
        stride: Pixels from one to the next, across and down.
    Returns:
        As many ``(B, window, window, C)`` as fit.
    """
    places = range(0, image.shape[1] - window + 1, stride)
    return [image[:, top : top + window, left : left + window] for top in places for left in places]


def join(windows: Sequence[mx.array], lost: int) -> mx.array:
    """Maps of windows as one map; where two windows join, each loses what the other sees better.

    Args:
        windows: n × n maps ``(B, h, h, C)``, row by row.
        lost: Rows and columns that a map loses at an inner edge.
    Returns:
        ``(B, h', h', C)``, with ``h' = n h - 2 (n - 1) lost``.
    """
    n, h = round(len(windows) ** 0.5), windows[0].shape[1]
    kept = [slice(lost if i else 0, h - (lost if i < n - 1 else 0)) for i in range(n)]
    rows = [
        mx.concatenate([windows[row * n + column][:, kept[row], kept[column]] for column in range(n)], axis=2)
        for row in range(n)
    ]
    return mx.concatenate(rows, axis=1)
