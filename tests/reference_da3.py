"""The upstream Depth Anything 3 with name-seeded weights: at its published sizes, and tiny with equal structure."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from da3 import import_reference
from support import require, seeded

from mlx_depth.backbones.any_view import AnyViewConfig
from mlx_depth.backbones.dinov2 import DINOv2Config
from mlx_depth.checkpoints.checkpoint import Checkpoint, write_checkpoint
from mlx_depth.heads.dpt import DPTConfig
from mlx_depth.heads.dual_dpt import DualDPTConfig
from mlx_depth.models.depth_anything_3.network import (
    NORM_EPS,
    DepthAnything3Config,
    DepthAnything3MonoConfig,
    DepthAnything3NestedConfig,
)
from mlx_depth.models.families import FAMILIES
from mlx_depth.registry import find_model
from mlx_depth.weights.rules import apply, to_mlx_layout

torch = require("reference", "torch")

TINY_WIDTH, TINY_LAYERS, TINY_HEADS, TINY_FEATURES, TINY_CHANNELS = 64, 6, 2, 16, (8, 16, 24, 32)
TINY_ALT_START, TINY_ANY_VIEW_LAYERS, TINY_MONO_LAYERS = 2, (2, 3, 4, 5), (1, 2, 4, 5)
ANY_VIEW, GIANT, NESTED = "da3-small", "da3-giant", "da3nested-giant-large"
MONO, METRIC = "da3mono-large", "da3metric-large"


@functools.lru_cache(maxsize=2)
def model(name: str, *, tiny: bool = False) -> Any:
    """The whole upstream network in float32, every parameter filled from its name."""
    with torch.device("cpu"):
        network = (tiny_network(name) if tiny else full_network(name)).eval()
    fill(network)
    return network


def fill(network: Any) -> None:
    """Give every parameter the values of its name."""
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            parameter.copy_(torch.from_numpy(weight(key, tuple(parameter.shape))))


def full_network(name: str) -> Any:
    """By upstream's own yaml file, such as ``da3-small``; on torch's default device."""
    cfg = import_reference("cfg")
    return cfg.create_object(cfg.load_config(import_reference("registry").MODEL_REGISTRY[name]))


def meta_network(name: str) -> Any:
    """The module tree without memory, for names and shapes at full size."""
    on_cpu = functools.partial(torch.linspace, device="cpu")  # upstream reads numbers off one while it builds
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "linspace", on_cpu)
        return full_network(name)


def tiny_network(name: str) -> Any:
    """Upstream's classes, narrow; all else as in the yaml file of that name."""
    da3 = import_reference("model.da3")
    if name == NESTED:
        nested = da3.NestedDepthAnything3Net.__new__(da3.NestedDepthAnything3Net)
        torch.nn.Module.__init__(nested)
        nested.da3, nested.da3_metric = tiny_network(GIANT), tiny_network(METRIC)
        return nested
    if name in (MONO, METRIC):
        head = import_reference("model.dpt").DPT(
            TINY_WIDTH, features=TINY_FEATURES, out_channels=list(TINY_CHANNELS), output_dim=1
        )
        return da3.DepthAnything3Net(_tiny_backbone(TINY_MONO_LAYERS, alt_start=-1, giant=False), head)
    dims = 2 * TINY_WIDTH
    sizes: dict[str, Any] = {"dim_in": dims, "features": TINY_FEATURES, "out_channels": list(TINY_CHANNELS)}
    giant = name == GIANT
    adapter = import_reference("model.gs_adapter").GaussianAdapter(
        sh_degree=2, pred_color=False, pred_offset_depth=True, pred_offset_xy=True
    )
    return da3.DepthAnything3Net(
        _tiny_backbone(TINY_ANY_VIEW_LAYERS, alt_start=TINY_ALT_START, giant=giant),
        import_reference("model.dualdpt").DualDPT(output_dim=2, **sizes),
        cam_enc=import_reference("model.cam_enc").CameraEnc(dim_out=TINY_WIDTH),
        cam_dec=import_reference("model.cam_dec").CameraDec(dim_in=dims),
        gs_head=import_reference("model.gsdpt").GSDPT(output_dim=38, **sizes) if giant else None,
        gs_adapter=adapter if giant else None,
    )


def _tiny_backbone(out_layers: tuple[int, ...], *, alt_start: int, giant: bool) -> Any:
    starts = {"alt_start": alt_start, "qknorm_start": alt_start, "rope_start": alt_start}
    cat = alt_start != -1
    backbone = import_reference("model.dinov2.dinov2").DinoV2("vits", list(out_layers), cat_token=cat, **starts)
    backbone.pretrained = import_reference("model.dinov2.vision_transformer").DinoVisionTransformer(
        img_size=518,
        patch_size=14,
        embed_dim=TINY_WIDTH,
        depth=TINY_LAYERS,
        num_heads=TINY_HEADS,
        ffn_layer="swiglufused" if giant else "mlp",
        cat_token=cat,
        **starts,
    )
    return backbone


def tiny_config(name: str) -> Any:
    """Ours of ``tiny_network``."""
    if name == NESTED:
        return DepthAnything3NestedConfig(tiny_config(GIANT), tiny_config(METRIC))
    backbone: dict[str, Any] = {
        "embed_dim": TINY_WIDTH,
        "num_layers": TINY_LAYERS,
        "num_heads": TINY_HEADS,
        "norm_eps": NORM_EPS,
    }
    if name in (MONO, METRIC):
        return DepthAnything3MonoConfig(
            DINOv2Config(out_layers=TINY_MONO_LAYERS, **backbone),
            DPTConfig(TINY_WIDTH, TINY_FEATURES, TINY_CHANNELS, activation="exp"),
            metric=name == METRIC,
        )
    return DepthAnything3Config(
        AnyViewConfig(out_layers=TINY_ANY_VIEW_LAYERS, alt_start=TINY_ALT_START, swiglu=name == GIANT, **backbone),
        DualDPTConfig(2 * TINY_WIDTH, TINY_FEATURES, TINY_CHANNELS),
        gaussians=name == GIANT,
    )


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter's values from its name: products keep their scale, gains stay near one, logarithms small."""
    if name.endswith("gamma"):
        return 0.3 + seeded(name, shape, 0.05)
    if name.endswith("sky_output_conv2.2.weight"):
        return seeded(name, shape, 4 * shape[1] ** -0.5)  # some sky, and some ground
    if len(shape) == 1:
        gain = name.endswith("weight")  # of a norm
        focal = 1.0 if "fc_fov" in name else 0.0  # a field of view that a ReLU lets pass
        return seeded(name, shape, 0.1) + (1.0 if gain else focal)
    if name.endswith(("token", "pos_embed")):
        return seeded(name, shape, 0.5)
    if "fc_fov" in name:
        return seeded(name, shape, 0.1 * shape[1] ** -0.5)  # of narrow fields of view focal lengths tell only rounding
    transposed = "resize_layers.0" in name or "resize_layers.1" in name
    fan_in = shape[0] if transposed else int(np.prod(shape[1:]))
    return seeded(name, shape, 0.7 * fan_in**-0.5 if "output_conv2" in name or "fc_" in name else fan_in**-0.5)


def pixels(*shape: int) -> np.ndarray:
    """Normalized views, (B, V, H, W, 3), smooth enough to look like photos to the network, each another."""
    B, V, H, W = shape
    coarse = seeded(f"views{shape}", (B * V, 3, H // 14 + 2, W // 14 + 2))
    smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse), size=(H, W), mode="bicubic").numpy()
    noise = seeded("noise", (B * V, 3, H, W), 0.1)
    return np.ascontiguousarray((smooth + noise).transpose(0, 2, 3, 1)).reshape(B, V, H, W, 3)


def cameras(V: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Known cameras of V views around a scene, extrinsics (V, 3, 4) and intrinsics (V, 3, 3), float32."""
    H, W = size
    extrinsics = np.zeros((V, 3, 4))
    intrinsics = np.zeros((V, 3, 3))
    for view in range(V):
        axis = seeded(f"axis {view}", (3,)).astype(np.float64)
        angle, axis = 0.3 * view, axis / np.linalg.norm(axis)
        cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
        extrinsics[view, :, :3] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
        extrinsics[view, :, 3] = seeded(f"place {view}", (3,)) * bool(view)
        intrinsics[view] = [[0.9 * W, 0, W / 2], [0, 0.95 * W, H / 2 + view], [0, 0, 1]]
    return extrinsics.astype(np.float32), intrinsics.astype(np.float32)


def run(network: Any, pixel_values: np.ndarray, **options: Any) -> Mapping[str, Any]:
    """Upstream's outputs for (B, V, H, W, 3), tensors by upstream's names."""
    with torch.no_grad():
        return network(torch.from_numpy(np.ascontiguousarray(pixel_values.transpose(0, 1, 4, 2, 3))), **options)


def rays(network: Any, pixel_values: np.ndarray) -> Mapping[str, np.ndarray]:
    """What upstream's head gives before its rays are thrown away."""
    return run_with_rays(network, pixel_values)[1]


def run_with_rays(network: Any, pixel_values: np.ndarray) -> tuple[Mapping[str, Any], Mapping[str, np.ndarray]]:
    """``run`` and ``rays`` at once."""
    kept: dict[str, Any] = {}
    handle = network.head.register_forward_hook(lambda _, __, out: kept.update(ray=out["ray"], conf=out["ray_conf"]))
    try:
        outputs = run(network, pixel_values)
    finally:
        handle.remove()
    return outputs, {"rays": kept["ray"].numpy(), "ray_confidence": kept["conf"].numpy()}


def tensors(network: Any) -> dict[str, mx.array]:
    """A network's state as MLX arrays, names and layout unchanged."""
    return tensors_of(network.state_dict())


def tensors_of(state: Mapping[str, Any]) -> dict[str, mx.array]:
    """A state as MLX arrays; meta tensors become lazy zeros."""
    return {
        name: mx.zeros(tuple(value.shape)) if value.is_meta else mx.array(value.numpy())
        for name, value in state.items()
    }


def count(state: Mapping[str, Any]) -> int:
    """Values in a file of this state, which stores once what several names share."""
    shared = [name for name in state if re.search(r"output_conv2_aux\.[123]\.2\.", name)]
    return sum(value.numel() for name, value in state.items() if name not in shared)


def save(name: str, folder: Path, *, tiny: bool = True) -> Path:
    """A network of ``model`` in our own format: only the published architectures can be known from upstream's files."""
    spec = find_model(name)
    family = FAMILIES[spec.family]
    config = tiny_config(name) if tiny else spec.config
    network = family.network(config)
    rules = family.dialects["original"].rules
    weights = to_mlx_layout(network, apply(rules, tensors(model(name, tiny=tiny))))
    checkpoint = Checkpoint(dataclasses.replace(spec, config=config), "original", weights)
    return write_checkpoint(checkpoint, folder, source={}, card="")
