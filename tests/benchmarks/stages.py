"""Where a network's time and memory go: ``python tests/benchmarks/stages.py [--device gpu] [--model large]``.

Random weights, so that nothing is downloaded. Each stage is evaluated on its own, from inputs that are there already:
its median time, its share of the last row's, and MLX's peak memory meanwhile, inputs and outputs included, parameters
not. The last row is what ``predict`` runs, within its limit of memory.
``--size 2058x2058 --model large --once`` shows what the largest input needs.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import report

from mlx_depth.linux_cpu.streams import all_cores
from mlx_depth.models.base import DepthNetwork
from mlx_depth.models.depth_anything.network import DepthAnything, DepthAnythingConfig, depth_anything_config
from mlx_depth.nn.ops import row_wise
from mlx_depth.runtime import forward as runtime
from mlx_depth.runtime.forward import forward_of, resolve_dtype, working_bytes
from mlx_depth.weights.safetensors_io import dtype_name

import mlx.core as mx  # isort: skip  # after mlx_depth, which looks for a fast BLAS
from mlx.utils import tree_flatten, tree_map

WARM_UPS = 2

N = TypeVar("N", bound=DepthNetwork)


class Stage(NamedTuple):
    """A part of the network: what the stage before handed on → arrays."""

    name: str
    run: Callable[[Any], Any]
    hands_on: bool = True  # else the next stage has the same input


class Cost(NamedTuple):
    """What a stage takes."""

    seconds: float
    peak: float  # bytes, without the parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: MLX's")
    parser.add_argument("--model", choices=("small", "base", "large", "giant"), default="small")
    parser.add_argument("--size", type=report.size, default=(518, 518), metavar="HxW")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=report.DTYPES, help="default: float32 on a CPU, float16 on a GPU")
    parser.add_argument("--seconds", type=float, default=3, help="of calls for each stage")
    parser.add_argument("--once", action="store_true", help="the last row alone, cold: for sizes that take minutes")
    options = parser.parse_args()
    device = report.use_device(options.device)
    dtype = resolve_dtype(options.dtype)
    print(report.conditions(f"{device}, {dtype_name(dtype)}", "mlx"))

    config = depth_anything_config(options.model)
    network = random_network(DepthAnything(config), dtype)
    parameters = sum(array.nbytes for _, array in tree_flatten(network.parameters()))
    pixel_values = mx.random.normal((options.batch, *options.size, 3)).astype(dtype)
    mx.eval(pixel_values)

    limit = working_bytes(network, pixel_values.shape, dtype)

    def measure(run: Callable[[Any], Any], x: Any, evaluate: Callable[[Any], Any] = mx.eval) -> Cost:
        with all_cores():
            for _ in range(0 if options.once else WARM_UPS):
                evaluate(run(x))
            mx.reset_peak_memory()
            times = report.time_calls(lambda: evaluate(run(x)), 0 if options.once else options.seconds)
        return Cost(statistics.median(times), mx.get_peak_memory() - parameters)

    predicting = measure(
        forward_of(network, dtype), pixel_values, lambda outputs: runtime.evaluate(outputs.present(), limit)
    )
    print(f"\nParameters: {parameters / 1e6:.0f} MB\n\n| stage | ms | share | peak, MB |\n|---|---|---|---|")
    if not options.once:
        show_stages(network, config, options.size, pixel_values, predicting, measure)
    show("as predict runs it", predicting, predicting)


def show_stages(
    network: DepthAnything,
    config: DepthAnythingConfig,
    size: tuple[int, int],
    pixel_values: mx.array,
    predicting: Cost,
    measure: Callable[..., Cost],
) -> None:
    x: Any = pixel_values
    for stage in stages(network, config, size):
        show(stage.name, measure(stage.run, x), predicting)
        if stage.hands_on:
            x = stage.run(x)
            mx.eval(x)
    del x
    show("whole network", measure(lambda x: network(x).depth, pixel_values), predicting)
    show("whole network, mx.compile", measure(mx.compile(lambda x: network(x).depth), pixel_values), predicting)


def show(name: str, cost: Cost, predicting: Cost) -> None:
    share = cost.seconds / predicting.seconds
    print(f"| {name} | {cost.seconds * 1e3:#.4g} | {share:.1%} | {cost.peak / 1e6:.0f} |", flush=True)


def random_network(network: N, dtype: mx.Dtype) -> N:
    """Weights that keep the scale of what passes through."""
    mx.random.seed(0)

    def random(array: mx.array) -> mx.array:
        return mx.random.normal(array.shape, scale=math.prod(array.shape[1:]) ** -0.5).astype(dtype)

    network.update(tree_map(random, network.parameters()))
    mx.eval(network.parameters())
    return network


def stages(network: DepthAnything, config: DepthAnythingConfig, size: tuple[int, int]) -> list[Stage]:
    """The network in the order in which it runs."""
    backbone, head = network.backbone, network.head
    first = backbone.blocks[0]
    patch_size = config.backbone.patch_size
    grid_size = (size[0] // patch_size, size[1] // patch_size)

    def run_blocks(tokens: mx.array) -> list[mx.array]:
        tapped = []
        for index, block in enumerate(backbone.blocks):
            tokens = block(tokens)
            if index in config.backbone.out_layers:
                tapped.append(backbone.norm(tokens)[:, 1:])  # without the class token
        return tapped

    def reassemble(tapped: list[mx.array]) -> list[mx.array]:
        maps = [tokens.reshape(tokens.shape[0], *grid_size, -1) for tokens in tapped]  # tokens → maps
        return [module(x) for module, x in zip(head.reassemble, maps, strict=True)]

    return [
        Stage("patch embedding", backbone.embed),
        Stage("attention of one block", lambda tokens: first.attn(first.norm1(tokens)), hands_on=False),
        Stage(
            "MLP of one block",
            lambda tokens: row_wise(lambda rows: first.mlp(first.norm2(rows)), tokens),
            hands_on=False,
        ),
        Stage(f"all {len(backbone.blocks)} blocks", run_blocks),
        Stage("reassemble", reassemble),
        Stage("fuse", head.fuse),
        Stage("read-out", lambda path: head.read_out(path, grid_size)),
    ]


if __name__ == "__main__":
    main()
