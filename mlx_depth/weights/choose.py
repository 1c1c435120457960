"""Which files make up a checkpoint: one decision, from names, for folders here and for repositories on the Hub."""

import re
import shlex
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePath

from mlx_depth.errors import CheckpointError, ModelNotFoundError
from mlx_depth.weights.rules import listed

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SAFETENSORS = ".safetensors"
GGUF = ".gguf"
CONVERTIBLE = (".pth", ".pt", ".bin", ".ckpt", GGUF)
TORCH_WEIGHTS = "pytorch_model.bin"  # what transformers takes where there are no safetensors
BESIDE = (CONFIG, PROCESSOR, "README*", "LICENSE*")  # what belongs to the weights, where it is there
ADAPTER = (
    "a LoRA adapter, not a whole model: merge it into its base first (peft's merge_and_unload, then save_pretrained)."
)
# What a training run leaves beside its weights, and what is no model of its own.
_NOT_WEIGHTS = (
    "training_args.bin",
    "optimizer*",
    "scheduler*",
    "scaler*",
    "rng_state*",
    "random_states*",
    "adapter_model*",
)
_HALVES = {"anyview": "metric", "metric": "anyview"}  # depth-anything.cpp's words for the files of a nested model
_HALF = re.compile(rf"(?<![a-z])({'|'.join(_HALVES)})(?![a-z])")
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.safetensors")


def choose(names: Iterable[str], *, where: str, convertible: bool) -> tuple[str, ...]:
    """Choose the weights among the files of one folder; what transformers would load is what is chosen.

    Args:
        names: Names of the files, without folders.
        where: What to call the folder in a message.
        convertible: Take ``.pth``, ``.pt``, ``.bin``, ``.ckpt`` and ``.gguf`` files, too.
    Returns:
        One file, the shards after their index, or the two halves of a nested model.
    Raises:
        ModelNotFoundError: If there are no weights.
        CheckpointError: If several files could be meant.
    """
    names = sorted(names)
    if WEIGHTS in names:
        return (WEIGHTS,)
    if INDEX in names:
        return (INDEX, *(name for name in names if _SHARD.fullmatch(name)))
    found = [name for name in names if name.lower().endswith(SAFETENSORS) and not _is_beside(name)]
    if not found and convertible and TORCH_WEIGHTS in names:
        return (TORCH_WEIGHTS,)
    if not found and convertible:
        found = [name for name in names if is_convertible(name) and not _is_beside(name)]
    if not found:
        raise ModelNotFoundError(no_weights(where, names))
    if len(found) == 2 and other_half(found[0]) == found[1]:
        return found[0], found[1]
    if len(found) > 1:
        raise CheckpointError(f"{where} holds several checkpoints ({listed(found)}): name the file itself.")
    return (found[0],)


def other_half(name: str) -> str | None:
    """How the other file of a nested model is called, if this GGUF file is one of the pair; None for other names."""
    if not name.lower().endswith(GGUF):
        return None
    other, count = _HALF.subn(lambda found: _HALVES[found[0]], name, count=1)
    return other if count else None


def holds_weights(names: Iterable[str], *, convertible: bool) -> bool:
    """Whether a folder with these files holds a checkpoint, be it one or several."""
    return any(
        name == INDEX
        or ((name.lower().endswith(SAFETENSORS) or (convertible and is_convertible(name))) and not _is_beside(name))
        for name in names
    )


def is_convertible(name: str) -> bool:
    """Whether a file is of a kind that only the conversion tool reads; a suffix in capitals is the suffix."""
    return name.lower().endswith(CONVERTIBLE)


def _is_beside(name: str) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for pattern in _NOT_WEIGHTS)


def no_weights(where: str, names: Sequence[str]) -> str:
    """Say that a folder or repository has no weights, and what to do instead."""
    if any(name.startswith(("adapter_model", "adapter_config")) for name in names):
        return f"{where} is {ADAPTER}"
    shown = ", ".join(sorted(names)[:8]) or "nothing"
    return f"{where} has no *.safetensors (it holds {shown}): {instead_of(where, *sorted(names))}"


def instead_of(source: str, *names: str) -> str:
    """The next step for files that are no safetensors, which a source as the user would write it has."""
    convertible = next((name for name in names if is_convertible(name) and not _is_beside(name)), None)
    if convertible is not None:
        out = f"{PurePath(convertible).stem}-mlx"
        return f"convert {convertible} first (mlx-depth convert {shlex.quote(source)} {shlex.quote(out)})."
    return "name a folder, a file or a repository with a model's weights."
