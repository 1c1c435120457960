"""The same network in its reference, for comparison: one file a family."""

from mlx_depth.errors import OptionError
from mlx_depth.registry import ModelSpec
from mlx_depth_convert.references import (
    depth_anything,
    depth_anything_3,
    depth_pro,
    dpt,
    moge,
    prompt_depth_anything,
)
from mlx_depth_convert.references.base import Reference

REFERENCES: dict[str, Reference] = {
    "depth_anything": depth_anything.REFERENCE,
    "depth_anything_3": depth_anything_3.ANY_VIEW,
    "depth_anything_3_mono": depth_anything_3.MONO,
    "depth_anything_3_nested": depth_anything_3.NESTED,
    "depth_pro": depth_pro.REFERENCE,
    "prompt_depth_anything": prompt_depth_anything.REFERENCE,
    "moge": moge.REFERENCE,
    "dpt": dpt.PLAIN,
    "dpt_hybrid": dpt.HYBRID,
    "dpt_dinov2": dpt.METRIC,
}
NAMES = tuple(dict.fromkeys(reference.name for reference in REFERENCES.values()))


def reference_of(spec: ModelSpec, name: str | None = None) -> Reference:
    """The reference of a model's family.

    Args:
        spec: The model.
        name: What the user calls it, one of ``NAMES``; None: whatever the family has.
    Raises:
        OptionError: If there is none, or it is not the one that is named.
    """
    found = REFERENCES.get(spec.family)
    if found is not None and name in (None, found.name):
        return found
    others = f"take --against {found.name}, or" if found is not None else "compare it with"
    wanted = name or "a reference"
    raise OptionError(
        f"{spec.name} cannot be compared with {wanted}, which has no {spec.family}: "
        f"{others} its own source (--against SOURCE)."
    )
