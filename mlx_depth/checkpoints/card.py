"""What the model card beside the weights says: the front matter of its README.md."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from mlx_depth.errors import CheckpointError
from mlx_depth.weights.first_bytes import check_regular

NAME = "README.md"
MAX_FRONT_MATTER = 64 << 10  # bytes; the Hub's longest cards have a few
_FRONT_MATTER = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_LICENSE = re.compile(r"[\w][\w.+-]{0,60}", re.ASCII)
_REPO = re.compile(r"[\w][\w.-]{0,95}(/[\w][\w.-]{0,95})?", re.ASCII)
# The Hub writes SPDX identifiers in lower case.
_SPDX = {
    identifier.lower(): identifier
    for identifier in (
        *("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "GPL-3.0", "AGPL-3.0", "LGPL-3.0", "MPL-2.0"),
        *("CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0"),
    )
}


@dataclass(frozen=True)
class Card:
    """The facts of a model card that go on to what is made of the weights."""

    license: str | None = None  # SPDX identifier where it is one; the name of a license of the authors' own
    base_model: tuple[str, ...] = ()  # repositories


def read_card(folder: Path) -> Card:
    """Read the card in a folder; a missing or broken one says nothing."""
    try:
        check_regular(folder / NAME)
        with (folder / NAME).open("rb") as file:
            text = file.read(MAX_FRONT_MATTER).decode("utf-8", "replace")
    except (CheckpointError, OSError):
        return Card()
    match = _FRONT_MATTER.match(text)
    facts = _parsed(match[1]) if match else None
    if not isinstance(facts, dict):
        return Card()
    bases = facts.get("base_model")
    named = [base for base in (bases if isinstance(bases, list) else [bases]) if _is(base, _REPO)]
    return Card(_license(facts), tuple(dict.fromkeys(named)))


def _parsed(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that is none
        return None


def _license(facts: dict[Any, Any]) -> str | None:
    """``other`` stands for the license that ``license_name`` names."""
    for key in ("license", "license_name"):
        found = facts.get(key)
        found = found[0] if isinstance(found, list) and len(found) == 1 else found
        if _is(found, _LICENSE) and found.lower() not in ("other", "unknown"):
            return _SPDX.get(found.lower(), found)
    return None


def _is(value: Any, pattern: re.Pattern[str]) -> TypeGuard[str]:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
