"""A scene as one HTML file that any browser opens, without a network: points to look at from all sides."""

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError, printable
from mlx_depth.io.atomic import atomic_write
from mlx_depth.io.scene.drawing import (
    Camera,
    camera_center,
    camera_colors,
    camera_lines,
    check_camera,
    check_points,
    extent,
    to_gltf,
)
from mlx_depth.version import __version__

MAX_POINTS = 2_000_000  # a page of 48 MB; beyond it browsers take seconds to open one
_PAGE = "viewer_page"
_STEPS = 100  # of the confidence slider: how many percent of the points are hidden


def write_viewer(
    path: str | os.PathLike[str],
    *,
    points: npt.NDArray[np.float32],
    colors: npt.NDArray[np.uint8],
    confidence: npt.NDArray[np.floating] | None,
    depth_colors: npt.NDArray[np.uint8],
    cameras: Sequence[Camera],
    facts: Mapping[str, Any],
    overwrite: bool = False,
) -> Path:
    """Write a page that shows a point cloud and its cameras.

    Args:
        path: The file; missing folders are made.
        points: ``(N, 3)``, world coordinates, OpenCV axes, finite, N >= 1. More than ``MAX_POINTS`` are thinned
            evenly, and the page says so.
        colors: ``(N, 3)``, RGB.
        confidence: ``(N,)``, finite, larger = surer; without it the page has no slider for it.
        depth_colors: ``(N, 3)``, RGB, the other choice of color.
        cameras: Drawn as wire pyramids. The first one gives the first view; may be empty.
        facts: JSON-ready. The page shows ``title`` (default: the name of the file), ``kind``, ``unit``, ``model``,
            ``revision`` and ``license``, and holds all of them in its element ``mlx_depth``.
        overwrite: Replace a file that exists.
    Returns:
        The path written.
    Raises:
        OptionError: If an array has another shape or type, or holds what cannot be drawn.
        SaveError: If the file exists or cannot be written.

    Everything is in the page: three.js, the data, and a policy that forbids it to load anything.
    """
    check_points(points, {"colors": colors, "depth_colors": depth_colors})
    _check_confidence(confidence, len(points))
    for camera in cameras:
        check_camera(camera)
    path = Path(path)
    total = len(points)
    order = _order(total, confidence)
    lines = to_gltf(camera_lines(cameras, points))
    arrays = {
        "positions": to_gltf(points[order]),
        "photo-colors": colors[order],
        "depth-colors": depth_colors[order],
        "camera-lines": lines.astype(np.float32),
        "camera-colors": np.repeat(camera_colors(len(cameras)), lines[:1].size // 3, axis=0),
    }
    scene = {
        "count": len(order),
        "cameras": len(cameras),
        "confidence": None if confidence is None else _slider(confidence[order]),
        "view": _first_view(points, cameras),
    }
    thinned = f"{len(order):,} of {total:,}, thinned evenly" if len(order) < total else ""
    parts = {name: _part(f"viewer.{suffix}") for name, suffix in (("style", "css"), ("viewer", "js"))}
    parts |= {
        "three": _part("three.min.js"),
        "title": _escaped(facts.get("title") or path.stem),
        "generator": f"mlx-depth {__version__}",
        "facts": _rows(facts, len(cameras), thinned),
        "metadata": _json(dict(facts)),
        "scene": _json(scene),
        "arrays": "\n".join(_data_block(name, array) for name, array in arrays.items()),
    }
    parts["policy"] = _policy(parts["style"], [parts["three"], parts["viewer"]])
    page = _filled(_part("viewer.html"), parts).encode()

    def write(stream: BinaryIO) -> None:
        stream.write(page)

    atomic_write(path, write, overwrite=overwrite)
    return path


def _order(total: int, confidence: npt.NDArray[np.floating] | None) -> npt.NDArray[np.int64]:
    """The points that are shown, the surest first, so that the slider only has to say how many."""
    count = min(total, MAX_POINTS)
    kept = np.arange(count) * total // count
    return kept if confidence is None else kept[np.argsort(-confidence[kept], kind="stable")]


def _slider(confidence: npt.NDArray[np.floating]) -> dict[str, list[Any]]:
    """For each step the least confidence that is shown, and how many points have it; equal ones stay together."""
    rising = confidence[::-1]
    thresholds = rising[np.arange(_STEPS) * len(rising) // _STEPS]
    counts = len(rising) - np.searchsorted(rising, thresholds)
    return {"thresholds": thresholds.tolist(), "counts": counts.tolist()}


def _first_view(points: npt.NDArray[np.float32], cameras: Sequence[Camera]) -> dict[str, Any]:
    """Where the eye stands, what it turns around, and the edges of the photo in the plane z = 1 (x right, y down)."""
    intrinsics, extrinsics, (height, width) = cameras[0] if cameras else _overview(points)
    rotation = extrinsics[:, :3].astype(np.float64)
    center = camera_center(extrinsics)
    depths = (points - center) @ rotation[2]
    in_front = depths[depths > 0]
    distance = float(np.median(in_front)) if in_front.size else extent(points)
    corners = np.array([[-0.5, -0.5, 1], [width - 0.5, height - 0.5, 1]])
    (left, top, _), (right, bottom, _) = (corners @ np.linalg.inv(intrinsics.astype(np.float64)).T).tolist()
    return {
        "position": to_gltf(center).tolist(),
        "target": to_gltf(center + distance * rotation[2]).tolist(),
        "up": to_gltf(-rotation[1]).tolist(),
        "left": left,
        "right": right,
        "top": top,
        "bottom": bottom,
    }


def _overview(points: npt.NDArray[np.float32]) -> Camera:
    """A camera that looks along the world's z at the box around the middle 90 % of each coordinate."""
    low, high = np.percentile(points, [5, 95], axis=0).astype(np.float64)
    width = float((high - low)[:2].max()) or extent(points)
    eye = np.array([*(low + high)[:2] / 2, low[2] - width])  # the box's front fills a view that is 1 wide at z = 1
    return np.eye(3), np.column_stack([np.eye(3), -eye]), (1, 1)


def _rows(facts: Mapping[str, Any], cameras: int, thinned: str) -> str:
    kind, unit = facts.get("kind"), facts.get("unit")
    rows = {
        "Depth": kind and f"{str(kind).replace('_', ' ')}, {f'in {unit}' if unit else 'without unit'}",
        "Model": facts.get("model"),
        "Revision": facts.get("revision"),
        "License": facts.get("license"),
        "Views": cameras,
        "Points": thinned,
    }
    return "".join(f"<dt>{name}</dt><dd>{_escaped(value)}</dd>" for name, value in rows.items() if value)


def _escaped(text: object) -> str:
    return html.escape(printable(text))


def _json(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _data_block(name: str, array: npt.NDArray[Any]) -> str:
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return f'<script type="text/plain" id="{name}">{base64.b64encode(data).decode()}</script>'


def _policy(style: str, scripts: Sequence[str]) -> str:
    """Nothing is loaded from anywhere, and only what stands in the page now is run."""
    allowed = " ".join(_digest(script) for script in scripts)
    return f"default-src 'none'; script-src {allowed}; style-src {_digest(style)}; base-uri 'none'; form-action 'none'"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _part(name: str) -> str:
    return (files(__package__) / _PAGE / name).read_text("utf-8")


def _filled(template: str, parts: Mapping[str, str]) -> str:
    """In one pass: what is filled in is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], template)


def _check_confidence(confidence: npt.NDArray[Any] | None, count: int) -> None:
    if confidence is None:
        return
    if confidence.shape != (count,) or confidence.dtype.kind != "f":
        found = f"{confidence.dtype} of shape {confidence.shape}"
        raise OptionError(f"confidence is {found}: give floats of shape {(count,)}, one a point.")
    if not np.isfinite(confidence).all():
        raise OptionError("confidence holds numbers that are not finite: leave those points out.")
