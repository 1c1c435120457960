"""Safetensors on disk: single files and shards, read without copying and written tensor by tensor."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from mlx_depth.errors import CheckpointError
from mlx_depth.weights import first_bytes
from mlx_depth.weights.choose import INDEX, WEIGHTS, choose
from mlx_depth.weights.first_bytes import cause, check_regular
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
_READABLE = {*_SAFETENSORS_TYPES.values()} - {"F64"}
MAX_JSON, MAX_DIGITS = 10 << 20, 400  # bytes of a file, digits of a number in it


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
    """Name to lazy array of one safetensors file; what is no such file is called what it is."""
    if not file.exists():
        raise CheckpointError(f"{file} is missing: download the checkpoint again.")
    check_regular(file)
    try:
        # Checks the header against the file's size, which MLX does not.
        with safe_open(file, framework="np") as header:
            types = {name: header.get_slice(name).get_dtype() for name in header.keys()}  # noqa: SIM118
        arrays = mx.load(str(file), format="safetensors") if {*types.values()} <= _READABLE else {}
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        known = cause(file, first_bytes.SAFETENSORS)
        damaged = f"{file} is damaged or no safetensors file ({error}): download it again."
        raise CheckpointError(known or damaged) from error
    _check_types(file, types)
    return cast(dict[str, mx.array], arrays)


def _check_types(file: Path, types: Mapping[str, str]) -> None:
    """MLX reads some types as others (8-bit floats as bytes) and others not at all."""
    odd = [f"{name} is {kind}" for name, kind in types.items() if kind not in _READABLE]
    if odd:
        raise CheckpointError(
            f"{file} holds tensors of types that MLX does not read ({listed(odd)}): save them as float32 or float16."
        )


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
    """Read a JSON object from a regular file, within limits on its size, its nesting and the length of its numbers."""
    check_regular(path)
    with path.open("rb") as file:
        text = file.read(MAX_JSON + 1)
    if len(text) > MAX_JSON:
        raise CheckpointError(f"{path} has more than {MAX_JSON >> 20} MB, too many for a config: download it again.")
    try:
        data = json.loads(text.decode("utf-8"), parse_int=_whole_number)
    except RecursionError as error:
        raise CheckpointError(f"{path} is nested too deeply for a config: download it again.") from error
    except ValueError as error:  # of json, of the decoder and of int
        known = cause(path, "JSON") if not text.lstrip().startswith((b"{", b"[")) else None
        raise CheckpointError(known or f"{path} is not valid JSON ({error}): download it again.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no JSON object: download it again.")
    return data


def _whole_number(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


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
            array = arrays[name]
            values = np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array, order="C")
            if mx.issubdtype(array.dtype, mx.floating) and not _all_finite(array, values):
                raise CheckpointError(_not_finite(name, array.dtype))
            file.write(values.data)
            written(name)
            mx.clear_cache()


def _all_finite(array: mx.array, values: npt.NDArray[Any]) -> bool:
    """NumPy has looked at a small tensor before MLX starts, but it knows no bfloat16."""
    return bool((mx.isfinite(array) if array.dtype == mx.bfloat16 else np.isfinite(values)).all())


def _not_finite(name: str, dtype: mx.Dtype) -> str:
    if dtype == mx.float16:
        return f"{name} holds NaN, infinity or values too large for float16: choose --dtype bfloat16 or float32."
    return f"{name} holds NaN or infinity: download the checkpoint again, or convert an earlier one."


def cast_floating(array: mx.array, dtype: mx.Dtype | None) -> mx.array:
    floating = dtype is not None and mx.issubdtype(array.dtype, mx.floating)
    return array.astype(dtype) if floating and dtype is not None else array
