"""The verb predict: photos to files."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mlx_depth.checkpoints.resolve import canonical_name
from mlx_depth.cli.terminal import input_size, say
from mlx_depth.io.colormaps import COLORMAPS
from mlx_depth.io.find import left_out_line
from mlx_depth.io.formats import FORMATS
from mlx_depth.jobs.distributed import Ranks, join_ranks
from mlx_depth.jobs.folder import DEFAULT_FORMATS, Outcome, Settings, find_images, predict_files, unfinished
from mlx_depth.predictor import DEFAULT_MODEL, DepthModel, load
from mlx_depth.registry import ModelSpec
from mlx_depth.runtime.forward import resolve_dtype
from mlx_depth.weights.safetensors_io import DTYPES, dtype_name

PROGRESS_SECONDS = 10  # between the progress lines of a rank
_PROGRESS_LINE = "{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"


def add_verbs(verbs: Any) -> None:
    """Declare the verb on what ``ArgumentParser.add_subparsers`` returned."""
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
    add("--verbose", action="store_true", help="say which model, license and number format are used")
    add("--json", action="store_true", help="one JSON object a line and image on stdout")
    predict.set_defaults(run=_run_predict)


def _run_predict(options: argparse.Namespace) -> int:
    formats = [name.strip() for name in options.format.split(",")] + ["side-by-side"] * options.side_by_side
    out = options.out.expanduser()
    settings = Settings(
        model=str(canonical_name(options.model)),
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
            say(f"{model.spec.name}: {model.spec.depth_kind.description}, {_license(model.spec)}, {settings.dtype}")
        return model

    ranks = join_ranks()
    jobs, failed, left_out = find_images(options.paths, recursive=options.recursive, out=out)
    if line := left_out_line(left_out):
        say(line)
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


def _license(spec: ModelSpec) -> str:
    if spec.license is None:
        return "license unknown"
    return f"license {spec.license}{'' if spec.commercial else ' (not for commercial use)'}"
