"""Whether memory stays where it is over a long run: ``python tests/benchmarks/steady_memory.py [--photos 1000]``.

Photos of all sizes go through the command ``predict --batch-size 4`` in this process. Prints the peaks of each hundred:
of the process (Linux: its resident pages; elsewhere: ps) and of MLX (buffers in use and kept for reuse); ``--write``
puts them into ``RESULTS.md``.
"""

import argparse
import contextlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import report

from mlx_depth import cli
from mlx_depth.jobs import folder as files

import mlx.core as mx  # isort: skip  # after mlx_depth, which looks for a fast BLAS
from photos import write_photos

WINDOW = 100
STATUS = Path("/proc/self/statm")


class Sampler:
    """Peaks of memory in MB by window, sampled in a thread."""

    def __init__(self) -> None:
        self.peaks: list[dict[str, float]] = []
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start_window(self) -> None:
        self.peaks.append(memory())

    def _run(self) -> None:
        while not self.done.wait(0.01):
            if self.peaks:
                peak = self.peaks[-1]
                peak.update({name: max(peak[name], value) for name, value in memory().items()})


def memory() -> dict[str, float]:
    return {"process": resident() / 1e6, "MLX": (mx.get_active_memory() + mx.get_cache_memory()) / 1e6}


def resident() -> int:
    if STATUS.exists():
        return int(STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, check=True)
    return int(shown.stdout) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--input-size", default="56", help="small, so that it takes minutes")
    parser.add_argument("--long-sides", type=int, nargs=2, default=(300, 900), metavar=("FROM", "TO"))
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    shortest, longest = options.long_sides
    start = report.conditions(report.use_device(None), "mlx")
    sampler = Sampler()

    def watched(*arguments: Any, **more: Any) -> Generator[files.Outcome, None, None]:
        sampler.thread.start()
        for number, outcome in enumerate(files.predict_files(*arguments, **more)):
            if number % WINDOW == 0:
                sampler.start_window()
            yield outcome

    cli.predict_files = watched
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        photos.mkdir()
        write_photos(photos, options.photos, (shortest, longest))
        command = ["predict", str(photos), "-o", str(Path(folder, "out")), "--model", "mlx-depth-demo"]
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
            code = cli.main([*command, "--batch-size", "4", "--input-size", options.input_size])
    sampler.done.set()
    assert code == 0
    lines = [
        f"{start} {options.photos} photos of {shortest}–{longest} pixels, `predict --batch-size 4`, "
        f"demo model at input size {options.input_size}; peaks of each {WINDOW}.",
        "",
        *table(sampler.peaks),
    ]
    report.publish("memory", lines, write=options.write)


def table(peaks: list[dict[str, float]]) -> list[str]:
    changes = [peaks[-1][name] / peaks[0][name] - 1 for name in ("process", "MLX")]
    return [
        "| images | process, MB | MLX, MB |",
        "|---|---|---|",
        *(
            f"| {number * WINDOW + 1}–{(number + 1) * WINDOW} | {peak['process']:.0f} | {peak['MLX']:.0f} |"
            for number, peak in enumerate(peaks)
        ),
        f"| last to first | {changes[0]:+.1%} | {changes[1]:+.1%} |",
    ]


if __name__ == "__main__":
    main()
