"""Where a package goes, and what it may be called: Xcode makes a Swift class of its name."""

import re
from pathlib import Path

from mlx_depth.errors import OptionError
from mlx_depth.registry import ModelSpec

SUFFIX = ".mlpackage"
NOT_A_FOLDER = (".mlmodel", ".mlmodelc")  # Core ML's other forms: a folder named so would mislead

# The reserved words of "The Swift Programming Language", chapter "Lexical Structure", for declarations, statements,
# expressions and types, and patterns. Those that are reserved in some contexts alone can name a class.
_DECLARATIONS = """
associatedtype borrowing class consuming deinit enum extension fileprivate func import init inout internal let
nonisolated open operator precedencegroup private protocol public rethrows static struct subscript typealias var
"""
_STATEMENTS = """
break case catch continue default defer do else fallthrough for guard if in repeat return switch throw where while
"""
_EXPRESSIONS = "Any as await catch false is nil rethrows self Self super throw throws true try"
_PATTERNS = "_"
RESERVED = frozenset(" ".join((_DECLARATIONS, _STATEMENTS, _EXPRESSIONS, _PATTERNS)).split())


def package_path(out: str | Path, name: str | None, spec: ModelSpec) -> Path:
    """Where the package goes: ``out`` itself where it ends in ``.mlpackage``, else in that folder.

    Xcode makes a Swift class of the package's base name, so that has to be a Swift identifier.

    Args:
        out: As for ``export_coreml``.
        name: As for ``export_coreml``.
        spec: The model, whose name is the default: ``depth-anything-v2-small`` gives ``DepthAnythingV2Small``.
    Returns:
        The path, free, in an existing folder or a new one.
    Raises:
        OptionError: If the name cannot be a Swift class's, is given twice or of another format, or the path exists.
    """
    out = Path(out).expanduser()
    if out.suffix.lower() in NOT_A_FOLDER:
        raise OptionError(f"{out} is not the name of a package: end it in {SUFFIX}, or give a folder.")
    if out.suffix == SUFFIX:
        if name is not None:
            raise OptionError(f"{out} names the package already: leave the name out, or give a folder.")
        name, folder = out.stem, out.parent
    else:
        name, folder = name or swift_name(spec.name), out
    if name in RESERVED or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        what = "is a reserved word of Swift" if name in RESERVED else "is not a Swift identifier"
        raise OptionError(f"{name!r} {what}, and Xcode makes a class of it: call it {swift_name(name)!r}, say.")
    path = folder / f"{name}{SUFFIX}"
    if path.exists():
        raise OptionError(f"{path} exists: choose another name, or remove it first.")
    obstacle = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    if not obstacle.is_dir():
        raise OptionError(f"{obstacle} is not a folder: choose another place for the package.")
    return path


def swift_name(text: str) -> str:
    """Words in upper camel case, as a class can be called: ``my-model v2`` → ``MyModelV2``."""
    words = re.findall(r"[A-Za-z0-9]+", text.rsplit("/", 1)[-1].split("@")[0])
    name = "".join(word[0].upper() + word[1:] for word in words)
    return f"Depth{name}" if not name or name[0].isdigit() or name in RESERVED else name
