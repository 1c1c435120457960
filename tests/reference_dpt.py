"""transformers' DPT with name-seeded weights, on each of its backbones."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from support import require, seeded

torch = require("reference", "torch")
transformers = require("reference", "transformers")

TINY_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "image_size": 64,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 16, 24, 32],
    "fusion_hidden_size": 16,
}
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "backbone_out_indices": [5, 11, 17, 23],
    "neck_hidden_sizes": [256, 512, 1024, 1024],
}
HYBRID = {"is_hybrid": True, "neck_hidden_sizes": [256, 512, 768, 768], "reassemble_factors": [1, 1, 1, 0.5]}
TINY_RESNET = {
    "model_type": "bit",
    "layer_type": "bottleneck",
    "global_padding": "same",
    "embedding_dynamic_padding": True,
    "embedding_size": 16,
    "hidden_sizes": [64, 128, 256],
    "depths": [1, 2, 1],
    "num_groups": 8,
    "out_features": ["stage1", "stage2", "stage3"],
}
# hidden size, layers, heads, one-based layers that are handed out
DINOV2 = {
    "tiny": (32, 4, 2, [1, 2, 3, 4]),
    "small": (384, 12, 6, [3, 6, 9, 12]),
    "base": (768, 12, 12, [3, 6, 9, 12]),
    "large": (1024, 24, 16, [5, 12, 18, 24]),
    "giant": (1536, 40, 24, [10, 20, 30, 40]),
}


def config(kind: str, **options: Any) -> Any:
    """transformers' config: ``vit``, ``hybrid`` and ``dinov2`` are tiny, others a published size.

    The convolution that DINOv2's heads have before the last ones comes in one width: most tiny ones do without.
    """
    if kind == "vit":
        return transformers.DPTConfig(**{**TINY_VIT, **options})
    if kind == "hybrid":
        widths = {"neck_hidden_sizes": [64, 128, 24, 32], "backbone_featmap_shape": [1, 256, 4, 4]}
        backbone = {"backbone_config": dict(TINY_RESNET)}
        return transformers.DPTConfig(**{**TINY_VIT, **HYBRID, **widths, **backbone, **options})
    if kind in ("large", "hybrid-midas"):
        return transformers.DPTConfig(**({**LARGE, **options} if kind == "large" else {**HYBRID, **options}))
    size = kind.partition("-")[2] or "tiny"
    hidden, layers, heads, taps = DINOV2[size]
    backbone = transformers.Dinov2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=518,
        patch_size=14,
        out_indices=taps,
        apply_layernorm=False,
        reshape_hidden_states=False,
        use_swiglu_ffn=options.pop("swiglu", size == "giant"),
    )
    return transformers.DPTConfig(
        **{
            "backbone_config": backbone,
            "neck_hidden_sizes": [hidden // 8, hidden // 4, hidden // 2, hidden],
            "use_bias_in_fusion_residual": False,
            "fusion_hidden_size": 16 if size == "tiny" else 256,
            "add_projection": size != "tiny",
            **options,
        }
    )


@functools.cache
def meta_model(kind: str, **options: Any) -> Any:
    """The module tree without memory, for names and shapes at full size."""
    with torch.device("meta"):
        return transformers.DPTForDepthEstimation(config(kind, **options))


@functools.lru_cache(maxsize=4)
def model(kind: str, **options: Any) -> Any:
    """The whole upstream model in float32, every tensor filled from its name."""
    upstream = meta_model.__wrapped__(kind, **options).to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, tensor in upstream.state_dict().items():
            tensor.copy_(torch.from_numpy(weight(name, tuple(tensor.shape))))
    return upstream


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter's values from its name: products keep their scale, gains stay near one."""
    if name.endswith("lambda1"):
        return 0.3 + seeded(name, shape, 0.05)
    if len(shape) == 1:
        return seeded(name, shape, 0.1) + ("norm" in name and name.endswith("weight"))
    if name.endswith(("token", "position_embeddings")):
        return seeded(name, shape, 0.5)
    transposed = name.startswith(("neck.reassemble_stage.layers.0.resize", "neck.reassemble_stage.layers.1.resize"))
    values = seeded(name, shape, (shape[0] if transposed else int(np.prod(shape[1:]))) ** -0.5)
    return np.abs(values) if name == "head.head.4.weight" else values  # keeps the last ReLU alive; `run` asserts it


def save(upstream: Any, folder: Path) -> Path:
    """Write the model as the Hub has it: config.json and safetensors."""
    transformers.utils.logging.disable_progress_bar()
    upstream.save_pretrained(folder)
    return folder


def run(upstream: Any, pixel_values: np.ndarray) -> np.ndarray:
    """Upstream's depth for NHWC pixels."""
    _, H, W, _ = pixel_values.shape
    if upstream.config.is_hybrid:
        upstream.dpt.embeddings.image_size = (H, W)  # it refuses others, and resizes the positions all the same
    with torch.no_grad():
        depth = upstream(torch.from_numpy(np.ascontiguousarray(pixel_values.transpose(0, 3, 1, 2)))).predicted_depth
    depth = depth.numpy()
    assert depth.std() > 0.05 * np.abs(depth).mean(), "a reference that hardly varies proves nothing"
    assert (depth == 0).mean() <= 0.1, "a dead reference proves nothing"
    return depth


def pixels(*shape: int) -> np.ndarray:
    """Normalized pixels, NHWC, smooth with some noise."""
    B, H, W = shape
    coarse = seeded(f"pixels{shape}", (B, H // 14 + 1, W // 14 + 1, 3))
    smooth = coarse.repeat(14, axis=1).repeat(14, axis=2)[:, :H, :W]
    return np.ascontiguousarray(smooth + seeded(f"noise{shape}", (B, H, W, 3), 0.1))


def processor(kind: str) -> Any:
    """The image processor that the published folders name: of MiDaS, or of DINOv2's heads."""
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    return DPTImageProcessorPil(**PROCESSORS[kind])


PROCESSORS: dict[str, dict[str, Any]] = {
    "midas": {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "ensure_multiple_of": 1,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "keep_aspect_ratio": False,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": 384, "width": 384},
    },
    "dinov2": {
        "do_resize": False,
        "do_rescale": False,
        "do_normalize": True,
        "do_pad": True,
        "size_divisor": 14,
        "ensure_multiple_of": 1,
        "image_mean": [123.675, 116.28, 103.53],
        "image_std": [58.395, 57.12, 57.375],
        "keep_aspect_ratio": False,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": 384, "width": 384},
    },
}
