"""A checkpoint's network in transformers, its weights mapped back by the family's own table."""

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_depth.checkpoints.checkpoint import Checkpoint, expand_checkpoint
from mlx_depth.errors import OptionError
from mlx_depth.weights.rules import apply, to_torch_layout
from mlx_depth_convert.references import reference_of

DIALECT = "transformers"


def transformers_network(checkpoint: Checkpoint) -> Any:
    """Build transformers' model of a checkpoint.

    Args:
        checkpoint: Of any dialect; quantized layers are expanded. Its config must follow transformers' rules.
    Returns:
        A ``torch.nn.Module`` in float32.
    Raises:
        OptionError: If torch or transformers is missing, or transformers has no such model.
    """
    reference = reference_of(checkpoint.spec)
    torch, transformers = _import()
    with torch.device("meta"):
        network = reference.build(transformers, checkpoint.spec.config)
    weights = _torch_weights(checkpoint)
    state = {}
    for name, value in network.state_dict().items():
        parts = [np.array(weights[target]) for target in our_names(checkpoint, name, tuple(value.shape))]
        state[name] = torch.from_numpy(np.concatenate(parts)) if parts else torch.zeros(value.shape)
    network.load_state_dict(state, assign=True)
    return network.eval()


def our_names(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> list[str]:
    """What a tensor of transformers becomes here; nothing, where it is not used."""
    return list(apply(checkpoint.family.dialects[DIALECT].rules, {name: mx.zeros(shape)}))


def _import() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise OptionError(
            f"comparing with transformers needs it ({error}): pip install 'mlx-depth[reference]'."
        ) from None
    return torch, transformers


def _torch_weights(checkpoint: Checkpoint) -> dict[str, mx.array]:
    plain = {name: array.astype(mx.float32) for name, array in expand_checkpoint(checkpoint).weights.items()}
    return to_torch_layout(checkpoint.family.network(checkpoint.spec.config), plain)
