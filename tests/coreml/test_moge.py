"""Packages of MoGe-2's network: equal to the MLX network in every output, and enough for an app to find metres."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from coreml.tiny import SIZE, changed, tiny_moge
from mlx_depth_convert.coreml import check_package, export_coreml, package
from mlx_depth_convert.coreml.agreement import GATES, compare
from mlx_depth_convert.coreml.check import expected_outputs
from mlx_depth_convert.coreml.emitters import fold
from mlx_depth_convert.coreml.emitters.moge import MoGeEmitter
from mlx_depth_convert.coreml.evaluate import read_package, run_function
from mlx_depth_convert.coreml.options import ExportOptions, check_options
from mlx_depth_convert.pictures import generated_picture
from support import relative_error, require

from mlx_depth.checkpoints.checkpoint import build_network, write_checkpoint
from mlx_depth.cli import main
from mlx_depth.errors import OptionError
from mlx_depth.geometry.focal_shift import fit_focal_and_shift
from mlx_depth.models.base import Photo
from mlx_depth.models.families import FAMILIES
from mlx_depth.registry import MODELS

require("coreml", "coremltools")

pytestmark = pytest.mark.usefixtures("quick_exports")

OUTPUTS = ["depth", "points", "mask", "normals", "scale"]


def seeing():
    """A checkpoint whose points are mostly where the pixels are, so that they fit a camera."""
    checkpoint = tiny_moge()
    place, take, give = (
        np.array(checkpoint.weights[f"{path}.weight"])
        for path in ("neck.levels.4.input", "points_head.levels.4.input", "points_head.read_out")
    )
    place[:2, 0, 0] = 4 * np.eye(2)
    take[:2, 0, 0] = 2 * np.eye(2, take.shape[-1])
    give *= np.array([0.02, 0.02, 0.3], np.float32)[:, None, None, None]
    give[:2, 0, 0, :2] += 0.3 * np.eye(2)
    return changed(
        checkpoint,
        neck__levels__4__input__weight=place,
        points_head__levels__4__input__weight=take,
        points_head__read_out__weight=give,
    )


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """Float16, for the Neural Engine."""
    return export_coreml(seeing(), tmp_path_factory.mktemp("half"), sizes=SIZE)


def test_float32_package_by_the_command_equals_the_mlx_network(tmp_path, capsys):
    folder = write_checkpoint(tiny_moge(normals=False), tmp_path / "tiny", source={}, card="")
    out = tmp_path / "Points.mlpackage"
    options = ["--sizes", "70x98", "--precision", "float32", "--layout", "gpu"]
    assert main(["coreml", str(folder), str(out), *options]) == 0
    assert main(["coreml-check", str(out), str(folder)]) == 0
    said = capsys.readouterr().out
    assert "passed: error at most 1e-05" in said
    assert all(f"{name} error" in said for name in ("points", "mask", "scale"))
    interface = read_package(out).interface("main")
    assert list(interface) == ["image", "depth", "points", "mask", "scale"]
    assert interface["points"] == ("FLOAT32", 1, 3, *SIZE)


def test_float16_package_agrees_in_every_output(half):
    report = check_package(half, seeing())
    assert report.passed, report.as_text()
    (function,) = report.functions
    assert list(function.final.extras) == OUTPUTS[1:]
    assert function.float32.extras["scale"].relative < 1e-3
    assert function.final.numbers == ("scale",)
    assert function.structure.largest_rank == 4
    assert {name.split("_cast")[0] for name in function.structure.kept} == {"scale_log", "scale_exp", "scale"}


def test_interface_and_metadata_say_what_an_app_has_to_do(half):
    program = read_package(half)
    assert program.interface("main") == {
        "image": ("RGB", *SIZE),
        "depth": ("GRAYSCALE_FLOAT16", *SIZE),
        "points": ("FLOAT16", 1, 3, *SIZE),
        "mask": ("GRAYSCALE_FLOAT16", *SIZE),
        "normals": ("FLOAT16", 1, 3, *SIZE),
        "scale": ("FLOAT32", 1),
    }
    texts = {output.name: output.shortDescription for output in program.description.output}
    assert "without a unit until its shift is fitted" in texts["depth"]
    assert "scale * (x, y, z + shift)" in texts["points"]
    assert "Where it is 0.5 or less" in texts["mask"]
    facts = program.facts("mlx_depth.")
    assert (facts["output"], facts["unit"]) == ("raw", "")
    assert "fits the shift of z" in facts["note"]


def test_an_app_finds_the_metres_and_the_camera_that_mlx_depth_finds(half):
    """By what the README says, from the outputs of the package alone."""
    checkpoint, pixels = seeing(), generated_picture(SIZE)
    height, width = SIZE
    found = run_function(read_package(half).functions["main"], pixels, float16=True).outputs
    points, seen = found["points"][0].transpose(1, 2, 0), found["mask"][0, 0] > 0.5
    diagonal = np.hypot(width, height)
    down, across = np.mgrid[:height, :width]
    plane = np.stack([2 * across + 1 - width, 2 * down + 1 - height], axis=-1) / diagonal
    focal, shift = fit_focal_and_shift(points[seen], plane[seen])
    metres = found["scale"][0] * (points[..., 2] + shift)

    network = build_network(checkpoint, dtype=mx.float32, expand=True)
    outputs = network(checkpoint.spec.processor(pixels, input_size=SIZE))
    theirs = FAMILIES["moge"].postprocess(checkpoint.spec.config, outputs, checkpoint.spec.processor, Photo(SIZE, SIZE))
    valid = np.array(theirs.mask)
    both = valid & seen & (metres > 0)
    assert 0.2 < valid.mean() < 0.9
    assert both.sum() > 0.99 * valid.sum()
    assert relative_error(metres[both], np.array(theirs.depth)[both]) < 0.01
    assert focal * diagonal / 2 == pytest.approx(float(theirs.intrinsics[0, 0]), rel=0.01)


# Mutations


def _zeros_beyond_the_border(patch):
    def padded(self, x, path, name):
        return self.convolve(x, fold.convolution(self.weights, path), name, pad=1)

    patch.setattr(MoGeEmitter, "convolve_edge", padded)


def _rows_for_columns(patch):
    original = fold.fold_plane

    def swapped(weights, path, size, aspect):
        rows, columns = original(weights, path, size[::-1], aspect)
        return columns.transpose(0, 1, 3, 2), rows.transpose(0, 1, 3, 2)

    patch.setattr(fold, "fold_plane", swapped)


def _plane_of_a_square(patch):
    original = fold.fold_plane
    patch.setattr(fold, "fold_plane", lambda weights, path, size, aspect: original(weights, path, size, 1.0))


def _corners_aligned(patch):
    def aligned(self, x, factor, name):
        return self.mb.upsample_bilinear(
            x=x,
            scale_factor_height=np.float32(factor),
            scale_factor_width=np.float32(factor),
            align_corners=True,
            name=name,
        )

    patch.setattr(MoGeEmitter, "resize", aligned)


def _scale_of_the_first_patch(patch):
    def patch_token(self, x, name):
        return self.mb.slice_by_index(x=x, begin=[0, 0, 0, 1], end=[1, x.shape[1], 1, 2], name=name)

    patch.setattr(MoGeEmitter, "class_token", patch_token)


def _norm_without_affine(patch):
    gain = {"weight": np.ones(64, np.float32), "bias": np.zeros(64, np.float32)}
    original = fold.fold_projection

    def bare(weights, path, norm):
        return original({**weights, **{f"{norm}.{part}": mx.array(gain[part]) for part in gain}}, path, norm)

    patch.setattr(fold, "fold_projection", bare)


def _x_and_y_not_times_z(patch):
    def directions(self, values, name):
        across, down, log = self.mb.split(x=values, num_splits=3, axis=1)
        z = self.mb.exp(x=log, name=name)
        return z, self.mb.concat(values=[across, down, z], axis=1, name="points")

    patch.setattr(MoGeEmitter, "points", directions)


def _normals_of_any_length(patch):
    patch.setattr(MoGeEmitter, "unit_vectors", lambda self, values: self.mb.mul(x=values, y=0.2, name="normals"))


MUTATIONS = {  # → the outputs in which it shows
    _zeros_beyond_the_border: OUTPUTS[:4],
    _rows_for_columns: OUTPUTS[:4],
    _plane_of_a_square: OUTPUTS[:4],
    _corners_aligned: OUTPUTS[:4],
    _norm_without_affine: OUTPUTS[:4],
    _scale_of_the_first_patch: ["scale"],
    _x_and_y_not_times_z: ["points"],
    _normals_of_any_length: ["normals"],
}


@pytest.fixture(scope="module")
def model():
    """A checkpoint, and what its network gives."""
    checkpoint = tiny_moge()
    network = build_network(checkpoint, dtype=mx.float32, expand=True)
    return checkpoint, expected_outputs(network, checkpoint.spec, generated_picture(SIZE), output="raw")


def _faulty(model, mutate=None):
    """The outputs of a graph, not yet converted, that the gate of a float32 package refuses."""
    checkpoint, expected = model
    plan = check_options(checkpoint.spec, ExportOptions(sizes=SIZE, attention="batched", precision="float32"))
    with pytest.MonkeyPatch.context() as patch:
        if mutate is not None:
            mutate(patch)
        program, _ = package._emit(package._Job(checkpoint.spec, checkpoint.weights, "", None, plan), SIZE)
    found = compare(run_function(program.functions["main"], generated_picture(SIZE), float16=False).outputs, expected)
    alone = [replace(found, extras={})] + [replace(found, extras={name: found.extras[name]}) for name in OUTPUTS[1:]]
    depth = bool(alone[0].faults(GATES["float32"]))
    shown = [
        name
        for name, one in zip(OUTPUTS[1:], alone[1:], strict=True)
        if any(fault.startswith(f"{name}: the error") for fault in one.faults(GATES["float32"]))
    ]
    return ["depth", *shown] if depth else shown


def test_without_a_mutation_the_graph_agrees(model):
    assert _faulty(model) == []


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__.strip("_"))
def test_a_mutation_shows_where_it_should(model, mutate):
    assert _faulty(model, mutate) == MUTATIONS[mutate]


# Options


def test_depth_is_given_as_the_network_gives_it():
    spec = MODELS["moge-2-small"]
    assert check_options(spec, ExportOptions()).output == "raw"
    assert check_options(spec, ExportOptions(output="raw")).output == "raw"
    for output in ("metric", "normalized"):
        with pytest.raises(OptionError, match="before its shift is known: choose output 'raw'"):
            check_options(spec, ExportOptions(output=output))
    with pytest.raises(OptionError, match=r"no output 'metres': choose one of normalized, raw, metric\."):
        check_options(spec, ExportOptions(output="metres"))
    with pytest.raises(OptionError, match=r"has no colors before an app has seen its mask: leave cmap out\."):
        check_options(spec, ExportOptions(cmap="turbo"))
