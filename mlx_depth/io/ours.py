"""Telling our results from the user's files: by the JSON sidecars that stand beside them."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_SIDECAR_BYTES = 1 << 20
_PARTS = {"mlx_depth": str, "image": str, "settings": dict, "files": dict}


def read_sidecar(file: Path) -> dict[str, Any] | None:
    """What a run wrote about one image; None where it is missing, broken or not ours.

    A sidecar has the version as ``mlx_depth``, ``image``, ``settings``, and ``files`` (format → name beside it).
    """
    try:
        facts = file.stat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_SIDECAR_BYTES:
            return None
        facts = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    is_ours = isinstance(facts, dict) and all(isinstance(facts.get(name), kind) for name, kind in _PARTS.items())
    return facts if is_ours else None


def named_files(sidecar: dict[str, Any]) -> set[str]:
    """Names beside the sidecar that it claims: what was asked last, and what runs with other formats left."""
    earlier = sidecar.get("earlier_files")
    names = [*sidecar["files"].values(), *(earlier if isinstance(earlier, list) else [])]
    return {name for name in names if isinstance(name, str) and name and Path(name).name == name}


def results_in(folder: Path) -> set[str]:
    """Names of the files in a folder that sidecars of ours claim, with the sidecars themselves."""
    return {name for file in _sidecars(folder) for name in _claimed(file)}


def _sidecars(folder: Path) -> Iterator[Path]:
    try:
        yield from (file for file in folder.iterdir() if file.suffix.lower() == ".json")
    except OSError:
        return


def _claimed(file: Path) -> set[str]:
    facts = read_sidecar(file)
    return set() if facts is None else {file.name} | named_files(facts)
