"""Readers of foreign containers: names and layout unchanged, tensors left on disk until they are read."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_depth.weights.safetensors_io import write_safetensors


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose shape and type are known and whose values are still on disk."""

    shape: tuple[int, ...]
    dtype: str  # as MLX names it: float32, float16, bfloat16, int64 …; else what it is, and reading it is an error
    bits: Callable[[], np.ndarray]  # reads the values; bfloat16 as uint16, which NumPy has

    def read(self) -> mx.array:
        """The values, copied from disk into memory."""
        values = mx.array(self.bits())
        return values.view(mx.bfloat16) if self.dtype == "bfloat16" else values


@dataclass(frozen=True)
class Part:
    """The tensors that lie together in a container, such as one dict of a pickle."""

    tensors: Mapping[str, LazyTensor]
    beside: tuple[str, ...] = ()  # keys of what lies next to them and on the way to them


@dataclass(frozen=True)
class Source:
    """What a container holds, under its own names and in its own axis order."""

    parts: Mapping[str, Part]  # by dotted key; "" is the top, and all there is in a flat container
    metadata: Mapping[str, Any] = field(default_factory=dict)
    further: tuple[Path, ...] = ()  # files that were read with the one that was named


def stage(tensors: Mapping[str, LazyTensor], path: Path) -> None:
    """Write tensors to a safetensors file, one after the other, so that memory holds one at a time.

    MLX reads that file lazily, which it does for no array made from Python: everything that works on Hub files then
    works on these tensors, too.

    Args:
        tensors: From a reader, under the names that the file is to have.
        path: The file to write.
    """
    write_safetensors(path, _Arrays(tensors), {})


class _Arrays(Mapping[str, mx.array]):
    """Tensors that are read each time they are asked for and never kept."""

    def __init__(self, tensors: Mapping[str, LazyTensor]):
        self._tensors = tensors

    def __getitem__(self, name: str) -> mx.array:
        return self._tensors[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
