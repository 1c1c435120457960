"""The upstream Prompt Depth Anything (transformers) with name-seeded weights, and the authors' names of its tensors."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import reference
from reference import torch, transformers
from support import seeded


def config(size: str, *, metric: bool = True) -> Any:
    """transformers' config of a published size, or of ``tiny``."""
    plain = reference.config(size, max_depth=1 if metric else None).to_dict()
    backbone = transformers.Dinov2Config(**plain["backbone_config"])
    keys = ("reassemble_hidden_size", "neck_hidden_sizes", "fusion_hidden_size", "depth_estimation_type")
    return transformers.PromptDepthAnythingConfig(backbone_config=backbone, **{key: plain[key] for key in keys})


def meta_model(size: str, **options: Any) -> Any:
    """The module tree without memory, for names and shapes at full size."""
    with torch.device("meta"):
        return transformers.PromptDepthAnythingForDepthEstimation(config(size, **options))


@functools.lru_cache(maxsize=3)
def model(size: str, *, metric: bool = True) -> Any:
    """The whole upstream model in float32, every parameter filled from its name."""
    upstream = meta_model(size, metric=metric).to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, parameter in upstream.named_parameters():
            values = reference.weight(name, tuple(parameter.shape), relu=not metric)
            parameter.copy_(torch.from_numpy(values))
    return upstream


def prompt(B: int, size: tuple[int, int] = (19, 25)) -> np.ndarray:
    """Distances in metres, (B, h, w), each image with a range of its own, smooth with some noise."""
    coarse = torch.from_numpy(seeded(f"prompt{B}{size}", (B, 1, 3, 4)))
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")[:, 0].numpy()
    values = smooth + seeded("prompt noise", (B, *size), 0.05)
    low = values.min(axis=(1, 2), keepdims=True)
    return ((values - low) * (1 + np.arange(B)[:, None, None]) + 0.3 + np.arange(B)[:, None, None]).astype(np.float32)


def run(upstream: Any, pixel_values: np.ndarray, prompt_depth: np.ndarray | None) -> np.ndarray:
    """Upstream's depth, (B, H, W), for NHWC pixels and prompts (B, h, w)."""
    given = None if prompt_depth is None else torch.from_numpy(prompt_depth[:, None])
    with torch.no_grad():
        depth: np.ndarray = upstream(reference.nchw(pixel_values), prompt_depth=given).predicted_depth.numpy()
    assert depth.std() > 0.05 * np.abs(depth).mean(), "a reference that hardly varies proves nothing"
    return depth


def save(upstream: Any, folder: Path) -> Path:
    """Write the model and its processor as the Hub has them."""
    upstream.save_pretrained(folder)
    transformers.PromptDepthAnythingImageProcessorPil(**PROCESSOR).save_pretrained(folder)
    return folder


# The published preprocessor_config.json says this.
PROCESSOR = {
    "do_resize": True,
    "size": {"height": 756, "width": 756},
    "keep_aspect_ratio": True,
    "ensure_multiple_of": 14,
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_pad": False,
    "prompt_scale_to_meter": 0.001,
}


def authors_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """A whole model under the names of the authors' files, stated from ``promptda/model/blocks.py``."""
    plain = {name: value for name, value in state.items() if ".prompt_depth_layer." not in name}
    names = reference.authors_names(plain)
    for name, value in state.items():
        if ".prompt_depth_layer." in name:
            _, _, _, level, _, convolution, kind = name.split(".")
            place = 2 * (int(convolution.removeprefix("convolution")) - 1)
            names[f"depth_head.scratch.refinenet{4 - int(level)}.resConfUnit_depth.{place}.{kind}"] = value
    mean, std = (torch.tensor(PROCESSOR[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    return {**names, "_mean": mean, "_std": std}
