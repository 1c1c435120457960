"""The errors that a user can cause. Each message ends with the next step; the command line prints it alone."""

import unicodedata
from collections.abc import Iterable

MAX_QUOTED = 240  # characters of a file name, an address or a decoder's words in one message


class MlxDepthError(Exception):
    """Base of every error that mlx-depth raises on purpose."""


class OptionError(MlxDepthError, ValueError):
    """An argument, or a combination of arguments, that cannot work."""


class ImageError(MlxDepthError, ValueError):
    """An image that cannot be read."""


class ModelNotFoundError(MlxDepthError, LookupError):
    """A model name, folder or Hub repository that does not exist or cannot be reached."""


class CheckpointError(MlxDepthError, ValueError):
    """A checkpoint whose config or tensors are not exactly what the model needs."""


class SaveError(MlxDepthError, OSError):
    """A result that cannot be written."""


def printable(foreign: object) -> str:
    """Text that others chose, safe to put into a message.

    Args:
        foreign: A file name, an address, a server's or a decoder's words; anything with a ``str``.
    Returns:
        At most ``MAX_QUOTED`` characters, the middle of longer text left out; control characters, which could steer
        a terminal, and halves of characters are written as escapes.
    """
    text = str(foreign)
    if len(text) > MAX_QUOTED:  # before escaping, so that megabytes are not walked through
        text = f"{text[: MAX_QUOTED * 2 // 3]} … {text[-MAX_QUOTED // 6 :]}"
    escaped = "".join(map(_printable_character, text))
    return escaped if len(escaped) <= MAX_QUOTED else f"{escaped[: MAX_QUOTED - 2]} …"


def similar(name: str, known: Iterable[str], *, count: int = 1) -> list[str]:
    """What a misspelled name may have meant.

    Args:
        name: As it was written.
        known: The names there are.
        count: How many to find at most.
    Returns:
        Similar names, the most similar first; none where nothing is.
    """
    from difflib import get_close_matches  # only errors need it

    return get_close_matches(name, list(known), n=count)


def _printable_character(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode()
