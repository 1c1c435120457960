"""All families: the one list that a new family joins."""

from mlx_depth.models.base import Family
from mlx_depth.models.depth_anything.family import FAMILY as DEPTH_ANYTHING

FAMILIES: dict[str, Family] = {family.name: family for family in (DEPTH_ANYTHING,)}
