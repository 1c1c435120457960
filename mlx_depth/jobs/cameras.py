"""Cameras of a scene as JSON, and known cameras from JSON, NPZ or COLMAP."""

import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError, printable
from mlx_depth.io.atomic import atomic_write
from mlx_depth.io.image import ImageInfo
from mlx_depth.scene import SceneResult

_PIXEL_CENTER = 0.5  # where COLMAP has the center of the first pixel; ours is at 0
_PINHOLES = ("SIMPLE_PINHOLE", "PINHOLE")


@dataclass(frozen=True, eq=False)
class KnownCameras:
    """Cameras in the order of the photos.

    Attributes:
        extrinsics: ``(V, 3, 4)`` or ``(V, 4, 4)``, world → camera, OpenCV axes.
        intrinsics: ``(V, 3, 3)``, in pixels of the photos, centers at integers.
        sizes: V times ``(height, width)`` of the photos that they are for; None where the file does not say.
    """

    extrinsics: npt.NDArray[np.float64]
    intrinsics: npt.NDArray[np.float64]
    sizes: tuple[tuple[int, int] | None, ...]

    def check_size(self, number: int, photo: ImageInfo) -> None:
        """Raise ``OptionError`` unless the camera is for a photo of this size."""
        size = self.sizes[number]
        if size is not None and size != photo.size:
            raise OptionError(
                f"the camera of {printable(photo.source)} is for {size[0]}×{size[1]} pixels, and the photo has "
                f"{photo.size[0]}×{photo.size[1]} (height × width): give the intrinsics of this size."
            )


def write_cameras(path: Path, scene: SceneResult, *, overwrite: bool = False) -> Path:
    """Write the cameras in pixels of the photos, as ``read_cameras`` takes them.

    Args:
        path: The .json file; missing folders are made.
        scene: Its names become those of the cameras.
        overwrite: Replace a file that exists.
    Raises:
        SaveError: If the file exists or cannot be written.
    """
    sizes, intrinsics = scene.photo_cameras()
    names = scene.names or [None] * len(scene)
    cameras = [
        {"name": name, "size": list(size), "intrinsics": matrix.tolist(), "extrinsics": pose.tolist()}
        for name, size, matrix, pose in zip(names, sizes, intrinsics, scene.extrinsics, strict=True)
    ]
    facts = {name: value for name, value in scene.sidecar().items() if name not in ("views", "size", "names")}
    content = {
        **facts,
        "intrinsics_are": "in pixels of the photo (size: height, width), pixel centers at integers",
        "extrinsics_are": "world to camera, translations in the unit of the points",
        "cameras": cameras,
    }
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"

    def write(stream: BinaryIO) -> None:
        stream.write(text.encode())

    atomic_write(path, write, overwrite=overwrite)
    return path


def read_cameras(path: Path, names: Sequence[str]) -> KnownCameras:
    """Read known cameras.

    Args:
        path: ``.json``: as ``write_cameras`` makes it, or its list ``cameras`` alone; ``name`` and ``size`` may be left
            out. ``.npz``: ``extrinsics`` and ``intrinsics`` as of ``KnownCameras``. A folder: a COLMAP model of
            pinhole cameras (needs pycolmap).
        names: Of the photos. Cameras with names go to the photos of these names, or file names; others in their order.
    Returns:
        One camera a photo.
    Raises:
        OptionError: If the file cannot be read, or has not one camera for each photo.
    """
    try:
        if path.is_dir():
            cameras = _of_colmap(path)
        elif path.suffix.lower() == ".npz":
            cameras = _of_npz(path)
        else:
            cameras = _of_json(json.loads(path.read_text(encoding="utf-8")))
    except OptionError as error:
        raise OptionError(f"{printable(path)}: {error}") from error
    except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
        raise OptionError(
            f"{printable(path)} holds no cameras ({printable(error)}): give the JSON that mlx-depth scene writes, an "
            "NPZ of extrinsics and intrinsics, or the folder of a COLMAP model."
        ) from error
    return _in_order(cameras, names, printable(path))


@dataclass(frozen=True)
class _Camera:
    name: str | None
    size: tuple[int, int] | None
    intrinsics: Any
    extrinsics: Any


def _of_json(content: Any) -> list[_Camera]:
    entries = content["cameras"] if isinstance(content, Mapping) else content
    if not (isinstance(entries, list) and all(isinstance(entry, Mapping) for entry in entries)):
        raise ValueError("no list of objects")
    return [
        _Camera(
            entry.get("name"),
            None if entry.get("size") is None else (int(entry["size"][0]), int(entry["size"][1])),
            entry["intrinsics"],
            entry["extrinsics"],
        )
        for entry in entries
    ]


def _of_npz(path: Path) -> list[_Camera]:
    with np.load(path, allow_pickle=False) as arrays:
        if "depth" in arrays:
            raise OptionError("its intrinsics are in pixels of the depth, not of the photos: give its cameras.json.")
        pairs = zip(arrays["intrinsics"], arrays["extrinsics"], strict=True)
        return [_Camera(None, None, intrinsics, extrinsics) for intrinsics, extrinsics in pairs]


def _of_colmap(folder: Path) -> list[_Camera]:
    try:
        import pycolmap
    except ImportError as error:
        raise OptionError("pycolmap is missing, which reads COLMAP models: pip install pycolmap.") from error
    model = pycolmap.Reconstruction(str(folder))
    found = []
    for image in model.images.values():
        camera = model.cameras[image.camera_id]
        if camera.model.name not in _PINHOLES:
            raise OptionError(f"{image.name} has a {camera.model.name} camera: undistort the photos, or give PINHOLE.")
        intrinsics = np.array(camera.calibration_matrix())
        intrinsics[:2, 2] -= _PIXEL_CENTER
        pose = image.cam_from_world() if callable(image.cam_from_world) else image.cam_from_world  # by version
        found.append(_Camera(image.name, (camera.height, camera.width), intrinsics, pose.matrix()))
    return found


def _in_order(cameras: list[_Camera], names: Sequence[str], where: str) -> KnownCameras:
    if cameras and all(camera.name is not None for camera in cameras):
        cameras = [_named(cameras, name, where) for name in names]
    elif len(cameras) != len(names):
        raise OptionError(
            f"{where} has {len(cameras)} cameras without names, and there are {len(names)} photos: give one for each."
        )
    try:
        arrays = [np.array([getattr(c, name) for c in cameras], np.float64) for name in ("extrinsics", "intrinsics")]
    except ValueError as error:
        raise OptionError(f"{where}: the matrices have different shapes ({error}): give 3×4 and 3×3.") from error
    return KnownCameras(arrays[0], arrays[1], tuple(camera.size for camera in cameras))


def _named(cameras: list[_Camera], name: str, where: str) -> _Camera:
    """The camera of a photo: by its whole name, else by its file name, where only one has it."""
    for short in (str, lambda text: PurePosixPath(text).name):
        found = [camera for camera in cameras if short(str(camera.name)) == short(name)]
        if len(found) == 1:
            return found[0]
    known = ", ".join(printable(camera.name) for camera in cameras[:3])
    twice = [text for text, count in Counter(str(camera.name) for camera in cameras).items() if count > 1]
    reason = f"names {printable(twice[0])} twice" if twice else f"has no camera named {printable(name)}"
    raise OptionError(f"{where} {reason} (its first: {known}): name the cameras like the photos.")
