"""A checkpoint's network in its reference, its weights mapped back by the family's own table."""

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_depth.checkpoints.checkpoint import Checkpoint, expand_checkpoint
from mlx_depth.weights.rules import apply, to_torch_layout
from mlx_depth_convert.references import reference_of


def reference_network(checkpoint: Checkpoint) -> Any:
    """Build a checkpoint's model as its reference has it.

    Args:
        checkpoint: Of any dialect; quantized layers are expanded. Its config must follow the reference's rules.
    Returns:
        A ``torch.nn.Module`` in float32. Parts that neither are in the checkpoint nor have a part in its outputs are
        zero.
    Raises:
        OptionError: If a package is missing, or there is no reference.
    """
    reference = reference_of(checkpoint.spec)
    try:
        import torch

        network = reference.build(checkpoint.spec.config)
    except ImportError as error:
        raise reference.missing(error) from None
    weights = _torch_weights(checkpoint)
    state = {}
    for name, value in network.state_dict().items():
        targets = our_names(checkpoint, name, tuple(value.shape))
        parts = [np.array(weights[target]) for target in targets if target in weights]
        state[name] = torch.from_numpy(np.concatenate(parts)) if parts else torch.zeros(value.shape)
    network.load_state_dict(state, assign=True)
    return network.eval()


def our_names(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> list[str]:
    """What a tensor of the reference becomes here; nothing, where it is not used."""
    dialect = reference_of(checkpoint.spec).dialect
    return list(apply(checkpoint.family.dialects[dialect].rules, {name: mx.zeros(shape)}))


def _torch_weights(checkpoint: Checkpoint) -> dict[str, mx.array]:
    plain = {name: array.astype(mx.float32) for name, array in expand_checkpoint(checkpoint).weights.items()}
    return to_torch_layout(checkpoint.family.network(checkpoint.spec.config), plain)
