"""Real spherical harmonics of 3D Gaussian splatting, turned with the camera.

By degree: 1; -y, z, -x; xy, -yz, 2zz - xx - yy, -xz, xx - yy (each with its constant).
"""

import math

import mlx.core as mx

from mlx_depth.errors import OptionError
from mlx_depth.nn.rotations import apply_matrix

_COUNTS = (1, 4, 9)  # coefficients up to degree 0, 1, 2
_LINEAR = ((1, -1.0), (2, 1.0), (0, -1.0))  # functions of degree 1: axis and sign
_A, _B = math.sqrt(1 / 2), math.sqrt(1 / 6)
# Functions of degree 2 as symmetric matrices Q, of value rᵀ Q r: orthonormal, written row after row.
_QUADRATIC = (
    (0.0, _A, 0.0, _A, 0.0, 0.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 0.0, 0.0, -_A, 0.0, -_A, 0.0),
    (-_B, 0.0, 0.0, 0.0, -_B, 0.0, 0.0, 0.0, 2 * _B),
    (0.0, 0.0, -_A, 0.0, 0.0, 0.0, -_A, 0.0, 0.0),
    (_A, 0.0, 0.0, 0.0, -_A, 0.0, 0.0, 0.0, 0.0),
)


def rotate_harmonics(coefficients: mx.array, rotations: mx.array) -> mx.array:
    """Coefficients of functions that turn with their frame: the new one at ``R d`` is the old one at ``d``.

    Args:
        coefficients: ``(..., D)``, D of 1, 4 or 9, any float type.
        rotations: ``(..., 3, 3)``, such as camera → world; the axes in front broadcast to the coefficients'.
    Returns:
        ``(..., D)``.
    Raises:
        OptionError: If D is another number.

    The factors are polynomials of the matrix: no angle loses digits near the identity. Upstream: ``rotate_sh`` of
    Depth Anything 3, by e3nn.
    """
    count = coefficients.shape[-1]
    if count not in _COUNTS:
        raise OptionError(f"{count} coefficients are no spherical harmonics of degree 0 to 2: pass 1, 4 or 9.")
    parts = [coefficients[..., :1]]
    if count >= 4:
        parts.append(apply_matrix(_linear(rotations), coefficients[..., 1:4]))
    if count >= 9:
        parts.append(apply_matrix(_quadratic(rotations), coefficients[..., 4:9]))
    return mx.concatenate(parts, axis=-1)


def _linear(rotations: mx.array) -> mx.array:
    """(..., 3, 3): the matrix itself, its axes in the order and with the signs of the functions."""
    rows = [
        mx.stack([rotations[..., row, column] * (sign * other) for column, other in _LINEAR], axis=-1)
        for row, sign in _LINEAR
    ]
    return mx.stack(rows, axis=-2)


def _quadratic(rotations: mx.array) -> mx.array:
    """(..., 5, 5), of function n at ``R r`` in function m: the inner product of Rᵀ Qₙ R and Qₘ."""
    functions = mx.array(_QUADRATIC)
    pairs = rotations[..., :, None, :, None] * rotations[..., None, :, None, :]
    pairs = pairs.reshape(*rotations.shape[:-2], 1, 9, 9)  # (R ⊗ R): entries (a b), (i j)
    turned = (functions[:, :, None] * pairs).sum(-2)  # (..., 5, 9)
    return (turned[..., :, None, :] * functions).sum(-1)
