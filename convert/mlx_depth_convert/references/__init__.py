"""The same network in its reference, with the same weights, for comparison: one file a family."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_depth.checkpoints.checkpoint import Checkpoint, expand_checkpoint
from mlx_depth.errors import OptionError
from mlx_depth.models.base import Stage
from mlx_depth.weights.rules import apply, to_torch_layout
from mlx_depth_convert.references import depth_anything

DIALECT = "transformers"


@dataclass(frozen=True)
class Reference:
    """How transformers builds a family's network, and where its stages are in it."""

    build: Callable[[Any, Any], Any]  # the module transformers, config → torch.nn.Module
    twin: Callable[[str], str]  # name of a stage → path of transformers' module


REFERENCES = {"depth_anything": Reference(depth_anything.build, depth_anything.twin)}


def transformers_network(checkpoint: Checkpoint) -> Any:
    """Build transformers' model of a checkpoint, its weights mapped back by the family's own table.

    Args:
        checkpoint: Of any dialect; quantized layers are expanded. Its config must follow transformers' rules.
    Returns:
        A ``torch.nn.Module`` in float32.
    Raises:
        OptionError: If torch or transformers is missing, or transformers has no such model.
    """
    torch, transformers = _import()
    reference = _reference(checkpoint)
    with torch.device("meta"):
        network = reference.build(transformers, checkpoint.spec.config)
    weights = _plain_weights(checkpoint)
    state = {}
    for name, value in network.state_dict().items():
        parts = [np.array(weights[target]) for target in _targets(checkpoint, name, tuple(value.shape))]
        state[name] = torch.from_numpy(np.concatenate(parts)) if parts else torch.zeros(value.shape)
    network.load_state_dict(state, assign=True)
    return network.eval()


def _reference(checkpoint: Checkpoint) -> Reference:
    if checkpoint.spec.family not in REFERENCES:
        raise OptionError(f"transformers has no {checkpoint.spec.name}: compare it with its own source (--against).")
    return REFERENCES[checkpoint.spec.family]


class TransformersSide:
    """Runs transformers' model on our pixel values and hands out stages in our layout."""

    def __init__(self, checkpoint: Checkpoint):
        self.network = transformers_network(checkpoint)
        self.name = "transformers"
        self._modules = dict(self.network.named_modules())
        self._twin = _reference(checkpoint).twin
        names = [name for name, _ in self.network.named_parameters() if name.endswith(".weight")]
        shapes = {name: tuple(value.shape) for name, value in self.network.named_parameters()}
        targets = {name: _targets(checkpoint, name, shapes[name]) for name in names}
        self._twins: Mapping[str, str] = {found[0]: name for name, found in targets.items() if len(found) == 1}

    def stage_of(self, path: str) -> Stage | None:
        """The stage that compares one of our layers with its twin here; None where it has none."""
        twin = self._twins.get(f"{path}.weight")
        return Stage(path, path) if twin is not None else None

    def _module(self, stage: Stage) -> Any:
        twin = self._twins.get(f"{stage.name}.weight")  # a stage that `stage_of` made is called as its layer
        return self._modules[twin.removesuffix(".weight") if twin is not None else self._twin(stage.name)]

    def run(self, pixel_values: mx.array, stages: Sequence[Stage]) -> dict[str, np.ndarray]:
        """Stage name → values, and the final depth under ``depth``."""
        import torch

        values: dict[str, np.ndarray] = {}

        def record(stage: Stage) -> Any:
            def hook(_: Any, arguments: tuple[Any, ...], output: Any) -> None:
                found = arguments[0] if stage.at == "input" else output
                values.setdefault(stage.name, _our_layout(found[0] if isinstance(found, tuple) else found))

            return hook

        handles = [self._module(stage).register_forward_hook(record(stage)) for stage in stages]
        try:
            pixels = torch.from_numpy(np.array(pixel_values.transpose(0, 3, 1, 2)))
            with torch.no_grad():
                depth = self.network(pixels).predicted_depth.numpy()
        finally:
            for handle in handles:
                handle.remove()
        return {**values, "depth": depth}


def _our_layout(tensor: Any) -> np.ndarray:
    """Maps (B, C, H, W) → (B, H, W, C); tokens stay."""
    array: np.ndarray = tensor.numpy()
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if array.ndim == 4 else array


def _import() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise OptionError(
            f"comparing with transformers needs it ({error}): pip install 'mlx-depth[reference]'."
        ) from None
    return torch, transformers


def _plain_weights(checkpoint: Checkpoint) -> dict[str, mx.array]:
    plain = {name: array.astype(mx.float32) for name, array in expand_checkpoint(checkpoint).weights.items()}
    return to_torch_layout(checkpoint.family.network(checkpoint.spec.config), plain)


def _targets(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> list[str]:
    """Our names for a tensor of transformers; none for one that is not used."""
    return list(apply(checkpoint.family.dialects[DIALECT].rules, {name: mx.zeros(shape)}))
