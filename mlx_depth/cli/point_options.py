"""Which pixels become points: the options that scene and cloud share."""

import argparse
from typing import Any

from mlx_depth.cli.terminal import number_or_off
from mlx_depth.errors import OptionError
from mlx_depth.geometry.point_filter import PointFilter

MAX_POINTS = 1_000_000  # as upstream's exports


def add_point_options(verb: Any, *, confidence_percentile: float | None) -> None:
    """Declare them.

    Args:
        verb: The parser.
        confidence_percentile: The default of that option; None: off.
    """
    group = verb.add_argument_group("which pixels become points")
    add = group.add_argument
    add("--min-confidence", type=float, metavar="C", help="those at least so sure, where the model tells")
    add(
        "--confidence-percentile",
        type=number_or_off,
        default=confidence_percentile,
        metavar="P|off",
        help=f"leave out the P %% least sure (default: {_shown(confidence_percentile)})",
    )
    add(
        "--edge-threshold",
        type=number_or_off,
        default=PointFilter.edge_threshold,
        metavar="T|off",
        help=f"leave out edges, where depth jumps by more than this part of it (default: {PointFilter.edge_threshold})",
    )
    add(
        "--sky",
        type=number_or_off,
        default=PointFilter.max_sky,
        metavar="S|off",
        help=f"leave out what is sky to this degree, 0..1; off keeps it (default: {PointFilter.max_sky})",
    )
    add("--voxel", type=float, metavar="SIDE", help="one point in each cube of this side, in the unit of the points")
    add(
        "--max-points",
        type=number_or_off,
        default=MAX_POINTS,
        metavar="N|off",
        help=f"at most so many, evenly chosen (default: {MAX_POINTS:,})",
    )


def filter_of(options: argparse.Namespace) -> PointFilter:
    """What was asked for.

    Raises:
        OptionError: If a number is out of its range.
    """
    most = options.max_points
    if most is not None and most != int(most):
        raise OptionError(f"--max-points {most} is not a whole number: give one, or off.")
    return PointFilter(
        min_confidence=options.min_confidence,
        confidence_percentile=options.confidence_percentile,
        edge_threshold=options.edge_threshold,
        voxel_size=options.voxel,
        max_points=None if most is None else int(most),
        max_sky=options.sky,
    )


def _shown(value: float | None) -> str:
    return "off" if value is None else f"{value:g}"
