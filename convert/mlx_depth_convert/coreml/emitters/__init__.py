"""Core ML graphs of networks: one file a family."""

from mlx_depth.errors import OptionError
from mlx_depth.registry import ModelSpec
from mlx_depth_convert.coreml.emitters.anydepth import AnyDepthEmitter
from mlx_depth_convert.coreml.emitters.base import Emitter
from mlx_depth_convert.coreml.emitters.depth_anything import DepthAnythingEmitter
from mlx_depth_convert.coreml.emitters.depth_anything_3 import AnyViewEmitter, MonoEmitter
from mlx_depth_convert.coreml.emitters.dpt import DPTMetricEmitter
from mlx_depth_convert.coreml.emitters.moge import MoGeEmitter

EMITTERS: dict[str, type[Emitter]] = {
    "depth_anything": DepthAnythingEmitter,
    "depth_anything_3": AnyViewEmitter,
    "depth_anything_3_mono": MonoEmitter,
    "anydepth": AnyDepthEmitter,
    "dpt_dinov2": DPTMetricEmitter,
    "moge": MoGeEmitter,
}
REFUSED = {  # family → why, and what to do instead
    "depth_anything_3_nested": "is two networks, of 1.7 billion parameters together: choose "
    "depth-anything-3-metric-large, whose metres need the focal length, or depth-anything-3-large-1.1",
    "depth_pro": "is three transformers, of 952 million parameters together, one of which sees 35 windows of a photo: "
    "choose a depth-anything-v2-metric model",
    "prompt_depth_anything": "takes distances beside the photo, for which a package has no input yet: choose "
    "depth-anything-v2-metric-indoor-small",
}


def emitter_of(spec: ModelSpec) -> type[Emitter]:
    """The emitter of a model.

    Raises:
        OptionError: If there is none for its family, or its network is not exported.
    """
    emitter = EMITTERS.get(spec.family)
    why = REFUSED.get(spec.family) if emitter is None else emitter.refusal(spec.config)
    if why is not None:
        raise OptionError(f"{spec.name} {why}.")
    if emitter is None:
        raise OptionError(
            f"{spec.name} is of the family {spec.family}, which Core ML export does not know yet: "
            f"choose a model of {', '.join(EMITTERS)}."
        )
    return emitter
