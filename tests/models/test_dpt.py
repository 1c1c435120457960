"""DPT against transformers on each backbone: networks, processors, files; what a config may say, and what not."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference_dpt as reference
from mlx.utils import tree_flatten
from mlx_depth_convert import convert, verify
from PIL import Image
from support import correlation, relative_error, seeded

import mlx_depth
from mlx_depth import CheckpointError, DepthKind, OptionError
from mlx_depth.models.base import Evidence
from mlx_depth.models.dpt.network import (
    DPT,
    dpt_dinov2_config,
    dpt_hybrid_config,
    dpt_large_config,
)
from mlx_depth.models.dpt_image_processor import follow_transformers, read_any_processor
from mlx_depth.models.families import FAMILIES
from mlx_depth.registry import MODELS
from mlx_depth.weights.rules import apply, check_complete, to_mlx_layout

GATE = 1e-4  # relative error, float32, from the same pixels
PHOTO_GATE = 1e-3  # from a file to its map
CORRELATION = 0.99999
EXAMPLES = Path(__file__).parents[2] / "examples"

WITH_PROJECTION = {"add_projection": True, "fusion_hidden_size": 256}
CASES = [
    pytest.param("vit", {}, (1, 64, 64), id="vit"),
    pytest.param("vit", {}, (2, 80, 80), id="vit-odd"),
    pytest.param("vit", {}, (1, 16, 16), id="vit-one-patch"),
    pytest.param("vit", {"readout_type": "add"}, (1, 48, 48), id="readout-added"),
    pytest.param("vit", {"readout_type": "ignore"}, (1, 48, 48), id="readout-ignored"),
    pytest.param("hybrid", {}, (1, 64, 64), id="hybrid"),
    pytest.param("hybrid", {}, (2, 80, 80), id="hybrid-odd"),
    pytest.param("dinov2", {}, (1, 28, 56), id="dinov2"),
    pytest.param("dinov2", {}, (3, 42, 14), id="dinov2-odd-batch-of-3"),
    pytest.param("dinov2", {}, (1, 14, 70), id="dinov2-one-row"),
    pytest.param("dinov2", {"swiglu": True}, (1, 28, 42), id="dinov2-swiglu"),
    pytest.param("dinov2", WITH_PROJECTION, (1, 28, 28), id="dinov2-projection"),
    pytest.param("dinov2-small", {}, (1, 42, 56), id="dinov2-small"),
    pytest.param("hybrid-midas", {}, (1, 384, 384), id="hybrid-midas", marks=pytest.mark.nightly),
    pytest.param("large", {}, (1, 384, 384), id="large", marks=pytest.mark.nightly),
]
PUBLISHED = {
    "dpt-large": "large",
    "dpt-hybrid-midas": "hybrid-midas",
    **{
        f"dpt-dinov2-{size}-{place}": f"dinov2-{size}"
        for size in ("small", "base", "large", "giant")
        for place in ("nyu", "kitti")
    },
}
CONFIGS = {
    "large": dpt_large_config(),
    "hybrid-midas": dpt_hybrid_config(),
    **{f"dinov2-{size}": dpt_dinov2_config(size) for size in ("small", "base", "large", "giant")},
}
FAMILY = {"vit": "dpt", "large": "dpt", "hybrid": "dpt_hybrid", "hybrid-midas": "dpt_hybrid"}


def family_of(kind: str) -> Any:
    return FAMILIES[FAMILY.get(kind, "dpt_dinov2")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder of a tiny model, as on the Hub."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = reference.save(reference.model(kind), tmp_path_factory.mktemp("dpt") / kind)
            written = reference.PROCESSORS["dinov2" if kind == "dinov2" else "midas"]
            text = json.dumps({**written, "image_processor_type": "DPTImageProcessor"})
            (made[kind] / "preprocessor_config.json").write_text(text)
        return made[kind]

    return of


def assert_equal(found: np.ndarray, expected: np.ndarray) -> None:
    assert relative_error(found, expected) <= GATE
    assert correlation(found, expected) >= CORRELATION


@pytest.mark.parametrize(("kind", "options", "shape"), CASES)
def test_depth_equals_transformers(
    kind: str, options: dict[str, Any], shape: tuple[int, int, int], tmp_path: Path
) -> None:
    upstream = reference.model(kind, **options)
    network = mlx_depth.load(reference.save(upstream, tmp_path), dtype="float32", reference="transformers").network
    pixel_values = reference.pixels(*shape)
    assert_equal(np.array(network(mx.array(pixel_values)).depth), reference.run(upstream, pixel_values))


DRIFTS = {
    "vit": {
        "readout": ("head.reassemble.1.readout.weight", lambda w: w * 1.01),
        "class-token": ("backbone.cls_token", lambda x: x + 0.02),
        "positions": ("backbone.pos_embed", lambda x: x[:, ::-1]),
    },
    "hybrid": {
        "resnet": ("backbone.resnet.stages.1.1.conv2.weight", lambda w: w.at[0, 0, 0, 0].add(0.3)),
        "norm": ("backbone.resnet.stages.0.0.norm2.bias", lambda b: b + 0.01),
        "given-map": ("head.reassemble.0.adapt.weight", lambda w: w * 1.01),
    },
    "dinov2": {
        "residual": ("head.fusion.1.residual_conv_unit1.conv1.weight", lambda w: w * 1.01),
        "layer-scale": ("backbone.blocks.1.layer_scale1.gamma", mx.ones_like),
    },
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, drifts in DRIFTS.items() for name in drifts])
def test_an_injected_drift_fails_the_gate(kind: str, name: str, folder: Any) -> None:
    network = mlx_depth.load(folder(kind), dtype="float32", reference="transformers").network
    pixel_values = reference.pixels(1, 28, 28) if kind == "dinov2" else reference.pixels(1, 64, 64)
    expected = reference.run(reference.model(kind), pixel_values)
    assert_equal(np.array(network(mx.array(pixel_values)).depth), expected)
    path, change = DRIFTS[kind][name]
    network.load_weights([(path, change(dict(tree_flatten(network.parameters()))[path]))], strict=False)
    with pytest.raises(AssertionError):
        assert_equal(np.array(network(mx.array(pixel_values)).depth), expected)


def test_a_changed_projection_fails_the_gate(tmp_path: Path) -> None:
    upstream = reference.model("dinov2", **WITH_PROJECTION)
    network = mlx_depth.load(reference.save(upstream, tmp_path), dtype="float32", reference="transformers").network
    pixel_values = reference.pixels(1, 14, 14)
    network.head.projection.bias = network.head.projection.bias + 0.01
    with pytest.raises(AssertionError):
        assert_equal(np.array(network(mx.array(pixel_values)).depth), reference.run(upstream, pixel_values))


def test_standardization_matters(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_depth.nn.standardized_conv.standardized", lambda weight: weight)
    network = mlx_depth.load(folder("hybrid"), dtype="float32", reference="transformers").network
    pixel_values = reference.pixels(1, 64, 64)
    expected = reference.run(reference.model("hybrid"), pixel_values)
    with pytest.raises(AssertionError):
        assert_equal(np.array(network(mx.array(pixel_values)).depth), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["vit", "hybrid", "dinov2"])
def test_half_precision_stays_close(kind: str, dtype: Any, folder: Any) -> None:
    pixel_values = reference.pixels(1, 28, 28) if kind == "dinov2" else reference.pixels(1, 64, 64)
    model = mlx_depth.load(folder(kind), dtype=dtype, reference="transformers")
    found = model.infer(mx.array(pixel_values)).depth
    assert relative_error(np.array(found), reference.run(reference.model(kind), pixel_values)) <= 0.1


# Photos


@pytest.mark.parametrize(
    ("kind", "size"), [("midas", (400, 600)), ("midas", (96, 64)), ("dinov2", (100, 143)), ("dinov2", (70, 98))]
)
def test_pixel_values_equal_transformers(kind: str, size: tuple[int, int]) -> None:
    image = (seeded(f"photo{size}", (*size, 3)) * 60 + 128).clip(0, 255).astype(np.uint8)
    expected = reference.processor(kind)(Image.fromarray(image), return_tensors="np")["pixel_values"]
    ours = follow_transformers(read_any_processor(reference.PROCESSORS[kind]))
    found = np.array(ours(image))
    assert found.shape[1:3] == ours.network_size(size)
    # The bytes are equal, so what is left is float32 rounding; one grey level would be 8e-3.
    assert np.abs(found - expected.transpose(0, 2, 3, 1)).max() <= 2e-6


@pytest.mark.parametrize("kind", ["vit", "hybrid", "dinov2"])
def test_from_a_photo_to_its_map(kind: str, folder: Any, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    with Image.open(EXAMPLES / "coffee.jpg") as image:
        image.resize((75, 50)).save(photo)
    upstream, process = reference.model(kind), reference.processor("dinov2" if kind == "dinov2" else "midas")
    with Image.open(photo) as image:
        pixel_values = process(image, return_tensors="np")["pixel_values"]
    depth = reference.run(upstream, pixel_values.transpose(0, 2, 3, 1))
    outputs = reference.transformers.modeling_outputs.DepthEstimatorOutput(
        predicted_depth=reference.torch.from_numpy(depth)
    )
    expected = process.post_process_depth_estimation(outputs, [(50, 75)])[0]["predicted_depth"].numpy()
    model = mlx_depth.load(folder(kind), dtype="float32", reference="transformers")
    result = model.predict(photo)
    assert result.kind is (DepthKind.METRIC if kind == "dinov2" else DepthKind.RELATIVE_INVERSE)
    assert result.depth.shape == (50, 75)
    assert relative_error(result.depth, expected) <= PHOTO_GATE
    batch = list(model.predict_batch([photo, photo]))
    assert len(batch) == 2
    assert all(relative_error(one.depth, expected) <= PHOTO_GATE for one in batch)


def test_a_padded_photo_that_is_too_large() -> None:
    processor = MODELS["dpt-dinov2-small-nyu"].processor
    assert processor.network_size((480, 640)) == (490, 644)
    with pytest.raises(OptionError, match=r"takes photos as they are, and 3024 × 4032 pixels .*give an input_size"):
        processor.network_size((3024, 4032))
    assert processor.network_size((3024, 4032), 480) == (476, 644)


def test_midas_keeps_the_aspect_whatever_a_file_says(folder: Any) -> None:
    asked, unasked = (mlx_depth.load(folder("vit"), dtype="float32", reference=rules) for rules in ("original", None))
    wanted = dataclasses.replace(MODELS["dpt-large"].processor, pillow_filter="bilinear")
    assert asked.processor == unasked.processor == wanted
    theirs = mlx_depth.load(folder("vit"), dtype="float32", reference="transformers").processor
    assert (theirs.keep_aspect, theirs.resample, theirs.pillow_filter) == (False, "pillow", "bilinear")
    assert theirs.network_size((480, 640)) == (384, 384)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("dinov2", {"do_pad": False}, "neither resizes nor pads photos to a size_divisor"),
        ("dinov2", {"size_divisor": 0}, "neither resizes nor pads photos to a size_divisor"),
        ("dinov2", {"image_mean": None}, "image_mean = None, not three numbers"),
        ("dinov2", {"do_normalize": False}, "do_normalize = False, but only True is supported"),
        ("midas", {"resample": 1}, "resample = 1, but only 3 is supported"),
        ("midas", {"size": True}, "size = True, not an equal height and width"),
        ("midas", {"do_pad": True}, "do_pad = True, but only False is supported"),
    ],
)
def test_a_processor_that_is_not_known(kind: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_any_processor(reference.PROCESSORS[kind] | change)


def test_files_of_2022_name_one_side() -> None:
    assert read_any_processor(reference.PROCESSORS["midas"] | {"size": 384}).input_size == 384


# Files


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_at_full_size(name: str) -> None:
    spec, upstream = MODELS[name], reference.meta_model(PUBLISHED[name])
    state = {key: mx.zeros(tuple(value.shape)) for key, value in upstream.state_dict().items()}
    assert sum(value.numel() for value in upstream.state_dict().values()) == spec.parameters
    family = FAMILIES[spec.family]
    evidence = Evidence({key: value.shape for key, value in state.items()}, upstream.config.to_dict())
    assert [f.name for f in FAMILIES.values() if f.detect(evidence)] == [spec.family]
    assert family.dialects["transformers"].read(evidence).config == spec.config
    network = family.network(spec.config)
    check_complete(network, to_mlx_layout(network, apply(family.dialects["transformers"].rules, state)))


def test_kinds_and_ranges() -> None:
    assert MODELS["dpt-large"].depth_kind is MODELS["dpt-hybrid-midas"].depth_kind is DepthKind.RELATIVE_INVERSE
    assert MODELS["dpt-dinov2-giant-kitti"].depth_kind is DepthKind.METRIC
    assert MODELS["dpt-dinov2-giant-kitti"].config.max_depth is None  # the last ReLU has no bound


@pytest.mark.parametrize("kind", ["vit", "hybrid", "dinov2"])
def test_a_converted_folder_is_the_same_model(kind: str, folder: Any, tmp_path: Path) -> None:
    plain = convert(folder(kind), tmp_path / "plain")
    pixel_values = mx.array(reference.pixels(1, 28, 42) if kind == "dinov2" else reference.pixels(1, 64, 96))
    first, second = (mlx_depth.load(path, dtype="float32") for path in (folder(kind), plain))
    assert first.processor == second.processor
    # Not bit for bit: standardized kernels are summed in the order in which they lie in memory.
    assert relative_error(np.array(second.infer(pixel_values).depth), np.array(first.infer(pixel_values).depth)) <= 1e-5
    packed = mlx_depth.load(convert(folder(kind), tmp_path / "packed", quantize=8, group_size=32), dtype="float32")
    error = relative_error(np.array(packed.infer(pixel_values).depth), np.array(first.infer(pixel_values).depth))
    assert 1e-6 < error < 0.05


STAGES = {"vit": 16, "hybrid": 17, "dinov2": 16}


@pytest.mark.parametrize("kind", STAGES)
def test_verify_compares_every_stage(kind: str, folder: Any) -> None:
    size = (28, 42) if kind == "dinov2" else 64
    report = verify(folder(kind), against="transformers", input_size=size)
    assert report.passed
    assert len(report.stages) == STAGES[kind]
    assert all(stage.relative <= GATE for stage in report.stages)


def test_verify_on_a_vit_takes_squares(folder: Any) -> None:
    with pytest.raises(OptionError, match="takes squares alone, not 64 × 96 pixels"):
        verify(folder("vit"), against="transformers", input_size=(64, 96))


def read(kind: str, changes: dict[str, Any]) -> Any:
    written = {**reference.config(kind).to_dict(), **changes}
    return family_of(kind).dialects["transformers"].read(Evidence({}, written)).config


def test_older_files_say_the_same() -> None:
    """Keys that earlier versions wrote, and null where a backbone of its own makes a key of the ViT's useless."""
    assert read("large", {"expand_channels": False, "num_labels": 150}) == dpt_large_config()
    unused = (
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "image_size",
        "patch_size",
        "qkv_bias",
        "num_channels",
    )
    nulls = {
        **dict.fromkeys((*unused, "backbone_out_indices", "layer_norm_eps", "num_attention_heads")),
        "neck_ignore_stages": [],
    }
    assert read("dinov2-base", nulls) == dpt_dinov2_config("base")
    spelled = {"global_padding": "SAME", "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 9]}
    backbone = {**reference.config("hybrid-midas").to_dict()["backbone_config"], **spelled}
    assert read("hybrid-midas", {"backbone_config": backbone, "embedding_type": "vit_hybrid"}) == dpt_hybrid_config()


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "large",
            {"use_batch_norm_in_fusion_residual": True},
            "use_batch_norm_in_fusion_residual is True, and only False",
        ),
        ("large", {"readout_type": "mean"}, "readout_type is 'mean', none of ignore, add, project"),
        ("large", {"reassemble_factors": [2, 2, 1, 0.5]}, r"reassemble_factors are \[2, 2, 1, 0.5\], not"),
        ("large", {"neck_hidden_sizes": [1, 2, 3]}, "neck_hidden_sizes is .*, not a list of 4 whole numbers"),
        ("large", {"intermediate_size": 1000}, "intermediate_size 1000 is no multiple of 1024"),
        ("large", {"backbone_out_indices": [5, 11, 17]}, "backbone_out_indices are .*, not 4 whole numbers"),
        ("large", {"backbone_out_indices": [5, 11, 17, 24]}, "out_layers .* not rising and below 24"),
        ("large", {"layer_norm_eps": "small"}, "layer_norm_eps is 'small', no number"),
        ("large", {"layer_norm_eps": 0.0}, "block_eps is 0.0, not between 0 and 1"),
        ("large", {"is_hybrid": True}, "the tensors are those of a plain ViT"),
        ("large", {"add_projection": None}, "is neither true nor false"),
        ("large", {"attention": "linear"}, "keys that mlx-depth does not know: attention"),
        ("hybrid-midas", {"is_hybrid": False}, "the tensors are those of a ResNet and a ViT"),
        ("hybrid-midas", {"neck_ignore_stages": [0]}, r"neck_ignore_stages are \[0\], not \[0, 1\]"),
        ("hybrid-midas", {"backbone_config": "bit"}, "backbone_config is 'bit', no object"),
        ("hybrid-midas", {"backbone_config": {"global_padding": None}}, "global_padding is None, not 'same'"),
        (
            "hybrid-midas",
            {"backbone_config": {"layer_type": "preactivation"}},
            "layer_type is 'preactivation', and only",
        ),
        (
            "hybrid-midas",
            {"backbone_config": {"hidden_sizes": [100, 512, 1024]}},
            r"\(100, 512, 1024\) channels.*cannot be built",
        ),
        (
            "hybrid-midas",
            {"neck_hidden_sizes": [96, 512, 768, 768]},
            r"have \(256, 512\) channels, and the head takes 2",
        ),
        ("dinov2-small", {"backbone_config": None}, "config.json has no backbone_config"),
        ("dinov2-small", {"fusion_hidden_size": 128}, "add_projection takes a fusion_hidden_size of 256, not 128"),
    ],
)
def test_a_config_that_cannot_be_followed(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(kind, changes)


def test_no_config_beside_the_weights(folder: Any, tmp_path: Path) -> None:
    weights = folder("dinov2") / "model.safetensors"
    (tmp_path / "model.safetensors").symlink_to(weights)
    with pytest.raises(CheckpointError, match=r"there is no config\.json beside the weights"):
        mlx_depth.load(tmp_path)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 3, 64, 96), r"pass \(B, H, W, 3\)"), ((1, 60, 96, 3), "are 60×96: make both sides multiples of 16")],
)
def test_wrong_pixel_values(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        DPT(dpt_large_config())(mx.zeros(shape))


def test_a_head_that_does_not_fit() -> None:
    config = dpt_large_config()
    with pytest.raises(CheckpointError, match="the head takes 3 layers, and out_layers are"):
        dataclasses.replace(config, head=dataclasses.replace(config.head, given_maps=1))
    with pytest.raises(CheckpointError, match="given_maps is 4, not 0 to 3"):
        dataclasses.replace(config.head, given_maps=4)
