import base64
import io
import re
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from support import seeded

from mlx_depth.camera import Camera
from mlx_depth.errors import OptionError
from mlx_depth.io.colormaps import colormap_table
from mlx_depth.kinds import DepthKind
from mlx_depth.result import DepthResult

INVERSE, RELATIVE, METRIC = DepthKind.RELATIVE_INVERSE, DepthKind.RELATIVE, DepthKind.METRIC
any_depth = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.floats(width=32))
INTRINSICS = np.array([[500, 0, 320], [0, 510, 240], [0, 0, 1]], np.float32)
EXTRINSICS = np.eye(4, dtype=np.float32)[:3] + np.array([0, 0, 0, 2], np.float32)


def make(depth, kind=INVERSE, **options) -> DepthResult:
    depth = np.asarray(depth, np.float32)
    defaults = {"model": "depth-anything-v2-small", "image_size": depth.shape, "input_size": (14, 28)}
    return DepthResult(depth, kind, **(defaults | options))


def test_import_is_light():
    code = (
        "import sys, mlx_depth.result, mlx_depth.io.save, mlx_depth.io.colormaps\n"
        "print({'matplotlib', 'torch', 'OpenEXR', 'tifffile'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


# Kinds, fields, validation


@pytest.mark.parametrize(
    ("kind", "unit", "larger_is_nearer", "description"),
    [
        (INVERSE, "", True, "relative inverse depth (unitless, larger = nearer)"),
        (RELATIVE, "", False, "relative depth (unitless, larger = farther)"),
        (METRIC, "m", False, "metric depth (metres, larger = farther)"),
    ],
)
def test_kinds(kind, unit, larger_is_nearer, description):
    assert (kind.unit, kind.larger_is_nearer, kind.description) == (unit, larger_is_nearer, description)
    assert make([[1]], kind).unit == unit
    assert DepthKind(kind.value) is kind


def test_camera_focal_length():
    assert Camera(INTRINSICS).focal_length_px == 505


@pytest.mark.parametrize(
    ("intrinsics", "extrinsics", "message"),
    [
        (np.eye(4), None, "intrinsics is not a float numpy array of shape (3, 3)"),
        (np.eye(3, dtype=int), None, "intrinsics is not a float"),
        (np.eye(3), np.eye(4), "extrinsics is not a float numpy array of shape (3, 4)"),
        (np.full((3, 3), np.nan), None, "intrinsics holds numbers that are not finite"),
    ],
)
def test_camera_is_checked(intrinsics, extrinsics, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        Camera(intrinsics, extrinsics)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": np.zeros((2, 3))}, "depth is float64: give a numpy array of float32."),
        ({"depth": [[1.0]]}, "depth is list"),
        ({"depth": np.zeros((1, 2, 3), np.float32)}, "depth has shape (1, 2, 3), image_size asks for (2, 3)"),
        ({"depth": np.zeros((0, 3), np.float32), "image_size": (0, 3)}, "depth has shape (0, 3)"),
        ({"image_size": (3, 2)}, "depth has shape (2, 3), image_size asks for (3, 2)"),
        ({"image": np.zeros((2, 3), np.uint8)}, "image has shape (2, 3), image_size asks for (2, 3, 3)"),
        ({"image": np.zeros((2, 3, 3), np.float32)}, "image is float32: give a numpy array of uint8."),
        ({"confidence": np.zeros((2, 2), np.float32)}, "confidence has shape (2, 2)"),
        ({"sky": np.zeros((2, 3), bool)}, "sky is bool"),
        ({"mask": np.zeros((2, 3), np.uint8)}, "mask is uint8: give a numpy array of bool."),
        ({"mask": np.zeros((2, 3), bool)}, "depth is finite where the mask is False: make it inf or NaN there."),
        ({"normals": np.zeros((2, 3), np.float32)}, "normals has shape (2, 3), image_size asks for (2, 3, 3)"),
        ({"focal_length_px": 0.0}, "focal_length_px 0.0 is not a finite number above 0"),
        ({"kind": METRIC, "max_depth": np.inf}, "max_depth inf is not a finite number above 0"),
        ({"max_depth": 20.0}, "max_depth is in metres, but the depth is relative_inverse"),
    ],
)
def test_fields_are_checked(options, message):
    fields = {"depth": np.zeros((2, 3), np.float32), "kind": INVERSE, "model": "m", "image_size": (2, 3)}
    with pytest.raises(OptionError, match=re.escape(message)):
        DepthResult(**(fields | {"input_size": (14, 14)} | options))


def test_depth_range():
    assert make([[np.nan, 3, -1], [np.inf, 2, 0]]).depth_range == (-1, 3)
    assert make([[np.nan, np.inf]]).depth_range is None


# Normalizing and colors


@given(any_depth, st.sampled_from(DepthKind))
def test_normalized_is_affine_and_one_is_nearest(depth, kind):
    near = make(depth, kind).normalized()
    assert near.dtype == np.float32
    assert near.shape == depth.shape
    assert ((near >= 0) & (near <= 1)).all()
    finite = depth[np.isfinite(depth)].astype(np.float64)
    span = np.ptp(finite) if finite.size else 0.0
    if span < 1e-37:  # constant, or so close to it that float32 keeps few digits
        return
    far = (finite - finite.min()) / span
    np.testing.assert_allclose(near[np.isfinite(depth)], far if kind.larger_is_nearer else 1 - far, rtol=0, atol=3e-7)


@pytest.mark.parametrize("kind", DepthKind)
@pytest.mark.parametrize("depth", [[[5, 5, 5]], [[np.nan, np.inf, -np.inf]], [[5, np.nan, np.inf]]])
def test_constant_depth_gives_zeros(depth, kind):
    np.testing.assert_array_equal(make(depth, kind).normalized(), np.zeros((1, 3)))


def test_pixels_without_depth():
    depth = [[1, 2, 3, np.inf, -np.inf, np.nan]]
    np.testing.assert_array_equal(make(depth).normalized(), [[0, 0.5, 1, 1, 0, 0]])
    np.testing.assert_array_equal(make(depth, METRIC).normalized(), [[1, 0.5, 0, 0, 1, 0]])


def test_limits():
    depth = [[0, 5, 10, 20, 3e38]]
    np.testing.assert_array_equal(make(depth, METRIC).normalized(limits=(0, 10)), [[1, 0.5, 0, 0, 0]])
    np.testing.assert_array_equal(make(depth).normalized(limits=(0, 20)), [[0, 0.25, 0.5, 1, 1]])


@pytest.mark.parametrize("limits", [(1.0, 1.0), (2.0, 1.0), (0.0, np.inf), (np.nan, 1.0)])
def test_limits_are_checked(limits):
    with pytest.raises(OptionError, match="give two finite, rising numbers"):
        make([[1, 2]]).normalized(limits=limits)


def upstream_entries(depth: np.ndarray) -> np.ndarray:
    """The two lines of upstream run.py and metric_depth/run.py before they paint."""
    return ((depth - depth.min()) / (depth.max() - depth.min()) * 255.0).astype(np.uint8)


def test_colorize_is_upstreams_picture():
    depth = np.maximum(seeded("inverse depth", (203, 307), 4.0), 0)
    picture = (matplotlib.colormaps["Spectral_r"](upstream_entries(depth))[:, :, :3] * 255).astype(np.uint8)
    np.testing.assert_array_equal(make(depth).colorize(), picture)


def test_colorize_is_upstreams_metric_picture_within_one_entry():
    depth = np.abs(seeded("metres", (203, 307), 4.0))
    table = colormap_table("gray_r")  # one entry a level, so that entries can be read back
    painted = make(depth, METRIC).colorize("gray_r")[..., 0].astype(int)
    upstream = table[255 - upstream_entries(depth)][..., 0].astype(int)
    assert np.abs(painted - upstream).max() <= 2  # matplotlib's gray steps by 0, 1 or 2
    spectral = matplotlib.colormaps["Spectral"](upstream_entries(depth), bytes=True)[..., :3].astype(int)
    assert np.abs(make(depth, METRIC).colorize().astype(int) - spectral).max() <= 6  # its steepest step


@pytest.mark.parametrize("kind", DepthKind)
def test_near_is_red(kind):
    near, far = make([[9, 1]] if kind.larger_is_nearer else [[1, 9]], kind).colorize()[0]
    np.testing.assert_array_equal(near, [158, 1, 66])
    np.testing.assert_array_equal(far, [94, 79, 162])


def test_side_by_side():
    photo = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    result = make([[1, 2, 3], [4, 5, 6]], image=photo)
    picture = result.side_by_side("viridis")
    np.testing.assert_array_equal(picture[:, :3], photo)
    np.testing.assert_array_equal(picture[:, 3:], result.colorize("viridis"))
    with pytest.raises(OptionError, match="side-by-side needs the photo"):
        make([[1, 2]]).side_by_side()


# Metres


@pytest.mark.parametrize("kind", [RELATIVE, METRIC])
def test_inverse(kind):
    result = make([[2, 0.5, np.inf, 0, -1, np.nan]], kind, focal_length_px=500.0).inverse()
    np.testing.assert_array_equal(result.depth, np.array([[0.5, 2, 0, np.nan, np.nan, np.nan]], np.float32))
    assert (result.kind, result.max_depth, result.focal_length_px) == (INVERSE, None, 500)
    assert result.depth.dtype == np.float32


def test_inverse_of_inverse_depth_is_refused():
    with pytest.raises(OptionError, match=re.escape("already inverse") + ".*fit_metric"):
        make([[1, 2]]).inverse()


@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=7),
        elements=st.floats(2**-20, 2**20, width=32),
    )
)
def test_metric_leads_back_from_inverse(metres):
    back = make(metres, METRIC, max_depth=80.0).inverse().metric(1)
    np.testing.assert_allclose(back.depth, metres, rtol=2e-7)
    assert back.kind is METRIC


def test_metric_of_inverse_depth():
    result = make([[1, 0, -0.5, -2, np.nan, np.inf]]).metric(2, 1)
    np.testing.assert_array_equal(result.depth, np.array([[1 / 3, 1, np.inf, np.inf, np.nan, 0]], np.float32))
    assert (result.kind, result.unit, result.max_depth) == (METRIC, "m", None)
    clipped = make([[1, 0, -0.5, -2, np.nan]]).metric(2, 1, max_depth=0.75)
    np.testing.assert_array_equal(clipped.depth, np.array([[1 / 3, 0.75, 0.75, 0.75, np.nan]], np.float32))
    assert clipped.max_depth == 0.75


@pytest.mark.parametrize("kind", [RELATIVE, METRIC])
def test_metric_of_depth(kind):
    result = make([[1, 0, 0.5, np.nan, np.inf]], kind).metric(2, -1, max_depth=50)
    np.testing.assert_array_equal(result.depth, np.array([[1, np.nan, np.nan, np.nan, 50]], np.float32))
    assert (result.kind, result.max_depth) == (METRIC, 50)


def test_the_old_range_does_not_outlive_a_rescale():
    assert make([[1, 2]], METRIC, max_depth=20.0).metric(3).max_depth is None


@pytest.mark.parametrize(("kind", "factor"), [(RELATIVE, 4), (INVERSE, 0.25)])
def test_metric_scales_the_translation_along(kind, factor):
    camera = make([[1, 2]], kind, camera=Camera(INTRINSICS, EXTRINSICS)).metric(4).camera
    np.testing.assert_array_equal(camera.extrinsics[:, 3], EXTRINSICS[:, 3] * factor)
    np.testing.assert_array_equal(camera.extrinsics[:, :3], EXTRINSICS[:, :3])
    np.testing.assert_array_equal(camera.intrinsics, INTRINSICS)


def test_a_shift_leaves_no_extrinsics():
    camera = make([[1, 2]], camera=Camera(INTRINSICS, EXTRINSICS)).metric(4, 1).camera
    assert camera.extrinsics is None
    np.testing.assert_array_equal(camera.intrinsics, INTRINSICS)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0,), {}, "scale 0 is not a finite number above 0"),
        ((-1.5,), {}, "scale -1.5 is not"),
        ((np.nan,), {}, "scale nan is not"),
        ((1, np.inf), {}, "shift inf is not a finite number"),
        ((1,), {"max_depth": 0}, "max_depth 0 is not"),
    ],
)
def test_metric_checks_its_numbers(arguments, options, message):
    with pytest.raises(OptionError, match=message):
        make([[1, 2]]).metric(*arguments, **options)


def known_points(metres: np.ndarray, pixels) -> list[tuple[float, float, float]]:
    return [(x, y, float(metres[y, x])) for x, y in pixels]


@given(st.floats(0.05, 5), st.floats(0.01, 2), st.sampled_from(DepthKind))
def test_fit_metric_finds_the_line(scale, shift, kind):
    depth = 1 + np.abs(seeded("fit", (6, 9)))
    line = scale * depth.astype(np.float64) + shift
    metres = 1 / line if kind is INVERSE else line
    fitted = make(depth, kind).fit_metric(known_points(metres, [(0, 0), (8, 5), (3, 2), (5, 4)]), max_depth=999)
    np.testing.assert_allclose(fitted.depth, metres, rtol=1e-5)
    assert (fitted.kind, fitted.max_depth) == (METRIC, 999)


@pytest.mark.parametrize("kind", DepthKind)
def test_fit_metric_is_least_squares(kind):
    depth = np.abs(seeded("least squares", (6, 9))) + 0.5
    pixels = [(x, y) for x in range(0, 9, 2) for y in range(0, 6, 2)]
    noise = 1 + 0.05 * seeded("noise", (6, 9))
    line = 2.0 * depth + 1
    points = known_points((1 / line if kind is INVERSE else line) * noise, pixels)
    at_points = np.array([depth[y, x] for x, y in pixels], np.float64)
    target = np.array([point[2] for point in points])
    scale, shift = np.polyfit(at_points, 1 / target if kind is INVERSE else target, 1)
    expected = make(depth, kind).metric(scale, shift)
    np.testing.assert_allclose(make(depth, kind).fit_metric(points).depth, expected.depth, rtol=1e-6)


def test_the_mask_outlives_a_change_of_kind():
    masked = DepthResult(
        np.array([[2.0, np.inf, 4.0]], np.float32),
        METRIC,
        model="m",
        image_size=(1, 3),
        input_size=(14, 14),
        mask=np.array([[True, False, True]]),
    )
    np.testing.assert_array_equal(masked.inverse().depth, np.array([[0.5, np.nan, 0.25]], np.float32))
    np.testing.assert_array_equal(masked.metric(2, max_depth=5).depth, np.array([[4, np.inf, 5]], np.float32))
    np.testing.assert_array_equal(masked.inverse().metric(1).depth, masked.depth)


def test_points():
    intrinsics = np.array([[2, 0, 1], [0, 4, 0], [0, 0, 1]], np.float32)
    fields = {"model": "m", "image_size": (2, 3), "input_size": (14, 14)}
    depth = np.array([[2, 2, 2], [8, np.inf, 4]], np.float32)
    result = DepthResult(depth, METRIC, camera=Camera(intrinsics), **fields)
    expected = [[[-1, 0, 2], [0, 0, 2], [1, 0, 2]], [[-4, 2, 8], [np.nan] * 3, [2, 1, 4]]]
    np.testing.assert_array_equal(result.points, np.array(expected, np.float32))
    with pytest.raises(OptionError, match=r"points need the camera, .*: give one with mlx_depth\.to_scene"):
        _ = DepthResult(depth, METRIC, **fields).points
    with pytest.raises(OptionError, match=r"points need depth, and this is inverse depth .*: make metres of it"):
        _ = result.inverse().points


def test_fit_metric_reads_column_then_row_and_takes_arrays():
    depth = np.arange(6, dtype=np.float32).reshape(2, 3) + 1
    points = np.array([[2.2, 0.0, 30.0], [0.4, 1.0, 40.0]])  # depth 3 and 4
    np.testing.assert_allclose(make(depth, RELATIVE).fit_metric(points).depth, depth * 10, rtol=1e-6)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "0 known points do not make a fit: give two or more."),
        ([(0, 0, 1)], "1 known points do not make a fit"),
        ([(0, 0), (1, 1)], "(0, 0) is no known point: give (column, row, metres)"),
        ([(0, 0, 1), (1, 0, 0)], "(1, 0, 0) is no known point"),
        ([(0, 0, 1), (1, 0, np.inf)], "(1, 0, inf) is no known point"),
        ([(np.nan, 0, 1), (1, 0, 1)], "(nan, 0, 1) is no known point"),
        ([(0, 0, 1), (0, 3, 2)], "the known point (0, 3, 2) is outside the image of 4 columns and 2 rows"),
        ([(0, 0, 1), (-1, 0, 2)], "the known point (-1, 0, 2) is outside"),
        ([(0, 0, 1), (2, 0, 2)], "no depth at the known point (2, 0, 2): choose another"),
        ([(0, 0, 1), (3, 0, 2)], "the known points all have the same depth: add one"),
        ([(0, 0, 1), (1, 0, 2)], "the known points contradict the depth map"),
        ([(0, 0, 9), (1, 0, 8.9), (0, 1, 0.1)], "puts known point 0 behind the camera or beyond infinity"),
    ],
)
def test_fit_metric_says_what_is_wrong(points, message):
    depth = [[1, 2, np.nan, 1], [5, 6, 7, 8]]
    with pytest.raises(OptionError, match=re.escape(message)):
        make(depth).fit_metric(points)


# Display


def test_repr():
    assert repr(make(np.linspace(0.02, 9.81, 12).reshape(3, 4))) == (
        "DepthResult(3×4, relative inverse depth (unitless, larger = nearer), 0.02–9.81, "
        "model='depth-anything-v2-small')"
    )
    assert repr(make([[1.5, 20]], METRIC, model="m")) == (
        "DepthResult(1×2, metric depth (metres, larger = farther), 1.5–20 m, model='m')"
    )
    assert "no finite values" in repr(make([[np.nan]]))


def notebook_picture(result: DepthResult) -> Image.Image:
    page = result._repr_html_()
    (data,) = re.findall(r"base64,([^\"]+)", page)
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize(
    ("size", "with_photo", "shown"),
    [
        ((700, 1000), False, (914, 640)),
        ((700, 1000), True, (1024, 358)),
        ((1000, 700), True, (896, 640)),
        ((70, 100), True, (200, 70)),
    ],
)
def test_notebook_picture_is_large_enough_to_see(size, with_photo, shown):
    depth = np.linspace(0, 1, size[0] * size[1], dtype=np.float32).reshape(size)
    photo = np.zeros((*size, 3), np.uint8) if with_photo else None
    with notebook_picture(make(depth, image=photo)) as picture:
        assert (picture.format, picture.size) == ("PNG", shown)
        assert (picture.getpixel((5, 5)) == (0, 0, 0)) == with_photo


def test_notebook_picture_is_stored_once():
    """IPython stores every form that an object offers."""
    forms = [name for name in dir(DepthResult) if name.startswith("_repr_")]
    assert forms == ["_repr_html_"]


def test_notebook_html_is_escaped():
    page = make([[1, 2]], model="<script>")._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


# As an array


def test_numpy_takes_the_result_as_its_depth():
    result = make([[1.5, 2], [3, 4]])
    assert np.asarray(result) is result.depth
    assert np.asarray(result, np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.asarray(result, np.float64), result.depth)
    copied = np.array(result)
    copied[0, 0] = 9
    assert result.depth[0, 0] == 1.5
    assert np.max(result) == 4
    assert np.shares_memory(np.asarray(result, copy=False), result.depth)
    with pytest.raises(ValueError, match="copy"):
        np.asarray(result, np.float64, copy=False)


def test_matplotlib_shows_the_result():
    from matplotlib.figure import Figure

    shown = Figure().subplots().imshow(make([[1, 2], [3, 4]]))
    np.testing.assert_array_equal(shown.get_array(), [[1, 2], [3, 4]])


def test_show_opens_the_picture(monkeypatch):
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda image: shown.append(np.asarray(image)))
    result = make([[1, 2]])
    result.show()
    np.testing.assert_array_equal(shown[0], result.colorize())


def test_save_is_a_shortcut(tmp_path):
    path = make([[1, 2]]).save(tmp_path / "depth.npy")
    np.testing.assert_array_equal(np.load(path), [[1, 2]])
