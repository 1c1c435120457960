"""The passes of coremltools that exports leave out, and those that the tests' quick exports save, change no byte."""

import pytest
from coreml.quick import digest, validated_once
from coreml.tiny import SIZE, tiny, tiny_any_view, tiny_mono
from mlx_depth_convert.coreml import export_coreml, package
from support import require

require("coreml", "coremltools")

# A case for each emitter at least
CASES = {
    "depth": (tiny(swiglu=True, num_register_tokens=4), {"layout": "gpu", "cmap": "turbo"}),
    "depth, palette": (tiny(), {"compress": "palette6"}),
    "views": (tiny_any_view(), {}),
    "views, gpu, float32, sdpa": (tiny_any_view(), {"layout": "gpu", "precision": "float32", "attention": "sdpa"}),
    "single, int8": (tiny_mono(metric=True), {"compress": "int8"}),
}


@pytest.mark.parametrize("case", CASES)
def test_with_every_pass_the_bytes_are_the_same(case, tmp_path, monkeypatch):
    model, options = CASES[case]
    with validated_once():
        few = export_coreml(model, tmp_path / "few", sizes=SIZE, **options)
    monkeypatch.setattr(package, "_pipeline", lambda ct: ct.PassPipeline.DEFAULT)
    assert digest(export_coreml(model, tmp_path / "all", sizes=SIZE, **options)) == digest(few)
