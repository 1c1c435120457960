"""A scene as 3D Gaussians."""

import dataclasses

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError
from mlx_depth.geometry.checks import check_array


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Gaussians:
    """3D Gaussians of one scene, in its world.

    Attributes:
        means: ``(N, 3)``, float32, world coordinates.
        scales: ``(N, 3)``, float32, standard deviations along the own axes, in the unit of the means. A network may
            give some that are not above 0: those Gaussians have no size, and files leave them out.
        rotations: ``(N, 4)``, float32, quaternions w, x, y, z.
        harmonics: ``(N, 3, D)``, float32, spherical harmonics of red, green, blue; D = (degree + 1)².
        opacities: ``(N,)``, float32, 0..1.
    """

    means: npt.NDArray[np.float32]
    scales: npt.NDArray[np.float32]
    rotations: npt.NDArray[np.float32]
    harmonics: npt.NDArray[np.float32]
    opacities: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        count = len(self.opacities)
        shapes = {"means": (count, 3), "scales": (count, 3), "rotations": (count, 4), "opacities": (count,)}
        for name, expected in shapes.items():
            check_array(f"gaussians.{name}", getattr(self, name), expected)
        shape = np.shape(self.harmonics)
        terms = shape[2] if len(shape) == 3 else 0
        if terms == 0 or round(terms**0.5) ** 2 != terms:
            raise OptionError(f"gaussians.harmonics has shape {shape}: give (N, 3, D) with D = (degree + 1)².")
        check_array("gaussians.harmonics", self.harmonics, (count, 3, terms))
        for name in (*shapes, "harmonics"):
            if not np.isfinite(getattr(self, name)).all():
                raise OptionError(f"gaussians.{name} holds numbers that are not finite: leave those Gaussians out.")
        if (self.opacities < 0).any() or (self.opacities > 1).any():
            raise OptionError("gaussians.opacities is not within 0..1: give it without a logit.")

    def __len__(self) -> int:
        return len(self.opacities)

    def __repr__(self) -> str:
        return f"Gaussians({len(self)}, harmonics of degree {round(self.harmonics.shape[2] ** 0.5) - 1})"

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Every array by its name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def chosen(self, mask: npt.NDArray[np.bool_]) -> "Gaussians":
        """Those where ``mask``, ``(N,)``, is True."""
        return Gaussians(**{name: values[mask] for name, values in self.arrays().items()})
