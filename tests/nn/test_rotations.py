"""Rotations against Depth Anything 3's own functions, and in the corners where one component is zero."""

import mlx.core as mx
import numpy as np
import pytest
from da3 import import_reference, torch
from support import relative_error, seeded

from mlx_depth.nn.rotations import apply_matrix, matrix_to_quaternion, quaternion_product, quaternion_to_matrix

GATE = 1e-6
upstream = import_reference("model.utils.transform")


def quaternions(name: str, *shape: int) -> np.ndarray:
    q = seeded(name, (*shape, 4))
    return q / np.linalg.norm(q, axis=-1, keepdims=True)


def corners() -> np.ndarray:
    """Turns by 0, by a half around each axis and each diagonal, and by hardly anything: where branches meet."""
    signs = np.array(np.meshgrid(*[(-1.0, 0.0, 1.0)] * 4)).reshape(4, -1).T
    q = signs[np.abs(signs).sum(1) > 0]
    q = np.concatenate([q, q + 1e-4 * seeded("nearly", q.shape)])
    return (q / np.linalg.norm(q, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("length", [1.0, 0.01, 30.0])
def test_matrices_of_quaternions(length):
    q = quaternions("q", 2, 500) * length
    expected = upstream.quat_to_mat(torch.from_numpy(q)).numpy()
    assert relative_error(np.array(quaternion_to_matrix(mx.array(q))), expected) <= GATE


@pytest.mark.parametrize("q", [quaternions("q", 2000), corners()], ids=["random", "corners"])
def test_quaternions_of_matrices(q):
    matrices = quaternion_to_matrix(mx.array(q))
    found = np.array(matrix_to_quaternion(matrices))
    expected = upstream.mat_to_quat(torch.from_numpy(np.array(matrices))).numpy()
    assert (found[:, 3] >= 0).all()
    turned = np.abs(expected[:, 3]) < 1e-3  # there the sign is decided by the last digit
    found[turned] *= np.sign((found * expected).sum(-1, keepdims=True))[turned]
    assert relative_error(found, expected) <= GATE


def test_every_branch_keeps_the_digits():
    q = corners()
    found = np.array(matrix_to_quaternion(quaternion_to_matrix(mx.array(q))), np.float64)
    found *= np.sign((found * q).sum(-1, keepdims=True))
    assert np.abs(found - q).max() <= GATE


def test_leading_axes():
    matrices = quaternion_to_matrix(mx.array(quaternions("q", 2, 3)))
    assert matrices.shape == (2, 3, 3, 3)
    assert matrix_to_quaternion(matrices).shape == (2, 3, 4)
    assert matrix_to_quaternion(matrices[0, 0]).shape == (4,)


def test_products_turn_like_matrices():
    left, right = quaternions("left", 7, 1), quaternions("right", 1, 5)
    found = quaternion_to_matrix(quaternion_product(mx.array(left), mx.array(right)))
    expected = np.array(quaternion_to_matrix(mx.array(left))) @ np.array(quaternion_to_matrix(mx.array(right)))
    assert relative_error(np.array(found), expected) <= GATE


def test_apply_matrix():
    matrices, vectors = seeded("matrices", (2, 1, 4, 3)), seeded("vectors", (2, 6, 3))
    expected = np.einsum("bnij,bnj->bni", np.broadcast_to(matrices, (2, 6, 4, 3)), vectors)
    assert relative_error(np.array(apply_matrix(mx.array(matrices), mx.array(vectors))), expected) <= GATE
