"""Rotations as matrices and as quaternions, in plain products and sums.

Nothing here is a matrix product: a GPU may round the factors of one to TF32, and geometry has to keep its digits.
"""

import mlx.core as mx

_MIN_DIVISOR = 0.1  # far below the largest component of a unit quaternion (0.5), so never that of the chosen row


def apply_matrix(matrices: mx.array, vectors: mx.array) -> mx.array:
    """Multiply vectors by matrices, in full precision on every device.

    Args:
        matrices: ``(..., M, N)``; the axes in front broadcast against those of the vectors.
        vectors: ``(..., N)``.
    Returns:
        ``(..., M)``.
    """
    total = matrices[..., 0] * vectors[..., :1]
    for column in range(1, matrices.shape[-1]):
        total = total + matrices[..., column] * vectors[..., column : column + 1]
    return total


def quaternion_to_matrix(quaternions: mx.array) -> mx.array:
    """Rotation matrices of quaternions.

    Args:
        quaternions: ``(..., 4)``, x y z w with the real part last, of any length but zero.
    Returns:
        ``(..., 3, 3)``.

    Upstream: ``quat_to_mat`` of Depth Anything 3.
    """
    x, y, z, w = (quaternions[..., i] for i in range(4))
    scale = 2.0 / (quaternions * quaternions).sum(-1)
    rows = [
        [1 - scale * (y * y + z * z), scale * (x * y - z * w), scale * (x * z + y * w)],
        [scale * (x * y + z * w), 1 - scale * (x * x + z * z), scale * (y * z - x * w)],
        [scale * (x * z - y * w), scale * (y * z + x * w), 1 - scale * (x * x + y * y)],
    ]
    return mx.stack([mx.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_quaternion(matrices: mx.array) -> mx.array:
    """Unit quaternions of rotation matrices.

    Args:
        matrices: ``(..., 3, 3)``, rotations.
    Returns:
        ``(..., 4)``, x y z w with the real part last and >= 0.

    Four times each component is known from the diagonal, and its products with the others from the rest: the largest
    component loses the fewest digits. Upstream: ``mat_to_quat`` of Depth Anything 3.
    """
    (a, b, c), (d, e, f), (g, h, i) = ([matrices[..., row, column] for column in range(3)] for row in range(3))
    squares = mx.maximum(mx.stack([1 + a - e - i, 1 - a + e - i, 1 - a - e + i, 1 + a + e + i], axis=-1), 0)
    xx, yy, zz, ww = (squares[..., row] for row in range(4))
    xy, xz, yz, xw, yw, zw = b + d, c + g, f + h, h - f, c - g, d - b
    products = mx.stack(  # 4 q qᵀ: each row is the quaternion times four of its components
        [mx.stack(row, axis=-1) for row in ([xx, xy, xz, xw], [xy, yy, yz, yw], [xz, yz, zz, zw], [xw, yw, zw, ww])],
        axis=-2,
    )
    best = mx.argmax(squares, axis=-1, keepdims=True)  # (..., 1)
    row = mx.take_along_axis(products, mx.broadcast_to(best[..., None], (*best.shape, 4)), axis=-2)[..., 0, :]
    largest = mx.sqrt(mx.take_along_axis(squares, best, axis=-1))
    quaternions = row / (2 * mx.maximum(largest, _MIN_DIVISOR))
    return positive_real(quaternions)


def positive_real(quaternions: mx.array) -> mx.array:
    """Of the two quaternions of a rotation, the one whose last component, the real part, is >= 0."""
    return mx.where(quaternions[..., 3:] < 0, -quaternions, quaternions)


def quaternion_product(left: mx.array, right: mx.array) -> mx.array:
    """The quaternion of the rotation ``right`` followed by ``left``, as for matrices.

    Args:
        left: ``(..., 4)``, x y z w; the axes in front broadcast.
        right: ``(..., 4)``, x y z w.
    Returns:
        ``(..., 4)``, x y z w.
    """
    a, b, c, d = (left[..., i] for i in range(4))
    x, y, z, w = (right[..., i] for i in range(4))
    return mx.stack(
        [
            d * x + a * w + b * z - c * y,
            d * y - a * z + b * w + c * x,
            d * z + a * y - b * x + c * w,
            d * w - a * x - b * y - c * z,
        ],
        axis=-1,
    )
