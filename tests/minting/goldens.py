"""Mint tests/goldens/demo.npz: ``python tests/minting/goldens.py SOURCE`` (the demo's float16 folder, Hub format).

Runs transformers in float32 on the photos of examples/, keeps every fourth value of each side, and prints how far our
own float32 and 8-bit networks are from it on the same pixels, and from the outputs stored beside SOURCE.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
import transformers

import mlx_depth

ROOT = Path(__file__).parents[2]
STRIDE = 4


def main(source: Path) -> None:
    upstream = transformers.DepthAnythingForDepthEstimation.from_pretrained(source, dtype=torch.float32).eval()
    ours = mlx_depth.load(source, dtype="float32", reference="transformers")
    packed = mlx_depth.load("mlx-depth-demo", dtype="float32", reference="transformers")
    goldens = {}
    for photo in sorted((ROOT / "examples").glob("*.jpg")):
        pixel_values = ours.processor(mlx_depth.load_image(photo).pixels)
        expected = run(upstream, np.array(pixel_values).transpose(0, 3, 1, 2))
        report(photo.name, expected, depth(ours, pixel_values), depth(packed, pixel_values))
        goldens[photo.stem] = expected[0, ::STRIDE, ::STRIDE]
    for stored in sorted(source.glob("reference/*_pixel_values.npy")):
        pixels = np.load(stored)
        expected = np.load(str(stored).replace("pixel_values", "depth"))
        pixel_values = mx.array(pixels.transpose(0, 2, 3, 1))
        report(stored.stem, expected, depth(ours, pixel_values), depth(packed, pixel_values))
    provenance = {
        "reference": f"transformers {transformers.__version__}, torch {torch.__version__}, float32",
        "weights": "the demo's float16 checkpoint, sha256 as in mlx_depth/demo/config.json",
        "command": "python tests/minting/goldens.py SOURCE",
        "values": f"predicted_depth[::{STRIDE}, ::{STRIDE}] at the network's size",
    }
    np.savez_compressed(ROOT / "tests/goldens/demo.npz", provenance=json.dumps(provenance), **goldens)


def run(upstream, pixel_values: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return upstream(torch.from_numpy(np.ascontiguousarray(pixel_values))).predicted_depth.numpy()


def depth(model: mlx_depth.DepthModel, pixel_values: mx.array) -> np.ndarray:
    return np.array(model.network(pixel_values).depth)


def report(name: str, expected: np.ndarray, ours: np.ndarray, packed: np.ndarray) -> None:
    error = np.abs(ours - expected).max() / np.abs(expected).max()
    correlation = np.corrcoef(packed.ravel(), expected.ravel())[0, 1]
    print(f"{name}: float32 relative error {error:.1e}, 8-bit correlation {correlation:.5f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
