"""The command ``mlx-depth``: each verb unpacks its arguments into one API call.

Results go to stdout, diagnostics and progress to stderr. Exit codes: 0 done, 1 some images failed, 2 the command cannot
be done as asked, 130 interrupted.
"""

import argparse
import io
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mlx_depth import __version__, hub
from mlx_depth.colormaps import COLORMAPS
from mlx_depth.describe import describe_model, models_table
from mlx_depth.errors import MlxDepthError
from mlx_depth.files import DEFAULT_FORMATS, Outcome, Settings, find_images, predict_files, unfinished
from mlx_depth.predictor import DEFAULT_MODEL, DepthModel, load, resolve_dtype
from mlx_depth.processor import InputSize
from mlx_depth.ranks import Ranks, join_ranks
from mlx_depth.registry import ModelSpec, find_model
from mlx_depth.save import FORMATS
from mlx_depth.tensor_files import DTYPES, dtype_name

PROGRESS_SECONDS = 10  # between the progress lines of a rank
_PROGRESS_LINE = "{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mlx-depth", description="Depth from photos, in MLX.")
    parser.add_argument("--version", action="version", version=f"mlx-depth {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    _add_predict(verbs)

    models = verbs.add_parser("models", help="list all models, their licence and whether they are downloaded")
    models.add_argument("--json", action="store_true", help="one JSON array instead of a table")
    models.set_defaults(run=_run_models)

    info = verbs.add_parser("info", help="show what is known of a model")
    info.add_argument("model", help="name, alias, folder, .safetensors file, or a downloaded owner/name")
    info.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    info.set_defaults(run=_run_info)

    from mlx_depth_convert.cli import add_verbs  # the tool depends on this package, never the reverse

    add_verbs(verbs)
    return parser


def _add_predict(verbs: Any) -> None:
    predict = verbs.add_parser("predict", help="write the depth of photos")
    add = predict.add_argument
    add("paths", nargs="+", metavar="PATH", help="image, folder, glob, URL, or .txt file with one of these a line")
    add("-o", "--out", type=Path, default=Path("depth"), metavar="DIR", help="output folder (default: depth)")
    add("--model", default=DEFAULT_MODEL, help=f"name, folder, file or owner/name (default: {DEFAULT_MODEL})")
    add("--revision", help="branch, tag or commit of the Hub repository")
    add("--input-size", type=input_size, metavar="N|HxW", help="short side of the network image, or its exact size")
    add("--dtype", choices=DTYPES, help="default: float16 on a GPU, float32 on a CPU")
    add(
        "--format",
        default=",".join(DEFAULT_FORMATS),
        metavar="LIST",
        help=f"comma-separated, of {', '.join(FORMATS)} (default: {','.join(DEFAULT_FORMATS)})",
    )
    add("--cmap", default="Spectral_r", metavar="NAME", help=f"colour map, one of {', '.join(COLORMAPS)}")
    add("--side-by-side", action="store_true", help="also write the photo beside its colour map")
    add("--recursive", action="store_true", help="look into folders within folders, and keep their structure")
    add("--batch-size", type=int, default=1, metavar="N", help="images that the network sees at once (default: 1)")
    add("--resume", action="store_true", help="skip images whose results are complete, redo the others")
    add("--overwrite", action="store_true", help="replace results that exist")
    add("--verbose", action="store_true", help="say which model, licence and number format are used")
    add("--json", action="store_true", help="one JSON object a line and image on stdout")
    predict.set_defaults(run=_run_predict)


def _run_predict(options: argparse.Namespace) -> int:
    formats = [name.strip() for name in options.format.split(",")] + ["side-by-side"] * options.side_by_side
    out = options.out.expanduser()
    settings = Settings(
        model=find_model(options.model).name if hub.is_name(options.model) else options.model,
        dtype=dtype_name(resolve_dtype(options.dtype)),
        revision=options.revision,
        input_size=options.input_size,
        formats=tuple(dict.fromkeys(formats)),
        cmap=options.cmap,
    )
    show_progress = sys.stderr.isatty()

    def open_model() -> DepthModel:
        model = load(settings.model, dtype=settings.dtype, revision=settings.revision, progress=show_progress)
        if options.verbose:
            say(f"{model.spec.name}: {model.spec.depth_kind.description}, {_licence(model.spec)}, {settings.dtype}")
        return model

    ranks = join_ranks()
    jobs, failed = find_images(options.paths, recursive=options.recursive, out=out)
    waiting = set(unfinished(jobs, out, settings, resume=options.resume, overwrite=options.overwrite))
    ranks.check_same(str(job.stem) for job in jobs)  # nobody writes before all have looked at what exists
    mine = ranks.share(jobs)
    to_do = [job for job in mine if job in waiting]
    complete = [Outcome(job.source, tuple(job.files(out, settings.formats))) for job in mine if job not in waiting]
    outcomes = predict_files(
        open_model,
        to_do,
        out,
        settings,
        batch_size=options.batch_size,
        overwrite=options.resume or options.overwrite,
    )
    before = [*ranks.share(failed), *complete]
    code = _report(before, outcomes, len(to_do), ranks, as_json=options.json, show_progress=show_progress)
    ranks.wait()
    return code


def _report(
    before: Sequence[Outcome],
    outcomes: Generator[Outcome, None, None],
    total: int,
    ranks: Ranks,
    *,
    as_json: bool,
    show_progress: bool,
) -> int:
    for outcome in before:
        _print_outcome(outcome, as_json)
    failed = sum(outcome.error is not None for outcome in before)
    skipped = len(before) - failed
    done = 0
    with closing(outcomes), _progress(total, ranks, show_progress) as advance:
        for outcome in outcomes:
            failed += outcome.error is not None
            done += outcome.error is None
            with tqdm.external_write_mode(file=sys.stderr):
                _print_outcome(outcome, as_json)
            advance()
    say(f"{ranks.label}{done} done, {skipped} complete before, {failed} failed")
    return 1 if failed else 0


@contextmanager
def _progress(total: int, ranks: Ranks, show: bool) -> Iterator[Callable[[], object]]:
    """Gives what is called after each image: a bar, or lines where several ranks share one stderr."""
    if ranks.size > 1:
        yield _line_by_line(total, ranks.label)
        return
    with tqdm(total=total, unit="image", file=sys.stderr, disable=not (show and total)) as bar:
        yield bar.update


def _line_by_line(total: int, label: str) -> Callable[[], None]:
    start = time.monotonic()
    due = start
    done = 0

    def advance() -> None:
        nonlocal due, done
        done += 1
        now = time.monotonic()
        if now >= due:
            due = now + PROGRESS_SECONDS
            say(label + tqdm.format_meter(done, total, now - start, unit="image", bar_format=_PROGRESS_LINE))

    return advance


def _print_outcome(outcome: Outcome, as_json: bool) -> None:
    if outcome.error is not None:
        say(f"mlx-depth: {outcome.error}")
    if as_json:
        print(json.dumps(_outcome_facts(outcome)), flush=True)
    elif outcome.sidecar is not None:
        print(*outcome.files, sep="\n", flush=True)


def _outcome_facts(outcome: Outcome) -> dict[str, Any]:
    if outcome.error is not None:
        return {"image": outcome.image, "error": str(outcome.error)}
    files = [str(file) for file in outcome.files]
    if outcome.sidecar is None:
        return {"image": outcome.image, "skipped": True, "files": files}
    return {**outcome.sidecar, "image": outcome.image, "files": files}


def _licence(spec: ModelSpec) -> str:
    if spec.licence is None:
        return "licence unknown"
    return f"licence {spec.licence}{'' if spec.commercial else ' (not for commercial use)'}"


def _run_models(options: argparse.Namespace) -> int:
    table = models_table()
    print(json.dumps(table, indent=2) if options.json else _aligned(table))
    return 0


def _run_info(options: argparse.Namespace) -> int:
    facts = describe_model(options.model)
    print(json.dumps(facts, indent=2) if options.json else "\n".join(_lines(facts)))
    return 0


def _aligned(rows: list[dict[str, Any]]) -> str:
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def _lines(facts: Mapping[str, Any], indent: str = "", show: Callable[[Any], str] | None = None) -> Iterator[str]:
    for name, value in facts.items():
        cell = show or (_megabytes if name.endswith("_bytes") else _cell)
        if isinstance(value, Mapping) and value:
            yield f"{indent}{name}:"
            yield from _lines(value, indent + "  ", cell)
        else:
            yield f"{indent}{name}: {cell(value)}"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "–" if value is None or value == {} else str(value)


def _megabytes(count: int) -> str:
    return f"{count:,} ({count / 1e6:,.1f} MB)"


def input_size(text: str) -> InputSize:
    """Read what ``--input-size`` takes: ``518`` or ``392x518``."""
    try:
        sides = tuple(int(side) for side in text.lower().split("x"))
    except ValueError:
        sides = ()
    if len(sides) == 1:
        return sides[0]
    if len(sides) == 2:
        return sides[0], sides[1]
    raise argparse.ArgumentTypeError(f"{text!r} is no size: write 518 for the short side, or 392x518 (height x width)")


def _print_warning(message: Warning | str, *_: Any) -> None:
    say(f"mlx-depth: warning: {message}")


def say(text: str) -> None:
    """Print a diagnostic, at once and to stderr."""
    print(text, file=sys.stderr, flush=True)
