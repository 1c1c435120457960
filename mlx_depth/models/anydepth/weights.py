"""AnyDepth's checkpoints: how they name their tensors, and what says how the network is built."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mlx_depth.backbones import dinov3
from mlx_depth.backbones.dinov3 import DINOv3Config, spread_layers
from mlx_depth.errors import CheckpointError
from mlx_depth.heads import sdt
from mlx_depth.heads.sdt import SDTConfig
from mlx_depth.models.anydepth.network import AnyDepthConfig
from mlx_depth.models.base import Dialect, Evidence, Reading, owner
from mlx_depth.weights.rules import Rule, listed, prefixed

# What a config.json beside the weights may hold: arguments of the authors' ``build_depther``, and, for a backbone from
# elsewhere, its own config.
_KEYS = ("backbone_config", "backbone_out_layers", "min_depth", "use_backbone_norm")
_FUSION = "weighted_fusion.layer_weights"


def _config(evidence: Evidence, backbone: str, head: str) -> AnyDepthConfig:
    """The network with these shapes, whose backbone's and head's names begin so."""
    options = _options(evidence.config or {})
    shapes = {name.removeprefix(backbone): x for name, x in evidence.shapes.items() if name.startswith(backbone)}
    plain = dinov3.read_config(shapes, options.get("backbone_config"))
    layers = tuple(options.get("backbone_out_layers", spread_layers(plain.num_layers)))
    normalized = options.get("use_backbone_norm", False)
    return AnyDepthConfig(
        replace(plain, out_layers=layers, normalized=normalized), _head(evidence, head, plain, options)
    )


def _head(evidence: Evidence, start: str, backbone: DINOv3Config, options: Mapping[str, Any]) -> SDTConfig:
    names = {"projection": "weighted_fusion.projections.0.0.weight", "hidden": "output_conv.2.weight"}
    names["offset"] = "upsample_1.dysample1.0.offset.weight"
    missing = [start + name for name in names.values() if len(evidence.shapes.get(start + name, ())) < 2]
    if missing:
        raise CheckpointError(f"the checkpoint lacks {listed(missing)}: take the original file.")
    sizes = {part: evidence.shapes[start + name] for part, name in names.items()}
    features, in_dim = sizes["projection"]
    return SDTConfig(
        in_dim=in_dim,
        features=features,
        hidden_channels=sizes["hidden"][0],
        groups=sizes["offset"][0] // sdt.VALUES_A_GROUP,
        patch_size=backbone.patch_size,
        **({"least_depth": float(options["min_depth"])} if "min_depth" in options else {}),
    )


def _options(config: Mapping[str, Any]) -> Mapping[str, Any]:
    unknown = sorted(set(config) - set(_KEYS))
    if unknown:
        raise CheckpointError(
            f"config.json has keys that AnyDepth does not know: {listed(unknown)}. Known ones: {', '.join(_KEYS)}. "
            "Remove the others, or take the file of the original checkpoint."
        )
    kinds: dict[str, Callable[[Any], bool]] = {
        "backbone_config": lambda x: isinstance(x, Mapping),
        "backbone_out_layers": lambda x: isinstance(x, list) and all(type(item) is int for item in x),
        "min_depth": lambda x: type(x) in (int, float),
        "use_backbone_norm": lambda x: type(x) is bool,
    }
    odd = [key for key, fits in kinds.items() if key in config and not fits(config[key])]
    if odd:
        raise CheckpointError(
            f"config.json: {odd[0]} is {config[odd[0]]!r:.60}: take the file of the original checkpoint."
        )
    return config


def _dialect(backbone: str, head: str, rules: tuple[Rule, ...], first: str, *others: str) -> Dialect:
    """Names of a backbone, as ``rules`` has them, and of the authors' head, each behind a prefix."""
    return Dialect(
        rules=(*prefixed(rules, backbone, "backbone."), *prefixed(sdt.ORIGINAL, head, "head.")),
        owns=owner(backbone + first, head + _FUSION, without=others),
        read=lambda evidence: Reading(_config(evidence, backbone, head)),
    )


# The authors save ``Sequential(EncoderDecoder, FeaturesToDepth)``. A head alone is put together with a backbone of the
# Hub or of Meta by ``convert --backbone``, which writes ``backbone.`` before the names of the latter.
_UP, _GATE = "layer.0.mlp.up_proj.weight", "layer.0.mlp.gate_proj.weight"
DIALECTS = {
    "original": _dialect("0.encoder.backbone.", "0.decoder.", dinov3.ORIGINAL, "cls_token"),
    "head, Meta's backbone": _dialect("backbone.", "", dinov3.ORIGINAL, "cls_token"),
    "head, transformers' backbone": _dialect("backbone.", "", dinov3.TRANSFORMERS, _UP, _GATE),
    "head, transformers' gated backbone": _dialect("backbone.", "", dinov3.TRANSFORMERS_SWIGLU, _GATE),
}
