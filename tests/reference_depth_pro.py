"""The upstream Depth Pro (transformers) with name-seeded weights, and the authors' names and rules for photos."""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from support import require, seeded

torch = require("reference", "torch")
transformers = require("reference", "transformers")


class Size(NamedTuple):
    """What sets the sizes of one network; the structure is that of the published one."""

    hidden: int
    layers: int
    heads: int
    window: int  # pixels; the image is four times as large
    hooks: tuple[int, int]  # deepest first
    features: int
    levels: tuple[int, int, int]
    overlaps: tuple[float, float, float]
    padding: int


SIZES = {
    "tiny": Size(64, 3, 2, 64, (1, 0), 16, (24, 20, 12), (0.0, 0.5, 0.5), 1),
    # Windows, patches and joints of the published one.
    "narrow": Size(
        16, 3, 1, 384, (1, 0), 8, (16, 12, 8), (0.0, 0.5, 0.25), 3
    ),  # windows, patches and joints of the published one
    "large": Size(1024, 24, 16, 384, (11, 5), 256, (1024, 1024, 512), (0.0, 0.5, 0.25), 3),
}


def config(size: str, *, field_of_view: bool = True) -> Any:
    """transformers' config."""
    wanted = SIZES[size]
    encoder = {
        "model_type": "dinov2",
        "hidden_size": wanted.hidden,
        "num_hidden_layers": wanted.layers,
        "num_attention_heads": wanted.heads,
        "patch_size": 16,
        "image_size": wanted.window,
    }
    return transformers.DepthProConfig(
        patch_size=wanted.window,
        fusion_hidden_size=wanted.features,
        intermediate_hook_ids=list(wanted.hooks),
        intermediate_feature_dims=[wanted.features] * 2,
        scaled_images_overlap_ratios=list(wanted.overlaps),
        scaled_images_feature_dims=list(wanted.levels),
        merge_padding_value=wanted.padding,
        use_fov_model=field_of_view,
        **{f"{part}_model_config": dict(encoder) for part in ("image", "patch", "fov")},
    )


def meta_model(size: str, **options: Any) -> Any:
    """The module tree without memory, for names and shapes at full size."""
    with torch.device("meta"):
        upstream = transformers.DepthProForDepthEstimation(config(size, **options))
    upstream.set_attn_implementation("eager")  # torch's fused attention is slow where heads are narrow
    return upstream


@functools.lru_cache(maxsize=3)
def model(size: str, *, field_of_view: bool = True) -> Any:
    """The whole upstream model in float32, every parameter filled from its name."""
    upstream = meta_model(size, field_of_view=field_of_view).to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, parameter in upstream.named_parameters():
            parameter.copy_(torch.from_numpy(weight(name, tuple(parameter.shape))))
    return upstream


DEGREES, SPREAD = 55.0, 5.0  # of the field of view: its middle, and a factor of what the network adds


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter's values from its name: products keep their scale, gains stay near one."""
    if name == "fov_model.head.layers.4.bias":
        return np.full(shape, DEGREES, np.float32)
    if name.endswith("lambda1"):
        return 0.3 + seeded(name, shape, 0.05)
    if len(shape) == 1:  # biases above zero keep the few channels of the field of view alive
        alive = ("norm" in name and name.endswith("weight")) or name.startswith("fov_model.head")
        return seeded(name, shape, 0.1) + alive
    if name.endswith(("token", "position_embeddings")):
        return seeded(name, shape, 0.5)
    doubles = shape[2:] == (2, 2) and "projections" not in name and "fov_model" not in name
    fan_in = shape[0] if doubles else int(np.prod(shape[1:]))
    values = seeded(name, shape, fan_in**-0.5)
    if name == "fov_model.head.layers.4.weight":
        return values * SPREAD
    # A mean above zero keeps what a ReLU lets through alive; `run` asserts that it is.
    positive = name == "head.layers.4.weight" or name.startswith("fov_model.head")
    return values + 0.5 * fan_in**-0.5 if positive else values


def pixels(B: int, side: int) -> np.ndarray:
    """Normalized pixels, NHWC, coarse shapes and grain."""
    coarse = torch.from_numpy(seeded(f"pixels{B}x{side}", (B, 3, side // 32, side // 32)))
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").numpy()
    return np.ascontiguousarray((smooth + seeded("grain", (B, 3, side, side), 0.1)).transpose(0, 2, 3, 1))


def run(upstream: Any, pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Upstream's canonical inverse depth and field of view, for NHWC pixels; neither is dead."""
    with torch.no_grad():
        outputs = upstream(torch.from_numpy(np.ascontiguousarray(pixel_values.transpose(0, 3, 1, 2))))
    depth, angle = outputs.predicted_depth.numpy(), outputs.field_of_view
    assert depth.std() > 0.05 * np.abs(depth).mean(), "a reference that hardly varies proves nothing"
    assert (depth == 0).mean() < 0.3, "a dead reference proves nothing"
    if angle is None:
        return depth, None
    assert ((angle > 20) & (angle < 120)).all(), "a field of view that no camera has proves nothing"
    assert (abs(angle - DEGREES) > 1).all(), "a field of view that is a bias alone proves nothing"
    return depth, angle.numpy()


def save(upstream: Any, folder: Path) -> Path:
    """Write the model as the Hub has it: both configs, and safetensors under the old names."""
    upstream.save_pretrained(folder)
    side = 4 * upstream.config.patch_size
    processor = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "DepthProImageProcessorFast",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": side, "width": side},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def photo_pixels(upstream: Any, image: np.ndarray) -> np.ndarray:
    """A photo as both references have it, NHWC: normalized, then stretched by torch's bilinear rule.

    transformers' own processor needs torchvision, whose resize without antialias is ``interpolate``.
    """
    side = 4 * upstream.config.patch_size
    x = (torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None] - 0.5) / 0.5
    x = torch.nn.functional.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
    return np.ascontiguousarray(x.numpy().transpose(0, 2, 3, 1))


def metres(upstream: Any, image: np.ndarray, focal_length_px: float | None) -> tuple[np.ndarray, float]:
    """From a photo to metres and the focal length, by the authors' ``infer``, restated."""
    height, width = image.shape[:2]
    with torch.no_grad():
        outputs = upstream(torch.from_numpy(photo_pixels(upstream, image).transpose(0, 3, 1, 2)))
    focal = focal_length_px
    if focal is None:
        focal = float(0.5 * width / torch.tan(0.5 * torch.deg2rad(outputs.field_of_view[0])))
    inverse = outputs.predicted_depth[:, None] * (width / focal)
    inverse = torch.nn.functional.interpolate(inverse, size=(height, width), mode="bilinear", align_corners=False)
    return (1 / torch.clamp(inverse, min=1e-4, max=1e4))[0, 0].numpy(), focal


_AUTHORS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm.": "norm.",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "encoder.layer.": "blocks.",
    "depth_pro.encoder.": "encoder.",
    "_encoder.model.": "_encoder.",
    "fov_model.fov_encoder.neck": "fov.encoder.1",
    "fov_model.fov_encoder.": "fov.encoder.0.",
    "fov_model.conv.": "fov.downsample.0.",
    "fov_model.head.layers": "fov.head",
    "depth_pro.neck.fuse_image_with_low_res": "encoder.fuse_lowres",
    "depth_pro.neck.feature_upsample.image_block.layers.0": "encoder.upsample_lowres",
    **{f"depth_pro.neck.feature_upsample.scaled_images.{i}.layers": f"encoder.upsample{2 - i}" for i in range(3)},
    **{f"depth_pro.neck.feature_upsample.intermediate.{i}.layers": f"encoder.upsample_latent{1 - i}" for i in range(2)},
    **{f"depth_pro.neck.feature_projection.projections.{i}": f"decoder.convs.{4 - i}" for i in range(4)},
    **{f"fusion_stage.intermediate.{i}.": f"decoder.fusions.{4 - i}." for i in range(4)},
    "fusion_stage.final.": "decoder.fusions.0.",
    "residual_layer1.convolution1": "resnet1.residual.1",
    "residual_layer1.convolution2": "resnet1.residual.3",
    "residual_layer2.convolution1": "resnet2.residual.1",
    "residual_layer2.convolution2": "resnet2.residual.3",
    ".projection.": ".out_conv.",
    "head.layers.": "head.",
}
_QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")


def authors_names(state: dict[str, Any]) -> dict[str, Any]:
    """A transformers state under the names of the authors' ``depth_pro.pt``, stated from their source."""
    named: dict[str, Any] = {}
    for name, value in state.items():
        if name.endswith("mask_token") or any(part in name for part in _QKV[1:]):
            continue
        if _QKV[0] in name:
            value = torch.cat([state[name.replace(_QKV[0], part)] for part in _QKV])
            name = name.replace(_QKV[0], "attn.qkv")
        for old, new in _AUTHORS.items():
            name = name.replace(old, new)
        named[name] = value
    return named
