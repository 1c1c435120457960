"""A folder or file of weights to a network, and back: every dialect, exactly or with an error."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_depth.checkpoints.card import read_card
from mlx_depth.checkpoints.detect import detect, identify, owners
from mlx_depth.checkpoints.own_format import OWN_DIALECT, own_config, read_own_config, write_folder
from mlx_depth.checkpoints.resolve import Resolved, resolve
from mlx_depth.errors import CheckpointError, OptionError
from mlx_depth.models.base import DepthNetwork, Evidence, Family
from mlx_depth.models.families import FAMILIES
from mlx_depth.processor import Reference
from mlx_depth.registry import ModelSpec
from mlx_depth.weights.choose import CONFIG, PROCESSOR
from mlx_depth.weights.config_values import check_against_shapes
from mlx_depth.weights.prefixes import describe, find_model
from mlx_depth.weights.quantization import Quantization, dequantized, quantize_layers
from mlx_depth.weights.rules import (
    Rule,
    apply,
    check_complete,
    listed,
    to_mlx_layout,
    unknown_names,
    with_front_axes,
)
from mlx_depth.weights.safetensors_io import SHARD_BYTES, cast_floating, dtype_name, read_json, read_tensors

GROUP_BYTES = 1 << 25  # read at once: evaluating each tensor alone takes half as long again


@dataclass(frozen=True)
class Checkpoint:
    """What a folder or file holds: the model's facts, and its tensors, which are read when they are used."""

    spec: ModelSpec
    dialect: str  # original | transformers | gguf | mlx
    weights: dict[str, mx.array]  # our names, MLX's layout
    quantization: Quantization | None = None
    source: Mapping[str, Any] | None = None  # what a converted folder records: id, revision, sha256
    base_model: tuple[str, ...] = ()  # repositories, as the model card beside the weights names them

    @property
    def family(self) -> Family:
        """The family that knows how to build the network."""
        return FAMILIES[self.spec.family]


class Backbone(NamedTuple):
    """A backbone from elsewhere, for a head that comes alone."""

    tensors: Mapping[str, mx.array]  # ``backbone.`` and the source's name → array, in the source's own layout
    config: Mapping[str, Any] | None = None  # of the config.json beside it


def read_checkpoint(path: Path, spec: ModelSpec | None = None, *, name: str | None = None) -> Checkpoint:
    """Read a checkpoint of any dialect. Tensors stay on disk until they are evaluated.

    Args:
        path: A folder (ours, or the Hub's, single or sharded) or one ``.safetensors`` file.
        spec: The registry's entry where the caller knows which model this is; its facts then have to agree.
        name: Name for a model that the registry does not know; None: that of the folder or file.
    Returns:
        The checkpoint, its tensors under our names and in MLX's layout.
    Raises:
        CheckpointError: If a file is damaged, unknown, or not exactly what its config says.
    """
    return assemble_checkpoint(path, read_tensors(path), spec, name=name)


def fetch_checkpoint(
    source: str | Path, *, revision: str | None = None, progress: bool = True
) -> tuple[Checkpoint, Resolved]:
    """Find a model, download it where that is needed, and read its checkpoint; the options are those of ``resolve``."""
    found = resolve(source, revision=revision, progress=progress)
    return read_checkpoint(found.path, found.spec, name=found.repo), found


def assemble_checkpoint(
    path: Path,
    tensors: Mapping[str, mx.array],
    spec: ModelSpec | None = None,
    *,
    like: ModelSpec | None = None,
    max_depth: float | None = None,
    name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    ignore: Sequence[str] = (),
    backbone: Backbone | None = None,
) -> Checkpoint:
    """Find out what tensors are that were read from a folder or file, whatever its container.

    Args:
        path: Where they come from; a config.json and a preprocessor_config.json beside them are read.
        tensors: Source name to array, in the source's own layout.
        spec: As for ``read_checkpoint``.
        like: A model of the registry with the same architecture, where the tensors alone do not tell it.
        max_depth: Range of a metric model in metres, where neither tensors nor config tell it.
        name: As for ``read_checkpoint``.
        metadata: What the container says beside its tensors.
        prefix: What stands before the model's names; None: found from the tensors, and said in a warning.
        ignore: Patterns (``*`` and ``?``) of source names: surplus tensors that match are dropped, with a warning.
        backbone: Of another source, where ``tensors`` are a head alone.
    Returns:
        The checkpoint, its tensors under our names and in MLX's layout.
    Raises:
        CheckpointError: If the tensors are unknown, or not exactly what their config says.
        OptionError: If an option does not fit what is there.
    """
    folder = path if path.is_dir() else path.parent
    config = read_config(path)
    if max_depth is not None:
        if config is not None and ("format" in config or "model_type" in config):
            raise OptionError(f"{folder / CONFIG} says what the range is: leave max_depth out, or correct it there.")
        config = {**(config or {}), "max_depth": max_depth}
    if config is not None and "format" in config:
        return _from_own_format(folder, config, tensors, like)
    beside = backbone.tensors if backbone is not None else {}
    if backbone is not None and backbone.config is not None:
        config = {**(config or {}), "backbone_config": backbone.config}
    found = find_model({"": tensors}, owned_by_shapes(tensors, config, metadata, beside), where=path, prefix=prefix)
    if said := describe(found, path):
        warnings.warn(said, stacklevel=2)
    tensors = {**{own: tensors[theirs] for own, theirs in found.names.items()}, **beside}
    evidence = Evidence({name: array.shape for name, array in tensors.items()}, config, metadata)
    family, dialect = detect(evidence, path)
    card = read_card(folder)
    known = identify(path, family, dialect, evidence, spec=spec, like=like, name=name)
    if known.license is None:
        known = dataclasses.replace(known, license=card.license)
    if (folder / PROCESSOR).exists():
        known = dataclasses.replace(known, processor=family.read_processor(read_json(folder / PROCESSOR)))
    rules = family.dialects[dialect].rules
    network = family.network(known.config)
    weights = apply(rules, _without_surplus(path, rules, tensors, ignore))
    if family.dialects[dialect].lost_axes:
        weights = with_front_axes(network, weights)
    weights = to_mlx_layout(network, _floating(path, weights))
    return Checkpoint(known, dialect, weights, base_model=card.base_model)


def read_config(path: Path) -> dict[str, Any] | None:
    """The config.json in a folder, or beside a file of weights; None where there is none."""
    config = (path if path.is_dir() else path.parent) / CONFIG
    return read_json(config) if config.exists() else None


def owned_by_shapes(
    tensors: Mapping[str, Any],
    config: Mapping[str, Any] | None,
    metadata: Mapping[str, Any] | None,
    beside: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[[str, Mapping[str, str]], bool]:
    """Whether a family owns some of these tensors (with a ``shape`` each) under other names, for ``find_model``.

    Together with those ``beside`` them, whose names stay.
    """
    fixed = {name: tuple(tensor.shape) for name, tensor in beside.items()}

    def owns(_: str, names: Mapping[str, str]) -> bool:
        shapes = {own: tuple(tensors[theirs].shape) for own, theirs in names.items()}
        return bool(owners(Evidence({**shapes, **fixed}, config, metadata)))

    return owns


def _without_surplus(
    path: Path, rules: Sequence[Rule], tensors: Mapping[str, mx.array], ignore: Sequence[str]
) -> Mapping[str, mx.array]:
    """Leave out what the model does not know and the user does not want."""
    if not ignore:
        return tensors
    surplus = unknown_names(rules, tensors)
    dropped = [name for name in surplus if any(fnmatchcase(name, pattern) for pattern in ignore)]
    if not dropped:
        known = f"the surplus ones are {listed(surplus)}" if surplus else "none is surplus, leave it out"
        raise OptionError(f"--ignore {' '.join(ignore)} matches no surplus tensor of {path}: {known}.")
    warnings.warn(f"{path}: ignored {listed(dropped)}.", stacklevel=3)
    return {name: array for name, array in tensors.items() if name not in dropped}


def _floating(path: Path, weights: Mapping[str, mx.array]) -> Mapping[str, mx.array]:
    """Weights that can be computed with; packed layers are whole numbers beside their scales."""
    odd = [
        f"{name} is {dtype_name(array.dtype)}"
        for name, array in weights.items()
        if not mx.issubdtype(array.dtype, mx.floating) and f"{name.removesuffix('weight')}scales" not in weights
    ]
    if odd:
        raise CheckpointError(
            f"{path} holds weights that are no floating-point numbers ({listed(odd)}): take the original checkpoint."
        )
    return weights


def _from_own_format(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, mx.array], like: ModelSpec | None
) -> Checkpoint:
    facts = read_own_config(folder, config)
    check_against_shapes(facts.spec.config, {name: array.shape for name, array in tensors.items()}, folder)
    if like is not None and like.config != facts.spec.config:
        raise CheckpointError(f"{folder} is {facts.spec.name}, not {like.name}: leave --model out.")
    weights = dict(_floating(folder, tensors))
    bases = read_card(folder).base_model
    return Checkpoint(facts.spec, OWN_DIALECT, weights, facts.quantization, facts.source, bases)


def following(checkpoint: Checkpoint, reference: Reference) -> Checkpoint:
    """The same weights under the rules of a reference, for photos, position tables and depth maps."""
    spec = checkpoint.spec
    config, processor = checkpoint.family.follow(spec.config, spec.processor, reference)
    return dataclasses.replace(checkpoint, spec=dataclasses.replace(spec, config=config, processor=processor))


def build_network(checkpoint: Checkpoint, *, dtype: mx.Dtype, expand: bool, hand_over: bool = False) -> DepthNetwork:
    """Build the network and give it its weights.

    Args:
        checkpoint: What ``read_checkpoint`` returned.
        dtype: Type of all floating-point parameters.
        expand: Turn quantized layers into plain ones, for devices without a fast quantized product.
        hand_over: Empty ``checkpoint.weights`` on the way, so that a change of type never holds both forms whole.
    Returns:
        The network, its parameters evaluated.
    Raises:
        CheckpointError: If a tensor is missing, unexpected or misshapen.
    """
    network = checkpoint.family.network(checkpoint.spec.config)
    weights = dict(checkpoint.weights)
    if checkpoint.quantization is not None:
        if expand:
            weights = expand_checkpoint(checkpoint).weights
        else:
            quantize_layers(network, weights, checkpoint.quantization)
    check_complete(network, weights)
    if hand_over:
        checkpoint.weights.clear()
    network.load_weights(list(evaluated(weights, dtype).items()))
    network.eval()
    return network


def evaluated(weights: dict[str, mx.array], dtype: mx.Dtype) -> dict[str, mx.array]:
    """Read and convert some tensors at a time, letting go of their sources."""
    done: dict[str, mx.array] = {}
    while weights:
        group: dict[str, mx.array] = {}
        while weights and sum(array.nbytes for array in group.values()) < GROUP_BYTES:
            name, array = weights.popitem()
            group[name] = cast_floating(array, dtype)
            del array
        mx.eval(group)
        done |= group
    return done


def quantize_checkpoint(checkpoint: Checkpoint, quantization: Quantization) -> Checkpoint:
    """Pack the linear layers that the family allows; a width that the group size does not divide stays as it is.

    Args:
        checkpoint: An unquantized checkpoint.
        quantization: Bits and group size.
    Returns:
        A checkpoint with lazy ``weight``, ``scales`` and ``biases`` for each packed layer, scales in the weight's type.
    Raises:
        OptionError: If the checkpoint is quantized already.
    """
    if checkpoint.quantization is not None:
        raise OptionError(f"{checkpoint.spec.name} is quantized already: start from its float checkpoint")
    weights = dict(checkpoint.weights)
    packable, _ = packable_layers(checkpoint, quantization.group_size)
    for path in packable:
        name = f"{path}.weight"
        packed, scales, biases = mx.quantize(weights[name], quantization.group_size, quantization.bits_of(path))
        # mx.quantize swallows NaN: the scales pass it on, so that the writer refuses it.
        scales = mx.where(mx.isfinite(weights[name]).all(), scales, mx.array(mx.nan, scales.dtype))
        weights |= {name: packed, f"{path}.scales": scales, f"{path}.biases": biases}
    return dataclasses.replace(checkpoint, weights=weights, quantization=quantization)


def packable_layers(checkpoint: Checkpoint, group_size: int) -> tuple[list[str], list[str]]:
    """Sort the layers that the family allows to quantize by whether the group size divides their width.

    Args:
        checkpoint: An unquantized checkpoint; only its shapes are read.
        group_size: Weights that share a scale.
    Returns:
        Paths of the layers that are packed, and of those that stay as they are.
    """
    modules = checkpoint.family.network(checkpoint.spec.config).named_modules()
    allowed = [path for path, module in modules if checkpoint.family.quantizable(path, module)]
    skipped = [path for path in allowed if checkpoint.weights[f"{path}.weight"].shape[-1] % group_size]
    return [path for path in allowed if path not in skipped], skipped


def expand_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """Turn packed layers into plain float32 ones, lazily; an unquantized checkpoint stays as it is."""
    if checkpoint.quantization is None:
        return checkpoint
    weights = dequantized(checkpoint.weights, checkpoint.quantization)
    return dataclasses.replace(checkpoint, weights=weights, quantization=None)


def write_checkpoint(
    checkpoint: Checkpoint,
    out: Path,
    *,
    source: Mapping[str, Any],
    card: str,
    dtype: mx.Dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    release: bool = False,
    on_tensor: Callable[[str], object] = lambda name: None,
) -> Path:
    """Write a folder in our own format; the same checkpoint gives the same bytes.

    Args:
        checkpoint: What to write.
        out: The folder to make; it must not exist.
        source: Where the weights come from (id, revision, sha256 …), for config.json.
        card: Text of the folder's README.md.
        dtype: Type of the floating-point tensors; None keeps each.
        shard_bytes: Tensor bytes in a file; more make further files and an index.
        release: Empty ``checkpoint.weights`` on the way, so that memory holds no more than the largest tensor.
        on_tensor: Called with the name of each tensor that is written.
    Returns:
        ``out``.
    Raises:
        OptionError: If ``out`` exists.
        CheckpointError: If a tensor holds NaN or infinity, or values too large for ``dtype``.
        SaveError: If the folder cannot be written.
    """
    weights = {name: cast_floating(array, dtype) for name, array in sorted(checkpoint.weights.items())}
    if release:
        checkpoint.weights.clear()
    config = own_config(checkpoint.spec, checkpoint.quantization, source)
    return write_folder(out, config, weights, card=card, shard_bytes=shard_bytes, on_tensor=on_tensor)
