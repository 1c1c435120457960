"""Which images a path stands for: files, folders, patterns, addresses, and lists of these."""

import enum
import glob
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote

from mlx_depth.errors import ImageError, OptionError, printable
from mlx_depth.io.image import LoadedImage
from mlx_depth.io.names import fitting
from mlx_depth.io.ours import results_in
from mlx_depth.io.signature import HEADER_BYTES, is_image
from mlx_depth.io.sources import is_data_uri, is_url
from mlx_depth.io.walk import each_once, files_in, folders_below, folders_in, matches

STDIN = "-"
# A file in a folder or of a pattern with one of these suffixes is meant, damaged or not; of the others the first bytes
# decide, and one that is named outright may be called anything.
# fmt: off
IMAGE_SUFFIXES = frozenset([
    ".apng", ".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpf",
    ".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
])
_RAW_SUFFIXES = frozenset([".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"])
# fmt: on


class Reason(enum.Enum):
    """Why something in a folder or of a pattern is no photo to predict; the words follow a count."""

    NO_IMAGE = "no image"
    RAW = "camera raw, to be exported as JPEG or TIFF first"
    FOLDER = "in a folder of its own (--recursive looks into it)"
    UNREADABLE = "not readable"


class LeftOut(NamedTuple):
    """A file or folder that a folder or a pattern led to, and that is not taken."""

    path: str
    reason: Reason


class Failed(NamedTuple):
    """A path that stands for no image."""

    path: str
    error: ImageError


def find(paths: Sequence[str], *, recursive: bool = False, skip: Path | None = None) -> Iterator["Item"]:
    """List the images that paths stand for.

    Args:
        paths: Image files, folders, URLs, glob patterns, ``-`` (a list on stdin), and ``.txt`` files with one of these
            a line (seen from the working folder; lines that begin with ``#`` are comments). From folders and patterns
            visible images are taken, by suffix or by content; links to folders are followed.
        recursive: Look into folders within folders.
        skip: A folder that is left out, such as that of the results.
    Yields:
        Each image once, in the order of the paths and by name within a folder; an error for what stands for nothing;
        and what lies beside the images and is left out.
    Raises:
        OptionError: If ``skip`` is one of the paths.
    """
    finder = _Finder(recursive, skip.resolve() if skip is not None else None)
    seen: set[tuple[type, str]] = set()
    for item in itertools.chain.from_iterable(map(finder.find, paths)):
        if isinstance(item, Failed) or _is_new(item, seen):
            yield item


def left_out_line(items: Iterable[LeftOut]) -> str | None:
    """Say how many were left out and why, in one line; None where there are none."""
    of_reason: dict[Reason, list[str]] = {}
    for item in items:
        of_reason.setdefault(item.reason, []).append(item.path)
    parts = []
    for reason in Reason:
        paths = of_reason.get(reason, [])
        if paths:
            suffixes = sorted({Path(path).suffix.lower() for path in paths} - {""})
            named = " ".join(map(printable, suffixes[:5])) if reason in (Reason.NO_IMAGE, Reason.RAW) else ""
            parts.append(f"{len(paths)} {reason.value}{f' ({named})' * bool(named)}")
    return f"left out: {'; '.join(parts)}" if parts else None


def _is_new(item: "Found | LeftOut", seen: set[tuple[type, str]]) -> bool:
    """Whether it comes for the first time, by whatever path; takes note of it."""
    name = item.source if isinstance(item, Found) else item.path
    place = (type(item), name if is_url(name) else absolute(name))
    known = place in seen
    seen.add(place)
    return not known


def are_many(image: Any) -> bool:
    """Whether what ``predict`` was given are several images: a list, an iterator, a folder or a pattern."""
    if isinstance(image, (str, Path)):
        text = str(image)
        return not is_url(text) and _is_folder_or_pattern(text)
    if isinstance(image, (bytes, bytearray, memoryview, LoadedImage)) or hasattr(image, "read"):
        return False
    return isinstance(image, (Sequence, Iterator))


def _is_folder_or_pattern(text: str) -> bool:
    try:
        place = Path(text).expanduser()
        return place.is_dir() or (glob.has_magic(text) and not place.exists())
    except (OSError, RuntimeError, ValueError):
        return False


def find_photos(place: str | Path) -> list[str]:
    """The images in a folder or of a pattern, by name.

    Raises:
        ImageError: If there are none.
    """
    found = list(find([str(place)]))
    failed = next((item for item in found if isinstance(item, Failed)), None)
    if failed is not None:
        raise failed.error
    return [item.source for item in found if isinstance(item, Found)]


class Found(NamedTuple):
    source: str
    name: Path  # below the folder that was searched
    folder: str  # name of that folder, or host of a URL

    def names(self) -> list[Path]:
        """Stems that would do, the plainest first."""
        plain, whole = (self.name.with_name(fitting(name)) for name in (self.name.stem, self.name.name))
        inside = Path(self.folder)
        return list(dict.fromkeys([plain, whole, inside / plain, inside / whole]))


Item: TypeAlias = Found | Failed | LeftOut


@dataclass(frozen=True)
class _Finder:
    recursive: bool
    skip: Path | None  # resolved output folder
    ours: Callable[[Path], set[str]] = field(default_factory=lambda: cache(results_in))

    def find(self, path: str, *, in_list: bool = False) -> Iterator[Item]:
        """The images that one path stands for, or one error."""
        try:
            yield from self._expand(path, in_list)
        except ImageError as error:
            yield Failed(path, error)
        except (OSError, RuntimeError) as error:  # no access, a name too long, ~ of nobody
            reason = printable(getattr(error, "strerror", None) or error)
            yield Failed(path, ImageError(f"{printable(path)} cannot be read ({reason}): check the path."))

    def _expand(self, path: str, in_list: bool) -> Iterator[Item]:
        if not path:
            raise ImageError("a path is empty: check the command.")
        if path == STDIN and not in_list:
            yield from self._listed(_wanted_lines(sys.stdin.read()), "standard input")
            return
        if is_url(path):
            yield _named_url(path)
            return
        place = Path(path).expanduser()
        if place.is_dir():
            yield from self._named_folder(place)
        elif place.suffix.lower() == ".txt" and place.is_file() and not in_list:
            yield from self._listed(_lines(place), path)
        elif place.exists() or not glob.has_magic(path):
            yield _named_file(place)  # one that is missing is reported when it is loaded
        else:
            yield from self._matches(place)

    def _listed(self, lines: list[str], where: str) -> Iterator[Item]:
        if not lines:
            raise ImageError(f"{printable(where)} is empty: write one path a line.")
        if not any(_leads_somewhere(line) for line in lines):
            raise ImageError(
                f"{printable(where)} is no list of images, none of its lines leads to a file (the first is "
                f"{printable(lines[0])!r:.60}): "
                "write one path a line, seen from the working folder, or leave it out."
            )
        for line in lines:
            yield from self.find(line, in_list=True)

    def _named_folder(self, folder: Path) -> Iterator[Item]:
        if folder.resolve() == self.skip:
            raise OptionError(f"{printable(folder)} is both input and output: choose another output folder with -o.")
        items = self._in_folder(folder, folder)
        if not any(isinstance(item, Found) for item in items):
            deeper = "" if self.recursive else ", or add --recursive to look into its folders"
            raise ImageError(f"{printable(folder)} holds no image: check the path{deeper}.")
        yield from items

    def _in_folder(self, folder: Path, base: Path) -> list[Item]:
        if not self.recursive:
            deeper = [self._left_out(inner, base, Reason.FOLDER) for inner in folders_in(folder)]
            return [*self._sorted_out(files_in(folder), base), *filter(None, deeper)]
        places = list(folders_below(folder))
        closed = [LeftOut(str(place), Reason.UNREADABLE) for place in places if not os.access(place, os.R_OK | os.X_OK)]
        return [*self._sorted_out(sorted(file for place in places for file in files_in(place)), base), *closed]

    def _matches(self, pattern: Path) -> Iterator[Item]:
        base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
        found = list(matches(base, pattern.parts[len(base.parts) :]))
        places = each_once(found)
        items: list[Item] = list(self._sorted_out([place for place in places if not place.is_dir()], base))
        for folder in places:
            if folder.is_dir() and folder.resolve() != self.skip:
                items += self._in_folder(folder, base)
        taken = set(each_once(Path(item.source) for item in items if isinstance(item, Found)))
        if not taken:
            raise ImageError(f"no image matches {printable(pattern)}: check the pattern.")
        # A folder that matches, too, is not left out of the one above it.
        matched = {LeftOut(str(place), Reason.FOLDER) for place in found}
        for item in items:
            if (Path(item.source) in taken) if isinstance(item, Found) else (item not in matched):
                yield item

    def _sorted_out(self, files: Iterable[Path], base: Path) -> Iterator[Item]:
        """Files that nobody named: the images among them, and the others."""
        for file in files:
            reason = _why_not(file)
            if reason is not None:
                left_out = self._left_out(file, base, reason)
                if left_out is not None:
                    yield left_out
            elif self._is_wanted(file, base):
                yield _below(file, base)

    def _left_out(self, place: Path, base: Path, reason: Reason) -> LeftOut | None:
        return LeftOut(str(place), reason) if self._is_wanted(place, base) else None

    def _is_wanted(self, place: Path, below: Path) -> bool:
        """Whether it is visible and none of our results: the output folder may lie within the searched one."""
        if any(part.startswith(".") and part != ".." for part in place.relative_to(below).parts):
            return False
        if place.name in self.ours(place.parent):
            return False
        if self.skip is None or below.resolve() not in self.skip.parents:
            return True
        return self.skip not in [real := place.resolve(), *real.parents]


def _why_not(file: Path) -> Reason | None:
    """Why a file is not taken; None where it is an image, by its suffix or by its first bytes."""
    try:
        if not file.is_file():
            return Reason.NO_IMAGE
        if file.suffix.lower() in IMAGE_SUFFIXES:
            return None
        if file.suffix.lower() in _RAW_SUFFIXES:
            return Reason.RAW
        with file.open("rb") as stream:
            return None if is_image(stream.read(HEADER_BYTES)) else Reason.NO_IMAGE
    except OSError:
        return Reason.UNREADABLE


def absolute(path: str | Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100  # resolve() would give a link the name of its target


def _below(file: Path, base: Path) -> Found:
    """A file that a folder or a pattern led to: it keeps its place below the fixed part of the path."""
    name = file.relative_to(base)
    return _named_file(file) if ".." in name.parts else Found(str(file), name, base.resolve().name)


def _named_file(file: Path) -> Found:
    return Found(str(file), Path(file.name), Path(absolute(file)).parent.name)


def _named_url(url: str) -> Found:
    if is_data_uri(url):
        return Found(url, Path("image"), "data")
    host, _, place = url.partition("://")[2].partition("/")
    name = Path(unquote(re.split("[?#]", place)[0])).name
    return Found(url, Path(_plain(name) or "image"), _plain(host.rpartition("@")[2]))


def _plain(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^\w. -]", "_", name).strip(". ")


def _lines(file: Path) -> list[str]:
    try:
        return _wanted_lines(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ImageError(f"{printable(file)} is not a list of paths ({error}): save it as UTF-8 text.") from error


def _wanted_lines(text: str) -> list[str]:
    """Without comments and empty lines."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _leads_somewhere(line: str) -> bool:
    try:
        return is_url(line) or glob.has_magic(line) or Path(line).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False
