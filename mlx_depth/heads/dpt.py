"""DPT (Ranftl et al., 2021): tokens of four layers, reassembled into maps, fused, and read out as depth.

Upstream: ``depth_anything_v2/dpt.py``, and transformers' ``modeling_depth_anything.py`` and ``modeling_dpt.py``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.errors import CheckpointError
from mlx_depth.nn import ops
from mlx_depth.nn.activations import relu
from mlx_depth.nn.conv import Conv2d, ConvTranspose2d, EdgeConv2d
from mlx_depth.nn.resize import resize, resize_rows
from mlx_depth.weights.config_values import added_later, check_at_least
from mlx_depth.weights.rules import Drop, Rename, Rule

Resampling = Literal["up4", "up2", "keep", "down2"]
Readout = Literal["ignore", "add", "project"]
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
    activation: Literal["relu", "sigmoid", "exp"] = "relu"
    max_depth: float = 1.0  # factor after the activation; metres for sigmoid heads
    readout: Literal["ignore", "add", "project"] = added_later("ignore")
    """What becomes of each layer's class token: nothing, or it is added to the patch tokens, or projected with them."""
    given_maps: int = added_later(0)
    """So many of the finest levels come as maps of ``out_channels`` already: they are only adapted."""
    residual_bias: bool = added_later(True)
    """Whether the convolutions of residual units have a bias."""
    projection: bool = added_later(False)
    """A convolution before the last three."""
    doubling: bool = added_later(False)
    """Each fusion doubles the path, to which the finer map is brought, and so does the read-out: the depth has 32 times
    the sides of the coarsest map. Else sizes follow the finer maps, and the depth has that of the input."""

    def __post_init__(self) -> None:
        check_at_least(self, dict.fromkeys(("in_dim", "features", "out_channels", "hidden_channels", "patch_size"), 1))
        if len(self.out_channels) != len(RESAMPLINGS) or not 0 < self.max_depth < math.inf:
            raise CheckpointError(
                f"a DPT head has {len(RESAMPLINGS)} out_channels and a max_depth above 0, not {self.out_channels} and "
                f"{self.max_depth}: take the config.json of the original checkpoint."
            )
        if not 0 <= self.given_maps < len(RESAMPLINGS):
            raise CheckpointError(
                f"given_maps is {self.given_maps}, not 0 to {len(RESAMPLINGS) - 1}: "
                "take the config.json of the original checkpoint."
            )
        if self.features < 2:
            raise CheckpointError(
                f"a DPT head cannot halve {self.features} features: take the config.json of the original checkpoint."
            )


class Adapt(nn.Module):
    """A map to the fusion width."""

    def __init__(self, channels: int, features: int):
        super().__init__()
        self.adapt = Conv2d(channels, features, kernel_size=3, padding=1, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.adapt(x)


class Reassemble(nn.Module):
    """Tokens of one layer as a map: project, resample, adapt to the fusion width."""

    def __init__(
        self, in_dim: int, channels: int, features: int, resampling: Resampling, *, readout: Readout = "ignore"
    ):
        super().__init__()
        self._readout = readout
        if readout == "project":
            self.readout = nn.Linear(2 * in_dim, in_dim)
        self.projection = Conv2d(in_dim, channels, kernel_size=1)
        if resampling in ("up4", "up2"):
            factor = int(resampling[-1])
            self.resample: nn.Module = ConvTranspose2d(channels, channels, kernel_size=factor, stride=factor)
        elif resampling == "down2":
            self.resample = Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)
        self.adapt = Conv2d(channels, features, kernel_size=3, padding=1, bias=False)

    def __call__(self, x: mx.array, position: Callable[[mx.array], mx.array] | None = None) -> mx.array:
        x = self.projection(x)
        if position is not None:
            x = position(x)
        if "resample" in self:
            x = self.resample(x)
        return self.adapt(x)

    def read(self, patch_tokens: mx.array, cls_token: mx.array) -> mx.array:
        """Tell patch tokens, (B, N, C), what the class token, (B, C), holds."""
        if self._readout == "ignore":
            return patch_tokens
        cls_tokens = mx.broadcast_to(cls_token[:, None], patch_tokens.shape)
        if self._readout == "add":
            return patch_tokens + cls_tokens
        return ops.gelu(self.readout(mx.concatenate([patch_tokens, cls_tokens], axis=-1)))


class ResidualConvUnit(nn.Module):
    """Two pre-activated 3×3 convolutions with a residual connection; beyond the border are zeros, or edge pixels."""

    def __init__(self, features: int, *, edge: bool = False, bias: bool = True):
        super().__init__()
        self.conv1, self.conv2 = (
            EdgeConv2d(features, features) if edge else Conv2d(features, features, kernel_size=3, padding=1, bias=bias)
            for _ in range(2)
        )

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.conv2(relu(self.conv1(relu(x))))


class Fusion(nn.Module):
    """Add a finer map to the coarser path, refine, and grow to the next size. The coarsest has nothing to add."""

    def __init__(self, features: int, *, coarsest: bool, residual_bias: bool = True, out_features: int | None = None):
        super().__init__()
        if not coarsest:
            self.residual_conv_unit1 = ResidualConvUnit(features, bias=residual_bias)
        self.residual_conv_unit2 = ResidualConvUnit(features, bias=residual_bias)
        self.projection = Conv2d(features, features if out_features is None else out_features, kernel_size=1)

    def __call__(self, path: mx.array, finer: mx.array | None, size: tuple[int, int]) -> mx.array:
        return self.grow(self.merge(path, finer), size)

    def merge(self, path: mx.array, finer: mx.array | None) -> mx.array:
        """Both maps as one, refined."""
        if finer is not None:
            path = path + self.residual_conv_unit1(finer)
        merged: mx.array = self.residual_conv_unit2(path)
        return merged

    def grow(self, path: mx.array, size: tuple[int, int]) -> mx.array:
        """A map at the next size."""
        # Upstream grows first; a 1×1 convolution and bilinear weights, whose sum is 1, commute.
        return resize(self.projection(path), size, method="bilinear", align_corners=True)


class DPTHead(nn.Module):
    """Tokens of four layers to depth at the network's input size."""

    def __init__(self, config: DPTConfig):
        super().__init__()
        self._config = config
        features = config.features
        self.reassemble: list[nn.Module] = [
            Adapt(width, features) for width in config.out_channels[: config.given_maps]
        ]
        self.reassemble += reassembles(config.in_dim, config.out_channels, features, readout=config.readout)[
            config.given_maps :
        ]
        self.fusion = fusions(features, residual_bias=config.residual_bias)
        if config.projection:
            self.projection = Conv2d(features, features, kernel_size=3, padding=1)
        self.conv1 = Conv2d(features, features // 2, kernel_size=3, padding=1)
        self.conv2 = Conv2d(features // 2, config.hidden_channels, kernel_size=3, padding=1)
        self.conv3 = Conv2d(config.hidden_channels, 1, kernel_size=1)

    def __call__(
        self,
        patch_tokens: Sequence[mx.array],
        grid_size: tuple[int, int],
        *,
        cls_tokens: Sequence[mx.array] = (),
        given_maps: Sequence[mx.array] = (),
    ) -> mx.array:
        """Decode depth.

        Args:
            patch_tokens: Arrays ``(B, gh * gw, C)``, the shallowest layer first: of four, less the ``given_maps``.
            grid_size: Patches ``(gh, gw)``.
            cls_tokens: As many arrays ``(B, C)``, where the readout does not ignore them.
            given_maps: The finest levels, ``(B, 4 gh, 4 gw, C)`` and ``(B, 2 gh, 2 gw, C)``, where they are no tokens.
        Returns:
            Depth ``(B, gh * patch_size, gw * patch_size)``, or as ``doubling`` says: inverse depth or metres >= 0
            (relu), metres (sigmoid), or depth > 0 (exp).
        """
        if cls_tokens:
            layers = zip(self.reassemble[len(given_maps) :], patch_tokens, cls_tokens, strict=True)
            patch_tokens = [reassemble.read(patches, cls) for reassemble, patches, cls in layers]
        return self.read_out(self.path([*given_maps, *patch_tokens], grid_size), grid_size)

    def path(self, patch_tokens: Sequence[mx.array], grid_size: tuple[int, int]) -> mx.array:
        """Tokens, or maps, as the fused path, (B, 8 gh, 8 gw, features); arguments as for the call."""
        return self.fuse(self.maps(patch_tokens, grid_size))

    def maps(self, patch_tokens: Sequence[mx.array], grid_size: tuple[int, int]) -> list[mx.array]:
        """Tokens, or maps, as reassembled maps, finest first; arguments as for the call."""
        gh, gw = grid_size
        return [
            reassemble(tokens if tokens.ndim == 4 else tokens.reshape(tokens.shape[0], gh, gw, -1))  # tokens → map
            for reassemble, tokens in zip(self.reassemble, patch_tokens, strict=True)
        ]

    def largest_map(self, grid_size: tuple[int, int]) -> int:
        """Values of the fused path, the largest map that exists as a whole, for one image."""
        return largest_map(grid_size, self._config.features)

    def fuse(self, maps: Sequence[mx.array]) -> mx.array:
        """Merge maps, finest first, from coarse to fine: (B, 2 h, 2 w, features)."""
        return (fuse_doubling if self._config.doubling else fuse)(self.fusion, maps)

    def read_out(self, path: mx.array, grid_size: tuple[int, int]) -> mx.array:
        """Turn the fused path into depth, (B, H, W); the size is as for the call."""
        return self._activated(self._values(path, grid_size)[..., 0])

    def _values(self, path: mx.array, grid_size: tuple[int, int]) -> mx.array:
        """What is read out, (B, H, W, K), before its activation."""
        size = twice(path) if self._config.doubling else input_size(grid_size, self._config.patch_size)
        if "projection" in self:
            path = relu(self.projection(path))
        return refine_in_strips(self._refine, self.conv1(path), size)

    def _refine(self, grown: mx.array, first_row: int) -> mx.array:
        return last_convolution(self.conv3, relu(self.conv2(grown)))

    def _activated(self, x: mx.array) -> mx.array:
        return _ACTIVATIONS[self._config.activation](x) * self._config.max_depth


_ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {"relu": relu, "sigmoid": mx.sigmoid, "exp": mx.exp}


class DepthAndSky(NamedTuple):
    """Both at the network's input size, (B, H, W)."""

    depth: mx.array
    sky: mx.array  # >= 0; below 0.3 is no sky


class SkyDPTHead(DPTHead):
    """A DPT head that reads depth and sky, a ``DepthAndSky``, out of the same map."""

    def __init__(self, config: DPTConfig):
        super().__init__(config)
        self.sky_conv2 = Conv2d(config.features // 2, config.hidden_channels, kernel_size=3, padding=1)
        self.sky_conv3 = Conv2d(config.hidden_channels, 1, kernel_size=1)

    def __call__(  # type: ignore[override]
        self, patch_tokens: Sequence[mx.array], grid_size: tuple[int, int]
    ) -> DepthAndSky:
        """Decode depth and sky; arguments as for ``DPTHead``."""
        return self.read_out(self.path(patch_tokens, grid_size), grid_size)

    def read_out(self, path: mx.array, grid_size: tuple[int, int]) -> DepthAndSky:  # type: ignore[override]
        """Turn the fused path into depth and sky at the network's input size."""
        x = self._values(path, grid_size)
        return DepthAndSky(self._activated(x[..., 0]), relu(x[..., 1]))

    def _refine(self, grown: mx.array, first_row: int) -> mx.array:
        sky = last_convolution(self.sky_conv3, relu(self.sky_conv2(grown)))
        return mx.concatenate([super()._refine(grown, first_row), sky], axis=-1)


# The parts, for heads that are built otherwise.


def reassembles(
    in_dim: int, out_channels: Sequence[int], features: int, *, readout: Readout = "ignore"
) -> list[Reassemble]:
    """One ``Reassemble`` a tapped layer, finest first."""
    return [
        Reassemble(in_dim, channels, features, resampling, readout=readout)
        for channels, resampling in zip(out_channels, RESAMPLINGS, strict=True)
    ]


def fusions(features: int, *, residual_bias: bool = True) -> list[Fusion]:
    """One ``Fusion`` a level, coarsest first."""
    return [Fusion(features, coarsest=level == 0, residual_bias=residual_bias) for level in range(len(RESAMPLINGS))]


def fuse(fusions: Sequence[Fusion], maps: Sequence[mx.array], *beside: mx.array) -> mx.array:
    """Merge maps, finest first, from coarse to fine: (B, 2 h, 2 w, features); ``beside``: what each fusion adds."""
    levels = list(reversed(maps))
    sizes = [_size(level) for level in levels[1:]]
    h, w = _size(levels[-1])
    path = fusions[0](levels[0], None, sizes[0], *beside)
    for fusion, finer, size in zip(fusions[1:], levels[1:], [*sizes[1:], (2 * h, 2 * w)], strict=True):
        path = fusion(path, finer, size, *beside)
    return path


def fuse_doubling(fusions: Sequence[Fusion], maps: Sequence[mx.array]) -> mx.array:
    """``fuse`` where each fusion doubles the path, and a finer map of another size is resized to it."""
    coarsest, *finer = reversed(maps)
    path = fusions[0](coarsest, None, twice(coarsest))
    for fusion, level in zip(fusions[1:], finer, strict=True):
        path = fusion(path, resize(level, _size(path)), twice(path))
    return path


def twice(x: mx.array) -> tuple[int, int]:
    """Twice the sides of a map."""
    return 2 * x.shape[1], 2 * x.shape[2]


def refine_in_strips(
    refine: Callable[[mx.array, int], mx.array], x: mx.array, size: tuple[int, int], *, align_corners: bool = True
) -> mx.array:
    """Grow a map and refine it, some rows at a time: the largest maps never exist as a whole.

    Args:
        refine: Rows of the grown map ``(B, rows, W, C)`` and the number of the first → ``(B, rows, W, K)``; one row
            above and below may decide.
        x: ``(B, h, w, C)``, any float type.
        size: ``(H, W)`` to grow to.
        align_corners: As for ``resize``.
    Returns:
        ``(B, H, W, K)``.
    """
    row_bytes = x.nbytes // (x.shape[1] * x.shape[2]) * size[1]
    step = STRIP_ROWS if ops.cache_bytes(x) else max(STRIP_ROWS, STRIP_BYTES // row_bytes)

    def rows(x: mx.array, start: int, stop: int) -> mx.array:
        first, end = max(start - 1, 0), min(stop + 1, size[0])
        grown = resize_rows(x, size, (first, end), method="bilinear", align_corners=align_corners)
        return refine(grown, first)[:, start - first : stop - first]

    return ops.build_tiles(rows, x, size[0], step)


def last_convolution(conv: Conv2d, x: mx.array) -> mx.array:
    """In float32: half precision has steps that one can see."""
    return conv(x.astype(mx.float32))


def largest_map(grid_size: tuple[int, int], features: int) -> int:
    """Values of the fused path for one image."""
    return (8 * grid_size[0]) * (8 * grid_size[1]) * features


def input_size(grid_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """The network's input size in pixels."""
    return grid_size[0] * patch_size, grid_size[1] * patch_size


def _size(x: mx.array) -> tuple[int, int]:
    return x.shape[1], x.shape[2]


# The tables are relative to the head.
_UNUSED_UNIT = "the coarsest fusion has no finer map to add, so upstream never runs its first residual unit"


def _fusion(level: int, target: str, unit: str, conv: str, projection: str) -> tuple[Rule, ...]:
    """One level's rules, from the source's names: of its units without their number, a convolution, the projection."""
    first, second = (f"{unit}{number}.{conv}.{{p}}" for number in (1, 2))
    return (
        Drop(first, _UNUSED_UNIT) if level == 0 else Rename(first, f"{target}.residual_conv_unit1.conv{{c}}.{{p}}"),
        Rename(second, f"{target}.residual_conv_unit2.conv{{c}}.{{p}}"),
        Rename(f"{projection}.{{p}}", f"{target}.projection.{{p}}"),
    )


def _fusions(
    block: str, blocks: Sequence[int], unit: str, conv: str, projection: str, *, target: str = "fusion"
) -> tuple[Rule, ...]:
    """All levels, coarsest first; ``block`` is the source's name with a place for the numbers that it gives them."""
    names = [block.format(number) for number in blocks]
    return tuple(
        rule
        for level, name in enumerate(names)
        for rule in _fusion(level, f"{target}.{level}", f"{name}.{unit}", conv, f"{name}.{projection}")
    )


def fusions_original(block: str = "scratch.refinenet{}", target: str = "fusion") -> tuple[Rule, ...]:
    """The authors' names of a chain of fusions."""
    return _fusions(block, (4, 3, 2, 1), "resConfUnit", "conv{c}", "out_conv", target=target)


REASSEMBLE_ORIGINAL: tuple[Rule, ...] = (
    Rename("projects.{i}.{p}", "reassemble.{i}.projection.{p}"),
    Rename("resize_layers.{i}.{p}", "reassemble.{i}.resample.{p}"),
    *(Rename(f"scratch.layer{i + 1}_rn.weight", f"reassemble.{i}.adapt.weight") for i in range(4)),
)


def read_out_original(part: str, target: str = "") -> tuple[Rule, ...]:
    """The authors' names of the last two convolutions."""
    return (
        Rename(f"scratch.{part}.0.{{p}}", f"{target}conv2.{{p}}"),
        Rename(f"scratch.{part}.2.{{p}}", f"{target}conv3.{{p}}"),
    )


ORIGINAL: tuple[Rule, ...] = (
    *REASSEMBLE_ORIGINAL,
    *fusions_original(),
    Rename("scratch.output_conv1.{p}", "conv1.{p}"),
    *read_out_original("output_conv2"),
)
SKY_ORIGINAL: tuple[Rule, ...] = (*ORIGINAL, *read_out_original("sky_output_conv2", "sky_"))


# MiDaS puts what reassembles tokens beside the backbone. Its first parts are the readout and two without weights.
MIDAS: tuple[Rule, ...] = (
    *(
        Rename(f"pretrained.act_postprocess{i + 1}.{theirs}.{{p}}", f"reassemble.{i}.{ours}.{{p}}")
        for i in range(4)
        for theirs, ours in (("0.project.0", "readout"), ("3", "projection"), ("4", "resample"))
    ),
    *(Rename(f"scratch.layer{i + 1}_rn.weight", f"reassemble.{i}.adapt.weight") for i in range(4)),
    *fusions_original(),
    *(Rename(f"scratch.output_conv.{place}.{{p}}", f"conv{c}.{{p}}") for place, c in ((0, 1), (2, 2), (4, 3))),
)

_NECK_TRANSFORMERS: tuple[Rule, ...] = (
    Rename("neck.reassemble_stage.layers.{i}.projection.{p}", "reassemble.{i}.projection.{p}"),
    Rename("neck.reassemble_stage.layers.{i}.resize.{p}", "reassemble.{i}.resample.{p}"),
    Rename("neck.convs.{i}.weight", "reassemble.{i}.adapt.weight"),
    *_fusions("neck.fusion_stage.layers.{}", (0, 1, 2, 3), "residual_layer", "convolution{c}", "projection"),
)
TRANSFORMERS: tuple[Rule, ...] = (*_NECK_TRANSFORMERS, Rename("head.{c}.{p}", "{c}.{p}"))
DPT_TRANSFORMERS: tuple[Rule, ...] = (  # of its class DPT
    Rename("neck.reassemble_stage.readout_projects.{i}.0.{p}", "reassemble.{i}.readout.{p}"),
    *_NECK_TRANSFORMERS,
    Rename("head.projection.{p}", "projection.{p}"),
    *(Rename(f"head.head.{place}.{{p}}", f"conv{c}.{{p}}") for place, c in ((0, 1), (2, 2), (4, 3))),
)


def fusions_gguf(block: str = "scratch.rn{}", target: str = "fusion") -> tuple[Rule, ...]:
    """depth-anything.cpp's names of a chain of fusions."""
    return _fusions(block, (4, 3, 2, 1), "rc", "c{c}", "out", target=target)


GGUF: tuple[Rule, ...] = (
    Rename("proj.{i}.{p}", "reassemble.{i}.projection.{p}"),
    Rename("resize.{i}.{p}", "reassemble.{i}.resample.{p}"),
    *(Rename(f"scratch.layer{i + 1}_rn.weight", f"reassemble.{i}.adapt.weight") for i in range(4)),
    *fusions_gguf(),
    Rename("scratch.out1.{p}", "conv1.{p}"),
    Rename("scratch.out2a.{p}", "conv2.{p}"),
    Rename("scratch.out2b.{p}", "conv3.{p}"),
)
SKY_GGUF: tuple[Rule, ...] = (
    *GGUF,
    Rename("scratch.sky_out2a.{p}", "sky_conv2.{p}"),
    Rename("scratch.sky_out2b.{p}", "sky_conv3.{p}"),
)
