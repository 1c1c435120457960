"""Padding as ``SAME`` and convolutions with standardized kernels, against torch."""

import mlx.core as mx
import numpy as np
import pytest
from support import relative_error, require, seeded

from mlx_depth.nn.same_padding import pad_same
from mlx_depth.nn.standardized_conv import EPS, StandardizedConv2d, standardized

torch = require("reference", "torch")


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padded"),
    [
        ((6, 7), 3, 2, (7, 9)),
        ((5, 5), 3, 1, (7, 7)),
        ((8, 9), 7, 2, (13, 15)),
        ((8, 9), 1, 2, (8, 9)),
        ((1, 4), 5, 2, (5, 7)),
        ((4, 4), 1, 1, (4, 4)),
    ],
)
def test_as_little_as_makes_every_place(size, kernel_size, stride, padded):
    x = mx.array(seeded("maps", (2, *size, 3)))
    found = pad_same(x, kernel_size, stride)
    assert found.shape == (2, *padded, 3)
    assert all(
        (there - kernel_size) // stride + 1 == -(-side // stride) for there, side in zip(padded, size, strict=True)
    )
    before = [(there - side) // 2 for there, side in zip(padded, size, strict=True)]  # the odd one lies behind
    inside = tuple(slice(start, start + side) for start, side in zip(before, size, strict=True))
    assert mx.array_equal(found[:, inside[0], inside[1]], x)
    assert mx.allclose(found.sum(), x.sum(), atol=1e-4)


@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (3, 1), (3, 2), (7, 2)])
def test_standardized_convolution_equals_torch(kernel_size, stride):
    layer = StandardizedConv2d(6, 5, kernel_size, stride)
    layer.weight = mx.array(seeded("kernels", (5, kernel_size, kernel_size, 6), 1e-3) + 0.005)
    x = seeded("x", (2, 9, 8, 6))
    weight = torch.from_numpy(np.array(layer.weight).transpose(0, 3, 1, 2).copy())
    flat = torch.nn.functional.batch_norm(weight.reshape(1, 5, -1), None, None, training=True, momentum=0.0, eps=EPS)
    padded = np.array(pad_same(mx.array(x), kernel_size, stride)).transpose(0, 3, 1, 2).copy()
    expected = torch.nn.functional.conv2d(torch.from_numpy(padded), flat.reshape_as(weight), stride=stride)
    found = np.array(layer(mx.array(x)))
    assert relative_error(found, expected.numpy().transpose(0, 2, 3, 1)) <= 1e-5


def test_half_precision_kernels_are_standardized_in_float32():
    weight = mx.array(seeded("kernels", (4, 3, 3, 8), 1e-3)).astype(mx.float16)
    found = standardized(weight)
    assert found.dtype == mx.float16
    assert mx.abs(found.astype(mx.float32).var(axis=(1, 2, 3)) - 1).max() < 2e-2
