"""3D Gaussians as the PLY file that viewers of Gaussian splatting read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError
from mlx_depth.io.scene.ply import write_vertices

MAX_DEGREE = 3  # of spherical harmonics, that viewers read
_LEAST_OPACITY = 2.0**-24  # 1 less this is the largest float32 below 1: the logit of 0 and of 1 is not finite
_LEAST_SCALE = np.finfo(np.float32).tiny


def write_gaussian_ply(
    path: Path,
    *,
    means: npt.NDArray[np.float32],
    scales: npt.NDArray[np.float32],
    rotations: npt.NDArray[np.float32],
    harmonics: npt.NDArray[np.float32],
    opacities: npt.NDArray[np.float32],
    degree: int | None = None,
    facts: Mapping[str, Any],
    overwrite: bool = False,
) -> Path:
    """Write Gaussians in the layout of 3D Gaussian splatting.

    Args:
        path: The file; missing folders are made.
        means: ``(N, 3)``, world coordinates, OpenCV axes.
        scales: ``(N, 3)``, standard deviations along the own axes, in the unit of the means; stored as logarithms.
        rotations: ``(N, 4)``, quaternions w, x, y, z.
        harmonics: ``(N, 3, D)``, spherical harmonics of red, green, blue; D is (degree + 1)².
        opacities: ``(N,)``, 0..1; stored as logits, those of 0 and 1 as the nearest that are finite.
        degree: Degree of the harmonics in the file, 0..3: higher ones are left out, missing ones are 0. Default: all
            that there are. The viewer of the paper's authors wants 3; 0 makes a file of a third of the size.
        facts: As in ``write_ply``, like ``overwrite``.
    Returns:
        The path.
    Raises:
        OptionError: If the degree is not 0..3.
        SaveError: If the file exists or cannot be written.

    Properties in the order of ``GaussianModel.save_ply`` (graphdeco-inria/gaussian-splatting): the normals are 0, and
    ``f_rest`` holds all of red, then all of green, then all of blue.
    """
    own = int(np.sqrt(harmonics.shape[2])) - 1
    degree = min(own, MAX_DEGREE) if degree is None else degree
    if degree not in range(MAX_DEGREE + 1):
        raise OptionError(f"degree {degree} is not 0, 1, 2 or 3, which viewers read: give one, or None.")
    rest = np.zeros((len(means), 3, (degree + 1) ** 2 - 1), np.float32)
    shared = min(rest.shape[2], harmonics.shape[2] - 1)
    rest[:, :, :shared] = harmonics[:, :, 1 : 1 + shared]
    opacity = np.clip(opacities.astype(np.float64), _LEAST_OPACITY, 1 - _LEAST_OPACITY)
    columns = {
        **_named(("x", "y", "z"), means),
        **_named(("nx", "ny", "nz"), np.zeros_like(means)),
        **_numbered("f_dc", harmonics[:, :, 0]),
        **_numbered("f_rest", rest.reshape(len(rest), -1)),
        "opacity": np.log(opacity / (1 - opacity)),
        **_numbered("scale", np.log(np.maximum(scales, _LEAST_SCALE))),
        **_numbered("rot", rotations),
    }
    vertices = np.empty(len(means), [(name, "<f4") for name in columns])
    for name, values in columns.items():
        vertices[name] = values
    return write_vertices(path, vertices, facts=facts, overwrite=overwrite)


def _named(names: tuple[str, ...], values: npt.NDArray[np.floating]) -> dict[str, npt.NDArray[np.floating]]:
    return dict(zip(names, values.T, strict=True))


def _numbered(name: str, values: npt.NDArray[np.floating]) -> dict[str, npt.NDArray[np.floating]]:
    return {f"{name}_{number}": column for number, column in enumerate(values.T)}
