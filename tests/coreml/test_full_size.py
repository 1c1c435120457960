"""V2 small at full size, and the bundled model with real photos."""

from pathlib import Path

import pytest
from coreml.tiny import full_size
from mlx_depth_convert.coreml import check_package, export_coreml
from support import require

from mlx_depth.predictor import fetch

require("coreml", "coremltools")

PHOTOS = sorted((Path(__file__).parents[2] / "examples").glob("*.jpg"))


@pytest.mark.parametrize(
    ("model", "size", "precision"),
    [
        ("depth-anything-v2-small", "landscape", "float32"),
        ("depth-anything-v2-small", "landscape", "float16"),
        ("depth-anything-v2-metric-indoor-small", "portrait", "float32"),
    ],
)
def test_small_model_at_full_size(model, size, precision, tmp_path):
    checkpoint = full_size(model)
    path = export_coreml(checkpoint, tmp_path, sizes=size, precision=precision)
    report = check_package(path, checkpoint)
    assert report.passed, report
    (function,) = report.functions
    if precision == "float32":
        assert function.float32.error <= 1e-5
    else:
        assert function.float16.correlation >= 0.9999
        package_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        assert package_bytes <= 50e6


def test_eight_bit_integers_keep_the_depth_of_photos(tmp_path):
    checkpoint, _ = fetch("mlx-depth-demo")
    path = export_coreml(checkpoint, tmp_path, sizes="196x252", compress="int8")
    assert PHOTOS
    for photo in PHOTOS:
        (function,) = check_package(path, checkpoint, photo).functions
        assert function.float16.correlation >= 0.999, (photo.name, function)
