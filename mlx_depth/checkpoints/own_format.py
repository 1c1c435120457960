"""Our own folder format, ``mlx_depth/1``: config.json, model.safetensors (or shards and their index) and a README.md.

Tensors have our names and MLX's layout; a quantized layer holds ``weight`` (packed), ``scales`` and ``biases``.
"""

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_depth.errors import CheckpointError, OptionError, SaveError
from mlx_depth.models.families import FAMILIES
from mlx_depth.processor import Processor
from mlx_depth.registry import ModelSpec
from mlx_depth.version import __version__
from mlx_depth.weights.choose import CONFIG
from mlx_depth.weights.config_values import ADDED_LATER, check_at_least, typed
from mlx_depth.weights.quantization import Quantization
from mlx_depth.weights.rules import listed
from mlx_depth.weights.safetensors_io import FORMAT, write_shards

OWN_DIALECT = "mlx"


def write_folder(
    out: Path,
    config: Mapping[str, Any],
    weights: dict[str, mx.array],
    *,
    card: str,
    shard_bytes: int,
    on_tensor: Callable[[str], object],
) -> Path:
    """Write a folder that appears whole or not at all; the same content gives the same bytes.

    Args:
        out: The folder to make; it must not exist.
        config: For config.json.
        weights: Emptied on the way, so that memory holds no more than the largest tensor.
        card: Text of README.md.
        shard_bytes: Tensor bytes in a file; more make further files and an index.
        on_tensor: Called with the name of each tensor that is written.
    Raises:
        OptionError: If ``out`` exists.
        CheckpointError: If a tensor holds NaN or infinity.
        SaveError: If the folder cannot be written.
    """
    import shutil  # these two are slow to import, and predictions only read
    import tempfile

    if out.exists():
        raise OptionError(f"{out} exists: choose another folder, or remove it first.")

    def written(name: str) -> None:
        del weights[name]  # with it goes what MLX read to compute it
        on_tensor(name)

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    except OSError as error:
        raise SaveError(f"cannot write {out} ({error.strerror or error}): choose another folder.") from error
    try:
        (scratch / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
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


def own_config(spec: ModelSpec, quantization: Quantization | None, source: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that config.json holds."""
    return {
        "format": FORMAT,
        "name": spec.name,
        "family": spec.family,
        "depth_kind": spec.depth_kind.value,
        "license": spec.license,
        "parameters": spec.parameters,
        "config": dataclasses.asdict(spec.config),
        "processor": dataclasses.asdict(spec.processor),
        "quantization": quantization and dataclasses.asdict(quantization),
        "source": dict(source),
        "tool": f"mlx-depth {__version__}",
    }


_OUR_KEYS = {
    *("format", "name", "family", "depth_kind", "license", "parameters"),
    *("config", "processor", "quantization", "source", "tool"),
}


# A key that earlier versions wrote → its name today.
_RENAMED = {"licence": "license"}


@dataclass(frozen=True)
class OwnFacts:
    """What the config.json of a folder in our format says."""

    spec: ModelSpec
    quantization: Quantization | None
    source: Mapping[str, Any]


def read_own_config(folder: Path, config: Mapping[str, Any]) -> OwnFacts:
    """Read the config.json of our own format strictly.

    Args:
        folder: Where it lies.
        config: The parsed JSON.
    Raises:
        CheckpointError: If a key is missing or unknown, or has a value that cannot be.
    """
    where = folder / CONFIG
    if config["format"] != FORMAT:
        raise CheckpointError(f"{where} has the format {config['format']!r:.60}, not {FORMAT!r}: update mlx-depth.")
    config = {_RENAMED.get(key, key): value for key, value in config.items()}
    unknown = sorted(config.keys() - _OUR_KEYS)
    if unknown:
        raise CheckpointError(f"{where} has unknown keys: {listed(unknown)}. Update mlx-depth if the file is newer.")
    try:
        family = FAMILIES[typed("family", str, config["family"])]
        spec = ModelSpec(
            name=typed("name", str, config["name"]),
            family=family.name,
            config=config_from_dict(family.config_type, config["config"]),
            processor=_read_processor(config["processor"]),
            license=typed("license", str | None, config["license"]),
            parameters=typed("parameters", int | None, config["parameters"]),
            folder=folder,
        )
        quantization = None if config["quantization"] is None else _read_quantization(config["quantization"])
        source = typed("source", Mapping[str, Any], config["source"])
    except KeyError as error:
        raise CheckpointError(f"{where} lacks or does not know {error}: convert the checkpoint again.") from error
    except OptionError as error:
        raise CheckpointError(f"{where}: {error}") from error
    return OwnFacts(spec, quantization, source)


def _read_processor(data: Any) -> Processor:
    processor: Processor = config_from_dict(Processor, data)
    check_at_least(processor, {"input_size": 1, "multiple_of": 1})
    if min(processor.std) <= 0:
        raise CheckpointError(f"std in config.json is {processor.std}, not above 0: convert the checkpoint again.")
    return processor


def _read_quantization(data: Any) -> Quantization:
    uniform = {"layers": {}, **data} if isinstance(data, dict) else data
    quantization: Quantization = config_from_dict(Quantization, uniform)
    return quantization


def config_from_dict(config_type: type, data: Mapping[str, Any]) -> Any:
    """Rebuild a (nested) config dataclass from JSON values; unknown or missing keys and wrong types are errors."""
    if not isinstance(data, Mapping):
        raise CheckpointError(
            f"the {config_type.__name__} of config.json is {data!r:.40}: convert the checkpoint again."
        )
    hints = typing.get_type_hints(config_type)
    fields = {field.name: field for field in dataclasses.fields(config_type)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise CheckpointError(
            f"unknown keys in the {config_type.__name__} of config.json: {listed(unknown)}. "
            f"Known keys: {', '.join(fields)}. Update mlx-depth if the file is newer."
        )
    missing = sorted(name for name in set(fields) - set(data) if ADDED_LATER not in fields[name].metadata)
    if missing:
        raise CheckpointError(
            f"missing keys in the {config_type.__name__} of config.json: {', '.join(missing)}. "
            "Convert the checkpoint again."
        )
    return config_type(**{name: _value(name, hints[name], value) for name, value in data.items()})


def _value(name: str, hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return config_from_dict(typing.cast(type, hint), value)
    return typed(name, hint, value)
