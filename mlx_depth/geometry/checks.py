"""What depth maps and cameras of several views must be."""

from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError

_ORTHONORMAL = 1e-4  # largest difference of R Rᵀ to the identity: 0.04 pixels at a focal length of 400


def check_array(name: str, array: npt.NDArray[Any], shape: tuple[int, ...], dtype: type = np.float32) -> None:
    """Raise an ``OptionError`` unless it is a numpy array of this type and shape."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        raise OptionError(f"{name} is {_found(array)}: give a numpy array of {np.dtype(dtype)}.")
    if array.shape != shape:
        raise OptionError(f"{name} has shape {array.shape}, the scene asks for {shape}: make them equal.")


def check_count(name: str, count: int, views: int) -> None:
    """Raise an ``OptionError`` unless there is one of them for each view."""
    if count != views:
        raise OptionError(f"{name} is given for {_views(count)}, depth for {_views(views)}: give one for each view.")


def check_depth(depth: npt.NDArray[np.float32]) -> None:
    """Raise an ``OptionError`` unless it is ``(V, H, W)``, float32, and not empty."""
    if not isinstance(depth, np.ndarray) or depth.dtype != np.float32:
        raise OptionError(f"depth is {_found(depth)}: give a numpy array of float32.")
    if depth.ndim != 3:
        raise OptionError(f"depth has shape {depth.shape}: give (V, H, W), even for one view.")
    if depth.size == 0:
        raise OptionError(f"depth has shape {depth.shape}, the scene is empty: give at least one view with pixels.")


def check_intrinsics(intrinsics: npt.NDArray[np.floating], views: int) -> None:
    """Raise an ``OptionError`` unless they are V cameras, ``(V, 3, 3)``, float, that can be inverted."""
    _check_matrices("intrinsics", intrinsics, (views, 3, 3))
    for view, matrix in enumerate(intrinsics):
        if not (matrix[0, 0] > 0 and matrix[1, 1] > 0 and matrix[1, 0] == 0 and (matrix[2] == (0, 0, 1)).all()):
            raise OptionError(
                f"intrinsics of view {view} are singular or no camera's: give [[fx, skew, cx], [0, fy, cy], [0, 0, 1]] "
                "with focal lengths above 0, in pixels."
            )


def check_extrinsics(extrinsics: npt.NDArray[np.floating], views: int) -> None:
    """Raise an ``OptionError`` unless they are V rotations and translations, ``(V, 3, 4)``, float."""
    _check_matrices("extrinsics", extrinsics, (views, 3, 4))
    for view, rotation in enumerate(extrinsics[:, :, :3].astype(np.float64)):
        error = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
        if error > _ORTHONORMAL:
            raise OptionError(
                f"extrinsics of view {view} are no rotation and translation (R Rᵀ is {error:.2g} off the identity): "
                "give world → camera, without a scale."
            )
        if np.linalg.det(rotation) < 0:
            raise OptionError(f"extrinsics of view {view} mirror the world: give axes x right, y down, z forward.")


def _check_matrices(name: str, matrices: npt.NDArray[np.floating], shape: tuple[int, int, int]) -> None:
    if not isinstance(matrices, np.ndarray) or matrices.dtype.kind != "f":
        raise OptionError(f"{name} is {_found(matrices)}: give a float numpy array of shape {shape}.")
    if matrices.ndim == 3:
        check_count(name, len(matrices), shape[0])
    if matrices.shape != shape:
        raise OptionError(f"{name} has shape {matrices.shape}, the scene asks for {shape}: make them equal.")
    for view, matrix in enumerate(matrices):
        if not np.isfinite(matrix).all():
            raise OptionError(f"{name} of view {view} holds numbers that are not finite: leave the view out.")


def _views(count: int) -> str:
    return "one view" if count == 1 else f"{count} views"


def _found(value: object) -> str:
    return str(getattr(value, "dtype", type(value).__name__))
