"""Prompt Depth Anything in transformers, with the generated prompt beside whatever picture."""

from dataclasses import replace
from typing import Any

from mlx_depth.models.prompt_depth_anything.network import PromptDepthAnythingConfig
from mlx_depth_convert.pictures import generated_prompt
from mlx_depth_convert.references import depth_anything, in_transformers
from mlx_depth_convert.references.base import Outputs


def _build(config: PromptDepthAnythingConfig) -> Any:
    import torch
    import transformers

    plain = depth_anything.transformers_config(transformers, config)
    facts = {key: value for key, value in plain.to_dict().items() if key in _KEYS}
    with torch.device("meta"):
        return transformers.PromptDepthAnythingForDepthEstimation(
            transformers.PromptDepthAnythingConfig(backbone_config=plain.backbone_config, **facts)
        )


_KEYS = (
    "patch_size",
    "reassemble_hidden_size",
    "neck_hidden_sizes",
    "fusion_hidden_size",
    "head_hidden_size",
    "depth_estimation_type",
)


def _run(network: Any, pixel_values: Any, *, everything: bool) -> Outputs:
    import torch

    prompt = torch.from_numpy(generated_prompt())[None, None].to(pixel_values)
    prompts = prompt.expand(len(pixel_values), -1, -1, -1)
    return {"depth": network(pixel_values.permute(0, 3, 1, 2), prompt_depth=prompts).predicted_depth}


_LAYER = "neck.fusion_stage.layers.{i}.prompt_depth_layer"
REFERENCE = replace(
    depth_anything.REFERENCE,
    build=_build,
    run=_run,
    load=in_transformers.loader("PromptDepthAnythingForDepthEstimation"),
    twins={**depth_anything.REFERENCE.twins, "prompt {i}": _LAYER},
)
