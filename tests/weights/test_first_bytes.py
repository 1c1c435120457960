"""Files that are not what their names say: the cause is told, and what to do."""

import gzip
import io
import os
import re
import tarfile
import zipfile

import pytest

from mlx_depth.errors import CheckpointError
from mlx_depth.weights.first_bytes import GGUF, SAFETENSORS, TORCH, cause, check_regular
from mlx_depth.weights.safetensors_io import load_file, read_json


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return stream.getvalue()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"))
    return stream.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 99173660\n"
CASES = {
    "Git LFS pointer": (LFS, r"Git LFS pointer, not the file itself: run git lfs pull, or download the file itself"),
    "web page": (b"\n<!DOCTYPE html>\n<html>", r"a web page \(HTML\), .*download the file itself .*/resolve/"),
    "page without a doctype": (b"<html lang='en'>", r"a web page \(HTML\)"),
    "XML": (b"<?xml version='1.0'?><Error/>", "XML, .*download the file itself"),
    "JSON": (b'{"error": "Repository not found"}', "JSON text, .*: name the weights themselves"),
    "a word of the server": (b"Entry not found", "a text file that begins with 'Entry not found', .*: download"),
    "gzip": (gzip.compress(b"x"), "compressed with gzip: unpack it first"),
    "tar": (tarred(), r"a tar archive: unpack it first \(tar -xf\)"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file, .*: save the model's state_dict"),
    "NumPy": (b"\x93NUMPY\x01\0", "a NumPy array: save"),
    "image": (b"\x89PNG\r\n", "a PNG image: name a file with weights"),
    "document": (zipped("[Content_Types].xml", "word/document.xml"), "an Office document .*unpack"),
    "Keras": (zipped("config.json", "model.weights.h5"), "a Keras model .*unpack"),
    "zip": (zipped("a/model.pth"), r"a zip archive of something else .*\(it holds a/model\.pth\): unpack it"),
    "empty zip": (zipped(), r"a zip archive of something else .*\(it holds nothing\)"),
    "TorchScript": (zipped("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"), r"TorchScript.*torch\.jit\.load"),
    "empty": (b"", r"\(it is empty\): download it again"),
}  # fmt: skip


@pytest.mark.parametrize("expected", [SAFETENSORS, TORCH, GGUF])
@pytest.mark.parametrize("case", CASES)
def test_what_a_file_is(case, expected, tmp_path):
    content, message = CASES[case]
    path = tmp_path / "x"
    path.write_bytes(content)
    said = cause(path, expected)
    assert said is not None
    assert re.search(message, said), said
    assert said.startswith(f"{path} is ")
    assert "\n" not in said


def test_the_expected_kind_is_no_cause_and_another_kind_is_named(tmp_path):
    kinds = {
        SAFETENSORS: (b"\x40\0\0\0\0\0\0\0" + b'{"a":' + b" " * 60, r"rename it to \.safetensors"),
        TORCH: (zipped("a/data.pkl", "a/version"), r"rename it to \.pth and convert"),
        GGUF: (b"GGUF\3\0\0\0" + bytes(30), r"rename it to \.gguf and convert"),
    }
    for kind, (content, message) in kinds.items():
        (tmp_path / "x").write_bytes(content)
        for expected in kinds:
            said = cause(tmp_path / "x", expected)
            assert said is None if expected == kind else re.search(message, said)


@pytest.mark.parametrize("content", [b"\x80\x02}q\x00.", bytes(range(1, 99)), b"\0" * 99])
def test_bytes_of_no_known_kind_say_nothing(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    assert cause(tmp_path / "x", TORCH) is None


@pytest.mark.parametrize("read", [check_regular, load_file, read_json])
def test_devices_and_pipes_are_never_opened(read, tmp_path):
    """Reading one would hang, or fill memory."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(CheckpointError, match="is no regular file: check the path"):
            read(tmp_path / name)
