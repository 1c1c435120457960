"""Core ML graphs of networks: one file a family."""

from mlx_depth.errors import OptionError
from mlx_depth.registry import ModelSpec
from mlx_depth_convert.coreml.emitters.base import Emitter
from mlx_depth_convert.coreml.emitters.depth_anything import DepthAnythingEmitter

EMITTERS: dict[str, type[Emitter]] = {"depth_anything": DepthAnythingEmitter}


def emitter_of(spec: ModelSpec) -> type[Emitter]:
    """The emitter of a model's family.

    Raises:
        OptionError: If there is none.
    """
    if spec.family not in EMITTERS:
        raise OptionError(
            f"{spec.name} is of the family {spec.family}, which Core ML export does not know yet: "
            f"choose a model of {', '.join(EMITTERS)}."
        )
    return EMITTERS[spec.family]
