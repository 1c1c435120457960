"""Files and folders below a folder or of a pattern: by name, through links, and without end only where the disk is."""

import fnmatch
import glob
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path


def files_in(folder: Path) -> list[Path]:
    """What lies in a folder and is no folder, visible, by name; nothing where it may not be read."""
    return [entry for entry in _entries(folder) if not entry.is_dir()]


def folders_in(folder: Path) -> list[Path]:
    """The visible folders in a folder, links to folders too, by name."""
    return [entry for entry in _entries(folder) if entry.is_dir()]


def folders_below(folder: Path) -> Iterator[Path]:
    """A folder and all visible ones below it, through links; each once, so that links in circles end.

    What can be reached without links keeps the name that it has there.
    """
    seen: set[str] = set()
    real, linked = deque([folder]), deque[Path]()
    while real or linked:
        here = real.popleft() if real else linked.popleft()
        place = os.path.realpath(here)
        if place in seen:
            continue
        seen.add(place)
        yield here
        for inner in folders_in(here):
            (linked if inner.is_symlink() else real).append(inner)


def matches(base: Path, parts: Sequence[str]) -> Iterator[Path]:
    """What a pattern leads to: ``*``, ``?`` and ``[]`` within a name, ``**`` for any number of folders.

    Args:
        base: The folder that the pattern starts in.
        parts: The pattern, name by name.
    Yields:
        Files and folders that exist; one may come twice.
    """
    if not parts:
        yield base
        return
    name, rest = parts[0], parts[1:]
    if name == "**":
        for folder in folders_below(base):
            yield from matches(folder, rest)
    elif glob.has_magic(name):
        shown = _entries(base, hidden=name.startswith("."))
        for entry in shown:
            if fnmatch.fnmatchcase(entry.name, name) and (not rest or entry.is_dir()):
                yield from matches(entry, rest)
    elif os.path.lexists(base / name):
        yield from matches(base / name, rest)


def each_once(places: Iterable[Path]) -> list[Path]:
    """Places by name, each once: where links lead to one in several ways, the way without a link is kept."""
    real: dict[Path, str] = {}  # of a folder

    def real_folder(folder: Path) -> str:
        return real[folder] if folder in real else real.setdefault(folder, os.path.realpath(folder))

    def way(place: Path) -> tuple[bool, Path]:
        return real_folder(place.parent) != os.path.abspath(place.parent), place  # noqa: PTH100  # keeps links

    chosen: dict[str, Path] = {}
    for place in sorted(places, key=way):
        folder = place.is_dir()
        chosen.setdefault(real_folder(place) if folder else f"{real_folder(place.parent)}/{place.name}", place)
    return sorted(chosen.values())


def _entries(folder: Path, *, hidden: bool = False) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208  # by name, and half the time of iterdir
    except OSError:
        return []
    return [folder / name for name in names if hidden or not name.startswith(".")]
