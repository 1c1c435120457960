"""What a depth decoder costs, without the backbone: SDT beside DPT, as the paper of AnyDepth compares them."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from tqdm import tqdm

from mlx_depth.backbones.dinov2 import LayerTokens
from mlx_depth.errors import OptionError
from mlx_depth.heads.dpt import DPTConfig, DPTHead
from mlx_depth.heads.sdt import Readout, SDTConfig, SDTHead
from mlx_depth.models.depth_anything.network import depth_anything_config
from mlx_depth.nn.activations import relu
from mlx_depth.nn.conv import Conv2d
from mlx_depth.processor import InputSize
from mlx_depth.runtime.forward import WORKING_MAPS, cores_for, evaluate, resolve_dtype
from mlx_depth.weights.rules import parameter_shapes
from mlx_depth.weights.safetensors_io import DTYPES
from mlx_depth_convert.bench import describe_machine

Head = SDTHead | DPTHead

PATCH_SIZE = 16
WIDTHS = {"small": 384, "base": 768, "large": 1024}  # channels of a backbone's tokens
INPUT_SIZES: tuple[InputSize, ...] = (256, 512, 1024)  # the paper's
RUNS = 3
NOTE = (
    "All decode the same tokens, of patches of 16 pixels. 'DPT, 512' is the paper's baseline, DINOv3's DPT with 512 "
    "channels and the paper's number of parameters; its 1×1 convolutions come before a map grows, which gives the same "
    "numbers for a quarter of the work. 'DPT, V2' is the decoder of Depth Anything V2 of that size. GMACs are those of "
    "convolutions and linear layers. Memory is the most that is held beside weights and tokens."
)


class BaselineDPT(DPTHead):
    """A DPT head with the class token read out, and one more convolution behind the fusion.

    Upstream: ``model/dpt_head.py`` of AnyDepth, which is DINOv3's.
    """

    def __init__(self, config: DPTConfig):
        super().__init__(config)
        self.readouts = [Readout(config.in_dim) for _ in config.out_channels]
        self.project = Conv2d(config.features, config.features, kernel_size=3, padding=1)

    def decode(self, layers: Sequence[LayerTokens], grid_size: tuple[int, int]) -> mx.array:
        """Four layers, the shallowest first → depth ``(B, H, W)``."""
        path = self.path([readout(layer) for readout, layer in zip(self.readouts, layers, strict=True)], grid_size)
        return self.read_out(relu(self.project(path)), grid_size)


@dataclass(frozen=True)
class HeadMeasurement:
    """One decoder, for the tokens of one backbone, at one size."""

    head: str
    backbone: str  # small, base or large
    input_size: tuple[int, int]  # pixels
    dtype: str
    parameters: int
    macs: int
    runs: tuple[float, ...]  # seconds
    peak_bytes: int  # beside weights and tokens

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.runs)

    def as_json(self) -> dict[str, Any]:
        """For ``json.dumps``."""
        return {**dataclasses.asdict(self), "median": self.median}


@dataclass(frozen=True)
class HeadBenchmark:
    """All measurements, and where they were made."""

    machine: dict[str, str]
    measurements: tuple[HeadMeasurement, ...]

    def as_json(self) -> dict[str, Any]:
        """For ``json.dumps``."""
        return {"machine": self.machine, "note": NOTE, "measurements": [row.as_json() for row in self.measurements]}

    def as_markdown(self) -> str:
        """A table; the head says the units."""
        head = ["tokens", "input", "decoder", "dtype", "parameters", "GMACs", "median (ms)", "memory (MB)"]
        rows = [head, ["---"] * len(head), *map(_cells, self.measurements)]
        where = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        return "\n".join([where, "", *("| " + " | ".join(row) + " |" for row in rows), "", NOTE])


def bench_heads(
    backbones: Sequence[str] = tuple(WIDTHS),
    *,
    input_sizes: Sequence[InputSize] = INPUT_SIZES,
    dtypes: Sequence[str | None] = (None,),
    runs: int = RUNS,
    progress: bool = False,
) -> HeadBenchmark:
    """Measure decoders on random tokens of one image.

    Args:
        backbones: ``small``, ``base`` or ``large``: how many channels the tokens have.
        input_sizes: Side of a square network image, or ``(height, width)``, in pixels: multiples of 16.
        dtypes: As for ``mlx_depth.load``.
        runs: Steady runs that are timed, after one to warm up.
        progress: Show a progress bar on stderr.
    Returns:
        The measurements, and the machine.
    Raises:
        OptionError: If an option cannot work.
    """
    for backbone in backbones:
        if backbone not in WIDTHS:
            raise OptionError(f"no backbone {backbone!r}: the choices are {', '.join(WIDTHS)}.")
    if runs < 1:
        raise OptionError(f"cannot time {runs} runs: give at least 1.")
    sizes = [(size, size) if isinstance(size, int) else size for size in input_sizes]
    for size in sizes:
        if min(size) < 1 or size[0] % PATCH_SIZE or size[1] % PATCH_SIZE:
            raise OptionError(f"these decoders make multiples of {PATCH_SIZE} pixels, not {size[0]}×{size[1]}.")
    rows = []
    with tqdm(total=len(backbones) * len(sizes) * len(dtypes) * len(_BUILD), disable=not progress) as bar:
        for dtype in map(resolve_dtype, dtypes):
            for backbone in backbones:
                for size in sizes:
                    for head in _BUILD:
                        rows.append(_measure(head, backbone, size, dtype, runs))
                        bar.update()
    return HeadBenchmark(describe_machine(), tuple(rows))


def macs(head: Head, grid_size: tuple[int, int]) -> int:
    """Multiplications of convolutions and linear layers for one image, as if no strip computed a row twice.

    Args:
        head: An SDT or DPT decoder.
        grid_size: Patches ``(gh, gw)``.

    Each value of a weight is used once at every position that its layer is applied to.
    """
    applied = (_sdt_positions if isinstance(head, SDTHead) else _dpt_positions)(grid_size)
    total = 0.0
    for name, shape in parameter_shapes(head).items():
        if name.endswith(".weight"):
            (positions,) = (count for part, count in applied.items() if name.startswith(f"{part}."))
            total += math.prod(shape) * positions
    return int(total)


def _sdt_positions(grid_size: tuple[int, int]) -> dict[str, float]:
    """Part → how many positions it is applied to."""
    N = math.prod(grid_size)
    layers, doublings = range(4), range(4)
    return {
        **{f"projections.{i}.readout": (N + 1) / 2 for i in layers},  # half of it sees the class token alone
        **{f"projections.{i}.projection": N for i in layers},
        "enhancer": N,
        **{f"doublings.{i}.sample": N * 4**i for i in doublings},
        **{f"doublings.{i}.conv": N * 4 ** (i + 1) for i in doublings},
        "refinements.0": N * 4**2,
        **dict.fromkeys(("refinements.1", "conv1", "conv2", "conv3"), N * 4**4),
    }


def _dpt_positions(grid_size: tuple[int, int]) -> dict[str, float]:
    """Part → how many positions it is applied to."""
    N = math.prod(grid_size)
    halved = math.prod((side + 1) // 2 for side in grid_size)
    maps = (16 * N, 4 * N, N, halved)  # finest first
    return {
        **{f"readouts.{i}": (N + 1) / 2 for i in range(4)},
        **{f"reassemble.{i}.projection": N for i in range(4)},
        **{f"reassemble.{i}.resample": count for i, count in ((0, N), (1, N), (3, halved))},
        **{f"reassemble.{i}.adapt": count for i, count in enumerate(maps)},
        **{f"fusion.{i}": count for i, count in enumerate(reversed(maps))},
        **dict.fromkeys(("project", "conv1"), 64 * N),
        **dict.fromkeys(("conv2", "conv3"), N * PATCH_SIZE**2),
    }


def _sdt(backbone: str) -> Head:
    return SDTHead(SDTConfig(WIDTHS[backbone]))


def _baseline(backbone: str) -> Head:
    width = WIDTHS[backbone]
    return BaselineDPT(DPTConfig(width, 512, (width,) * 4, patch_size=PATCH_SIZE))


def _dpt_of_v2(backbone: str) -> Head:
    return DPTHead(dataclasses.replace(depth_anything_config(backbone).head, patch_size=PATCH_SIZE))


_BUILD: dict[str, Callable[[str], Head]] = {
    "SDT": _sdt,
    "DPT, 512": _baseline,
    "DPT, V2": _dpt_of_v2,
}


def _measure(name: str, backbone: str, size: tuple[int, int], dtype: mx.Dtype, runs: int) -> HeadMeasurement:
    head = _BUILD[name](backbone)
    head.update(tree_map(lambda array: array.astype(dtype), head.parameters()))
    grid_size = (size[0] // PATCH_SIZE, size[1] // PATCH_SIZE)
    shapes = ((1, math.prod(grid_size), WIDTHS[backbone]), (1, WIDTHS[backbone])) * 4
    keys = mx.random.split(mx.random.key(0), len(shapes))
    arrays = [mx.random.normal(shape, key=key).astype(dtype) for shape, key in zip(shapes, keys, strict=True)]
    mx.eval(head.parameters(), arrays)

    def decode(*arrays: mx.array) -> mx.array:
        layers = [LayerTokens(*pair) for pair in zip(arrays[::2], arrays[1::2], strict=True)]
        if isinstance(head, SDTHead):
            return head(layers, grid_size)
        if isinstance(head, BaselineDPT):
            return head.decode(layers, grid_size)
        return head([layer.patch_tokens for layer in layers], grid_size)

    call = mx.compile(decode) if mx.default_device() == mx.Device(mx.gpu) else decode  # as networks are run
    working_bytes = WORKING_MAPS * head.largest_map(grid_size) * dtype.size

    def run() -> float:
        begin = time.perf_counter()
        with cores_for(size):
            evaluate(call(*arrays), working_bytes)
        return time.perf_counter() - begin

    run()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    seconds = tuple(run() for _ in range(runs))
    return HeadMeasurement(
        head=name,
        backbone=backbone,
        input_size=size,
        dtype=next(key for key, value in DTYPES.items() if value == dtype),
        parameters=sum(map(math.prod, parameter_shapes(head).values())),
        macs=macs(head, grid_size),
        runs=seconds,
        peak_bytes=mx.get_peak_memory() - held,
    )


def _cells(row: HeadMeasurement) -> list[str]:
    return [
        row.backbone,
        "×".join(map(str, row.input_size)),
        row.head,
        row.dtype,
        f"{row.parameters:,}",
        f"{row.macs / 1e9:.1f}",
        f"{row.median * 1e3:.1f}",
        f"{row.peak_bytes / 1e6:.0f}",
    ]
