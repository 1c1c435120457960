"""What a file really is, by its first bytes: the true cause where it cannot be read as weights."""

import stat
from pathlib import Path

from mlx_depth.errors import CheckpointError
from mlx_depth.weights.rules import listed

SAFETENSORS, TORCH, GGUF = "safetensors", "PyTorch", "GGUF"
_HEAD = 512  # bytes that are looked at
_RAW_FILE = "download the file itself (on huggingface.co its address has /resolve/, not /blob/)"
_SAVE_AGAIN = "save the model's state_dict() with torch.save, or as .safetensors"

# Where it stands, the bytes there → what the file is, and the next step.
_MAGICS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself", f"run git lfs pull, or {_RAW_FILE}"),
    (0, b"\x1f\x8b", "compressed with gzip", "unpack it first (gunzip or tar -xzf)"),
    (0, b"BZh", "compressed with bzip2", "unpack it first (bunzip2 or tar -xjf)"),
    (0, b"\xfd7zXZ\0", "compressed with xz", "unpack it first (unxz or tar -xJf)"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it first (unzstd)"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first and name the weights in it"),
    (0, b"Rar!", "a RAR archive", "unpack it first and name the weights in it"),
    (257, b"ustar", "a tar archive", "unpack it first (tar -xf) and name the weights in it"),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes it", _SAVE_AGAIN),
    (0, b"\x93NUMPY", "a NumPy array", _SAVE_AGAIN),
    (0, b"\x89PNG", "a PNG image", "name a file with weights"),
    (0, b"\xff\xd8\xff", "a JPEG image", "name a file with weights"),
    (0, b"%PDF", "a PDF document", "name a file with weights"),
)


def check_regular(path: Path) -> None:
    """Raise ``CheckpointError`` for a device, a pipe or a folder: reading one would not end, or not begin."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): check the path.") from error
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path} is no regular file: check the path, or copy its content into a file.")


def cause(path: Path, expected: str) -> str | None:
    """Say what a file is that could not be read.

    Args:
        path: A regular file.
        expected: What it was read as: ``SAFETENSORS``, ``TORCH`` or ``GGUF``.
    Returns:
        One line with the next step; None where the first bytes do not contradict what was expected.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return None
    if not head:
        return f"{path} is damaged or no {expected} file (it is empty): download it again."
    found = _known(path, head, expected)
    if found is None:
        return None
    what, step = found
    return f"{path} is {what}: {step}."


def _known(path: Path, head: bytes, expected: str) -> tuple[str, str] | None:
    for start, magic, what, step in _MAGICS:
        if head[start : start + len(magic)] == magic:
            return what, step
    if head.startswith(b"GGUF"):
        return None if expected == GGUF else ("a GGUF file by its content", "rename it to .gguf and convert that")
    if head.startswith(b"PK"):
        return _zip(path, expected)
    if head[8:9] == b"{" and head[9:16].lstrip()[:1] in (b'"', b"}"):
        renamed = ("a safetensors file by its content", "rename it to .safetensors")
        return None if expected == SAFETENSORS else renamed
    return _text(head, expected)


def _zip(path: Path, expected: str) -> tuple[str, str] | None:
    import zipfile  # slow to import, and seldom needed

    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return None if expected == TORCH else ("a damaged zip archive", "download it again")
    own = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in own and any("/code/" in f"/{name}" for name in names):
        return "a TorchScript archive, which holds a program beside the weights", (
            f"load it with torch.jit.load and {_SAVE_AGAIN}"
        )
    if "data.pkl" in own:
        return None if expected == TORCH else ("a PyTorch file by its content", "rename it to .pth and convert that")
    kinds = {
        "model.weights.h5": "a Keras model",
        "[Content_Types].xml": "an Office document",
        "AndroidManifest.xml": "an Android package",
    }
    kind = next((kind for name, kind in kinds.items() if name in own), "a zip archive of something else")
    inside = listed(f"{name!s:.60}" for name in names) or "nothing"
    return f"{kind} with 0 data.pkl in it (it holds {inside})", "unpack it and name the weights in it"


def _text(head: bytes, expected: str) -> tuple[str, str] | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:1] == b"<" and any(word in start.lower() for word in (b"<!doctype html", b"<html", b"<head", b"<body")):
        return f"a web page (HTML), not a {expected} file", _RAW_FILE
    if start.startswith((b"<?xml", b"<Error", b"<!--")):
        return f"XML, not a {expected} file", _RAW_FILE
    if b" " not in start or any(byte < 9 or 13 < byte < 32 or byte > 126 for byte in head):
        return None
    if start[:1] in (b"{", b"["):
        return f"JSON text, not a {expected} file", "name the weights themselves"
    return f"a text file that begins with {start[:40].decode('ascii')!r}, not a {expected} file", _RAW_FILE
