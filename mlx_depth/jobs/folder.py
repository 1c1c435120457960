"""Folders of photos to folders of results: finding images, naming outputs, skipping what is done."""

import ctypes
import importlib.util
import itertools
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mlx_depth.errors import ImageError, MlxDepthError, OptionError, SaveError
from mlx_depth.io.colormaps import colormap_table
from mlx_depth.io.find import Failed, Found, LeftOut, absolute, find
from mlx_depth.io.formats import FORMATS, ending
from mlx_depth.io.image import ImageSource
from mlx_depth.io.names import sameness
from mlx_depth.io.save import atomic_write
from mlx_depth.io.sources import is_url
from mlx_depth.predictor import DepthModel, predict_stream
from mlx_depth.processor import InputSize
from mlx_depth.result import DepthResult

DEFAULT_FORMATS = ("npy", "color")
WRITING_THREADS = 4  # packing a PNG takes longer than a small network on a GPU
TRIM_EVERY = 50  # images


@dataclass(frozen=True)
class Settings:
    """What is asked of every image; a result is complete only if it was made with the same settings."""

    model: str
    dtype: str
    revision: str | None = None
    input_size: InputSize | None = None
    formats: tuple[str, ...] = DEFAULT_FORMATS
    cmap: str = "Spectral_r"

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            raise OptionError(f"no format {', '.join(map(repr, unknown))}: choose from {', '.join(FORMATS)}.")
        colormap_table(self.cmap)
        if "exr" in self.formats and importlib.util.find_spec("OpenEXR") is None:
            raise OptionError("OpenEXR is missing, which .exr files need: pip install 'mlx-depth[exr]'.")

    def facts(self) -> dict[str, Any]:
        """All but the formats, as JSON gives them back."""
        size = list(self.input_size) if isinstance(self.input_size, tuple) else self.input_size
        return {
            "model": self.model,
            "dtype": self.dtype,
            "revision": self.revision,
            "input_size": size,
            "cmap": self.cmap,
        }


@dataclass(frozen=True)
class Job:
    """One image and where its results go."""

    source: str  # path or URL
    stem: Path  # relative to the output folder, without a suffix

    def outputs(self, out: Path, formats: Sequence[str]) -> dict[str, Path]:
        """Format → file."""
        return {name: self._file(out, ending(name)) for name in formats}

    def sidecar(self, out: Path) -> Path:
        """The JSON that is written last, and so proves that the others are whole."""
        return self._file(out, ".json")

    def files(self, out: Path, formats: Sequence[str]) -> list[Path]:
        """All that is written for the image, the sidecar last."""
        return [*self.outputs(out, [name for name in formats if name != "json"]).values(), self.sidecar(out)]

    def _file(self, out: Path, end: str) -> Path:
        return out / self.stem.with_name(self.stem.name + end)


@dataclass(frozen=True)
class Outcome:
    """What became of one image: files and their sidecar, or an error."""

    image: str  # path or URL
    files: tuple[Path, ...] = ()
    sidecar: dict[str, Any] | None = None
    error: MlxDepthError | None = None


class Images(NamedTuple):
    """What paths stand for."""

    jobs: list[Job]
    """One an image."""
    failed: list[Outcome]
    """An error for each path that stands for nothing."""
    left_out: list[LeftOut]
    """What lies beside the images; ``io.find.left_out_line`` makes one line of it."""


def find_images(paths: Sequence[str], *, recursive: bool = False, out: Path | None = None) -> Images:
    """List the images that paths stand for.

    Args:
        paths: As for ``io.find.find``.
        recursive: Look into folders within folders; their names are kept below the output folder.
        out: The output folder, which is left out where it lies inside an input folder.
    Returns:
        One job an image, each once, in the order of the paths and by name within a folder; an error for each path that
        stands for nothing; and what was left out. No two jobs have the same ``stem``: an image keeps its suffix
        (``a.jpg`` beside ``a.png``), or gets the name of its folder before it, where it would share another's name.
    Raises:
        OptionError: If the output folder is an input folder: its pictures would become input.
    """
    found: list[Found] = []
    images = Images([], [], [])
    for item in find(paths, recursive=recursive, skip=out):
        if isinstance(item, Failed):
            images.failed.append(Outcome(item.path, error=item.error))
        elif isinstance(item, LeftOut):
            images.left_out.append(item)
        else:
            found.append(item)
    images.jobs.extend(_jobs(found))
    return images


def _jobs(found: list[Found]) -> list[Job]:
    """Give each image the plainest stem that no other could have; volumes of Macs do not tell A from a."""
    claims = Counter(sameness(name) for item in found for name in item.names())
    jobs = []
    for item in found:
        names = item.names()
        stem = next((name for name in names if claims[sameness(name)] == 1), None)
        if stem is None:
            numbered = (names[-1].with_name(f"{names[-1].name}-{number}") for number in itertools.count(2))
            stem = next(name for name in numbered if not claims[sameness(name)])
            claims[sameness(stem)] += 1
        jobs.append(Job(item.source, stem))
    return jobs


def unfinished(
    jobs: Sequence[Job], out: Path, settings: Settings, *, resume: bool = False, overwrite: bool = False
) -> list[Job]:
    """Choose what is to be done, and refuse before any work if a result is in the way.

    Args:
        jobs: From ``find_images``.
        out: The output folder, made where needed.
        settings: What is asked of every image.
        resume: Leave out images whose files are all there, made from the same image with the same settings.
        overwrite: Results that exist may be replaced; with ``resume`` those that are not complete.
    Returns:
        The jobs that are to be done, in order.
    Raises:
        SaveError: If the folder cannot be made; if a result exists and neither ``resume`` nor ``overwrite`` is set;
            or if, resuming, a result belongs to another image.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f"cannot make the folder {out} ({error.strerror}): choose another with -o.") from error
    if resume:
        jobs = [job for job in jobs if not _is_complete(job, out, settings)]
    if overwrite:
        return list(jobs)
    present = [file for job in jobs for file in _in_the_way(job, out, settings, resume)]
    if present:
        others = f" (and {len(present) - 1} more)" if len(present) > 1 else ""
        instead = "belongs to another image" if resume else "exists"
        keep = "" if resume else "--resume keeps what is complete, "
        raise SaveError(f"{present[0]} {instead}{others}: {keep}--overwrite replaces it, -o takes another folder.")
    return list(jobs)


def _is_complete(job: Job, out: Path, settings: Settings) -> bool:
    facts = _read_sidecar(job, out)
    return (
        facts is not None
        and _is_of(job, out, facts)
        and facts["settings"] == settings.facts()
        and set(settings.formats) <= set(facts["files"])
        and all(file.is_file() for file in job.files(out, settings.formats))
    )


def _in_the_way(job: Job, out: Path, settings: Settings, resume: bool) -> list[Path]:
    if resume:
        facts = _read_sidecar(job, out)
        return [] if facts is None or _is_of(job, out, facts) else [job.sidecar(out)]
    return [file for file in job.files(out, settings.formats) if os.path.lexists(file)]


def _is_of(job: Job, out: Path, facts: dict[str, Any]) -> bool:
    recorded = facts["image"]
    if is_url(job.source):
        return bool(recorded == job.source)
    return absolute(job.sidecar(out).parent / recorded) == absolute(job.source)


def _image_path(job: Job, out: Path) -> str:
    """Seen from the sidecar, so that it holds from any working folder."""
    return job.source if is_url(job.source) else os.path.relpath(job.source, job.sidecar(out).parent)


def _read_sidecar(job: Job, out: Path) -> dict[str, Any] | None:
    """What an earlier run wrote beside its files; None where it is missing, broken or not ours."""
    try:
        facts = json.loads(job.sidecar(out).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(facts, dict):
        return None
    parts = {"image": str, "settings": dict, "files": dict}
    return facts if all(isinstance(facts.get(name), kind) for name, kind in parts.items()) else None


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
        settings: What is asked of every image. A JSON sidecar is written beside the formats, last.
        batch_size: Images that the network sees at once.
        overwrite: Replace results that exist.
    Yields:
        One outcome a job, in order.
    Raises:
        OptionError: If the batch size or the input size cannot work.
    """
    waiting = deque(jobs)
    written: deque[Outcome | Future[Outcome]] = deque()

    def fail(_: ImageSource, error: ImageError) -> None:
        written.append(Outcome(waiting.popleft().source, error=error))

    def open_checked() -> DepthModel:
        model = open_model()
        model.check_input_size(settings.input_size)
        return model

    results = predict_stream(
        open_checked,
        [job.source for job in waiting],
        batch_size=batch_size,
        input_size=settings.input_size,
        on_error=fail,
    )
    with _writers() as writers:
        for number, result in enumerate(results):
            if number % TRIM_EVERY == TRIM_EVERY - 1:
                _trim_heap()
            written.append(writers.submit(_write, waiting.popleft(), result, out, settings, overwrite))
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


def _write(job: Job, result: DepthResult, out: Path, settings: Settings, overwrite: bool) -> Outcome:
    outputs = job.outputs(out, settings.formats)
    names = {name: file.name for name, file in outputs.items()}
    facts = {**result.sidecar(), "image": _image_path(job, out), "settings": settings.facts(), "files": names}
    text = json.dumps(facts, indent=2, allow_nan=False) + "\n"
    try:
        if overwrite:
            _remove(job.sidecar(out))  # while files are replaced, nothing says that they are complete
        for name, file in outputs.items():
            if name != "json":
                result.save(file, format=name, overwrite=overwrite, cmap=settings.cmap)
        atomic_write(job.sidecar(out), lambda stream: _write_text(stream, text), overwrite=overwrite)
    except SaveError as error:
        return Outcome(job.source, error=error)
    return Outcome(job.source, tuple(job.files(out, settings.formats)), facts)


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise SaveError(f"cannot replace {file}: {error.strerror}. Check its folder.") from error


def _write_text(stream: BinaryIO, text: str) -> None:
    stream.write(text.encode())
