"""Which images a path stands for: files, folders, patterns, addresses, and lists of these."""

import glob
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mlx_depth.errors import ImageError, OptionError
from mlx_depth.io.image import LoadedImage

STDIN = "-"
# What is taken from a folder or a pattern; a file that is named outright may be called anything.
# fmt: off
IMAGE_SUFFIXES = frozenset([
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".j2k", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm",
    ".png", ".ppm", ".tif", ".tiff", ".webp",
])
# fmt: on


@dataclass(frozen=True)
class Failed:
    """A path that stands for no image."""

    path: str
    error: ImageError


def find(paths: Sequence[str], *, recursive: bool = False, skip: Path | None = None) -> Iterator["Found | Failed"]:
    """List the images that paths stand for.

    Args:
        paths: Image files, folders, URLs, glob patterns, ``-`` (a list on stdin), and ``.txt`` files with one of these
            a line (seen from the working folder; lines that begin with ``#`` are comments). From folders and patterns,
            visible files with a suffix of ``IMAGE_SUFFIXES`` are taken.
        recursive: Look into folders within folders.
        skip: A folder that is left out, such as that of the results.
    Yields:
        Each image once, in the order of the paths and by name within a folder; an error for what stands for nothing.
    Raises:
        OptionError: If ``skip`` is one of the paths.
    """
    finder = _Finder(recursive, skip.resolve() if skip is not None else None)
    seen: set[str] = set()
    for item in itertools.chain.from_iterable(map(finder.find, paths)):
        if isinstance(item, Found):
            place = item.source if is_url(item.source) else absolute(item.source)
            if place in seen:
                continue
            seen.add(place)
        yield item


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


@dataclass(frozen=True)
class Found:
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

    def find(self, path: str, *, in_list: bool = False) -> Iterator[Found | Failed]:
        """The images that one path stands for, or one error."""
        try:
            yield from self._expand(path, in_list)
        except ImageError as error:
            yield Failed(path, error)
        except (OSError, RuntimeError) as error:  # no access, a name too long, ~ of nobody
            yield Failed(path, ImageError(f"{path} cannot be read ({error}): check the path."))

    def _expand(self, path: str, in_list: bool) -> Iterator[Found | Failed]:
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

    def _listed(self, lines: list[str], where: str) -> Iterator[Found | Failed]:
        if not lines:
            raise ImageError(f"{where} is empty: write one path a line.")
        if not any(_leads_somewhere(line) for line in lines):
            raise ImageError(
                f"{where} is no list of images, none of its lines leads to a file (the first is {lines[0]!r:.60}): "
                "write one path a line, seen from the working folder, or leave it out."
            )
        for line in lines:
            yield from self.find(line, in_list=True)

    def _named_folder(self, folder: Path) -> Iterator[Found]:
        if folder.resolve() == self.skip:
            raise OptionError(f"{folder} is both input and output: choose another output folder with -o.")
        files = self._in_folder(folder, folder)
        if not files:
            deeper = "" if self.recursive else ", or add --recursive to look into its folders"
            raise ImageError(f"{folder} holds no image: check the path{deeper}.")
        yield from files

    def _in_folder(self, folder: Path, base: Path) -> list[Found]:
        files = sorted(folder.glob("**/*" if self.recursive else "*"))
        return [_below(file, base) for file in files if self._is_image(file, base)]

    def _matches(self, pattern: Path) -> Iterator[Found]:
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


def is_url(path: str) -> bool:
    return "://" in path


def absolute(path: str | Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100  # resolve() would give a link the name of its target


def _below(file: Path, base: Path) -> Found:
    """A file that a folder or a pattern led to: it keeps its place below the fixed part of the path."""
    name = file.relative_to(base)
    return _named_file(file) if ".." in name.parts else Found(str(file), name, base.resolve().name)


def _named_file(file: Path) -> Found:
    return Found(str(file), Path(file.name), Path(absolute(file)).parent.name)


def _named_url(url: str) -> Found:
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
        raise ImageError(f"{file} is not a list of paths ({error}): save it as UTF-8 text.") from error


def _wanted_lines(text: str) -> list[str]:
    """Without comments and empty lines."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _leads_somewhere(line: str) -> bool:
    try:
        return is_url(line) or glob.has_magic(line) or Path(line).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False
