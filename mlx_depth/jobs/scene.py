"""Photos of one scene to the files of a scene: what is to be written, predicting it, and writing it."""

import dataclasses
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlx_depth.errors import ImageError, OptionError, SaveError, printable
from mlx_depth.geometry.point_filter import PointFilter
from mlx_depth.io.atomic import atomic_write
from mlx_depth.io.find import Failed, Found, LeftOut, absolute, find
from mlx_depth.io.image import LoadedImage, load_image
from mlx_depth.io.sources import is_url
from mlx_depth.jobs.cameras import KnownCameras, read_cameras, write_cameras
from mlx_depth.jobs.naming import output_place
from mlx_depth.model import DepthModel
from mlx_depth.multiview import PoseFrom
from mlx_depth.processor import InputSize
from mlx_depth.scene import SceneResult
from mlx_depth.sequence import merge_scenes

SCENE_FILES = {
    "ply": "scene.ply",
    "glb": "scene.glb",
    "html": "scene.html",
    "npz": "scene.npz",
    "colmap": "colmap",
    "gs": "gaussians.ply",
    "json": "scene.json",
}
"""Format → file or folder in the output folder."""

CAMERAS = "cameras.json"  # always written

Progress = Callable[[str, int, int], None]
"""Called with what is done (``"decode"``, ``"network"``, ``"write"``), how many are done, and of how many."""


@dataclass(frozen=True)
class ScenePlan:
    """What there is to do.

    Attributes:
        photos: Paths or URLs, in the order of the views.
        folder: The innermost folder that holds all photos; None where some are URLs.
        names: Of the photos, seen from that folder; else as given.
        left_out: What lies beside the photos; ``io.find.left_out_line`` makes one line of it.
        files: Format → file, ``cameras`` the last.
    """

    photos: list[str]
    folder: Path | None
    names: list[str]
    left_out: list[LeftOut]
    files: dict[str, Path]


@dataclass(frozen=True)
class SceneSettings:
    """How a scene is predicted; see ``DepthModel.predict_views`` and ``predict_sequence``."""

    pose_from: PoseFrom = "camera"
    reference_view: str = "saddle_balanced"
    input_size: InputSize | None = None
    gaussians: bool = False
    window: int | None = None  # None: all photos at once
    overlap: int = 8
    cameras: KnownCameras | None = None

    def __post_init__(self) -> None:
        if self.window is None:
            return
        if self.gaussians:
            raise OptionError("Gaussians are of photos that are seen together: leave --window out, or the format gs.")
        if self.cameras is not None:
            raise OptionError("windows are joined by what they see, not by known cameras: leave --window or --cameras.")


def plan_scene(
    paths: Sequence[str], out: str | Path, formats: Sequence[str], *, recursive: bool = False, overwrite: bool = False
) -> ScenePlan:
    """Find the photos and name the files, before any work.

    Args:
        paths: As for ``io.find.find``, like ``recursive``.
        out: The output folder.
        formats: Of ``SCENE_FILES``.
        overwrite: Files may exist.
    Raises:
        ImageError: If a path leads to no photo.
        OptionError: If a format does not exist, or the output folder is an input folder.
        SaveError: If a file exists, or a format needs an extra that is not installed.
    """
    place = output_place(out)
    files = _files(place, formats, overwrite)
    items = list(find(paths, recursive=recursive, skip=place))
    failed = next((item for item in items if isinstance(item, Failed)), None)
    if failed is not None:
        raise failed.error
    photos = [item.source for item in items if isinstance(item, Found)]
    if not photos:
        raise ImageError("there are no photos: check the paths.")
    folder = _common_folder(photos)
    names = photos if folder is None else [Path(absolute(photo)).relative_to(folder).as_posix() for photo in photos]
    return ScenePlan(photos, folder, names, [item for item in items if isinstance(item, LeftOut)], files)


def known_cameras(path: Path, plan: ScenePlan) -> KnownCameras:
    """Read the cameras of the photos: ``jobs.cameras.read_cameras``."""
    return read_cameras(path.expanduser(), plan.names)


def predict_scene(model: DepthModel, plan: ScenePlan, settings: SceneSettings, progress: Progress) -> SceneResult:
    """Predict the photos of a plan.

    Returns:
        The scene, without photo-sized results, its views named as the plan has them.
    Raises:
        ImageError: If a photo cannot be read.
        OptionError: If an option cannot work.
    """
    total = len(plan.photos)
    if settings.window is None:
        scenes = iter([_together(model, plan, settings, progress)])
    else:
        progress("network", 0, total)
        scenes = model.predict_sequence(
            plan.photos,
            window=settings.window,
            overlap=settings.overlap,
            pose_from=settings.pose_from,
            reference_view=settings.reference_view,
            input_size=settings.input_size,
        )
    parts = []
    for scene in scenes:
        sizes, intrinsics = scene.photo_cameras()
        parts.append(dataclasses.replace(scene, views=(), photo_sizes=tuple(sizes), photo_intrinsics=intrinsics))
        progress("network", sum(map(len, parts)), total)
        del scene
    whole = parts[0] if len(parts) == 1 else merge_scenes(parts)
    return dataclasses.replace(whole, names=tuple(plan.names))


def write_scene(
    scene: SceneResult,
    files: Mapping[str, Path],
    progress: Progress,
    *,
    filter: PointFilter | None = None,
    overwrite: bool = False,
) -> None:
    """Write the files of a plan, each whole or not at all.

    Args:
        scene: From ``predict_scene``.
        files: Of the plan.
        progress: Told of each file.
        filter: Which pixels become points.
        overwrite: Replace files that exist.
    Raises:
        OptionError: If the scene does not hold what a format needs.
        SaveError: If no point is left, or a file cannot be written.
    """
    for number, (name, file) in enumerate(files.items()):
        progress("write", number, len(files))
        if name == "cameras":
            write_cameras(file, scene, overwrite=overwrite)
        elif name == "colmap":
            scene.save_colmap(file, filter=filter, overwrite=overwrite)
        elif name == "gs":
            scene.save_gaussians(file, overwrite=overwrite)
        elif name == "json":
            _write_json(file, scene, overwrite)
        else:
            scene.save(file, format=name, filter=None if name == "npz" else filter, overwrite=overwrite)
    progress("write", len(files), len(files))


def _files(out: Path, formats: Sequence[str], overwrite: bool) -> dict[str, Path]:
    unknown = [name for name in formats if name not in SCENE_FILES]
    if unknown:
        raise OptionError(f"no format {', '.join(map(repr, unknown))}: choose from {', '.join(SCENE_FILES)}.")
    if "glb" in formats and importlib.util.find_spec("trimesh") is None:
        raise SaveError("trimesh is missing, which .glb files need: pip install 'mlx-depth[scene]'.")
    files = {name: out / SCENE_FILES[name] for name in dict.fromkeys(formats)} | {"cameras": out / CAMERAS}
    if out.exists() and not out.is_dir():
        raise SaveError(f"{printable(out)} is a file: choose a folder with -o.")
    for file in files.values():
        if not overwrite and os.path.lexists(file) and not (file.is_dir() and not any(file.iterdir())):
            raise SaveError(f"{printable(file)} exists: --overwrite replaces it, or choose another folder with -o.")
    return files


def _common_folder(photos: Sequence[str]) -> Path | None:
    if any(is_url(photo) for photo in photos):
        return None
    return Path(os.path.commonpath([Path(absolute(photo)).parent for photo in photos]))


def _together(model: DepthModel, plan: ScenePlan, settings: SceneSettings, progress: Progress) -> SceneResult:
    cameras, total = settings.cameras, len(plan.photos)

    def decoded() -> Iterator[LoadedImage]:
        for number, photo in enumerate(plan.photos):
            progress("decode", number, total)
            image = load_image(photo)
            if cameras is not None:
                cameras.check_size(number, image.info)
            yield image
        progress("decode", total, total)
        progress("network", 0, total)

    return model.predict_views(
        decoded(),
        extrinsics=None if cameras is None else cameras.extrinsics,
        intrinsics=None if cameras is None else cameras.intrinsics,
        pose_from=settings.pose_from,
        reference_view=settings.reference_view,
        input_size=settings.input_size,
        gaussians=settings.gaussians,
    )


def _write_json(file: Path, scene: SceneResult, overwrite: bool) -> None:
    text = json.dumps(scene.sidecar(), indent=2, allow_nan=False) + "\n"

    def write(stream: BinaryIO) -> None:
        stream.write(text.encode())

    atomic_write(file, write, overwrite=overwrite)
