"""The published models, as data: one screen a family."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_depth.errors import ModelNotFoundError
from mlx_depth.models.base import Family
from mlx_depth.models.depth_anything.family import FAMILY as DEPTH_ANYTHING_FAMILY
from mlx_depth.models.depth_anything.network import depth_anything_config
from mlx_depth.processor import Processor
from mlx_depth.result import DepthKind

APACHE = "Apache-2.0"
NON_COMMERCIAL = "CC-BY-NC-4.0"

FAMILIES: dict[str, Family] = {family.name: family for family in (DEPTH_ANYTHING_FAMILY,)}


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model before its weights are read. The processor and the licence belong to the weights."""

    name: str
    family: str
    config: Any  # the family's config dataclass
    processor: Processor
    licence: str | None  # SPDX identifier as the authors state it; None: unknown
    hub_id: str | None = None  # owner/name; None: bundled, local or unreleased
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
        """Whether the licence is known and allows commercial use."""
        return self.licence is not None and "-NC-" not in self.licence


def find_model(name: str) -> ModelSpec:
    """Look a model up by name or alias.

    Raises:
        ModelNotFoundError: With the nearest names.
    """
    key = name.lower()
    names = {alias: spec for spec in MODELS.values() for alias in (spec.name, *spec.aliases)}
    if key in names:
        return names[key]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.4)
    hint = f"did you mean {names[near[0]].name!r}? " if near else ""
    raise ModelNotFoundError(
        f"no model {name!r}: {hint}`mlx-depth models` lists all; write ./{name} for a folder of that name."
    )


DEPTH_ANYTHING = Processor()
DEMO_FOLDER = Path(__file__).parent / "demo"

# size → (parameters, V2's licence). The counts are the published files', with upstream's unused tensors.
# V1 is Apache-2.0 at every size: https://github.com/LiheYoung/Depth-Anything/issues/15
_DEPTH_ANYTHING_SIZES = {
    "small": (24_785_089, APACHE),
    "base": (97_470_785, NON_COMMERCIAL),
    "large": (335_315_649, NON_COMMERCIAL),
}


def _depth_anything(name: str, alias: str, hub_id: str, config: Any, parameters: int, licence: str) -> ModelSpec:
    return ModelSpec(
        name,
        "depth_anything",
        config,
        DEPTH_ANYTHING,
        licence,
        hub_id,
        parameters=parameters,
        aliases=(alias,),
    )


def _published() -> Iterator[ModelSpec]:
    for size, (parameters, licence) in _DEPTH_ANYTHING_SIZES.items():
        yield _depth_anything(
            f"depth-anything-v2-{size}",
            f"da2-{size}",
            f"depth-anything/Depth-Anything-V2-{size.capitalize()}-hf",
            depth_anything_config(size),
            parameters,
            licence,
        )
    yield ModelSpec(
        "depth-anything-v2-giant",
        "depth_anything",
        depth_anything_config("giant"),
        DEPTH_ANYTHING,
        NON_COMMERCIAL,
        parameters=1_258_132_225,
        aliases=("da2-giant",),
    )
    for place, metres in (("indoor", 20.0), ("outdoor", 80.0)):
        for size, (parameters, licence) in _DEPTH_ANYTHING_SIZES.items():
            yield _depth_anything(
                f"depth-anything-v2-metric-{place}-{size}",
                f"da2-{place}-{size}",
                f"depth-anything/Depth-Anything-V2-Metric-{place.capitalize()}-{size.capitalize()}-hf",
                depth_anything_config(size, max_depth=metres),
                parameters,
                licence,
            )
    for size, (parameters, _) in _DEPTH_ANYTHING_SIZES.items():
        yield _depth_anything(
            f"depth-anything-v1-{size}",
            f"da1-{size}",
            f"LiheYoung/depth-anything-{size}-hf",
            depth_anything_config(size, version=1),
            parameters,
            APACHE,
        )
    yield ModelSpec(
        "mlx-depth-demo",
        "depth_anything",
        depth_anything_config("small"),
        replace(DEPTH_ANYTHING, input_size=364),
        APACHE,
        parameters=_DEPTH_ANYTHING_SIZES["small"][0],
        aliases=("demo",),
        folder=DEMO_FOLDER,
    )


MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _published()}


def find_published(repo: str) -> ModelSpec | None:
    """The model whose weights a Hub repository ``owner/name`` holds, if the registry knows it."""
    return next((spec for spec in MODELS.values() if spec.hub_id == repo), None)


def list_models() -> list[ModelSpec]:
    """All models of the registry, in the order of the table."""
    return list(MODELS.values())
