"""Points of one photo, or of several photos of one scene: scene.py [OUT [MODEL PHOTO…]]."""

import sys
from pathlib import Path

import mlx_depth

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
model = mlx_depth.load(sys.argv[2] if len(sys.argv) > 2 else "mlx-depth-demo")
photos = sys.argv[3:] or [Path(__file__).parent / "summer_palace.jpg"]

if len(photos) > 1:  # all in one world, by a model of Depth Anything 3
    scene = model.predict_views(photos)
else:  # the demo's inverse depth, whose scale is unknown, is put between 1 and 10
    result = model.predict(*photos)
    scene = mlx_depth.to_scene(result, fov=60)
points, colors = scene.points()
print(scene)
print(f"{len(points)} points, the middle one at {points[len(points) // 2]}, unit {scene.unit or 'unknown'}")
print(scene.save(out / "scene.html", overwrite=True))  # or .ply, .glb, .npz
