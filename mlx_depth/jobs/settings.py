"""What is asked of every image of a job."""

import importlib.util
import math
from dataclasses import dataclass
from typing import Any

from mlx_depth.errors import OptionError
from mlx_depth.io.colormaps import colormap_table
from mlx_depth.io.formats import FORMATS
from mlx_depth.io.prompt import PromptUnit
from mlx_depth.processor import InputSize, Reference

DEFAULT_FORMATS = ("npy", "color")


@dataclass(frozen=True)
class Settings:
    """What is asked of every image; a result is complete only if it was made with the same settings."""

    model: str
    dtype: str
    revision: str | None = None
    reference: Reference | None = None
    input_size: InputSize | None = None
    background: tuple[int, int, int] | None = None
    focal_length_px: float | None = None
    prompt_unit: PromptUnit | None = None
    formats: tuple[str, ...] = DEFAULT_FORMATS
    cmap: str = "Spectral_r"

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            raise OptionError(f"no format {', '.join(map(repr, unknown))}: choose from {', '.join(FORMATS)}.")
        colormap_table(self.cmap)
        if self.focal_length_px is not None and not (math.isfinite(self.focal_length_px) and self.focal_length_px > 0):
            raise OptionError(f"a focal length of {self.focal_length_px} is none: give pixels of the photo, above 0.")
        if "exr" in self.formats and importlib.util.find_spec("OpenEXR") is None:
            raise OptionError("OpenEXR is missing, which .exr files need: pip install 'mlx-depth[exr]'.")
        if "mesh" in self.formats and importlib.util.find_spec("trimesh") is None:
            raise OptionError("trimesh is missing, which .glb files need: pip install 'mlx-depth[scene]'.")

    def facts(self) -> dict[str, Any]:
        """All but the formats, as JSON gives them back."""
        size = list(self.input_size) if isinstance(self.input_size, tuple) else self.input_size
        facts: dict[str, Any] = {
            "model": self.model,
            "dtype": self.dtype,
            "revision": self.revision,
            "input_size": size,
            "cmap": self.cmap,
        }
        # Only where they are asked for, so that results of earlier versions stay complete.
        chosen = {
            "reference": self.reference,
            "background": self.background and list(self.background),
            "focal_length_px": self.focal_length_px,
            "prompt_unit": self.prompt_unit,
        }
        return facts | {name: value for name, value in chosen.items() if value is not None}
