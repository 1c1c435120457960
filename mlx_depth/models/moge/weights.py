"""MoGe-2's checkpoints: the authors' names, and what says how the network is built."""

import re
from collections.abc import Mapping
from typing import Any

from mlx_depth.backbones import dinov2
from mlx_depth.backbones.dinov2 import DINOv2Config
from mlx_depth.errors import CheckpointError
from mlx_depth.heads import conv_stack
from mlx_depth.heads.conv_stack import LEVELS, ConvStackConfig
from mlx_depth.models.base import Dialect, Evidence, Reading, Shapes, owner
from mlx_depth.models.moge.network import SIZES, MoGeConfig
from mlx_depth.weights.rules import Drop, Rename, Rule, prefixed

MODEL_CONFIG = "model_config"  # beside the tensors in the authors' files: the arguments of their class
_BACKBONE = "encoder.backbone."
_NORMALIZATION = "mean and deviation of ImageNet's pixels, which the processor has"
_HEAD_DIM = 64  # of DINOv2's attention, at every size
_HEADS = {"points_head": "points_head", "mask_head": "mask_head", "normal_head": "normals_head"}

_RULES: tuple[Rule, ...] = (
    *prefixed(dinov2.ORIGINAL, _BACKBONE, "backbone."),
    Drop("encoder.image_mean", _NORMALIZATION),
    Drop("encoder.image_std", _NORMALIZATION),
    Rename("encoder.output_projections.{i}.{p}", "projections.{i}.{p}"),
    *prefixed(conv_stack.ORIGINAL, "neck.", "neck."),
    *(rule for theirs, ours in _HEADS.items() for rule in prefixed(conv_stack.ORIGINAL, f"{theirs}.", f"{ours}.")),
    *(Rename(f"scale_head.{2 * layer}.{{p}}", f"scale_head.layers.{layer}.{{p}}") for layer in range(3)),
)

# What the authors' class does without an argument, and what ours does.
_OPTIONS: dict[str, tuple[Any, Any]] = {"remap_output": ("linear", "exp")}
_STACK_OPTIONS: dict[str, tuple[Any, Any]] = {
    "resamplers": (None, ["conv_transpose"] * (LEVELS - 2) + ["bilinear"]),
    "res_block_in_norm": ("layer_norm", "none"),
    "res_block_hidden_norm": ("group_norm", "none"),
    "dim_times_res_block_hidden": (1, 1),
    "activation": ("relu", "relu"),
}


def _from_shapes(shapes: Shapes, out_layers: tuple[int, ...] | None) -> MoGeConfig:
    """The network with tensors of these shapes; which layers are tapped they do not tell but for published sizes."""
    embed_dim = _side(shapes, f"{_BACKBONE}cls_token", -1)
    num_layers = _count(shapes, f"{_BACKBONE}blocks.{{}}.norm1.weight")
    if out_layers is None:
        taps = _count(shapes, "encoder.output_projections.{}.weight")
        known = {(dims, layers, len(tapped)): tapped for dims, layers, _, tapped, _ in SIZES.values()}
        if (embed_dim, num_layers, taps) not in known:
            raise CheckpointError(
                f"no published MoGe-2 is {embed_dim} wide with {num_layers} layers of which {taps} are tapped: "
                "take the authors' model.pt, which says which ones."
            )
        out_layers = known[embed_dim, num_layers, taps]
    return MoGeConfig(
        DINOv2Config(
            embed_dim,
            num_layers,
            num_heads=max(embed_dim // _HEAD_DIM, 1),
            out_layers=out_layers,
            patch_size=_side(shapes, f"{_BACKBONE}patch_embed.proj.weight", -1),
            table_size=round((_side(shapes, f"{_BACKBONE}pos_embed", -2) - 1) ** 0.5),
        ),
        neck=_stack(shapes, "neck"),
        heads=_stack(shapes, "points_head"),
        normals=any(name.startswith("normal_head.") for name in shapes),
    )


def _stack(shapes: Shapes, name: str) -> ConvStackConfig:
    channels = tuple(_side(shapes, f"{name}.input_blocks.{level}.weight", 0) for level in range(LEVELS))
    blocks = (_count(shapes, f"{name}.res_blocks.{level}.{{}}.layers.2.weight") for level in range(LEVELS))
    return ConvStackConfig(channels, tuple(blocks))


def _side(shapes: Shapes, name: str, axis: int) -> int:
    if len(shapes.get(name, ())) < 2:
        raise CheckpointError(f"the checkpoint lacks {name}, or its axes: take the original file.")
    return shapes[name][axis]


def _count(shapes: Shapes, name: str) -> int:
    """How many tensors there are of a name with a running number."""
    number = 0
    while name.format(number) in shapes:
        number += 1
    return number


def _read(evidence: Evidence) -> Reading:
    config = evidence.config if evidence.config is not None else (evidence.metadata or {}).get(MODEL_CONFIG)
    if config is None:
        return Reading(_from_shapes(evidence.shapes, None))
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{MODEL_CONFIG} is {config!r:.60}, not the arguments of MoGe's class: take its file.")
    encoder = _group(config, "encoder")
    _check_options("", config, _OPTIONS)
    for name in ("neck", *(name for name in _HEADS if config.get(name) is not None)):
        _check_options(f"{name}: ", _group(config, name), _STACK_OPTIONS)
    tapped = encoder.get("intermediate_layers")
    if not isinstance(tapped, (list, tuple)) or not all(type(layer) is int for layer in tapped):
        raise CheckpointError(
            f"{MODEL_CONFIG} says intermediate_layers {tapped!r:.60}, not a list of layers: take the original file."
        )
    return Reading(_from_shapes(evidence.shapes, tuple(tapped)))


def _group(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    group = config.get(name)
    if not isinstance(group, Mapping):
        raise CheckpointError(f"{MODEL_CONFIG} has no {name} with its arguments, as MoGe-2's has: take its file.")
    return group


def _check_options(where: str, config: Mapping[str, Any], options: Mapping[str, tuple[Any, Any]]) -> None:
    """What changes the numbers has to be as in the published models; sizes are those of the tensors."""
    found = {name: config.get(name, default) for name, (default, _) in options.items()}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
    wrong = [name for name, (_, ours) in options.items() if plain[name] != ours]
    if wrong:
        said = ", ".join(f"{name} {found[name]!r:.60} where {options[name][1]!r} is known" for name in wrong)
        raise CheckpointError(f"{MODEL_CONFIG} describes another MoGe than mlx-depth computes ({where}{said}).")


DIALECTS = {
    "original": Dialect(
        rules=_RULES,
        owns=owner(
            f"{_BACKBONE}blocks.0.attn.qkv.weight",
            "neck.input_blocks.0.weight",
            f"points_head.output_blocks.{LEVELS - 1}.weight",
            f"mask_head.output_blocks.{LEVELS - 1}.weight",
            "scale_head.0.weight",
        ),
        read=_read,
    )
}

_LETTERS = {"s": "small", "b": "base", "l": "large"}
_OFFICIAL = re.compile(r"moge-2-vit(?P<size>[sbl])-normal(?![a-z0-9])")


def published_name(name: str) -> str | None:
    """The model of the registry with this name of a repository or folder; the file in it is always ``model.pt``."""
    found = _OFFICIAL.search(name.lower().replace("_", "-"))
    return f"moge-2-{_LETTERS[found['size']]}" if found else None
