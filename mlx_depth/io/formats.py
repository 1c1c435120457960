"""The file formats of a result: their names, suffixes and endings, and which one a file name asks for."""

from collections.abc import Mapping
from pathlib import Path

from mlx_depth.errors import OptionError, printable, similar

FORMATS: dict[str, tuple[str, ...]] = {
    "npy": (".npy",),
    "npz": (".npz",),
    "png16": (".png",),
    "color": (".png", ".jpg", ".jpeg"),
    "gray": (".png",),
    "side-by-side": (".png", ".jpg", ".jpeg"),
    "tiff": (".tiff", ".tif"),
    "pfm": (".pfm",),
    "exr": (".exr",),
    "json": (".json",),
    "confidence": (".npy",),
    "sky": (".npy",),
    "mask": (".png",),
    "normals": (".png",),
    "mesh": (".glb",),
}
"""Format → the suffixes it may have, the usual one first."""

# Formats that share a suffix with another get their name into the file name.
_NAMED = {
    "png16": "_depth",
    "color": "_color",
    "gray": "_gray",
    "side-by-side": "_side-by-side",
    "confidence": "_confidence",
    "sky": "_sky",
    "mask": "_mask",
    "normals": "_normals",
}


def ending(format: str) -> str:
    """What a file of a format ends with beside the other results of its photo, such as ``_color.png``."""
    return _NAMED.get(format, "") + FORMATS[format][0]


def format_of(path: Path, format: str | None, formats: Mapping[str, tuple[str, ...]] = FORMATS) -> str:
    """The format that a file gets.

    Args:
        path: Its name.
        format: One of ``formats``, or None: by the suffix.
        formats: Format → the suffixes it may have. Of those that share a suffix the first has it: .png is png16, .jpg
            is color.
    Returns:
        A key of ``formats``.
    Raises:
        OptionError: If there is no such format, or the suffix does not fit it.
    """
    suffix = path.suffix.lower()
    if format is not None:
        _check_name(format, formats)
        if suffix not in formats[format]:
            fitting = " or ".join(formats[format])
            raise OptionError(
                f"{format} does not go into {printable(path.name)!r}: give a name that ends with {fitting}."
            )
        return format
    by_suffix = {suffix: name for name, suffixes in reversed(list(formats.items())) for suffix in suffixes}
    if suffix not in by_suffix:
        known = " ".join(sorted(by_suffix))
        raise OptionError(f"no format has the suffix {suffix!r} of {printable(path.name)!r}: choose one of {known}.")
    return by_suffix[suffix]


def format_of_stream(name: object, format: str | None) -> tuple[str, str]:
    """Format and suffix of what goes into a file object.

    Args:
        name: The object's ``name``, where it has one; only a string counts.
        format: One of ``FORMATS``, or None: by the suffix of the name.
    Returns:
        ``(format, suffix)``; the usual suffix where the name has none that fits.
    Raises:
        OptionError: If there is no such format, or neither a format nor a name is given.
    """
    path = Path(name if isinstance(name, str) else "")
    if format is None:
        if not path.name:
            raise OptionError(f"a file object has no suffix: give format=, one of {', '.join(FORMATS)}.")
        return format_of(path, None), path.suffix.lower()
    _check_name(format, FORMATS)
    suffix = path.suffix.lower()
    return format, suffix if suffix in FORMATS[format] else FORMATS[format][0]


def _check_name(format: str, formats: Mapping[str, tuple[str, ...]]) -> None:
    if format not in formats:
        close = similar(format, formats)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise OptionError(f"no format {format!r}: {hint}Choose one of {', '.join(formats)}.")
