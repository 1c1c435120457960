"""What the pictures of a scene share: the axes of glTF, cameras drawn as wire pyramids, and checks of points."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError
from mlx_depth.io.colormaps import apply_colormap

Camera: TypeAlias = tuple[npt.NDArray[np.floating], npt.NDArray[np.floating], tuple[int, int]]
"""``(intrinsics (3, 3) in pixels, extrinsics (3, 4) world → camera, size (H, W) in pixels)``, OpenCV axes."""

FRAME = "x right, y up, z backward: the OpenCV axes of the world as (x, -y, -z), neither moved nor scaled"

_CAMERA_LENGTH = 0.03  # of the scene's extent: as the exports of Depth Anything 3 draw them
_EDGES = ((0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1))  # 0 is the center, 1 to 4 the corners


def to_gltf(vectors: npt.NDArray[np.floating]) -> npt.NDArray[Any]:
    """Points or directions ``(…, 3)`` from OpenCV axes to those of glTF and WebGL, and back; exact."""
    return vectors * np.array([1, -1, -1], vectors.dtype)


def extent(points: npt.NDArray[np.floating]) -> float:
    """How large a scene is, whatever a few points far away say.

    Args:
        points: ``(N, 3)``, N >= 1.
    Returns:
        Diagonal of the box around the middle 90 % of each coordinate, in the unit of the points; 1 where that is 0.
    """
    low, high = np.percentile(points, [5, 95], axis=0).astype(np.float64)
    return float(np.linalg.norm(high - low)) or 1.0


def camera_center(extrinsics: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Where a camera stands: ``(3,)``, world axes."""
    matrix = extrinsics.astype(np.float64)
    return -matrix[:, :3].T @ matrix[:, 3]


def camera_lines(cameras: Sequence[Camera], points: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Draw cameras as wire pyramids: from the center to the corners of the photo, and around it.

    Args:
        cameras: The V cameras.
        points: ``(N, 3)``, what they look at; it sets their size.
    Returns:
        ``(V, 8, 2, 3)``: the ends of eight lines a camera, world axes. The corners are those of the photo's area,
        half a pixel outside of the corner pixels' centers.
    """
    length = _CAMERA_LENGTH * extent(points)
    lines = np.empty((len(cameras), 8, 2, 3))
    for number, (intrinsics, extrinsics, (height, width)) in enumerate(cameras):
        right, bottom = width - 0.5, height - 0.5
        corners = np.array([[-0.5, -0.5, 1], [right, -0.5, 1], [right, bottom, 1], [-0.5, bottom, 1]])
        rays = corners @ np.linalg.inv(intrinsics.astype(np.float64)).T  # z = 1
        center = camera_center(extrinsics)
        ends = center + length * rays @ extrinsics[:, :3].astype(np.float64)
        lines[number] = np.stack([center, *ends])[_EDGES, :]
    return lines


def camera_colors(count: int) -> npt.NDArray[np.uint8]:
    """``(count, 3)`` RGB: red for the first camera, then once around the circle of hues."""
    hues = [colorsys.hsv_to_rgb(number / max(count, 1), 0.75, 1.0) for number in range(count)]
    return np.rint(np.array(hues).reshape(-1, 3) * 255).astype(np.uint8)


def depth_colors(depth: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Paint points by their depth: near is red, as in ``DepthResult.colorize``.

    Args:
        depth: ``(N,)``, finite, above 0, larger = farther.
    Returns:
        ``(N, 3)``, RGB: the inverse depth, spread over its middle 96 %, so that neither a far hill nor a speck in front
        takes all the colors.
    """
    inverse = 1 / depth.astype(np.float64)
    low, high = np.percentile(inverse, [2, 98])
    shares = (inverse - low) / (high - low) if high > low else np.zeros(len(inverse))
    return apply_colormap((np.clip(shares, 0, 1) * 255).astype(np.uint8), "Spectral_r")


def check_points(points: npt.NDArray[Any], colors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Refuse points that cannot be drawn.

    Args:
        points: Meant to be ``(N, 3)`` float32, finite, N >= 1.
        colors: By the name of the argument, meant to be ``(N, 3)`` uint8.
    Raises:
        OptionError: If they are not.
    """
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype != np.float32:
        raise OptionError(f"points are {points.dtype} of shape {points.shape}: give float32 of shape (N, 3).")
    if len(points) == 0:
        raise OptionError("there are no points to draw: loosen the confidence, edge or sky filter that left none.")
    if not np.isfinite(points).all():
        raise OptionError("points hold numbers that are not finite: leave those points out.")
    for name, values in colors.items():
        if values.shape != points.shape or values.dtype != np.uint8:
            raise OptionError(
                f"{name} are {values.dtype} of shape {values.shape}: give uint8 of shape {points.shape}, one a point."
            )


def check_camera(camera: Camera) -> None:
    """Refuse a camera that cannot be drawn.

    Raises:
        OptionError: If a matrix has another shape, holds numbers that are not finite or has no inverse, or the size
            is not positive.
    """
    intrinsics, extrinsics, size = camera
    for name, matrix, shape in (("intrinsics", intrinsics, (3, 3)), ("extrinsics", extrinsics, (3, 4))):
        if matrix.shape != shape or not np.isfinite(matrix).all():
            raise OptionError(f"{name} of shape {matrix.shape} are not finite numbers of shape {shape}: give such.")
        if np.linalg.matrix_rank(matrix[:, :3]) < 3:
            raise OptionError(f"{name} have no inverse: give those of a camera.")
    if len(size) != 2 or min(size) < 1:
        raise OptionError(f"the size {tuple(size)} of a camera is not (height, width) in pixels: give it.")
