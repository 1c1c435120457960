"""Predict every photo of a folder in batches, in order, and go on past those that cannot be read."""

import sys
from pathlib import Path

import mlx_depth


def report(source: object, error: mlx_depth.ImageError) -> None:
    print(f"left out {source}: {error}", file=sys.stderr)


folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent)
model = mlx_depth.load("mlx-depth-demo")
photos = sorted(folder.glob("*.jpg"))
for result in model.predict_batch(photos, batch_size=2, on_error=report):
    nearest = result.normalized()
    print(f"{Path(result.source).name}: {result.image_size}, {(nearest > 0.5).mean():.0%} of it is near")
