"""Scenes as COLMAP models: cameras, images and points3D, binary or text."""

import dataclasses
import itertools
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError, SaveError, printable
from mlx_depth.io.atomic import atomic_write

_PINHOLE = 1  # COLMAP's number of the model with fx, fy, cx, cy
_PIXEL_CENTER = 0.5  # where COLMAP has the center of the first pixel; ours is at 0
_FILES = ("cameras", "images", "points3D", "rigs", "frames")  # of any COLMAP; we write the first three

_CAMERA = np.dtype([("id", "<u4"), ("model", "<i4"), ("width", "<u8"), ("height", "<u8"), ("fx_fy_cx_cy", "<f8", 4)])
_OBSERVATION = np.dtype([("xy", "<f8", 2), ("point", "<u8")])
_POINT = np.dtype(
    [
        ("id", "<u8"),
        ("xyz", "<f8", 3),
        ("rgb", "u1", 3),
        ("error", "<f8"),
        ("observations", "<u8"),
        ("image", "<u4"),
        ("index", "<u4"),
    ]
)


@dataclasses.dataclass(frozen=True, eq=False)
class _Model:
    """What the files hold; a pose is w, x, y, z and the translation, ``seen`` the observations of each view."""

    cameras: npt.NDArray[np.void]
    names: Sequence[str]
    poses: Sequence[tuple[float, ...]]
    seen: Sequence[npt.NDArray[np.void]]
    points: npt.NDArray[np.void]

    def images(self) -> Iterator[tuple[int, tuple[float, ...], str, npt.NDArray[np.void]]]:
        return zip(itertools.count(1), self.poses, self.names, self.seen)


def write_colmap(
    folder: Path,
    *,
    intrinsics: npt.NDArray[np.floating],
    extrinsics: npt.NDArray[np.floating],
    sizes: Sequence[tuple[int, int]],
    names: Sequence[str],
    points: npt.NDArray[np.float32],
    colors: npt.NDArray[np.uint8],
    views: npt.NDArray[np.int64],
    pixels: npt.NDArray[np.floating],
    binary: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write a COLMAP model in which each view has its own pinhole camera, and each point is seen by one view.

    Args:
        folder: Where the three files go; made if missing.
        intrinsics: ``(V, 3, 3)``, in pixels of ``sizes``, pixel centers at integers.
        extrinsics: ``(V, 3, 4)``, world → camera.
        sizes: V times ``(height, width)``.
        names: V file names, as COLMAP finds the photos in its image folder.
        points: ``(N, 3)``, world coordinates.
        colors: ``(N, 3)``, RGB.
        views: ``(N,)``, the view that sees each point, rising.
        pixels: ``(N, 2)``, column and row where it sees it, pixel centers at integers.
        binary: ``.bin`` files, else ``.txt``.
        overwrite: Replace the model in the folder, whichever form it has.
    Returns:
        The folder.
    Raises:
        OptionError: If a camera has skew, or a name cannot stand in such a file.
        SaveError: If the folder holds a model, or cannot be written.

    COLMAP has pixel centers at 0.5: half a pixel is added to principal points and observations. Files of rigs and
    frames, which COLMAP 3.12 and later write too, are not needed: it makes them from these.
    """
    _check_names(names, binary)
    _check_skew(intrinsics)
    starts = np.searchsorted(views, np.arange(len(names) + 1))
    records = _points(points, colors, views, starts)
    observations = np.empty(len(points), _OBSERVATION)
    observations["xy"], observations["point"] = pixels + _PIXEL_CENTER, records["id"]
    model = _Model(
        cameras=_cameras(intrinsics, sizes),
        names=names,
        poses=[(*_quaternion(pose[:, :3]), *pose[:, 3].tolist()) for pose in extrinsics.astype(np.float64)],
        seen=[observations[start:end] for start, end in itertools.pairwise(starts)],
        points=records,
    )
    contents = _binary(model) if binary else _text(model)
    _make_room(folder, set(contents), overwrite)
    for name, content in contents.items():
        atomic_write(folder / name, content, overwrite=overwrite)
    return folder


def _check_names(names: Sequence[str], binary: bool) -> None:
    for name in names:
        if not name or any(character in name for character in "\0\n\r"):
            raise OptionError(f"{printable(name)!r} cannot name a photo in COLMAP: give names of one line.")
        if not binary and name.split() != [name]:
            raise OptionError(f"COLMAP's text files end a name at a space: use binary=True for {printable(name)!r}.")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise OptionError(f"{count} photos are named {printable(name)!r}, COLMAP needs a name for each: change names.")


def _check_skew(intrinsics: npt.NDArray[np.floating]) -> None:
    for view, matrix in enumerate(intrinsics):
        if abs(matrix[0, 1]) > 1e-6 * matrix[0, 0]:
            raise OptionError(f"the camera of view {view} has skew, for which COLMAP has no model: save an npz.")


def _make_room(folder: Path, written: set[str], overwrite: bool) -> None:
    """Nothing of another model stays beside ours: COLMAP would read them as one."""
    present = [folder / f"{name}.{form}" for name in _FILES for form in ("bin", "txt")]
    present = [path for path in present if path.exists() or path.is_symlink()]
    if present and not overwrite:
        raise SaveError(f"{folder} holds a COLMAP model ({present[0].name}): pass overwrite=True, or another folder.")
    try:
        for path in present:
            if path.name not in written:
                path.unlink()
    except OSError as error:
        raise SaveError(f"cannot empty {folder}: {error.strerror}. Choose another folder.") from error


def _cameras(intrinsics: npt.NDArray[np.floating], sizes: Sequence[tuple[int, int]]) -> npt.NDArray[np.void]:
    cameras = np.empty(len(sizes), _CAMERA)
    cameras["id"], cameras["model"] = np.arange(1, len(sizes) + 1), _PINHOLE
    cameras["height"], cameras["width"] = np.array(sizes).T
    cameras["fx_fy_cx_cy"][:, :2] = intrinsics[:, [0, 1], [0, 1]]
    cameras["fx_fy_cx_cy"][:, 2:] = intrinsics[:, :2, 2].astype(np.float64) + _PIXEL_CENTER
    return cameras


def _points(
    points: npt.NDArray[np.float32],
    colors: npt.NDArray[np.uint8],
    views: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
) -> npt.NDArray[np.void]:
    numbers = np.arange(len(points))
    records = np.empty(len(points), _POINT)
    records["id"], records["xyz"], records["rgb"] = numbers + 1, points, colors
    records["error"] = 0  # the point is made from this very pixel
    records["observations"], records["image"], records["index"] = 1, views + 1, numbers - starts[views]
    return records


def _quaternion(rotation: npt.NDArray[np.float64]) -> tuple[float, float, float, float]:
    """w, x, y, z with w >= 0 of the rotation nearest to the matrix (Bar-Itzhack, 2000)."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation.tolist()
    symmetric = [
        [xx - yy - zz, xy + yx, xz + zx, zy - yz],
        [xy + yx, yy - xx - zz, yz + zy, xz - zx],
        [xz + zx, yz + zy, zz - xx - yy, yx - xy],
        [zy - yz, xz - zx, yx - xy, xx + yy + zz],
    ]
    x, y, z, w = np.linalg.eigh(symmetric)[1][:, -1].tolist()
    return (w, x, y, z) if w >= 0 else (-w, -x, -y, -z)


def _binary(model: _Model) -> dict[str, Callable[[BinaryIO], None]]:
    def images(stream: BinaryIO) -> None:
        stream.write(struct.pack("<Q", len(model.names)))
        for number, pose, name, observations in model.images():
            stream.write(struct.pack("<I7dI", number, *pose, number) + _encoded(name) + b"\0")
            _write_table(observations, stream)

    return {
        "cameras.bin": partial(_write_table, model.cameras),
        "images.bin": images,
        "points3D.bin": partial(_write_table, model.points),
    }


def _write_table(records: npt.NDArray[np.void], stream: BinaryIO) -> None:
    stream.write(struct.pack("<Q", len(records)) + records.tobytes())


def _text(model: _Model) -> dict[str, Callable[[BinaryIO], None]]:
    return {
        "cameras.txt": partial(_write_lines, _camera_lines(model)),
        "images.txt": partial(_write_lines, _image_lines(model)),
        "points3D.txt": partial(_write_lines, _point_lines(model)),
    }


def _camera_lines(model: _Model) -> Iterator[str]:
    yield "# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"
    columns = (model.cameras[name].tolist() for name in ("id", "width", "height", "fx_fy_cx_cy"))
    for number, width, height, parameters in zip(*columns, strict=True):
        yield f"{number} PINHOLE {width} {height} {_numbers(parameters)}"


def _image_lines(model: _Model) -> Iterator[str]:
    yield "# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME; then a line of POINTS2D[] as (X, Y, POINT3D_ID)"
    for number, pose, name, observations in model.images():
        yield f"{number} {_numbers(pose)} {number} {name}"
        columns = (observations["xy"].tolist(), observations["point"].tolist())
        yield " ".join(f"{_numbers(xy)} {point}" for xy, point in zip(*columns, strict=True))


def _point_lines(model: _Model) -> Iterator[str]:
    yield "# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)"
    columns = (model.points[name].tolist() for name in ("id", "xyz", "rgb", "error", "image", "index"))
    for number, xyz, rgb, error, image, index in zip(*columns, strict=True):
        yield f"{number} {_numbers(xyz)} {_numbers(rgb)} {error} {image} {index}"


def _write_lines(lines: Iterator[str], stream: BinaryIO) -> None:
    for line in lines:
        stream.write(_encoded(line) + b"\n")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # names that are not UTF-8 stay the bytes they are


def _numbers(values: Sequence[float]) -> str:
    """With as many digits as lead back to the same number."""
    return " ".join(map(repr, values))
