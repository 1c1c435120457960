"""What folders and patterns lead to: by content, through links, and what is left out and why."""

import io
import itertools
import os
import unicodedata
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from mlx_depth.io.find import Failed, Found, LeftOut, Reason, find, find_photos, left_out_line
from mlx_depth.io.formats import FORMATS
from mlx_depth.jobs.folder import find_images

PICTURE = Image.fromarray(np.arange(32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3))


def encoded(form: str) -> bytes:
    stream = io.BytesIO()
    if form == "HEIC":
        pillow_heif.from_pillow(PICTURE).save(stream)
    else:
        PICTURE.save(stream, form)
    return stream.getvalue()


def write(folder: Path, **files: bytes) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def touch(folder: Path, *names: str) -> None:
    write(folder, **dict.fromkeys(names, b""))


def sources(*paths: str, recursive: bool = False) -> list[str]:
    return [item.source for item in find(paths, recursive=recursive) if isinstance(item, Found)]


def left_out(*paths: str, recursive: bool = False, skip: Path | None = None) -> dict[str, Reason]:
    items = find(paths, recursive=recursive, skip=skip)
    return {item.path: item.reason for item in items if isinstance(item, LeftOut)}


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# By suffix, and by content where the suffix does not settle it


@pytest.mark.parametrize("suffix", [".jfif", ".hif", ".apng", ".pnm", ".jpf", ".JPG", ".Heic"])
def test_suffixes_of_photos(suffix: str, tmp_path: Path) -> None:
    touch(tmp_path, f"in/a{suffix}")
    assert sources("in") == sources("in/*") == [f"in/a{suffix}"]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "AVIF", "TIFF", "JPEG2000", "HEIC"])
@pytest.mark.parametrize("name", ["IMG_0001", "photo.jpg_large", "download.bin", "a.jpeg~"])
def test_photos_are_known_by_their_first_bytes(form: str, name: str, tmp_path: Path) -> None:
    write(tmp_path, **{f"in/{name}": encoded(form)})
    assert sources("in") == sources("in/*") == [f"in/{name}"]
    assert left_out("in") == {}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"BM is how this text begins, and no more",
        b"P1 is how this text begins",
        b"Pf\n3 2\n-1.0\n" + bytes(24),
        b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41",
        b"\0\0\0\x14ftypqt  \0\0\2\0qt  ",
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"%PDF-1.7",
    ],
    ids=["empty", "BM", "P1", "pfm", "mp4", "mov", "wav", "pdf"],
)
def test_other_files_are_left_out(data: bytes, tmp_path: Path) -> None:
    write(tmp_path, **{"in/a.jpg": b"", "in/other": data})
    assert sources("in") == sources("in/*") == ["in/a.jpg"]
    assert left_out("in") == left_out("in/*") == {"in/other": Reason.NO_IMAGE}


# One rule for folders and patterns


def test_links_to_folders_are_followed_by_folders_and_patterns_alike(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.jpg", "in/x/b.jpg", "elsewhere/c.jpg", "elsewhere/deep/d.jpg")
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/e.jpg").symlink_to(tmp_path / "elsewhere/c.jpg")
    expected = ["in/a.jpg", "in/e.jpg", "in/link/c.jpg", "in/link/deep/d.jpg", "in/x/b.jpg"]
    assert sources("in", recursive=True) == sources("in/**/*") == sources("in/**/*.jpg") == sorted(expected)
    assert sources("in/**") == sources("in", recursive=True)


@pytest.mark.parametrize("pattern", ["in", "in/**", "in/**/*", "in/**/*.jpg", "in/**/**/*.jpg"])
def test_links_in_circles_end(pattern: str, tmp_path: Path) -> None:
    """Eight folders, each with links to all others and to itself: paths without end, and 8 photos."""
    folders = [tmp_path / f"in/{name}" for name in "abcdefgh"]
    for folder in folders:
        touch(folder, "photo.jpg")
    for one, other in itertools.product(folders, folders):
        (one / f"to-{other.name}").symlink_to(other)
    (tmp_path / "in/up").symlink_to(tmp_path)
    (tmp_path / "in/self").symlink_to("self")
    assert sources(pattern, recursive=True) == [f"in/{name}/photo.jpg" for name in "abcdefgh"]


def test_a_folder_keeps_its_own_name_where_a_link_comes_first(tmp_path: Path) -> None:
    touch(tmp_path, "in/z/photo.jpg")
    (tmp_path / "in/a").symlink_to(tmp_path / "in/z")
    assert sources("in", recursive=True) == ["in/z/photo.jpg"]


# What is left out is said


def test_what_is_left_out_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/a.jpg", "in/b.mov", "in/c.txt", "in/d.NEF", "in/sub/e.jpg", "in/.hidden.txt", "in/out/a.npy")
    (tmp_path / "in/gone").symlink_to("nowhere")
    out = tmp_path / "in/out"
    expected = {
        "in/b.mov": Reason.NO_IMAGE,
        "in/c.txt": Reason.NO_IMAGE,
        "in/d.NEF": Reason.RAW,
        "in/gone": Reason.NO_IMAGE,
        "in/sub": Reason.FOLDER,
    }
    assert left_out("in", skip=out) == expected
    images = find_images(["in"], out=out)
    assert [job.source for job in images.jobs] == ["in/a.jpg"]
    assert left_out_line(images.left_out) == (
        "left out: 3 no image (.mov .txt); 1 camera raw, to be exported as JPEG or TIFF first (.nef); "
        "1 in a folder of its own (--recursive looks into it)"
    )
    assert "in/sub" not in left_out("in", recursive=True, skip=out)
    assert left_out_line([]) is None


def test_what_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/a.jpg", "in/locked", "in/closed/b.jpg")
    opened = Path.open

    def refuse(path: Path, *arguments: object, **options: object):  # root may read all
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed")
    assert left_out("in", recursive=True)["in/locked"] is Reason.UNREADABLE
    assert left_out("in", recursive=True)["in/closed"] is Reason.UNREADABLE


def test_what_is_left_out_may_still_be_named(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.jpg", "in/scan.dat", "in/sub/b.jpg")
    assert sources("in", "in/scan.dat") == ["in/a.jpg", "in/scan.dat"]
    assert left_out("in/*") == {"in/scan.dat": Reason.NO_IMAGE}  # sub matches, too
    assert find_photos("in") == ["in/a.jpg"]


# Names of results


def test_long_names_are_shortened_before_the_work(tmp_path: Path) -> None:
    urls = [f"http://host/{'x7Qb-' * 60}=w{width}" for width in (640, 1280)]
    touch(tmp_path, "p" * 246 + ".jpg", "q/" + "é" * 120 + ".jpg")
    jobs = find_images([*urls, "p" * 246 + ".jpg", "q"]).jobs
    files = [file for job in jobs for file in job.files(tmp_path / "out", list(FORMATS))]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert len(set(files)) == len(files) == 4 * len(FORMATS)


def test_names_that_a_mac_takes_for_one_never_share_a_result(tmp_path: Path) -> None:
    composed, decomposed = "é.jpg", unicodedata.normalize("NFD", "é.jpg")
    touch(tmp_path, f"1/{composed}", f"2/{decomposed}", "3/É.png", "4/K.jpg", "5/k.jpg")
    jobs = find_images(["1", "2", "3", "4", "5"]).jobs
    stems = [str(job.stem) for job in jobs]
    assert len({unicodedata.normalize("NFC", stem.casefold()) for stem in stems}) == 5


def test_a_data_uri_is_one_image() -> None:
    (item,) = find(["data:image/png;base64,iVBORw0KGgo="])
    assert isinstance(item, Found)
    assert item.name == Path("image")


def test_errors_are_short_and_printable() -> None:
    (item,) = find(["x\x1b[2J" * 4000 + "*"])
    assert isinstance(item, Failed)
    assert str(item.error).isprintable()
    assert len(str(item.error)) < 500
