"""From what the user names (a folder, a file, a Hugging Face repository) to files on this machine."""

import difflib
import errno
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from mlx_depth.errors import ModelNotFoundError, OptionError

_WEIGHTS = "*.safetensors"
_WANTED = (
    "config.json",
    "preprocessor_config.json",
    "*.safetensors.index.json",
    "README*",
    "LICENSE*",
)
_CONVERTIBLE = (".pth", ".pt", ".bin", ".ckpt", ".gguf")
_TO_CONVERT = tuple(f"*{suffix}" for suffix in _CONVERTIBLE)
_USE_DEMO = "or take the bundled model, which needs no network: --model mlx-depth-demo"
_LOG_IN = "log in (hf auth login, or set HF_TOKEN)"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Location:
    """Where a checkpoint lies on this machine.

    ``path`` is a folder that holds ``*.safetensors`` (or, where asked for, files to convert), or one such file.
    ``repo`` and ``revision`` (the commit) say which Hub repository it is a copy of; both ``None`` for the user's own
    files.
    """

    path: Path
    repo: str | None = None
    revision: str | None = None


def is_name(source: str | Path) -> bool:
    """Whether a source is a word for the registry: neither a local path nor ``owner/name``.

    Args:
        source: As for ``locate``, which refuses such words.
    Returns:
        True for ``depth-anything-v2-small``, False for ``./model``, ``model.safetensors`` and ``owner/name``.
    """
    return not is_path(source) and "/" not in str(source).partition("@")[0]


def is_path(source: str | Path) -> bool:
    """Whether a source can only be a local path; ``owner/name`` can be both.

    Args:
        source: As for ``locate``.
    """
    if isinstance(source, Path):
        return True
    return (
        source.startswith(("/", "./", "../", "~"))
        or source.endswith(("/", ".safetensors", *_CONVERTIBLE))
        or source in (".", "..")
        or source.partition("@")[0].count("/") > 1
    )


def locate(
    source: str | Path, *, revision: str | None = None, progress: bool = True, convertible: bool = False
) -> Location:
    """Find a checkpoint; download it from the Hugging Face Hub where it is not in the cache yet.

    Args:
        source: A local path: any ``Path``, or a string that starts with ``/``, ``./``, ``../`` or ``~``,
            ends with ``/`` or a checkpoint's suffix (``.safetensors``, ``.pth``, ``.gguf`` …), or has two or more
            slashes. Or a repository ``owner/name[@revision]``; a local folder ``owner/name`` that holds a checkpoint
            comes first unless a revision is given. A word without a slash is never taken from the current directory.
        revision: Branch, tag or commit of the repository; its default branch if ``None``.
        progress: Show the Hub's progress bar on stderr while files are downloaded.
        convertible: Take ``.pth``, ``.pt``, ``.bin``, ``.ckpt`` and ``.gguf`` files, too, and folders and repositories
            that hold these alone.
    Returns:
        The local files. A cached repository is used as it is when the Hub cannot be reached.
    Raises:
        ModelNotFoundError: If there is no such checkpoint, or it cannot be downloaded.
        OptionError: If a revision is given twice, or for a local path.

    Files land in the usual Hugging Face cache (``HF_HOME``).
    """
    if is_name(source):
        raise ModelNotFoundError(
            f"no model '{source}': mlx-depth models lists all names; write ./{source} for a folder of yours."
        )
    wanted = (_WEIGHTS, *_TO_CONVERT) if convertible else (_WEIGHTS,)
    if is_path(source):
        if revision is not None:
            raise OptionError(f"{source} is a local path: leave revision '{revision}' out.")
        return _local(Path(source).expanduser(), wanted)
    repo, revision = _split_revision(str(source), revision)
    if revision is None and _holds_checkpoint(Path(repo)):
        return _local(Path(repo), wanted)
    return _remote(repo, revision or "main", progress, wanted)


def find_here(source: str | Path) -> Location | None:
    """Find a checkpoint on this machine alone; asks nobody and downloads nothing.

    Args:
        source: As for ``locate``.
    Returns:
        The local files; None for a repository, or a revision of it, that is not in the Hugging Face cache.
    Raises:
        ModelNotFoundError: If a local path leads to no checkpoint, or the source cannot be a repository.
        OptionError: If the source ends with ``@``.
    """
    if is_path(source):
        return locate(source)
    repo, revision = _split_revision(str(source), None)
    if revision is None and _holds_checkpoint(Path(repo)):
        return _local(Path(repo), (_WEIGHTS,))
    folder = _cached(repo, revision or "main", (_WEIGHTS,))
    return None if folder is None else Location(folder, repo, folder.name)


def is_cached(repo: str) -> bool:
    """Whether a repository is in the Hugging Face cache; asks nobody.

    Args:
        repo: ``owner/name`` on the Hub; its default branch is meant.
    Returns:
        True if ``locate(repo)`` works without a network.
    """
    return _cached(repo, "main", (_WEIGHTS,)) is not None


def upload_folder(folder: Path, repo: str, *, message: str) -> str:
    """Put a folder into a repository of the Hugging Face Hub, which is made where it does not exist.

    Args:
        folder: The folder; its files go to the top of the repository.
        repo: ``owner/name``.
        message: Of the commit.
    Returns:
        The address of the repository.
    Raises:
        OptionError: If ``repo`` cannot be a repository's name.
        ModelNotFoundError: If the Hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    check_repo(repo)
    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except _hub_errors() as error:
        otherwise = f"cannot upload {folder} to {repo} ({_reason(error)}): {_LOG_IN}, or upload it with hf upload."
        raise ModelNotFoundError(_explain(error, repo, "main", otherwise)) from error
    return f"https://huggingface.co/{repo}"


def check_repo(repo: str) -> None:
    """Raise ``OptionError`` unless the text can be a repository's ``owner/name``."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo, re.ASCII):
        raise OptionError(f"{repo!r} cannot be a Hub repository: write owner/name.")


def _split_revision(source: str, revision: str | None) -> tuple[str, str | None]:
    repo, at, written = source.partition("@")
    if not at:
        return repo, revision
    if not written:
        raise OptionError(f"'{source}' ends with @: write a branch, tag or commit after it, or leave it out.")
    if revision is not None:
        raise OptionError(f"'{source}' names a revision already: leave revision '{revision}' out.")
    return repo, written


# Local files.


def _local(path: Path, wanted: tuple[str, ...]) -> Location:
    if not path.exists():
        raise ModelNotFoundError(f"no file or folder {path}: {_near_names(path)}")
    if path.is_dir() and not any(next(path.glob(pattern), None) for pattern in wanted):
        raise ModelNotFoundError(_no_weights(str(path), [child.name for child in path.iterdir()]))
    if path.is_file() and not any(_matches(path.name, pattern) for pattern in wanted):
        raise ModelNotFoundError(f"{path} is not a .safetensors file: {_instead_of(path.name)}")
    return Location(path)


def _holds_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file() or any(folder.glob(_WEIGHTS))


def _near_names(path: Path) -> str:
    parent = path.absolute().parent
    if not parent.is_dir():
        return f"its folder {parent} does not exist either, check the spelling."
    near = difflib.get_close_matches(path.name, [child.name for child in parent.iterdir()])
    if not near:
        return f"nothing in {parent} has a name like it, check the spelling."
    return f"did you mean {' or '.join(str(path.with_name(name)) for name in near)}?"


def _no_weights(where: str, names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:8]) or "nothing"
    return f"{where} has no {_WEIGHTS} (it holds {shown}): {_instead_of(*sorted(names))}"


def _instead_of(*names: str) -> str:
    convertible = next((name for name in names if name.endswith(_CONVERTIBLE)), None)
    if convertible is not None:
        return f"convert {convertible} first (mlx-depth convert --help)."
    return "name a folder, a file or a repository with a model's weights."


# The Hub.


def _remote(repo: str, revision: str, progress: bool, wanted: tuple[str, ...]) -> Location:
    cached = _cached(repo, revision, wanted)
    if cached is not None and cached.name == revision:
        return Location(cached, repo, revision)  # a commit never changes: nothing to ask
    try:
        commit, names = _ask(repo, revision)
    except _hub_errors() as error:
        if cached is not None:
            return Location(cached, repo, cached.name)
        otherwise = (
            f"cannot get {repo}@{revision} from the Hugging Face Hub ({_reason(error)}) and it is not in "
            f"the cache: check the connection and try again, {_USE_DEMO}."
        )
        raise ModelNotFoundError(_explain(error, repo, revision, otherwise)) from error
    if cached is not None and cached.name == commit:
        return Location(cached, repo, commit)
    weights = next((pattern for pattern in wanted if any(_matches(name, pattern) for name in names)), None)
    if weights is None:
        raise ModelNotFoundError(_no_weights(repo, names))
    folder = _download(repo, revision, progress, weights)
    return Location(folder, repo, folder.name)


def _matches(name: str, pattern: str) -> bool:
    return "/" not in name and fnmatchcase(name, pattern)


def _cached(repo: str, revision: str, wanted: tuple[str, ...]) -> Path | None:
    """The complete snapshot in the cache; its name is its commit."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = _snapshot(repo, revision, _WEIGHTS, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelNotFoundError(
            f"'{repo}' cannot be a Hub repository: write owner/name, or ./{repo} for a folder of yours."
        ) from error
    return folder if any(next(folder.glob(pattern), None) for pattern in wanted) else None


def _ask(repo: str, revision: str) -> tuple[str, list[str]]:
    """Commit and file names, within a time limit: ``snapshot_download`` asks the same without one."""
    from huggingface_hub import HfApi, constants

    info = HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    return str(info.sha), [file.rfilename for file in info.siblings or []]


def _download(repo: str, revision: str, progress: bool, weights: str) -> Path:
    try:
        with _progress_bars(progress):
            return _snapshot(repo, revision, weights, local_files_only=False)
    except _hub_errors() as error:
        otherwise = (
            f"the download of {repo} was interrupted ({_reason(error)}): run the same again, "
            "files that are complete are kept."
        )
        raise ModelNotFoundError(_explain(error, repo, revision, otherwise)) from error


def _snapshot(repo: str, revision: str, weights: str, *, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        repo,
        revision=revision,
        allow_patterns=[*_WANTED, weights],
        ignore_patterns="*/*",
        local_files_only=local_files_only,
    )
    return Path(folder)


@contextmanager
def _progress_bars(show: bool) -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if show or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub lets through.

    Its ``HTTPError`` is the base class of its HTTP client (which one differs by version), hf_xet raises
    ``RuntimeError``, and the login page of a public network is not JSON.
    """
    from huggingface_hub.errors import HTTPError

    return HTTPError, OSError, RuntimeError, json.JSONDecodeError


def _explain(error: Exception, repo: str, revision: str, otherwise: str) -> str:
    """The cause and the next step, where the error itself tells them."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{repo}"
    if isinstance(error, GatedRepoError):
        return f"{repo} is gated: accept its licence at {page}, then {_LOG_IN}."
    if isinstance(error, RepositoryNotFoundError):
        return f"no repository {repo} on the Hugging Face Hub: check the spelling or, if private, {_LOG_IN}."
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision '{revision}': see its branches and tags at {page}/tree/main."
    if isinstance(error, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set and {repo}@{revision} is not in the cache: unset it, {_USE_DEMO}."
    if isinstance(error, HfHubHTTPError) and error.response.status_code == 401:
        return f"the Hugging Face Hub refused your token: {_LOG_IN}."
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return f"the disk is full: free some space for {repo}, or set HF_HOME to a folder on a larger disk."
    if isinstance(error, OSError) and error.errno in _NO_ACCESS:
        return f"cannot write {error.filename}: set HF_HOME to a folder that you may write to."
    return otherwise


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return "the answer is not the Hub's, perhaps a login page"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
