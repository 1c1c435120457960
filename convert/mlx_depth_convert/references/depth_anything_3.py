"""Depth Anything 3 in its authors' package: the networks alone, whose modules import little."""

import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_depth.backbones.any_view import AnyViewConfig
from mlx_depth.backbones.dinov2 import DINOv2Config
from mlx_depth.heads.dpt import RESAMPLINGS
from mlx_depth.models.depth_anything_3.network import (
    DepthAnything3Config,
    DepthAnything3MonoConfig,
    DepthAnything3NestedConfig,
)
from mlx_depth_convert.references.base import Outputs, Reference

PACKAGE = "depth-anything-3"
_VERSIONS = "depth-anything-3==0.1.1 evo==1.38.1"
_WEIGHTS = "model.safetensors"
_RANDOM_ABOVE = 100_000  # values of which upstream takes a quantile


def _module(name: str) -> Any:
    """A module of the package, without what it says on the way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # omegaconf's, about a resolver
        found = importlib.import_module(f"depth_anything_3.{name}")
        importlib.import_module("depth_anything_3.utils.logger").logger.level = 0  # it would write to stdout
    return found


def _backbone(config: DINOv2Config) -> Any:
    """Upstream's wrapper knows its four sizes by name: it is given a transformer of any size."""
    any_view = isinstance(config, AnyViewConfig)
    start = config.alt_start if isinstance(config, AnyViewConfig) else -1
    wrapper = _bare(_module("model.dinov2.dinov2").DinoV2)
    wrapper.out_layers = list(config.out_layers)
    wrapper.pretrained = _module("model.dinov2.vision_transformer").DinoVisionTransformer(
        img_size=config.table_size * config.patch_size,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.num_layers,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        ffn_layer="swiglufused" if config.swiglu else "mlp",
        drop_path_uniform=True,  # no rate for any block, and no numbers to read off a tensor without values
        alt_start=start,
        qknorm_start=start,
        rope_start=start,
        cat_token=any_view,
    )
    return wrapper


def _bare(kind: Any) -> Any:
    """A module of a class whose own constructor builds parts of other sizes."""
    import torch

    network = kind.__new__(kind)
    torch.nn.Module.__init__(network)
    return network


def _head_sizes(config: Any) -> dict[str, Any]:
    head = config.head
    return {
        "dim_in": head.in_dim,
        "features": head.features,
        "out_channels": list(head.out_channels),
        "patch_size": head.patch_size,
    }


def _any_view(config: DepthAnything3Config) -> Any:
    import torch

    adapter = None
    if config.gaussians:  # needs evo and e3nn; it holds numbers, but no weights
        adapter = _module("model.gs_adapter").GaussianAdapter(
            sh_degree=2, pred_color=False, pred_offset_depth=True, pred_offset_xy=True
        )
    dims, sizes = config.backbone.embed_dim, _head_sizes(config)
    with torch.device("meta"):
        return _module("model.da3").DepthAnything3Net(
            _backbone(config.backbone),
            _module("model.dualdpt").DualDPT(output_dim=2, **sizes),
            cam_enc=_module("model.cam_enc").CameraEnc(dim_out=dims),
            cam_dec=_module("model.cam_dec").CameraDec(dim_in=2 * dims),
            gs_head=_module("model.gsdpt").GSDPT(output_dim=adapter.d_in + 1, **sizes) if adapter else None,
            gs_adapter=adapter,
        )


def _mono(config: DepthAnything3MonoConfig) -> Any:
    import torch

    with torch.device("meta"):
        head = _module("model.dpt").DPT(output_dim=1, **_head_sizes(config))
        return _module("model.da3").DepthAnything3Net(_backbone(config.backbone), head)


def _nested(config: DepthAnything3NestedConfig) -> Any:
    network = _bare(_module("model.da3").NestedDepthAnything3Net)
    network.da3, network.da3_metric = _any_view(config.any_view), _mono(config.metric)
    return network


@contextmanager
def _kept(module: Any, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    """What a module returns under some names, before others change it."""
    kept: dict[str, Any] = {}

    def keep(_: Any, __: Any, outputs: Any) -> None:
        kept.update({ours: outputs[theirs].clone() for ours, theirs in names.items()})

    handle = module.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


_RAYS = {"rays": "ray", "ray_confidence": "ray_conf"}
_RAW = {"gaussians raw": "raw_gs", "gaussians raw_confidence": "raw_gs_conf"}
_SINGLE = {"depth": "depth", "sky": "sky"}
_GAUSSIANS = ("means", "scales", "rotations", "harmonics", "opacities")


def _channels_first(pixel_values: Any) -> Any:
    return pixel_values.permute(*range(pixel_values.ndim - 3), -1, -3, -2)


def _run_any_view(network: Any, pixel_values: Any, *, everything: bool) -> Outputs:
    return _run_views(network, network, pixel_values, everything)


def _run_views(whole: Any, any_view: Any, pixel_values: Any, everything: bool) -> dict[str, Any]:
    """The outputs of a network for views, which is a whole or a part of one."""
    makes_gaussians = everything and any_view.gs_head is not None
    with ExitStack() as stack:
        beside = [stack.enter_context(_kept(any_view.head, _RAYS))]
        if makes_gaussians:
            beside.append(stack.enter_context(_kept(any_view.gs_head, _RAW)))
        outputs = whole(_channels_first(pixel_values), infer_gs=makes_gaussians)
    found = {
        "depth": outputs["depth"],
        "confidence": outputs["depth_conf"],
        "extrinsics": outputs["extrinsics"][..., :3, :],
        "intrinsics": outputs["intrinsics"],
    }
    for kept in beside:
        found |= kept
    if makes_gaussians:
        found |= {f"gaussians {name}": getattr(outputs["gaussians"], name) for name in _GAUSSIANS}
    if "scale_factor" in outputs:
        found["scale"] = pixel_values.new_tensor([outputs["scale_factor"]])
    return found


def _run_mono(network: Any, pixel_values: Any, *, everything: bool) -> Outputs:
    """What the head gives: the network then puts the sky at a quantile of values that it draws at random."""
    with _kept(network.head, _SINGLE) as kept:
        network(_channels_first(pixel_values)[:, None])
    return {name: value[:, 0] for name, value in kept.items()}


def _run_nested(network: Any, pixel_values: Any, *, everything: bool) -> Outputs:
    with _kept(network.da3_metric.head, _SINGLE) as kept:
        found = _run_views(network, network.da3, pixel_values, everything)
    return {**found, "sky": kept["sky"], "metric_depth": kept["depth"]}


def _save(network: Any, folder: Path) -> None:
    from safetensors.torch import save_model

    save_model(network, str(folder / _WEIGHTS))  # which names a shared tensor once, as the authors' files do


def _load(build: Callable[[Any], Any], config: Any, folder: Path, dtype: Any) -> Any:
    from safetensors.torch import load_file

    network = build(config)
    network.load_state_dict(load_file(folder / _WEIGHTS), strict=False, assign=True)
    return network.to(dtype)  # an error, if a parameter was not there


_LEVELS = range(len(RESAMPLINGS))
_TWINS = {
    "patch embedding": "backbone.pretrained.patch_embed.proj",
    "layer {i}": "backbone.pretrained.blocks.{i}",
    **{f"reassemble {level}": f"head.scratch.layer{level + 1}_rn" for level in _LEVELS},
    **{f"fusion {level}": f"head.scratch.refinenet{len(_LEVELS) - level}" for level in _LEVELS},
    **{f"ray fusion {level}": f"head.scratch.refinenet{len(_LEVELS) - level}_aux" for level in _LEVELS},
    "camera": "cam_dec.fc_qvec",
    "head": "head.scratch.output_conv1",
}

ANY_VIEW = Reference(
    name=PACKAGE,
    install=f"pip install 'mlx-depth[reference]' && pip install --no-deps {_VERSIONS}",
    dialect="original",
    rules="original",
    build=_any_view,
    run=_run_any_view,
    save=_save,
    load=functools.partial(_load, _any_view),
    twins=_TWINS,
)
MONO = replace(ANY_VIEW, build=_mono, run=_run_mono, load=functools.partial(_load, _mono))
NESTED = replace(
    ANY_VIEW,
    build=_nested,
    run=_run_nested,
    load=functools.partial(_load, _nested),
    twins={
        **{name: f"da3.{path}" for name, path in _TWINS.items()},
        **{f"metric {name}": f"da3_metric.{path}" for name, path in _TWINS.items()},
    },
    most_pixels=_RANDOM_ABOVE,
)
