"""Folders of photos to folders of results: finding images, naming outputs, skipping what is done."""

import glob
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from mlx_depth.colormaps import colormap_table
from mlx_depth.errors import ImageError, MlxDepthError, OptionError, SaveError
from mlx_depth.image import ImageSource
from mlx_depth.predictor import DepthModel
from mlx_depth.processor import InputSize
from mlx_depth.result import DepthResult
from mlx_depth.save import FORMATS, atomic_write, save, sidecar

DEFAULT_FORMATS = ("npy", "color")
# What is taken from a folder; a file that is named outright may be called anything.
IMAGE_SUFFIXES = frozenset(
    [".avif", ".bmp", ".gif", ".heic", ".heif", ".j2k", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm"]
    + [".png", ".ppm", ".tif", ".tiff", ".webp"]
)
# Formats that share a suffix with another get their name into the file name.
_NAMED = {"png16": "_depth", "color": "_color", "gray": "_gray", "side-by-side": "_side-by-side"}


@dataclass(frozen=True)
class Job:
    """One image and where its results go."""

    source: str  # path or URL
    stem: Path  # relative to the output folder, without a suffix

    def outputs(self, out: Path, formats: Iterable[str]) -> dict[str, Path]:
        """Format → file."""
        return {name: self._file(out, _NAMED.get(name, "") + FORMATS[name][0]) for name in formats}

    def sidecar(self, out: Path) -> Path:
        """The JSON that is written last, and so proves that the others are whole."""
        return self._file(out, ".json")

    def _file(self, out: Path, ending: str) -> Path:
        return out / self.stem.with_name(self.stem.name + ending)


@dataclass(frozen=True)
class Outcome:
    """What became of one image: files and their sidecar, an error, or neither where it was done before."""

    job: Job
    files: tuple[Path, ...] = ()
    sidecar: dict[str, object] | None = None
    error: MlxDepthError | None = None


def find_images(paths: Sequence[str], *, recursive: bool = False, out: Path | None = None) -> list[Job]:
    """List the images that paths stand for.

    Args:
        paths: Image files, folders, URLs, glob patterns, and ``.txt`` files with one of these a line.
        recursive: Look into folders within folders; their names are kept below the output folder.
        out: The output folder, which is left out where it lies inside an input folder.
    Returns:
        One job an image, each once, in the order of the paths and by name within a folder. Images of one stem
        (``a.jpg`` and ``a.png``) keep their suffix in the names of their results.
    Raises:
        ImageError: If a path does not exist or holds no image.
        OptionError: If the output folder is an input folder: its pictures would become input.
    """
    skip = out.resolve() if out is not None else None
    found: dict[str, Path] = {}
    for path in paths:
        for source, stem in _expand(path, recursive, skip):
            found.setdefault(source, stem)
    counts = Counter(_without_suffix(name) for name in found.values())
    return [
        Job(source, name if counts[_without_suffix(name)] > 1 else _without_suffix(name))
        for source, name in found.items()
    ]


def _without_suffix(name: Path) -> Path:
    return name.with_name(name.stem)


def _expand(path: str, recursive: bool, skip: Path | None) -> Iterator[tuple[str, Path]]:
    """Source and relative name of each image; folders keep their inner structure."""
    if "://" in path:
        yield path, Path(Path(unquote(urlsplit(path).path)).name or "image")
        return
    place = Path(path).expanduser()
    if place.is_dir():
        yield from _in_folder(place, recursive, skip)
    elif place.suffix.lower() == ".txt" and place.is_file():
        for line in _lines(place):
            yield from _expand(line, recursive, skip)
    elif place.exists() or not glob.has_magic(path):
        yield str(place), Path(place.name)  # one that is missing is reported by name, and the others are done
    else:
        matches = sorted(glob.glob(str(place), recursive=True))  # noqa: PTH207
        if not matches:
            raise ImageError(f"nothing matches {path}: check the pattern.")
        for match in matches:
            yield from _expand(match, recursive, skip)


def _in_folder(folder: Path, recursive: bool, skip: Path | None) -> Iterator[tuple[str, Path]]:
    if skip is not None and folder.resolve() == skip:
        raise OptionError(f"{folder} is both input and output: choose another output folder with -o.")
    files = sorted(
        file
        for file in folder.glob("**/*" if recursive else "*")
        if file.suffix.lower() in IMAGE_SUFFIXES
        and file.is_file()
        and not file.name.startswith(".")
        and (skip is None or skip not in file.resolve().parents)
    )
    if not files:
        deeper = "" if recursive else " (--recursive looks into its folders)"
        raise ImageError(f"{folder} holds no image{deeper}: check the path.")
    for file in files:
        yield str(file), file.relative_to(folder)


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"{file} is not a readable list of paths ({error}): save it as UTF-8 text.") from error
    return [line for line in lines if line]


def check_outputs(
    jobs: Sequence[Job], out: Path, formats: Sequence[str], cmap: str, *, resume: bool, overwrite: bool
) -> None:
    """Raise before any work if a format or colour map does not exist, or a result is in the way.

    Raises:
        OptionError: On an unknown format or colour map.
        SaveError: If an output exists and neither ``resume`` nor ``overwrite`` is set.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise OptionError(f"no format {', '.join(unknown) or 'given'}: choose from {', '.join(FORMATS)}.")
    colormap_table(cmap)
    if resume or overwrite:
        return
    present = [
        file for job in jobs for file in (*job.outputs(out, formats).values(), job.sidecar(out)) if file.exists()
    ]
    if present:
        others = f" (and {len(present) - 1} more)" if len(present) > 1 else ""
        raise SaveError(
            f"{present[0]} exists{others}: --resume keeps what is complete, --overwrite replaces it, "
            "-o takes another folder."
        )


def predict_files(
    model: DepthModel,
    jobs: Sequence[Job],
    out: Path,
    *,
    formats: Sequence[str] = DEFAULT_FORMATS,
    cmap: str = "Spectral_r",
    batch_size: int = 1,
    input_size: InputSize | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Iterator[Outcome]:
    """Predict images and write their results; a bad image is an outcome, not the end.

    Args:
        model: The loaded model.
        jobs: From ``find_images``.
        out: Output folder, made where needed.
        formats: Names from ``save.FORMATS``. A JSON sidecar is written beside them, last.
        cmap: Colour map of the coloured formats.
        batch_size: Images that the network sees at once.
        input_size: As for ``DepthModel.predict``.
        resume: Skip an image whose sidecar was written by the same model for at least these formats.
        overwrite: Replace results that exist.
    Yields:
        One outcome a job: first those already complete, then the others in order.
    Raises:
        OptionError: On an unknown format or colour map, or an input size that cannot work.
        SaveError: If an output exists and neither ``resume`` nor ``overwrite`` is set.

    Proved by ``tests/test_cli.py``.
    """
    check_outputs(jobs, out, formats, cmap, resume=resume, overwrite=overwrite)
    complete = {job for job in jobs if resume and _is_complete(job, out, formats, model.spec.name)}
    yield from (Outcome(job) for job in jobs if job in complete)
    waiting = deque(job for job in jobs if job not in complete)
    failed: list[Outcome] = []

    def fail(_: ImageSource, error: ImageError) -> None:
        failed.append(Outcome(waiting.popleft(), error=error))

    sources = [job.source for job in waiting]
    for result in model.predict_batch(sources, batch_size=batch_size, input_size=input_size, on_error=fail):
        yield from failed
        failed.clear()
        yield _write(waiting.popleft(), result, out, formats, cmap, resume or overwrite)
    yield from failed


def _write(job: Job, result: DepthResult, out: Path, formats: Sequence[str], cmap: str, overwrite: bool) -> Outcome:
    files = job.outputs(out, formats)
    facts = {**sidecar(result), "files": {name: file.name for name, file in files.items()}}
    text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    try:
        job.sidecar(out).unlink(missing_ok=True)  # while files are replaced, nothing says that they are complete
        for name, file in files.items():
            if name != "json":
                save(result, file, format=name, overwrite=overwrite, cmap=cmap)
        atomic_write(job.sidecar(out), lambda stream: _write_text(stream, text), overwrite=overwrite)
    except SaveError as error:
        return Outcome(job, error=error)
    return Outcome(job, (*files.values(), job.sidecar(out)), facts)


def _write_text(stream: BinaryIO, text: str) -> None:
    stream.write(text.encode())


def _is_complete(job: Job, out: Path, formats: Sequence[str], model: str) -> bool:
    try:
        facts = json.loads(job.sidecar(out).read_text(encoding="utf-8"))
        same = facts["model"] == model and set(formats) <= set(facts["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return same and all(file.is_file() for file in job.outputs(out, formats).values())
