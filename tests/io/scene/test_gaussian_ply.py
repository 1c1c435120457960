import dataclasses

import numpy as np
import plyfile
import pytest
import scenes
from scene_results import boxes, gaussians
from support import require, seeded

from mlx_depth.errors import OptionError, SaveError
from mlx_depth.io.scene.gaussian_ply import write_gaussian_ply

SOME = gaussians(50)
HEAD = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
TAIL = ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]


def write(path, values=SOME, **options) -> np.ndarray:
    """Written, and read by plyfile."""
    write_gaussian_ply(path, **values.arrays(), facts={"kind": "metric"}, **options)
    ply = plyfile.PlyData.read(path)
    assert ply.comments == ["kind metric"]
    assert all(kind == "<f4" for _, kind in ply["vertex"].data.dtype.descr)
    return ply["vertex"].data


def columns(data: np.ndarray, *names: str) -> np.ndarray:
    return np.stack([data[name] for name in names], axis=1)


@pytest.mark.parametrize(("degree", "rest"), [(None, 24), (0, 0), (1, 9), (2, 24), (3, 45)])
def test_properties_in_their_order(degree, rest, tmp_path):
    names = write(tmp_path / "scene.ply", degree=degree).dtype.names
    assert list(names) == [*HEAD, *(f"f_rest_{number}" for number in range(rest)), *TAIL]


def test_a_reader_of_splats_gets_the_gaussians_back(tmp_path):
    """exp of the scales, sigmoid of the opacity, w x y z: as in GaussianModel.load_ply of the paper's authors."""
    data = write(tmp_path / "scene.ply")
    np.testing.assert_array_equal(columns(data, "x", "y", "z"), SOME.means)
    np.testing.assert_array_equal(columns(data, "nx", "ny", "nz"), 0)
    np.testing.assert_allclose(np.exp(columns(data, "scale_0", "scale_1", "scale_2")), SOME.scales, rtol=1e-6)
    np.testing.assert_array_equal(columns(data, "rot_0", "rot_1", "rot_2", "rot_3"), SOME.rotations)
    np.testing.assert_allclose(1 / (1 + np.exp(-data["opacity"])), SOME.opacities, rtol=1e-6)
    np.testing.assert_array_equal(columns(data, "f_dc_0", "f_dc_1", "f_dc_2"), SOME.harmonics[:, :, 0])


@pytest.mark.parametrize(("degree", "terms"), [(None, 8), (1, 3), (3, 15)])
def test_the_rest_is_red_then_green_then_blue(degree, terms, tmp_path):
    data = write(tmp_path / "scene.ply", degree=degree)
    rest = columns(data, *(f"f_rest_{number}" for number in range(3 * terms)))
    # load_ply reshapes to (N, 3, terms).
    rest = rest.reshape(len(rest), 3, terms)
    shared = min(terms, 8)
    np.testing.assert_array_equal(rest[:, :, :shared], SOME.harmonics[:, :, 1 : 1 + shared])
    np.testing.assert_array_equal(rest[:, :, shared:], 0)


def test_higher_degrees_than_viewers_read_are_left_out(tmp_path):
    assert "f_rest_44" in write(tmp_path / "scene.ply", gaussians(5, terms=25)).dtype.names
    assert "f_rest_45" not in write(tmp_path / "again.ply", gaussians(5, terms=25)).dtype.names


def test_extremes_stay_finite(tmp_path):
    values = dataclasses.replace(
        gaussians(4), opacities=np.array([0, 1e-30, 1 - 2**-24, 1], np.float32), scales=np.zeros((4, 3), np.float32)
    )
    data = write(tmp_path / "scene.ply", values)
    assert np.isfinite(columns(data, "opacity", "scale_0")).all()
    np.testing.assert_allclose(data["opacity"], np.array([-1, -1, 1, 1]) * 24 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("degree", [-1, 4, 1.5])
def test_degrees_are_checked(degree, tmp_path):
    with pytest.raises(OptionError, match=f"degree {degree} is not 0, 1, 2 or 3, which viewers read"):
        write_gaussian_ply(tmp_path / "scene.ply", **SOME.arrays(), degree=degree, facts={})
    assert list(tmp_path.iterdir()) == []


# The scene's own


def scene_with_gaussians(**changes):
    """One for each pixel, in their order."""
    rendered = scenes.boxes()
    return boxes(rendered, gaussians=gaussians(rendered.depth.size), **changes)


def test_same_file_as_the_reference(tmp_path):
    torch = require("reference", "torch")
    reference = require("reference", "depth_anything_3.utils.gsply_helpers")
    scene = scene_with_gaussians()
    # A batch of one; the settings of export_to_gs_ply.
    batch = type("Batch", (), {name: torch.from_numpy(v)[None] for name, v in scene.gaussians.arrays().items()})
    reference.save_gaussian_ply(
        gaussians=batch,
        save_path=str(tmp_path / "theirs.ply"),
        ctx_depth=torch.from_numpy(scene.depth)[..., None],
        shift_and_scale=False,
        save_sh_dc_only=True,
        gs_views_interval=1,
        inv_opacity=True,
        prune_by_depth_percent=0.9,
        prune_border_gs=True,
        match_3dgs_mcmc_dev=False,
    )
    theirs = plyfile.PlyData.read(tmp_path / "theirs.ply")["vertex"].data
    ours = plyfile.PlyData.read(scene.save_gaussians(tmp_path / "ours.ply", degree=0))["vertex"].data
    assert ours.dtype == theirs.dtype
    assert len(ours) == len(theirs) > 1000
    for name in ours.dtype.names:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-6, atol=2e-6, err_msg=name)
    # With all harmonics the reference calls them by the same names in the same order, too.
    reference.save_gaussian_ply(
        gaussians=batch,
        save_path=str(tmp_path / "theirs.ply"),
        ctx_depth=torch.from_numpy(scene.depth)[..., None],
        save_sh_dc_only=False,
        prune_by_depth_percent=1.0,
        prune_border_gs=False,
    )
    theirs = plyfile.PlyData.read(tmp_path / "theirs.ply")["vertex"].data
    path = scene.save_gaussians(tmp_path / "all.ply", border=0, depth_quantile=1)
    ours = plyfile.PlyData.read(path)["vertex"].data
    assert ours.dtype == theirs.dtype
    for name in ours.dtype.names:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-6, atol=2e-6, err_msg=name)


def test_save_chooses_by_format(tmp_path):
    scene = scene_with_gaussians()
    one, other = tmp_path / "one.ply", tmp_path / "other.ply"
    assert scene.save(one, format="gaussians").read_bytes() == scene.save_gaussians(other).read_bytes()
    assert "kind metric" in plyfile.PlyData.read(one).comments


def test_borders_of_small_maps(tmp_path):
    """8/256 of 48 and 64 pixels are 1 and 2; of fewer than 32 none."""
    scene = scene_with_gaussians()
    path = scene.save_gaussians(tmp_path / "scene.ply", depth_quantile=1)
    assert len(plyfile.PlyData.read(path)["vertex"].data) == 3 * (48 - 2) * (64 - 4)
    depth = np.ones((1, 20, 30), np.float32)
    small = boxes(
        depth=depth,
        intrinsics=scene.intrinsics[:1],
        extrinsics=scene.extrinsics[:1],
        images=[np.zeros((20, 30, 3), np.uint8)],
        confidence=None,
        sky=None,
        gaussians=gaussians(600),
    )
    assert len(plyfile.PlyData.read(small.save_gaussians(tmp_path / "small.ply"))["vertex"].data) == 600


@pytest.mark.parametrize(
    ("changes", "options", "error", "message"),
    [
        ({"gaussians": None}, {}, OptionError, "this scene has no Gaussians, which its model does not compute"),
        ({"gaussians": gaussians(7)}, {}, OptionError, "use save_gaussians(..., border=0, depth_quantile=1)"),
        ({}, {"border": -0.1}, OptionError, "border -0.1 is not within 0..0.5: give a share."),
        ({}, {"depth_quantile": 1.1}, OptionError, "depth_quantile 1.1 is not within 0..1: give a share."),
        ({}, {"border": 0.5}, SaveError, "no Gaussian is left to write: lower border or raise depth_quantile."),
    ],
)
def test_what_cannot_be_written(changes, options, error, message, tmp_path):
    with pytest.raises(error) as caught:
        dataclasses.replace(scene_with_gaussians(), **changes).save_gaussians(tmp_path / "scene.ply", **options)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_gaussians_that_belong_to_no_pixel(tmp_path):
    scene = boxes(gaussians=gaussians(7))
    path = scene.save_gaussians(tmp_path / "scene.ply", border=0, depth_quantile=1)
    assert len(plyfile.PlyData.read(path)["vertex"].data) == 7


def test_views_are_pruned_by_their_own_depth(tmp_path):
    depth = np.abs(seeded("depth", (3, *scenes.SIZE))) + np.float32(1)
    depth[0] *= 100  # farther than all of the others
    depth[1, :10] = np.nan  # none of these is kept
    means = np.zeros((depth.size, 3), np.float32)
    means[:, 0] = np.arange(depth.size)  # says where each one comes from
    scene = boxes(depth=depth, gaussians=dataclasses.replace(gaussians(depth.size), means=means))
    path = scene.save_gaussians(tmp_path / "scene.ply", border=0, depth_quantile=0.25)
    kept = plyfile.PlyData.read(path)["vertex"].data["x"].astype(int)
    np.testing.assert_array_equal(np.bincount(kept // depth[0].size), [48 * 64 / 4, 38 * 64 / 4, 48 * 64 / 4])
    for view in range(3):
        own = np.zeros(depth.shape, bool)
        own.reshape(-1)[kept] = True
        assert depth[view][own[view]].max() < np.nanmin(depth[view][~own[view]])
