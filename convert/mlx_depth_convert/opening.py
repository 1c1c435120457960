"""From what the user names to a checkpoint, whatever container and dialect it has."""

import hashlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_depth.checkpoints.checkpoint import (
    Backbone,
    Checkpoint,
    assemble_checkpoint,
    owned_by_shapes,
    read_config,
)
from mlx_depth.checkpoints.resolve import Resolved, resolve
from mlx_depth.errors import OptionError
from mlx_depth.registry import find_model as find_spec
from mlx_depth.weights.choose import GGUF, choose, is_convertible
from mlx_depth.weights.prefixes import describe, find_model
from mlx_depth.weights.safetensors_io import load_file, read_tensors, weight_files
from mlx_depth_convert.sources import LazyTensor, Source, gguf_pair, stage, torch_pickle

READERS = {
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt"), torch_pickle.read),
    GGUF: gguf_pair.read,
}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Origin:
    """Where weights come from."""

    id: str  # repository, name of a bundled model, or name of the local folder or file
    revision: str | None  # commit of the repository
    on_hub: bool
    files: tuple[Path, ...]
    backbone: "Origin | None" = None  # where that comes from elsewhere

    def sha256(self) -> dict[str, str]:
        """File name to checksum."""
        return {file.name: _sha256(file) for file in self.files}

    @property
    def source(self) -> str:
        """What ``open_checkpoint`` finds it by again, as far as it is on the Hub."""
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


@dataclass(frozen=True)
class SourceOptions:
    """What a source does not tell by itself; ``open_checkpoint`` says what each option means."""

    max_depth: float | None = None
    file: str | None = None
    key: str | None = None
    prefix: str | None = None
    ignore: tuple[str, ...] = ()
    backbone: str | None = None


AS_IT_IS = SourceOptions()


@contextmanager
def open_checkpoint(
    source: str | Path,
    *,
    model: str | None = None,
    max_depth: float | None = None,
    revision: str | None = None,
    file: str | None = None,
    key: str | None = None,
    prefix: str | None = None,
    ignore: Sequence[str] = (),
    backbone: str | Path | None = None,
    progress: bool = False,
) -> Iterator[tuple[Checkpoint, Origin]]:
    """Find a source, download it where that is needed, and read its checkpoint.

    Args:
        source: Registry name, Hub repository ``owner/name[@revision]`` or its address, folder, or a ``.safetensors``,
            ``.pth``, ``.pt``, ``.bin``, ``.ckpt`` or ``.gguf`` file. Of a nested model's two GGUF files, either stands
            for both.
        model: A model of the registry with the same architecture, where the tensors do not tell it.
        max_depth: Range of a metric model in metres, where neither tensors nor config tell it.
        revision: Branch, tag or commit of the repository.
        file: Folder or file in the folder or repository.
        key: Dotted keys of the dict that holds the weights, in a ``.pth``, ``.pt``, ``.bin`` or ``.ckpt`` file; None:
            the one that holds a model.
        prefix: What stands before the names of all the model's tensors; None: found from the tensors.
        ignore: Patterns (``*`` and ``?``) of names: surplus tensors that match are left out.
        backbone: Another such source, of the backbone, where the source is a head alone.
        progress: Show the Hub's progress bar on stderr.
    Yields:
        The checkpoint and its origin. The tensors are on disk, and stay readable until the context ends.
    Raises:
        ModelNotFoundError: If there is no such source, or it cannot be downloaded.
        CheckpointError: If its files are damaged, unknown, or not the named model's, or hold several models.
        OptionError: If an option does not fit what is there.
    """
    like = find_spec(model) if model is not None else None
    found = resolve(source, revision=revision, file=file, convertible=True, progress=progress)
    chosen = _foreign_file(found.path)
    name = found.repo or (found.path.resolve().name if found.path.is_dir() else None)
    facts: dict[str, Any] = {"like": like, "max_depth": max_depth, "name": name, "ignore": ignore}
    with tempfile.TemporaryDirectory(prefix="mlx-depth-") as folder:
        scratch = Path(folder)
        beside: Origin | None = None
        if backbone is not None:
            facts["backbone"], beside = _open_backbone(backbone, scratch, progress)
        if chosen is None:
            if key is not None:
                raise OptionError(f"{found.path} is flat, without keys: leave --key {key} out, or use --prefix.")
            origin = _origin(found, tuple(weight_files(found.path)), beside)
            # No name for the tensors here: they would stay in memory once they are read.
            checkpoint = assemble_checkpoint(found.path, read_tensors(found.path), found.spec, prefix=prefix, **facts)
        else:
            container = READERS[chosen.suffix.lower()](chosen)
            origin = _origin(found, (chosen, *container.further), beside)
            staged = scratch / "tensors.safetensors"
            stage(_model(container, chosen, key, prefix, facts.get("backbone")), staged)
            checkpoint = assemble_checkpoint(
                chosen,
                load_file(staged),  # MLX reads tensor by tensor from such a file alone
                found.spec,
                prefix="",
                metadata=container.metadata or None,
                **facts,
            )
        facts.clear()
        yield checkpoint, origin


def _origin(found: Resolved, files: tuple[Path, ...], backbone: Origin | None = None) -> Origin:
    return Origin(found.name, found.revision, found.repo is not None, files, backbone)


def _open_backbone(source: str | Path, scratch: Path, progress: bool) -> tuple[Backbone, Origin]:
    """The tensors of a source, whatever they are, as those of a backbone."""
    found = resolve(source, convertible=True, progress=progress)
    chosen = _foreign_file(found.path)
    if chosen is None:
        tensors, origin = read_tensors(found.path), _origin(found, tuple(weight_files(found.path)))
    else:
        container = READERS[chosen.suffix.lower()](chosen)
        names = {part: list(content.tensors) for part, content in container.parts.items()}
        largest = find_model(names, lambda part, names: False, where=chosen)
        stage({own: container.parts[largest.key].tensors[name] for own, name in largest.names.items()}, scratch / "b")
        tensors, origin = load_file(scratch / "b"), _origin(found, (chosen, *container.further))
    named = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    return Backbone(named, read_config(found.path)), origin


def _model(
    source: Source, path: Path, key: str | None, prefix: str | None, backbone: Backbone | None
) -> dict[str, LazyTensor]:
    """The tensors of the model in a container, under their own names; says what was taken and what was left."""
    config = read_config(path)
    beside = backbone.tensors if backbone is not None else {}

    def owns(part: str, names: Mapping[str, str]) -> bool:
        return owned_by_shapes(source.parts[part].tensors, config, source.metadata or None, beside)(part, names)

    names = {part: list(content.tensors) for part, content in source.parts.items()}
    found = find_model(names, owns, where=path, key=key, prefix=prefix)
    content = source.parts[found.key]
    if said := describe(found, path, [name for name in content.beside if name not in source.metadata]):
        warnings.warn(said, stacklevel=4)
    return {own: content.tensors[name] for own, name in found.names.items()}


def _foreign_file(path: Path) -> Path | None:
    """The file that only this tool reads; None where MLX reads the path itself."""
    if path.is_dir():
        chosen = choose([file.name for file in path.iterdir()], where=str(path), convertible=True)[0]
        return path / chosen if is_convertible(chosen) else None
    return path if is_convertible(path.name) else None


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
