"""From depth maps and cameras to points in the world."""

import numpy as np
import numpy.typing as npt


def unproject(
    depth: npt.NDArray[np.float32],
    intrinsics: npt.NDArray[np.floating],
    extrinsics: npt.NDArray[np.floating],
    pixels: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.float32]:
    """Put pixels into the world at their depth.

    Args:
        depth: ``(V, H, W)``, along the camera's z axis.
        intrinsics: ``(V, 3, 3)``, in pixels whose centers are at integers.
        extrinsics: ``(V, 3, 4)``, world → camera, in the unit of the depth.
        pixels: ``(N,)``, rising indices into the flattened depth. Default: every pixel, N = V * H * W.
    Returns:
        ``(N, 3)``, world coordinates in the unit of the depth, in the order of the pixels. A pixel without a depth has
        no point: leave it out of ``pixels``, or its numbers mean nothing.

    The pixel in row i, column j is ``R^-1 (depth K^-1 (j, i, 1) - t)``, computed in float64.
    """
    views, height, width = depth.shape
    pixels = np.arange(depth.size) if pixels is None else pixels
    flat = depth.reshape(-1)
    points = np.empty((len(pixels), 3), np.float32)
    starts = np.searchsorted(pixels, np.arange(views + 1) * height * width)
    for view in range(views):
        part = slice(starts[view], starts[view + 1])
        rows, columns = np.divmod(pixels[part] - view * height * width, width)
        rays = np.linalg.solve(_wide(intrinsics[view]), np.stack([columns, rows, np.ones_like(rows)]))  # (3, n)
        rotation, translation = _wide(extrinsics[view, :, :3]), _wide(extrinsics[view, :, 3:])
        with np.errstate(over="ignore"):  # beyond float32
            points[part] = np.linalg.solve(rotation, rays * flat[pixels[part]] - translation).T
    return points


def _wide(matrix: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    return matrix.astype(np.float64)
