"""Packages of a tiny model under every option: equal to the MLX network, described, complete, reproducible."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from coreml.quick import digest
from coreml.tiny import SIZE, filled, tiny, tiny_any_view
from mlx_depth_convert.coreml import check_package, export_coreml
from mlx_depth_convert.coreml import package as package_module
from mlx_depth_convert.coreml.emitters.depth_anything import DepthAnythingEmitter
from mlx_depth_convert.coreml.evaluate import read_package, run_function
from mlx_depth_convert.pictures import generated_picture
from support import require

from mlx_depth.checkpoints.checkpoint import quantize_checkpoint
from mlx_depth.checkpoints.resolve import Resolved
from mlx_depth.errors import OptionError, SaveError
from mlx_depth.weights.quantization import Quantization

require("coreml", "coremltools")

pytestmark = pytest.mark.usefixtures("quick_exports")

LANDSCAPE, PORTRAIT = SIZE, (126, 84)

# name → (what the model is, how it is exported); each changes one thing
CASES = {
    "default": ({}, {}),
    "table size": ({}, {"sizes": "square"}),
    "batched": ({}, {"attention": "batched"}),
    "sdpa": ({}, {"attention": "sdpa"}),
    "gpu": ({}, {"layout": "gpu"}),
    "gpu sdpa": ({}, {"layout": "gpu", "attention": "sdpa"}),
    "raw": ({}, {"output": "raw"}),
    "raw colors": ({}, {"output": "raw", "cmap": "turbo"}),
    "indoor metres": ({"max_depth": 20.0}, {}),
    "outdoor normalized": ({"max_depth": 80.0}, {"output": "normalized", "cmap": "magma"}),
    "other layers": ({"num_layers": 6, "out_layers": (1, 2, 3, 4)}, {}),
    "transformers' positions": ({"position_rule": "size"}, {}),
    "registers": ({"num_register_tokens": 4}, {"layout": "gpu"}),
    "registers, ane": ({"num_register_tokens": 4}, {}),
    "SwiGLU": ({"swiglu": True}, {}),
    "one head": ({"num_heads": 1}, {}),
    "one head, sdpa": ({"num_heads": 1}, {"attention": "sdpa"}),
    "one head, SwiGLU, gpu": ({"num_heads": 1, "swiglu": True}, {"layout": "gpu"}),
    "heads of one channel": ({"num_heads": 64}, {"sizes": (14, 28)}),
    "one patch": ({}, {"sizes": (14, 14)}),
    "one patch, colors, gpu": ({}, {"sizes": (14, 14), "cmap": "turbo", "layout": "gpu"}),
    "a table of one": ({"table_size": 1}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_float32_package_equals_the_mlx_model(case, tmp_path):
    model, options = CASES[case]
    checkpoint = tiny(**model)
    path = export_coreml(checkpoint, tmp_path, **{"sizes": LANDSCAPE, "precision": "float32", **options})
    report = check_package(path, checkpoint)
    assert report.passed, report
    (function,) = report.functions
    assert function.float32.error <= 1e-5
    assert function.structure.largest_rank == 4


def test_the_tiny_output_is_alive(raw_package):
    """A dead ReLU would make every comparison pass."""
    (function,) = read_package(raw_package).functions.values()
    depth = run_function(function, generated_picture(LANDSCAPE), float16=False).outputs["depth"]
    assert depth.shape == (1, 1, *LANDSCAPE)
    assert depth.std() > 0.1 * depth.mean() > 0


ODD_HEADS = {
    "two features": {"features": 2},
    "odd widths": {"features": 3, "out_channels": (1, 2, 3, 5), "hidden_channels": 1},
    "a factor on relative depth": {"max_depth": 20.0},
}


@pytest.mark.parametrize("case", ODD_HEADS)
def test_heads_of_any_width_are_exported(case, tmp_path):
    config = tiny().spec.config
    head = dataclasses.replace(config.head, in_dim=33, **ODD_HEADS[case])
    backbone = dataclasses.replace(config.backbone, embed_dim=33, num_heads=3)
    checkpoint = filled(
        dataclasses.replace(tiny().spec, config=dataclasses.replace(config, backbone=backbone, head=head))
    )
    path = export_coreml(checkpoint, tmp_path, sizes=(28, 42), output="raw", precision="float32")
    report = check_package(path, checkpoint)
    assert report.passed, report
    assert report.functions[0].float32.error <= 1e-5


@pytest.mark.parametrize("layout", ["ane", "gpu"])
@pytest.mark.parametrize("max_depth", [None, 80.0])
def test_float16_package_agrees_and_has_no_float32_operation(layout, max_depth, tmp_path):
    checkpoint = tiny(max_depth=max_depth)
    report = check_package(export_coreml(checkpoint, tmp_path, sizes=LANDSCAPE, layout=layout), checkpoint)
    assert report.passed, report
    assert report.functions[0].float16.correlation >= 0.9999
    assert report.functions[0].structure.float32 == []


@pytest.mark.parametrize("compress", ["int8", "palette8", "palette6"])
def test_compressed_package_agrees_and_is_smaller(compress, half_package, tmp_path):
    checkpoint = tiny()
    small = export_coreml(checkpoint, tmp_path, sizes=LANDSCAPE, compress=compress)
    report = check_package(small, checkpoint)
    assert report.passed, report
    assert report.compress == compress
    assert _weight_bytes(small) < 0.8 * _weight_bytes(half_package)


def test_several_sizes_are_functions_that_share_their_weights(tmp_path):
    checkpoint = tiny()
    one = export_coreml(checkpoint, tmp_path, sizes=LANDSCAPE, name="One", precision="float32", cmap="gray")
    many = export_coreml(
        checkpoint,
        tmp_path,
        sizes=[LANDSCAPE, "126x84", (84, 84)],
        name="Many",
        precision="float32",
        cmap="gray",
    )
    report = check_package(many, checkpoint)
    assert report.passed, report
    assert [function.size for function in report.functions] == [LANDSCAPE, PORTRAIT, (84, 84)]
    program = read_package(many)
    assert program.description.defaultFunctionName == "size_70x98"
    assert list(program.functions) == ["size_70x98", "size_126x84", "size_84x84"]
    # The position tables alone differ.
    tables = 4 * 64 * (5 * 7 + 9 * 6 + 6 * 6)
    assert _weight_bytes(many) < _weight_bytes(one) + tables + 4096


def test_quantized_checkpoint_is_exported_as_what_it_holds(tmp_path):
    checkpoint = quantize_checkpoint(tiny(), Quantization(bits=8, group_size=32))
    path = export_coreml(checkpoint, tmp_path, sizes=LANDSCAPE, precision="float32")
    assert check_package(path, checkpoint).passed
    assert not check_package(path, tiny()).passed  # 8 bits are not the original


def test_interface_and_metadata_say_what_a_developer_needs(tmp_path):
    checkpoint = tiny(max_depth=20.0)
    path = export_coreml(checkpoint, tmp_path / "MyDepth.mlpackage", sizes=[LANDSCAPE, PORTRAIT], cmap="turbo")
    description = read_package(path).description
    assert path.name == "MyDepth.mlpackage"
    for function, (height, width) in zip(description.functions, (LANDSCAPE, PORTRAIT), strict=True):
        (image,) = function.input
        depth, colors = function.output
        assert [image.name, depth.name, colors.name] == ["image", "depth", "colors"]
        spaces = image.type.imageType.ColorSpace
        assert spaces.Name(image.type.imageType.colorSpace) == "RGB"
        assert spaces.Name(depth.type.imageType.colorSpace) == "GRAYSCALE_FLOAT16"
        assert spaces.Name(colors.type.imageType.colorSpace) == "RGB"
        for feature in (image, depth, colors):
            assert (feature.type.imageType.height, feature.type.imageType.width) == (height, width)
            assert feature.shortDescription
        assert depth.shortDescription == "Depth in metres, larger = farther, at most 20."
    metadata = description.metadata
    assert metadata.license == "Apache-2.0"
    assert "metres" in metadata.shortDescription
    facts = dict(metadata.userDefined)
    assert facts["com.apple.coreml.model.preview.type"] == "depthEstimation"
    assert facts["mlx_depth.max_depth"] == "20.0"
    assert facts["mlx_depth.unit"] == "m"
    assert not any("date" in key for key in facts)


def test_relative_depth_says_its_direction(half_package, raw_package):
    assert "1 = nearest" in read_package(half_package).description.output[0].shortDescription
    assert "larger = nearer" in read_package(raw_package).description.output[0].shortDescription


def test_name_comes_from_the_model(tmp_path):
    assert export_coreml(tiny(), tmp_path / "new" / "folder", sizes=LANDSCAPE).name == "TinyDepth.mlpackage"


def test_a_failure_leaves_nothing_behind(half_package, tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(DepthAnythingEmitter, "read_out", fail)
        with pytest.raises(MemoryError):
            export_coreml(tiny(), tmp_path, sizes=LANDSCAPE)
    assert list(tmp_path.iterdir()) == []
    assert digest(export_coreml(tiny(), tmp_path, sizes=LANDSCAPE)) == digest(half_package)


def test_what_cannot_be_written_is_one_clear_line(tmp_path, monkeypatch):
    from mlx_depth_convert.coreml import package

    with pytest.raises(SaveError, match="Check the folder"):
        export_coreml(tiny(), tmp_path / ("long" * 100) / "A.mlpackage", sizes=LANDSCAPE)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(package, "_write_package", full)
    with pytest.raises(
        SaveError, match=r"cannot write .*: No space left on device\. Check the folder and the free space"
    ):
        export_coreml(tiny(), tmp_path, sizes=LANDSCAPE)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_package_is_kept(half_package):
    before = digest(half_package)
    with pytest.raises(OptionError, match="exists: choose another name"):
        export_coreml(tiny(), half_package, sizes=PORTRAIT)
    assert digest(half_package) == before


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
sys.modules |= {"torch": None, "transformers": None}  # coremltools imports them where it can
import mlx_depth
from coreml.quick import validated_once
from coreml.tiny import SIZE, tiny, tiny_any_view
from mlx_depth_convert.coreml import export_coreml
with validated_once():
    export_coreml(tiny(), Path(sys.argv[2]), sizes=[(70, 98), (98, 70)], cmap="turbo", compress="palette6")
    export_coreml(tiny_any_view(), Path(sys.argv[2]), sizes=SIZE)
"""


def test_bytes_do_not_depend_on_the_hash_seed(tmp_path):
    here = export_coreml(tiny(), tmp_path / "here", sizes=[(70, 98), (98, 70)], cmap="turbo", compress="palette6")
    views = export_coreml(tiny_any_view(), tmp_path / "here", sizes=SIZE)
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[1]), str(tmp_path / "there")]
    subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, check=True)
    for path in (here, views):
        assert digest(tmp_path / "there" / path.name) == digest(path)


def test_manifest_names_the_files(half_package):
    manifest = json.loads((half_package / "Manifest.json").read_text())
    assert manifest["rootModelIdentifier"] in manifest["itemInfoEntries"]
    for item in manifest["itemInfoEntries"].values():
        assert (half_package / "Data" / item["path"]).exists()


def test_facts_come_from_the_hub_and_the_check_goes_back_to_them(tmp_path, monkeypatch):
    from mlx_depth_convert.coreml import check, package

    found = Resolved(Path("snapshot"), repo="some-owner/some-model", revision="abc123")
    spec = dataclasses.replace(tiny().spec, hub_id="some-owner/some-model")
    checkpoint = dataclasses.replace(tiny(), spec=spec)
    monkeypatch.setattr(package, "fetch_checkpoint", lambda source: (checkpoint, found))
    path = export_coreml("some-owner/some-model@main", tmp_path, sizes=LANDSCAPE)
    metadata = read_package(path).description.metadata
    assert metadata.userDefined["mlx_depth.colormap"] == ""  # the key of older packages
    assert metadata.userDefined["mlx_depth.source"] == "some-owner/some-model"
    assert metadata.userDefined["mlx_depth.revision"] == "abc123"
    assert metadata.author.startswith("some-owner (weights)")

    asked = []
    monkeypatch.setattr(
        check, "fetch_checkpoint", lambda source, *, revision: asked.append((source, revision)) or (checkpoint, found)
    )
    assert check_package(path).passed
    assert asked == [("some-owner/some-model", "abc123")]


@pytest.mark.parametrize(
    ("model", "repo", "revision", "source"),
    [
        ("da2-small", "depth-anything/Depth-Anything-V2-Small-hf", "abc", "depth-anything-v2-small"),
        ("mlx-depth-demo", None, None, "mlx-depth-demo"),
        ("owner/name@v1", "owner/name", "abc", "owner/name"),
        ("folder/name", None, None, ""),
        (Path("folder"), None, None, ""),
        (tiny(), None, None, ""),
    ],
)
def test_local_files_are_no_source(model, repo, revision, source, monkeypatch):
    """A local copy, quantized perhaps, has the published model's name: the check must not take one for the other."""
    found = Resolved(Path("folder"), repo=repo, revision=revision)
    monkeypatch.setattr(package_module, "fetch_checkpoint", lambda _: (tiny(), found))
    _, read = package_module._find(model)
    assert read()[1:] == (source, revision)


def _weight_bytes(package: Path) -> int:
    return (package / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
