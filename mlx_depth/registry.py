"""The published models, as data: one screen a family."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_depth.errors import ModelNotFoundError, similar
from mlx_depth.models.anydepth.family import PROCESSOR as ANYDEPTH
from mlx_depth.models.anydepth.network import anydepth_config
from mlx_depth.models.depth_anything.network import depth_anything_config
from mlx_depth.models.depth_anything_3.family import PROCESSOR as DEPTH_ANYTHING_3
from mlx_depth.models.depth_anything_3.network import any_view_config, mono_config, nested_config
from mlx_depth.models.depth_pro.network import depth_pro_config
from mlx_depth.models.depth_pro.weights import PROCESSOR as DEPTH_PRO
from mlx_depth.models.dpt.family import METRIC_PROCESSOR as DPT_DINOV2
from mlx_depth.models.dpt.family import MIDAS_PROCESSOR as MIDAS_3
from mlx_depth.models.dpt.network import dpt_dinov2_config, dpt_hybrid_config, dpt_large_config
from mlx_depth.models.midas.family import PROCESSOR as MIDAS_SMALL
from mlx_depth.models.midas.network import midas_small_config
from mlx_depth.models.moge.family import PROCESSOR as MOGE
from mlx_depth.models.moge.network import moge_config
from mlx_depth.models.prompt_depth_anything.family import PROCESSOR as PROMPT_DEPTH_ANYTHING
from mlx_depth.models.prompt_depth_anything.network import prompt_depth_anything_config
from mlx_depth.processor import Processor
from mlx_depth.result import DepthKind

APACHE = "Apache-2.0"
MIT = "MIT"
NON_COMMERCIAL = "CC-BY-NC-4.0"
# AnyDepth's own license, and Meta's for the backbone inside the same file.
SHARE_ALIKE_AND_DINOV3 = "CC-BY-NC-SA-4.0 AND LicenseRef-DINOv3"
APPLE_RESEARCH = "apple-amlr"  # Apple Machine Learning Research Model: research alone
_NOT_COMMERCIAL = {"nc", "noncommercial", "research", "academic", "amlr"}  # words in the names of licenses


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model before its weights are read. The processor and the license belong to the weights."""

    name: str
    family: str
    config: Any  # the family's config dataclass
    processor: Processor
    license: str | None  # SPDX, as the authors state it, AND that of weights that these began from; None: unknown
    hub_id: str | None = None  # owner/name; None: bundled, local, unreleased, or to be converted first
    convert_from: str | None = None  # owner/name of several models' files, or a file's address
    parameters: int | None = None  # values in the published checkpoint, upstream's unused ones included
    aliases: tuple[str, ...] = ()
    folder: Path | None = None  # weights that are on this disk: bundled or local

    @property
    def depth_kind(self) -> DepthKind:
        """What the model's depth means."""
        kind: DepthKind = self.config.depth_kind
        return kind

    @property
    def commercial(self) -> bool:
        """Whether the license is known and allows commercial use."""
        words = {*re.split(r"[^a-z]+", (self.license or "").lower())}
        return self.license is not None and not words & _NOT_COMMERCIAL


DEPTH_ANYTHING = Processor()
DEMO_FOLDER = Path(__file__).parent / "demo"

# The parameter counts are the published files', with upstream's unused tensors.
# V1 is Apache-2.0 at every size: https://github.com/LiheYoung/Depth-Anything/issues/15
# Distill-Any-Depth is MIT by its authors, and begins from V2's weights, of which base and large are not for commerce:
# https://github.com/Westlake-AGI-Lab/Distill-Any-Depth/issues/32 and 40
_MODELS = (
    ModelSpec(
        "depth-anything-v2-small",
        "depth_anything",
        depth_anything_config("small"),
        DEPTH_ANYTHING,
        APACHE,
        hub_id="depth-anything/Depth-Anything-V2-Small-hf",
        parameters=24_785_089,
        aliases=("da2-small", "depth-anything-v2-vits"),
    ),
    ModelSpec(
        "depth-anything-v2-base",
        "depth_anything",
        depth_anything_config("base"),
        DEPTH_ANYTHING,
        NON_COMMERCIAL,
        hub_id="depth-anything/Depth-Anything-V2-Base-hf",
        parameters=97_470_785,
        aliases=("da2-base", "depth-anything-v2-vitb"),
    ),
    ModelSpec(
        "depth-anything-v2-large",
        "depth_anything",
        depth_anything_config("large"),
        DEPTH_ANYTHING,
        NON_COMMERCIAL,
        hub_id="depth-anything/Depth-Anything-V2-Large-hf",
        parameters=335_315_649,
        aliases=("da2-large", "depth-anything-v2-vitl"),
    ),
    ModelSpec(
        "depth-anything-v2-giant",
        "depth_anything",
        depth_anything_config("giant"),
        DEPTH_ANYTHING,
        NON_COMMERCIAL,
        parameters=1_258_132_225,
        aliases=("da2-giant", "depth-anything-v2-vitg"),
    ),
    ModelSpec(
        "depth-anything-v2-metric-indoor-small",
        "depth_anything",
        depth_anything_config("small", max_depth=20.0),
        DEPTH_ANYTHING,
        APACHE,
        hub_id="depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf",
        parameters=24_785_089,
        aliases=("da2-indoor-small", "depth-anything-v2-metric-hypersim-vits"),
    ),
    ModelSpec(
        "depth-anything-v2-metric-indoor-base",
        "depth_anything",
        depth_anything_config("base", max_depth=20.0),
        DEPTH_ANYTHING,
        NON_COMMERCIAL,
        hub_id="depth-anything/Depth-Anything-V2-Metric-Indoor-Base-hf",
        parameters=97_470_785,
        aliases=("da2-indoor-base", "depth-anything-v2-metric-hypersim-vitb"),
    ),
    ModelSpec(
        "depth-anything-v2-metric-indoor-large",
        "depth_anything",
        depth_anything_config("large", max_depth=20.0),
        DEPTH_ANYTHING,
        NON_COMMERCIAL,
        hub_id="depth-anything/Depth-Anything-V2-Metric-Indoor-Large-hf",
        parameters=335_315_649,
        aliases=("da2-indoor-large", "depth-anything-v2-metric-hypersim-vitl"),
    ),
    ModelSpec(
        "depth-anything-v2-metric-outdoor-small",
        "depth_anything",
        depth_anything_config("small", max_depth=80.0),
        DEPTH_ANYTHING,
        APACHE,
        hub_id="depth-anything/Depth-Anything-V2-Metric-Outdoor-Small-hf",
        parameters=24_785_089,
        aliases=("da2-outdoor-small", "depth-anything-v2-metric-vkitti-vits"),
    ),
    ModelSpec(
        "depth-anything-v2-metric-outdoor-base",
        "depth_anything",
        depth_anything_config("base", max_depth=80.0),
        DEPTH_ANYTHING,
        NON_COMMERCIAL,
        hub_id="depth-anything/Depth-Anything-V2-Metric-Outdoor-Base-hf",
        parameters=97_470_785,
        aliases=("da2-outdoor-base", "depth-anything-v2-metric-vkitti-vitb"),
    ),
    ModelSpec(
        "depth-anything-v2-metric-outdoor-large",
        "depth_anything",
        depth_anything_config("large", max_depth=80.0),
        DEPTH_ANYTHING,
        NON_COMMERCIAL,
        hub_id="depth-anything/Depth-Anything-V2-Metric-Outdoor-Large-hf",
        parameters=335_315_649,
        aliases=("da2-outdoor-large", "depth-anything-v2-metric-vkitti-vitl"),
    ),
    ModelSpec(
        "depth-anything-v1-small",
        "depth_anything",
        depth_anything_config("small", version=1),
        DEPTH_ANYTHING,
        APACHE,
        hub_id="LiheYoung/depth-anything-small-hf",
        parameters=24_785_089,
        aliases=("da1-small", "depth-anything-vits14"),
    ),
    ModelSpec(
        "depth-anything-v1-base",
        "depth_anything",
        depth_anything_config("base", version=1),
        DEPTH_ANYTHING,
        APACHE,
        hub_id="LiheYoung/depth-anything-base-hf",
        parameters=97_470_785,
        aliases=("da1-base", "depth-anything-vitb14"),
    ),
    ModelSpec(
        "depth-anything-v1-large",
        "depth_anything",
        depth_anything_config("large", version=1),
        DEPTH_ANYTHING,
        APACHE,
        hub_id="LiheYoung/depth-anything-large-hf",
        parameters=335_315_649,
        aliases=("da1-large", "depth-anything-vitl14"),
    ),
    ModelSpec(
        "mlx-depth-demo",
        "depth_anything",
        depth_anything_config("small"),
        replace(DEPTH_ANYTHING, input_size=364),
        APACHE,
        parameters=24_785_089,
        aliases=("demo",),
        folder=DEMO_FOLDER,
    ),
    ModelSpec(
        "depth-anything-3-small",
        "depth_anything_3",
        any_view_config("small"),
        DEPTH_ANYTHING_3,
        APACHE,
        hub_id="depth-anything/DA3-SMALL",
        parameters=34_299_463,
        aliases=("da3-small",),
    ),
    ModelSpec(
        "depth-anything-3-base",
        "depth_anything_3",
        any_view_config("base"),
        DEPTH_ANYTHING_3,
        APACHE,
        hub_id="depth-anything/DA3-BASE",
        parameters=135_366_599,
        aliases=("da3-base",),
    ),
    ModelSpec(
        "depth-anything-3-large",
        "depth_anything_3",
        any_view_config("large"),
        DEPTH_ANYTHING_3,
        NON_COMMERCIAL,
        hub_id="depth-anything/DA3-LARGE",
        parameters=410_941_767,
        aliases=("da3-large",),
    ),
    ModelSpec(
        "depth-anything-3-large-1.1",
        "depth_anything_3",
        any_view_config("large"),
        DEPTH_ANYTHING_3,
        NON_COMMERCIAL,
        hub_id="depth-anything/DA3-LARGE-1.1",
        parameters=410_941_767,
        aliases=("da3-large-1.1",),
    ),
    ModelSpec(
        "depth-anything-3-giant",
        "depth_anything_3",
        any_view_config("giant"),
        DEPTH_ANYTHING_3,
        NON_COMMERCIAL,
        hub_id="depth-anything/DA3-GIANT",
        parameters=1_355_674_125,
        aliases=("da3-giant",),
    ),
    ModelSpec(
        "depth-anything-3-giant-1.1",
        "depth_anything_3",
        any_view_config("giant"),
        DEPTH_ANYTHING_3,
        NON_COMMERCIAL,
        hub_id="depth-anything/DA3-GIANT-1.1",
        parameters=1_355_674_125,
        aliases=("da3-giant-1.1",),
    ),
    ModelSpec(
        "depth-anything-3-mono-large",
        "depth_anything_3_mono",
        mono_config(metric=False),
        DEPTH_ANYTHING_3,
        APACHE,
        hub_id="depth-anything/DA3MONO-LARGE",
        parameters=334_171_394,
        aliases=("da3-mono-large", "da3mono-large"),
    ),
    ModelSpec(
        "depth-anything-3-metric-large",
        "depth_anything_3_mono",
        mono_config(metric=True),
        DEPTH_ANYTHING_3,
        APACHE,
        hub_id="depth-anything/DA3METRIC-LARGE",
        parameters=334_171_394,
        aliases=("da3-metric-large", "da3metric-large"),
    ),
    ModelSpec(
        "depth-anything-3-nested-giant-large",
        "depth_anything_3_nested",
        nested_config(),
        DEPTH_ANYTHING_3,
        NON_COMMERCIAL,
        hub_id="depth-anything/DA3NESTED-GIANT-LARGE",
        parameters=1_689_845_519,
        aliases=("da3-nested-giant-large", "da3nested-giant-large"),
    ),
    ModelSpec(
        "depth-anything-3-nested-giant-large-1.1",
        "depth_anything_3_nested",
        nested_config(),
        DEPTH_ANYTHING_3,
        NON_COMMERCIAL,
        hub_id="depth-anything/DA3NESTED-GIANT-LARGE-1.1",
        parameters=1_689_845_519,
        aliases=("da3-nested-giant-large-1.1", "da3nested-giant-large-1.1"),
    ),
    ModelSpec(
        "anydepth-small",
        "anydepth",
        anydepth_config("small"),
        ANYDEPTH,
        SHARE_ALIKE_AND_DINOV3,
        convert_from="AIGeeksGroup/AnyDepth",
        parameters=27_113_925,
        aliases=("anydepth-vits",),
    ),
    ModelSpec(
        "anydepth-base",
        "anydepth",
        anydepth_config("base"),
        ANYDEPTH,
        SHARE_ALIKE_AND_DINOV3,
        convert_from="AIGeeksGroup/AnyDepth",
        parameters=95_111_493,
        aliases=("anydepth-vitb",),
    ),
    ModelSpec(
        "anydepth-large",
        "anydepth",
        anydepth_config("large"),
        ANYDEPTH,
        SHARE_ALIKE_AND_DINOV3,
        convert_from="AIGeeksGroup/AnyDepth",
        parameters=316_513_861,
        aliases=("anydepth-vitl",),
    ),
    ModelSpec(
        "depth-pro",
        "depth_pro",
        depth_pro_config(),
        DEPTH_PRO,
        APPLE_RESEARCH,
        hub_id="apple/DepthPro-hf",
        parameters=951_994_402,
        aliases=("depthpro", "apple-depth-pro", "depthpro-hf"),
    ),
    ModelSpec(
        "prompt-depth-anything-small",
        "prompt_depth_anything",
        prompt_depth_anything_config("small"),
        PROMPT_DEPTH_ANYTHING,
        APACHE,
        hub_id="depth-anything/prompt-depth-anything-vits-hf",
        parameters=25_083_073,
        aliases=("promptda-small", "prompt-depth-anything-vits"),
    ),
    ModelSpec(
        "prompt-depth-anything-small-transparent",
        "prompt_depth_anything",
        prompt_depth_anything_config("small"),
        PROMPT_DEPTH_ANYTHING,
        APACHE,
        hub_id="depth-anything/prompt-depth-anything-vits-transparent-hf",
        parameters=25_083_073,
        aliases=("promptda-small-transparent", "prompt-depth-anything-vits-transparent"),
    ),
    ModelSpec(
        "prompt-depth-anything-large",
        "prompt_depth_anything",
        prompt_depth_anything_config("large"),
        PROMPT_DEPTH_ANYTHING,
        APACHE,
        hub_id="depth-anything/prompt-depth-anything-vitl-hf",
        parameters=340_046_529,
        aliases=("promptda-large", "prompt-depth-anything-vitl"),
    ),
    ModelSpec(
        "distill-any-depth-small",
        "depth_anything",
        depth_anything_config("small"),
        DEPTH_ANYTHING,
        f"{MIT} AND {APACHE}",
        hub_id="xingyang1/Distill-Any-Depth-Small-hf",
        parameters=24_785_089,
    ),
    ModelSpec(
        "distill-any-depth-base",
        "depth_anything",
        depth_anything_config("base"),
        DEPTH_ANYTHING,
        f"{MIT} AND {NON_COMMERCIAL}",
        hub_id="lc700x/Distill-Any-Depth-Base-hf",
        parameters=97_470_785,
    ),
    ModelSpec(
        "distill-any-depth-large",
        "depth_anything",
        depth_anything_config("large"),
        DEPTH_ANYTHING,
        f"{MIT} AND {NON_COMMERCIAL}",
        hub_id="xingyang1/Distill-Any-Depth-Large-hf",
        parameters=335_315_649,
    ),
    ModelSpec(
        "moge-2-small",
        "moge",
        moge_config("small"),
        MOGE,
        MIT,
        hub_id="Ruicheng/moge-2-vits-normal",
        parameters=35_103_656,
        aliases=("moge2-small", "moge-2-vits-normal"),
    ),
    ModelSpec(
        "moge-2-base",
        "moge",
        moge_config("base"),
        MOGE,
        MIT,
        hub_id="Ruicheng/moge-2-vitb-normal",
        parameters=104_743_592,
        aliases=("moge2-base", "moge-2-vitb-normal"),
    ),
    ModelSpec(
        "moge-2-large",
        "moge",
        moge_config("large"),
        MOGE,
        MIT,
        hub_id="Ruicheng/moge-2-vitl-normal",
        parameters=330_901_544,
        aliases=("moge2-large", "moge-2-vitl-normal"),
    ),
    ModelSpec(
        "dpt-large",
        "dpt",
        dpt_large_config(),
        MIDAS_3,
        APACHE,
        hub_id="Intel/dpt-large",
        parameters=343_030_465,
        aliases=("dpt-large-384", "midas-v3-large"),
    ),
    ModelSpec(
        "dpt-hybrid-midas",
        "dpt_hybrid",
        dpt_hybrid_config(),
        MIDAS_3,
        APACHE,
        hub_id="Intel/dpt-hybrid-midas",
        parameters=122_377_985,
        aliases=("dpt-hybrid", "dpt-hybrid-384", "midas-v3-hybrid"),
    ),
    ModelSpec(
        "midas-v2.1-small",
        "midas_small",
        midas_small_config(),
        MIDAS_SMALL,
        MIT,
        convert_from="https://github.com/isl-org/MiDaS/releases/download/v2_1/midas_v21_small_256.pt",
        parameters=21_320_545,
        aliases=("midas-small", "midas-v21-small", "midas-v21-small-256"),
    ),
    ModelSpec(
        "dpt-dinov2-small-nyu",
        "dpt_dinov2",
        dpt_dinov2_config("small"),
        DPT_DINOV2,
        APACHE,
        hub_id="facebook/dpt-dinov2-small-nyu",
        parameters=37_197_601,
    ),
    ModelSpec(
        "dpt-dinov2-small-kitti",
        "dpt_dinov2",
        dpt_dinov2_config("small"),
        DPT_DINOV2,
        APACHE,
        hub_id="facebook/dpt-dinov2-small-kitti",
        parameters=37_197_601,
    ),
    ModelSpec(
        "dpt-dinov2-base-nyu",
        "dpt_dinov2",
        dpt_dinov2_config("base"),
        DPT_DINOV2,
        APACHE,
        hub_id="facebook/dpt-dinov2-base-nyu",
        parameters=111_954_049,
    ),
    ModelSpec(
        "dpt-dinov2-base-kitti",
        "dpt_dinov2",
        dpt_dinov2_config("base"),
        DPT_DINOV2,
        APACHE,
        hub_id="facebook/dpt-dinov2-base-kitti",
        parameters=111_954_049,
    ),
    ModelSpec(
        "dpt-dinov2-large-nyu",
        "dpt_dinov2",
        dpt_dinov2_config("large"),
        DPT_DINOV2,
        APACHE,
        hub_id="facebook/dpt-dinov2-large-nyu",
        parameters=339_738_305,
    ),
    ModelSpec(
        "dpt-dinov2-large-kitti",
        "dpt_dinov2",
        dpt_dinov2_config("large"),
        DPT_DINOV2,
        APACHE,
        hub_id="facebook/dpt-dinov2-large-kitti",
        parameters=339_738_305,
    ),
    ModelSpec(
        "dpt-dinov2-giant-nyu",
        "dpt_dinov2",
        dpt_dinov2_config("giant"),
        DPT_DINOV2,
        APACHE,
        hub_id="facebook/dpt-dinov2-giant-nyu",
        parameters=1_199_461_185,
    ),
    ModelSpec(
        "dpt-dinov2-giant-kitti",
        "dpt_dinov2",
        dpt_dinov2_config("giant"),
        DPT_DINOV2,
        APACHE,
        hub_id="facebook/dpt-dinov2-giant-kitti",
        parameters=1_199_461_185,
    ),
)

MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _MODELS}


# Names that people try, by what they begin with, of models that are known and not here yet.
NOT_YET = {
    "depth-pro": "Depth Pro",
    "depthpro": "Depth Pro",
    "dpt-beit": "MiDaS 3.1",
    "dpt-levit": "MiDaS 3.1",
    "dpt-next-vit": "MiDaS 3.1",
    "dpt-swin": "MiDaS 3.1",
    "metric3d": "Metric3D",
    "midas-v2.1-large": "MiDaS 2.1 large",
    "midas-v21-384": "MiDaS 2.1 large",
    "midas-v3.1": "MiDaS 3.1",
    "midas-v31": "MiDaS 3.1",
    "moge": "MoGe",
    "prompt-depth-anything": "Prompt Depth Anything",
    "promptda": "Prompt Depth Anything",
    "sharp": "SHARP",
    "unidepth": "UniDepth",
    "vda": "Video Depth Anything",
    "video-depth-anything": "Video Depth Anything",
    "zipdepth": "ZipDepth",
    "zoe": "ZoeDepth",
}


def find_model(name: str) -> ModelSpec:
    """Look a model up by name or alias; case does not matter, and an underscore is a hyphen.

    Raises:
        ModelNotFoundError: With the nearest names.
    """
    key = name.lower().replace("_", "-")
    names = {alias: spec for spec in MODELS.values() for alias in (spec.name, *spec.aliases)}
    if key in names:
        return names[key]
    absent = next((label for start, label in NOT_YET.items() if key.startswith(start)), None)
    if absent is not None:
        raise ModelNotFoundError(
            f"no model {name!r}: {absent} is not here yet. `mlx-depth models` lists all there are."
        )
    near = similar(key, names)
    hint = f"did you mean {names[near[0]].name!r}? " if near else ""
    raise ModelNotFoundError(
        f"no model {name!r}: {hint}`mlx-depth models` lists all; write ./{name} for a folder of that name."
    )


def find_published(repo: str) -> ModelSpec | None:
    """The model whose weights a Hub repository ``owner/name`` holds, if the registry knows it."""
    return next((spec for spec in MODELS.values() if spec.hub_id == repo), None)


def list_models() -> list[ModelSpec]:
    """All models of the registry, in the order of the table."""
    return list(MODELS.values())
