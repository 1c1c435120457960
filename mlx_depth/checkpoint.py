"""A folder or file of weights to a network, and back: every dialect, exactly or with an error.

Our own format is a folder of ``config.json`` (``"format": "mlx_depth/1"``), ``model.safetensors`` with our names and
MLX's layout, and a README.md. A quantized layer holds ``weight`` (packed), ``scales`` and ``biases``.
"""

import dataclasses
import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from safetensors import SafetensorError, safe_open

from mlx_depth.errors import CheckpointError, OptionError
from mlx_depth.models.family import Family, config_from_dict
from mlx_depth.processor import Processor
from mlx_depth.registry import FAMILIES, MODELS, ModelSpec
from mlx_depth.weights import apply, check_complete, listed, to_mlx_layout

FORMAT = "mlx_depth/1"
CONFIG, WEIGHTS, INDEX, PROCESSOR = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
)
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
BITS, GROUP_SIZES = (4, 6, 8), (32, 64, 128)


@dataclass(frozen=True)
class Quantization:
    """MLX affine groups along the input of linear layers."""

    bits: int
    group_size: int = 64

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.group_size not in GROUP_SIZES:
            raise OptionError(
                f"cannot quantize to {self.bits} bits in groups of {self.group_size}: "
                f"choose bits from {BITS} and a group size from {GROUP_SIZES}"
            )


@dataclass(frozen=True)
class Checkpoint:
    """What a folder or file holds: the model's facts, and its tensors, which are read when they are used."""

    spec: ModelSpec
    dialect: str  # original | transformers | mlx
    weights: dict[str, mx.array]  # our names, MLX's layout
    quantization: Quantization | None = None

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
    folder = path if path.is_dir() else path.parent
    config = _read_json(folder / CONFIG) if (folder / CONFIG).exists() else None
    tensors = _read_tensors(path)
    if config is not None and "format" in config:
        return _read_ours(folder, config, tensors)
    family, dialect = _recognise_dialect(tensors, path)
    name = name or (folder.resolve().name if path.is_dir() else path.stem)
    if config is not None:
        architecture = _read_foreign_config(config, family)
        known = spec or ModelSpec(name, family.name, architecture, _family_processor(family), None, folder=folder)
    else:
        known = spec or _recognise_variant(path, name, family, dialect, tensors)
        architecture = known.config
    if known.config != architecture:
        raise CheckpointError(
            f"{folder / CONFIG} does not describe {known.name}: {_differences(known.config, architecture)}. "
            "Load the folder by its path, or download the model again."
        )
    if (folder / PROCESSOR).exists():
        processor = Processor.from_config(_read_json(folder / PROCESSOR))
        known = dataclasses.replace(known, processor=processor)
    weights = apply(family.weights[dialect], tensors)
    return Checkpoint(known, dialect, to_mlx_layout(family.build(architecture), weights))


def build_network(checkpoint: Checkpoint, *, dtype: mx.Dtype, expand: bool) -> nn.Module:
    """Build the network and give it its weights.

    Args:
        checkpoint: What ``read_checkpoint`` returned.
        dtype: Type of all floating-point parameters.
        expand: Turn quantized layers into plain ones, for devices without a fast quantized product.
    Returns:
        The network, its parameters evaluated.
    Raises:
        CheckpointError: If a tensor is missing, unexpected or misshapen.
    """
    network = checkpoint.family.build(checkpoint.spec.config)
    weights = checkpoint.weights
    if checkpoint.quantization is not None:
        if expand:
            weights = _dequantized(weights, checkpoint.quantization)
        else:
            _quantize_layers(network, weights, checkpoint.quantization)
    check_complete(network, weights)
    network.load_weights([(name, _cast(array, dtype)) for name, array in weights.items()])
    network.eval()
    mx.eval(network.parameters())
    return network


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
    for path, module in checkpoint.family.build(checkpoint.spec.config).named_modules():
        name = f"{path}.weight"
        if not checkpoint.family.quantizable(path, module) or weights[name].shape[-1] % quantization.group_size:
            continue
        packed, scales, biases = mx.quantize(weights[name], quantization.group_size, quantization.bits)
        weights |= {name: packed, f"{path}.scales": scales, f"{path}.biases": biases}
    return dataclasses.replace(checkpoint, weights=weights, quantization=quantization)


def write_checkpoint(
    checkpoint: Checkpoint, out: Path, *, source: Mapping[str, str], card: str, dtype: mx.Dtype | None = None
) -> Path:
    """Write a folder in our own format; the same checkpoint gives the same bytes.

    Args:
        checkpoint: What to write.
        out: The folder to make; it must not exist.
        source: Where the weights come from (id, revision, sha256 …), for config.json.
        card: Text of the folder's README.md.
        dtype: Type of the floating-point tensors; None keeps each.
    Returns:
        ``out``.
    Raises:
        OptionError: If ``out`` exists.
    """
    if out.exists():
        raise OptionError(f"{out} exists: choose another folder, or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        weights = {name: _cast(array, dtype) for name, array in sorted(checkpoint.weights.items())}
        write_safetensors(scratch / WEIGHTS, weights, {"format": FORMAT})
        (scratch / CONFIG).write_text(json.dumps(_our_config(checkpoint, source), indent=2) + "\n")
        (scratch / "README.md").write_text(card)
        scratch.chmod(0o755)
        scratch.rename(out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return out


def write_safetensors(path: Path, arrays: Mapping[str, mx.array], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file tensor by tensor, so that memory holds no more than the largest one."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, array in arrays.items():
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
        for array in arrays.values():
            raw = mx.contiguous(array)
            file.write(np.array(raw.view(mx.uint16) if raw.dtype == mx.bfloat16 else raw).data)


_SAFETENSORS_TYPES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.uint32: "U32"}


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
    }


def _read_ours(folder: Path, config: Mapping[str, Any], tensors: dict[str, mx.array]) -> Checkpoint:
    where = folder / CONFIG
    if config["format"] != FORMAT:
        raise CheckpointError(f"{where} has the format {config['format']!r}, not {FORMAT!r}: update mlx-depth.")
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
        quantization = config["quantization"] and config_from_dict(Quantization, config["quantization"])
    except KeyError as error:
        raise CheckpointError(f"{where} lacks or does not know {error}: convert the checkpoint again.") from error
    return Checkpoint(spec, "mlx", tensors, quantization)


def _recognise_dialect(tensors: Mapping[str, mx.array], path: Path) -> tuple[Family, str]:
    for family in FAMILIES.values():
        for dialect, signature in family.signatures.items():
            if signature in tensors:
                return family, dialect
    raise CheckpointError(
        f"{path} holds no model that mlx-depth knows (its first tensors: {listed(sorted(tensors))}). "
        f"Known families: {', '.join(FAMILIES)}."
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
    path: Path, name: str, family: Family, dialect: str, tensors: Mapping[str, mx.array]
) -> ModelSpec:
    """Tensors tell the size; V1, V2 and metric files differ in their name alone, so the name tells the rest."""
    config = family.recognise[dialect]({name: array.shape for name, array in tensors.items()})
    match = _OFFICIAL.search(_weight_files(path)[0].stem.lower()) or _OFFICIAL.search(name.lower())
    if match is None:
        spec = next(spec for spec in MODELS.values() if spec.config == config)
        warnings.warn(
            f"{path} has no config.json and no official name: taken for {spec.name}. V1 and metric weights have the "
            "same tensors; for those, put the config.json beside the file or give it its official name.",
            stacklevel=2,
        )
        return dataclasses.replace(spec, name=name, licence=None, hub_id=None, aliases=())
    version = "v2" if match["v2"] else "v1"
    spec = MODELS[f"depth-anything-{version}-{_PLACE_NAMES[match['place']]}{_SIZE_NAMES[match['size']]}"]
    if spec.config.backbone.embed_dim != config.backbone.embed_dim:
        raise CheckpointError(
            f"{path} is named like {spec.name}, but its tensors have {config.backbone.embed_dim} channels, "
            f"not {spec.config.backbone.embed_dim}: correct the name."
        )
    return spec


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


def _read_tensors(path: Path) -> dict[str, mx.array]:
    tensors: dict[str, mx.array] = {}
    for file in _weight_files(path):
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


def _weight_files(path: Path) -> list[Path]:
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
        class_predicate=lambda path, _: f"{path}.scales" in weights,
    )


def _dequantized(weights: Mapping[str, mx.array], quantization: Quantization) -> dict[str, mx.array]:
    plain = dict(weights)
    for name in [name for name in weights if name.endswith(".scales")]:
        path = name.removesuffix(".scales")
        scales, biases = plain.pop(name), plain.pop(f"{path}.biases")
        plain[f"{path}.weight"] = mx.dequantize(
            plain[f"{path}.weight"],
            scales.astype(mx.float32),
            biases.astype(mx.float32),
            quantization.group_size,
            quantization.bits,
        )
    return plain


def _cast(array: mx.array, dtype: mx.Dtype | None) -> mx.array:
    floating = dtype is not None and mx.issubdtype(array.dtype, mx.floating)
    return array.astype(dtype) if floating and dtype is not None else array
