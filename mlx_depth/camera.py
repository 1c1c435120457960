"""The camera of a photo."""

import dataclasses

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError


@dataclasses.dataclass(frozen=True, eq=False)
class Camera:
    """The camera that a model estimated, or was given.

    Attributes:
        intrinsics: ``(3, 3)``, in pixels of the original image, float.
        extrinsics: ``(3, 4)``, world → camera, OpenCV axes (x right, y down, z forward), float; the
            translation has the unit of the depth that the model gave.
    """

    intrinsics: npt.NDArray[np.floating]
    extrinsics: npt.NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        _check_matrix("intrinsics", self.intrinsics, (3, 3))
        if self.extrinsics is not None:
            _check_matrix("extrinsics", self.extrinsics, (3, 4))

    @property
    def focal_length_px(self) -> float:
        """Mean of the horizontal and the vertical focal length, in pixels of the original image."""
        return float(self.intrinsics[0, 0] + self.intrinsics[1, 1]) / 2

    def rescaled(self, factor: float | None) -> "Camera":
        """The camera with its translation multiplied by ``factor``; None takes the extrinsics away."""
        if self.extrinsics is None:
            return self
        if factor is None:
            return Camera(self.intrinsics)
        return Camera(self.intrinsics, self.extrinsics * np.array([1, 1, 1, factor], self.extrinsics.dtype))

    def matrices(self) -> dict[str, npt.NDArray[np.floating]]:
        """Those that are known, by name."""
        extrinsics = {} if self.extrinsics is None else {"extrinsics": self.extrinsics}
        return {"intrinsics": self.intrinsics, **extrinsics}


def _check_matrix(name: str, matrix: npt.NDArray[np.floating], shape: tuple[int, int]) -> None:
    if not isinstance(matrix, np.ndarray) or matrix.dtype.kind != "f" or matrix.shape != shape:
        raise OptionError(f"{name} is not a float numpy array of shape {shape}: give one.")
    if not np.isfinite(matrix).all():
        raise OptionError(f"{name} holds numbers that are not finite: give finite ones.")
