"""GLB files (glTF 2.0): point clouds with their cameras, and one view as a textured mesh."""

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError, SaveError
from mlx_depth.io.atomic import atomic_write
from mlx_depth.io.encode import METADATA_KEY
from mlx_depth.io.scene.drawing import (
    FRAME,
    Camera,
    camera_colors,
    camera_lines,
    check_camera,
    check_points,
    to_gltf,
)
from mlx_depth.version import __version__

Tree: TypeAlias = dict[str, Any]
Hook: TypeAlias = Callable[[Any, Tree], None]

MAX_VERTICES = 1_000_000
MAX_TEXTURE_SIDE = 4096  # pixels: what every WebGL 2 device of today takes
_FLOAT, _CLAMP_TO_EDGE = 5126, 33071  # glTF 2.0, accessor.componentType and sampler.wrapS
_UNLIT = "KHR_materials_unlit"
_IDENTITY = np.eye(3, 4)


def write_glb(
    path: str | os.PathLike[str],
    *,
    points: npt.NDArray[np.float32],
    colors: npt.NDArray[np.uint8],
    cameras: Sequence[Camera],
    facts: Mapping[str, Any],
    overwrite: bool = False,
) -> Path:
    """Write a point cloud and its cameras.

    Args:
        path: The file; missing folders are made.
        points: ``(N, 3)``, world coordinates, OpenCV axes, finite, N >= 1.
        colors: ``(N, 3)``, RGB as in a photo (sRGB).
        cameras: Drawn as wire pyramids; may be empty.
        facts: JSON-ready; stored under ``asset.extras.mlx_depth``, beside ``frame`` and ``cameras``.
        overwrite: Replace a file that exists.
    Returns:
        The path written.
    Raises:
        OptionError: If an array has another shape or type, or holds what cannot be drawn.
        SaveError: If the file exists or cannot be written, or trimesh is missing.

    The file is in glTF's axes, the world's as (x, −y, −z), neither moved nor scaled. glTF takes vertex colors for
    linear light: they are converted, and a viewer shows those of the photo.
    """
    check_points(points, {"colors": colors})
    for camera in cameras:
        check_camera(camera)
    trimesh = _trimesh()
    scene = trimesh.Scene()
    vertex_colors = {"points": _linear(colors)}
    scene.add_geometry(trimesh.PointCloud(to_gltf(points)), geom_name="points")
    if cameras:
        lines = to_gltf(camera_lines(cameras, points)).reshape(-1, 3)
        scene.add_geometry(_path(lines), geom_name="cameras")
        vertex_colors["cameras"] = np.repeat(_linear(camera_colors(len(cameras))), len(lines) // len(cameras), axis=0)

    def add_colors(buffers: Any, tree: Tree) -> None:
        meshes = {mesh["name"]: mesh for mesh in tree["meshes"]}
        for name, values in vertex_colors.items():
            meshes[name]["primitives"][0]["attributes"]["COLOR_0"] = _add_floats(buffers, tree, values)

    return _write(path, _glb(scene, add_colors, _extras(facts, cameras)), overwrite=overwrite)


def write_mesh_glb(
    path: str | os.PathLike[str],
    *,
    depth: npt.NDArray[np.float32],
    image: npt.NDArray[np.uint8],
    intrinsics: npt.NDArray[np.floating],
    extrinsics: npt.NDArray[np.floating] | None = None,
    edge_threshold: float,
    normals: npt.NDArray[np.float32] | None = None,
    max_vertices: int = MAX_VERTICES,
    facts: Mapping[str, Any],
    overwrite: bool = False,
) -> Path:
    """Write one view as a mesh with the photo on it.

    Args:
        path: The file; missing folders are made.
        depth: As for ``mesh_glb``, like the others.
        image: At any size.
        intrinsics: In pixels of ``depth``.
        extrinsics: World → camera.
        edge_threshold: Where the mesh is cut.
        normals: In the camera's axes.
        max_vertices: At most so many.
        facts: Stored in the file.
        overwrite: Replace a file that exists.
    Returns:
        The path written.
    Raises:
        OptionError: As ``mesh_glb``.
        SaveError: If the file exists or cannot be written, or trimesh is missing.
    """
    content = mesh_glb(
        depth=depth,
        image=image,
        intrinsics=intrinsics,
        extrinsics=extrinsics,
        edge_threshold=edge_threshold,
        normals=normals,
        max_vertices=max_vertices,
        facts=facts,
    )
    return _write(path, content, overwrite=overwrite)


def mesh_glb(
    *,
    depth: npt.NDArray[np.float32],
    image: npt.NDArray[np.uint8],
    intrinsics: npt.NDArray[np.floating],
    extrinsics: npt.NDArray[np.floating] | None = None,
    edge_threshold: float,
    normals: npt.NDArray[np.float32] | None = None,
    max_vertices: int = MAX_VERTICES,
    facts: Mapping[str, Any],
) -> bytes:
    """One view as a mesh with the photo on it, as a .glb file.

    Args:
        depth: ``(H, W)``, along z, larger = farther; a pixel that is not finite or not positive is a hole.
        image: ``(H', W', 3)``, RGB; the same view at any size.
        intrinsics: ``(3, 3)``, in pixels of ``depth``, whose centers are at integers.
        extrinsics: ``(3, 4)``, world → camera, OpenCV axes. Default: the camera is the world.
        edge_threshold: Where depth jumps by more than this fraction of the nearer pixel, the mesh is cut.
        normals: ``(H, W, 3)``, in the camera's OpenCV axes, unit length. Default: none are written.
        max_vertices: Larger maps keep every second, third, … row and column.
        facts: JSON-ready; stored under ``asset.extras.mlx_depth``, beside ``frame`` and ``cameras``.
    Returns:
        What the file holds.
    Raises:
        OptionError: If an array has another shape, a number is out of range, or no triangle is left.
        SaveError: If trimesh is missing.

    The frame is that of ``write_glb``. The material is double-sided and unlit: it looks like the photo, and normals
    serve programs that light it anew. Jumps are judged between neighboring pixels, also where pixels are left out.
    """
    _check_mesh(depth, image, normals, edge_threshold=edge_threshold, max_vertices=max_vertices)
    camera = (intrinsics, _IDENTITY if extrinsics is None else extrinsics, (depth.shape[0], depth.shape[1]))
    check_camera(camera)
    trimesh = _trimesh()
    grid, faces = _triangles(depth, edge_threshold, _stride(depth.shape, max_vertices))
    if len(faces) == 0:
        raise OptionError("no triangle is left: the depth is nowhere valid and smooth; raise edge_threshold.")
    used, faces = np.unique(faces, return_inverse=True)
    rows, columns = np.unravel_index(grid.reshape(-1)[used], depth.shape)
    if normals is not None and not np.isfinite(normals[rows, columns]).all():
        raise OptionError("normals are not finite where the depth is valid: give finite ones, or none.")
    mesh = trimesh.Trimesh(
        vertices=to_gltf(_unproject(depth, camera, rows, columns)),
        faces=faces.reshape(-1, 3),
        vertex_normals=None if normals is None else to_gltf(normals[rows, columns] @ camera[1][:, :3]),
        visual=trimesh.visual.TextureVisuals(
            uv=_uv(rows, columns, depth.shape),
            material=trimesh.visual.material.PBRMaterial(),  # empty; the default one brings a picture along
        ),
        process=False,
    )

    def add_material(buffers: Any, tree: Tree) -> None:
        tree["images"] = [{"bufferView": _add_bytes(buffers, "photo", _jpeg(image)), "mimeType": "image/jpeg"}]
        tree["samplers"] = [{"wrapS": _CLAMP_TO_EDGE, "wrapT": _CLAMP_TO_EDGE}]
        tree["textures"] = [{"source": 0, "sampler": 0}]
        look = {"baseColorTexture": {"index": 0}, "metallicFactor": 0.0, "roughnessFactor": 1.0}
        tree["materials"] = [{"name": "photo", "pbrMetallicRoughness": look, "doubleSided": True}]

    scene = trimesh.Scene()
    scene.add_geometry(mesh, geom_name="view")
    return _glb(scene, add_material, _extras(facts, [camera]), include_normals=normals is not None)


def _trimesh() -> ModuleType:
    try:
        import trimesh
    except ImportError as error:
        raise SaveError("trimesh is missing, which .glb files need: pip install 'mlx-depth[scene]'.") from error
    return trimesh


def _glb(scene: Any, add: Hook, extras: Mapping[str, Any], *, include_normals: bool = False) -> bytes:
    """``add`` puts in what trimesh would write otherwise: colors as 8 bits, the photo at a JPEG quality of 75."""
    from trimesh.exchange.gltf import export_glb

    def finish(tree: Tree) -> None:
        tree["asset"] |= {"generator": f"mlx-depth {__version__}, trimesh", "extras": extras}
        for material in tree["materials"]:
            material["extensions"] = {_UNLIT: {}}
        tree["extensionsUsed"] = [_UNLIT]

    content: bytes = export_glb(
        scene, include_normals=include_normals, buffer_postprocessor=add, tree_postprocessor=finish
    )
    return content


def _write(path: str | os.PathLike[str], content: bytes, *, overwrite: bool) -> Path:
    path = Path(path)

    def write(stream: BinaryIO) -> None:
        stream.write(content)

    atomic_write(path, write, overwrite=overwrite)
    return path


def _extras(facts: Mapping[str, Any], cameras: Sequence[Camera]) -> dict[str, Any]:
    described = [
        {"intrinsics": intrinsics.tolist(), "extrinsics": extrinsics.tolist(), "size": list(size)}
        for intrinsics, extrinsics, size in cameras
    ]
    extras = {METADATA_KEY: dict(facts), "frame": FRAME, "cameras": described}
    json.dumps(extras, allow_nan=False)  # trimesh would write NaN, which no other reader takes
    return extras


def _path(lines: npt.NDArray[np.float64]) -> Any:
    """``(2 L, 3)``, the two ends of each line."""
    from trimesh.path import Path3D
    from trimesh.path.entities import Line

    pairs = np.arange(len(lines)).reshape(-1, 2)
    return Path3D(entities=[Line(pair) for pair in pairs], vertices=lines, process=False)


def _add_bytes(buffers: Any, name: str, data: bytes) -> int:
    """Index of the buffer view that the bytes get; glTF wants multiples of four."""
    buffers[name] = data + b"\0" * (-len(data) % 4)
    return len(buffers) - 1


def _add_floats(buffers: Any, tree: Tree, values: npt.NDArray[np.float32]) -> int:
    """Index of the accessor that ``(N, 3)`` values get."""
    name = f"values {len(buffers)}"
    view = _add_bytes(buffers, name, values.astype("<f4").tobytes())
    tree["accessors"][name] = {"bufferView": view, "componentType": _FLOAT, "count": len(values), "type": "VEC3"}
    return len(tree["accessors"]) - 1


def _linear(colors: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """From sRGB to linear light, 0..1: IEC 61966-2-1."""
    entries = np.arange(256) / 255
    table = np.where(entries <= 0.04045, entries / 12.92, ((entries + 0.055) / 1.055) ** 2.4)
    return table.astype(np.float32)[colors]


def _jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((MAX_TEXTURE_SIDE, MAX_TEXTURE_SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


def _stride(shape: tuple[int, ...], max_vertices: int) -> int:
    """The smallest step in rows and columns that leaves at most ``max_vertices`` pixels."""
    height, width = shape
    stride = max(1, int(np.sqrt(height * width / max_vertices)))
    while -(-height // stride) * -(-width // stride) > max_vertices:
        stride += 1
    return stride


def _triangles(
    depth: npt.NDArray[np.float32], edge_threshold: float, stride: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Two triangles for each square of four pixels, less those with a side that crosses an edge or a hole.

    Args:
        depth: ``(H, W)``.
        edge_threshold: As in ``write_mesh_glb``.
        stride: Every how many pixels a vertex stands.
    Returns:
        ``(gh, gw)``: the pixel of each vertex, as an index into the flat depth; and ``(T, 3)``: the corners of each
        triangle as indices into the flat grid, counter-clockwise as the camera sees them.

    A square is split along the diagonal with the smaller jump, so that the corner beyond an edge is cut off alone.
    """
    height, width = depth.shape
    grid = np.arange(height * width).reshape(height, width)[::stride, ::stride]
    number = np.arange(grid.size).reshape(grid.shape)
    along, down = _jumps(depth, grid, (0, 1), stride), _jumps(depth, grid, (1, 0), stride)
    falling, rising = _jumps(depth, grid, (1, 1), stride), _jumps(depth, grid, (1, -1), stride)
    top, bottom, left, right = along[:-1], along[1:], down[:, :-1], down[:, 1:]
    a, b, c, d = number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]
    is_falling = falling < rising
    kinds = [
        ((a, c, b), ~is_falling, (left, rising, top)),
        ((b, c, d), ~is_falling, (rising, bottom, right)),
        ((a, c, d), is_falling, (left, bottom, falling)),
        ((a, d, b), is_falling, (falling, right, top)),
    ]
    faces = [
        np.stack(corners, axis=-1)[chosen & (np.maximum.reduce(sides) <= edge_threshold)]
        for corners, chosen, sides in kinds
    ]
    return grid, np.concatenate(faces)


def _jumps(
    depth: npt.NDArray[np.float32], grid: npt.NDArray[np.int64], step: tuple[int, int], stride: int
) -> npt.NDArray[np.float64]:
    """The largest relative jump from pixel to pixel between vertices that are neighbors in one direction.

    Args:
        depth: ``(H, W)``.
        grid: ``(gh, gw)``, the pixel of each vertex.
        step: ``(rows, columns)`` to the next pixel.
        stride: Pixels from a vertex to the next.
    Returns:
        ``(gh - rows, gw - |columns|)``; infinite where a pixel on the way has no depth.
    """
    rows, columns = step
    starts = grid[: grid.shape[0] - rows, max(0, -columns) : grid.shape[1] - max(0, columns)]
    flat = np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float64).reshape(-1)
    largest = np.zeros(starts.shape)
    for number in range(stride):
        one, other = (flat[starts + k * (rows * depth.shape[1] + columns)] for k in (number, number + 1))
        near, far = np.minimum(one, other), np.maximum(one, other)
        jump = np.divide(far - near, near, out=np.full(starts.shape, np.inf), where=near > 0)
        np.maximum(largest, jump, out=largest)
    return largest


def _unproject(
    depth: npt.NDArray[np.float32], camera: Camera, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """World coordinates ``(N, 3)`` of N pixels."""
    intrinsics, extrinsics, _ = camera
    pixels = np.stack([columns, rows, np.ones_like(rows)], axis=-1)
    rays = pixels @ np.linalg.inv(intrinsics.astype(np.float64)).T
    seen = rays * depth[rows, columns, None]
    return (seen - extrinsics[:, 3]) @ extrinsics[:, :3].astype(np.float64)


def _uv(rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Where pixel centers lie in the photo, ``(N, 2)``; trimesh's v runs up, and it turns it for glTF."""
    height, width = shape
    return np.stack([(columns + 0.5) / width, 1 - (rows + 0.5) / height], axis=-1)


def _check_mesh(
    depth: npt.NDArray[Any],
    image: npt.NDArray[Any],
    normals: npt.NDArray[Any] | None,
    *,
    edge_threshold: float,
    max_vertices: int,
) -> None:
    if depth.ndim != 2 or min(depth.shape) < 2:
        raise OptionError(f"depth has shape {depth.shape}: a mesh needs (H, W) of at least (2, 2).")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise OptionError(f"image is {image.dtype} of shape {image.shape}: give uint8 of shape (H, W, 3).")
    if normals is not None and normals.shape != (*depth.shape, 3):
        raise OptionError(f"normals have shape {normals.shape}: give {(*depth.shape, 3)}, one for each depth.")
    if not (np.isfinite(edge_threshold) and edge_threshold > 0):
        raise OptionError(f"edge_threshold {edge_threshold} is not a finite number above 0: give one, such as 0.04.")
    if max_vertices < 4:
        raise OptionError(f"max_vertices {max_vertices} is less than a square has: give 4 or more.")
