"""A folder or file of weights to a network, and back: every dialect, exactly or with an error.

Our own format is a folder of ``config.json`` (``"format": "mlx_depth/1"``), ``model.safetensors`` (or shards and their
index) with our names and MLX's layout, and a README.md. A quantized layer holds ``weight`` (packed), ``scales`` and
``biases``.
"""

import dataclasses
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.checkpoints.detect import (
    but_is,
    differences,
    family_processor,
    published_as,
    read_foreign_config,
    recognise_dialect,
    recognise_variant,
)
from mlx_depth.errors import CheckpointError, OptionError, SaveError
from mlx_depth.models.base import Family, config_from_dict
from mlx_depth.processor import Processor
from mlx_depth.registry import FAMILIES, ModelSpec
from mlx_depth.weights.quantization import Quantization, dequantized, quantize_layers
from mlx_depth.weights.rules import apply, check_complete, listed, to_mlx_layout, with_front_axes
from mlx_depth.weights.safetensors_io import (
    CONFIG,
    FORMAT,
    PROCESSOR,
    SHARD_BYTES,
    cast_floating,
    read_json,
    read_tensors,
    write_shards,
)

GROUP_BYTES = 1 << 25  # read at once: evaluating each tensor alone takes half as long again


@dataclass(frozen=True)
class Checkpoint:
    """What a folder or file holds: the model's facts, and its tensors, which are read when they are used."""

    spec: ModelSpec
    dialect: str  # original | transformers | gguf | mlx
    weights: dict[str, mx.array]  # our names, MLX's layout
    quantization: Quantization | None = None
    source: Mapping[str, Any] | None = None  # what a converted folder records: id, revision, sha256

    @property
    def family(self) -> Family:
        """The family that knows how to build the network."""
        return FAMILIES[self.spec.family]


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


def assemble_checkpoint(
    path: Path,
    tensors: Mapping[str, mx.array],
    spec: ModelSpec | None = None,
    *,
    name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Recognise tensors that were read from a folder or file, whatever its container.

    Args:
        path: Where they come from; a config.json and a preprocessor_config.json beside them are read.
        tensors: Source name to array, in the source's own layout.
        spec: As for ``read_checkpoint``.
        name: As for ``read_checkpoint``.
        metadata: What the container says beside its tensors.
    Returns:
        The checkpoint, its tensors under our names and in MLX's layout.
    Raises:
        CheckpointError: If the tensors are unknown, or not exactly what their config says.
    """
    folder = path if path.is_dir() else path.parent
    config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else None
    if config is not None and "format" in config:
        return _read_ours(folder, config, tensors)
    family, dialect = recognise_dialect(tensors, path)
    name = name or (folder.resolve().name if path.is_dir() else path.stem)
    where = folder / CONFIG
    if dialect in family.read_metadata:
        where = path
        architecture = family.read_metadata[dialect](metadata or {})
        known = spec or published_as(path, name, family, architecture)
    elif config is not None:
        architecture = read_foreign_config(config, family)
        known = spec or ModelSpec(name, family.name, architecture, family_processor(family), None, folder=folder)
    else:
        known = recognise_variant(path, name, family, dialect, tensors, spec)
        architecture = known.config
    if known.config != architecture:
        raise CheckpointError(
            f"{where} does not describe {known.name}{but_is(architecture)}: {differences(known.config, architecture)}. "
            "Load the folder by its path without a name, or download the model again."
        )
    if (folder / PROCESSOR).exists():
        processor = Processor.from_config(read_json(folder / PROCESSOR))
        known = dataclasses.replace(known, processor=processor)
    network = family.build(architecture)
    weights = apply(family.weights[dialect], tensors)
    if dialect == "gguf":
        weights = with_front_axes(network, weights)
    return Checkpoint(known, dialect, to_mlx_layout(network, weights))


def build_network(checkpoint: Checkpoint, *, dtype: mx.Dtype, expand: bool, hand_over: bool = False) -> nn.Module:
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
    network = checkpoint.family.build(checkpoint.spec.config)
    weights = dict(checkpoint.weights)
    if checkpoint.quantization is not None:
        if expand:
            weights = expand_checkpoint(checkpoint).weights
        else:
            quantize_layers(network, weights, checkpoint.quantization)
    check_complete(network, weights)
    if hand_over:
        checkpoint.weights.clear()
    network.load_weights(list(_evaluated(weights, dtype).items()))
    return network.eval()


def _evaluated(weights: dict[str, mx.array], dtype: mx.Dtype) -> dict[str, mx.array]:
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
    modules = checkpoint.family.build(checkpoint.spec.config).named_modules()
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
    if out.exists():
        raise OptionError(f"{out} exists: choose another folder, or remove it first.")
    weights = {name: cast_floating(array, dtype) for name, array in sorted(checkpoint.weights.items())}
    if release:
        checkpoint.weights.clear()

    def written(name: str) -> None:
        del weights[name]  # with it goes what MLX read to compute it
        on_tensor(name)

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    except OSError as error:
        raise SaveError(f"cannot write {out} ({error.strerror or error}): choose another folder.") from error
    try:
        (scratch / CONFIG).write_text(json.dumps(_our_config(checkpoint, source), indent=2) + "\n")
        (scratch / "README.md").write_text(card)
        write_shards(scratch, weights, shard_bytes, written)
        scratch.chmod(0o755)
        scratch.rename(out)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise SaveError(f"cannot write {out} ({error.strerror or error}): check the free space.") from error
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return out


def _our_config(checkpoint: Checkpoint, source: Mapping[str, str]) -> dict[str, Any]:
    spec = checkpoint.spec
    return {
        "format": FORMAT,
        "name": spec.name,
        "family": spec.family,
        "depth_kind": spec.depth_kind.value,
        "licence": spec.licence,
        "parameters": spec.parameters,
        "config": dataclasses.asdict(spec.config),
        "processor": dataclasses.asdict(spec.processor),
        "quantization": checkpoint.quantization and dataclasses.asdict(checkpoint.quantization),
        "source": dict(source),
        "tool": f"mlx-depth {importlib.metadata.version('mlx-depth')}",
    }


_OUR_KEYS = {
    *("format", "name", "family", "depth_kind", "licence", "parameters"),
    *("config", "processor", "quantization", "source", "tool"),
}


def _read_ours(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, mx.array]) -> Checkpoint:
    where = folder / CONFIG
    if config["format"] != FORMAT:
        raise CheckpointError(f"{where} has the format {config['format']!r}, not {FORMAT!r}: update mlx-depth.")
    unknown = sorted(config.keys() - _OUR_KEYS)
    if unknown:
        raise CheckpointError(f"{where} has unknown keys: {listed(unknown)}. Update mlx-depth if the file is newer.")
    try:
        family = FAMILIES[config["family"]]
        spec = ModelSpec(
            name=config["name"],
            family=family.name,
            config=config_from_dict(family.config_type, config["config"]),
            processor=config_from_dict(Processor, config["processor"]),
            licence=config["licence"],
            parameters=config["parameters"],
            folder=folder,
        )
        quantization = config["quantization"] and _read_quantization(config["quantization"])
    except KeyError as error:
        raise CheckpointError(f"{where} lacks or does not know {error}: convert the checkpoint again.") from error
    except OptionError as error:
        raise CheckpointError(f"{where}: {error}") from error
    return Checkpoint(spec, "mlx", dict(tensors), quantization, config["source"])


def _read_quantization(data: Any) -> Quantization:
    uniform = {"layers": {}, **data} if isinstance(data, dict) else data
    quantization: Quantization = config_from_dict(Quantization, uniform)
    return quantization
