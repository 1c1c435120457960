"""All families: the one list that a new family joins."""

from mlx_depth.models.anydepth.family import FAMILY as ANYDEPTH
from mlx_depth.models.base import Family
from mlx_depth.models.depth_anything.family import FAMILY as DEPTH_ANYTHING
from mlx_depth.models.depth_anything_3 import family as depth_anything_3
from mlx_depth.models.depth_pro.family import FAMILY as DEPTH_PRO
from mlx_depth.models.dpt import family as dpt
from mlx_depth.models.midas.family import FAMILY as MIDAS
from mlx_depth.models.moge.family import FAMILY as MOGE
from mlx_depth.models.prompt_depth_anything.family import FAMILY as PROMPT_DEPTH_ANYTHING

_FAMILIES = (
    DEPTH_ANYTHING,
    depth_anything_3.ANY_VIEW,
    depth_anything_3.MONO,
    depth_anything_3.NESTED,
    ANYDEPTH,
    dpt.PLAIN_FAMILY,
    dpt.HYBRID_FAMILY,
    dpt.METRIC_FAMILY,
    MIDAS,
    DEPTH_PRO,
    PROMPT_DEPTH_ANYTHING,
    MOGE,
)
FAMILIES: dict[str, Family] = {family.name: family for family in _FAMILIES}
