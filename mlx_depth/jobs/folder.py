"""Folders of photos to folders of results: what is to do, and doing it."""

import ctypes
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mlx_depth.errors import ImageError, SaveError
from mlx_depth.io.atomic import atomic_write
from mlx_depth.io.find import LeftOut
from mlx_depth.io.image import ImageSource
from mlx_depth.io.ours import named_files, read_sidecar
from mlx_depth.jobs.naming import Job, Outcome, find_images, into_one_file, output_place, with_prompts
from mlx_depth.jobs.resume import bytes_of, image_path, photo_facts, prompt_facts, unfinished
from mlx_depth.jobs.settings import Settings
from mlx_depth.model import DepthModel, predict_stream
from mlx_depth.result import DepthResult
from mlx_depth.runtime.stream import Shot
from mlx_depth.version import __version__

WRITING_THREADS = 4  # packing a PNG takes longer than a small network on a GPU
TRIM_EVERY = 50  # images

_InputFacts = dict[str, Any]  # of the photo, and of its depth prompt where it has one


@dataclass(frozen=True)
class Plan:
    """What there is to do, and where its results go.

    Attributes:
        jobs: All images.
        waiting: Those of them that are to be done.
        failed: Paths that stand for no image.
        left_out: What lies beside the images; ``io.find.left_out_line`` makes one line of it.
        out: The output folder.
        settings: What is asked of every image.
    """

    jobs: list[Job]
    waiting: list[Job]
    failed: list[Outcome]
    left_out: list[LeftOut]
    out: Path
    settings: Settings


def plan(
    paths: Sequence[str],
    out: str | Path,
    settings: Settings,
    *,
    prompts: Path | None = None,
    recursive: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> Plan:
    """Find the images and choose what is to be done, before any work.

    Args:
        paths: As for ``find_images``, like ``recursive``.
        out: The output folder; or, for exactly one image, a file with a suffix of a known format.
        settings: What is asked of every image.
        prompts: The depth prompts, as for ``with_prompts``.
        resume: As for ``unfinished``, like ``overwrite``.
    Returns:
        What ``predict_files`` takes. Where ``out`` is a file, ``settings`` has its format alone.
    Raises:
        OptionError: If the output folder is an input folder, the file cannot hold what is asked for, or an image has no
            prompt.
        SaveError: If the output leads nowhere, or a file is in the way.
    """
    place = output_place(out)
    images = find_images(paths, recursive=recursive, out=place)
    jobs, place, settings = into_one_file(with_prompts(images.jobs, prompts), place, settings)
    waiting = unfinished(jobs, place, settings, resume=resume, overwrite=overwrite)
    return Plan(jobs, waiting, images.failed, images.left_out, place, settings)


def predict_files(
    open_model: Callable[[], DepthModel],
    jobs: Sequence[Job],
    out: Path,
    settings: Settings,
    *,
    batch_size: int = 1,
    overwrite: bool = False,
) -> Generator[Outcome, None, None]:
    """Predict images and write their results; a bad image is an outcome, not the end.

    Threads read images ahead of the network and write results behind it. Memory stays bounded: besides the images that
    ``DepthModel.predict_batch`` holds, no more than ``max(batch_size, WRITING_THREADS)`` results wait to be written.

    Args:
        open_model: Gives the model of the settings; not called where no image can be read.
        jobs: From ``unfinished``.
        out: Output folder.
        settings: What is asked of every image. A JSON sidecar stands beside the formats: the first to be written, as it
            says whose they are, and the last, once they are whole.
        batch_size: Images that the network sees at once.
        overwrite: Replace results that a sidecar of ours names.
    Yields:
        One outcome a job, in order.
    Raises:
        OptionError: If the batch size or the input size cannot work.
    """
    waiting: deque[tuple[Job, _InputFacts]] = deque()
    written: deque[Outcome | Future[Outcome]] = deque()

    def shots() -> Iterator[Shot]:
        for job in jobs:
            waiting.append((job, _input_facts(job, out)))  # before it is read: a photo that changes later is redone
            yield Shot(job.source, job.prompt)

    def fail(_: ImageSource, error: ImageError) -> None:
        written.append(Outcome(waiting.popleft()[0].source, error=error))

    def open_checked() -> DepthModel:
        model = open_model()
        model.check_input_size(settings.input_size)
        model.check_prompts(next((job.prompt for job in jobs if job.prompt is not None), None))
        return model

    results = predict_stream(
        open_checked,
        shots(),
        prompt_unit=settings.prompt_unit,
        batch_size=batch_size,
        input_size=settings.input_size,
        background=settings.background,
        focal_length_px=settings.focal_length_px,
        on_error=fail,
    )
    with _writers() as writers:
        for number, result in enumerate(results):
            if number % TRIM_EVERY == TRIM_EVERY - 1:
                _trim_heap()
            job, inputs = waiting.popleft()
            written.append(writers.submit(_write, job, inputs, result, out, settings, overwrite))
            yield from _finished(written, at_most=max(batch_size, WRITING_THREADS))
        yield from _finished(written, at_most=0)


@contextmanager
def _writers() -> Iterator[ThreadPoolExecutor]:
    """Threads that write results; however it ends, no file is left half-written."""
    pool = ThreadPoolExecutor(WRITING_THREADS, thread_name_prefix="mlx-depth-write")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(written: deque[Outcome | Future[Outcome]], *, at_most: int) -> Iterator[Outcome]:
    """Take the outcomes in order, those that are ready; and wait for others where more than ``at_most`` are left."""
    while written and (len(written) > at_most or _is_ready(written[0])):
        outcome = written.popleft()
        yield outcome.result() if isinstance(outcome, Future) else outcome


def _trim_heap() -> None:
    """Give free memory back, of which glibc keeps ever more small pieces where images differ in size."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _is_ready(outcome: Outcome | Future[Outcome]) -> bool:
    return isinstance(outcome, Outcome) or outcome.done()


def _input_facts(job: Job, out: Path) -> _InputFacts:
    prompt = {} if job.prompt is None else {"prompt": prompt_facts(job, out)}
    return {"photo": photo_facts(job.source), **prompt}


def _write(
    job: Job, inputs: _InputFacts, result: DepthResult, out: Path, settings: Settings, overwrite: bool
) -> Outcome:
    outputs = job.outputs(out, settings.formats)
    names = {name: file.name for name, file in outputs.items()}
    place = job.sidecar(out)
    before = read_sidecar(place) if overwrite else None
    ours = named_files(before) - {place.name} if before is not None else set()
    earlier = sorted(name for name in ours - set(names.values()) if os.path.lexists(place.with_name(name)))
    claim = {
        "image": image_path(job, out),
        "settings": settings.facts(),
        "files": names,
        "earlier_files": earlier,
        "mlx_depth": __version__,
    }
    try:
        _refuse_newcomers([file for name, file in outputs.items() if name != "json" and file.name not in ours])
        # Whenever the run ends from here on, the sidecar says whose the files are; without sizes they are not complete.
        _write_json(place, claim, overwrite=before is not None)
        _save_all(result, outputs, settings, ours, claim, place)
        sizes = {file.name: bytes_of(file) for name, file in outputs.items() if name != "json"}
        facts = {**result.sidecar(), **claim, "file_bytes": sizes, **inputs}
        _write_json(place, facts, overwrite=True)
    except SaveError as error:
        return Outcome(job.source, error=error)
    return Outcome(job.source, {**outputs, "json": place}, facts)


def _refuse_newcomers(files: Sequence[Path]) -> None:
    """Files that have appeared since ``unfinished`` looked are not ours: no sidecar may claim them."""
    for file in files:
        if os.path.lexists(file):
            raise SaveError(f"{file} has appeared meanwhile: move it away, or take another folder with -o.")


def _save_all(
    result: DepthResult,
    outputs: dict[str, Path],
    settings: Settings,
    ours: set[str],
    claim: dict[str, Any],
    place: Path,
) -> None:
    written = set(ours)
    try:
        for name, file in outputs.items():
            if name != "json":
                result.save(file, format=name, overwrite=file.name in ours, cmap=settings.cmap)
                written.add(file.name)
    except SaveError:
        with suppress(OSError):
            _keep_claim(place, claim, written)
        raise


def _keep_claim(place: Path, claim: dict[str, Any], written: set[str]) -> None:
    """Claim no more than what was written; a sidecar that claims nothing goes."""
    files = {name: file for name, file in claim["files"].items() if file in written}
    if files or claim["earlier_files"]:
        _write_json(place, claim | {"files": files}, overwrite=True)
    else:
        place.unlink(missing_ok=True)


def _write_json(file: Path, facts: dict[str, Any], *, overwrite: bool) -> None:
    text = json.dumps(facts, indent=2, allow_nan=False) + "\n"

    def write(stream: BinaryIO) -> None:
        stream.write(text.encode())

    atomic_write(file, write, overwrite=overwrite)
