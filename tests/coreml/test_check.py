"""The check finds every mutation of an export, and its report says what a developer needs."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from coreml.tiny import SIZE, changed, tiny
from mlx_depth_convert.coreml import check_package, export_coreml
from mlx_depth_convert.coreml.agreement import GATES, Agreement
from mlx_depth_convert.coreml.emitters import base, fold
from mlx_depth_convert.coreml.emitters.depth_anything import DepthAnythingEmitter
from mlx_depth_convert.coreml.evaluate import read_package, run_function
from mlx_depth_convert.difference import Difference
from mlx_depth_convert.pictures import generated_picture
from PIL import Image
from support import require

from mlx_depth.errors import CheckpointError, ImageError

coremltools = require("coreml", "coremltools")

pytestmark = pytest.mark.usefixtures("quick_exports")


def _without_layer_scale(monkeypatch, checkpoint):
    names = [name for name in checkpoint.weights if name.endswith("gamma")]
    ones = {name.replace(".", "__"): np.ones(64, np.float32) for name in names}
    return changed(checkpoint, **ones)


def _transposed_positions(monkeypatch, checkpoint):
    original = fold.fold_positions

    def transposed(config, weights, grid_size):
        gh, gw = grid_size
        rows = original(config, weights, (gw, gh)).reshape(gw, gh, -1)
        return np.ascontiguousarray(rows.transpose(1, 0, 2).reshape(gh * gw, -1))

    monkeypatch.setattr(fold, "fold_positions", transposed)
    return checkpoint


def _swapped_query_and_key(monkeypatch, checkpoint):
    weights = dict(checkpoint.weights)
    for name in checkpoint.weights:
        if ".query_proj." in name:
            other = name.replace("query_proj", "key_proj")
            weights[name], weights[other] = weights[other], weights[name]
    return replace(checkpoint, weights=weights)


def _corners_not_aligned(monkeypatch, checkpoint):
    original = DepthAnythingEmitter.grow

    def grow(self, *args, align_corners=True):
        return original(self, *args, align_corners=False)

    monkeypatch.setattr(DepthAnythingEmitter, "grow", grow)
    return checkpoint


def _bgr(monkeypatch, checkpoint):
    kernel = checkpoint.weights["backbone.patch_embed.proj.weight"]
    return changed(checkpoint, backbone__patch_embed__proj__weight=kernel[..., ::-1])


def _epsilon_of_torch(monkeypatch, checkpoint):
    monkeypatch.setattr(fold, "stream_eps", lambda _: 1e-5 * fold.STREAM_SCALE**2)
    return checkpoint


def _epsilon_not_scaled(monkeypatch, checkpoint):
    monkeypatch.setattr(fold, "stream_eps", lambda eps: eps)
    return checkpoint


STRUCTURAL = [_without_layer_scale, _transposed_positions, _swapped_query_and_key, _corners_not_aligned, _bgr]


@pytest.mark.parametrize("mutate", STRUCTURAL)
def test_a_structural_mutation_fails_in_float16(mutate, tmp_path, monkeypatch):
    checkpoint = tiny()
    with monkeypatch.context() as patch:
        path = export_coreml(mutate(patch, checkpoint), tmp_path, sizes=SIZE)
    report = check_package(path, checkpoint)
    assert not report.passed, report
    assert report.functions[0].float32.error > 100 * GATES["float32"].relative


@pytest.mark.parametrize("mutate", [_epsilon_of_torch, _epsilon_not_scaled])
def test_a_wrong_epsilon_fails_in_float32(mutate, tmp_path, monkeypatch):
    """Rounding to float16 can hide it."""
    checkpoint = tiny()
    with monkeypatch.context() as patch:
        path = export_coreml(mutate(patch, checkpoint), tmp_path, sizes=SIZE, precision="float32")
    report = check_package(path, checkpoint)
    assert not report.passed, report
    assert report.functions[0].float32.error > 10 * GATES["float32"].relative


def test_bgr_in_the_interface_fails(half_package, tmp_path):
    """The graph alone would not show it: Core ML brings the pixels into the declared order."""
    path = shutil.copytree(half_package, tmp_path / "Bgr.mlpackage")
    file = path / "Data/com.apple.CoreML/model.mlmodel"
    spec = coremltools.utils.load_spec(str(path))
    image = spec.description.input[0].type.imageType
    image.colorSpace = image.BGR
    file.write_bytes(spec.SerializeToString())
    assert check_package(path, tiny()).faults == [
        "main: the image 'image' is declared as ('BGR', 70, 98), not ('RGB', 70, 98)"
    ]


def test_swapped_colors_fail(tmp_path, monkeypatch):
    knots = np.ascontiguousarray(base.color_knots("turbo")[:, ::-1])
    with monkeypatch.context() as patch:
        patch.setattr(base, "color_knots", lambda _: knots)
        path = export_coreml(tiny(), tmp_path, sizes=SIZE, cmap="turbo")
    (fault,) = check_package(path, tiny()).faults
    assert "colors" in fault


def test_overflow_in_float16_is_named(tmp_path):
    kernel = tiny().weights["head.reassemble.0.projection.weight"]
    checkpoint = changed(tiny(), head__reassemble__0__projection__weight=kernel * 1e5)
    report = check_package(export_coreml(checkpoint, tmp_path, sizes=SIZE, output="raw"), checkpoint)
    assert any("beyond float16" in fault and "reassemble0" in fault for fault in report.faults), report


def test_depth_beyond_float16_fails_in_float32_too(tmp_path):
    """The graph computes it, but the image that an app gets holds float16."""
    kernel = tiny().weights["head.conv3.weight"]
    checkpoint = changed(tiny(), head__conv3__weight=kernel * 1e6)
    path = export_coreml(checkpoint, tmp_path, sizes=SIZE, output="raw", precision="float32")
    report = check_package(path, checkpoint)
    assert report.functions[0].float32.error <= 1e-5
    assert [fault.split(" reaches ")[0] for fault in report.faults] == [
        "main: the package's depth",
        "main: the model's depth",
    ]
    assert "a depth image ends at 65504" in report.faults[0]
    assert "Proved" not in report.as_text()


def test_an_overflow_of_float32_fails(tmp_path):
    kernel = tiny().weights["head.conv2.weight"]
    checkpoint = changed(tiny(), head__conv2__weight=kernel * 1e38)
    report = check_package(export_coreml(checkpoint, tmp_path, sizes=SIZE, precision="float32"), checkpoint)
    assert any(fault.endswith(" overflows") for fault in report.faults), report


def test_a_constant_depth_proves_nothing(tmp_path):
    kernel = tiny().weights["head.conv3.weight"]
    checkpoint = changed(tiny(), head__conv3__weight=kernel * 0)
    report = check_package(export_coreml(checkpoint, tmp_path, sizes=SIZE, output="raw"), checkpoint)
    assert report.faults == [
        "main: the model's depth is the same everywhere, which proves nothing: check with another --image"
    ]


def test_wrong_metres_fail_though_they_correlate():
    agreement = Agreement(_difference(error=0.75, correlation=1.0))  # 20 m exported as 5 m
    assert agreement.faults(GATES["float16"]) == ["the error is 0.75, above 0.02"]
    nan = float("nan")
    assert len(Agreement(_difference(error=nan, correlation=nan), nan).faults(GATES["palette6"])) == 3


def _difference(error, correlation):
    return Difference(max_abs=1.0, mean_abs=1.0, relative=error, correlation=correlation, factor=1.0, worst=(0,))


def test_report_tells_what_was_found(tmp_path):
    report = check_package(export_coreml(tiny(), tmp_path, sizes=[SIZE, (98, 70)], cmap="gray"), tiny())
    text = report.as_text()
    assert text.startswith("passed: error at most 0.02, correlation at least 0.9999\nProved: ")
    for word in ("size_70x98", "size_98x70", "float32 arithmetic", "simulated float16", "colors", "layer_norm 9"):
        assert word in text
    assert "run this command on a Mac" in text
    facts = json.loads(json.dumps(report.as_json()))
    assert facts["passed"] is True
    assert facts["functions"][0]["float16"]["correlation"] >= 0.9999
    assert set(facts["functions"][0]["float16"]) == {"error", "correlation", "color_error", "extras"}


def test_a_photo_is_stretched_to_each_function(full_package, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(generated_picture((50, 60))).save(photo)
    assert check_package(full_package, tiny(), photo).passed
    with pytest.raises(ImageError):
        check_package(full_package, tiny(), tmp_path / "missing.png")


def test_another_model_is_refused(full_package):
    assert not check_package(full_package, tiny(position_rule="size")).passed
    with pytest.raises(CheckpointError, match="name the model that it was made from"):
        check_package(full_package, tiny(max_depth=20.0))


def test_what_is_no_package_is_refused(half_package, tmp_path):
    with pytest.raises(CheckpointError, match="no Core ML package"):
        check_package(tmp_path, tiny())
    path = shutil.copytree(half_package, tmp_path / "Damaged.mlpackage")
    (path / "Data/com.apple.CoreML/model.mlmodel").write_bytes(b"\x08\xff\xffnot a model")
    with pytest.raises(CheckpointError, match="cannot be read"):
        check_package(path, tiny())


def test_colors_follow_the_color_map(tmp_path):
    """Independent of the check's own colors: entries of the table, as DepthResult paints them."""
    from mlx_depth.io.colormaps import colormap_table

    (function,) = read_package(export_coreml(tiny(), tmp_path, sizes=SIZE, cmap="Spectral_r")).functions.values()
    outputs = run_function(function, generated_picture(SIZE), float16=True).outputs
    painted = colormap_table("Spectral_r")[(outputs["depth"][0, 0] * 255).astype(np.uint8)]
    assert np.abs(outputs["colors"][0].transpose(1, 2, 0) - painted).max() <= 8  # an entry's step is up to 5
