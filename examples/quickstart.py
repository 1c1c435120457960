"""Predict one photo with the bundled demo model and write it in three forms."""

import sys
from pathlib import Path

import mlx_depth

photo = Path(__file__).parent / "summer_palace.jpg"
out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")

result = mlx_depth.predict(photo, model="mlx-depth-demo")
print(result)
for name in ("depth.npy", "depth.png", "depth.jpg"):  # float32, 16-bit gray, color
    print(result.save(out / name, overwrite=True))
