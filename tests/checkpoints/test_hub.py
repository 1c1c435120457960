"""The Hub against a server on loopback, each case in a fresh interpreter.

huggingface_hub reads ``HF_ENDPOINT`` and ``HF_HOME`` when it is imported, hence the interpreters.
"""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hub_server import FakeHub
from warm import Interpreters

from mlx_depth.checkpoints import hub
from mlx_depth.checkpoints.resolve import resolve
from mlx_depth.errors import ModelNotFoundError

REPO = "some-one/tiny-depth"
WANTED = {"README.md", "LICENSE", "config.json", "preprocessor_config.json", "model.safetensors"}

SCRIPT = """
import json, sys, time
time.sleep = lambda seconds: None  # retries do not wait
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1024  # the small files come in several pieces
from mlx_depth.errors import MlxDepthError
from mlx_depth.checkpoints.hub import is_cached
from mlx_depth.checkpoints.resolve import resolve, resolve_here
source, options = json.loads(sys.argv[1])
find = resolve_here if options.pop("here", False) else resolve
answer = {"cached": is_cached("some-one/tiny-depth")}
try:
    found = find(source, **options)
    answer |= {"path": str(found.path), "repo": found.repo, "revision": found.revision} if found else {"path": None}
except MlxDepthError as error:
    answer |= {"error": type(error).__name__, "message": str(error)}
print(json.dumps(answer))
"""


@dataclass
class User:
    """Someone with a Hugging Face cache of their own."""

    hub: FakeHub
    home: Path
    interpreters: Interpreters
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, source: str = REPO, **options: object) -> tuple[dict[str, object], str]:
        """Answer and stderr of ``resolve(source, **options)``; the server's log starts anew."""
        self.hub.log.clear()
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        own = {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.home), "HF_HUB_DISABLE_TELEMETRY": "1"}
        environment = clean | own | self.environment
        done = self.interpreters.run(SCRIPT, json.dumps([source, options]), env=environment, cwd=self.home)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    def locate(self, source: str = REPO, **options: object) -> dict[str, object]:
        answer, _ = self.run(source, **options)
        assert "error" not in answer, answer["message"]
        return answer

    def fail(self, source: str = REPO, **options: object) -> str:
        """The message of the error that ``resolve`` raises."""
        answer, _ = self.run(source, **options)
        assert answer["error"] == "ModelNotFoundError"
        return str(answer["message"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeHub]:
    folder = tmp_path / "hub" / REPO
    (folder / "onnx").mkdir(parents=True)
    for name in WANTED | {"model.pth", "onnx/model.safetensors", "tokenizer.json"}:
        (folder / name).write_text(f"{{}} content of {name} " * 200)
    with FakeHub(tmp_path / "hub") as fake:
        yield fake


@pytest.fixture(scope="module")
def interpreters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreters]:
    with Interpreters(tmp_path_factory.mktemp("interpreters")) as running:
        yield running


@pytest.fixture
def user(server: FakeHub, interpreters: Interpreters, tmp_path: Path) -> User:
    home = tmp_path / "home"
    home.mkdir()
    return User(server, home, interpreters)


# The Hub.


def test_download_takes_what_a_model_needs(user: User) -> None:
    answer = user.locate()
    folder = Path(str(answer["path"]))
    assert {path.name for path in folder.iterdir()} == WANTED
    assert user.hub.fetched() == WANTED
    for name in WANTED:
        assert (folder / name).read_bytes() == (user.hub.folder / REPO / name).read_bytes()
    assert answer["repo"] == REPO
    assert answer["revision"] == user.hub.commit(REPO) == folder.name
    assert user.home in folder.parents
    assert answer["cached"] is False


def test_shards_come_with_their_index(user: User) -> None:
    folder = user.hub.folder / REPO
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").write_text("second shard")
    (folder / "model.safetensors.index.json").write_text("{}")
    got = {path.name for path in Path(str(user.locate()["path"])).iterdir()}
    assert got == WANTED - {"model.safetensors"} | {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    }


def test_second_time_asks_once_and_downloads_nothing(user: User) -> None:
    first = user.locate()
    assert user.locate() == first | {"cached": True}
    assert user.hub.log == [f"GET /api/models/{REPO}/revision/main"]


def test_cached_commit_asks_nobody(user: User) -> None:
    first = user.locate()
    pinned = f"{REPO}@{first['revision']}"
    assert user.locate(pinned) == first | {"cached": True}
    assert user.hub.log == []


def test_cache_serves_offline_and_when_the_hub_is_gone(user: User) -> None:
    first = user.locate()
    user.environment["HF_HUB_OFFLINE"] = "1"
    assert user.locate()["path"] == first["path"]
    assert user.hub.log == []
    del user.environment["HF_HUB_OFFLINE"]
    user.hub.status = 503
    assert user.locate()["path"] == first["path"]
    user.hub.stop()
    assert user.locate()["path"] == first["path"]


def test_a_new_commit_is_downloaded(user: User) -> None:
    first = user.locate()
    (user.hub.folder / REPO / "model.safetensors").write_text("better weights")
    second = user.locate()
    assert second["revision"] == user.hub.commit(REPO) != first["revision"]
    assert Path(str(second["path"]), "model.safetensors").read_text() == "better weights"
    assert user.hub.fetched() == {"model.safetensors"}  # the other files are the same


def test_find_here_asks_nobody(user: User) -> None:
    assert user.locate(here=True)["path"] is None
    first = user.locate()
    (user.hub.folder / REPO / "model.safetensors").write_text("better weights")
    assert user.locate(here=True) == first | {"cached": True}
    assert user.locate(f"{REPO}@{first['revision']}", here=True)["path"] == first["path"]
    assert user.locate(f"{REPO}@v2", here=True)["path"] is None
    assert user.hub.log == []


def test_revision_by_argument_and_in_the_name(user: User) -> None:
    commit = user.hub.commit(REPO)
    assert user.locate(revision=commit)["revision"] == commit
    assert user.locate(f"{REPO}@main")["revision"] == commit


def test_unknown_repository(user: User) -> None:
    message = user.fail("some-one/tiny-dept")
    assert "no repository some-one/tiny-dept" in message
    assert "spelling" in message
    assert "hf auth login" in message


def test_unknown_revision(user: User) -> None:
    message = user.fail(revision="v9")
    assert f"{REPO} has no revision 'v9'" in message
    assert f"https://huggingface.co/{REPO}/tree/main" in message


def test_gated_repository(user: User) -> None:
    user.hub.gated = True
    message = user.fail()
    assert f"{REPO} is gated" in message
    assert f"https://huggingface.co/{REPO}," in message
    assert "hf auth login" in message


def test_refused_token(user: User) -> None:
    user.hub.status = 401
    assert "refused your token: log in" in user.fail()


def test_not_a_repository_name(user: User) -> None:
    with pytest.raises(ModelNotFoundError, match=r"'some one/x' cannot be a Hub repository: write owner/name"):
        resolve("some one/x")


def test_offline_and_not_cached_names_the_demo(user: User) -> None:
    user.environment["HF_HUB_OFFLINE"] = "1"
    message = user.fail()
    assert f"HF_HUB_OFFLINE is set and {REPO}@main is not in the cache" in message
    assert "--model mlx-depth-demo" in message
    assert user.hub.log == []


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("refused", "[Errno"),
        ("status 500", "Server error '500"),
        ("login page", "the answer is not the Hub's"),
        ("silent", "timed out"),
    ],
)
def test_unreachable_and_not_cached_names_the_demo(user: User, trouble: str, reason: str) -> None:
    user.environment["HF_HUB_ETAG_TIMEOUT"] = "1"
    user.hub.status = 500 if trouble == "status 500" else None
    user.hub.html = trouble == "login page"
    user.hub.silent = trouble == "silent"
    if trouble == "refused":
        user.hub.stop()
    start = time.monotonic()
    message = user.fail()
    assert f"cannot get {REPO}@main from the Hugging Face Hub ({reason}" in message
    assert "try again" in message
    assert "--model mlx-depth-demo" in message
    assert time.monotonic() - start < 30  # huggingface_hub alone waits without an end for a silent server


def test_repository_without_safetensors(user: User) -> None:
    (user.hub.folder / REPO / "model.safetensors").unlink()
    message = user.fail()
    assert f"{REPO} has no *.safetensors (it holds LICENSE, README.md, config.json" in message
    assert "convert model.pth first (mlx-depth convert" in message
    assert user.hub.fetched() == set()


def test_a_broken_connection_is_resumed(user: User) -> None:
    user.hub.cut_store = 1
    folder = Path(str(user.locate()["path"]))
    original = (user.hub.folder / REPO / "model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == original
    asked = [line for line in user.hub.log if line.startswith("GET /store")]
    assert len(asked) == 2
    assert asked[1].endswith("bytes=3072-")  # what had come whole before the cut at half the size
    assert 3072 < len(original) // 2 < 4096


@pytest.mark.parametrize("trouble", ["cut for good", "too short"])
def test_an_interrupted_download_goes_on_later(user: User, trouble: str) -> None:
    user.hub.cut_store = 1000 if trouble == "cut for good" else 0
    user.hub.short_store = trouble == "too short"
    message = user.fail()
    assert f"the download of {REPO} was interrupted" in message
    assert "run the same again" in message

    user.environment["HF_HUB_OFFLINE"] = "1"
    answer, _ = user.run()
    assert answer["cached"] is False  # a part is never taken for the whole
    assert answer["error"] == "ModelNotFoundError"

    user.environment.clear()
    user.hub.cut_store, user.hub.short_store = 0, False
    folder = Path(str(user.locate()["path"]))
    assert {path.name for path in folder.iterdir()} == WANTED
    assert "model.safetensors" in user.hub.fetched()
    assert user.hub.fetched() != WANTED  # complete files were kept


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "the disk is full: free some space"),
        (errno.EROFS, "cannot write /cache/blob: set HF_HOME"),
    ],
)
def test_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, number: int, expected: str) -> None:
    def snapshot(repo: str, revision: str, wanted: object) -> Path:
        raise OSError(number, os.strerror(number), "/cache/blob")

    monkeypatch.setattr(hub, "cached", lambda *_, **__: None)
    monkeypatch.setattr(hub, "_ask", lambda repo, revision: ("0" * 40, ["model.safetensors"]))
    monkeypatch.setattr(hub, "_snapshot", snapshot)
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(REPO)
    assert expected in str(caught.value)


def test_progress_bar_can_be_switched_off(user: User) -> None:
    user.environment["TQDM_POSITION"] = "-1"  # huggingface_hub: bars even where stderr is no terminal
    _, errors = user.run(progress=False)
    assert errors == ""
    (user.hub.folder / REPO / "config.json").write_text("{}")
    _, errors = user.run()
    assert "Fetching 5 files" in errors


def test_import_leaves_huggingface_hub_alone() -> None:
    code = "import sys, mlx_depth.checkpoints.hub; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Repositories that hold more than one model's files.


def test_the_newer_file_beats_an_index_that_was_left_behind(user: User) -> None:
    folder = user.hub.folder / REPO
    (folder / "model-00001-of-00002.safetensors").write_text("old")
    (folder / "model.safetensors.index.json").write_text("{}")
    got = {path.name for path in Path(str(user.locate()["path"])).iterdir()}
    assert got == WANTED


def test_a_snapshot_that_another_program_filled_in_part_is_completed(user: User) -> None:
    folder = Path(str(user.locate()["path"]))
    (folder / "preprocessor_config.json").unlink()
    again = Path(str(user.locate(f"{REPO}@{folder.name}")["path"]))
    assert again == folder
    assert {path.name for path in folder.iterdir()} == WANTED


def test_a_cache_in_part_is_used_with_a_word_where_the_hub_is_gone(user: User) -> None:
    folder = Path(str(user.locate()["path"]))
    (folder / "preprocessor_config.json").unlink()
    user.hub.stop()
    answer, errors = user.run()
    assert answer["path"] == str(folder)
    assert "is in the cache without preprocessor_config.json" in errors


@pytest.fixture
def collection(user: User) -> User:
    """Weights in two folders, and two files of one."""
    folder = user.hub.folder / REPO
    (folder / "model.safetensors").unlink()
    (folder / "model.pth").unlink()
    for size in ("small", "base"):
        (folder / size).mkdir()
        (folder / size / "config.json").write_text("{}")
        (folder / size / "model.safetensors").write_text(size)
    return user


def test_weights_in_folders_are_named(collection: User) -> None:
    message = collection.fail()
    assert "has its weights in folders" in message
    assert f"{REPO}/base, {REPO}/onnx, {REPO}/small" in message


@pytest.mark.parametrize(
    "source", [f"{REPO}/small", f"{REPO}@main/small", "https://huggingface.co/{repo}/tree/main/small"]
)
def test_a_folder_of_a_repository(collection: User, source: str) -> None:
    folder = Path(str(collection.locate(source.format(repo=REPO))["path"]))
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_text() == "small"
    assert collection.hub.fetched() == {"small/config.json", "small/model.safetensors"}


def test_a_file_of_a_repository_by_option_name_and_address(user: User) -> None:
    for name in ("indoor.pth", "outdoor.pth"):
        (user.hub.folder / REPO / name).write_text(name)
    (user.hub.folder / REPO / "model.safetensors").unlink()
    (user.hub.folder / REPO / "model.pth").unlink()
    answer, _ = user.run(convertible=True)
    assert answer["error"] == "CheckpointError"
    assert "holds several checkpoints (indoor.pth, outdoor.pth): name the file itself" in str(answer["message"])
    address = f"{user.hub.url}/{REPO}/resolve/main/outdoor.pth"
    for found in (
        user.locate(f"{REPO}/outdoor.pth", convertible=True),
        user.locate(file="outdoor.pth", convertible=True),
        user.locate(address, convertible=True),
    ):
        assert Path(str(found["path"])).read_text() == "outdoor.pth"


def test_what_a_training_run_leaves_is_no_choice(user: User) -> None:
    folder = user.hub.folder / REPO
    (folder / "model.safetensors").unlink()
    (folder / "model.pth").rename(folder / "pytorch_model.bin")
    for name in ("training_args.bin", "rng_state.pth", "optimizer.pt", "scheduler.pt"):
        (folder / name).write_text("no model")
    found = Path(str(user.locate(convertible=True)["path"]))
    assert {path.name for path in found.iterdir()} == WANTED - {"model.safetensors"} | {"pytorch_model.bin"}


@pytest.mark.parametrize("address", ["https://example.org/model.pth", "https://huggingface.co/only-an-owner"])
def test_another_address_is_told_from_a_path(user: User, address: str) -> None:
    assert "is no address of a model on the Hugging Face Hub" in user.fail(address)
    assert user.hub.log == []
