"""Runs a saved package in numpy: the graph that Core ML reads, without Core ML.

The program is read back with coremltools' ``milproto`` loader, an internal API that nothing else here touches.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_depth.errors import CheckpointError
from mlx_depth_convert.coreml import tools

Array = npt.NDArray[np.float32]
Values = Mapping[str, Any]  # an operation's inputs: arrays, constants and lists of them; no absent optional ones


@dataclass(frozen=True)
class Program:
    """A package that was read back: its description, and a graph by function name."""

    description: Any  # protobuf ModelDescription
    functions: dict[str, Any]  # coremltools' Function

    def interface(self, function: str) -> dict[str, tuple[str | int, ...]]:
        """What an app sees, which the graph does not say.

        By feature: of an image the color space, height and width, of an array the type and the shape, if it says one.
        """
        described = {item.name: item for item in self.description.functions} or {function: self.description}
        return {item.name: _declared(item.type) for item in (*described[function].input, *described[function].output)}

    def facts(self, prefix: str) -> dict[str, str]:
        """The user-defined metadata whose keys begin with ``prefix``, without it."""
        metadata = self.description.metadata.userDefined
        return {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}


@dataclass(frozen=True)
class Run:
    """What one run of a function gave."""

    outputs: dict[str, Array]
    largest: dict[str, tuple[float, str]]  # operation type → largest value, and where


@dataclass(frozen=True)
class Structure:
    """What can be said of a function without running it."""

    operations: dict[str, int]  # by type, the most frequent first
    float32: list[str]  # names of the operations that compute in float32, casts and ``kept`` left out
    kept: list[str]  # names of those that do so on purpose
    largest_rank: int
    largest_side: int


def _declared(feature: Any) -> tuple[str | int, ...]:
    if feature.WhichOneof("Type") == "multiArrayType":
        array = feature.multiArrayType
        return (array.ArrayDataType.Name(array.dataType), *array.shape)
    image = feature.imageType
    return (image.ColorSpace.Name(image.colorSpace), image.height, image.width)


def read_package(path: Path) -> Program:
    """Read a package back from disk.

    Args:
        path: A ``.mlpackage``.
    Returns:
        Its program.
    Raises:
        CheckpointError: If it is no package that coremltools can read.
        OptionError: If coremltools is missing.
    """
    ct = tools.coremltools()
    from coremltools.converters.mil.frontend.milproto.load import load
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]

    if not (path / "Manifest.json").is_file():
        raise CheckpointError(f"{path} is no Core ML package: name a folder that ends in .mlpackage.")
    try:
        spec = ct.utils.load_spec(str(path))
        weights = path / "Data/com.apple.CoreML/weights"
        program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=str(weights))
    except (DecodeError, RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): export it again.") from error
    order = [function.name for function in spec.description.functions] or list(program.functions)
    return Program(spec.description, {name: program.functions[name] for name in order})


def run_function(function: Any, image: npt.NDArray[np.uint8], *, float16: bool) -> Run:
    """Compute a function's outputs.

    Args:
        function: One of ``Program.functions``.
        image: RGB uint8 ``(H, W, 3)``, exactly the function's size.
        float16: Round each result that the package declares as float16; otherwise all arithmetic is in float32, and
            what differs from the original is the graph and its stored weights alone.
    Returns:
        The outputs, float32, by name, and the largest magnitude of each type of operation.

    The semantics of coremltools' MIL operations.
    """
    (name,) = function.inputs
    known = {function.inputs[name].name: image.astype(np.float32).transpose(2, 0, 1)[None]}
    uses = Counter(var.name for operation in function.operations for var in _flat_inputs(operation))
    uses.update(var.name for var in function.outputs)
    largest: dict[str, tuple[float, str]] = {}
    for operation in function.operations:
        with np.errstate(over="ignore", invalid="ignore"):  # an overflow shows in the figures
            results = _evaluate(operation, known)
        for var, result in zip(operation.outputs, results, strict=True):
            known[var.name] = _rounded(result, var) if float16 else result
            if not _is_constant(operation):
                peak = float(np.nan_to_num(np.abs(known[var.name]).max(), nan=np.inf))
                largest[operation.op_type] = max(largest.get(operation.op_type, (0.0, "")), (peak, var.name))
        _forget(operation, known, uses)
    return Run({var.name: known[var.name] for var in function.outputs}, largest)


def read_structure(function: Any, float32_prefixes: tuple[str, ...] = ()) -> Structure:
    """Count a function's operations, and find what keeps it off the Neural Engine: float32, rank, length of a side.

    Args:
        function: One of ``Program.functions``.
        float32_prefixes: What the names of operations begin with that compute in float32 on purpose.
    """
    computing = [operation for operation in function.operations if not _is_constant(operation)]
    shapes = [var.shape for operation in computing for var in operation.outputs]
    wide = [op.name for op in computing if op.op_type != "cast" and _type_name(op.outputs[0]) == "fp32"]
    return Structure(
        operations=dict(Counter(operation.op_type for operation in computing).most_common()),
        float32=[name for name in wide if not name.startswith(float32_prefixes)],
        kept=[name for name in wide if name.startswith(float32_prefixes)],
        largest_rank=max(len(shape) for shape in shapes),
        largest_side=max(max(shape) for shape in shapes),
    )


def _is_constant(operation: Any) -> bool:
    return operation.op_type == "const" or operation.op_type.startswith("constexpr_")


def _type_name(var: Any) -> str:
    return str(tools.coremltools().converters.mil.mil.types.builtin_to_string(var.dtype))


def _rounded(result: Any, var: Any) -> Any:
    if _type_name(var) != "fp16":
        return result
    with np.errstate(over="ignore"):  # as above
        return result.astype(np.float16).astype(np.float32)


def _flat_inputs(operation: Any) -> list[Any]:
    found: list[Any] = []
    for value in operation.inputs.values():
        found.extend(value if isinstance(value, (list, tuple)) else [value])
    return [var for var in found if var is not None]


def _forget(operation: Any, known: dict[str, Any], uses: Counter[str]) -> None:
    """Free what no later operation reads."""
    for var in _flat_inputs(operation):
        uses[var.name] -= 1
        if uses[var.name] == 0:
            known.pop(var.name, None)


def _evaluate(operation: Any, known: Mapping[str, Any]) -> list[Any]:
    if _is_constant(operation):
        return [_constant(operation)]
    if operation.op_type not in HANDLERS:
        raise CheckpointError(
            f"the operation {operation.name} is of the type {operation.op_type}, which the evaluator does not know: "
            f"it knows {', '.join(sorted(HANDLERS))}."
        )
    inputs = {key: _lookup(var, known) for key, var in operation.inputs.items() if var is not None}
    result = HANDLERS[operation.op_type](inputs)
    return result if isinstance(result, list) else [result]


def _constant(operation: Any) -> Any:
    if operation.op_type == "const":
        return _widened(operation.outputs[0].val)
    return _widened(operation.materialized_val_inference())


def _widened(value: Any) -> Any:
    if getattr(value, "dtype", None) == np.float16:
        return np.asarray(value, np.float32)
    return value


def _lookup(var: Any, known: Mapping[str, Any]) -> Any:
    if isinstance(var, (list, tuple)):
        return [_lookup(item, known) for item in var]
    return known[var.name]


def _conv(v: Values) -> Array:
    """Sums products over the kernel's positions; dilations are not used by our graphs."""
    weight, groups, (sy, sx) = v["weight"], int(v["groups"]), v["strides"]
    if any(dilation != 1 for dilation in v["dilations"]):
        raise CheckpointError("a convolution has dilations, which the evaluator does not know.")
    x = v["x"]
    if v["pad_type"] == "custom":
        top, bottom, left, right = v["pad"]
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    outer, inner, kh, kw = weight.shape
    kernel = weight.reshape(groups, outer // groups, inner, kh, kw)
    height, width = (x.shape[2] - kh) // sy + 1, (x.shape[3] - kw) // sx + 1
    total = np.zeros((groups, outer // groups, height * width), np.float32)
    for dy in range(kh):
        for dx in range(kw):
            window = x[0, :, dy : dy + sy * (height - 1) + 1 : sy, dx : dx + sx * (width - 1) + 1 : sx]
            total += kernel[..., dy, dx] @ window.reshape(groups, inner, -1)
    if "bias" in v:
        total += v["bias"].reshape(groups, -1, 1)
    return total.reshape(1, outer, height, width)


def _conv_transpose(v: Values) -> Array:
    """Blocks side by side: the stride is the kernel's size in our graphs."""
    weight, x = v["weight"], v["x"][0]
    inner, outer, kh, kw = weight.shape
    if tuple(v["strides"]) != (kh, kw) or any(v["pad"]):
        raise CheckpointError("a transposed convolution overlaps or pads, which the evaluator does not know.")
    blocks = weight.reshape(inner, -1).T @ x.reshape(inner, -1)
    height, width = x.shape[1:]
    blocks = blocks.reshape(outer, kh, kw, height, width).transpose(0, 3, 1, 4, 2)
    result = blocks.reshape(1, outer, height * kh, width * kw)
    return result + v["bias"][:, None, None] if "bias" in v else result


def _linear(v: Values) -> Array:
    y: Array = v["x"] @ v["weight"].T
    return y + v["bias"] if "bias" in v else y


def _matmul(v: Values) -> Array:
    x = v["x"].swapaxes(-1, -2) if v["transpose_x"] else v["x"]
    y = v["y"].swapaxes(-1, -2) if v["transpose_y"] else v["y"]
    product: Array = x @ y
    return product


def _softmax(v: Values) -> Array:
    x = np.exp(v["x"] - v["x"].max(axis=v["axis"], keepdims=True))
    total: Array = x / x.sum(axis=v["axis"], keepdims=True)
    return total


def _attention(v: Values) -> Array:
    scale = v["query"].shape[-1] ** -0.5
    scores = v["query"] @ v["key"].swapaxes(-1, -2) * np.float32(scale)
    weights: Array = _softmax({"x": scores, "axis": -1}) @ v["value"]
    return weights


def _layer_norm(v: Values) -> Array:
    x, axes = v["x"], tuple(int(axis) for axis in v["axes"])
    centred = x - x.mean(axis=axes, keepdims=True, dtype=np.float64).astype(np.float32)
    variance = np.square(centred).mean(axis=axes, keepdims=True, dtype=np.float64)
    y: Array = centred * (1 / np.sqrt(variance + float(v["epsilon"]))).astype(np.float32)
    sides = [
        side if axis in axes else 1 for axis, side in enumerate(x.shape)
    ]  # an affine has the normalized axes alone
    if "gamma" in v:
        y = y * v["gamma"].reshape(sides)
    return y + v["beta"].reshape(sides) if "beta" in v else y


def _gelu(v: Values) -> Array:
    if v["mode"] != "EXACT":
        raise CheckpointError(f"a GELU is of the mode {v['mode']}, which the evaluator does not know.")
    x = v["x"]
    erf = np.array(mx.erf(mx.array(x * np.float32(0.5**0.5)), stream=mx.cpu))
    y: Array = x * (erf + np.float32(1)) * np.float32(0.5)
    return y


def _sigmoid(v: Values) -> Array:
    y: Array = 1 / (1 + np.exp(-v["x"]))  # an overflowing exponential gives 0
    return y


def _upsample_bilinear(v: Values) -> Array:
    x = v["x"]
    for axis, factor in ((2, v["scale_factor_height"]), (3, v["scale_factor_width"])):
        x = _interpolate(x, axis, int(np.floor(x.shape[axis] * factor)), bool(v["align_corners"]))
    return x


def _interpolate(x: Array, axis: int, size: int, align_corners: bool) -> Array:
    side = x.shape[axis]
    position = np.arange(size, dtype=np.float64)
    points = position * ((side - 1) / max(size - 1, 1)) if align_corners else (position + 0.5) * (side / size) - 0.5
    points = np.clip(points, 0, side - 1)
    first = np.minimum(points.astype(np.int64), max(side - 2, 0))
    second = np.minimum(first + 1, side - 1)
    shape = [1] * x.ndim
    shape[axis] = size
    share = (points - first).astype(np.float32).reshape(shape)
    low, high = np.take(x, first, axis=axis), np.take(x, second, axis=axis)
    y: Array = low + (high - low) * share
    return y


def _pad(v: Values) -> Array:
    if v["mode"] != "replicate":
        raise CheckpointError(f"a map is padded by the mode {v['mode']}, which the evaluator does not know.")
    amounts = np.asarray(v["pad"]).reshape(-1, 2)  # of the last axes
    padded: Array = np.pad(v["x"], [(0, 0)] * (v["x"].ndim - len(amounts)) + amounts.tolist(), mode="edge")
    return padded


def _pixel_shuffle(v: Values) -> Array:
    factor = int(v["upscale_factor"])
    B, C, H, W = v["x"].shape
    x: Array = v["x"].reshape(B, -1, factor, factor, H, W).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(B, C // factor**2, factor * H, factor * W)


def _resample(v: Values) -> Array:
    """What lies beyond the border reads the border; -1 and 1 are the outer edges of the first and last pixels."""
    modes = {key: v[key] for key in ("sampling_mode", "padding_mode", "coordinates_mode", "align_corners")}
    known = {
        "sampling_mode": "bilinear",
        "padding_mode": "border",
        "coordinates_mode": "normalized_minus_one_to_one",
        "align_corners": False,
    }
    if modes != known:
        raise CheckpointError(f"a map is read by {modes}, which the evaluator does not know.")
    x, coordinates = v["x"], v["coordinates"].astype(np.float64)
    _, _, H, W = x.shape
    left, right, across = _neighbors(coordinates[..., 0], W)
    top, bottom, down = _neighbors(coordinates[..., 1], H)
    image = np.arange(len(x))[:, None, None]

    def row(index: npt.NDArray[np.int64]) -> Array:
        first, second = x[image, :, index, left], x[image, :, index, right]  # (B, h, w, C)
        mixed: Array = first + (second - first) * across
        return mixed

    upper = row(top)
    return np.ascontiguousarray((upper + (row(bottom) - upper) * down).transpose(0, 3, 1, 2))


def _neighbors(
    positions: npt.NDArray[np.float64], side: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Array]:
    """The pixels before and after positions along an axis, and the share of the latter, with an axis for channels."""
    points = np.clip(((positions + 1) * side - 1) / 2, 0, side - 1)
    first = points.astype(np.int64)
    return first, np.minimum(first + 1, side - 1), (points - first).astype(np.float32)[..., None]


def _slice(v: Values) -> Array:
    closed = [False] * v["x"].ndim
    bounds = zip(v["begin"], v["end"], v.get("begin_mask", closed), v.get("end_mask", closed), strict=True)
    part: Array = v["x"][
        tuple(
            slice(None if open_begin else int(begin), None if open_end else int(end))
            for begin, end, open_begin, open_end in bounds
        )
    ]
    return part


HANDLERS: dict[str, Callable[[Values], Any]] = {
    "abs": lambda v: np.abs(v["x"]),
    "add": lambda v: v["x"] + v["y"],
    "cast": lambda v: v["x"],  # types round results in run_function
    "clip": lambda v: np.clip(v["x"], v["alpha"], v["beta"]),
    "concat": lambda v: np.concatenate(v["values"], axis=int(v["axis"])),
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "exp": lambda v: np.exp(v["x"]),
    "gelu": _gelu,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "matmul": _matmul,
    "maximum": lambda v: np.maximum(v["x"], v["y"]),
    "mul": lambda v: v["x"] * v["y"],
    "pad": _pad,
    "pixel_shuffle": _pixel_shuffle,
    "real_div": lambda v: v["x"] / v["y"],
    "reduce_l2_norm": lambda v: np.sqrt((v["x"] * v["x"]).sum(axis=tuple(v["axes"]), keepdims=bool(v["keep_dims"]))),
    "reduce_max": lambda v: v["x"].max(axis=tuple(v["axes"]), keepdims=bool(v["keep_dims"])),
    "reduce_min": lambda v: v["x"].min(axis=tuple(v["axes"]), keepdims=bool(v["keep_dims"])),
    "relu": lambda v: np.maximum(v["x"], np.float32(0)),
    "resample": _resample,
    "reshape": lambda v: v["x"].reshape(tuple(v["shape"])),
    "scaled_dot_product_attention": _attention,
    "sigmoid": _sigmoid,
    "silu": lambda v: v["x"] * _sigmoid(v),
    "slice_by_index": _slice,
    "softmax": _softmax,
    "split": lambda v: np.split(v["x"], int(v["num_splits"]), axis=int(v["axis"])),
    "sub": lambda v: v["x"] - v["y"],
    "transpose": lambda v: v["x"].transpose(tuple(v["perm"])),
    "upsample_bilinear": _upsample_bilinear,
}
