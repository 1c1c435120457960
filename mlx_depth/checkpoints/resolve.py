"""From what the user names to files on this machine and, for a published model, its entry: asked once, here."""

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlx_depth.checkpoints import hub
from mlx_depth.errors import ModelNotFoundError, OptionError, similar
from mlx_depth.registry import ModelSpec, find_model, find_published
from mlx_depth.weights import first_bytes
from mlx_depth.weights.choose import CONFIG, SAFETENSORS, holds_weights, instead_of, is_convertible, no_weights

_HUB_HOSTS = ("huggingface.co", "hf.co")


@dataclass(frozen=True)
class Resolved:
    """A model that was found.

    Attributes:
        path: A folder with weights, or one file of them.
        spec: The published model that these are; None for anybody else's.
        repo: Hub repository ``owner/name`` of which the files are a copy; None for local ones.
        revision: Its commit.
    """

    path: Path
    spec: ModelSpec | None = None
    repo: str | None = None
    revision: str | None = None

    @property
    def name(self) -> str:
        """What to call it in a report: a bundled model's name, the repository, or the name of the folder or file."""
        if self.repo is not None:
            return self.repo
        return self.spec.name if self.spec is not None else self.path.resolve().name


@dataclass(frozen=True)
class _OnHub:
    """A place on the Hub."""

    repo: str
    revision: str | None = None
    inside: str = ""  # folder or file in the repository


def resolve(
    source: str | Path,
    *,
    revision: str | None = None,
    file: str | None = None,
    convertible: bool = False,
    progress: bool = True,
) -> Resolved:
    """Find a model; download it from the Hugging Face Hub where it is not in the cache yet.

    Args:
        source: In this order: a name or alias of the registry; a local path; a Hub repository
            ``owner/name[@revision]``, a folder or file in it (``owner/name/small``), or the address of one of these on
            huggingface.co. A string is a local path if it starts with ``/``, ``./``, ``../`` or ``~``, ends with ``/``
            or a checkpoint's suffix, or leads to a folder with a checkpoint.
        revision: Branch, tag or commit of the repository; its default branch if None. It always means the Hub.
        file: Folder or file in the folder or repository.
        convertible: Take what only the conversion tool reads, too: ``.pth``, ``.pt``, ``.bin``, ``.ckpt``, ``.gguf``.
        progress: Show the Hub's progress bar on stderr.
    Returns:
        The local files. A cached repository is used as it is when the Hub cannot be reached.
    Raises:
        ModelNotFoundError: If there is no such model, or it cannot be downloaded.
        CheckpointError: If several checkpoints could be meant.
        OptionError: If a revision is given twice, or for a local path.
    """
    found = _identify(source, revision, file, convertible)
    if isinstance(found, Resolved):
        return found
    spec = find_published(found.repo)
    if spec is not None:
        _warn_license(spec, found.repo)
    folder, commit = hub.fetch(
        found.repo, found.revision or "main", inside=found.inside, convertible=convertible, progress=progress
    )
    return Resolved(folder / found.inside, spec, found.repo, commit)


def resolve_here(source: str | Path) -> Resolved | None:
    """``resolve`` on this machine alone: asks nobody and downloads nothing; None for what is not in the cache."""
    try:
        found = _identify(source, None, None, convertible=False)
    except _UnreleasedError:
        return None
    if isinstance(found, Resolved):
        return found
    folder = hub.cached(found.repo, found.revision or "main", inside=found.inside)
    if folder is None:
        return None
    return Resolved(folder / found.inside, find_published(found.repo), found.repo, folder.name)


def published_spec(source: str | Path) -> ModelSpec | None:
    """The registry's entry of a name, an alias or a Hub repository; None for anything else. Nothing is read."""
    text = str(source)
    if not isinstance(source, Path) and _is_registered(text):
        return find_model(text)
    return None if isinstance(source, Path) or Path(text).exists() else find_published(text.partition("@")[0])


def canonical_name(source: str | Path) -> str | Path:
    """The registry's name for an alias of it; anything else as it is."""
    return find_model(source).name if isinstance(source, str) and _is_registered(source) else source


class _UnreleasedError(ModelNotFoundError):
    """A model of the registry that has no weights anywhere, or none that can be loaded as they are."""


def _identify(source: str | Path, revision: str | None, file: str | None, convertible: bool) -> Resolved | _OnHub:
    if isinstance(source, os.PathLike):
        source = Path(source)
    if isinstance(source, Path):
        return _local(source, revision, file, convertible)
    if not isinstance(source, str):
        raise OptionError(f"a model is named by text or a path, not {type(source).__name__}: give a name or a folder.")
    if "://" in source:
        return _address(source, revision, file)
    if _is_registered(source.partition("@")[0]):
        name, revision = _split_revision(source, revision)
        return _registered(find_model(name), revision, file)
    if _is_path(source) or (revision is None and "@" not in source and _is_model_folder(source, file)):
        return _local(Path(source), revision, file, convertible)
    name, revision = _split_revision(source, revision)
    if "/" not in name:
        find_model(source)  # raises, with the nearest names
    owner, repo, *inside = name.split("/")
    if inside and Path(owner).is_dir():
        return _local(Path(source), revision, file, convertible)  # a path that is misspelt, not a repository
    revision, *further = (revision or "").split("/", 1)
    parts = [*inside, *further, *([file] if file else [])]
    return _OnHub(f"{owner}/{repo}", revision or None, "/".join(parts))


def _is_registered(source: str) -> bool:
    try:
        find_model(source)
    except ModelNotFoundError:
        return False
    return True


def _registered(spec: ModelSpec, revision: str | None, file: str | None) -> Resolved | _OnHub:
    if spec.folder is not None:
        if revision is not None:
            raise OptionError(f"{spec.name} is on this disk in one version: leave revision {revision!r} out.")
        return Resolved(spec.folder, spec)
    if spec.convert_from is not None and "://" in spec.convert_from:
        raise _UnreleasedError(
            f"the weights of {spec.name} are the authors' file {spec.convert_from}: download it, then "
            f"mlx-depth convert {spec.convert_from.rpartition('/')[2]} {spec.name}-mlx, and take ./{spec.name}-mlx."
        )
    if spec.convert_from is not None:
        raise _UnreleasedError(
            f"the weights of {spec.name} are a PyTorch file in {spec.convert_from} that has to be converted first: "
            f"mlx-depth convert {spec.convert_from} {spec.name}-mlx --file FILE, then take ./{spec.name}-mlx."
        )
    if spec.hub_id is None:
        raise _UnreleasedError(f"the weights of {spec.name} are not released: choose another of `mlx-depth models`.")
    return _OnHub(spec.hub_id, revision, file or "")


def _is_path(source: str) -> bool:
    """Whether a string can only be a local path: by its form, or as what it names is here."""
    plain = source.startswith(("/", "./", "../", "~")) or source.endswith("/") or source in (".", "..")
    return plain or (_is_weights(source) and (source.count("/") < 2 or Path(source).exists()))


def _is_weights(name: str) -> bool:
    return name.lower().endswith(SAFETENSORS) or is_convertible(name)


def _is_model_folder(source: str, file: str | None) -> bool:
    """Whether a word or ``a/b`` is a folder here with a checkpoint in it, and so not a repository."""
    folder = Path(source)
    if not folder.is_dir():
        return False
    if file is not None:
        return (folder / file).exists()
    names = [child.name for child in folder.iterdir()]
    return CONFIG in names or holds_weights(names, convertible=True)


def _split_revision(source: str, revision: str | None) -> tuple[str, str | None]:
    name, at, written = source.partition("@")
    if not at:
        return name, revision
    if not written:
        raise OptionError(f"'{source}' ends with @: write a branch, tag or commit after it, or leave it out.")
    if revision is not None:
        raise OptionError(f"'{source}' names a revision already: leave revision '{revision}' out.")
    return name, written


def _address(source: str, revision: str | None, file: str | None) -> _OnHub:
    """A page or file of the Hub, as a browser shows its address."""
    hosts = (*_HUB_HOSTS, urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc)
    address = urlsplit(source)
    match = re.fullmatch(r"/([^/]+/[^/]+)(?:/(?:tree|blob|resolve|raw)/([^/]+)(?:/(.+?))?)?/?", unquote(address.path))
    if address.netloc.removeprefix("www.") not in hosts or match is None:
        raise ModelNotFoundError(
            f"{source:.200} is no address of a model on the Hugging Face Hub: download it and give the file, or write "
            "owner/name for a repository."
        )
    repo, written, inside = match.groups()
    return _OnHub(repo, revision or written, "/".join(part for part in (inside, file) if part))


def _local(path: Path, revision: str | None, file: str | None, convertible: bool) -> Resolved:
    if revision is not None:
        raise OptionError(f"{path} is a local path: leave revision '{revision}' out.")
    path = path.expanduser() / (file or "")
    if not path.exists():
        raise ModelNotFoundError(f"no file or folder {path}: {_near_names(path)}")
    if path.is_dir():
        names = [child.name for child in path.iterdir()]
        if not holds_weights(names, convertible=convertible):
            raise ModelNotFoundError(no_weights(str(path), names))
    elif not (path.name.lower().endswith(SAFETENSORS) or (convertible and is_convertible(path.name))):
        raise ModelNotFoundError(_other_file(path))
    return Resolved(path)


def _other_file(path: Path) -> str:
    """What a file is that is no safetensors file; a pointer or a web page is none of its suffix either."""
    kind = first_bytes.GGUF if path.suffix.lower() == ".gguf" else first_bytes.TORCH
    known = first_bytes.cause(path, kind) if is_convertible(path.name) and path.is_file() else None
    return known or f"{path} is not a .safetensors file: {instead_of(str(path), path.name)}"


def _near_names(path: Path) -> str:
    parent = path.absolute().parent
    if not parent.is_dir():
        return f"its folder {parent} does not exist either, check the spelling."
    near = similar(path.name, [child.name for child in parent.iterdir()], count=3)
    if not near:
        return f"nothing in {parent} has a name like it, check the spelling."
    return f"did you mean {' or '.join(str(path.with_name(name)) for name in near)}?"


def _warn_license(spec: ModelSpec, repo: str) -> None:
    """Before a first download: its license, where that forbids commercial use."""
    if spec.commercial or hub.is_cached(repo):
        return
    warnings.warn(
        f"{spec.name} is licensed {spec.license}: not for commercial use; `mlx-depth models` lists all licenses.",
        stacklevel=4,
    )
