"""The Hugging Face Hub: the cache, downloads, uploads, and clear errors; the one place that knows its library."""

import errno
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from mlx_depth.errors import ModelNotFoundError, OptionError
from mlx_depth.weights.choose import BESIDE, CONFIG, INDEX, PROCESSOR, choose, holds_weights, other_half
from mlx_depth.weights.safetensors_io import weight_files

_USE_DEMO = "or take the bundled model, which needs no network: --model mlx-depth-demo"
_LOG_IN = "log in (hf auth login, or set HF_TOKEN)"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)


def is_cached(repo: str) -> bool:
    """Whether a repository ``owner/name`` is in the Hugging Face cache, its default branch; asks nobody."""
    return cached(repo, "main") is not None


def cached(repo: str, revision: str, *, inside: str = "", convertible: bool = False) -> Path | None:
    """The snapshot of a repository in the Hugging Face cache, if it holds weights; its name is its commit. Asks nobody.

    Args:
        repo: ``owner/name``.
        revision: Branch, tag or commit.
        inside: Folder or file in the repository.
        convertible: As for ``weights.choose.choose``.
    Raises:
        ModelNotFoundError: If this cannot be the name of a repository.
    """
    folder = _snapshot_folder(repo, revision)
    return folder if folder is not None and _has_weights(folder / inside, convertible) else None


def _snapshot_folder(repo: str, revision: str) -> Path | None:
    """Where the cache keeps a revision, whoever filled it: huggingface_hub itself hides what it did not complete."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ModelNotFoundError(
            f"'{repo}' cannot be a Hub repository: write owner/name, or ./{repo} for a folder of yours."
        ) from error
    storage = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type="model"))
    reference = storage / "refs" / revision
    folder = storage / "snapshots" / (reference.read_text().strip() if reference.is_file() else revision)
    return folder if folder.is_dir() else None


def _has_weights(place: Path, convertible: bool) -> bool:
    """Whether a cached folder or file is all there; of shards, every one."""
    if not place.is_dir():
        return place.is_file()
    if not holds_weights(_names(place), convertible=convertible):
        return False
    return not (place / INDEX).is_file() or all(file.is_file() for file in weight_files(place))


def fetch(
    repo: str, revision: str, *, inside: str = "", convertible: bool = False, progress: bool = True
) -> tuple[Path, str]:
    """Bring a checkpoint's files onto this machine, into the usual Hugging Face cache (``HF_HOME``).

    Args:
        repo: ``owner/name``.
        revision: Branch, tag or commit.
        inside: Folder or file in the repository.
        convertible: As for ``weights.choose.choose``.
        progress: Show the Hub's progress bar on stderr.
    Returns:
        The snapshot's folder and its commit. What is cached is used as it is when the Hub cannot be reached.
    Raises:
        ModelNotFoundError: If there is no such checkpoint, or it cannot be downloaded.
    """
    here = cached(repo, revision, inside=inside, convertible=convertible)
    if here is not None and here.name == revision and _looks_whole(here / inside):
        return here, revision  # a commit never changes: nothing to ask
    try:
        commit, names = _ask(repo, revision)
    except _hub_errors() as error:
        if here is not None:
            if not _looks_whole(here / inside):
                warnings.warn(f"{repo} is in the cache without {PROCESSOR}, and the Hub cannot be asked.", stacklevel=4)
            return here, here.name
        otherwise = (
            f"cannot get {repo}@{revision} from the Hugging Face Hub ({_reason(error)}) and it is not in "
            f"the cache: check the connection and try again, {_USE_DEMO}."
        )
        raise ModelNotFoundError(_explain(error, repo, revision, otherwise)) from None
    wanted = _wanted(repo, names, inside, convertible)
    if here is not None and here.name == commit and all((here / name).is_file() for name in wanted):
        return here, commit
    folder = _download(repo, revision, progress, wanted)
    return folder, folder.name


def _names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def _looks_whole(place: Path) -> bool:
    """Whether both configs are there: another program may have taken the weights alone."""
    return place.is_file() or all((place / name).is_file() for name in (CONFIG, PROCESSOR))


def _wanted(repo: str, names: Sequence[str], inside: str, convertible: bool) -> list[str]:
    """The files of a repository that make up its checkpoint: weights, and what stands beside them."""
    folder = inside
    if inside in names:
        folder = inside.rpartition("/")[0]
    start = f"{folder}/" if folder else ""
    level = [name.removeprefix(start) for name in names if name.startswith(start)]
    level = [name for name in level if "/" not in name]
    if inside in names:
        own = inside.removeprefix(start)
        weights: Sequence[str] = [own, *(name for name in level if name == other_half(own))]
    elif not holds_weights(level, convertible=True) and (deeper := _folders_with_weights(names, convertible)):
        raise ModelNotFoundError(
            f"{repo} has its weights in folders: name one of {', '.join(f'{repo}/{each}' for each in deeper)}."
        )
    else:
        where = f"{repo}/{folder}" if folder else repo
        weights = choose(level, where=where, convertible=convertible)
    beside = [name for name in level if any(fnmatchcase(name, pattern) for pattern in BESIDE)]
    return [start + name for name in dict.fromkeys([*beside, *weights])]


def _folders_with_weights(names: Sequence[str], convertible: bool) -> list[str]:
    folders = sorted({name.rpartition("/")[0] for name in names if "/" in name})
    return [
        folder
        for folder in folders
        if holds_weights(
            [name.rpartition("/")[2] for name in names if name.rpartition("/")[0] == folder], convertible=convertible
        )
    ]


def _ask(repo: str, revision: str) -> tuple[str, list[str]]:
    """Commit and file names, within a time limit: ``snapshot_download`` asks the same without one."""
    from huggingface_hub import HfApi, constants

    info = HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    return str(info.sha), [file.rfilename for file in info.siblings or []]


def _download(repo: str, revision: str, progress: bool, wanted: Sequence[str]) -> Path:
    try:
        with _progress_bars(progress):
            return _snapshot(repo, revision, wanted)
    except _hub_errors() as error:
        otherwise = (
            f"the download of {repo} was interrupted ({_reason(error)}): run the same again, "
            "files that are complete are kept."
        )
        raise ModelNotFoundError(_explain(error, repo, revision, otherwise)) from None


def _snapshot(repo: str, revision: str, wanted: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, revision=revision, allow_patterns=[_literal(name) for name in wanted]))


def _literal(name: str) -> str:
    """A pattern that matches this name alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


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
        raise ModelNotFoundError(_explain(error, repo, "main", otherwise)) from None
    return f"https://huggingface.co/{repo}"


def check_repo(repo: str) -> None:
    """Raise ``OptionError`` unless the text can be a repository's ``owner/name``."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo, re.ASCII):
        raise OptionError(f"{repo!r} cannot be a Hub repository: write owner/name.")


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
        return f"{repo} is gated: accept its license at {page}, then {_LOG_IN}."
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
