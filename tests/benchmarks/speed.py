"""mlx-depth and torch on one machine: ``python tests/benchmarks/speed.py --device cpu|gpu [--write]``.

Same weights (filled from their names), same pixels, same number format. Each run is a process of its own
(``one_side.py``), and the sides take turns: A B A B. A table on stdout; ``--write`` puts it into ``RESULTS.md``;
``--busy`` compares one core's processor time, which other programs hardly change. Needs the extra ``reference``.

``--family depth-anything-3`` compares scenes of some views, and the authors' network instead of transformers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import report
from one_side import AUTHORS, AUTHORS_NAME, AUTHORS_WEIGHTS, MLX, SIDES, WARM_UPS, Run, Task

HERE = Path(__file__).parent
V2, V3 = SIDES
DEFAULTS = {V2: (["small", "base", "large"], [(518, 518), (392, 518)]), V3: (["small", "base"], [(336, 504)])}
DTYPES = {"cpu": "float32", "gpu": "float16"}  # what mlx_depth.load takes there
SAVE = {  # in the folder of the tests; the authors' network in their form, too
    V2: "import sys, reference; reference.model(sys.argv[1]).save_pretrained(sys.argv[2])",
    V3: f"""
import pathlib, sys, reference_da3
from safetensors.torch import save_model
name, folder = f"da3-{{sys.argv[1]}}", pathlib.Path(sys.argv[2])
reference_da3.save(name, folder, tiny=False)
(folder / "{AUTHORS_NAME}").write_text(name)
(folder / "{AUTHORS_WEIGHTS}").parent.mkdir()
save_model(reference_da3.model(name), folder / "{AUTHORS_WEIGHTS}")
""",
}
PEAKS = {
    "cpu": "of the process",
    "gpu": "of MLX's and torch's allocators; on a Mac torch tells no peak, but what its driver holds at the end",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=DTYPES, required=True)
    parser.add_argument("--family", choices=SIDES, default=V2)
    parser.add_argument("--models", nargs="+", choices=("small", "base", "large"), help="default: those in RESULTS.md")
    parser.add_argument("--sizes", nargs="+", type=report.size, metavar="HxW", help="default: those in RESULTS.md")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="images at once; views of one scene")
    parser.add_argument("--rounds", type=int, default=3, help="processes a side")
    parser.add_argument("--seconds", type=float, default=10, help="of timed calls in a process")
    parser.add_argument("--dtype", choices=report.DTYPES, help="default: float32 on a CPU, float16 on a GPU")
    parser.add_argument("--busy", action="store_true", help="processor time of one core, for a machine in use (Linux)")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    options.dtype = options.dtype or DTYPES[options.device]
    models, sizes = DEFAULTS[options.family]
    options.models, options.sizes = options.models or models, options.sizes or sizes
    options.sides = SIDES[options.family][options.device]
    start = caption(options)
    if options.busy:
        hold_to_one_core(options.device)
    section = options.device if options.family == V2 else f"views-{options.device}"
    report.publish(section, [start, "", *table(options)], write=options.write)


def hold_to_one_core(device: str) -> None:
    """This process and those that it starts."""
    if device != "cpu" or sys.platform != "linux":
        raise SystemExit("--busy counts processor time of one core, which needs --device cpu and Linux: leave it out.")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def caption(options: argparse.Namespace) -> str:
    """What the table's figures are; fails early where a side has no such device."""
    devices = f"{report.use_device(options.device)}, torch on {torch_device(options.device)}, {options.dtype}"
    reference = "transformers" if options.family == V2 else AUTHORS
    conditions = report.conditions(devices, "mlx", "torch", reference)
    kind = "Processor time on one core" if options.busy else "Wall-clock time"
    others = " and ".join(options.sides[1:])
    image = "an image" if options.family == V2 else "a view"
    return (
        f"{conditions} {kind} {image}: medians and 10th–90th percentiles of all calls in {options.rounds} processes a "
        f"side, which take turns, {options.seconds:g} s of calls in each after {WARM_UPS[options.device]} to warm up. "
        f"Ratio: mlx-depth to {others}. Peaks ({PEAKS[options.device]}) and loads (wall-clock, from the folder to the "
        "device, modules imported before; torch reads a mapped file when it first computes) in the order of the sides. "
        f"Difference to {reference}: the largest, relative to the largest depth."
    )


def table(options: argparse.Namespace) -> list[str]:
    times = " | ".join(f"{side}, ms" for side in options.sides)
    title, count = ("V2", "batch") if options.family == V2 else ("DA3", "views")
    lines = [
        f"| model | input | {count} | {times} | ratio | peak, MB | load, s | with a first call, s | difference |",
        "|---" * (8 + len(options.sides)) + "|",
    ]
    for name in options.models:
        with tempfile.TemporaryDirectory() as parent:
            folder = str(Path(parent, "model"))
            save_model(options.family, name, folder)
            for size in options.sizes:
                for batch in options.batches:
                    values = row(folder, size, batch, options)
                    lines.append(f"| {title} {name} | {size[0]}×{size[1]} | {batch} | {values} |")
                    print(lines[-1], file=sys.stderr)
    return lines


def row(folder: str, size: tuple[int, int], batch: int, options: argparse.Namespace) -> str:
    """Times, ratio, peak, load and difference, as they stand in the table."""
    sides = options.sides
    shape = (batch, *size, 3) if options.family == V2 else (1, batch, *size, 3)
    pixels = np.random.RandomState(0).standard_normal(shape).astype(np.float32)
    np.save(Path(folder, "pixels.npy"), pixels)
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side in sides:
            task = Task(side, options.device, options.dtype, folder, options.seconds, options.busy)
            runs[side].append(Run(*json.loads(child(str(HERE / "one_side.py"), json.dumps(task)))))
    times = {side: [call / batch * 1e3 for run in runs[side] for call in run.calls] for side in sides}
    middle = {side: statistics.median(times[side]) for side in sides}
    ranges = {side: "–".join(figure(limit) for limit in np.quantile(times[side], (0.1, 0.9))) for side in sides}
    ours, theirs = (np.load(Path(folder, f"{side}.npy")) for side in sides[:2])
    return " | ".join(
        [
            *(f"{figure(middle[side])} ({ranges[side]})" for side in sides),
            " / ".join(f"{middle[MLX] / middle[side]:.2f}" for side in sides[1:]),
            " / ".join(f"{max(run.peak for run in runs[side]) / 1e6:.0f}" for side in sides),
            " / ".join(f"{statistics.median(run.load for run in runs[side]):.2f}" for side in sides),
            " / ".join(f"{statistics.median(run.load + run.first for run in runs[side]):.2f}" for side in sides),
            f"{np.abs(ours - theirs).max() / np.abs(theirs).max():.0e}",
        ]
    )


def figure(value: float) -> str:
    """Three digits, or all of a larger number."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def save_model(family: str, name: str, folder: str) -> None:
    """Write the reference's model, from a process that gives its memory back."""
    child("-c", SAVE[family], name, folder, cwd=HERE.parent)


def torch_device(device: str) -> str:
    return child("-c", "import sys, one_side; print(one_side.torch_device(sys.argv[1]))", device, cwd=HERE)


def child(*arguments: str, cwd: Path | None = None) -> str:
    """The last line that another Python prints."""
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{Path(arguments[0]).name} {arguments[-1]} ended with {done.returncode}: see above.")
    return done.stdout.strip().rpartition("\n")[2]


if __name__ == "__main__":
    main()
