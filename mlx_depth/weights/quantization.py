"""Packed linear layers: MLX's affine groups."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.errors import CheckpointError, OptionError

BITS, GROUP_SIZES = (4, 6, 8), (32, 64, 128)


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


def quantize_layers(network: nn.Module, weights: Mapping[str, mx.array], quantization: Quantization) -> None:
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


def dequantized(weights: Mapping[str, mx.array], quantization: Quantization) -> dict[str, mx.array]:
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
