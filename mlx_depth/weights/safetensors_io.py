"""Safetensors on disk: single files and shards, read without copying and written tensor by tensor."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from safetensors import SafetensorError, safe_open

from mlx_depth.errors import CheckpointError
from mlx_depth.weights.choose import INDEX, WEIGHTS, choose
from mlx_depth.weights.rules import listed

FORMAT = "mlx_depth/1"  # of config.json, and in the metadata of our files
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


SHARD_BYTES = 5 * 10**9  # the Hub's advice; a larger checkpoint is written as several files

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


def dtype_name(dtype: mx.Dtype) -> str:
    """``"float32"`` for ``mx.float32``."""
    return str(dtype).removeprefix("mlx.core.")


def read_tensors(path: Path) -> dict[str, mx.array]:
    """Name to lazy array of all safetensors that ``weight_files`` lists; a repeated name is an error."""
    tensors: dict[str, mx.array] = {}
    for file in weight_files(path):
        loaded = load_file(file)
        repeated = sorted(tensors.keys() & loaded.keys())
        if repeated:
            raise CheckpointError(f"{file} repeats tensors of another shard: {listed(repeated)}. Download it again.")
        tensors |= loaded
    return tensors


def load_file(file: Path) -> dict[str, mx.array]:
    try:
        with safe_open(file, framework="np"):  # checks the header against the file's size, which MLX does not
            arrays = mx.load(str(file))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing: download the checkpoint again.") from error
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file ({error}): download it again.") from error
    return cast(dict[str, mx.array], arrays)


def weight_files(path: Path) -> list[Path]:
    """The safetensors of a folder (its shards, or the one file), or the file itself."""
    if path.is_file():
        return [path]
    chosen = choose([file.name for file in path.iterdir()], where=str(path), convertible=False)
    return _shards(path) if chosen[0] == INDEX else [path / chosen[0]]


def _shards(folder: Path) -> list[Path]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX} has no weight_map: download it again.")
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{folder / INDEX} points outside its folder: {listed(outside)}. Do not use this file.")
    return [folder / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}): download it again.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no JSON object: download it again.")
    return data


def write_safetensors(path: Path, arrays: Mapping[str, mx.array], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, evaluating one tensor after the other.

    Args:
        path: The file to write.
        arrays: Name to array, in the order of the file; a mapping that makes its arrays when asked keeps memory small.
        metadata: For the file's header.
    """
    _write_file(path, list(arrays), arrays, metadata, lambda name: None)


def write_shards(
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


def cast_floating(array: mx.array, dtype: mx.Dtype | None) -> mx.array:
    floating = dtype is not None and mx.issubdtype(array.dtype, mx.floating)
    return array.astype(dtype) if floating and dtype is not None else array
