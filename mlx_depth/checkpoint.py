"""A folder or file of weights to a network, and back: every dialect, exactly or with an error.

Our own format is a folder of ``config.json`` (``"format": "mlx_depth/1"``), ``model.safetensors`` (or shards and their
index) with our names and MLX's layout, and a README.md. A quantized layer holds ``weight`` (packed), ``scales`` and
``biases``.
"""

import dataclasses
import importlib.metadata
import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from safetensors import SafetensorError, safe_open

from mlx_depth.errors import CheckpointError, OptionError, SaveError
from mlx_depth.models.family import Family, config_from_dict
from mlx_depth.processor import Processor
from mlx_depth.registry import FAMILIES, MODELS, ModelSpec
from mlx_depth.weights import apply, check_complete, listed, parameter_shapes, to_mlx_layout, with_front_axes

FORMAT = "mlx_depth/1"
CONFIG, WEIGHTS, INDEX, PROCESSOR = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
)
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
BITS, GROUP_SIZES = (4, 6, 8), (32, 64, 128)
SHARD_BYTES = 5 * 10**9  # the Hub's advice; a larger checkpoint is written as several files


@dataclass(frozen=True)
class Quantization:
    """MLX affine groups along the input of linear layers."""

    bits: int
    group_size: int = 64
    layers: Mapping[str, int] = field(default_factory=dict)  # path → bits, of the layers that differ

    def __post_init__(self) -> None:
        for bits in (self.bits, *self.layers.values()):
            if bits not in BITS or self.group_size not in GROUP_SIZES:
                raise OptionError(
                    f"cannot quantize to {bits} bits in groups of {self.group_size}: "
                    f"choose bits from {BITS} and a group size from {GROUP_SIZES}"
                )

    def bits_of(self, path: str) -> int:
        """Bits of the layer at this path of the network."""
        return self.layers.get(path, self.bits)


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

    Proved by ``tests/test_checkpoint.py`` and ``tests/convert/test_convert.py``.
    """
    folder = path if path.is_dir() else path.parent
    config = _read_json(folder / CONFIG) if (folder / CONFIG).exists() else None
    if config is not None and "format" in config:
        return _read_ours(folder, config, tensors)
    family, dialect = _recognise_dialect(tensors, path)
    name = name or (folder.resolve().name if path.is_dir() else path.stem)
    where = folder / CONFIG
    if dialect in family.read_metadata:
        where = path
        architecture = family.read_metadata[dialect](metadata or {})
        known = spec or _published_as(path, name, family, architecture)
    elif config is not None:
        architecture = _read_foreign_config(config, family)
        known = spec or ModelSpec(name, family.name, architecture, _family_processor(family), None, folder=folder)
    else:
        known = _recognise_variant(path, name, family, dialect, tensors, spec)
        architecture = known.config
    if known.config != architecture:
        raise CheckpointError(
            f"{where} does not describe {known.name}{_but(architecture)}: {_differences(known.config, architecture)}. "
            "Load the folder by its path without a name, or download the model again."
        )
    if (folder / PROCESSOR).exists():
        processor = Processor.from_config(_read_json(folder / PROCESSOR))
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
            _quantize_layers(network, weights, checkpoint.quantization)
    check_complete(network, weights)
    if hand_over:
        checkpoint.weights.clear()
    network.load_weights(list(_evaluated(weights, dtype).items()))
    return network.eval()


def _evaluated(weights: dict[str, mx.array], dtype: mx.Dtype) -> dict[str, mx.array]:
    """Read and convert one tensor at a time, letting go of each source."""
    done = {}
    while weights:
        name, array = weights.popitem()
        done[name] = _cast(array, dtype)
        del array
        mx.eval(done[name])
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
    weights = _dequantized(checkpoint.weights, checkpoint.quantization)
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

    Proved by ``tests/test_checkpoint.py`` and ``tests/convert/test_convert.py``.
    """
    if out.exists():
        raise OptionError(f"{out} exists: choose another folder, or remove it first.")
    weights = {name: _cast(array, dtype) for name, array in sorted(checkpoint.weights.items())}
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
        _write_shards(scratch, weights, shard_bytes, written)
        scratch.chmod(0o755)
        scratch.rename(out)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise SaveError(f"cannot write {out} ({error.strerror or error}): check the free space.") from error
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return out


def _write_shards(
    folder: Path, weights: Mapping[str, mx.array], shard_bytes: int, written: Callable[[str], object]
) -> None:
    sizes = {name: array.nbytes for name, array in weights.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + size > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        files = [WEIGHTS]
    else:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for file, names in zip(files, shards, strict=True):
        _write_file(folder / file, names, weights, {"format": FORMAT}, written)


def write_safetensors(path: Path, arrays: Mapping[str, mx.array], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, evaluating one tensor after the other.

    Args:
        path: The file to write.
        arrays: Name to array, in the order of the file; a mapping that makes its arrays when asked keeps memory small.
        metadata: For the file's header.
    """
    _write_file(path, list(arrays), arrays, metadata, lambda name: None)


def _write_file(
    path: Path,
    names: Iterable[str],
    arrays: Mapping[str, mx.array],
    metadata: Mapping[str, str],
    written: Callable[[str], object],
) -> None:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in names:
        array = arrays[name]
        header[name] = {
            "dtype": _SAFETENSORS_TYPES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned to 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            array = mx.contiguous(arrays[name])
            if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all():
                raise CheckpointError(_not_finite(name, array.dtype))
            file.write(np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array).data)
            written(name)
            mx.clear_cache()


def _not_finite(name: str, dtype: mx.Dtype) -> str:
    if dtype == mx.float16:
        return f"{name} holds NaN, infinity or values too large for float16: choose --dtype bfloat16 or float32."
    return f"{name} holds NaN or infinity: download the checkpoint again, or convert an earlier one."


_SAFETENSORS_TYPES = {
    mx.float64: "F64",
    mx.float32: "F32",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.int64: "I64",
    mx.int32: "I32",
    mx.int16: "I16",
    mx.int8: "I8",
    mx.uint64: "U64",
    mx.uint32: "U32",
    mx.uint16: "U16",
    mx.uint8: "U8",
    mx.bool_: "BOOL",
}


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


def _recognise_dialect(tensors: Mapping[str, mx.array], path: Path) -> tuple[Family, str]:
    for family in FAMILIES.values():
        for dialect, signature in family.signatures.items():
            if signature in tensors:
                return family, dialect
    raise CheckpointError(
        f"{path} holds no model that mlx-depth knows (its first tensors: {listed(sorted(tensors))}). "
        f"Name a checkpoint of a family that it knows: {', '.join(FAMILIES)}."
    )


def _read_foreign_config(config: Mapping[str, Any], family: Family) -> Any:
    model_type = str(config.get("model_type"))
    if model_type not in family.read_config:
        raise CheckpointError(
            f"{CONFIG} says model_type {model_type!r}, but the tensors are {family.name}'s "
            f"({', '.join(family.read_config)}): take the config.json that belongs to these weights."
        )
    return family.read_config[model_type](config)


# The authors' own file names; the variants that share all shapes differ in nothing else.
_OFFICIAL = re.compile(
    r"depth_anything(?:_(?P<v2>v2)(?:_metric_(?P<place>hypersim|vkitti))?)?_vit(?P<size>[sblg])(?:14)?"
)
_SIZE_NAMES = {"s": "small", "b": "base", "l": "large", "g": "giant"}
_PLACE_NAMES = {"hypersim": "metric-indoor-", "vkitti": "metric-outdoor-", None: ""}


def _recognise_variant(
    path: Path, name: str, family: Family, dialect: str, tensors: Mapping[str, mx.array], spec: ModelSpec | None
) -> ModelSpec:
    """Tensors tell the size; V1, V2 and metric files differ in their name alone, so the name tells the rest."""
    config = family.recognise[dialect]({name: array.shape for name, array in tensors.items()})
    if spec is not None:
        if not _same_shapes(spec.config, config):
            raise CheckpointError(
                f"{path} is not {spec.name}, its tensors are those of {_alike(config)}: name one of these, or none."
            )
        return spec
    match = _OFFICIAL.search(weight_files(path)[0].stem.lower()) or _OFFICIAL.search(name.lower())
    if match is None:
        spec = next(spec for spec in MODELS.values() if spec.config == config)
        warnings.warn(
            f"{path} has no config.json and no official name: taken for {spec.name}. V1 and metric weights have the "
            "same tensors; for those, put the config.json beside the file or give it its official name.",
            stacklevel=2,
        )
        return dataclasses.replace(spec, name=name, licence=None, hub_id=None, aliases=())
    version = "v2" if match["v2"] else "v1"
    official = MODELS[f"depth-anything-{version}-{_PLACE_NAMES[match['place']]}{_SIZE_NAMES[match['size']]}"]
    if not _same_shapes(official.config, config):
        raise CheckpointError(
            f"{path} is named like {official.name}, but its tensors are those of {_alike(config)}: correct the name."
        )
    return official


# The names under which depth-anything.cpp publishes its conversions.
_OFFICIAL_GGUF = re.compile(r"depth-anything2-(metric-(hypersim|vkitti)-)?(small|base|large)")


def _published_as(path: Path, name: str, family: Family, config: Any) -> ModelSpec:
    """The published model of an official file name that has this config, else an entry that knows no licence."""
    same = [spec for spec in MODELS.values() if spec.config == config and spec.hub_id is not None]
    if same and _OFFICIAL_GGUF.match(path.name.lower()):
        return same[0]
    return ModelSpec(name, family.name, config, _family_processor(family), None)


def _same_shapes(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    family = next(family for family in FAMILIES.values() if family.config_type is type(one))
    return parameter_shapes(family.build(one)) == parameter_shapes(family.build(other))


def _alike(config: Any) -> str:
    """The published models whose tensors have the same names and shapes."""
    names = [spec.name for spec in MODELS.values() if spec.hub_id is not None and _same_shapes(spec.config, config)]
    return " or ".join(names) or "no published model"


def _but(config: Any) -> str:
    """The published model that a config describes, where there is one."""
    return next((f" but {spec.name}" for spec in MODELS.values() if spec.config == config), "")


def _family_processor(family: Family) -> Processor:
    return next(spec.processor for spec in MODELS.values() if spec.family == family.name)


def _differences(expected: Any, found: Any) -> str:
    ours, theirs = _flat(expected), _flat(found)
    return ", ".join(f"{key} is {theirs[key]}, not {ours[key]}" for key in ours if ours[key] != theirs[key])


def _flat(config: Any) -> dict[str, Any]:
    parts = dataclasses.asdict(config)
    return {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}): download it again.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no JSON object: download it again.")
    return data


def read_tensors(path: Path) -> dict[str, mx.array]:
    """Name to lazy array of all safetensors that ``weight_files`` lists; a repeated name is an error."""
    tensors: dict[str, mx.array] = {}
    for file in weight_files(path):
        loaded = _load_file(file)
        repeated = sorted(tensors.keys() & loaded.keys())
        if repeated:
            raise CheckpointError(f"{file} repeats tensors of another shard: {listed(repeated)}. Download it again.")
        tensors |= loaded
    return tensors


def _load_file(file: Path) -> dict[str, mx.array]:
    try:
        with safe_open(file, framework="np"):  # checks the header against the file's size, which MLX does not
            arrays = mx.load(str(file))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing: download the checkpoint again.") from error
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file ({error}): download it again.") from error
    return cast(dict[str, mx.array], arrays)


def weight_files(path: Path) -> list[Path]:
    """The safetensors of a folder (its shards, or the one file) or the file itself."""
    if path.is_file():
        return [path]
    if (path / INDEX).exists():
        return _shards(path)
    if (path / WEIGHTS).exists():
        return [path / WEIGHTS]
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        found = f"{len(files)} of them" if files else "none"
        raise CheckpointError(f"{path} should hold one .safetensors file and holds {found}: name the file itself.")
    return files


def _shards(folder: Path) -> list[Path]:
    weight_map = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX} has no weight_map: download it again.")
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{folder / INDEX} points outside its folder: {listed(outside)}. Do not use this file.")
    return [folder / name for name in names]


def _quantize_layers(network: nn.Module, weights: Mapping[str, mx.array], quantization: Quantization) -> None:
    nn.quantize(
        network,
        group_size=quantization.group_size,
        bits=quantization.bits,
        class_predicate=lambda path, _: (
            {"group_size": quantization.group_size, "bits": quantization.bits_of(path)}
            if f"{path}.scales" in weights
            else False
        ),
    )


def _dequantized(weights: Mapping[str, mx.array], quantization: Quantization) -> dict[str, mx.array]:
    plain = dict(weights)
    for name in [name for name in weights if name.endswith(".scales")]:
        path = name.removesuffix(".scales")
        scales, biases = plain.pop(name), plain.pop(f"{path}.biases", None)
        if biases is None or f"{path}.weight" not in plain:
            raise CheckpointError(f"{path} is quantized in parts only: convert the checkpoint again.")
        try:
            plain[f"{path}.weight"] = mx.dequantize(
                plain[f"{path}.weight"],
                scales.astype(mx.float32),
                biases.astype(mx.float32),
                quantization.group_size,
                quantization.bits_of(path),
            )
        except ValueError as error:
            raise CheckpointError(
                f"{path} is not packed as config.json says ({error}): convert the checkpoint again."
            ) from error
    return plain


def _cast(array: mx.array, dtype: mx.Dtype | None) -> mx.array:
    floating = dtype is not None and mx.issubdtype(array.dtype, mx.floating)
    return array.astype(dtype) if floating and dtype is not None else array
