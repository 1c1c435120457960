"""MiDaS 2.1 small's checkpoint: the authors' file."""

import re

from mlx_depth.backbones import efficientnet_lite
from mlx_depth.errors import CheckpointError
from mlx_depth.heads.dpt import fusions_original
from mlx_depth.models.base import Dialect, Evidence, Reading, owner
from mlx_depth.models.midas.network import midas_small_config
from mlx_depth.weights.rules import Rename, listed, prefixed

_LAYERS = ("layer1.3", "layer1.4", "layer2.0", "layer3.0", "layer3.1", "layer4.0", "layer4.1")
_STEM = ("layer1.0", "layer1.1")


def _read(evidence: Evidence) -> Reading:
    if evidence.config:
        raise CheckpointError(
            f"config.json has keys that MiDaS does not know: {listed(sorted(evidence.config))}. "
            "Remove the file, or take the one of the original checkpoint."
        )
    return Reading(midas_small_config())


_OFFICIAL = re.compile(r"midas_v21_small(?:_256|-70d6b9c8)?")


def published_name(name: str) -> str | None:
    """The model of the registry that has this official file name."""
    return "midas-v2.1-small" if _OFFICIAL.fullmatch(name.lower()) else None


DIALECTS = {
    "original": Dialect(
        rules=(
            *prefixed(efficientnet_lite.fold_rules(_STEM, _LAYERS), "pretrained.", "backbone."),
            *(Rename(f"scratch.layer{i + 1}_rn.weight", f"adapt.{i}.adapt.weight") for i in range(4)),
            *fusions_original(),
            *(Rename(f"scratch.output_conv.{place}.{{p}}", f"conv{c}.{{p}}") for place, c in ((0, 1), (2, 2), (4, 3))),
        ),
        owns=owner("pretrained.layer1.3.0.conv_dw.weight", "scratch.output_conv.0.weight"),
        read=_read,
    ),
}
