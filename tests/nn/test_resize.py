"""Level 0: resizing against torch, OpenCV and Pillow.

White noise is the hardest input: its neighbours differ by the whole range, so a wrong coordinate shows in full.
Gate: 1e-5 relative, in float32, against the float64 reference.
"""

import sys

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import relative_error, require, seeded

from mlx_depth.errors import OptionError
from mlx_depth.linux_cpu import kernels
from mlx_depth.nn import resize as module
from mlx_depth.nn.resize import resize, resize_pillow, resize_rows

GATE = 1e-5

SIZES = [
    ((37, 37), (74, 74)),
    ((37, 37), (28, 39)),
    ((37, 52), (29, 61)),
    ((19, 33), (33, 19)),
    ((50, 70), (7, 211)),
    ((1, 1), (5, 3)),
    ((1, 9), (4, 1)),
    ((8, 5), (1, 1)),
    ((3, 2), (2, 3)),
]


def run(x, size, **options):
    return np.array(resize(mx.array(x), size, **options))


def torch_resize(x, size, method, **options):
    torch = require("reference", "torch")
    nchw = torch.tensor(x).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(nchw, size=size, mode=method, **options)
    return resized.permute(0, 2, 3, 1).numpy()


def noise(shape, levels=256):
    return np.random.RandomState(14).randint(0, levels, shape).astype(np.uint8)


@pytest.mark.parametrize(("in_size", "out_size"), SIZES)
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_equals_torch(in_size, out_size, method, align_corners):
    x = seeded("torch", (2, *in_size, 3))
    reference = torch_resize(x.astype(np.float64), out_size, method, align_corners=align_corners)
    assert relative_error(run(x, out_size, method=method, align_corners=align_corners), reference) <= GATE


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_equals_torch_in_float32_on_a_smooth_map(method, align_corners):
    # torch rounds coordinates to float32: 4e-5 on white noise of this size, but feature maps are smooth.
    x = resize(mx.array(seeded("smooth", (1, 37, 49, 2))), (296, 392), method="bicubic")
    reference = torch_resize(np.array(x), (518, 686), method, align_corners=align_corners)
    ours = run(x, (518, 686), method=method, align_corners=align_corners)
    assert relative_error(ours, reference) <= GATE


@pytest.mark.parametrize(("in_size", "out_size"), SIZES)
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_antialias_equals_torch(in_size, out_size, method):
    x = seeded("antialias", (1, *in_size, 2))
    reference = torch_resize(x.astype(np.float64), out_size, method, antialias=True)
    assert relative_error(run(x, out_size, method=method, antialias=True), reference) <= GATE


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 90)] * 4))
def test_nearest_equals_torch(sides):
    in_size, out_size = sides[:2], sides[2:]
    x = seeded("nearest", (1, *in_size, 1))
    np.testing.assert_array_equal(run(x, out_size, method="nearest"), torch_resize(x, out_size, "nearest"))


@pytest.mark.parametrize("grid", [(37, 37), (37, 28), (28, 39), (1, 52), (74, 18)])
def test_explicit_scale_equals_torch(grid):
    torch = require("reference", "torch")
    x = seeded("position", (1, 37, 37, 16))
    scale = tuple((side + 0.1) / 37 for side in grid)  # DINOv2's rule
    nchw = torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2)
    reference = torch.nn.functional.interpolate(nchw, scale_factor=scale, mode="bicubic")
    reference = reference.permute(0, 2, 3, 1).numpy()
    assert relative_error(run(x, grid, method="bicubic", scale=scale), reference) <= GATE


@pytest.mark.parametrize(
    ("in_size", "out_size"),
    [((480, 640), (518, 686)), ((1080, 1920), (518, 924)), ((61, 33), (970, 518)), ((5, 1), (14, 14))],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_opencv_cubic(in_size, out_size, dtype):
    cv2 = require("reference", "cv2")
    pixels = noise((*in_size, 3))
    uses_ipp = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)  # Intel's float32 routine has coordinates of its own; the authors' images are float64
    reference = cv2.resize((pixels / 255.0).astype(dtype), out_size[::-1], interpolation=cv2.INTER_CUBIC)
    cv2.ipp.setUseIPP(uses_ipp)
    ours = run(pixels[None], out_size, method="opencv_cubic")[0] / 255
    assert relative_error(ours, reference) <= GATE


@pytest.mark.parametrize(
    ("in_size", "out_size"),
    [((480, 640), (378, 504)), ((300, 200), (100, 50)), ((97, 131), (96, 131)), ((41, 7), (2, 1))],
)
def test_opencv_area(in_size, out_size):
    cv2 = require("reference", "cv2")
    pixels = noise((*in_size, 3)) / 255.0
    reference = cv2.resize(pixels, out_size[::-1], interpolation=cv2.INTER_AREA)
    assert relative_error(run(pixels[None].astype(np.float32), out_size, method="opencv_area")[0], reference) <= GATE


@pytest.mark.parametrize(
    ("in_size", "out_size"),
    [
        ((480, 640), (518, 686)),
        ((1080, 1920), (518, 924)),
        ((33, 517), (28, 518)),
        ((9, 1), (1, 14)),
        ((7, 5), (7, 9)),
    ],
)
@pytest.mark.parametrize("levels", [2, 256])
@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
def test_pillow_is_equal_bit_for_bit(in_size, out_size, levels, method):
    pixels = noise((*in_size, 3), levels) * np.uint8(255 // (levels - 1))
    # One axis at a time: the order that Pillow picks for both depends on its version.
    filter_of_pillow = Image.Resampling[method.upper()]
    reference = Image.fromarray(pixels).resize((out_size[1], in_size[0]), filter_of_pillow)
    reference = np.asarray(reference.resize(out_size[::-1], filter_of_pillow))
    np.testing.assert_array_equal(
        np.array(resize_pillow(mx.array(pixels)[None], out_size, method=method))[0], reference
    )


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("dtype", "gate"),
    [(mx.float32, 1e-6), (mx.float16, 2e-3), (mx.bfloat16, 1.6e-2)],
    ids=["fp32", "fp16", "bf16"],
)
def test_dense_and_taps_agree(monkeypatch, dtype, gate, align_corners):
    # The gates are two roundings of the values and one of the weights: 4 × the unit roundoff of the type.
    x = mx.array(seeded("forms", (2, 23, 31, 9))).astype(dtype)
    results = []
    for dense in (True, False):
        monkeypatch.setattr(module, "_prefers_dense", lambda x, rule, dense=dense: dense)
        result = resize(x, (41, 17), align_corners=align_corners)
        assert result.dtype == dtype
        results.append(np.array(result.astype(mx.float32)))
    assert relative_error(*results) <= gate


def test_the_form_follows_the_stated_cost_rule():
    def prefers_dense(channels, dtype, in_size, out_size):
        rule = module._AxisRule(in_size, out_size, "bilinear", True, False, None)
        return module._prefers_dense(mx.zeros((1, in_size, 1, channels), dtype), rule)

    assert prefers_dense(32, mx.float16, 592, 1036)
    assert not prefers_dense(32, mx.float32, 592, 1036)
    assert not prefers_dense(3, mx.float16, 592, 1036)
    assert not prefers_dense(32, mx.float16, 3000, 518)


ROWS_TYPES = [(mx.float32, 3, 1e-6), (mx.float16, 3, 1e-3), (mx.float16, 8, 1e-3)]


@pytest.mark.parametrize(("dtype", "channels", "gate"), ROWS_TYPES)
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@given(sides=st.tuples(*[st.integers(1, 20)] * 4), data=st.data())
def test_rows_of_a_resize(dtype, channels, gate, method, sides, data):
    """Taps and, with eight channels in half precision, a part of the dense matrix."""
    H, W, height, width = sides
    start = data.draw(st.integers(0, height - 1))
    stop = data.draw(st.integers(start + 1, height))
    x = mx.array(seeded("x", (2, H, W, channels))).astype(dtype)
    options = {"method": method, "align_corners": data.draw(st.booleans())}
    rows = resize_rows(x, (height, width), (start, stop), **options)
    assert (rows.shape, rows.dtype) == ((2, stop - start, width, channels), dtype)
    whole = np.array(resize(x, (height, width), **options).astype(mx.float32))
    error = np.abs(np.array(rows.astype(mx.float32)) - whole[:, start:stop]).max()
    assert error <= gate * np.abs(np.array(x.astype(mx.float32))).max()


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "opencv_cubic"])
@pytest.mark.parametrize("size", [(11, 14), (29, 31), (12, 40)])
def test_growing_in_tiles(monkeypatch, size, method):
    """A Linux CPU grows maps some rows at a time; the tiles join without a seam."""
    x = mx.array(seeded("tiles", (2, 11, 13, 5)))
    whole = resize(x, size, method=method)
    monkeypatch.setattr(kernels, "CACHE_BYTES", 1)
    calls = []
    monkeypatch.setattr(module, "resize_rows", lambda *x, **more: calls.append(x) or resize_rows(*x, **more))
    assert relative_error(resize(x, size, method=method), whole) <= 1e-6
    assert len(calls) == (size[0] if sys.platform == "linux" else 0)


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "opencv_cubic", "opencv_area"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_an_unchanged_size_is_the_identity(method, dtype):
    x = mx.array(seeded("identity", (1, 5, 9, 12))).astype(dtype)
    assert mx.array_equal(resize(x, (5, 9), method=method), x)


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "opencv_cubic", "opencv_area"])
def test_integers_become_float32_and_nearest_keeps_them(method):
    x = mx.array(noise((1, 6, 8, 3)))
    assert resize(x, (3, 4), method=method).dtype == mx.float32
    assert resize(x, (6, 8), method=method).dtype == mx.float32
    assert resize(x, (3, 4), method="nearest").dtype == mx.uint8


def test_a_compiled_caller_leaves_usable_constants_behind():
    x = mx.array(seeded("compiled", (1, 11, 13, 8)))
    compiled = mx.compile(lambda x: resize(x, (29, 31), method="bicubic"))(x)
    assert relative_error(compiled, resize(x, (29, 31), method="bicubic")) <= 1e-6


@pytest.mark.parametrize(
    ("shape", "size", "options", "message"),
    [
        ((4, 4, 3), (2, 2), {}, "add or merge axes"),
        ((1, 4, 4, 3), (0, 2), {}, "at least 1"),
        ((1, 4, 4, 3), (2, 2), {"method": "nearest", "align_corners": True}, "use bilinear or bicubic"),
        ((1, 4, 4, 3), (2, 2), {"align_corners": True, "antialias": True}, "give one of them"),
        ((1, 4, 4, 3), (2, 2), {"scale": (0.5, 0.5)}, "use bicubic"),
        (
            (1, 4, 4, 3),
            (2, 2),
            {"method": "bicubic", "antialias": True, "scale": (0.5, 0.5)},
            "give one of them",
        ),
        ((1, 4, 4, 3), (2, 5), {"method": "opencv_area"}, "use opencv_cubic"),
    ],
)
def test_options_that_cannot_work(shape, size, options, message):
    with pytest.raises(OptionError, match=message):
        resize(mx.zeros(shape), size, **options)


def test_pillow_needs_uint8():
    with pytest.raises(OptionError, match="call resize"):
        resize_pillow(mx.zeros((1, 4, 4, 3)), (2, 2))
