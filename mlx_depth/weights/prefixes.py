"""Where in a file the model is: the dict that holds it, and what stands before each of its names.

Found from the tensors themselves: a part of the file is a model if a family owns its key set.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mlx_depth.errors import CheckpointError, OptionError
from mlx_depth.weights.rules import listed

MAX_DEPTH = 8  # words that may stand before a name
# What frameworks put into names, at any place: none of them is part of a model's own name.
_INSERTED = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
_COUNTERS = ("n_averaged",)  # beside the averaged weights, in torch's AveragedModel
_AVERAGED = re.compile(r"(?<![a-z])(ema|swa|averaged?|shadow)(?![a-z])")
_NO_WEIGHTS = re.compile(r"optim|scheduler|exp_avg|momentum|grad")

Names = Mapping[str, str]  # the model's own name → name in the file
Owns = Callable[[str, Names], bool]


@dataclass(frozen=True)
class Found:
    """Where the model is."""

    key: str  # dotted keys of the dict that holds it; "" at the top
    prefix: str  # before each name, with its dot
    names: Names
    outside: tuple[str, ...] = ()  # tensors of that dict that do not stand under the prefix
    copies: tuple[str, ...] = ()  # places of averaged copies that are left out
    inserted: tuple[str, ...] = ()  # words of a framework that stood within the names

    @property
    def place(self) -> str:
        """The keys and the prefix together."""
        return f"{self.key}.{self.prefix}".strip(".")


def find_model(
    parts: Mapping[str, Iterable[str]], owns: Owns, *, where: object, key: str | None = None, prefix: str | None = None
) -> Found:
    """Find the model in a file.

    Args:
        parts: The dicts of a file that hold tensors: dotted key to names. A flat file has one, under ``""``.
        owns: Whether names (of the part with this key) are those of a model.
        where: The file, for messages.
        key: Take the part under this key; None: the one that holds a model.
        prefix: Take the names behind this prefix; None: found.
    Returns:
        Where the model is. If no part holds one, the largest without what stands before all its names.
    Raises:
        CheckpointError: If several models are there.
        OptionError: If nothing is there under ``key`` or ``prefix``.
    """
    named = {part: tuple(names) for part, names in _under(parts, key, where).items()}
    if prefix is not None:
        return _behind(named, prefix, owns, where)
    found = [each for part, names in named.items() for each in _models(part, names, owns)]
    if not found:
        return _largest(named)
    plain = [each for each in found if not _AVERAGED.search(each.place.lower())]
    weights = [each for each in plain or found if not _NO_WEIGHTS.search(each.place.lower())] or found
    if len(weights) > 1:
        raise CheckpointError(_ambiguous(weights, where))
    copies = [each.place for each in found if each not in plain and each not in weights]
    return replace(weights[0], copies=tuple(copies))


def describe(found: Found, where: object, beside: Sequence[str] = ()) -> str | None:
    """Say in one line where the model was found and what was left out; None where the file is that model alone.

    Args:
        found: From ``find_model``.
        where: The file.
        beside: What else the file holds, by name.
    """
    said = [f"the weights are under {found.key!r:.80}"] if found.key else []
    if found.prefix:
        said.append(f"{found.prefix!r:.80} stands before their names")
    if found.inserted:
        said.append(f"{' and '.join(found.inserted)} stood within their names")
    left = [*found.outside, *(name for name in beside if name not in found.copies)]
    if left:
        said.append(f"left out: {listed(f'{name:.60}' for name in left)}")
    if found.copies:
        said.append(f"{listed(found.copies)} holds an averaged copy, left out as well (--key or --prefix takes it)")
    elif found.place and _AVERAGED.search(found.place.lower()):
        said.append("this is an averaged copy, the only model there")
    return f"{where}: {'; '.join(said)}." if said else None


def _under(parts: Mapping[str, Iterable[str]], key: str | None, where: object) -> Mapping[str, Iterable[str]]:
    if key is None:
        return parts
    below = {part: names for part, names in parts.items() if part == key or part.startswith(f"{key}.")}
    if not below:
        keys = listed(sorted(f"{part!r:.60}" for part in parts if part)) or "none"
        raise OptionError(f"{where} has no tensors under the key {key!r:.60}: its keys with tensors are {keys}.")
    return below


def _behind(named: Mapping[str, Sequence[str]], prefix: str, owns: Owns, where: object) -> Found:
    """What stands behind the prefix that the user names."""
    dotted = prefix if prefix.endswith(".") or not prefix else f"{prefix}."
    found = [
        _found(part, dotted, names, {name.removeprefix(dotted): name for name in names if name.startswith(dotted)})
        for part, names in named.items()
    ]
    found = [each for each in found if each.names]
    if not found:
        starts = listed(sorted({name.partition(".")[0] for names in named.values() for name in names}))
        raise OptionError(f"{where} has no names behind the prefix {prefix!r:.60}: its names begin with {starts}.")
    models = [each for each in found if owns(each.key, each.names)] or found
    if len(models) > 1:
        raise CheckpointError(_ambiguous(models, where))
    return models[0]


def _found(part: str, prefix: str, names: Iterable[str], taken: Names) -> Found:
    used = {*taken.values()}
    return Found(part, prefix, taken, tuple(name for name in names if name not in used))


def _models(part: str, names: Sequence[str], owns: Owns) -> list[Found]:
    """The models among the names of one dict, the whole of it first."""
    for clean in (dict(zip(names, names, strict=True)), _without_inserted(names)):
        inserted = _inserted_words(clean)
        whole = {own: name for own, name in clean.items() if own not in _COUNTERS}
        if owns(part, whole):
            return [replace(_found(part, "", names, whole), inserted=inserted)]
        found: list[Found] = []
        for prefix, behind in sorted(_behind_each(clean).items(), key=lambda item: len(item[0])):
            nested = any(prefix.startswith(each.prefix) for each in found)
            if not nested and owns(part, behind):
                found.append(replace(_found(part, prefix, names, behind), inserted=inserted))
        if found:
            return found
    return []


def _without_inserted(names: Sequence[str]) -> dict[str, str]:
    """The names without the words that frameworks insert; empty where two names would become one."""
    clean = {".".join(word for word in name.split(".") if word not in _INSERTED): name for name in names}
    return clean if len(clean) == len(names) else {}


def _inserted_words(clean: Names) -> tuple[str, ...]:
    return tuple(
        word for word in _INSERTED if any(word in name.split(".") for own, name in clean.items() if own != name)
    )


def _behind_each(clean: Names) -> dict[str, dict[str, str]]:
    """Each prefix that a name has → the names behind it."""
    behind: dict[str, dict[str, str]] = {}
    for own, name in clean.items():
        end = 0
        for _ in range(MAX_DEPTH):
            end = own.find(".", end) + 1
            if not end:
                break
            behind.setdefault(own[:end], {})[own[end:]] = name
    return behind


def _largest(named: Mapping[str, Sequence[str]]) -> Found:
    """Where no model is: the largest dict of tensors, for an error about the names that it has."""
    likely = {part: names for part, names in named.items() if not _NO_WEIGHTS.search(part.lower())} or named
    part = max(likely, key=lambda part: len(likely[part]))
    names = likely[part]
    start = 0
    first, last = min(names, default=""), max(names, default="")
    while len(names) > 1 and (end := first.find(".", start) + 1) and last.startswith(first[:end]):
        start = end
    return _found(part, first[:start], names, {name[start:]: name for name in names})


def _ambiguous(found: Sequence[Found], where: object) -> str:
    keys = {each.key for each in found}
    option = "--key" if len(keys) == len(found) else "--prefix"
    places = sorted(each.key if option == "--key" else each.prefix for each in found)
    if len(keys) > 1 and option == "--prefix":
        option, places = "--key and --prefix", sorted(each.place for each in found)
    return (
        f"{where} holds {len(found)} models ({listed(f'{place!r:.60}' for place in places)}): choose one with {option}."
    )
