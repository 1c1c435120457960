"""What a Core ML export costs: ``python tests/benchmarks/coreml_cost.py MODEL SIZE… [--compress int8]``.

Weights are filled from their names, so nothing is downloaded. Prints seconds, peak memory and the package's size.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from coreml.tiny import full_size
from mlx_depth_convert.coreml import export_coreml, tools

PEAK_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a registry name")
    parser.add_argument("sizes", nargs="*", default=["landscape"])
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--compress")
    parser.add_argument("--layout", default="ane")
    arguments = vars(parser.parse_args())
    checkpoint = full_size(arguments.pop("model"))
    tools.coremltools()  # its import takes two seconds, once
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        path = export_coreml(checkpoint, folder, **arguments)
        seconds = time.perf_counter() - start
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT
    print(f"{seconds:.1f} s, peak {peak / 1e9:.2f} GB, package {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
