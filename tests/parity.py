"""Print the parity table of the README: ``python tests/parity.py`` (needs the extra ``reference``; about two minutes).

Full-size networks with name-seeded weights, ours and transformers' from the same pixels, float32. The last rows are the
bundled demo's real weights on the photos of examples/.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import mlx_depth  # first, so that an installed OpenBLAS is used

# isort: split
import mlx.core as mx
import numpy as np
import reference
from support import correlation, relative_error

SEEDED = [
    ("V2 small", {}, (1, 518, 518)),
    ("V2 small", {}, (1, 392, 518)),
    ("V2 small, batch of 3", {}, (3, 70, 98)),
    ("V1 small", {"version": 1}, (1, 392, 518)),
    ("V2 metric small, indoor", {"max_depth": 20}, (1, 392, 518)),
    ("V2 metric small, outdoor", {"max_depth": 80}, (1, 392, 518)),
]


def main() -> None:
    print("| model | input | relative error | 1 − correlation |")
    print("|---|---|---|---|")
    for name, options, shape in SEEDED:
        upstream = reference.model("small", **options)
        with tempfile.TemporaryDirectory() as folder:
            reference.save(upstream, Path(folder))
            model = mlx_depth.load(folder, dtype="float32", reference="transformers")
        print_row(name, upstream, model, reference.pixels(*shape), zeros=0.1)
    demo = mlx_depth.load("mlx-depth-demo", dtype="float32", reference="transformers")
    upstream = reference.transformers.DepthAnythingForDepthEstimation(reference.config("small")).eval()
    reference.fill_from_ours(upstream, demo.network)
    for photo in sorted((Path(__file__).parents[1] / "examples").glob("*.jpg")):
        pixel_values = np.array(demo.processor(mlx_depth.load_image(photo).pixels))
        print_row(f"demo, {photo.name}", upstream, demo, pixel_values, zeros=0.6)


def print_row(name: str, upstream, model: mlx_depth.DepthModel, pixel_values: np.ndarray, *, zeros: float) -> None:
    expected = reference.run(upstream, pixel_values, zeros=zeros)
    found = np.array(model.network(mx.array(pixel_values)).depth)
    size = "×".join(map(str, pixel_values.shape[1:3]))
    error, drift = relative_error(found, expected), 1 - correlation(found, expected)
    print(f"| {name} | {size} | {error:.0e} | {max(drift, 0):.0e} |", flush=True)


if __name__ == "__main__":
    main()
