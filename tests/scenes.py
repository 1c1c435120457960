"""A scene of boxes on a floor, ray-cast in numpy: depth, cameras, photos and surfaces are known to the last digit.

Axes are OpenCV's: in the world too, y points down, so that the floor lies at a positive y. Pixel centers are at
integers: the ray through row i, column j is K^-1 (j, i, 1), and depth is along the camera's z axis.
"""

from dataclasses import dataclass

import numpy as np

# Each box: lowest corner, highest corner, color. They stand on the floor.
BOXES = [
    ((-1.6, 0.2, 3.4), (-0.5, 1.5, 4.4), (220, 40, 40)),
    ((0.3, -0.4, 4.2), (1.5, 1.5, 5.3), (40, 80, 230)),
    ((-0.4, 0.8, 2.6), (0.4, 1.5, 3.1), (250, 200, 30)),
]
FLOOR = ((-5.0, 1.5, 0.5), (5.0, 2.0, 10.0))  # its top is the ground; a checkerboard of half a unit
FLOOR_COLORS = ((90, 150, 90), (150, 190, 150))
SKY_COLOR = (170, 200, 255)
SKY_DEPTH = 40.0  # networks give the sky a depth, too
SIZE = (48, 64)


@dataclass(frozen=True, eq=False)
class Rendered:
    """Views of the boxes.

    Attributes:
        depth: ``(V, H, W)``, float32; ``SKY_DEPTH`` where nothing was hit.
        intrinsics: ``(V, 3, 3)``, float64, pixels.
        extrinsics: ``(V, 3, 4)``, float64, world → camera.
        images: V photos, ``(H, W, 3)``, uint8.
        confidence: ``(V, H, W)``, float32, 1 and up, larger = surer: falls with the distance, 1 in the sky.
        sky: ``(V, H, W)``, float32, 1 where nothing was hit.
        surface: ``(V, H, W)``, int: index of the box, ``len(BOXES)`` for the floor, -1 for the sky.
    """

    depth: np.ndarray
    intrinsics: np.ndarray
    extrinsics: np.ndarray
    images: list[np.ndarray]
    confidence: np.ndarray
    sky: np.ndarray
    surface: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        return self.depth.shape[1:]


def look_at(center: tuple[float, float, float], target: tuple[float, float, float], roll: float = 0.0) -> np.ndarray:
    """``(3, 4)`` world → camera of a camera at ``center`` that looks at ``target``, turned by ``roll`` radians."""
    forward = np.subtract(target, center).astype(np.float64)
    forward /= np.linalg.norm(forward)
    right = np.cross([0.0, 1.0, 0.0], forward)  # the world's y points down
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    turn = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    rotation = turn @ rotation
    return np.concatenate([rotation, -rotation @ np.array(center, np.float64)[:, None]], axis=1)


def intrinsics_of(size: tuple[int, int] = SIZE) -> np.ndarray:
    """``(3, 3)``, pixels: fx ≠ fy, and a principal point off the center."""
    height, width = size
    return np.array([[0.9 * width, 0, 0.46 * width], [0, 1.05 * height, 0.53 * height], [0, 0, 1]])


def boxes(views: int = 3, size: tuple[int, int] = SIZE) -> Rendered:
    """The boxes from ``views`` cameras on an arc: the first looks straight ahead, the others are turned and rolled."""
    steps = np.arange(views)
    side = np.where(steps % 2, 1, -1) * np.ceil(steps / 2) / max(1, np.ceil((views - 1) / 2))  # 0, 1, -1, or finer
    extrinsics = np.stack(
        [look_at((1.2 * x, -0.3 * abs(x), 0.4 * abs(x)), (0.2 * x, 0.5 * abs(x), 4.0), 0.1 * x) for x in side]
    )
    return render(np.repeat(intrinsics_of(size)[None], views, axis=0), extrinsics, size)


def render(intrinsics: np.ndarray, extrinsics: np.ndarray, size: tuple[int, int] = SIZE) -> Rendered:
    """The boxes from any cameras: ``(V, 3, 3)`` in pixels of ``size`` and ``(V, 3, 4)`` world → camera."""
    views = [_view(k, e, size) for k, e in zip(intrinsics, extrinsics, strict=True)]
    depth = np.stack([depth for depth, _, _ in views])
    surface = np.stack([surface for _, surface, _ in views])
    sky = (surface < 0).astype(np.float32)
    return Rendered(
        depth=depth.astype(np.float32),
        intrinsics=np.asarray(intrinsics, np.float64),
        extrinsics=np.asarray(extrinsics, np.float64),
        images=[image for _, _, image in views],
        confidence=(1 + (1 - sky) * 8 / depth).astype(np.float32),
        sky=sky,
        surface=surface,
    )


def distance_to_surfaces(points: np.ndarray) -> np.ndarray:
    """``(N,)``: how far each of ``(N, 3)`` world points is from the nearest face of a box or of the floor."""
    solids = [*((low, high) for low, high, _ in BOXES), FLOOR]
    return np.min([_distance_to_box(points, np.array(low), np.array(high)) for low, high in solids], axis=0)


def _view(intrinsics: np.ndarray, extrinsics: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    rows, columns = np.indices(size, dtype=np.float64)
    rays = np.stack([columns, rows, np.ones(size)], axis=-1) @ np.linalg.inv(intrinsics).T  # z = 1: length is depth
    rotation, translation = extrinsics[:, :3], extrinsics[:, 3]
    rays, center = rays @ rotation, -rotation.T @ translation  # in world axes
    solids = [*((low, high) for low, high, _ in BOXES), FLOOR]
    hits = np.stack([_hit(center, rays, np.array(low), np.array(high)) for low, high in solids])
    surface = hits.argmin(axis=0)
    depth = hits.min(axis=0)
    seen = np.isfinite(depth)
    surface = np.where(seen, surface, -1)
    depth = np.where(seen, depth, SKY_DEPTH)
    return depth, surface, _paint(surface, center + rays * depth[..., None])


def _hit(center: np.ndarray, rays: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Depth at which ``(H, W, 3)`` rays enter a box that the camera is outside of; inf where they miss it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = (low - center) / rays, (high - center) / rays
    enter, leave = np.fmin(one, other).max(axis=-1), np.fmax(one, other).min(axis=-1)
    return np.where((enter < leave) & (enter > 0), enter, np.inf)


def _paint(surface: np.ndarray, points: np.ndarray) -> np.ndarray:
    checker = (np.floor(points[..., 0] * 2) + np.floor(points[..., 2] * 2)).astype(int) % 2
    colors = np.array([*(color for _, _, color in BOXES), *FLOOR_COLORS, SKY_COLOR], np.uint8)
    entry = np.where(surface == len(BOXES), len(BOXES) + checker, surface)  # the sky's -1 takes the last
    return colors[entry]


def _distance_to_box(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    beyond = np.maximum(low - points, points - high)  # negative inside
    outside = np.linalg.norm(np.maximum(beyond, 0), axis=-1)
    return outside + np.abs(np.minimum(beyond.max(axis=-1), 0))
