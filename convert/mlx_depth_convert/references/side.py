"""The side of a verification that runs in the reference."""

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_depth.checkpoints.checkpoint import Checkpoint
from mlx_depth.models.base import Stage
from mlx_depth_convert.references import reference_of
from mlx_depth_convert.references.network import our_names, reference_network

Arrays = dict[str, np.ndarray]
_WEIGHT = ".weight"


class ReferenceSide:
    """Runs the reference's network on our pixel values and hands out stages in our layout."""

    def __init__(self, checkpoint: Checkpoint):
        self.network = reference_network(checkpoint)
        self._reference = reference_of(checkpoint.spec)
        self.name = self._reference.name
        self._modules = dict(self.network.named_modules())
        self._layers = self._layer_twins(checkpoint)

    def _layer_twins(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        """Path of a layer of ours → that of its twin; a layer that is split here has none."""
        found: dict[str, str] = {}
        for name, value in self.network.named_parameters():
            ours = our_names(checkpoint, name, tuple(value.shape)) if name.endswith(_WEIGHT) else []
            if len(ours) == 1:
                found[ours[0].removesuffix(_WEIGHT)] = name.removesuffix(_WEIGHT)
        return found

    def stage_of(self, path: str) -> Stage | None:
        """The stage that compares one of our layers with its twin here; None where it has none."""
        return Stage(path, path) if path in self._layers else None

    def _module(self, stage: Stage) -> Any:
        path = self._layers.get(stage.name)  # a stage that `stage_of` made is called as its layer
        return self._modules[path if path is not None else self._reference.twin(stage.name)]

    def run(self, pixel_values: mx.array, stages: Sequence[Stage]) -> tuple[Arrays, Arrays]:
        """Stages and outputs, each name → values."""
        import torch

        values: dict[str, np.ndarray] = {}

        def record(stage: Stage) -> Any:
            def hook(_: Any, arguments: tuple[Any, ...], output: Any) -> None:
                found = arguments[0] if stage.at == "input" else output
                values.setdefault(stage.name, _our_layout(found[0] if isinstance(found, tuple) else found))

            return hook

        handles = [self._module(stage).register_forward_hook(record(stage)) for stage in stages]
        try:
            with torch.no_grad():
                pixels = torch.from_numpy(np.array(pixel_values))
                outputs = self._reference.run(self.network, pixels, everything=True)
        finally:
            for handle in handles:
                handle.remove()
        return values, {name: output.numpy() for name, output in outputs.items()}


def _our_layout(tensor: Any) -> np.ndarray:
    """Maps (B, C, H, W) → (B, H, W, C); tokens stay. A copy: some modules change what they are given."""
    array: np.ndarray = tensor.numpy()
    return np.array(array.transpose(0, 2, 3, 1) if array.ndim == 4 else array, order="C")
