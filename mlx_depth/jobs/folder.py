"""Folders of photos to folders of results: finding images, naming outputs, skipping what is done."""

import ctypes
import glob
import importlib.util
import itertools
import json
import os
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from mlx_depth.errors import ImageError, MlxDepthError, OptionError, SaveError
from mlx_depth.io.colormaps import colormap_table
from mlx_depth.io.image import ImageSource
from mlx_depth.io.save import FORMATS, atomic_write, save, sidecar
from mlx_depth.predictor import DepthModel, predict_stream
from mlx_depth.processor import InputSize
from mlx_depth.result import DepthResult

DEFAULT_FORMATS = ("npy", "color")
WRITING_THREADS = 4  # packing a PNG takes longer than a small network on a GPU
TRIM_EVERY = 50  # images
# What is taken from a folder or a pattern; a file that is named outright may be called anything.
# fmt: off
IMAGE_SUFFIXES = frozenset([
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".j2k", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm",
    ".png", ".ppm", ".tif", ".tiff", ".webp",
])
# fmt: on
# Formats that share a suffix with another get their name into the file name.
_NAMED = {"png16": "_depth", "color": "_color", "gray": "_gray", "side-by-side": "_side-by-side"}


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
        return {name: self._file(out, _NAMED.get(name, "") + FORMATS[name][0]) for name in formats}

    def sidecar(self, out: Path) -> Path:
        """The JSON that is written last, and so proves that the others are whole."""
        return self._file(out, ".json")

    def files(self, out: Path, formats: Sequence[str]) -> list[Path]:
        """All that is written for the image, the sidecar last."""
        return [*self.outputs(out, [name for name in formats if name != "json"]).values(), self.sidecar(out)]

    def _file(self, out: Path, ending: str) -> Path:
        return out / self.stem.with_name(self.stem.name + ending)


@dataclass(frozen=True)
class Outcome:
    """What became of one image: files and their sidecar, or an error."""

    image: str  # path or URL
    files: tuple[Path, ...] = ()
    sidecar: dict[str, Any] | None = None
    error: MlxDepthError | None = None


def find_images(
    paths: Sequence[str], *, recursive: bool = False, out: Path | None = None
) -> tuple[list[Job], list[Outcome]]:
    """List the images that paths stand for.

    Args:
        paths: Image files, folders, URLs, glob patterns, and ``.txt`` files with one of these a line (seen from the
            working folder). From folders and patterns, visible files with a suffix of ``IMAGE_SUFFIXES`` are taken.
        recursive: Look into folders within folders; their names are kept below the output folder.
        out: The output folder, which is left out where it lies inside an input folder.
    Returns:
        One job an image, each once, in the order of the paths and by name within a folder; and an error for each
        path that stands for nothing. No two jobs have the same ``stem``: an image keeps its suffix (``a.jpg`` beside
        ``a.png``), or gets the name of its folder before it, where it would share the name of another.
    Raises:
        OptionError: If the output folder is an input folder: its pictures would become input.
    """
    finder = _Finder(recursive, out.resolve() if out is not None else None)
    found: dict[str, _Found] = {}
    failed: list[Outcome] = []
    for item in itertools.chain.from_iterable(map(finder.find, paths)):
        if isinstance(item, Outcome):
            failed.append(item)
        else:
            found.setdefault(item.source if _is_url(item.source) else _absolute(item.source), item)
    return _jobs(list(found.values())), failed


@dataclass(frozen=True)
class _Found:
    source: str
    name: Path  # below the folder that was searched
    folder: str  # name of that folder, or host of a URL

    def names(self) -> list[Path]:
        """Stems that would do, the plainest first."""
        plain, inside = self.name.with_name(self.name.stem), Path(self.folder)
        return list(dict.fromkeys([plain, self.name, inside / plain, inside / self.name]))


@dataclass(frozen=True)
class _Finder:
    recursive: bool
    skip: Path | None  # resolved output folder

    def find(self, path: str, *, in_list: bool = False) -> Iterator[_Found | Outcome]:
        """The images that one path stands for, or one error."""
        try:
            yield from self._expand(path, in_list)
        except ImageError as error:
            yield Outcome(path, error=error)
        except (OSError, RuntimeError) as error:  # no access, a name too long, ~ of nobody
            yield Outcome(path, error=ImageError(f"{path} cannot be read ({error}): check the path."))

    def _expand(self, path: str, in_list: bool) -> Iterator[_Found | Outcome]:
        if not path:
            raise ImageError("a path is empty: check the command.")
        if _is_url(path):
            yield _named_url(path)
            return
        place = Path(path).expanduser()
        if place.is_dir():
            yield from self._named_folder(place)
        elif place.suffix.lower() == ".txt" and place.is_file() and not in_list:
            for line in _lines(place):
                yield from self.find(line, in_list=True)
        elif place.exists() or not glob.has_magic(path):
            yield _named_file(place)  # one that is missing is reported when it is loaded
        else:
            yield from self._matches(place)

    def _named_folder(self, folder: Path) -> Iterator[_Found]:
        if folder.resolve() == self.skip:
            raise OptionError(f"{folder} is both input and output: choose another output folder with -o.")
        files = self._in_folder(folder, folder)
        if not files:
            deeper = "" if self.recursive else ", or add --recursive to look into its folders"
            raise ImageError(f"{folder} holds no image: check the path{deeper}.")
        yield from files

    def _in_folder(self, folder: Path, base: Path) -> list[_Found]:
        files = sorted(folder.glob("**/*" if self.recursive else "*"))
        return [_below(file, base) for file in files if self._is_image(file, base)]

    def _matches(self, pattern: Path) -> Iterator[_Found]:
        base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
        matches = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207
        found = [_below(match, base) for match in matches if self._is_image(match, base)]
        for folder in matches:
            if folder.is_dir() and folder.resolve() != self.skip:
                found += self._in_folder(folder, base)
        if not found:
            raise ImageError(f"no image matches {pattern}: check the pattern.")
        yield from found

    def _is_image(self, file: Path, below: Path) -> bool:
        """Whether a file that nobody named is meant: a visible image that is not one of our results."""
        return (
            file.suffix.lower() in IMAGE_SUFFIXES
            and not any(part.startswith(".") and part != ".." for part in file.relative_to(below).parts)
            and file.is_file()
            and not self._is_result(file, below)
        )

    def _is_result(self, file: Path, below: Path) -> bool:
        """Whether the output folder lies within the searched one, and the file within the output folder."""
        return self.skip is not None and below.resolve() in self.skip.parents and self.skip in file.resolve().parents


def _is_url(path: str) -> bool:
    return "://" in path


def _absolute(path: str | Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100  # resolve() would give a link the name of its target


def _below(file: Path, base: Path) -> _Found:
    """A file that a folder or a pattern led to: it keeps its place below the fixed part of the path."""
    name = file.relative_to(base)
    return _named_file(file) if ".." in name.parts else _Found(str(file), name, base.resolve().name)


def _named_file(file: Path) -> _Found:
    return _Found(str(file), Path(file.name), Path(_absolute(file)).parent.name)


def _named_url(url: str) -> _Found:
    host, _, place = url.partition("://")[2].partition("/")
    name = Path(unquote(re.split("[?#]", place)[0])).name
    return _Found(url, Path(_plain(name) or "image"), _plain(host.rpartition("@")[2]))


def _plain(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^\w. -]", "_", name).strip(". ")


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ImageError(f"{file} is not a list of paths ({error}): save it as UTF-8 text.") from error
    if not any(lines):
        raise ImageError(f"{file} is empty: write one path a line.")
    return [line for line in lines if line]


def _jobs(found: list[_Found]) -> list[Job]:
    """Give each image the plainest stem that no other could have; volumes of Macs do not tell A from a."""
    claims = Counter(_key(name) for item in found for name in item.names())
    jobs = []
    for item in found:
        names = item.names()
        stem = next((name for name in names if claims[_key(name)] == 1), None)
        if stem is None:
            numbered = (names[-1].with_name(f"{names[-1].name}-{number}") for number in itertools.count(2))
            stem = next(name for name in numbered if not claims[_key(name)])
            claims[_key(stem)] += 1
        jobs.append(Job(item.source, stem))
    return jobs


def _key(name: Path) -> str:
    return str(name).casefold()


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
    if _is_url(job.source):
        return bool(recorded == job.source)
    return _absolute(job.sidecar(out).parent / recorded) == _absolute(job.source)


def _image_path(job: Job, out: Path) -> str:
    """Seen from the sidecar, so that it holds from any working folder."""
    return job.source if _is_url(job.source) else os.path.relpath(job.source, job.sidecar(out).parent)


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
    facts = {**sidecar(result), "image": _image_path(job, out), "settings": settings.facts(), "files": names}
    text = json.dumps(facts, indent=2, allow_nan=False) + "\n"
    try:
        if overwrite:
            _remove(job.sidecar(out))  # while files are replaced, nothing says that they are complete
        for name, file in outputs.items():
            if name != "json":
                save(result, file, format=name, overwrite=overwrite, cmap=settings.cmap)
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
