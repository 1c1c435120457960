"""From what the user names to a checkpoint, whatever container and dialect it has."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlx_depth.checkpoints.checkpoint import Checkpoint, assemble_checkpoint, read_checkpoint
from mlx_depth.checkpoints.hub import is_name
from mlx_depth.errors import CheckpointError
from mlx_depth.predictor import locate_model
from mlx_depth.registry import find_model
from mlx_depth.weights.safetensors_io import load_file, weight_files
from mlx_depth_convert.sources import gguf, stage, torch_pickle

READERS = {
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt"), torch_pickle.read),
    ".gguf": gguf.read,
}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Origin:
    """Where weights come from."""

    id: str  # repository, name of a bundled model, or name of the local folder or file
    revision: str | None  # commit of the repository
    on_hub: bool
    files: tuple[Path, ...]

    def sha256(self) -> dict[str, str]:
        """File name to checksum."""
        return {file.name: _sha256(file) for file in self.files}


@contextmanager
def open_checkpoint(
    source: str | Path, *, model: str | None = None, revision: str | None = None, progress: bool = False
) -> Iterator[tuple[Checkpoint, Origin]]:
    """Find a source, download it where that is needed, and read its checkpoint.

    Args:
        source: Registry name, Hub repository ``owner/name[@revision]``, folder, or a ``.safetensors``, ``.pth``,
            ``.pt``, ``.bin``, ``.ckpt`` or ``.gguf`` file.
        model: Registry name of the model that the tensors have to be; None: recognised from them.
        revision: Branch, tag or commit of the repository.
        progress: Show the Hub's progress bar on stderr.
    Yields:
        The checkpoint and its origin. The tensors are on disk, and stay readable until the context ends.
    Raises:
        ModelNotFoundError: If there is no such source, or it cannot be downloaded.
        CheckpointError: If its files are damaged, unknown, or not the named model's.
    """
    named = find_model(model) if model is not None else None
    location, published = locate_model(source, revision=revision, progress=progress, convertible=True)
    known = named or published
    name = location.repo or (str(source) if is_name(source) else location.path.resolve().name)
    file = _foreign_file(location.path)
    if file is None:
        checkpoint = read_checkpoint(location.path, known, name=location.repo)
        if named is not None and checkpoint.spec.config != named.config:
            raise CheckpointError(f"{name} is {checkpoint.spec.name}, not {named.name}: leave --model out.")
        yield checkpoint, Origin(name, location.revision, location.repo is not None, tuple(weight_files(location.path)))
        return
    with tempfile.TemporaryDirectory(prefix="mlx-depth-") as scratch:
        container = READERS[file.suffix.lower()](file)
        tensors = Path(scratch) / "tensors.safetensors"
        stage(container, tensors)
        arrays = load_file(tensors)  # MLX reads tensor by tensor from such a file alone
        checkpoint = assemble_checkpoint(file, arrays, known, name=location.repo, metadata=container.metadata)
        del arrays  # or they would stay in memory once they are read
        yield checkpoint, Origin(name, location.revision, location.repo is not None, (file,))


def _foreign_file(path: Path) -> Path | None:
    """The file that only this tool reads; None where MLX reads the path itself."""
    if path.is_file():
        return path if path.suffix.lower() in READERS else None
    if any(path.glob("*.safetensors")):
        return None
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in READERS)
    if len(files) != 1:
        names = ", ".join(file.name for file in files)
        raise CheckpointError(f"{path} holds several checkpoints ({names}): name the file itself.")
    return files[0]


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
