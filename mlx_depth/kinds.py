"""What the numbers of a depth map mean."""

import enum


class DepthKind(str, enum.Enum):
    """What the numbers of a depth map mean; equal to its own name in lower case, as files store it."""

    RELATIVE_INVERSE = "relative_inverse"
    """Unitless, larger = nearer, unknown scale and shift (Depth Anything V1 and V2, MiDaS)."""
    RELATIVE = "relative"
    """Unitless, larger = farther, unknown scale (Depth Anything 3)."""
    METRIC = "metric"
    """Metres, larger = farther."""

    @property
    def unit(self) -> str:
        """``"m"`` for metric depth, else the empty string."""
        return "m" if self is DepthKind.METRIC else ""

    @property
    def larger_is_nearer(self) -> bool:
        return self is DepthKind.RELATIVE_INVERSE

    @property
    def description(self) -> str:
        """Kind, unit and direction in words."""
        name = self.value.replace("_", " ")
        unit = "metres" if self.unit else "unitless"
        return f"{name} depth ({unit}, larger = {'nearer' if self.larger_is_nearer else 'farther'})"
