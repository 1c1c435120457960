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
from typing import Any

from mlx_depth.cli import convert, coreml, models, predict
from mlx_depth.cli.terminal import say
from mlx_depth.errors import MlxDepthError
from mlx_depth.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
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
    except BrokenPipeError:  # the reader of stdout has gone; so Python must not flush it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


_EXAMPLES = """\
examples:
  mlx-depth predict photo.jpg                       depth/photo.npy, and a picture of it
  mlx-depth predict photo.jpg -o depth.png          one file, 16 bits
  mlx-depth predict holiday/ --resume               a folder; goes on where it stopped
  mlx-depth predict photo.jpg --model mlx-depth-demo --format color   without any download
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
    for group in (predict, models, convert, coreml):
        group.add_verbs(verbs)
    parser.set_defaults(run=lambda _: _print_help(parser))
    return parser


def _print_help(parser: argparse.ArgumentParser) -> int:
    parser.print_help()
    return 0


def _print_warning(message: Warning | str, *_: Any) -> None:
    say(f"mlx-depth: warning: {message}")
