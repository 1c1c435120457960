"""AnyDepth's own decoder: its class from a clone, weights in its names, and tokens, all drawn from names.

For the tests, which know what it computed from goldens, and for what runs it: minting them, and the benchmark.
"""

import importlib.util
import math
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from support import seeded

REPOSITORY = "https://github.com/AIGeeksGroup/AnyDepth"
LEAST_DEPTH = 0.001  # model/__init__.py, FeaturesToDepth
GAINS = {"scope": 2.0, "offset": 2.0}  # with the features' size, positions that move by more than a pixel
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "init_pos")  # what is no parameter


def decoder_class(clone: Path) -> Any:
    """``SDTHead``, from its file alone: the package around it needs a backbone."""
    spec = importlib.util.spec_from_file_location("sdt_head", clone / "model/sdt_head.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SDTHead


def commit(clone: Path) -> str:
    """Which one it is."""
    command = ["git", "-C", str(clone), "rev-parse", "HEAD"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def shapes(network: Any) -> dict[str, tuple[int, ...]]:
    """The names of a decoder of theirs."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def filled(network: Any) -> Any:
    """Their decoder with the weights that its names make, for inference."""
    import torch

    tensors = state(shapes(network))
    for name, buffer in network.named_buffers():
        if name.endswith("init_pos"):  # computed here: it has to be theirs
            np.testing.assert_array_equal(tensors[name], buffer.numpy())
    network.load_state_dict({name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()})
    return network.eval()


def as_theirs(tokens: list[tuple[np.ndarray, np.ndarray]], grid_size: tuple[int, int]) -> list[tuple[Any, Any]]:
    """``features`` in their layout: a map ``(B, C, gh, gw)`` and the class token."""
    import torch

    return [
        (torch.from_numpy(patches).mT.reshape(len(patches), -1, *grid_size), torch.from_numpy(cls))
        for patches, cls in tokens
    ]


def state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A tensor for each name: trained batch statistics, offsets that matter, and no layer that dies.

    Args:
        shapes: The authors' names and shapes.
    """
    return {name: _tensor(name, tuple(shape)) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return np.array(1000)
    if kind == "init_pos":
        return initial_positions(shape[1] // 8).reshape(shape)
    if kind == "running_var":
        return np.exp(seeded(name, shape, 0.5))
    if len(shape) > 1:
        gain = next((gain for part, gain in GAINS.items() if f".{part}." in name), math.sqrt(2))
        return seeded(name, shape, gain / math.sqrt(math.prod(shape[1:])))
    return seeded(name, shape, 0.3) + np.float32(name == "output_conv.4.bias" or kind == "weight")


def initial_positions(groups: int) -> np.ndarray:
    """A quarter of a pixel outward, (axis, group, row, column) of the four pixels: first across, then down."""
    quarter = np.array([-0.25, 0.25], np.float32)
    across = np.broadcast_to(quarter, (groups, 2, 2))
    return np.stack([across, across.swapaxes(1, 2)])


def features(name: str, in_dim: int, grid_size: tuple[int, int], batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Patch tokens ``(B, gh * gw, C)`` and the class token ``(B, C)`` of four layers."""
    patches = math.prod(grid_size)
    return [
        (seeded(f"{name}.patches{i}", (batch, patches, in_dim)), seeded(f"{name}.class{i}", (batch, in_dim)))
        for i in range(4)
    ]
