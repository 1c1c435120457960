"""DPT (Ranftl et al., 2021): tokens of four layers, reassembled into maps, fused, and read out as depth.

Upstream: ``depth_anything_v2/dpt.py`` and transformers' ``modeling_depth_anything.py``.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.errors import CheckpointError
from mlx_depth.nn import ops
from mlx_depth.nn.activations import relu
from mlx_depth.nn.conv import Conv2d, ConvTranspose2d
from mlx_depth.nn.resize import resize, resize_rows
from mlx_depth.weights.config_values import check_at_least
from mlx_depth.weights.rules import Drop, Rename, Rule

Resampling = Literal["up4", "up2", "keep", "down2"]
STRIP_ROWS = 64  # of the network's input size, at least
STRIP_BYTES = 1 << 24  # of the grown map, where no cache asks for the least
RESAMPLINGS: tuple[Resampling, ...] = ("up4", "up2", "keep", "down2")  # finest map first


@dataclass(frozen=True)
class DPTConfig:
    """Sizes of a DPT head and how its last value becomes depth."""

    in_dim: int  # channels of the tokens
    features: int  # channels of the fused maps
    out_channels: tuple[int, int, int, int]  # channels of the reassembled maps, finest first
    hidden_channels: int = 32
    patch_size: int = 14
    activation: Literal["relu", "sigmoid"] = "relu"
    max_depth: float = 1.0  # factor after the activation; metres for sigmoid heads

    def __post_init__(self) -> None:
        check_at_least(self, dict.fromkeys(("in_dim", "features", "out_channels", "hidden_channels", "patch_size"), 1))
        if len(self.out_channels) != len(RESAMPLINGS) or not 0 < self.max_depth < math.inf:
            raise CheckpointError(
                f"a DPT head has {len(RESAMPLINGS)} out_channels and a max_depth above 0, not {self.out_channels} and "
                f"{self.max_depth}: take the config.json of the original checkpoint."
            )
        if self.features < 2:
            raise CheckpointError(
                f"a DPT head cannot halve {self.features} features: take the config.json of the original checkpoint."
            )


class Reassemble(nn.Module):
    """Tokens of one layer as a map: project, resample, adapt to the fusion width."""

    def __init__(self, in_dim: int, channels: int, features: int, resampling: Resampling):
        super().__init__()
        self.projection = Conv2d(in_dim, channels, kernel_size=1)
        if resampling in ("up4", "up2"):
            factor = int(resampling[-1])
            self.resample: nn.Module = ConvTranspose2d(channels, channels, kernel_size=factor, stride=factor)
        elif resampling == "down2":
            self.resample = Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)
        self.adapt = Conv2d(channels, features, kernel_size=3, padding=1, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.projection(x)
        if "resample" in self:
            x = self.resample(x)
        return self.adapt(x)


class ResidualConvUnit(nn.Module):
    """Two pre-activated 3×3 convolutions with a residual connection."""

    def __init__(self, features: int):
        super().__init__()
        self.conv1 = Conv2d(features, features, kernel_size=3, padding=1)
        self.conv2 = Conv2d(features, features, kernel_size=3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.conv2(relu(self.conv1(relu(x))))


class Fusion(nn.Module):
    """Add a finer map to the coarser path, refine, and grow to the next size. The coarsest has nothing to add."""

    def __init__(self, features: int, *, coarsest: bool):
        super().__init__()
        if not coarsest:
            self.residual_conv_unit1 = ResidualConvUnit(features)
        self.residual_conv_unit2 = ResidualConvUnit(features)
        self.projection = Conv2d(features, features, kernel_size=1)

    def __call__(self, path: mx.array, finer: mx.array | None, size: tuple[int, int]) -> mx.array:
        if finer is not None:
            path = path + self.residual_conv_unit1(finer)
        path = self.residual_conv_unit2(path)
        # Upstream grows first; a 1×1 convolution and bilinear weights, whose sum is 1, commute.
        return resize(self.projection(path), size, method="bilinear", align_corners=True)


class DPTHead(nn.Module):
    """Tokens of four layers to depth at the network's input size."""

    def __init__(self, config: DPTConfig):
        super().__init__()
        self._config = config
        features = config.features
        self.reassemble = [
            Reassemble(config.in_dim, channels, features, resampling)
            for channels, resampling in zip(config.out_channels, RESAMPLINGS, strict=True)
        ]
        self.fusion = [Fusion(features, coarsest=level == 0) for level in range(len(RESAMPLINGS))]
        self.conv1 = Conv2d(features, features // 2, kernel_size=3, padding=1)
        self.conv2 = Conv2d(features // 2, config.hidden_channels, kernel_size=3, padding=1)
        self.conv3 = Conv2d(config.hidden_channels, 1, kernel_size=1)

    def __call__(self, patch_tokens: Sequence[mx.array], grid_size: tuple[int, int]) -> mx.array:
        """Decode depth.

        Args:
            patch_tokens: Four arrays ``(B, gh * gw, C)``, the shallowest layer first.
            grid_size: Patches ``(gh, gw)``.
        Returns:
            Depth ``(B, gh * patch_size, gw * patch_size)``: inverse depth >= 0 (relu) or metres (sigmoid).
        """
        gh, gw = grid_size
        maps = [
            reassemble(tokens.reshape(tokens.shape[0], gh, gw, -1))  # tokens → map
            for reassemble, tokens in zip(self.reassemble, patch_tokens, strict=True)
        ]
        return self.read_out(self.fuse(maps), grid_size)

    def largest_map(self, grid_size: tuple[int, int]) -> int:
        """Values of the fused path, the largest map that exists as a whole, for one image."""
        gh, gw = grid_size
        return (8 * gh) * (8 * gw) * self._config.features

    def fuse(self, maps: Sequence[mx.array]) -> mx.array:
        """Merge maps, finest first, from coarse to fine: (B, 2 h, 2 w, features)."""
        levels = list(reversed(maps))
        sizes = [_size(level) for level in levels[1:]]
        h, w = _size(levels[-1])
        path = self.fusion[0](levels[0], None, sizes[0])
        for fusion, finer, size in zip(self.fusion[1:], levels[1:], [*sizes[1:], (2 * h, 2 * w)], strict=True):
            path = fusion(path, finer, size)
        return path

    def read_out(self, path: mx.array, grid_size: tuple[int, int]) -> mx.array:
        """Turn the fused path into depth at the network's input size, (B, H, W)."""
        config = self._config
        size = (grid_size[0] * config.patch_size, grid_size[1] * config.patch_size)
        x = self._refine(self.conv1(path), size)
        return (relu(x) if config.activation == "relu" else mx.sigmoid(x)) * config.max_depth

    def _refine(self, x: mx.array, size: tuple[int, int]) -> mx.array:
        """Grow and refine some rows at a time: the largest maps never exist as a whole."""
        row_bytes = x.nbytes // (x.shape[1] * x.shape[2]) * size[1]
        step = STRIP_ROWS if ops.cache_bytes(x) else max(STRIP_ROWS, STRIP_BYTES // row_bytes)
        return ops.build_tiles(functools.partial(self._refine_rows, size), x, size[0], step)

    def _refine_rows(self, size: tuple[int, int], x: mx.array, start: int, stop: int) -> mx.array:
        """Some rows of the depth, (B, rows, W), in float32: half precision has steps that one can see."""
        first, end = max(start - 1, 0), min(stop + 1, size[0])  # conv2 sees one row more on each side
        x = relu(self.conv2(resize_rows(x, size, (first, end), method="bilinear", align_corners=True)))
        x = self.conv3(x.astype(mx.float32))[..., 0]  # (B, rows, W, 1) → (B, rows, W)
        return x[:, start - first : stop - first]


def _size(x: mx.array) -> tuple[int, int]:
    return x.shape[1], x.shape[2]


# The tables are relative to the head.
_UNUSED_UNIT = "the coarsest fusion has no finer map to add, so upstream never runs its first residual unit"


def _fusion(level: int, unit: str, conv: str, projection: str) -> tuple[Rule, ...]:
    """One level's rules, from the source's names: of its units without their number, a convolution, the projection."""
    first, second = (f"{unit}{number}.{conv}.{{p}}" for number in (1, 2))
    target = f"fusion.{level}"
    return (
        Drop(first, _UNUSED_UNIT) if level == 0 else Rename(first, f"{target}.residual_conv_unit1.conv{{c}}.{{p}}"),
        Rename(second, f"{target}.residual_conv_unit2.conv{{c}}.{{p}}"),
        Rename(f"{projection}.{{p}}", f"{target}.projection.{{p}}"),
    )


def _fusions(block: str, blocks: Sequence[int], unit: str, conv: str, projection: str) -> tuple[Rule, ...]:
    """All levels, coarsest first; ``blocks`` are the numbers that the source gives them."""
    names = [f"{block}{number}" for number in blocks]
    return tuple(
        rule
        for level, name in enumerate(names)
        for rule in _fusion(level, f"{name}.{unit}", conv, f"{name}.{projection}")
    )


ORIGINAL: tuple[Rule, ...] = (
    Rename("projects.{i}.{p}", "reassemble.{i}.projection.{p}"),
    Rename("resize_layers.{i}.{p}", "reassemble.{i}.resample.{p}"),
    *(Rename(f"scratch.layer{i + 1}_rn.weight", f"reassemble.{i}.adapt.weight") for i in range(4)),
    *_fusions("scratch.refinenet", (4, 3, 2, 1), "resConfUnit", "conv{c}", "out_conv"),
    Rename("scratch.output_conv1.{p}", "conv1.{p}"),
    Rename("scratch.output_conv2.0.{p}", "conv2.{p}"),
    Rename("scratch.output_conv2.2.{p}", "conv3.{p}"),
)


TRANSFORMERS: tuple[Rule, ...] = (
    Rename("neck.reassemble_stage.layers.{i}.projection.{p}", "reassemble.{i}.projection.{p}"),
    Rename("neck.reassemble_stage.layers.{i}.resize.{p}", "reassemble.{i}.resample.{p}"),
    Rename("neck.convs.{i}.weight", "reassemble.{i}.adapt.weight"),
    *_fusions("neck.fusion_stage.layers.", (0, 1, 2, 3), "residual_layer", "convolution{c}", "projection"),
    Rename("head.{c}.{p}", "{c}.{p}"),
)


GGUF: tuple[Rule, ...] = (
    Rename("proj.{i}.{p}", "reassemble.{i}.projection.{p}"),
    Rename("resize.{i}.{p}", "reassemble.{i}.resample.{p}"),
    *(Rename(f"scratch.layer{i + 1}_rn.weight", f"reassemble.{i}.adapt.weight") for i in range(4)),
    *_fusions("scratch.rn", (4, 3, 2, 1), "rc", "c{c}", "out"),
    Rename("scratch.out1.{p}", "conv1.{p}"),
    Rename("scratch.out2a.{p}", "conv2.{p}"),
    Rename("scratch.out2b.{p}", "conv3.{p}"),
)
