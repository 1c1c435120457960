"""Requests that cannot work fail before any work, with the next step; no coremltools is needed for that."""

import importlib.metadata
import sys
from dataclasses import replace

import pytest
from coreml.tiny import tiny
from mlx_depth_convert.coreml import destination, export_coreml, options, tools
from mlx_depth_convert.coreml.emitters import EMITTERS
from support import require

from mlx_depth.checkpoints import checkpoint, hub
from mlx_depth.errors import ModelNotFoundError, OptionError
from mlx_depth.models.depth_anything.network import depth_anything_config
from mlx_depth.models.families import FAMILIES
from mlx_depth.registry import MODELS

RELATIVE, METRIC, LARGE = (
    MODELS["depth-anything-v2-small"],
    MODELS["depth-anything-v2-metric-outdoor-small"],
    MODELS["depth-anything-v2-large"],
)


@pytest.fixture
def no_work(monkeypatch):
    """Neither reading nor coremltools: they would be work."""

    def fail(*_, **__):
        raise AssertionError("work began")

    monkeypatch.setattr(checkpoint, "read_checkpoint", fail)
    monkeypatch.setattr(hub, "fetch", fail)
    monkeypatch.setattr(tools, "coremltools", fail)


BAD = {
    "not a multiple": ({"sizes": "390x518"}, "nearest that is, is 392x518"),
    "tiny size": ({"sizes": (3, 518)}, "nearest that is, is 14x518"),
    "huge size": ({"sizes": "14000x14000"}, "give a smaller one"),
    "unknown preset": ({"sizes": ["potrait"]}, "did you mean 'portrait'"),
    "senseless size": ({"sizes": "392 by 518"}, "Give HEIGHTxWIDTH"),
    "three sides": ({"sizes": [(14, 14, 14)]}, "two whole numbers"),
    "floating sides": ({"sizes": [(392.0, 518.0)]}, "two whole numbers"),
    "no sizes": ({"sizes": []}, "no sizes are given"),
    "repeated size": ({"sizes": ["landscape", "392x518"]}, "given twice"),
    "metres of relative depth": ({"output": "metric"}, "not metres: choose output 'normalized' or 'raw'"),
    "unknown output": ({"output": "disparity"}, "choose one of normalized, raw, metric"),
    "unknown precision": ({"precision": "bfloat16"}, "choose one of float16, float32"),
    "unknown target": ({"target": "iOS12"}, "choose one of iOS17, macOS14"),
    "unknown attention": ({"attention": "flash"}, "choose one of auto, split"),
    "unknown layout": ({"layout": "cpu"}, "choose one of ane, gpu"),
    "unknown compression": ({"compress": "int4"}, "choose one of int8, palette6, palette8"),
    "unknown color map": ({"cmap": "tubro"}, "did you mean 'turbo'"),
    "several for iOS 17": ({"sizes": ["landscape", "portrait"], "target": "iOS17"}, "needs iOS18 or macOS15"),
    "sdpa for macOS 14": ({"attention": "sdpa", "target": "macOS14"}, "needs iOS18 or macOS15"),
    "split for the GPU": ({"attention": "split", "layout": "gpu"}, "choose 'batched' or 'auto'"),
    "no identifier": ({"name": "my-depth"}, "call it 'MyDepth', say"),
    "reserved in Swift": ({"name": "class"}, "'class' is a reserved word of Swift, .* call it 'Class', say"),
}


@pytest.mark.parametrize("model", [RELATIVE.name, f"{RELATIVE.hub_id}@main"])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_fails_before_any_work(case, model, no_work, tmp_path):
    arguments, message = BAD[case]
    with pytest.raises(OptionError, match=message.replace("(", r"\(")) as caught:
        export_coreml(model, tmp_path / "out", **arguments)
    assert str(caught.value).endswith(".")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_model_fails_before_any_work(no_work, tmp_path):
    with pytest.raises(ModelNotFoundError, match="did you mean"):
        export_coreml("depth-anything-v2-smal", tmp_path)


def test_a_place_that_is_taken_fails_before_any_work(no_work, tmp_path):
    (tmp_path / "Taken.mlpackage").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="exists: choose another name, or remove it first"):
        export_coreml("da2-small", tmp_path / "Taken.mlpackage")
    with pytest.raises(OptionError, match="exists"):
        export_coreml("da2-small", tmp_path, name="Taken")
    with pytest.raises(OptionError, match="is not a folder"):
        export_coreml("da2-small", tmp_path / "file")
    with pytest.raises(OptionError, match="end it in"):
        export_coreml("da2-small", tmp_path / "Depth.mlmodel")
    with pytest.raises(OptionError, match="leave the name out"):
        export_coreml("da2-small", tmp_path / "Free.mlpackage", name="Free")
    with pytest.raises(OptionError, match="not a Swift identifier"):
        export_coreml("da2-small", tmp_path / "2nd.mlpackage")


@pytest.mark.parametrize("word", ["class", "default", "self", "Self", "Any", "in", "_", "import", "true", "struct"])
def test_reserved_words_of_swift_name_no_package(word, no_work, tmp_path):
    proposal = destination.swift_name(word)
    for out, name in ((tmp_path / f"{word}.mlpackage", None), (tmp_path, word)):
        with pytest.raises(OptionError, match=f"reserved word of Swift, .* call it '{proposal}', say"):
            export_coreml(RELATIVE.name, out, name=name)
    assert list(tmp_path.iterdir()) == []


def test_every_reserved_word_has_a_proposal_that_is_free(tmp_path):
    for word in (*destination.RESERVED, "any", "get"):
        proposal = destination.swift_name(word)
        assert destination.package_path(tmp_path, proposal, RELATIVE).stem == proposal
    assert destination.package_path(tmp_path, "get", RELATIVE).stem == "get"  # reserved in some contexts alone


def test_a_range_beyond_float16_fails_before_any_work():
    far = replace(METRIC, config=depth_anything_config("small", max_depth=1e5))
    with pytest.raises(OptionError, match=r"100000 m, .*65504.*: choose output 'normalized', precision 'float32'"):
        _check(far)
    with pytest.raises(OptionError, match="choose output 'normalized'"):
        _check(far, precision="float32")
    with pytest.raises(OptionError, match="choose precision 'float32'"):
        _check(far, output="normalized")
    assert _check(far, output="normalized", precision="float32").output == "normalized"
    assert _check(replace(METRIC, config=depth_anything_config("small", max_depth=65504.0))).output == "metric"


def test_a_family_without_an_emitter_fails_before_any_work():
    with pytest.raises(OptionError, match="unheard_of, which Core ML export does not know yet: choose a model of"):
        _check(replace(RELATIVE, family="unheard_of"))
    assert set(EMITTERS) <= set(FAMILIES)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("depth-anything-3-nested-giant-large-1.1", "is two networks, .*: choose depth-anything-3-metric-large, whose"),
        ("depth-anything-3-giant", "has 3D Gaussians, .*: choose depth-anything-3-large-1.1, or predict"),
    ],
)
def test_networks_that_are_not_exported_fail_before_any_work(model, message, no_work, tmp_path):
    with pytest.raises(OptionError, match=f"{model} {message}"):
        export_coreml(model, tmp_path)
    assert {"depth-anything-3-large-1.1", "depth-anything-3-metric-large"} <= MODELS.keys()


def test_metres_of_depth_anything_3_are_metric():
    metric, mono = MODELS["depth-anything-3-metric-large"], MODELS["depth-anything-3-mono-large"]
    assert _check(metric).output == "metric"
    assert _check(mono).output == "normalized"
    with pytest.raises(OptionError, match="not metres"):
        _check(mono, output="metric")


@pytest.mark.parametrize("size", ["small", "base", "large", "giant"])
def test_emitters_take_the_sizes_that_networks_take(size):
    config = depth_anything_config(size)
    assert EMITTERS["depth_anything"].multiple_of(config) == FAMILIES["depth_anything"].network(config).multiple_of


def test_the_raw_output_of_a_metric_model_is_refused(no_work, tmp_path):
    with pytest.raises(OptionError, match="choose output 'metric'"):
        export_coreml(METRIC.name, tmp_path, output="raw")


@pytest.mark.parametrize("found", [None, "8.3"])
def test_coremltools_missing_or_untested_is_one_clear_line(found, monkeypatch, tmp_path):
    def version(name):
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(tools, "version", version)
    tools.coremltools.cache_clear()
    try:
        with pytest.raises(OptionError, match=r"pip install 'mlx-depth\[coreml\]'") as caught:
            export_coreml(tiny(), tmp_path / "out", sizes=(70, 98))
    finally:
        tools.coremltools.cache_clear()
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_coremltools_without_its_binaries_is_one_clear_line(monkeypatch):
    """As on a platform without wheels, where its pure Python part installs all the same."""
    require("coreml", "coremltools")
    monkeypatch.setitem(sys.modules, "coremltools.libmilstoragepython", None)
    tools.coremltools.cache_clear()
    try:
        with pytest.raises(OptionError, match="cannot be used here") as caught:
            tools.coremltools()
    finally:
        tools.coremltools.cache_clear()
    assert "\n" not in str(caught.value)


def _check(spec, **changes):
    return options.check_options(spec, options.ExportOptions(**changes))


def test_what_is_left_open_is_decided():
    assert _check(RELATIVE).output == "normalized"
    assert _check(METRIC).output == "metric"
    assert _check(METRIC, output="normalized").output == "normalized"
    assert _check(RELATIVE).attention == "split"
    assert _check(LARGE).attention == "batched"
    assert _check(RELATIVE, layout="gpu").attention == "batched"
    assert _check(RELATIVE).target == "iOS17"
    assert _check(RELATIVE, sizes=["square", "wide"]).target == "iOS18"
    assert _check(RELATIVE, target="macOS15").target == "iOS18"


def test_sizes_are_presets_aspects_or_pixels():
    sizes = ["4:3", "portrait", "1:1", "16:9", "9:16", "280x364", "14×28", (28, 14)]
    assert _check(RELATIVE, sizes=sizes).sizes == {
        "landscape": (392, 518),
        "portrait": (518, 392),
        "square": (518, 518),
        "wide": (294, 518),
        "tall": (518, 294),
        "size_280x364": (280, 364),
        "size_14x28": (14, 28),
        "size_28x14": (28, 14),
    }
    assert _check(RELATIVE, sizes=(70, 98)).sizes == {"size_70x98": (70, 98)}
    assert _check(RELATIVE, sizes=iter(["square"])).sizes == {"square": (518, 518)}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("depth-anything-v2-small", "DepthAnythingV2Small"),
        ("owner/some_model.v1@main", "SomeModelV1"),
        ("7 seas", "Depth7Seas"),
        ("深度", "Depth"),
    ],
)
def test_swift_names(text, name):
    assert destination.swift_name(text) == name
