"""Smaller weights: 8-bit integers by channel, or a palette of 64 or 256 values for each tensor."""

from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_depth_convert.coreml import tools

MIN_VALUES = 2048  # smaller tensors are not worth an extra operation
ROUNDS = 300


def compress_weights(model: Any, compress: str, float_prefixes: tuple[str, ...]) -> Any:
    """Compress a model's weights.

    Args:
        model: coremltools' ``MLModel``, not compressed.
        compress: One of ``options.COMPRESSIONS``.
        float_prefixes: What the names of weights begin with that stay as they are.
    Returns:
        A new ``MLModel``; the same input gives the same bytes.
    """
    optimize = tools.coremltools().optimize.coreml
    if compress == "int8":
        rule = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=MIN_VALUES)
        apply = optimize.linear_quantize_weights
    else:
        size = 2 ** int(compress.removeprefix("palette"))
        rule = optimize.OpPalettizerConfig(
            mode="custom", lut_function=lambda weight: palette(weight, size), weight_threshold=MIN_VALUES
        )
        apply = optimize.palettize_weights
    with tools.quiet(), np.errstate(divide="ignore", invalid="ignore"):  # a channel of zeros has the scale zero
        kept = dict.fromkeys(name for name in _constants(model) if name.startswith(float_prefixes))
        return apply(model, optimize.OptimizationConfig(global_config=rule, op_name_configs=kept))


def _constants(model: Any) -> list[str]:
    """From the model's description: ``get_weights_metadata`` would sort the values of every weight."""
    (function,) = model.get_spec().mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    return [operation.outputs[0].name for operation in block.operations if operation.type == "const"]


def palette(values: npt.NDArray[Any], size: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
    """Cluster the values of a tensor in one dimension (Lloyd, 1982), deterministically.

    Args:
        values: Any shape, float16 or float32.
        size: Number of entries, at most 256.
    Returns:
        The entries, rising, ``(size,)`` in the type of ``values``, and the nearest one's index for each value, flat.
    """
    flat = values.ravel()
    points, counts = np.unique(flat.astype(np.float16).astype(np.float64), return_counts=True)
    entries = _spread(points, counts, size)
    total, weighted = (np.concatenate([[0.0], np.cumsum(array)]) for array in (counts, counts * points))
    previous = None
    for _ in range(ROUNDS):
        bounds = np.searchsorted(points, (entries[1:] + entries[:-1]) / 2)
        if previous is not None and np.array_equal(bounds, previous):
            break
        previous = bounds
        first, last = np.concatenate([[0], bounds]), np.concatenate([bounds, [len(points)]])
        members = total[last] - total[first]
        means = (weighted[last] - weighted[first]) / np.maximum(members, 1)
        entries = np.sort(np.where(members > 0, means, entries))
    table = entries.astype(values.dtype)
    middles = (table[1:].astype(np.float64) + table[:-1]) / 2
    return table, np.searchsorted(middles, flat.astype(np.float64)).astype(np.uint8)


def _spread(points: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.float64]:
    """First entries, as dense as the cube root of the values' density: near the optimum (Panter and Dite, 1951)."""
    if len(points) <= size:
        return np.interp(np.arange(size), np.arange(len(points)), points)
    gaps = np.diff(points)
    mass = np.concatenate([[0.0], np.cumsum(np.cbrt((counts[1:] + counts[:-1]) / 2 * gaps**2))])
    return np.interp((np.arange(size) + 0.5) / size * mass[-1], mass, points)
