"""One depth map as a scene: which camera took the photo, and which depth its points get."""

import dataclasses
import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError
from mlx_depth.kinds import DepthKind
from mlx_depth.result import DepthResult
from mlx_depth.scene import SceneResult

CameraFrom = Literal["given", "model", "exif", "assumed"]

FOV = 60.0  # degrees, horizontal: between a phone's main lens (65 to 70) and a normal lens (40)
NEAR, FAR = 1.0, 10.0  # of inverse depth, whose scale and shift are unknown


def to_scene(
    result: DepthResult,
    *,
    intrinsics: npt.ArrayLike | None = None,
    focal_length_px: float | None = None,
    fov: float | None = None,
    near: float | None = None,
    far: float | None = None,
) -> SceneResult:
    """Give a depth map a camera, and make a scene of one view of it.

    Args:
        result: With its photo.
        intrinsics: As for ``intrinsics_of``, like ``focal_length_px`` and ``fov``.
        near: Depth that the nearest pixel of relative inverse depth gets, without a unit. Default: 1.
        far: And the farthest one. Default: 10.
    Returns:
        The scene, at the size of the photo. Metric depth stays in metres, relative depth as it is. Inverse depth,
        whose scale and shift are unknown, becomes relative between ``near`` and ``far``: the shapes are then only
        roughly right, unlike those of ``result.fit_metric(…)``, which makes metres of it. The world is that of the
        camera's extrinsics, or else the camera.
    Raises:
        OptionError: If an option is out of its range or does not go with the kind of depth, or the result has no photo
            or no depth.
    """
    image = result.image
    if image is None:
        raise OptionError("a scene needs the photo, which this result does not hold: predict it anew.")
    matrix, _ = intrinsics_of(result, intrinsics=intrinsics, focal_length_px=focal_length_px, fov=fov)
    if result.kind is DepthKind.RELATIVE_INVERSE:
        result = _between(result, NEAR if near is None else near, FAR if far is None else far)
    elif near is not None or far is not None:
        raise OptionError(f"near and far are for relative inverse depth, and this is {result.kind.value}: leave them.")
    camera = result.camera
    extrinsics = np.eye(3, 4) if camera is None or camera.extrinsics is None else camera.extrinsics
    return SceneResult(
        result.depth[None],
        matrix[None],
        extrinsics[None],
        images=[image],
        kind=result.kind,
        confidence=None if result.confidence is None else result.confidence[None],
        sky=None if result.sky is None else result.sky[None],
        normals=None if result.normals is None else result.normals[None],
        names=() if result.source is None else (result.source,),
        model=result.model,
        revision=result.revision,
        dtype=result.dtype,
        license=result.license,
    )


def intrinsics_of(
    result: DepthResult,
    *,
    intrinsics: npt.ArrayLike | None = None,
    focal_length_px: float | None = None,
    fov: float | None = None,
) -> tuple[npt.NDArray[np.float64], CameraFrom]:
    """The camera of a photo: what is given, else the model's, else EXIF's, else an assumed one.

    Args:
        result: What is known of the photo.
        intrinsics: ``(3, 3)``, in pixels of the photo, centers at integers.
        focal_length_px: In pixels of the photo, instead of intrinsics.
        fov: Horizontal field of view in degrees, instead of either.
    Returns:
        ``(3, 3)``, in pixels of the photo, and where they are from. A focal length alone has its principal point in the
        middle of the photo; the assumed camera sees ``FOV`` degrees.
    Raises:
        OptionError: If more than one is given, or one is out of its range.
    """
    given = {"intrinsics": intrinsics, "focal_length_px": focal_length_px, "fov": fov}
    several = [name for name, value in given.items() if value is not None]
    if len(several) > 1:
        raise OptionError(f"{' and '.join(several)} are given: leave one, which tells the camera.")
    if intrinsics is not None:
        return np.asarray(intrinsics, np.float64), "given"
    if focal_length_px is not None:
        return centered(focal_length_px, result.image_size), "given"
    if fov is not None:
        return centered(focal_of_fov(fov, result.image_size), result.image_size), "given"
    if result.camera is not None:
        return result.camera.intrinsics.astype(np.float64), "model"
    if result.focal_length_px is not None:
        return centered(result.focal_length_px, result.image_size), "exif"
    return centered(focal_of_fov(FOV, result.image_size), result.image_size), "assumed"


def focal_of_fov(fov: float, size: tuple[int, int]) -> float:
    """Focal length in pixels of a photo of ``(height, width)`` that shows ``fov`` degrees from left to right.

    Raises:
        OptionError: If that is no field of view.
    """
    if not 0 < fov < 180:
        raise OptionError(f"fov {fov} is no field of view: give degrees between 0 and 180.")
    return size[1] / 2 / math.tan(math.radians(fov) / 2)


def centered(focal_length_px: float, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Intrinsics ``(3, 3)`` of a focal length in pixels, the principal point in the middle of ``(height, width)``.

    Raises:
        OptionError: If that is no focal length.
    """
    if not (math.isfinite(focal_length_px) and focal_length_px > 0):
        raise OptionError(
            f"focal_length_px {focal_length_px} is not a finite number above 0: give pixels of the photo."
        )
    height, width = size
    return np.array([[focal_length_px, 0, (width - 1) / 2], [0, focal_length_px, (height - 1) / 2], [0, 0, 1]])


def _between(result: DepthResult, near: float, far: float) -> DepthResult:
    """Inverse depth as relative depth from ``near`` to ``far``."""
    if not (0 < near < far < math.inf):
        raise OptionError(f"near {near} and far {far} are no two depths: give finite numbers, 0 < near < far.")
    ends = result.depth_range
    if ends is None or ends[0] == ends[1]:
        raise OptionError("the depth map is the same everywhere, and makes no scene: give another photo.")
    scale = (1 / near - 1 / far) / (ends[1] - ends[0])
    inverse = (result.depth.astype(np.float64) - ends[0]) * scale + 1 / far
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.where(np.isfinite(inverse), 1 / inverse, np.nan).astype(np.float32)
    camera = None if result.camera is None else result.camera.rescaled(None)
    return dataclasses.replace(result, depth=depth, kind=DepthKind.RELATIVE, camera=camera)
