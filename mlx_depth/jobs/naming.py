"""Which images there are to do, and what their results are called."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mlx_depth.errors import MlxDepthError, OptionError, SaveError
from mlx_depth.io.find import Failed, Found, LeftOut, find
from mlx_depth.io.formats import FORMATS, ending
from mlx_depth.io.names import sameness
from mlx_depth.io.prompt import prompts_of
from mlx_depth.jobs.settings import DEFAULT_FORMATS, Settings


@dataclass(frozen=True)
class Job:
    """One image and where its results go.

    Attributes:
        source: Path or URL.
        stem: Relative to the output folder, without a suffix.
        suffix: That of the one result, where the user has named it; None: each format has its own ending.
        prompt: File of the depth prompt; None: none.
    """

    source: str
    stem: Path
    suffix: str | None = None
    prompt: str | None = None

    def outputs(self, out: Path, formats: Sequence[str]) -> dict[str, Path]:
        """Format → file."""
        return {name: self._file(out, self._ending(name)) for name in formats}

    def sidecar(self, out: Path) -> Path:
        """The JSON beside the results, which says whose they are and that they are whole."""
        return self._file(out, self._ending("json"))

    def files(self, out: Path, formats: Sequence[str]) -> list[Path]:
        """All that is written for the image, the sidecar last."""
        return [*self.outputs(out, [name for name in formats if name != "json"]).values(), self.sidecar(out)]

    def _ending(self, format: str) -> str:
        if self.suffix is not None and self.suffix.lower() in FORMATS[format]:
            return self.suffix
        return ending(format)

    def _file(self, out: Path, end: str) -> Path:
        return out / self.stem.with_name(self.stem.name + end)


@dataclass(frozen=True)
class Outcome:
    """What became of one image: files and their sidecar, or an error; neither where it was complete before."""

    image: str  # path or URL
    files: Mapping[str, Path] = field(default_factory=dict)  # by format
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
        SaveError: If the output folder leads nowhere.
    """
    found: list[Found] = []
    images = Images([], [], [])
    for item in find(paths, recursive=recursive, skip=None if out is None else output_place(out)):
        if isinstance(item, Failed):
            images.failed.append(Outcome(item.path, error=item.error))
        elif isinstance(item, LeftOut):
            images.left_out.append(item)
        else:
            found.append(item)
    images.jobs.extend(_jobs(found))
    return images


def with_prompts(jobs: list[Job], place: Path | None) -> list[Job]:
    """Give each image its depth prompt.

    Args:
        jobs: From ``find_images``.
        place: A file for one image, or a folder of files that are called like the images; None: no prompts.
    Raises:
        OptionError: If there is not one for each image.
    """
    if place is None:
        return jobs
    if not place.expanduser().is_dir() and len(jobs) > 1:
        raise OptionError(f"{place} is no folder, and there are {len(jobs)} images: give a folder of prompts.")
    if place.expanduser().is_dir():
        prompts = prompts_of([job.source for job in jobs], place)
    else:
        prompts = [str(place)] * len(jobs)
    return [dataclasses.replace(job, prompt=prompt) for job, prompt in zip(jobs, prompts, strict=True)]


def output_place(out: str | Path) -> Path:
    """The output folder or file as a path that can be looked up: with ``~`` expanded.

    Raises:
        SaveError: If there is no such user, or links lead in a circle.
    """
    place = Path(out)
    try:
        place = place.expanduser()
        place.resolve()
    except (OSError, RuntimeError) as error:
        raise SaveError(f"{out} leads nowhere ({error}): choose another folder with -o.") from error
    return place


def named_format(out: Path, formats: Sequence[str], jobs: int) -> str | None:
    """Decide whether the output is one file rather than a folder.

    Args:
        out: What the user has named.
        formats: The formats asked for.
        jobs: How many images there are.
    Returns:
        The format of the file: the last asked for that its suffix can hold, or else the one that the suffix stands for.
        None: ``out`` is a folder, as there is not one image, or the suffix is not known, or such a folder exists.
    Raises:
        OptionError: If other formats were asked for than the suffix can hold.
    """
    suffix = out.suffix.lower()
    fitting = [name for name, suffixes in FORMATS.items() if suffix in suffixes]
    if jobs != 1 or not fitting or out.is_dir():
        return None
    asked = [name for name in formats if name in fitting]
    if not asked and tuple(formats) != DEFAULT_FORMATS:
        raise OptionError(f"{out.name} holds {' or '.join(fitting)}, not {', '.join(formats)}: leave --format out.")
    return asked[-1] if asked else fitting[0]


def into_one_file(jobs: list[Job], out: Path, settings: Settings) -> tuple[list[Job], Path, Settings]:
    """The jobs, the output folder and the settings, as they are where ``out`` is one file; else unchanged."""
    format = named_format(out, settings.formats, len(jobs))
    if format is None:
        return jobs, out, settings
    job = dataclasses.replace(jobs[0], stem=Path(out.stem), suffix=out.suffix)
    return [job], out.parent, dataclasses.replace(settings, formats=(format,))


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
