"""The verb predict: photos to files."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm

from mlx_depth.checkpoints.resolve import canonical_name
from mlx_depth.cli.model_options import add_model_options
from mlx_depth.cli.terminal import color, compute_on, license_of, say
from mlx_depth.errors import printable
from mlx_depth.io.colormaps import COLORMAPS
from mlx_depth.io.find import left_out_line
from mlx_depth.io.formats import FORMATS
from mlx_depth.io.prompt import PromptUnit
from mlx_depth.jobs.distributed import Ranks, join_ranks
from mlx_depth.jobs.folder import plan, predict_files
from mlx_depth.jobs.naming import Outcome
from mlx_depth.jobs.settings import DEFAULT_FORMATS, Settings
from mlx_depth.kinds import DepthKind
from mlx_depth.model import DepthModel
from mlx_depth.predictor import DEFAULT_MODEL, load
from mlx_depth.processor import Reference
from mlx_depth.runtime.forward import resolve_dtype
from mlx_depth.weights.safetensors_io import dtype_name

PROMPT_HELP = "depth prompt of the photo, such as LiDAR; or a folder of them, called like the photos"
PROGRESS_SECONDS = 10  # between the progress lines of a rank
_PROGRESS_LINE = "{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"


def add_verbs(verbs: Any) -> None:
    """Declare the verb on what ``ArgumentParser.add_subparsers`` returned."""
    predict = verbs.add_parser("predict", help="write the depth of photos")
    add = predict.add_argument
    add(
        "paths",
        nargs="+",
        metavar="PATH",
        help="image, folder, pattern, URL, a .txt list of these, or - for a list on stdin",
    )
    add(
        "-o",
        "--out",
        type=Path,
        default=Path("depth"),
        metavar="OUT",
        help="output folder; for one photo also a file, such as depth.png (default: depth)",
    )
    add_model_options(predict, default=DEFAULT_MODEL, side="short side")
    add("--focal-length", type=float, metavar="PX", help="of all photos, in pixels (default: each one's EXIF)")
    add("--prompt", type=Path, metavar="FILE|FOLDER", help=PROMPT_HELP)
    add("--prompt-unit", choices=get_args(PromptUnit), help="of the prompts (default: mm for whole numbers, else m)")
    add("--reference", choices=get_args(Reference), help="whose rules for resizing to follow (default: original)")
    add("--background", type=color, metavar="COLOR", help="under transparent pixels: name or #rrggbb (default: white)")
    add(
        "--format",
        default=",".join(DEFAULT_FORMATS),
        metavar="LIST",
        help=f"comma-separated, of {', '.join(FORMATS)} (default: {','.join(DEFAULT_FORMATS)})",
    )
    add("--cmap", default="Spectral_r", metavar="NAME", help=f"color map, one of {', '.join(COLORMAPS)}")
    add("--side-by-side", action="store_true", help="also write the photo beside its color map")
    add("--recursive", action="store_true", help="look into folders within folders, and keep their structure")
    add("--batch-size", type=int, default=1, metavar="N", help="images that the network sees at once (default: 1)")
    add("--resume", action="store_true", help="skip images whose results are complete, redo the others")
    add("--overwrite", action="store_true", help="replace results that exist")
    voice = predict.add_mutually_exclusive_group()
    voice.add_argument("--verbose", action="store_true", help="say which model is used, and each file")
    voice.add_argument("--quiet", action="store_true", help="say nothing but errors")
    voice.add_argument("--json", action="store_true", help="one JSON object a line and image on stdout")
    predict.set_defaults(run=_run_predict)


def _run_predict(options: argparse.Namespace) -> int:
    compute_on(options.device)
    formats = [name.strip() for name in options.format.split(",")] + ["side-by-side"] * options.side_by_side
    settings = Settings(
        model=str(canonical_name(options.model)),
        dtype=dtype_name(resolve_dtype(options.dtype)),
        revision=options.revision,
        reference=options.reference,
        input_size=options.input_size,
        background=options.background,
        focal_length_px=options.focal_length,
        prompt_unit=options.prompt_unit,
        formats=tuple(dict.fromkeys(formats)),
        cmap=options.cmap,
    )
    ranks = join_ranks()
    todo = plan(
        options.paths,
        options.out,
        settings,
        prompts=options.prompt,
        recursive=options.recursive,
        resume=options.resume,
        overwrite=options.overwrite,
    )
    if not options.quiet and (line := left_out_line(todo.left_out)):
        say(line)
    ranks.check_same(str(job.stem) for job in todo.jobs)  # nobody writes before all have looked at what exists
    waiting = set(todo.waiting)
    mine = ranks.share(todo.jobs)
    jobs = [job for job in mine if job in waiting]
    complete = [
        Outcome(job.source, {**job.outputs(todo.out, todo.settings.formats), "json": job.sidecar(todo.out)})
        for job in mine
        if job not in waiting
    ]
    outcomes = predict_files(
        lambda: _open_model(settings, options),
        jobs,
        todo.out,
        todo.settings,
        batch_size=options.batch_size,
        overwrite=options.resume or options.overwrite,
    )
    before = [*ranks.share(todo.failed), *complete]
    code = _report(before, outcomes, len(jobs), ranks, options)
    ranks.wait()
    return code


def _open_model(settings: Settings, options: argparse.Namespace) -> DepthModel:
    model = load(
        settings.model,
        dtype=settings.dtype,
        revision=settings.revision,
        reference=settings.reference,
        progress=sys.stderr.isatty() and not options.quiet,
    )
    if options.verbose:
        say(f"{model.spec.name}: {model.spec.depth_kind.description}, {license_of(model.spec)}, {settings.dtype}")
    return model


def _report(
    before: Sequence[Outcome],
    outcomes: Generator[Outcome, None, None],
    total: int,
    ranks: Ranks,
    options: argparse.Namespace,
) -> int:
    for outcome in before:
        _print_outcome(outcome, options)
    failed = sum(outcome.error is not None for outcome in before)
    skipped = len(before) - failed
    done = 0
    show_progress = sys.stderr.isatty() and not options.quiet
    with closing(outcomes), _progress(total, ranks, show_progress) as advance:
        for outcome in outcomes:
            failed += outcome.error is not None
            done += outcome.error is None
            with tqdm.external_write_mode(file=sys.stderr):
                _print_outcome(outcome, options)
            advance()
    if not options.quiet:
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


def _print_outcome(outcome: Outcome, options: argparse.Namespace) -> None:
    if outcome.error is not None:
        say(f"mlx-depth: {outcome.error}")
    if options.json:
        print(json.dumps(_outcome_facts(outcome)), flush=True)
    elif outcome.sidecar is not None and not options.quiet:
        print(_line(outcome), flush=True)
        if options.verbose:
            print(*(f"  {file}" for file in outcome.files.values()), sep="\n", flush=True)


def _line(outcome: Outcome) -> str:
    """One photo in one line: what was found, and where it went."""
    facts = outcome.sidecar or {}
    kind = DepthKind(facts["kind"])
    ends = "no depth" if facts["min"] is None else f"{facts['min']:.4g} to {facts['max']:.4g}{kind.unit and ' m'}"
    height, width = facts["size"]
    files = [file for name, file in outcome.files.items() if name != "json"] or list(outcome.files.values())
    where = files[0] if len(files) == 1 else files[0].parent
    name = kind.value.replace("_", " ")
    return f"{printable(outcome.image)}: {width}×{height}, {name} depth, {ends} → {printable(where)}"


def _outcome_facts(outcome: Outcome) -> dict[str, Any]:
    if outcome.error is not None:
        return {"image": outcome.image, "error": str(outcome.error)}
    files = {name: str(file) for name, file in outcome.files.items()}
    if outcome.sidecar is None:
        return {"image": outcome.image, "skipped": True, "files": files}
    return {**outcome.sidecar, "image": outcome.image, "files": files}
