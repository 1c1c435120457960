"""MiDaS against what the authors' own code computed: 2.1 small, and 3.0 on a ViT and on a hybrid; and their files."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import midas_weights
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_depth_convert import convert, verify
from mlx_depth_convert.recorder import recording
from support import correlation, relative_error, require

import mlx_depth
from mlx_depth import CheckpointError, DepthKind, ModelNotFoundError, OptionError, find_model
from mlx_depth.backbones.efficientnet_lite import EfficientNetLiteConfig
from mlx_depth.backbones.hybrid_vit import HybridViTConfig
from mlx_depth.backbones.vit import vit_config
from mlx_depth.heads.dpt import DPTConfig
from mlx_depth.models.base import DepthNetwork, Evidence
from mlx_depth.models.dpt.family import MIDAS_PROCESSOR
from mlx_depth.models.dpt.network import DPTHybridConfig, DPTNetworkConfig
from mlx_depth.models.families import FAMILIES
from mlx_depth.models.midas.network import MidasSmall, MidasSmallConfig, midas_small_config
from mlx_depth.processor import resize_depth
from mlx_depth.registry import MODELS
from mlx_depth.weights.rules import apply, check_complete, to_mlx_layout

GATE = 1e-4  # relative error, float32, from the same pixels
PHOTO_GATE = 1e-3  # from a file to its map
CORRELATION = 0.99999
GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "midas.npz")
FACTS = json.loads(str(GOLDEN["facts"]))
PHOTO = Path(__file__).parents[2] / "examples" / FACTS["photo"]
MODEL = {"small": "midas-v2.1-small", "vit": "dpt-large", "hybrid": "dpt-hybrid-midas"}
FILE = {"small": "midas_v21_small_256.pt", "vit": "dpt_large_384.pt", "hybrid": "dpt_hybrid_384.pt"}
CASES = [(name, number) for name, shapes in FACTS["inputs"].items() for number in range(len(shapes))]

_VIT = vit_config(32, 4, 2, (0, 1, 2, 3), table_size=4)
_HEAD = DPTConfig(32, 16, (8, 16, 24, 32), patch_size=16, readout="project", doubling=True)
_HYBRID = {
    **{field.name: getattr(_VIT, field.name) for field in dataclasses.fields(_VIT)},
    "out_layers": (2, 3),
    "raw_layers": (2, 3),
    "stem_channels": 32,
    "stage_channels": (128, 256, 512),
    "stage_depths": (1, 2, 1),
}
CONFIGS = {
    "small": midas_small_config(),
    "vit": DPTNetworkConfig(_VIT, _HEAD),
    "hybrid": DPTHybridConfig(
        HybridViTConfig(**_HYBRID), dataclasses.replace(_HEAD, out_channels=(128, 256, 24, 32), given_maps=2)
    ),
}


def family_of(name: str) -> Any:
    return FAMILIES[MODELS[MODEL[name]].family]


@functools.lru_cache(maxsize=3)
def kept(name: str) -> DepthNetwork:
    """Our network with the weights of the golden, by the authors' names and rules."""
    family = family_of(name)
    config, _ = family.follow(CONFIGS[name], family.processor, "original")
    network = family.network(config)
    state = midas_weights.state(FACTS["shapes"][name])
    rules = family.dialects["original"].rules
    weights = to_mlx_layout(network, apply(rules, {key: mx.array(value) for key, value in state.items()}))
    check_complete(network, weights)
    network.load_weights(list(weights.items()))
    return network


def pixels(name: str, number: int) -> mx.array:
    return mx.array(midas_weights.pixels(tuple(FACTS["inputs"][name][number])))


def assert_equal(found: Any, expected: np.ndarray) -> None:
    assert relative_error(np.array(found), expected) <= GATE
    assert correlation(np.array(found), expected) >= CORRELATION


@pytest.mark.parametrize(("name", "number"), CASES)
def test_depth_equals_the_authors(name: str, number: int) -> None:
    expected = GOLDEN[f"{name}.{number}.depth"]
    assert expected.std() > 0.1 * expected.mean()
    assert_equal(kept(name)(pixels(name, number)).depth, expected)


# The authors' modules → ours, where the values are the same
TWINS = {
    "small": {f"scratch.refinenet{i}": f"fusion.{4 - i}" for i in (4, 3, 2, 1)},
    "vit": {f"scratch.refinenet{i}": f"head.fusion.{4 - i}" for i in (4, 3, 2, 1)}
    | {f"scratch.layer{i}_rn": f"head.reassemble.{i - 1}" for i in (1, 2, 3, 4)},
}
TWINS["hybrid"] = TWINS["vit"]


@pytest.mark.parametrize("name", TWINS)
def test_every_stage_equals_the_authors(name: str) -> None:
    found: dict[str, np.ndarray] = {}

    def record(path: str, module: Any, argument: object, result: Any) -> None:
        if path in TWINS[name].values():
            found[path] = np.array(result)

    network = kept(name)
    with recording(network, record):
        mx.eval(network(pixels(name, 0)).depth)
    if name == "small":
        found |= {f"map {i}": np.array(x) for i, x in enumerate(network.backbone(pixels(name, 0)))}
    twins = TWINS[name] | ({f"pretrained.layer{i + 1}": f"map {i}" for i in range(4)} if name == "small" else {})
    assert set(twins) == set(FACTS["stages"][name])
    for theirs, ours in twins.items():
        step = int(GOLDEN[f"{name}.0.{theirs}.step"])
        assert_equal(found[ours].ravel()[::step], GOLDEN[f"{name}.0.{theirs}"])


DRIFTS = {
    "small": {
        "depthwise": ("backbone.levels.2.1.3.depthwise.weight", lambda w: w * 1.03),
        "folded-bias": ("backbone.levels.0.1.0.expand.bias", lambda b: b + 0.02),
        "fusion": ("fusion.2.residual_conv_unit1.conv2.weight", lambda w: w * 1.01),
    },
    "vit": {"readout": ("head.reassemble.2.readout.bias", lambda b: b + 0.02)},
    "hybrid": {"shortcut": ("backbone.resnet.stages.1.0.shortcut_norm.weight", lambda w: w * 1.01)},
}


@pytest.mark.parametrize(("name", "drift"), [(name, drift) for name, drifts in DRIFTS.items() for drift in drifts])
def test_an_injected_drift_fails_the_gate(name: str, drift: str) -> None:
    network = kept(name)
    path, change = DRIFTS[name][drift]
    before = dict(tree_flatten(network.parameters()))[path]
    network.load_weights([(path, change(before))], strict=False)
    try:
        with pytest.raises(AssertionError):
            assert_equal(network(pixels(name, 0)).depth, GOLDEN[f"{name}.0.depth"])
    finally:
        network.load_weights([(path, before)], strict=False)


@pytest.mark.parametrize(("name", "padding"), [("small", "efficientnet_lite"), ("hybrid", "hybrid_vit")])
def test_padding_on_the_wrong_side_fails_the_gate(name: str, padding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_depth.nn.same_padding import pad_same

    def turned(x: mx.array, kernel_size: int, stride: int) -> mx.array:
        return pad_same(x[:, ::-1], kernel_size, stride)[:, ::-1]

    monkeypatch.setattr(f"mlx_depth.backbones.{padding}.pad_same", turned)
    with pytest.raises(AssertionError):
        assert_equal(kept(name)(pixels(name, 0)).depth, GOLDEN[f"{name}.0.depth"])


# Photos


@pytest.mark.parametrize(("name", "model"), [("small", "midas-v2.1-small"), ("vit", "dpt-large")])
def test_photos_have_the_authors_sizes(name: str, model: str) -> None:
    sizes = [MODELS[model].processor.network_size(tuple(size)) for size in FACTS["photo_sizes"]]
    assert sizes == [tuple(size) for size in GOLDEN[f"{name}.sizes"].tolist()]


@pytest.mark.parametrize("name", ["small", "vit"])
def test_a_photo_becomes_the_authors_pixels(name: str) -> None:
    pixel_values = MODELS[MODEL[name]].processor(mlx_depth.load_image(PHOTO).pixels)
    # The authors' OpenCV reads JPEG by another decoder: single grey levels.
    assert np.abs(np.array(pixel_values)[0, ::8, ::8] - GOLDEN[f"{name}.pixels"]).max() <= 0.05


def test_from_a_photo_to_its_map_by_midas_3_0() -> None:
    processor, image = MODELS["dpt-large"].processor, mlx_depth.load_image(PHOTO)
    depth = resize_depth(kept("vit")(processor(image.pixels)).depth, image.info.size, method=processor.restore)
    assert relative_error(np.array(depth)[0, ::8, ::8], GOLDEN["vit.photo"]) <= PHOTO_GATE


@pytest.fixture(scope="module")
def authors_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``midas_v21_small_256.pt`` as MiDaS has it, with weights of ours."""
    torch = require("reference", "torch")
    file = tmp_path_factory.mktemp("midas") / FILE["small"]
    state = midas_weights.state(FACTS["shapes"]["small"])
    torch.save({name: torch.from_numpy(np.array(value)) for name, value in state.items()}, file)
    return file


@pytest.fixture(scope="module")
def converted(authors_file: Path) -> Path:
    return convert(authors_file, authors_file.parent / "small")


def test_from_the_authors_file_to_the_map_of_a_photo(converted: Path) -> None:
    model = mlx_depth.load(converted, dtype="float32")
    assert (model.spec.name, model.spec.license) == ("midas-v2.1-small", "MIT")
    result = model.predict(PHOTO)
    assert (result.kind, result.input_size) == (DepthKind.RELATIVE_INVERSE, (160, 256))
    assert relative_error(result.depth[::8, ::8], GOLDEN["small.photo"]) <= PHOTO_GATE
    one, two = model.predict_batch([PHOTO, PHOTO], input_size=64)
    assert relative_error(one.depth, two.depth) <= 1e-5


def test_nothing_of_it_is_quantized_or_compared_with_a_package(
    authors_file: Path, converted: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=r"midas-v2\.1-small has no layers that are quantized: leave --quantize out"):
        convert(authors_file, tmp_path / "small", quantize=8)
    with pytest.raises(OptionError, match=r"cannot be compared with transformers, which has no midas_small"):
        verify(converted, against="transformers")
    assert verify(converted, against=authors_file, input_size=64).passed
    with pytest.raises(OptionError, match=r"transformers has no MiDaS 2\.1: leave reference out"):
        mlx_depth.load(converted, reference="transformers")


# Files


@pytest.mark.parametrize("name", MODEL)
def test_every_tensor_at_full_size(name: str) -> None:
    spec, published = MODELS[MODEL[name]], FACTS["published"][name]
    state = {key: mx.zeros(shape) for key, shape in published["shapes"].items()}
    evidence = Evidence({key: tuple(shape) for key, shape in published["shapes"].items()})
    assert [family.name for family in FAMILIES.values() if family.detect(evidence)] == [spec.family]
    family = FAMILIES[spec.family]
    assert family.dialects["original"].read(evidence).config == spec.config
    network = family.network(spec.config)
    check_complete(network, to_mlx_layout(network, apply(family.dialects["original"].rules, state)))
    classifier = sum(
        np.prod(shape) for key, shape in published["shapes"].items() if key.startswith("pretrained.model.head")
    )
    assert published["parameters"] - classifier == spec.parameters


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("dpt_large_384", "dpt-large"),
        ("dpt_large-midas-2f21e586", "dpt-large"),
        ("dpt_hybrid_384", "dpt-hybrid-midas"),
        ("dpt_hybrid-midas-501f0c75", "dpt-hybrid-midas"),
        ("dpt_beit_large_512", None),
        ("my_dpt_large", None),
    ],
)
def test_official_names_of_3_0(file: str, model: str | None) -> None:
    assert FAMILIES["dpt"].published_name(file) == FAMILIES["dpt_hybrid"].published_name(file) == model


@pytest.mark.parametrize("file", ["midas_v21_small_256", "midas_v21_small-70d6b9c8", "MiDaS_v21_small"])
def test_official_names_of_2_1(file: str) -> None:
    assert FAMILIES["midas_small"].published_name(file) == "midas-v2.1-small"
    assert FAMILIES["midas_small"].published_name("midas_v21_384") is None


@pytest.mark.parametrize("file", ["dpt_hybrid_nyu-2ce69ec7", "dpt_hybrid_kitti-cb926ef4"])
def test_metric_files_with_the_same_tensors_are_refused(file: str) -> None:
    with pytest.raises(CheckpointError, match="is a metric model with a scale and an offset of its own"):
        FAMILIES["dpt_hybrid"].published_name(file)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("MiDaS_small", "midas-v2.1-small"),
        ("midas_v21_small_256", "midas-v2.1-small"),
        ("DPT_Large", "dpt-large"),
        ("dpt_large_384", "dpt-large"),
        ("DPT_Hybrid", "dpt-hybrid-midas"),
        ("dpt_hybrid_384", "dpt-hybrid-midas"),
    ],
)
def test_the_names_that_people_know(alias: str, name: str) -> None:
    assert find_model(alias) is MODELS[name]


@pytest.mark.parametrize("name", ["dpt_beit_large_512", "dpt_swin2_tiny_256", "midas_v21_384", "midas-v3.1-large"])
def test_what_is_not_here_yet(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"MiDaS (3\.1|2\.1 large) is not here yet"):
        find_model(name)


def test_small_is_downloaded_by_hand() -> None:
    with pytest.raises(ModelNotFoundError, match=r"download it, then mlx-depth convert midas_v21_small_256\.pt midas-"):
        mlx_depth.load("midas-small")


@pytest.mark.parametrize("name", MODEL)
def test_a_config_that_is_not_midas(name: str) -> None:
    read = family_of(name).dialects["original"].read
    shapes = {key: tuple(shape) for key, shape in FACTS["published"][name]["shapes"].items()}
    with pytest.raises(CheckpointError, match=r"keys that MiDaS does not know: features\. Remove the file"):
        read(Evidence(shapes, {"features": 64}))


def test_a_network_of_other_sizes_needs_its_config() -> None:
    shapes = {key: tuple(shape) for key, shape in FACTS["shapes"]["vit"].items()}
    with pytest.raises(
        CheckpointError, match=r"no published MiDaS has these tensors \(pretrained\.model\.pos_embed is"
    ):
        FAMILIES["dpt"].dialects["original"].read(Evidence(shapes))


def test_a_preprocessor_config_beside_small() -> None:
    with pytest.raises(CheckpointError, match=r"a preprocessor_config\.json lies beside MiDaS 2\.1's"):
        FAMILIES["midas_small"].read_processor({})


@pytest.mark.parametrize("features", [7, 1, "64"])
def test_features_that_cannot_be(features: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"halve {features}|features is {features!r}, not made of whole numbers"):
        MidasSmallConfig(EfficientNetLiteConfig(), features, 32)


def test_stages_that_cannot_be() -> None:
    with pytest.raises(CheckpointError, match=r"has 7 stages, not \(24, 32\) channels"):
        EfficientNetLiteConfig(stage_channels=(24, 32))


def test_wrong_pixel_values() -> None:
    with pytest.raises(OptionError, match="are 48×64: make both sides multiples of 32"):
        MidasSmall(midas_small_config())(mx.zeros((1, 48, 64, 3)))


def test_rules_of_3_0_are_the_authors() -> None:
    assert MODELS["dpt-large"].processor == MODELS["dpt-hybrid-midas"].processor == MIDAS_PROCESSOR
    config, _ = FAMILIES["dpt"].follow(MODELS["dpt-large"].config, MIDAS_PROCESSOR, "original")
    assert (MODELS["dpt-large"].config.backbone.block_eps, config.backbone.block_eps) == (1e-12, 1e-6)
