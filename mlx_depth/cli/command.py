"""The command itself: its verbs, and what becomes of an error.

Results go to stdout, diagnostics and progress to stderr. Exit codes: 0 done, 1 some images failed, 2 the command cannot
be done as asked, 130 interrupted.
"""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from mlx_depth.cli import cloud, convert, coreml, models, predict, scene
from mlx_depth.cli.terminal import say
from mlx_depth.errors import MlxDepthError
from mlx_depth.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    _open_closed_streams()
    options = _parsed(arguments)
    if sys.stdout is None:  # a file that is opened would get its number, and what is printed below Python
        say("mlx-depth: error: stdout is closed: send it to a file, or to /dev/null.")
        return 2
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names that are not Unicode leave as they came
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning  # type: ignore[assignment]
            code = run(options)
        sys.stdout.flush()  # here, where a reader that has gone is no traceback
        return code
    except MlxDepthError as error:
        say(f"mlx-depth: error: {error}")
        return 2
    except KeyboardInterrupt:
        say("mlx-depth: interrupted" + ("; --resume goes on where it stopped" if "resume" in options else ""))
        return 130
    except OSError as error:
        is_stream = _silence_stuck_streams() or error.filename is None  # a file's errors name the file
        if not isinstance(error, BrokenPipeError):  # a reader that has gone, as with head -1, is no error
            say(f"mlx-depth: error: {_reason(error)}")
            return 1 if is_stream and "resume" in options else 2
        return 1


def _open_closed_streams() -> None:
    """Python has None for a stream that was closed at the start, and prints to stdout for a stderr of None."""
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115  # for as long as the process lives
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    try:
        return _parser().parse_args(arguments)
    except SystemExit:
        if _silence_stuck_streams():  # where --help and --version go
            say("mlx-depth: error: the output takes nothing: check the free space.")
            raise SystemExit(2) from None
        raise


def _silence_stuck_streams() -> bool:
    """Whether an output takes nothing any more; Python would try again at exit, and end with a traceback."""
    stuck = [stream for stream in (sys.stdout, sys.stderr) if stream is not None and _is_stuck(stream)]
    for stream in stuck:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(stuck)


def _is_stuck(stream: TextIO) -> bool:
    """Whether what was written cannot leave: its reader has gone, or its disk is full."""
    try:
        stream.flush()
    except OSError:
        return True
    return False


def _reason(error: OSError) -> str:
    if error.filename is None:
        return f"{error.strerror or error}: check the free space, and where the output goes."
    return f"{error.filename}: {error.strerror}: check that it is there, your rights and the free space."


_EXAMPLES = """\
examples:
  mlx-depth predict photo.jpg                       depth/photo.npy, and a picture of it
  mlx-depth predict photo.jpg -o depth.png          one file, 16 bits
  mlx-depth predict holiday/ --resume               a folder; goes on where it stopped
  mlx-depth predict photo.jpg --model mlx-depth-demo --format color   without any download
  mlx-depth scene room/ -o room3d/ --viewer         photos of one scene: points, cameras, a page to look at
  mlx-depth cloud photo.jpg -o photo.html           one photo as points; .ply, .glb, .html
  mlx-depth models                                  which models there are, and their licenses
  mlx-depth convert depth_anything_v2_vits.pth ./da2-small --quantize 8
  mlx-depth coreml depth-anything-v2-small DepthModel.mlpackage

mlx-depth VERB --help says more of each.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlx-depth",
        description="Depth from photos, in MLX.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mlx-depth {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    for group in (predict, scene, cloud, models, convert, coreml):
        group.add_verbs(verbs)
    parser.set_defaults(run=lambda _: _print_help(parser))
    return parser


def _print_help(parser: argparse.ArgumentParser) -> int:
    parser.print_help()
    return 0


def _print_warning(message: Warning | str, *_: Any) -> None:
    say(f"mlx-depth: warning: {message}")
