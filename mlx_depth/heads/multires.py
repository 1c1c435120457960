"""Depth Pro's decoder (Bochkovskii et al., 2025): maps of five sizes, each grown by its own layers, fused and read out.

Upstream: ``depth_pro/network/decoder.py`` and transformers' ``modeling_depth_pro.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.backbones.pyramid import LEVELS, TAPS, PyramidMaps
from mlx_depth.errors import CheckpointError
from mlx_depth.heads.dpt import STRIP_BYTES, STRIP_ROWS, ResidualConvUnit, last_convolution
from mlx_depth.nn import ops
from mlx_depth.nn.activations import relu
from mlx_depth.nn.conv import Conv2d, ConvTranspose2d
from mlx_depth.weights.config_values import check_at_least
from mlx_depth.weights.rules import Drop, Rename, Rule

MAPS = LEVELS + TAPS  # coarsest first; each is twice as large as the one before once it has grown
# How often each map is doubled. All levels once; a tap, as large as the finest of them, to the sizes beyond.
DOUBLINGS = (*(1,) * LEVELS, *range(2, TAPS + 2))
TIMES_GRID = 2 ** (MAPS + 1)  # side of the depth in sides of the coarsest map


@dataclass(frozen=True)
class MultiresConfig:
    """Sizes of the decoder."""

    in_dim: int  # channels of the maps that come in
    level_channels: tuple[int, int, int] = (1024, 1024, 512)  # of the grown maps of the levels, coarsest first
    features: int = 256  # channels of the fused maps, and of the grown taps
    hidden_channels: int = 32

    def __post_init__(self) -> None:
        check_at_least(self, dict.fromkeys(("in_dim", "level_channels", "features", "hidden_channels"), 1))
        if self.features % 2:
            raise CheckpointError(
                f"a decoder cannot halve {self.features} features: take the config.json of the original checkpoint."
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the grown maps, coarsest first."""
        return *self.level_channels, *(self.features,) * TAPS


class Growth(nn.Module):
    """A map at another width, doubled some times: (B, h, w, in_dim) → (B, 2ᵏ h, 2ᵏ w, channels)."""

    def __init__(self, in_dim: int, channels: int, doublings: int):
        super().__init__()
        self.projection = Conv2d(in_dim, channels, kernel_size=1, bias=False)
        self.doublings = [_doubling(channels, channels, bias=False) for _ in range(doublings)]

    def __call__(self, x: mx.array) -> mx.array:
        x = self.projection(x)
        for doubling in self.doublings:
            x = doubling(x)
        return x


class GrowingFusion(nn.Module):
    """Add a finer map to the coarser path, refine, and double it. The coarsest has nothing to add, the finest stays."""

    def __init__(self, features: int, *, coarsest: bool, finest: bool):
        super().__init__()
        if not coarsest:
            self.residual_conv_unit1 = ResidualConvUnit(features)
        self.residual_conv_unit2 = ResidualConvUnit(features)
        if not finest:
            self.doubling = _doubling(features, features, bias=False)
        self.projection = Conv2d(features, features, kernel_size=1)

    def __call__(self, path: mx.array, finer: mx.array | None = None) -> mx.array:
        if finer is not None:
            path = path + self.residual_conv_unit1(finer)
        path = self.residual_conv_unit2(path)
        return self.projection(self.doubling(path) if "doubling" in self else path)


class Decoded(NamedTuple):
    """What the decoder reads out."""

    depth: mx.array  # canonical inverse depth, (B, H, W), float32, >= 0
    coarsest: mx.array  # the map that the fusions start from, (B, 2 n, 2 n, features)


class MultiresHead(nn.Module):
    """Maps of a pyramid to inverse depth at the size of its image."""

    def __init__(self, config: MultiresConfig):
        super().__init__()
        self._config = config
        features, coarsest = config.features, config.channels[0]
        self.image_doubling = _doubling(config.in_dim, coarsest)
        self.image_merge = Conv2d(2 * coarsest, coarsest, kernel_size=1)
        self.growths = [
            Growth(config.in_dim, channels, doublings)
            for channels, doublings in zip(config.channels, DOUBLINGS, strict=True)
        ]
        # The finest map is as wide as the path.
        self.adapt = [
            Conv2d(channels, features, kernel_size=3, padding=1, bias=False) for channels in config.channels[:-1]
        ]
        self.fusion = [GrowingFusion(features, coarsest=i == 0, finest=i == MAPS - 1) for i in range(MAPS)]
        self.conv1 = Conv2d(features, features // 2, kernel_size=3, padding=1)
        self.doubling = _doubling(features // 2, features // 2)
        self.conv2 = Conv2d(features // 2, config.hidden_channels, kernel_size=3, padding=1)
        self.conv3 = Conv2d(config.hidden_channels, 1, kernel_size=1)

    def __call__(self, maps: PyramidMaps) -> Decoded:
        """Decode inverse depth."""
        coarsest, *finer = self.grow(maps)
        path = self.fusion[0](coarsest)
        for fusion, x in zip(self.fusion[1:], finer, strict=True):
            path = fusion(path, x)
        return Decoded(self.read_out(path), coarsest)

    def largest_map(self, grid: int) -> int:
        """Values of the fused path, the largest map that exists as a whole, for one image.

        Args:
            grid: Side of the coarsest map, in patches.
        """
        return (grid * TIMES_GRID // 2) ** 2 * self._config.features

    def grow(self, maps: PyramidMaps) -> list[mx.array]:
        """All maps at their final sizes and at the width of the path, coarsest first."""
        first, *others = (growth(x) for growth, x in zip(self.growths, [*maps.levels, *maps.taps], strict=True))
        first = self.image_merge(mx.concatenate([first, self.image_doubling(maps.image)], axis=-1))
        *narrowed, finest = first, *others
        return [*(adapt(x) for adapt, x in zip(self.adapt, narrowed, strict=True)), finest]

    def read_out(self, path: mx.array) -> mx.array:
        """The fused path (B, h, w, features) as inverse depth, (B, 2 h, 2 w), some rows at a time."""
        x = self.conv1(path)
        height, row_bytes = 2 * x.shape[1], 2 * x.nbytes // (x.shape[0] * x.shape[1])

        def rows(x: mx.array, start: int, stop: int) -> mx.array:
            first, end = max(start - 1, 0), min(stop + 1, height)  # the second convolution sees one row more
            top = first // 2
            grown = self.doubling(x[:, top : (end + 1) // 2])[:, first - 2 * top : end - 2 * top]
            refined = relu(self.conv2(grown))[:, start - first : stop - first]
            return relu(last_convolution(self.conv3, refined))

        step = STRIP_ROWS if ops.cache_bytes(x) else max(STRIP_ROWS, STRIP_BYTES // row_bytes)
        return ops.build_tiles(rows, x, height, step)[..., 0]


def _doubling(in_dim: int, channels: int, *, bias: bool = True) -> ConvTranspose2d:
    return ConvTranspose2d(in_dim, channels, kernel_size=2, stride=2, bias=bias)


# The tables are relative to the network: upstream keeps parts of the decoder in its encoder.
_UNUSED_UNIT = "the coarsest fusion has no finer map to add, so upstream never runs its first residual unit"


def _growth(source: str, level: int) -> tuple[Rule, ...]:
    """A map's rules: layer 0 projects, the others double."""
    target = f"growths.{level}"
    return (
        Rename(f"{source}.0.weight", f"{target}.projection.weight"),
        *(Rename(f"{source}.{k + 1}.weight", f"{target}.doublings.{k}.weight") for k in range(DOUBLINGS[level])),
    )


def _fusion(
    level: int, source: str, units: Sequence[str], convolutions: Sequence[str], doubling: str, projection: str
) -> tuple[Rule, ...]:
    """A fusion's rules, from the source's names of its two units, of their convolutions, and of its other layers."""
    target = f"fusion.{level}"
    rules: list[Rule] = [Rename(f"{source}.{projection}.{{p}}", f"{target}.projection.{{p}}")]
    if level < MAPS - 1:
        rules.append(Rename(f"{source}.{doubling}.weight", f"{target}.doubling.weight"))
    for unit, unit_name in enumerate(units, 1):
        for conv, conv_name in enumerate(convolutions, 1):
            name = f"{source}.{unit_name}.{conv_name}.{{p}}"
            used = (unit, level) != (1, 0)
            ours = f"{target}.residual_conv_unit{unit}.conv{conv}.{{p}}"
            rules.append(Rename(name, ours) if used else Drop(name, _UNUSED_UNIT))
    return tuple(rules)


def _read_out(source: str) -> tuple[Rule, ...]:
    layers = {0: "conv1", 1: "doubling", 2: "conv2", 4: "conv3"}
    return tuple(Rename(f"{source}.{number}.{{p}}", f"{name}.{{p}}") for number, name in layers.items())


# The authors count from the finest map.
_GROWTHS_ORIGINAL = ("upsample2", "upsample1", "upsample0", "upsample_latent1", "upsample_latent0")
ORIGINAL: tuple[Rule, ...] = (
    *(rule for level, name in enumerate(_GROWTHS_ORIGINAL) for rule in _growth(f"encoder.{name}", level)),
    Rename("encoder.upsample_lowres.{p}", "image_doubling.{p}"),
    Rename("encoder.fuse_lowres.{p}", "image_merge.{p}"),
    *(Rename(f"decoder.convs.{MAPS - 1 - level}.weight", f"adapt.{level}.weight") for level in range(MAPS - 1)),
    *(
        rule
        for level in range(MAPS)
        for rule in _fusion(
            level,
            f"decoder.fusions.{MAPS - 1 - level}",
            ("resnet1", "resnet2"),
            ("residual.1", "residual.3"),
            "deconv",
            "out_conv",
        )
    ),
    *_read_out("head"),
)

_NECK = "depth_pro.neck"
_GROWTHS_TRANSFORMERS = (
    *(f"{_NECK}.feature_upsample.scaled_images.{level}.layers" for level in range(LEVELS)),
    *(f"{_NECK}.feature_upsample.intermediate.{tap}.layers" for tap in range(TAPS)),
)
TRANSFORMERS: tuple[Rule, ...] = (
    *(rule for level, name in enumerate(_GROWTHS_TRANSFORMERS) for rule in _growth(name, level)),
    Rename(f"{_NECK}.feature_upsample.image_block.layers.0.{{p}}", "image_doubling.{p}"),
    Rename(f"{_NECK}.fuse_image_with_low_res.{{p}}", "image_merge.{p}"),
    Rename(f"{_NECK}.feature_projection.projections.{{i}}.weight", "adapt.{i}.weight"),
    *(
        rule
        for level in range(MAPS)
        for rule in _fusion(
            level,
            f"fusion_stage.intermediate.{level}" if level < MAPS - 1 else "fusion_stage.final",
            ("residual_layer1", "residual_layer2"),
            ("convolution1", "convolution2"),
            "deconv",
            "projection",
        )
    ),
    *_read_out("head.layers"),
)
