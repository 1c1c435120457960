"""Which images paths stand for, and what their results are called."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_depth.errors import OptionError, SaveError
from mlx_depth.jobs.naming import Job, find_images, into_one_file, named_format, output_place
from mlx_depth.jobs.settings import DEFAULT_FORMATS, Settings


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def found(*paths: str | Path, recursive: bool = False, out: Path | None = None) -> dict[str, str]:
    """Name of the image → stem of its results; nothing may fail."""
    jobs, failed, _ = find_images([str(path) for path in paths], recursive=recursive, out=out)
    assert failed == []
    return {Path(job.source).name: str(job.stem) for job in jobs}


def errors(*paths: str | Path, recursive: bool = False) -> list[str]:
    jobs, failed, _ = find_images([str(path) for path in paths], recursive=recursive)
    assert jobs == []
    return [str(outcome.error) for outcome in failed]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Finding.


def test_folder_holds_its_visible_images_by_name(tmp_path: Path) -> None:
    touch(tmp_path / "in", "b.JPG", "a.png", "c.heic", "notes.txt", "d.npy", ".hidden.jpg", "._a.jpg", "sub/e.jpg")
    assert list(found("in")) == ["a.png", "b.JPG", "c.heic"]
    assert found(tmp_path / "in") == {"a.png": "a", "b.JPG": "b", "c.heic": "c"}
    assert find_images(["in/"]) == find_images(["in"])


def test_recursive_keeps_the_structure_and_leaves_hidden_folders_out(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.jpg", "x/a.jpg", "x/y/b.jpg", ".trash/c.jpg", "x/.cache/d.jpg")
    jobs, *_ = find_images(["in"], recursive=True)
    assert {job.source: str(job.stem) for job in jobs} == {
        "in/a.jpg": "a",
        "in/x/a.jpg": "x/a",
        "in/x/y/b.jpg": "x/y/b",
    }


def test_file_that_is_named_outright_may_be_called_anything(tmp_path: Path) -> None:
    touch(tmp_path, "photo", "scan.dat", ".hidden.jpg", "notes.TXT.jpg")
    expected = {"photo": "photo", "scan.dat": "scan", ".hidden.jpg": ".hidden", "notes.TXT.jpg": "notes.TXT"}
    assert found("photo", "scan.dat", ".hidden.jpg", "notes.TXT.jpg") == expected


def test_pattern(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a1.jpg", "a2.jpg", "b1.jpg", "a3.txt", ".a4.jpg", "x/a5.jpg", "y/a6.jpg", "y/z/a7.jpg")
    assert list(found("in/a*")) == ["a1.jpg", "a2.jpg"]
    assert found("in/*/*.jpg") == {"a5.jpg": "x/a5", "a6.jpg": "y/a6"}
    assert list(found("in/**/a?.jpg")) == ["a1.jpg", "a2.jpg", "a5.jpg", "a6.jpg", "a7.jpg"]
    assert found("in/[xy]") == {"a5.jpg": "x/a5", "a6.jpg": "y/a6"}
    assert found("in/[xy]", recursive=True)["a7.jpg"] == "y/z/a7"
    assert found("in/*/../a1.jpg") == {"a1.jpg": "a1"}


def test_brackets_in_a_name_are_no_pattern(tmp_path: Path) -> None:
    touch(tmp_path, "photo[1].jpg", "photo1.jpg")
    assert found("photo[1].jpg") == {"photo[1].jpg": "photo[1]"}


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path, "in/a.jpg")
    assert found("~/in") == found("~/in/*.jpg") == found("~/in/a.jpg") == {"a.jpg": "a"}


def test_list_of_paths(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.jpg", "in/ü.jpg", "b.jpg", "c1.png", "c2.png")
    lines = "\ufeffin\n\n  b.jpg  \r\nc*.png\nhttp://host/d.jpg\n"
    (tmp_path / "list.txt").write_text(lines, encoding="utf-8")
    assert list(found("list.txt")) == ["a.jpg", "ü.jpg", "b.jpg", "c1.png", "c2.png", "d.jpg"]


def test_one_bad_line_does_not_take_the_others_along(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "empty/readme.md")
    (tmp_path / "list.txt").write_text("a.jpg\nempty\nno*match.jpg\nb.jpg\n")
    jobs, failed, _ = find_images(["list.txt"])
    assert [job.source for job in jobs] == ["a.jpg", "b.jpg"]
    assert [outcome.image for outcome in failed] == ["empty", "no*match.jpg"]


def test_list_that_names_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("list.txt\n")
    assert found("list.txt") == {"list.txt": "list"}  # loading it says that it is not an image


def test_url_names() -> None:
    urls = {
        "http://host/dir/photo.jpg": "photo",
        "https://host/my%20photo.png?size=large&x=/y.jpg#top": "my photo",
        "http://host/": "image",
        "http://host:80/%2e%2e%2f%00..": "_",
        "http://user:secret@host/photo.jpg": "host/photo",
    }
    jobs, *_ = find_images(list(urls))
    assert [job.source for job in jobs] == list(urls)
    assert str(jobs[1].stem) == "my photo"
    assert str(jobs[2].stem) == "image"
    assert not any(".." in job.stem.parts or "\0" in str(job.stem) or "secret" in str(job.stem) for job in jobs)
    assert len({str(job.stem) for job in jobs}) == len(urls)


def test_each_image_once(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.jpg", "in/b.jpg")
    jobs, *_ = find_images(["in/b.jpg", "in", "./in/a.jpg", str(tmp_path / "in/a.jpg"), "in/*.jpg"])
    assert [job.source for job in jobs] == ["in/b.jpg", "in/a.jpg"]


def test_output_folder_within_the_input_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.jpg", "in/depth/a_color.png", "in/depth/x/b_color.png")
    out = tmp_path / "in/depth"
    assert list(found("in", recursive=True, out=out)) == ["a.jpg"]
    assert list(found("in/**/*.*g", out=out)) == ["a.jpg"]
    assert list(found("in/*", out=Path("in/depth"))) == ["a.jpg"]
    assert list(found("in/depth/a_color.png", out=out)) == ["a_color.png"]  # named outright


def test_input_within_the_output_folder_is_taken(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.jpg")
    assert list(found("in", out=tmp_path)) == ["a.jpg"]
    assert list(found("in/*.jpg", recursive=True, out=Path())) == ["a.jpg"]


def test_output_folder_is_no_input(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.jpg")
    for out in ("in", "./in/", tmp_path / "in"):
        with pytest.raises(OptionError, match="both input and output"):
            find_images(["in"], out=Path(out))


def test_paths_that_stand_for_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "empty/notes.md", "deep/x/a.jpg", "blank.txt")
    (tmp_path / "latin.txt").write_bytes("ü.jpg".encode("latin-1"))
    assert errors("empty", recursive=True) == ["empty holds no image: check the path."]
    assert errors("deep") == ["deep holds no image: check the path, or add --recursive to look into its folders."]
    assert errors("*.webp") == ["no image matches *.webp: check the pattern."]
    assert errors("blank.txt") == ["blank.txt is empty: write one path a line."]
    assert errors("") == ["a path is empty: check the command."]
    assert "save it as UTF-8" in errors("latin.txt")[0]
    assert "check the path" in errors("~nobody-of-this-name/a.jpg")[0]
    assert "check the path" in errors("x" * 5000)[0]


# Naming: no result may overwrite another.


def test_same_stem_twice_keeps_the_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a.png", "b.jpg")
    assert found(".") == {"a.jpg": "a.jpg", "a.png": "a.png", "b.jpg": "b"}


def test_same_name_in_two_folders_gets_the_folder(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.jpg", "y/a.jpg", "y/b.jpg", "x/sub/a.jpg")
    for paths in (["x/a.jpg", "y/a.jpg", "y/b.jpg"], ["x", "y"]):
        jobs, *_ = find_images(paths)
        assert [str(job.stem) for job in jobs] == ["x/a", "y/a", "b"]
    (tmp_path / "z").mkdir()
    os.chdir(tmp_path / "z")
    jobs, *_ = find_images(["../x/a.jpg", "../y/a.jpg"])
    assert [str(job.stem) for job in jobs] == ["x/a", "y/a"]  # never ../x/a


def test_suffix_that_is_a_stem(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.jpg", "a.png", "a.jpg.png")
    stems = set(found("in").values())
    assert len(stems) == 3


def test_names_that_differ_in_case_alone(tmp_path: Path) -> None:
    touch(tmp_path / "in", "A.jpg")
    touch(tmp_path / "other", "a.jpg")
    jobs, *_ = find_images(["in", "other"])
    assert [str(job.stem) for job in jobs] == ["in/A", "other/a"]


def test_same_folder_name_twice(tmp_path: Path) -> None:
    touch(tmp_path, "1/x/a.jpg", "2/x/a.jpg", "3/x/a.jpg")
    jobs, *_ = find_images(["1/x", "2/x", "3/x/a.jpg"])
    assert [str(job.stem) for job in jobs] == ["x/a.jpg-2", "x/a.jpg-3", "x/a.jpg-4"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.from_regex(r"(http://[ab]/)?([abA]/){0,2}[abA](\.jpg|\.png|\.JPG|\.jpg-2|-2)?(\.jpg)?", fullmatch=True),
        max_size=12,
        unique=True,
    )
)
def test_no_two_images_share_a_file(paths: list[str]) -> None:
    jobs, failed, _ = find_images(paths)  # none of them exists, which does not matter here
    assert failed == []
    assert len(jobs) == len(paths)
    files = [str(file).casefold() for job in jobs for file in job.files(Path("out"), [*DEFAULT_FORMATS, "png16"])]
    assert len(set(files)) == len(files)


def test_every_format_has_a_file_of_its_own() -> None:
    formats = ["npy", "npz", "png16", "color", "gray", "side-by-side", "tiff", "pfm", "exr", "json"]
    job = Job("in/a.b.jpg", Path("x/a.b"))
    assert [str(file) for file in job.files(Path("out"), formats)] == [
        "out/x/a.b.npy",
        "out/x/a.b.npz",
        "out/x/a.b_depth.png",
        "out/x/a.b_color.png",
        "out/x/a.b_gray.png",
        "out/x/a.b_side-by-side.png",
        "out/x/a.b.tiff",
        "out/x/a.b.pfm",
        "out/x/a.b.exr",
        "out/x/a.b.json",
    ]


# One file.


@pytest.mark.parametrize(
    ("out", "formats", "jobs", "expected"),
    [
        ("my.png", DEFAULT_FORMATS, 1, "color"),
        ("my.npy", DEFAULT_FORMATS, 1, "npy"),
        ("my.JPG", DEFAULT_FORMATS, 1, "color"),
        ("my.tiff", DEFAULT_FORMATS, 1, "tiff"),
        ("my.json", DEFAULT_FORMATS, 1, "json"),
        ("my.png", ("png16",), 1, "png16"),
        ("my.png", (*DEFAULT_FORMATS, "side-by-side"), 1, "side-by-side"),
        ("my.png", DEFAULT_FORMATS, 2, None),
        ("my.png", DEFAULT_FORMATS, 0, None),
        ("my", DEFAULT_FORMATS, 1, None),
        ("my.results", DEFAULT_FORMATS, 1, None),
        (".png", DEFAULT_FORMATS, 1, None),
    ],
)
def test_output_that_is_a_file(out: str, formats: tuple[str, ...], jobs: int, expected: str | None) -> None:
    assert named_format(Path(out), formats, jobs) == expected


def test_folder_that_looks_like_a_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "my.png").mkdir()
    assert named_format(Path("my.png"), DEFAULT_FORMATS, 1) is None


def test_file_that_cannot_hold_the_format() -> None:
    with pytest.raises(OptionError, match=r"my\.npy holds npy or confidence or sky, not color: leave --format out"):
        named_format(Path("my.npy"), ("color",), 1)


@pytest.mark.parametrize(("name", "sidecar"), [("My.PNG", "My.json"), ("a.b.npy", "a.b.json"), ("m.JSON", "m.JSON")])
def test_names_of_one_file(name: str, sidecar: str) -> None:
    asked = Settings("mlx-depth-demo", "float32")
    jobs, out, chosen = into_one_file([Job("in/a.jpg", Path("a"))], Path("out", name), asked)
    files = [str(file) for file in jobs[0].files(out, chosen.formats)]
    assert files == ([f"out/{name}"] if name != sidecar else []) + [f"out/{sidecar}"]
    assert len(chosen.formats) == 1


def test_several_photos_are_left_as_they_are() -> None:
    asked, jobs = Settings("mlx-depth-demo", "float32"), [Job("a.jpg", Path("a")), Job("b.jpg", Path("b"))]
    assert into_one_file(jobs, Path("my.png"), asked) == (jobs, Path("my.png"), asked)


def test_output_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SaveError, match=r"leads nowhere .*: choose another folder with -o"):
        output_place("~nobody-of-this-name/out")
    if sys.version_info < (3, 13):  # later ones follow it as far as it goes, and making the folder fails
        with pytest.raises(SaveError, match=r"leads nowhere .*: choose another folder with -o"):
            output_place("loop/out")
