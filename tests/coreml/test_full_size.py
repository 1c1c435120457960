"""V2 and 3 small at full size, and the bundled model with real photos.

Each function is computed once, in the arithmetic of its package; the rest of the check is tested on small models.
"""

from pathlib import Path

import mlx.core as mx
import pytest
from coreml.tiny import full_size
from mlx_depth_convert.coreml import check_package, export_coreml
from mlx_depth_convert.coreml.agreement import compare
from mlx_depth_convert.coreml.check import _fill, expected_outputs
from mlx_depth_convert.coreml.evaluate import read_package, run_function
from mlx_depth_convert.pictures import generated_picture
from support import require

from mlx_depth import load_image
from mlx_depth.checkpoints.checkpoint import build_network, fetch_checkpoint

require("coreml", "coremltools")

pytestmark = pytest.mark.usefixtures("quick_exports")

PHOTOS = sorted((Path(__file__).parents[2] / "examples").glob("*.jpg"))


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("depth-anything-v2-small", "landscape"),
        ("depth-anything-v2-metric-indoor-small", "252x196"),
        ("depth-anything-3-small", "196x252"),
    ],
)
def test_float32_package_of_a_small_model_at_full_size(model, size, tmp_path):
    checkpoint = full_size(model)
    report = check_package(export_coreml(checkpoint, tmp_path, sizes=size, precision="float32"), checkpoint)
    assert report.passed, report
    found = report.functions[0].float32
    assert max([found.error, *(extra.relative for extra in found.extras.values())]) <= 1e-5


def test_float16_package_of_a_small_model_at_full_size(tmp_path):
    checkpoint = full_size("depth-anything-v2-small")
    path = export_coreml(checkpoint, tmp_path, sizes="landscape")
    assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) <= 50e6
    (agreement,) = _agreements(path, checkpoint, [generated_picture((392, 518))])
    assert agreement.correlation >= 0.9999


def test_float16_package_of_3_small_at_its_width(tmp_path):
    checkpoint = full_size("depth-anything-3-small")
    path = export_coreml(checkpoint, tmp_path, sizes="196x252")
    (found,) = _agreements(path, checkpoint, [generated_picture((196, 252))])
    assert min(found.correlation, found.extras["confidence"].correlation) >= 0.9999


def test_eight_bit_integers_keep_the_depth_of_photos(tmp_path):
    checkpoint, _ = fetch_checkpoint("mlx-depth-demo")
    path = export_coreml(checkpoint, tmp_path, sizes="196x252", compress="int8")
    pictures = [_fill(load_image(photo).pixels, (196, 252)) for photo in PHOTOS]
    agreements = _agreements(path, checkpoint, pictures)
    assert len(agreements) >= 3
    assert min(agreement.correlation for agreement in agreements) >= 0.999, agreements


def _agreements(path, checkpoint, pictures):
    """Of simulated float16 with the MLX network in float32."""
    (function,) = read_package(path).functions.values()
    with mx.stream(mx.cpu):
        network = build_network(checkpoint, dtype=mx.float32, expand=True)
    return [
        compare(
            run_function(function, pixels, float16=True).outputs,
            expected_outputs(network, checkpoint.spec, pixels, output="normalized"),
        )
        for pixels in pictures
    ]
