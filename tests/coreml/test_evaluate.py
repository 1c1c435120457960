"""The evaluator's operations against MLX's, and its refusals."""

import shutil
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from coreml.tiny import SIZE
from mlx_depth_convert.coreml import evaluate
from mlx_depth_convert.coreml.evaluate import HANDLERS, read_package, read_structure, run_function
from mlx_depth_convert.pictures import generated_picture
from support import relative_error, require, seeded

from mlx_depth.errors import CheckpointError
from mlx_depth.nn.resize import resize

require("coreml", "coremltools")


def run(operation, **inputs):
    return HANDLERS[operation](inputs)


def nchw(x):
    return np.array(x).transpose(0, 3, 1, 2)


def nhwc(x):
    return mx.array(np.ascontiguousarray(x.transpose(0, 2, 3, 1)))


@pytest.mark.parametrize(("kernel", "stride", "pad"), [(1, 1, 0), (3, 1, 1), (3, 2, 1), (5, 5, 0)])
def test_convolution(kernel, stride, pad):
    x, weight, bias = seeded("x", (1, 4, 15, 20)), seeded("w", (6, 4, kernel, kernel)), seeded("b", (6,))
    ours = run(
        "conv",
        x=x,
        weight=weight,
        bias=bias,
        strides=[stride, stride],
        pad_type="custom",
        pad=[pad] * 4,
        dilations=[1, 1],
        groups=1,
    )
    theirs = mx.conv2d(nhwc(x), nhwc(weight), stride=stride, padding=pad) + mx.array(bias)
    assert relative_error(ours, nchw(theirs)) < 1e-6


@pytest.mark.parametrize("groups", [2, 4])
def test_convolution_of_groups(groups):
    x, weight, bias = seeded("x", (1, 4, 9, 7)), seeded("w", (8, 4 // groups, 3, 3)), seeded("b", (8,))
    options = {"strides": [1, 1], "pad_type": "custom", "pad": [1] * 4, "dilations": [1, 1], "groups": groups}
    ours = run("conv", x=x, weight=weight, bias=bias, **options)
    theirs = mx.conv2d(nhwc(x), nhwc(weight), padding=1, groups=groups) + mx.array(bias)
    assert relative_error(ours, nchw(theirs)) < 1e-6


READING = {
    "sampling_mode": "bilinear",
    "padding_mode": "border",
    "padding_value": 0.0,
    "coordinates_mode": "normalized_minus_one_to_one",
    "align_corners": False,
}


@pytest.mark.parametrize("size", [(5, 8), (1, 1)])
def test_reading_between_pixels_and_pixels_from_channels(size):
    """As torch: what lies beyond the border, on an edge and on a center, two pictures at positions of their own."""
    torch = require("reference", "torch")
    x, positions = seeded("x", (2, 3, *size)), seeded("at", (2, 6, 7, 2))
    positions[:, 0, :4] = [[-1, -1], [1, 1], [1 / size[1] - 1, 1 / size[0] - 1], [9, -9]]
    theirs = torch.nn.functional.grid_sample(
        torch.tensor(x), torch.tensor(positions), padding_mode="border", align_corners=False
    )
    assert relative_error(run("resample", x=x, coordinates=positions, **READING), theirs.numpy()) < 1e-6
    x = seeded("x", (2, 12, *size))
    theirs = torch.pixel_shuffle(torch.tensor(x), 2).numpy()
    assert np.array_equal(run("pixel_shuffle", x=x, upscale_factor=2), theirs)


def test_transposed_convolution():
    x, weight, bias = seeded("x", (1, 4, 5, 7)), seeded("w", (4, 6, 2, 2)), seeded("b", (6,))
    ours = run("conv_transpose", x=x, weight=weight, bias=bias, strides=[2, 2], pad=[0] * 4)
    kernel = mx.array(np.ascontiguousarray(weight.transpose(1, 2, 3, 0)))
    theirs = mx.conv_transpose2d(nhwc(x), kernel, stride=2) + mx.array(bias)
    assert relative_error(ours, nchw(theirs)) < 1e-6


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(7, 9), (20, 13), (1, 1)])
def test_bilinear_growth(align_corners, size):
    x = seeded("x", (1, 3, *size))
    to = (size[0] * 2 + 1, size[1] * 3)
    factors = [(wanted + 1e-4) / side for wanted, side in zip(to, size, strict=True)]
    ours = run(
        "upsample_bilinear",
        x=x,
        scale_factor_height=np.float32(factors[0]),
        scale_factor_width=np.float32(factors[1]),
        align_corners=align_corners,
    )
    theirs = resize(nhwc(x), to, method="bilinear", align_corners=align_corners)
    assert relative_error(ours, nchw(theirs)) < 1e-6


@pytest.mark.parametrize("factor", [2, 7 / 8])
def test_resizes_by_an_exact_factor(factor):
    x = seeded("x", (1, 3, 16, 48))
    to = (int(16 * factor), int(48 * factor))
    factors = {f"scale_factor_{side}": np.float32(factor) for side in ("height", "width")}
    ours = run("upsample_bilinear", x=x, align_corners=False, **factors)
    assert relative_error(ours, nchw(resize(nhwc(x), to, method="bilinear"))) < 1e-6


def test_edges_that_go_on():
    x = seeded("x", (1, 3, 4, 5))
    ours = run("pad", x=x, pad=np.array([1, 1, 2, 0]), mode="replicate")
    assert np.array_equal(ours, np.array(mx.pad(mx.array(x), [(0, 0), (0, 0), (1, 1), (2, 0)], mode="edge")))


def test_normalization_activations_and_attention():
    x = seeded("x", (1, 5, 16))
    array = mx.array(x)
    normed = run("layer_norm", x=x, axes=[2], epsilon=np.float32(1e-6))
    assert relative_error(normed, np.array(mx.fast.layer_norm(array, None, None, 1e-6))) < 1e-6
    gain, offset = seeded("gain", (16,)), seeded("offset", (16,))
    affine = run("layer_norm", x=x, axes=[2], epsilon=np.float32(1e-6), gamma=gain, beta=offset)
    assert relative_error(affine, np.array(mx.fast.layer_norm(array, mx.array(gain), mx.array(offset), 1e-6))) < 1e-6
    columns = run("layer_norm", x=x.transpose(0, 2, 1)[:, :, None], axes=[1], epsilon=np.float32(1e-6))
    assert relative_error(columns[:, :, 0].transpose(0, 2, 1), normed) < 1e-6
    turned = x.transpose(0, 2, 1)[:, :, None]
    columns = run("layer_norm", x=turned, axes=[1], epsilon=np.float32(1e-6), gamma=gain, beta=offset)
    assert relative_error(columns[:, :, 0].transpose(0, 2, 1), affine) < 1e-6
    assert relative_error(run("exp", x=x), np.array(mx.exp(array))) < 1e-6
    assert relative_error(run("gelu", x=x, mode="EXACT"), np.array(nn.gelu(array))) < 1e-6
    assert relative_error(run("silu", x=x), np.array(nn.silu(array))) < 1e-6
    assert relative_error(run("softmax", x=x, axis=-1), np.array(mx.softmax(array, axis=-1))) < 1e-6
    query, key, value = (seeded(name, (1, 2, 9, 8)) for name in "qkv")
    ours = run("scaled_dot_product_attention", query=query, key=key, value=value)
    theirs = mx.fast.scaled_dot_product_attention(*map(mx.array, (query, key, value)), scale=8**-0.5)
    assert relative_error(ours, np.array(theirs)) < 1e-6


def test_slices_and_matrix_products():
    x = seeded("x", (1, 4, 6))
    ours = run("slice_by_index", x=x, begin=[0, 1, 2], end=[0, 3, 0], end_mask=[True, False, True])
    assert np.array_equal(ours, x[:, 1:3, 2:])
    ours = run("slice_by_index", x=x, begin=[0, 3, 2], end=[1, 4, 5], begin_mask=[True, True, False])
    assert np.array_equal(ours, x[:, :4, 2:5])
    y = seeded("y", (1, 4, 5))
    assert relative_error(run("matmul", x=x, y=y, transpose_x=True, transpose_y=False), x[0].T @ y[0][None]) < 1e-6


@pytest.mark.parametrize(
    ("operation", "inputs"),
    [
        ("conv", {"weight": np.ones((1, 1, 1, 1)), "strides": (1, 1), "groups": 1, "dilations": (1, 2)}),
        ("resample", {**READING, "align_corners": True}),
        ("resample", {**READING, "padding_mode": "constant"}),
        ("conv_transpose", {"weight": np.ones((1, 1, 3, 3)), "x": np.ones((1, 1, 2, 2)), "strides": (2, 2), "pad": []}),
        ("pad", {"x": np.ones((1, 1, 2, 2)), "pad": np.ones(4, int), "mode": "reflect"}),
        ("gelu", {"mode": "TANH_APPROXIMATION"}),
    ],
)
def test_what_is_not_computed_is_refused(operation, inputs):
    with pytest.raises(CheckpointError, match="evaluator does not know"):
        run(operation, **inputs)


def test_an_unknown_operation_is_named():
    operation = SimpleNamespace(op_type="einsum", name="somewhere", inputs={})
    with pytest.raises(CheckpointError, match="somewhere is of the type einsum"):
        evaluate._evaluate(operation, {})


def test_float16_rounds_every_result(raw_package):
    (function,) = read_package(raw_package).functions.values()
    image = generated_picture(SIZE)
    exact = run_function(function, image, float16=False).outputs["depth"]
    rounded = run_function(function, image, float16=True).outputs["depth"]
    assert np.array_equal(rounded, rounded.astype(np.float16).astype(np.float32))
    assert not np.array_equal(exact, exact.astype(np.float16).astype(np.float32))
    assert 0 < relative_error(rounded, exact) < 0.01


def test_structure_counts_what_keeps_off_the_neural_engine(half_package, full_package):
    half, full = (read_structure(read_package(path).functions["main"]) for path in (half_package, full_package))
    assert half.float32 == []
    assert "block0_norm1" in full.float32
    assert (half.largest_rank, half.largest_side) == (4, 256)
    assert list(half.operations.values()) == sorted(half.operations.values(), reverse=True)


def test_damaged_weights_are_refused(half_package, tmp_path):
    path = shutil.copytree(half_package, tmp_path / "Damaged.mlpackage")
    weights = path / "Data/com.apple.CoreML/weights/weight.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_package(path)
