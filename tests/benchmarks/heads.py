"""The SDT head beside the authors' decoder in torch: ``python tests/benchmarks/heads.py --source CLONE``.

Same weights and tokens (drawn from names), float32 on the CPU, one image, as many threads. Each side is a process of
its own, and the sides take turns. The clone is of github.com/AIGeeksGroup/AnyDepth. A table on stdout; ``--busy``
compares one core's processor time, which other programs hardly change (Linux). Needs the extra ``reference``.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import report
from one_side import resident_peak
from speed import child, figure, hold_to_one_core

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

import authors_sdt  # noqa: E402

OURS, THEIRS = "mlx-depth", "AnyDepth in torch"
WIDTHS = {"small": 384, "base": 768, "large": 1024}
PATCH_SIZE = 16


class Task(NamedTuple):
    """What one process measures."""

    side: str
    width: int  # of the tokens
    grid_size: tuple[int, int]
    seconds: float  # for the timed calls
    busy: bool
    source: str  # the clone
    folder: str  # for the depth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--source", type=Path, metavar="CLONE", required=True)
    add("--backbones", nargs="+", choices=WIDTHS, default=["small"])
    add("--sizes", nargs="+", type=report.size, metavar="HxW", default=[(512, 512), (1024, 1024)])
    add("--rounds", type=int, default=1, help="processes a side")
    add("--seconds", type=float, default=10, help="of timed calls in a process")
    add("--busy", action="store_true", help="processor time of one core, for a machine in use (Linux)")
    add("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task is not None:
        print(json.dumps(measure(Task(*json.loads(options.task)))))
        return
    if options.busy:
        hold_to_one_core("cpu")
    print("\n".join([caption(options), "", *table(options)]))


def caption(options: argparse.Namespace) -> str:
    conditions = report.conditions(report.use_device("cpu"), "mlx", "torch")
    kind = "Processor time on one core" if options.busy else "Wall-clock time"
    return (
        f"{conditions} AnyDepth at {authors_sdt.commit(options.source)}. {kind}: medians and 10th–90th percentiles of "
        f"all calls in {options.rounds} processes a side, {options.seconds:g} s of calls in each after one to warm up. "
        "Peaks are of the process. Difference: the largest, relative to the largest depth."
    )


def table(options: argparse.Namespace) -> list[str]:
    lines = [
        f"| tokens of | input | {OURS}, ms | {THEIRS}, ms | ratio | peak, MB | threads | difference |",
        "|---" * 8 + "|",
    ]
    for backbone in options.backbones:
        for size in options.sizes:
            lines.append(f"| {backbone} | {size[0]}×{size[1]} | {row(WIDTHS[backbone], size, options)} |")
            print(lines[-1], file=sys.stderr)
    return lines


def row(width: int, size: tuple[int, int], options: argparse.Namespace) -> str:
    """Times, ratio, peaks, threads and difference, as they stand in the table."""
    grid_size = (size[0] // PATCH_SIZE, size[1] // PATCH_SIZE)
    runs: dict[str, list[dict[str, Any]]] = {OURS: [], THEIRS: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for side, done in runs.items():
                task = Task(side, width, grid_size, options.seconds, options.busy, str(options.source), folder)
                arguments = ["--source", str(options.source), "--task", json.dumps(task)]
                done.append(json.loads(child(__file__, *arguments)))
        ours, theirs = (np.load(Path(folder, f"{side}.npy")) for side in runs)
    times = {side: [call * 1e3 for run in done for call in run["calls"]] for side, done in runs.items()}
    middle = {side: statistics.median(calls) for side, calls in times.items()}
    ranges = {side: "–".join(map(figure, np.quantile(calls, (0.1, 0.9)))) for side, calls in times.items()}
    return " | ".join(
        [
            *(f"{figure(middle[side])} ({ranges[side]})" for side in runs),
            f"{middle[OURS] / middle[THEIRS]:.2f}",
            " / ".join(f"{max(run['peak'] for run in done) / 1e6:.0f}" for done in runs.values()),
            " / ".join(str(done[0]["threads"]) for done in runs.values()),
            f"{np.abs(ours - theirs).max() / np.abs(theirs).max():.0e}",
        ]
    )


def measure(task: Task) -> dict[str, Any]:
    """Build, warm up, time."""
    tokens = authors_sdt.features("benchmark", task.width, tuple(task.grid_size), 1)
    call, threads = (ours if task.side == OURS else theirs)(task, tokens)
    np.save(Path(task.folder, f"{task.side}.npy"), call())
    calls = report.time_calls(call, task.seconds, time.process_time if task.busy else time.perf_counter)
    return {"calls": calls, "peak": resident_peak(), "threads": threads}


Tokens = list[tuple[np.ndarray, np.ndarray]]
Side = tuple[Callable[[], np.ndarray], int]  # returns the depth; threads


def ours(task: Task, tokens: Tokens) -> Side:
    """As the runtime runs it."""
    report.use_device("cpu")
    import mlx.core as mx

    from mlx_depth.backbones.dinov2 import LayerTokens
    from mlx_depth.heads import sdt
    from mlx_depth.linux_cpu import openblas
    from mlx_depth.runtime.forward import WORKING_MAPS, cores_for, evaluate
    from mlx_depth.weights.rules import apply, check_complete, to_mlx_layout

    head = sdt.SDTHead(sdt.SDTConfig(task.width))
    golden = np.load(TESTS / "goldens/sdt.npz")
    shapes = json.loads(str(golden["facts"]))["published"][str(task.width)]["shapes"]
    state = {name: mx.array(tensor) for name, tensor in authors_sdt.state(shapes).items()}
    weights = to_mlx_layout(head, apply(sdt.ORIGINAL, state))
    check_complete(head, weights)
    head.load_weights(list(weights.items()))
    layers = [LayerTokens(mx.array(patches), mx.array(cls)) for patches, cls in tokens]
    mx.eval(head.parameters(), layers)
    gh, gw = task.grid_size

    def call() -> np.ndarray:
        with cores_for((gh * PATCH_SIZE, gw * PATCH_SIZE)):
            depth = head(layers, (gh, gw))
            evaluate(depth, WORKING_MAPS * head.largest_map((gh, gw)) * depth.dtype.size)
        return np.array(depth)

    return call, openblas.threads() if sys.platform == "linux" else os.cpu_count() or 1


def theirs(task: Task, tokens: Tokens) -> Side:
    """The authors' decoder, and the ReLU that makes depth of what it returns."""
    import torch

    torch.set_num_threads(1 if task.busy else os.cpu_count() or 1)
    upstream = authors_sdt.decoder_class(Path(task.source))
    network = authors_sdt.filled(upstream([task.width] * 4, n_output_channels=1, use_cls_token=True))
    layers = authors_sdt.as_theirs(tokens, tuple(task.grid_size))

    def call() -> np.ndarray:
        with torch.inference_mode():
            return (torch.relu(network(layers)) + authors_sdt.LEAST_DEPTH)[:, 0].numpy()

    return call, torch.get_num_threads()


if __name__ == "__main__":
    main()
