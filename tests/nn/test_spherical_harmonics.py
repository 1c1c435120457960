"""Turned spherical harmonics against Depth Anything 3's own function and e3nn, and by what they mean."""

import mlx.core as mx
import numpy as np
import pytest
from da3 import import_reference, torch
from support import relative_error, require, seeded

from mlx_depth.errors import OptionError
from mlx_depth.nn.rotations import quaternion_to_matrix
from mlx_depth.nn.spherical_harmonics import rotate_harmonics

GATE = 1e-5
o3 = require("reference", "e3nn.o3")
helpers = import_reference("utils.sh_helpers")


def rotations(name: str, *shape: int) -> np.ndarray:
    return np.array(quaternion_to_matrix(mx.array(seeded(name, (*shape, 4)))))


def upstream(coefficients: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    return helpers.rotate_sh(torch.from_numpy(coefficients), torch.from_numpy(matrices)).numpy()


def values(directions: np.ndarray) -> np.ndarray:
    """The nine functions of 3D Gaussian splatting (gsplat's ``_eval_sh_bases_fast``, degree 2), (..., 9)."""
    x, y, z = np.moveaxis(directions / np.linalg.norm(directions, axis=-1, keepdims=True), -1, 0)
    a, b, c, d, e = 0.28209479177387814, 0.4886025119029199, 1.0925484305920792, 0.31539156525252005, 0.5462742152960396
    functions = (a + 0 * x, -b * y, b * z, -b * x, c * x * y, -c * y * z)
    return np.stack([*functions, d * (2 * z * z - x * x - y * y), -c * x * z, e * (x * x - y * y)], axis=-1)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_random_rotations(count):
    coefficients, matrices = seeded("c", (400, count)), rotations("R", 400)
    found = np.array(rotate_harmonics(mx.array(coefficients), mx.array(matrices)))
    assert relative_error(found, upstream(coefficients, matrices)) <= GATE


def test_a_camera_for_many_pixels():
    coefficients, matrices = seeded("c", (2, 3, 5, 7, 3, 9)), rotations("R", 2, 3)[:, :, None, None, None]
    found = np.array(rotate_harmonics(mx.array(coefficients), mx.array(matrices)))
    assert relative_error(found, upstream(coefficients, matrices)) <= GATE


@pytest.mark.parametrize("angle", [0.0, 1e-4, 3e-3, 0.5, np.pi])
def test_each_factor_where_angles_lose_digits(angle):
    """e3nn in float64: in float32, as upstream calls it, a turn below 3e-4 is lost in an arc cosine."""
    axes = seeded("axes", (50, 3))
    q = np.concatenate([axes / np.linalg.norm(axes, axis=1, keepdims=True) * np.tan(angle / 2), np.ones((50, 1))], 1)
    matrices = quaternion_to_matrix(mx.array(q.astype(np.float32)))
    order = [1, 2, 0]
    exact = torch.from_numpy(np.array(matrices)).double()[:, order][:, :, order]
    alpha, beta, gamma = o3.matrix_to_angles(exact)
    factors = np.zeros((50, 9, 9))
    for degree in range(3):
        part = slice(degree**2, (degree + 1) ** 2)
        factors[:, part, part] = o3.wigner_D(degree, alpha, -beta, gamma)
    each = mx.array(np.tile(np.eye(9, dtype=np.float32), (50, 1, 1)))  # row n: function n alone
    found = rotate_harmonics(each, matrices[:, None])
    assert np.abs(np.array(found).swapaxes(1, 2) - factors).max() <= 2e-6


def test_the_function_turns_with_the_frame():
    coefficients, matrices, directions = seeded("c", (60, 9)), rotations("R", 60), seeded("d", (60, 3))
    turned = np.einsum("nij,nj->ni", matrices, directions)
    found = (np.array(rotate_harmonics(mx.array(coefficients), mx.array(matrices))) * values(turned)).sum(-1)
    assert relative_error(found, (coefficients * values(directions)).sum(-1)) <= GATE


def test_the_way_back_is_a_drift_that_the_gate_sees():
    coefficients, matrices = seeded("c", (50, 9)), rotations("R", 50)
    found = np.array(rotate_harmonics(mx.array(coefficients), mx.array(matrices.swapaxes(1, 2))))
    assert relative_error(found, upstream(coefficients, matrices)) > 0.1


def test_another_degree():
    with pytest.raises(OptionError, match="pass 1, 4 or 9"):
        rotate_harmonics(mx.zeros((2, 16)), mx.eye(3))
