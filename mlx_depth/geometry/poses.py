"""Camera poses: their shapes, their inverse, and the world of the first view."""

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError

MAX_SKEW = 1e-2  # of R Rᵀ from the identity: half precision passes, a scaled or sheared matrix does not
MIN_SPREAD = 0.1  # of the cameras, as in upstream: translations are never divided by less


def as_3x4(poses: npt.ArrayLike, *, name: str = "poses") -> npt.NDArray[np.float64]:
    """Check rigid transforms and write them without their last row.

    Args:
        poses: ``(…, 3, 4)`` or ``(…, 4, 4)``, rotation and translation.
        name: What the error calls them.
    Returns:
        ``(…, 3, 4)``, float64.
    Raises:
        OptionError: If the shape is another, a number is not finite, or a matrix is not rigid.
    """
    values = np.asarray(poses)
    if values.dtype.kind not in "fiu" or values.ndim < 2 or values.shape[-2:] not in {(3, 4), (4, 4)}:
        raise OptionError(
            f"{name} of shape {values.shape} and type {values.dtype} are no poses: "
            "give numbers, (…, 3, 4) or (…, 4, 4)."
        )
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise OptionError(f"{name} hold numbers that are not finite: give finite ones.")
    if (values[..., 3:, :] != [0, 0, 0, 1]).any():
        raise OptionError(f"{name} have a last row that is not 0 0 0 1: give rigid transforms.")
    rotation = values[..., :3, :3]
    skew = np.abs(rotation @ rotation.swapaxes(-1, -2) - np.eye(3)).max(initial=0)
    if skew > MAX_SKEW or (np.linalg.det(rotation) < 0).any():
        raise OptionError(
            f"{name} hold a matrix that is no rotation (off by {skew:.2g}, or a mirror image): "
            "take scale and shear out of it, and check the order of the axes."
        )
    return values[..., :3, :]


def as_4x4(poses: npt.ArrayLike, *, name: str = "poses") -> npt.NDArray[np.float64]:
    """Check rigid transforms and write them with their last row, 0 0 0 1.

    Args:
        poses: ``(…, 3, 4)`` or ``(…, 4, 4)``, rotation and translation.
        name: What the error calls them.
    Returns:
        ``(…, 4, 4)``, float64.
    Raises:
        OptionError: As for :func:`as_3x4`.
    """
    short = as_3x4(poses, name=name)
    last = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (*short.shape[:-2], 1, 4))
    return np.concatenate([short, last], axis=-2)


def inverse_pose(poses: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Invert rigid transforms: world → camera becomes camera → world, and back.

    Args:
        poses: ``(…, 3, 4)`` or ``(…, 4, 4)``, rotation and translation.
    Returns:
        The shape of ``poses``, float64.
    Raises:
        OptionError: As for :func:`as_3x4`.

    By the transposed rotation, as ``affine_inverse`` of upstream's ``utils/geometry.py``.
    """
    short = as_3x4(poses)
    turned = short[..., :3].swapaxes(-1, -2)
    inverse = np.concatenate([turned, -turned @ short[..., 3:]], axis=-1)
    return as_4x4(inverse) if np.shape(poses)[-2] == 4 else inverse


def camera_centers(extrinsics: npt.ArrayLike, *, name: str = "extrinsics") -> npt.NDArray[np.float64]:
    """Where cameras stand in the world.

    Args:
        extrinsics: ``(…, 3, 4)`` or ``(…, 4, 4)``, world → camera.
        name: What the error calls them.
    Returns:
        ``(…, 3)``, float64, in the unit of the translations.
    Raises:
        OptionError: As for :func:`as_3x4`.
    """
    short = as_3x4(extrinsics, name=name)
    return -(short[..., 3:].swapaxes(-1, -2) @ short[..., :3])[..., 0, :]


def normalize_extrinsics(extrinsics: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Bring given cameras into the world and the unit that the network was trained with.

    Args:
        extrinsics: ``(V, 3, 4)`` or ``(V, 4, 4)``, world → camera, any unit.
    Returns:
        ``(V, 3, 4)``, float64: the first view is the world, and the median distance of the cameras from it is 1; a
        median below ``MIN_SPREAD`` counts as ``MIN_SPREAD``, so that views from one place stay together.
    Raises:
        OptionError: As for :func:`as_3x4`, or if there is no view.

    As ``_normalize_extrinsics`` of upstream's ``api.py``. The first view's own distance, 0, is one of the V that the
    median is of, and of two middle values it takes the lower, as ``torch.median`` does.
    """
    views = as_4x4(extrinsics, name="extrinsics")
    if views.ndim != 3 or not len(views):
        raise OptionError(f"extrinsics of shape {np.shape(extrinsics)} are no list of views: give (V, 3, 4).")
    relative = (views @ inverse_pose(views[0]))[:, :3]
    distances = np.sort(np.linalg.norm(camera_centers(relative), axis=-1))
    median = distances[(len(distances) - 1) // 2]
    relative[..., 3] /= max(median, MIN_SPREAD)
    return relative
