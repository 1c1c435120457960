"""Long runs in one process: ``python tests/benchmarks/soak.py [--predictions 2000] [--minutes 10] [--write]``.

First photos of mixed sizes one after the other: memory of the process, at most, in the second tenth and in the last.
Then four threads that predict on one model for some minutes, each result compared with what one thread gave.
"""

import argparse
import itertools
import sys
import threading
import time
from pathlib import Path

import numpy as np
import report

import mlx_depth

SIZES = [(30 + 7 * i, 40 + 11 * j) for i in range(6) for j in range(6)]
INPUT_SIZE = 56  # the network is not what is tried here
THREADS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--predictions", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=10, help="of four threads (default: 10)")
    parser.add_argument("--write", action="store_true", help="put the figures into RESULTS.md")
    options = parser.parse_args()
    start = report.conditions(report.use_device(None), "mlx")
    model = mlx_depth.load("mlx-depth-demo")
    lines = [start, "", one_after_the_other(model, options.predictions), "", at_once(model, options.minutes * 60)]
    report.publish("soak", lines, write=options.write)


def one_after_the_other(model: mlx_depth.DepthModel, count: int) -> str:
    """Memory over many predictions, as a line."""
    images = [picture(size) for size in SIZES]
    megabytes = []
    for image in itertools.islice(itertools.cycle(images), count):
        model.predict(image, input_size=INPUT_SIZE)
        megabytes.append(memory() / 1e6)
    tenth = max(count // 10, 1)
    second, last = max(megabytes[tenth : 2 * tenth]), max(megabytes[-tenth:])
    return (
        f"{count} predictions of {len(SIZES)} sizes: at most {second:.0f} MB in the second tenth, {last:.0f} MB in the "
        f"last ({last / second - 1:+.1%})."
    )


def at_once(model: mlx_depth.DepthModel, seconds: float) -> str:
    """Threads that share a model, as a line; SystemExit where a result differs."""
    images = [picture(size) for size in SIZES]
    expected = [model.predict(image, input_size=INPUT_SIZE).depth for image in images]
    end = time.monotonic() + seconds
    counts = [0] * THREADS
    faults: list[str] = []

    def work(number: int) -> None:
        for index in itertools.cycle(range(number, len(images))):
            if time.monotonic() > end or faults:
                return
            depth = model.predict(images[index], input_size=INPUT_SIZE).depth
            if not np.allclose(depth, expected[index], rtol=1e-4, atol=1e-5):
                faults.append(f"size {SIZES[index]}")
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    before = memory() / 1e6
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise SystemExit(f"{THREADS} threads gave other numbers than one: {faults[0]}")
    return (
        f"{THREADS} threads for {seconds / 60:g} minutes: {sum(counts)} predictions ({min(counts)} to {max(counts)} a "
        f"thread), all within 1e-4 of one thread's; memory {before:.0f} MB before, {memory() / 1e6:.0f} MB after."
    )


def picture(size: tuple[int, int]) -> np.ndarray:
    return np.random.RandomState(sum(size)).randint(0, 256, (*size, 3)).astype(np.uint8)


def memory() -> int:
    """Bytes of the process that are in memory now."""
    if sys.platform == "linux":
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
