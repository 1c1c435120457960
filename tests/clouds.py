"""The points that the views of a scene see, unprojected here by hand: what files of scenes are made of and held to."""

from dataclasses import dataclass

import numpy as np
from scenes import Rendered


@dataclass(frozen=True, eq=False)
class Cloud:
    points: np.ndarray  # (N, 3) float32, world
    colors: np.ndarray  # (N, 3) uint8
    confidence: np.ndarray  # (N,) float32
    cameras: list[tuple[np.ndarray, np.ndarray, tuple[int, int]]]


def cloud_of(scene: Rendered) -> Cloud:
    """All pixels that are not sky."""
    parts = []
    views = zip(scene.depth, scene.intrinsics, scene.extrinsics, scene.images, scene.confidence, scene.sky, strict=True)
    for depth, intrinsics, extrinsics, image, confidence, sky in views:
        rows, columns = np.nonzero(sky == 0)
        x = (columns - intrinsics[0, 2]) / intrinsics[0, 0]
        y = (rows - intrinsics[1, 2]) / intrinsics[1, 1]
        seen = np.stack([x, y, np.ones_like(x)], axis=-1) * depth[rows, columns, None]
        points = (seen - extrinsics[:, 3]) @ extrinsics[:, :3]  # the inverse of a rotation is its transpose
        parts.append((points.astype(np.float32), image[rows, columns], confidence[rows, columns]))
    points, colors, confidence = (np.concatenate(values) for values in zip(*parts, strict=True))
    cameras = [(*matrices, scene.size) for matrices in zip(scene.intrinsics, scene.extrinsics, strict=True)]
    return Cloud(points, colors, confidence, cameras)
