"""Prompt Depth Anything's checkpoints: how each dialect names its tensors, and what says how the network is built."""

import re
from collections.abc import Callable
from dataclasses import replace

from mlx_depth.backbones import dinov2
from mlx_depth.heads import prompt_dpt
from mlx_depth.models.base import Dialect, Evidence, Reading, owner
from mlx_depth.models.depth_anything import weights as depth_anything
from mlx_depth.models.prompt_depth_anything.network import with_prompt
from mlx_depth.weights.rules import Drop, prefixed

MODEL_TYPE = "prompt_depth_anything"  # transformers' name of the architecture


def _reader(dialect: str) -> Callable[[Evidence], Reading]:
    """By Depth Anything's reader: the tensors are its own and more, and so are the keys of config.json."""

    def read(evidence: Evidence) -> Reading:
        config = evidence.config
        if config is not None:  # upstream reads the range of a metric head, and leaves it
            evidence = replace(evidence, config={**config, "max_depth": 1})
        reading = depth_anything.DIALECTS[dialect].read(evidence)
        network = reading.config
        if config is None:  # the authors' network ends in a sigmoid
            network = replace(network, head=replace(network.head, activation="sigmoid"))
        return Reading(with_prompt(network), reading.certain)

    return read


_OFFICIAL = re.compile(
    r"prompt(?:da|[-_]depth[-_]anything)[-_]vit(?P<size>[sl])(?P<transparent>[-_]transparent)?(?![a-z0-9])"
)
_SIZES = {"s": "small", "l": "large"}


def published_name(name: str) -> str | None:
    """The model of the registry that has this official file name or repository."""
    if found := _OFFICIAL.search(name.lower()):
        return f"prompt-depth-anything-{_SIZES[found['size']]}{'-transparent' if found['transparent'] else ''}"
    return None


_IN_THE_PROCESSOR = "the photo is normalized before the network, not in it"

DIALECTS = {
    "original": Dialect(
        rules=(
            *prefixed(dinov2.ORIGINAL, "pretrained.", "backbone."),
            *prefixed(prompt_dpt.ORIGINAL, "depth_head.", "head."),
            Drop("_mean", _IN_THE_PROCESSOR),
            Drop("_std", _IN_THE_PROCESSOR),
        ),
        owns=owner(
            "pretrained.blocks.0.attn.qkv.weight",
            "depth_head.scratch.refinenet1.resConfUnit_depth.0.weight",
            model_types=(MODEL_TYPE,),
        ),
        read=_reader("original"),
    ),
    "transformers": Dialect(
        rules=(
            *prefixed(dinov2.TRANSFORMERS, "backbone.", "backbone."),
            *prefixed(prompt_dpt.TRANSFORMERS, "", "head."),
        ),
        owns=owner(
            "neck.fusion_stage.layers.0.prompt_depth_layer.convolution1.weight",
            "head.conv1.weight",
            model_types=(MODEL_TYPE,),
        ),
        read=_reader("transformers"),
    ),
}
