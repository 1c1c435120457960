"""The verb scene: photos of one scene to points, cameras and pages."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm

from mlx_depth.backbones.any_view import ReferenceView
from mlx_depth.cli.model_options import add_model_options
from mlx_depth.cli.point_options import add_point_options, filter_of
from mlx_depth.cli.terminal import compute_on, license_of, say
from mlx_depth.errors import printable
from mlx_depth.geometry.point_filter import PointFilter
from mlx_depth.io.find import left_out_line
from mlx_depth.jobs.scene import (
    SCENE_FILES,
    Progress,
    SceneSettings,
    known_cameras,
    plan_scene,
    predict_scene,
    write_scene,
)
from mlx_depth.kinds import DepthKind
from mlx_depth.multiview import PoseFrom
from mlx_depth.predictor import load
from mlx_depth.scene import SceneResult

DEFAULT_SCENE_MODEL = "depth-anything-3-small"
DEFAULT_FORMATS = "ply"
METRIC_MODEL = "depth-anything-3-nested-giant-large"


def add_verbs(verbs: Any) -> None:
    """Declare the verb on what ``ArgumentParser.add_subparsers`` returned."""
    scene = verbs.add_parser("scene", help="make points and cameras of photos of one scene")
    add = scene.add_argument
    add(
        "paths",
        nargs="+",
        metavar="PATH",
        help="photos of one scene: images, folder, pattern, URLs, a .txt list of these, or - for a list on stdin",
    )
    add("-o", "--out", type=Path, default=Path("scene"), metavar="OUT", help="output folder (default: scene)")
    add(
        "--format",
        default=DEFAULT_FORMATS,
        metavar="LIST",
        help=f"comma-separated, of {', '.join(SCENE_FILES)} (default: {DEFAULT_FORMATS}); "
        "gs: 3D Gaussians, of the giant models; cameras.json is always written",
    )
    add("--viewer", action="store_true", help="also a page, scene.html, that any browser shows offline")
    add_model_options(scene, default=DEFAULT_SCENE_MODEL, side="long side", also=f"; metres: {METRIC_MODEL}")
    add(
        "--pose-from",
        choices=get_args(PoseFrom),
        default="camera",
        help="estimate cameras from the network's camera tokens, or from its rays, slower (default: camera)",
    )
    add(
        "--reference-view",
        choices=get_args(ReferenceView),
        default="saddle_balanced",
        help="the view to which the others are seen (default: saddle_balanced)",
    )
    add(
        "--cameras",
        type=Path,
        metavar="FILE",
        help="known cameras: a cameras.json, an .npz of extrinsics and intrinsics, or a COLMAP folder",
    )
    add("--window", type=int, metavar="N", help="for many photos, in order: N at a time, joined (default: all at once)")
    add("--overlap", type=int, default=8, metavar="N", help="photos that two windows share (default: 8)")
    add("--recursive", action="store_true", help="look into folders within folders")
    add("--overwrite", action="store_true", help="replace files that exist")
    voice = scene.add_mutually_exclusive_group()
    voice.add_argument("--quiet", action="store_true", help="say nothing but errors")
    voice.add_argument("--json", action="store_true", help="one JSON object on stdout")
    add_point_options(scene, confidence_percentile=PointFilter.confidence_percentile)
    scene.set_defaults(run=_run_scene)


def _run_scene(options: argparse.Namespace) -> int:
    compute_on(options.device)
    formats = [name.strip() for name in options.format.split(",")] + ["html"] * options.viewer
    filter = filter_of(options)
    plan = plan_scene(options.paths, options.out, formats, recursive=options.recursive, overwrite=options.overwrite)
    if not options.quiet and (line := left_out_line(plan.left_out)):
        say(line)
    settings = SceneSettings(
        pose_from=options.pose_from,
        reference_view=options.reference_view,
        input_size=options.input_size,
        gaussians="gs" in formats,
        window=options.window,
        overlap=options.overlap,
        cameras=None if options.cameras is None else known_cameras(options.cameras, plan),
    )
    show = sys.stderr.isatty() and not options.quiet
    model = load(options.model, dtype=options.dtype, revision=options.revision, progress=show)
    with _bars(show) as progress:
        scene = predict_scene(model, plan, settings, progress)
        write_scene(scene, plan.files, progress, filter=filter, overwrite=options.overwrite)
    files = {name: str(file) for name, file in plan.files.items()}
    if options.json:
        print(json.dumps({**scene.sidecar(), "files": files}))
    elif not options.quiet:
        say(f"{_views(scene)}, {scene.kind.description}, {license_of(model.spec)}")
        if scene.kind is not DepthKind.METRIC:
            say(_unit_line(known=settings.cameras is not None))
        print(*map(printable, files.values()), sep="\n")
    return 0


def _views(scene: SceneResult) -> str:
    height, width = scene.size
    return f"{len(scene)} view{'s' * (len(scene) != 1)} of {width}×{height}"


def _unit_line(*, known: bool) -> str:
    if known:
        return "the points and cameras are in the unit of the given cameras"
    return f"the points and cameras have no unit, their scale is unknown: --model {METRIC_MODEL} gives metres"


@contextmanager
def _bars(show: bool) -> Iterator[Progress]:
    """One bar after the other: decode, network, write."""
    bars: dict[str, tqdm[Any]] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in bars:
            for earlier in bars.values():
                earlier.close()
            unit = "file" if what == "write" else "photo"
            bars[what] = tqdm(total=total, desc=what, unit=unit, file=sys.stderr, disable=not show)
        bars[what].update(done - bars[what].n)

    try:
        yield progress
    finally:
        for bar in bars.values():
            bar.close()
