"""The ray-cast boxes as a ``SceneResult``."""

from typing import Any

import numpy as np
import scenes
from support import seeded

from mlx_depth.gaussians import Gaussians
from mlx_depth.kinds import DepthKind
from mlx_depth.scene import SceneResult


def boxes(rendered: scenes.Rendered | None = None, **changes: Any) -> SceneResult:
    """Three views with confidence and sky; ``changes`` replace or add fields."""
    rendered = rendered or scenes.boxes()
    fields = {
        "depth": rendered.depth,
        "intrinsics": rendered.intrinsics,
        "extrinsics": rendered.extrinsics,
        "images": rendered.images,
        "kind": DepthKind.METRIC,
        "confidence": rendered.confidence,
        "sky": rendered.sky,
        "model": "depth-anything-3-large",
    }
    return SceneResult(**(fields | changes))


def gaussians(count: int, terms: int = 9) -> Gaussians:
    """Any valid ones."""
    rotations = seeded("rotations", (count, 4))
    return Gaussians(
        means=seeded("means", (count, 3)),
        scales=np.exp(seeded("scales", (count, 3))),
        rotations=rotations / np.linalg.norm(rotations, axis=1, keepdims=True),
        harmonics=seeded("harmonics", (count, 3, terms)),
        opacities=1 / (1 + np.exp(seeded("opacities", (count,)))),
    )
