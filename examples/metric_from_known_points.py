"""Turn relative depth into metres with two distances that you know, here two guesses for the photo of the pagoda."""

from pathlib import Path

import mlx_depth

result = mlx_depth.predict(Path(__file__).parent / "summer_palace.jpg", model="mlx-depth-demo")
metres = result.fit_metric([(100, 415, 12.0), (160, 200, 60.0)], max_depth=1000.0)  # (column, row, metres)
print(metres)
for name, (column, row) in {"bushes": (300, 400), "pagoda": (160, 200), "sky": (500, 40)}.items():
    print(f"{name}: {metres.depth[row, column]:.0f} m")
