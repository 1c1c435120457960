"""Which results are complete, and which files may be replaced."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from mlx_depth.errors import SaveError
from mlx_depth.jobs.naming import Job, find_images
from mlx_depth.jobs.resume import image_path, photo_facts, unfinished
from mlx_depth.jobs.settings import Settings

ASKED = Settings("mlx-depth-demo", "float32")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# What is complete.


def write_result(job: Job, out: Path, **changes: object) -> None:
    """The files that a run would leave."""
    names = {name: file.name for name, file in job.outputs(out, ASKED.formats).items()}
    for number, file in enumerate(job.files(out, ASKED.formats)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"result"[number:])
    facts = {
        "mlx_depth": "0.1.0",
        "image": image_path(job, out),
        "settings": ASKED.facts(),
        "files": names,
        "file_bytes": {name: 6 - number for number, name in enumerate(names.values())},
        "photo": photo_facts(job.source),
    }
    job.sidecar(out).write_text(json.dumps({**facts, **changes}))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    touch(tmp_path, "in/a.jpg")
    return find_images(["in/a.jpg"])[0][0]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_complete_results_are_left_out(job: Job, out: Path) -> None:
    assert unfinished([job], out, ASKED, resume=True) == [job]
    write_result(job, out)
    assert unfinished([job], out, ASKED, resume=True) == []
    assert unfinished([job], out, ASKED, resume=True, overwrite=True) == []
    assert unfinished([job], out, ASKED, overwrite=True) == [job]


def test_complete_from_any_working_folder(job: Job, out: Path, tmp_path: Path) -> None:
    write_result(job, out)
    os.chdir(tmp_path / "in")
    (again,), *_ = find_images(["a.jpg"])
    assert unfinished([again], Path("../out"), ASKED, resume=True) == []


@pytest.mark.parametrize(
    "asked",
    [
        Settings("da2-small", "float32"),
        Settings(ASKED.model, "float16"),
        Settings(ASKED.model, "float32", revision="v2"),
        Settings(ASKED.model, "float32", input_size=518),
        Settings(ASKED.model, "float32", input_size=(518, 686)),
        Settings(ASKED.model, "float32", formats=("npy", "png16")),
        Settings(ASKED.model, "float32", formats=("npy", "color", "json", "pfm")),
        Settings(ASKED.model, "float32", cmap="gray"),
    ],
    ids=str,
)
def test_other_settings_are_not_complete(asked: Settings, job: Job, out: Path) -> None:
    names = {name: file.name for name, file in job.outputs(out, asked.formats).items()}
    write_result(job, out, earlier_files=list(names.values()))
    for file in job.files(out, asked.formats):  # even where all files are there
        file.touch()
    assert unfinished([job], out, asked, resume=True) == [job]


def test_exact_size_is_recognized(job: Job, out: Path) -> None:
    exact = Settings(ASKED.model, "float32", input_size=(70, 98))
    write_result(job, out, settings=json.loads(json.dumps(exact.facts())))
    assert unfinished([job], out, exact, resume=True) == []


def test_fewer_formats_are_complete(job: Job, out: Path) -> None:
    write_result(job, out)
    assert unfinished([job], out, Settings(ASKED.model, "float32", formats=("color",)), resume=True) == []


def test_half_a_set_is_not_complete(job: Job, out: Path) -> None:
    *results, sidecar = job.files(out, ASKED.formats)
    for missing in results:
        write_result(job, out)
        missing.unlink()
        assert unfinished([job], out, ASKED, resume=True) == [job], missing
    write_result(job, out)
    sidecar.unlink()
    with pytest.raises(SaveError, match=r"a\.npy exists \(and 1 more\), and no sidecar"):
        unfinished([job], out, ASKED, resume=True)


NOT_OURS = ["", "{", "[]", "null", "5", '"x"', "{}", '{"image": 1, "settings": {}, "files": {}}', "\xff", "\0" * 64]


@pytest.mark.parametrize("text", [*NOT_OURS, "[" * 100_000, '{"image": "a.jpg", "settings": {}, "files": {}}'])
def test_sidecar_that_is_not_ours_is_the_user_s(text: str, job: Job, out: Path) -> None:
    write_result(job, out)
    job.sidecar(out).write_bytes(text.encode("latin-1"))
    before = contents(out)
    for options in ({"resume": True}, {"overwrite": True}, {"resume": True, "overwrite": True}, {}):
        with pytest.raises(SaveError, match=r"a\.npy exists \(and 2 more\), and no sidecar of mlx-depth names it"):
            unfinished([job], out, ASKED, **options)
    assert contents(out) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_result_of_another_image_is_neither_complete_nor_replaced(job: Job, out: Path, tmp_path: Path) -> None:
    write_result(job, out)
    touch(tmp_path, "elsewhere/a.jpg")
    (other,), *_ = find_images(["elsewhere/a.jpg"])
    with pytest.raises(SaveError, match=r"a\.json belongs to another image: --overwrite replaces it"):
        unfinished([other], out, ASKED, resume=True)
    assert unfinished([other], out, ASKED, resume=True, overwrite=True) == [other]


def test_existing_result_is_in_the_way(job: Job, out: Path) -> None:
    assert unfinished([job], out, ASKED) == [job]
    write_result(job, out)
    with pytest.raises(SaveError, match=r"a\.npy exists \(and 2 more\): --resume keeps"):
        unfinished([job], out, ASKED)
    for file in job.files(out, ASKED.formats)[:2]:
        file.unlink()
    with pytest.raises(SaveError, match=r"a\.json exists: --resume keeps"):
        unfinished([job], out, ASKED)


def test_link_to_nothing_is_in_the_way(job: Job, out: Path) -> None:
    out.mkdir()
    (out / "a.npy").symlink_to(out / "gone")
    with pytest.raises(SaveError, match=r"a\.npy exists"):
        unfinished([job], out, ASKED)


def test_output_folder_that_is_a_file(job: Job, out: Path) -> None:
    out.write_text("")
    for place in (out, out / "deeper"):
        with pytest.raises(SaveError, match="choose another with -o"):
            unfinished([job], place, ASKED)


# The same photo, and whole results.


def replaced(photo: Path) -> None:
    photo.write_bytes(b"another one")


def touched(photo: Path) -> None:
    os.utime(photo, ns=(1, 1))


def swapped(photo: Path) -> None:
    """As large as before, and with the old time."""
    facts = photo.stat()
    photo.write_bytes(b"PHOTO")
    os.utime(photo, ns=(facts.st_mtime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("change", [replaced, touched, swapped])
def test_another_photo_in_its_place_is_not_complete(change, job: Job, out: Path) -> None:
    Path(job.source).write_bytes(b"photo")
    write_result(job, out)
    assert unfinished([job], out, ASKED, resume=True) == []
    change(Path(job.source))
    assert unfinished([job], out, ASKED, resume=True) == [job]


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_digest_is_of_size_and_both_ends(size: int, tmp_path: Path) -> None:
    photo = tmp_path / "photo.raw"
    photo.write_bytes(data := os.urandom(size))
    facts = photo_facts(str(photo))
    ends = data[: 1 << 16] + data[-(1 << 16) :]
    assert facts == {
        "bytes": size,
        "mtime_ns": photo.stat().st_mtime_ns,
        "digest": hashlib.blake2b(size.to_bytes(8, "little") + ends, digest_size=16).hexdigest(),
    }


def test_url_and_what_is_no_file_have_no_facts(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert [photo_facts(str(source)) for source in ("http://host/a.jpg", tmp_path / "pipe", tmp_path, "gone")] == [
        None
    ] * 4


def test_url_is_complete_by_its_address(out: Path) -> None:
    job = Job("http://host/a.jpg", Path("a"))
    write_result(job, out)
    assert unfinished([job], out, ASKED, resume=True) == []
    assert unfinished([Job("http://other/a.jpg", Path("a"))], out, ASKED, resume=True, overwrite=True) != []


@pytest.mark.parametrize("name", ["a.npy", "a_color.png"])
@pytest.mark.parametrize("data", [b"", b"r", b"result that has grown"])
def test_emptied_or_cut_result_is_not_complete(name: str, data: bytes, job: Job, out: Path) -> None:
    write_result(job, out)
    (out / name).write_bytes(data)
    assert unfinished([job], out, ASKED, resume=True) == [job]


@pytest.mark.parametrize("missing", ["photo", "file_bytes"])
@pytest.mark.parametrize("value", [None, {}, [], 5, {"a.npy": "6"}])
def test_sidecar_of_an_earlier_version_is_not_complete(missing: str, value: object, job: Job, out: Path) -> None:
    """Its files may be replaced, as it names them."""
    write_result(job, out, **{missing: value})
    assert unfinished([job], out, ASKED, resume=True) == [job]
    assert unfinished([job], out, ASKED, overwrite=True) == [job]


# Only what a sidecar of ours names may be replaced.


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}, {"resume": True, "overwrite": True}, {}])
@pytest.mark.parametrize("name", ["a.npy", "a_color.png", "a.json"])
def test_file_of_the_user_is_refused(name: str, options: dict[str, bool], job: Job, out: Path) -> None:
    touch(out, name)
    with pytest.raises(SaveError, match=rf"{name} exists, and no sidecar of mlx-depth names it .* -o\."):
        unfinished([job], out, ASKED, **options)
    assert contents(out) == {name: b""}


def test_file_that_the_sidecar_does_not_name_is_refused(job: Job, out: Path) -> None:
    write_result(job, out)
    touch(out, "a.pfm")
    asked = Settings(ASKED.model, ASKED.dtype, formats=("npy", "pfm"))
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(SaveError, match=r"a\.pfm exists, and no sidecar"):
            unfinished([job], out, asked, **options)


def test_names_that_lead_out_of_the_folder_count_for_nothing(job: Job, out: Path, tmp_path: Path) -> None:
    write_result(job, out, files={"npy": "../a.npy", "color": str(out / "a_color.png"), "pfm": ["a"]}, earlier_files=5)
    with pytest.raises(SaveError, match=r"a\.npy exists \(and 1 more\), and no sidecar"):
        unfinished([job], out, ASKED, overwrite=True)


def test_folder_in_the_place_of_a_result_is_refused(job: Job, out: Path) -> None:
    write_result(job, out)
    (out / "a.npy").unlink()
    (out / "a.npy").mkdir()
    with pytest.raises(SaveError, match=r"a\.npy exists, and"):
        unfinished([job], out, ASKED, overwrite=True)


@pytest.mark.parametrize("how", ["itself", "by a link", "by another name"])
def test_input_is_never_replaced(how: str, tmp_path: Path) -> None:
    """Even where a sidecar names it: it was a result before it became an input."""
    touch(tmp_path / "in", "b.tiff")
    source = {"itself": "in/b.tiff", "by a link": "link/b.tiff", "by another name": "hard.tiff"}[how]
    (tmp_path / "link").symlink_to("in")
    os.link("in/b.tiff", "hard.tiff")
    asked = Settings(ASKED.model, ASKED.dtype, formats=("tiff",))
    job = Job(source, Path("b"))
    write_result(job, tmp_path / "in", files={"tiff": "b.tiff"})
    for name in ("b.npy", "b_color.png"):
        (tmp_path / "in" / name).unlink()
    before = contents(tmp_path / "in")
    for options in ({"resume": True}, {"overwrite": True}, {}):
        with pytest.raises(SaveError, match=r"in/b\.tiff is an input image: choose another output folder with -o"):
            unfinished([job], Path("in"), asked, **options)
    assert contents(tmp_path / "in") == before


def test_nothing_is_made_where_something_is_in_the_way(job: Job, out: Path, tmp_path: Path) -> None:
    touch(out, "a.npy")
    touch(tmp_path, "in/b.jpg")
    jobs, *_ = find_images(["in"])
    with pytest.raises(SaveError):
        unfinished(jobs, out, ASKED, overwrite=True)
    assert sorted(contents(out)) == ["a.npy"]
