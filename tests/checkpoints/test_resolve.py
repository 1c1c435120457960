"""What the user names, in this process; the Hub itself is out of bounds."""

from pathlib import Path

import pytest

from mlx_depth.checkpoints import hub
from mlx_depth.checkpoints.resolve import Resolved, canonical_name, published_spec, resolve
from mlx_depth.errors import ModelNotFoundError, OptionError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A converted model at ``mine/model`` of the current directory; the Hub is out of bounds."""
    made = tmp_path / "mine" / "model"
    made.mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: pytest.fail("asked the Hub"))
    return made


@pytest.mark.parametrize(
    "source",
    ["./mine/model", "mine/../mine/model", "mine/model/", "~/mine/model", "mine/model", Path("mine/model")],
)
def test_local_folder(folder: Path, source: str | Path) -> None:
    found = resolve(source)
    assert found.path.resolve() == folder.resolve()
    assert found == Resolved(found.path, spec=None, repo=None, revision=None)


@pytest.mark.parametrize("source", ["model.safetensors", "./model.safetensors", Path("model.safetensors")])
def test_local_file(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str | Path) -> None:
    monkeypatch.chdir(folder)
    assert resolve(source).path.resolve() == (folder / "model.safetensors").resolve()


def test_absolute_paths(folder: Path) -> None:
    assert resolve(str(folder)) == Resolved(folder)
    assert resolve(str(folder / "model.safetensors")) == Resolved(folder / "model.safetensors")


def test_a_word_is_a_folder_with_a_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``convert ./hf x`` prints ``x``, and that is how the next command names it."""
    monkeypatch.chdir(folder.parent)
    assert resolve("model").path.resolve() == folder.resolve()
    assert resolve("./model").path.resolve() == folder.resolve()


@pytest.mark.parametrize("name", ["depth-anything-v2-small", "da2-small"])
def test_a_folder_never_stands_for_a_published_model(
    folder: Path, name: str, asked: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    folder.rename(folder.with_name(name))
    resolve(name)
    assert asked == [("depth-anything/Depth-Anything-V2-Small-hf", "main")]
    assert resolve(f"./{name}").path.resolve() == folder.with_name(name)


def test_a_word_that_is_nothing(folder: Path) -> None:
    (folder.parent.parent / "plain").mkdir()
    for word in ("model", "plain"):
        with pytest.raises(ModelNotFoundError, match=rf"no model '{word}': .*write \./{word} for a folder"):
            resolve(word)


@pytest.mark.parametrize(
    ("source", "spec"),
    [
        ("da2-small", "depth-anything-v2-small"),
        ("depth_anything_v2_vits", "depth-anything-v2-small"),
        ("depth-anything/Depth-Anything-V2-Small-hf", "depth-anything-v2-small"),
        ("depth-anything/Depth-Anything-V2-Small-hf@main", "depth-anything-v2-small"),
        ("some-one/else", None),
        ("./da2-small", None),
        (Path("da2-small"), None),
    ],
)
def test_what_is_published(source: str | Path, spec: str | None) -> None:
    found = published_spec(source)
    assert (found.name if found is not None else None) == spec


def test_aliases_have_one_name() -> None:
    assert canonical_name("DA2-Small") == "depth-anything-v2-small"
    assert (
        canonical_name("depth-anything/Depth-Anything-V2-Small-hf@v1") == "depth-anything/Depth-Anything-V2-Small-hf@v1"
    )
    assert canonical_name(Path("da2-small")) == Path("da2-small")


@pytest.fixture
def asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Repository and revision of what is asked of the Hub, which answers with the folder."""
    asked: list[tuple[str, str]] = []

    def fetch(repo: str, revision: str, **_: object) -> tuple[Path, str]:
        asked.append((repo, revision))
        return folder, "f" * 40

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(hub, "is_cached", lambda repo: True)
    return asked


def test_a_revision_means_the_hub(folder: Path, asked: list[tuple[str, str]]) -> None:
    answer = Resolved(folder, None, "mine/model", "f" * 40)
    assert resolve("mine/model@v1") == answer
    assert resolve("mine/model", revision="v2") == answer
    assert resolve("da2-small@v3").spec is published_spec("da2-small")
    assert [revision for _, revision in asked] == ["v1", "v2", "v3"]


def test_a_folder_without_a_checkpoint_does_not_hide_the_hub(folder: Path, asked: list[tuple[str, str]]) -> None:
    (folder.parent / "empty").mkdir()
    assert resolve("mine/empty").repo == "mine/empty"
    assert asked == [("mine/empty", "main")]


@pytest.mark.parametrize("name", ["latest.gguf", "latest.pth", "model.safetensors.index.json"])
def test_a_folder_with_any_checkpoint_is_local(folder: Path, name: str) -> None:
    run = folder.parent / "run"
    run.mkdir()
    (run / name).write_text("{}")
    assert resolve("mine/run", convertible=True) == Resolved(Path("mine/run"))


def test_a_misspelt_path_is_no_repository(folder: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no file or folder mine/modle/fp16: its folder"):
        resolve("mine/modle/fp16")


def test_a_suffix_in_capitals(folder: Path) -> None:
    (folder / "RUN.PTH").touch()
    assert resolve("mine/model/RUN.PTH", convertible=True).path == Path("mine/model/RUN.PTH")
    assert resolve("mine/model", file="RUN.PTH", convertible=True).path == Path("mine/model/RUN.PTH")


def test_missing_path_names_its_neighbours(folder: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no file or folder mine/modle: did you mean mine/model\?"):
        resolve("./mine/modle")
    with pytest.raises(ModelNotFoundError, match=r"nothing in .*mine has a name like it"):
        resolve("./mine/zzzz")
    with pytest.raises(ModelNotFoundError, match=r"its folder .*nowhere does not exist either"):
        resolve("./nowhere/model")


def test_folder_without_weights_says_what_it_holds(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "depth.pth")
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(folder)
    assert "no *.safetensors (it holds config.json, depth.pth): convert depth.pth first" in str(caught.value)
    (folder / "depth.pth").unlink()
    with pytest.raises(ModelNotFoundError, match=r"holds config\.json.*with a model's weights"):
        resolve(folder)


def test_file_that_is_no_safetensors(folder: Path) -> None:
    (folder / "depth.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(ModelNotFoundError, match=r"not a \.safetensors file: convert depth\.gguf first"):
        resolve(folder / "depth.gguf")


@pytest.mark.parametrize(
    ("source", "revision", "reason"),
    [
        ("./mine/model", "main", "local path: leave revision 'main' out"),
        ("mine/model@v1", "v2", "names a revision already"),
        ("mine/model@", None, "write a branch, tag or commit"),
    ],
)
def test_revisions_that_cannot_be_meant(folder: Path, source: str, revision: str | None, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        resolve(source, revision=revision)
