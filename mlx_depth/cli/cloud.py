"""The verb cloud: one photo to points or a surface, by any model."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_depth.cli.model_options import add_model_options
from mlx_depth.cli.point_options import add_point_options, filter_of
from mlx_depth.cli.terminal import compute_on, license_of, numbers, say
from mlx_depth.errors import OptionError, SaveError, printable
from mlx_depth.io.formats import format_of
from mlx_depth.io.image import LoadedImage, load_image
from mlx_depth.kinds import DepthKind
from mlx_depth.predictor import DEFAULT_MODEL, load
from mlx_depth.result import DepthResult
from mlx_depth.scene import SCENE_FORMATS
from mlx_depth.single_view import FAR, FOV, NEAR, CameraFrom, centered, focal_of_fov, intrinsics_of, to_scene

_FORMATS = {name: SCENE_FORMATS[name] for name in ("ply", "glb", "html", "npz")}


def add_verbs(verbs: Any) -> None:
    """Declare the verb on what ``ArgumentParser.add_subparsers`` returned."""
    cloud = verbs.add_parser("cloud", help="make points or a surface of one photo, by any model")
    add = cloud.add_argument
    add("image", metavar="IMAGE", help="path or URL")
    add(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="x.ply: points; x.glb: a surface with the photo on it; x.html: a page to look at; x.npz: the numbers",
    )
    add("--points", action="store_true", help="points in a .glb, too, instead of a surface")
    add_model_options(cloud, default=DEFAULT_MODEL, side="side")
    camera = cloud.add_argument_group(
        "camera", f"default: the model's, where it estimates one, else EXIF's, else a field of view of {FOV:g} degrees"
    ).add_mutually_exclusive_group()
    camera.add_argument(
        "--intrinsics",
        type=numbers(4, "fx,fy,cx,cy"),
        metavar="fx,fy,cx,cy",
        help="in pixels of the photo, the center of the first pixel at 0,0",
    )
    camera.add_argument("--focal-length", type=float, metavar="PX", help="in pixels of the photo")
    camera.add_argument("--fov", type=float, metavar="DEGREES", help="horizontal field of view")
    scale = cloud.add_argument_group("scale")
    scale.add_argument(
        "--near",
        type=float,
        metavar="D",
        help=f"models without scale and shift (V1, V2): depth of the nearest point, without a unit (default: {NEAR:g})",
    )
    scale.add_argument("--far", type=float, metavar="D", help=f"and of the farthest one (default: {FAR:g})")
    scale.add_argument(
        "--known",
        type=numbers(3, "x,y,metres"),
        action="append",
        default=[],
        metavar="x,y,metres",
        help="column, row and distance of a point that you know; twice or more: everything is in metres",
    )
    add("--overwrite", action="store_true", help="replace a file that exists")
    voice = cloud.add_mutually_exclusive_group()
    voice.add_argument("--quiet", action="store_true", help="say nothing but errors")
    voice.add_argument("--json", action="store_true", help="one JSON object on stdout")
    add_point_options(cloud, confidence_percentile=None)
    cloud.set_defaults(run=_run_cloud)


def _run_cloud(options: argparse.Namespace) -> int:
    compute_on(options.device)
    out = options.out.expanduser()
    format = _format(out, options)
    filter = None if format == "npz" else filter_of(options)
    image = load_image(options.image)
    intrinsics = _given(options, image)
    model = load(
        options.model,
        dtype=options.dtype,
        revision=options.revision,
        progress=sys.stderr.isatty() and not options.quiet,
    )
    focal_length = None if intrinsics is None else float(intrinsics[0, 0] + intrinsics[1, 1]) / 2
    result = model.predict(image, input_size=options.input_size, focal_length_px=focal_length)
    origin: CameraFrom = "given" if intrinsics is not None else intrinsics_of(result)[1]
    notes = _notes(result, options, origin)
    if options.known:
        result = result.fit_metric(options.known)
    scene = to_scene(result, intrinsics=intrinsics, near=options.near, far=options.far)
    scene.save(out, format=format, filter=filter, overwrite=options.overwrite)
    if options.json:
        camera = {"intrinsics": scene.intrinsics[0].tolist(), "camera_from": origin}
        print(json.dumps({**scene.sidecar(), **camera, "files": {format: str(out)}}))
    elif not options.quiet:
        say(f"{scene.kind.description}, {license_of(model.spec)}")
        for note in notes:
            say(note)
        print(printable(out))
    return 0


def _format(out: Path, options: argparse.Namespace) -> str:
    """What goes into the file, which is asked before any work."""
    format = format_of(out, None, _FORMATS)
    if out.exists() and not options.overwrite:
        raise SaveError(f"{printable(out)} exists: --overwrite replaces it.")
    if options.points and format != "glb":
        raise OptionError(f"--points is for .glb, and {printable(out.name)} holds points anyway: leave it out.")
    if len(options.known) == 1:
        raise OptionError("one known point tells no scale and shift: give --known twice or more.")
    if options.known and (options.near, options.far) != (None, None):
        raise OptionError("known points tell the distances: leave --near and --far, or --known.")
    return "mesh" if format == "glb" and not options.points else format


def _given(options: argparse.Namespace, image: LoadedImage) -> npt.NDArray[np.float64] | None:
    """The camera that the options name."""
    size = image.info.size
    focal = options.focal_length if options.fov is None else focal_of_fov(options.fov, size)
    if options.intrinsics is not None:
        fx, fy, cx, cy = options.intrinsics
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    if focal is None:
        return None
    return centered(focal, size)


def _notes(result: DepthResult, options: argparse.Namespace, origin: CameraFrom) -> list[str]:
    """What the user should know of the camera and the scale."""
    notes = []
    if origin == "assumed":
        notes.append(
            f"the photo does not tell its focal length, a horizontal field of view of {FOV:g} degrees is assumed: "
            "--fov, --focal-length or --intrinsics say better"
        )
    if options.known or result.kind is DepthKind.METRIC:
        return notes
    metres = "--known x,y,metres, twice or more, gives metres"
    if result.kind is DepthKind.RELATIVE:
        return [*notes, f"the points have no unit, their scale is unknown: {metres}"]
    near, far = NEAR if options.near is None else options.near, FAR if options.far is None else options.far
    return [
        *notes,
        f"scale and shift of this model's depth are unknown, so the nearest point is put at {near:g} and the farthest "
        f"at {far:g}, without a unit, and shapes are only roughly right: {metres}",
    ]
