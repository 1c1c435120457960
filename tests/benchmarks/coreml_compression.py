"""What compressed weights cost in quality: ``python tests/benchmarks/coreml_compression.py PHOTO…``.

Prints the size of the package, and error and correlation against the MLX model in float32, for each photo.
"""

import argparse
import tempfile

from mlx_depth_convert.coreml import check_package, export_coreml
from mlx_depth_convert.coreml.options import COMPRESSIONS

from mlx_depth.checkpoints.checkpoint import fetch_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--model", default="mlx-depth-demo")
    parser.add_argument("--size", default="landscape")
    arguments = parser.parse_args()
    checkpoint, _ = fetch_checkpoint(arguments.model)
    for compress in (None, *COMPRESSIONS):
        with tempfile.TemporaryDirectory() as folder:
            path = export_coreml(checkpoint, folder, sizes=arguments.size, compress=compress)
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            print(f"{compress or 'float16'}: {size / 1e6:.1f} MB")
            for photo in arguments.photos:
                (function,) = check_package(path, checkpoint, photo).functions
                print(f"  {function.final}  {photo}", flush=True)


if __name__ == "__main__":
    main()
