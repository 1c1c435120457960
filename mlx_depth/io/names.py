"""Names for results that every file system takes, and that none takes for one another."""

import unicodedata
from pathlib import Path

_MAX_NAME_BYTES = 255  # of one file name: ext4, APFS, NTFS
_ROOM_FOR_ENDING = 32  # the longest is _side-by-side.jpeg, and a number may stand before it
_DIGEST_LETTERS = 10


def fitting(stem: str) -> str:
    """Shorten a name so that any ending of a result still fits behind it.

    Args:
        stem: The name of a file, without a suffix or with it.
    Returns:
        The name as it is where it fits, else its beginning and a digest of all of it, so that two long names with the
        same beginning stay different.
    """
    room = _MAX_NAME_BYTES - _ROOM_FOR_ENDING
    encoded = stem.encode("utf-8", "surrogatepass")
    if len(encoded) <= room:
        return stem
    import hashlib  # loads OpenSSL, and such names are rare

    digest = hashlib.sha256(encoded).hexdigest()[:_DIGEST_LETTERS]
    return encoded[: room - _DIGEST_LETTERS - 1].decode("utf-8", "ignore") + "-" + digest


def sameness(name: Path) -> str:
    """Equal where a Mac takes two names for one: its volumes tell neither A from a, nor é from e with an accent."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", str(name)).casefold())
