"""The same network in its reference, for comparison: one file a family."""

from mlx_depth.errors import OptionError
from mlx_depth.registry import ModelSpec
from mlx_depth_convert.references import depth_anything
from mlx_depth_convert.references.base import Reference

REFERENCES: dict[str, Reference] = {"depth_anything": depth_anything.REFERENCE}


def reference_of(spec: ModelSpec) -> Reference:
    """The reference of a model's family.

    Raises:
        OptionError: If there is none.
    """
    if spec.family not in REFERENCES:
        raise OptionError(
            f"{spec.name} cannot be compared with transformers, which has no {spec.family}: "
            "compare it with its own source (--against SOURCE)."
        )
    return REFERENCES[spec.family]
