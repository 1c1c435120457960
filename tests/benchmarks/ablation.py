"""What each choice for a Linux CPU gives: ``python tests/benchmarks/ablation.py [--model small] [--size 518x518]``.

The network as ``predict`` runs it, and with one choice undone at a time, in turns. Random weights, so that nothing is
downloaded. Prints medians and ranges of the time, and MLX's peak memory beside the parameters; ``--write`` puts the
table into ``RESULTS.md``.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, NamedTuple
from unittest import mock

import report
from stages import random_network

from mlx_depth.backbones.dinov2 import DINOv2
from mlx_depth.heads import dpt
from mlx_depth.linux_cpu import kernels
from mlx_depth.models.depth_anything.network import DepthAnything, depth_anything_config
from mlx_depth.nn import ops
from mlx_depth.nn.position import resize_position_table
from mlx_depth.runtime import forward as runtime

import mlx.core as mx  # isort: skip  # after mlx_depth, which looks for a fast BLAS
import mlx.nn as nn

HUGE = 1 << 40


class Variant(NamedTuple):
    """A way to run the network."""

    name: str
    patches: tuple[tuple[Any, str, Any], ...] = ()  # owner, attribute, value
    folded: bool = False


def resized_each_time(self: DINOv2, grid_size: tuple[int, int]) -> mx.array:
    return resize_position_table(self.pos_embed[:, 1:], grid_size, self._config.position_rule)


VARIANTS = (
    Variant("as it is"),
    Variant("one stream, products of several threads", ((runtime, "cores_for", lambda size: nullcontext()),)),
    Variant("attention in chunks of 1 MB", ((kernels, "_CHUNK_ELEMENTS", 1 << 18),)),
    Variant(
        "MLX's attention and GELU",
        ((ops, "attention", mx.fast.scaled_dot_product_attention), (ops, "gelu", nn.gelu)),
    ),
    Variant(
        "MLX's convolutions",
        ((ops, "conv2d", nn.Conv2d.__call__), (ops, "conv_transpose2d", nn.ConvTranspose2d.__call__)),
    ),
    Variant("maps grow whole", ((kernels, "CACHE_BYTES", HUGE),)),
    Variant("read-out whole", ((dpt, "STRIP_ROWS", HUGE),)),
    Variant("positions resized each time", ((DINOv2, "positions", resized_each_time),)),
    Variant("no limit of memory", ((runtime, "_limits", lambda working_bytes: nullcontext()),)),
    Variant("a batch together", ((runtime, "_one_by_one", lambda forward: forward),)),
    Variant("LayerScale folded into the projections", folded=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=("small", "base", "large"), default="small")
    parser.add_argument("--size", type=report.size, default=(518, 518), metavar="HxW")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    conditions = report.conditions(f"{report.use_device('cpu')}, float32", "mlx")
    network, folded = (
        random_network(DepthAnything(depth_anything_config(options.model)), mx.float32) for _ in range(2)
    )
    for block in folded.backbone.blocks:
        fold(block)
    x = mx.random.normal((options.batch, *options.size, 3))
    mx.eval(x, folded.parameters())
    calls = [prepared(variant, folded if variant.folded else network) for variant in VARIANTS]
    for call in calls:
        call(x)
    times: list[list[float]] = [[] for _ in calls]
    peaks = [0] * len(calls)
    for _ in range(options.rounds):
        for i, call in enumerate(calls):
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            start = time.perf_counter()
            call(x)
            times[i].append((time.perf_counter() - start) * 1e3 / options.batch)
            peaks[i] = max(peaks[i], mx.get_peak_memory() - before)
    lines = [
        f"{conditions} Milliseconds an image, medians and ranges of {options.rounds} rounds.",
        "",
        "| V2 " + f"{options.model}, {options.size[0]}×{options.size[1]}, batch {options.batch} | ms | peak, MB |",
        "|---|---|---|",
        *(
            f"| {variant.name} | {statistics.median(row):.0f} ({min(row):.0f}–{max(row):.0f}) | {peak / 1e6:.0f} |"
            for variant, row, peak in zip(VARIANTS, times, peaks, strict=True)
        ),
    ]
    report.publish("ablation", lines, write=options.write)


def prepared(variant: Variant, network: DepthAnything) -> Callable[[mx.array], None]:
    """``DepthModel.infer`` under the variant's patches."""

    def call(x: mx.array) -> None:
        with patched(variant):
            forward = runtime.forward_of(network, mx.float32)
            with runtime.cores_for(x.shape[1:3]):
                runtime.evaluate(forward(x).present(), runtime.working_bytes(network, x.shape, mx.float32))

    return call


def patched(variant: Variant) -> AbstractContextManager[Any]:
    stack = ExitStack()
    for owner, name, value in variant.patches:
        stack.enter_context(mock.patch.object(owner, name, value))
    return stack


def fold(block: nn.Module) -> None:
    """Multiply LayerScale into the projections before it."""
    for projection, scale in ((block.attn.out_proj, "layer_scale1"), (block.mlp.fc2, "layer_scale2")):
        gamma = block[scale].gamma
        projection.weight = projection.weight * gamma[:, None]
        projection.bias = projection.bias * gamma
        block[scale] = nn.Identity()


if __name__ == "__main__":
    main()
