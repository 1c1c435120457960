"""What the benchmarks share: the device, timing, the description of a run, and the sections of ``RESULTS.md``."""

import ctypes
import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("RESULTS.md")
DTYPES = ("float32", "float16", "bfloat16")


def use_device(name: str | None) -> str:
    """Make ``cpu`` or ``gpu`` MLX's default device (None: leave it as it is), and say what computes there."""
    from mlx_depth.linux_cpu import openblas  # the package first, so that an installed OpenBLAS is used

    # isort: split
    import mlx.core as mx

    device = mx.default_device() if name is None else mx.Device(getattr(mx, name))
    if not mx.is_available(device):
        raise SystemExit(f"MLX {version('mlx')} has no GPU here: take a Mac, install mlx[cuda13], or use --device cpu.")
    mx.set_default_device(device)
    if device == mx.Device(mx.gpu):
        return f"MLX on {mx.device_info(device)['device_name']}"
    own = "Accelerate" if sys.platform == "darwin" else "its own BLAS"
    held = os.environ.get("OPENBLAS_CORETYPE")
    remark = f" (held to {held} by OPENBLAS_CORETYPE, which may slow products)" if held else ""
    return f"MLX on the CPU with {openblas._config(ctypes.CDLL(None)).decode() or own}{remark}"


def size(text: str) -> tuple[int, int]:
    """``392x518`` → (height, width), for argparse."""
    height, width = text.split("x")
    return int(height), int(width)


def time_calls(call: Callable[[], Any], seconds: float, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of each call: as many calls as fit, at least two, or one that takes longer than ``seconds`` alone."""

    def timed() -> float:
        begin = clock()
        call()
        return clock() - begin

    taken = [timed()]
    spent = taken[0]
    while spent + taken[-1] <= seconds or (len(taken) == 1 and spent <= seconds):
        taken.append(timed())
        spent += taken[-1]
    return taken


def conditions(device: str, *packages: str) -> str:
    """Command, date, machine, versions and load average, as they are when the benchmark starts."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--write"]
    command = shlex.join(["python", f"tests/benchmarks/{Path(sys.argv[0]).name}", *arguments])
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"`{command}`, {datetime.date.today()}, {processor()}, {os.cpu_count()} cores, {platform.system()}, "
        f"{versions}, {device}, load average at the start {os.getloadavg()[0]:.1f}."
    )


def processor() -> str:
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return name[1] if name else platform.machine()


def publish(section: str, lines: Iterable[str], *, write: bool) -> None:
    """Print a table with its caption; ``write`` puts it into RESULTS.md, too."""
    text = "\n".join(lines)
    print(text)
    if write:
        write_section(section, text)


def write_section(name: str, text: str) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->`` in RESULTS.md."""
    before, start, rest = RESULTS.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->\n")
    if not start or not end:
        raise SystemExit(f"{RESULTS} has no section {name}: put <!-- {name} --> and <!-- /{name} --> on lines there.")
    part = RESULTS.with_suffix(".part")
    part.write_text(before + start + text.strip() + "\n" + end + after)
    part.replace(RESULTS)
