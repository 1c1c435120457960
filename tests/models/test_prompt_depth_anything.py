"""Prompt Depth Anything against transformers: from the same pixels and prompts, and from files to metres."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import reference
import reference_prompt
from hub_server import FakeHub
from mlx.utils import tree_flatten
from opencv import cv2
from PIL import Image
from support import correlation, relative_error

import mlx_depth
from mlx_depth import CheckpointError, DepthKind, DepthModel, ImageError, OptionError
from mlx_depth.checkpoints.checkpoint import read_checkpoint
from mlx_depth.checkpoints.detect import detect
from mlx_depth.models.base import Evidence
from mlx_depth.models.prompt_depth_anything.family import FAMILY, PROCESSOR
from mlx_depth.models.prompt_depth_anything.network import PromptDepthAnything, prompt_depth_anything_config
from mlx_depth.registry import MODELS
from mlx_depth.weights.rules import apply, parameter_shapes, to_mlx_layout

GATE = 1e-4  # relative error, float32, from the same pixels and prompts
CORRELATION = 0.99999
PHOTO = Path(__file__).parents[2] / "examples" / "coffee.jpg"

CASES = [
    pytest.param("tiny", (1, 70, 98), (19, 25), id="70x98"),
    pytest.param("tiny", (3, 98, 70), (192, 256), id="batch-of-3-lidar"),
    pytest.param("tiny", (1, 14, 126), (1, 2), id="one-row-two-values"),
    pytest.param("tiny", (1, 56, 56), (300, 200), id="larger-than-the-image"),
    pytest.param("tiny", (2, 56, 112), (16, 32), id="of-the-size-of-a-map"),
    pytest.param("small", (1, 154, 210), (192, 256), id="small"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory):
    """Upstream models saved as on the Hub, each once."""
    made = {}

    def folder(size: str = "tiny", **options: bool) -> Path:
        key = (size, *options.items())
        if key not in made:
            made[key] = reference_prompt.save(
                reference_prompt.model(size, **options), tmp_path_factory.mktemp("hub") / "model"
            )
        return made[key]

    return folder


@pytest.fixture
def tiny(folders) -> DepthModel:
    return mlx_depth.load(folders(), dtype="float32", reference="transformers")


def infer(model: DepthModel, pixel_values: np.ndarray, prompt: np.ndarray | None) -> np.ndarray:
    given = {} if prompt is None else {"prompt_depth": mx.array(prompt)}
    return np.array(model.infer(mx.array(pixel_values), given).depth)


def assert_equal(found: np.ndarray, expected: np.ndarray) -> None:
    assert relative_error(found, expected) <= GATE
    assert correlation(found, expected) >= CORRELATION


@pytest.mark.parametrize(("size", "shape", "prompt_size"), CASES)
def test_it_equals_transformers_with_a_prompt_and_without(size, shape, prompt_size, folders):
    model = mlx_depth.load(folders(size), dtype="float32", reference="transformers")
    upstream, pixel_values = reference_prompt.model(size), reference.pixels(*shape)
    prompt = reference_prompt.prompt(shape[0], prompt_size)
    expected = reference_prompt.run(upstream, pixel_values, prompt)
    plain = reference_prompt.run(upstream, pixel_values, None)
    span = np.ptp(prompt, axis=(1, 2))[:, None, None]
    assert np.abs(expected - (plain * span + prompt.min(axis=(1, 2))[:, None, None])).max() > 0.02, (
        "the prompt is heard"
    )
    assert_equal(infer(model, pixel_values, prompt), expected)
    assert_equal(infer(model, pixel_values, None), plain)


def test_a_relative_head_equals_transformers(folders):
    model = mlx_depth.load(folders(metric=False), dtype="float32", reference="transformers")
    upstream, pixel_values = reference_prompt.model("tiny", metric=False), reference.pixels(2, 56, 112)
    for prompt in (reference_prompt.prompt(2), None):
        assert_equal(infer(model, pixel_values, prompt), reference_prompt.run(upstream, pixel_values, prompt))
    result = model.predict(PHOTO, prompt=reference_prompt.prompt(1)[0], input_size=70)
    assert (result.kind, result.max_depth) == (DepthKind.METRIC, None)  # above its prompt, too


def test_the_authors_position_rule(folders):
    model = mlx_depth.load(folders(), dtype="float32", reference="original")
    upstream, pixel_values, prompt = (
        reference_prompt.model("tiny"),
        reference.pixels(1, 154, 210),
        reference_prompt.prompt(1),
    )
    other_rule = reference_prompt.run(upstream, pixel_values, prompt)
    try:
        expected = reference_prompt.run(reference.with_authors_positions(upstream), pixel_values, prompt)
    finally:
        reference.without_authors_positions(upstream)
    assert relative_error(expected, other_rule) > GATE, "the two rules differ, so the test can tell them apart"
    assert_equal(infer(model, pixel_values, prompt), expected)


DRIFTS = {
    "a-bias-of-a-prompt": ("head.fusion.2.prompt.conv1.bias", lambda b: b + 0.01),
    "one-tap-of-a-prompt": ("head.fusion.0.prompt.conv3.weight", lambda w: w.at[0, 1, 1, 0].add(0.05)),
    "a-prompt-left-out": ("head.fusion.3.prompt.conv3.weight", mx.zeros_like),
}


@pytest.mark.parametrize("name", DRIFTS)
def test_an_injected_drift_fails_the_gate(name, tiny):
    pixel_values, prompt = reference.pixels(1, 70, 98), reference_prompt.prompt(1)
    expected = reference_prompt.run(reference_prompt.model("tiny"), pixel_values, prompt)
    path, change = DRIFTS[name]
    tiny.network.load_weights([(path, change(dict(tree_flatten(tiny.network.parameters()))[path]))], strict=False)
    with pytest.raises(AssertionError):
        assert_equal(infer(tiny, pixel_values, prompt), expected)


def test_a_prompt_at_other_pixels_fails_the_gate(tiny, monkeypatch):
    """As with corners aligned: upstream resizes prompts by their centers."""
    from mlx_depth.heads import prompt_dpt

    resize = prompt_dpt.resize
    pixel_values, prompt = reference.pixels(1, 70, 98), reference_prompt.prompt(1)
    expected = reference_prompt.run(reference_prompt.model("tiny"), pixel_values, prompt)
    monkeypatch.setattr(prompt_dpt, "resize", lambda x, size: resize(x, size, align_corners=True))
    with pytest.raises(AssertionError):
        assert_equal(infer(tiny, pixel_values, prompt), expected)


@pytest.mark.parametrize(("dtype", "gate"), [("float16", 2e-2), ("bfloat16", 1e-1)])
def test_half_precision_stays_close(dtype, gate, folders):
    pixel_values, prompt = reference.pixels(1, 70, 98), reference_prompt.prompt(1)
    expected = reference_prompt.run(reference_prompt.model("tiny"), pixel_values, prompt)
    model = mlx_depth.load(folders(), dtype=dtype, reference="transformers")
    found = infer(model, pixel_values, prompt)
    assert found.dtype == np.float32  # metres of LiDAR have more steps than half precision
    assert relative_error(found, expected) <= gate


# From files.


def lidar(folder: Path) -> Path:
    """A map of the photo's shape as a phone writes it: 192×256, 16 bits, millimetres."""
    millimetres = np.rint(reference_prompt.prompt(1, (192, 256))[0] * 1000).astype(np.uint16)
    Image.fromarray(millimetres).save(folder / "lidar.png")
    return folder / "lidar.png"


def by_transformers(folder: Path, upstream, prompt: Path, side: int) -> np.ndarray:
    """Its processor, network and resizing, from the same two files."""
    processor = reference.transformers.PromptDepthAnythingImageProcessorPil.from_pretrained(folder)
    photo = Image.open(PHOTO).convert("RGB")
    size = {"height": side, "width": side}
    inputs = processor(images=photo, prompt_depth=Image.open(prompt), size=size, return_tensors="pt")
    with reference.torch.no_grad():
        outputs = upstream(**inputs)
    (done,) = processor.post_process_depth_estimation(outputs, [(photo.height, photo.width)])
    return done["predicted_depth"].numpy()


def test_from_a_photo_and_lidar_to_metres(folders, tmp_path):
    prompt = lidar(tmp_path)
    expected = by_transformers(folders(), reference_prompt.model("tiny"), prompt, 224)
    model = mlx_depth.load(folders(), dtype="float32", reference="transformers")
    result = model.predict(PHOTO, prompt=prompt, input_size=224)
    assert relative_error(result.depth, expected) <= 1e-3
    assert correlation(result.depth, expected) >= CORRELATION
    metres = reference_prompt.prompt(1, (192, 256))
    assert (result.kind, result.unit) == (DepthKind.METRIC, "m")
    assert result.max_depth == pytest.approx(metres.max(), abs=0.001)


@pytest.mark.nightly
def test_the_command_downloads_the_model_by_its_name(folders, tmp_path):
    """The whole way at full size, with a hub on this machine."""
    repository = tmp_path / "hub" / MODELS["prompt-depth-anything-small"].hub_id
    repository.parent.mkdir(parents=True)
    repository.symlink_to(folders("small"))
    prompt, out = lidar(tmp_path), tmp_path / "depth.npy"
    command = [sys.executable, "-m", "mlx_depth", "predict", PHOTO, "--model", "prompt-depth-anything-small", "-o", out]
    command += ["--prompt", prompt, "--reference", "transformers", "--input-size", "154", "--dtype", "float32"]
    with FakeHub(tmp_path / "hub") as hub:
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run([*map(str, command)], env=os.environ | own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "metric depth" in done.stdout
    assert json.loads(out.with_suffix(".json").read_text())["license"] == "Apache-2.0"
    expected = by_transformers(folders("small"), reference_prompt.model("small"), prompt, 154)
    assert relative_error(np.load(out), expected) <= 1e-3
    assert correlation(np.load(out), expected) >= CORRELATION


def test_without_a_prompt_depth_has_no_unit(folders):
    model = mlx_depth.load(folders(), dtype="float32")
    result = model.predict(PHOTO, input_size=140)
    assert (result.kind, result.unit, result.max_depth) == (DepthKind.RELATIVE, "", None)
    assert 0 < result.depth.min() < result.depth.max() < 1


@pytest.mark.parametrize("size", [(1440, 1920), (1920, 1440), (1080, 1920), (700, 1001), (28, 40), (5, 9)])
def test_the_authors_sizes(size):
    """``load_image`` of their ``io_wrapper.py``: the long side 1008 at most, both a multiple of 14 below."""
    scale = min(1008 / max(size), 1)
    assert PROCESSOR.network_size(size) == tuple(max(int(side * scale // 14), 1) * 14 for side in size)


@pytest.mark.parametrize("size", [(300, 400), (420, 315), (224, 280)])
def test_the_authors_pixels(size):
    """OpenCV's INTER_AREA on floats, where they shrink, and the photo itself where they do not."""
    image = np.random.RandomState(0).randint(0, 256, (*size, 3), np.uint8)
    processor = dataclasses.replace(PROCESSOR, input_size=280)
    height, width = processor.network_size(size)
    resized = cv2.resize(image.astype(np.float32) / 255, (width, height), interpolation=cv2.INTER_AREA)
    expected = (resized - np.array(processor.mean)) / np.array(processor.std)
    np.testing.assert_allclose(np.array(processor(image))[0], expected, atol=2e-5)


def test_the_rules_of_both_references(folders):
    checkpoint = read_checkpoint(folders())
    assert checkpoint.spec.processor == PROCESSOR
    config, theirs = FAMILY.follow(checkpoint.spec.config, PROCESSOR, "transformers")
    assert (theirs.input_size, theirs.policy, theirs.resample, theirs.restore) == (756, "minimal", "pillow", "bicubic")
    assert FAMILY.follow(config, theirs, "original") == (checkpoint.spec.config, PROCESSOR)
    # A photo of 4:3 has the same size by both, which is that of the published values.
    assert PROCESSOR.network_size((1440, 1920)) == theirs.network_size((1440, 1920)) == (756, 1008)


def test_another_scale_of_prompts_is_refused(folders, tmp_path):
    config = json.loads((folders() / "preprocessor_config.json").read_text())
    with pytest.raises(CheckpointError, match=r"prompt_scale_to_meter = 0\.01, but only 0\.001 is supported"):
        FAMILY.read_processor({**config, "prompt_scale_to_meter": 0.01})


# Bad input.


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 19, 25, 1), r"prompt_depth has shape \(1, 19, 25, 1\): pass \(B, h, w\) with B = 2"),
        ((19, 25), r"has shape \(19, 25\)"),
        ((1, 19, 25), r"has shape \(1, 19, 25\)"),
        ((2, 0, 25), r"has shape \(2, 0, 25\)"),
    ],
)
def test_wrong_prompts_of_the_network(shape, message):
    network = PromptDepthAnything(prompt_depth_anything_config("small"))
    with pytest.raises(OptionError, match=message):
        network(mx.zeros((2, 28, 42, 3)), mx.zeros(shape))


def test_a_constant_prompt_is_an_error_not_a_map_of_nan(tiny):
    """Upstream divides by zero."""
    with pytest.raises(ImageError, match=r"is 1\.5 m everywhere: a prompt needs two different distances"):
        tiny.predict(PHOTO, prompt=np.full((19, 25), 1.5, np.float32), input_size=70)


def test_holes_of_a_sensor_do_not_move_the_nearest_distance(tiny):
    """Upstream takes a zero for a distance, and would begin there."""
    prompt = reference_prompt.prompt(1)[0] + 2
    holes = prompt.copy()
    holes[3:6, 10:14] = 0
    with pytest.warns(UserWarning, match="12 of 475 values"):
        result = tiny.predict(PHOTO, prompt=holes, input_size=70)
    full = tiny.predict(PHOTO, prompt=prompt, input_size=70)
    assert result.depth.min() >= 2
    assert relative_error(result.depth, full.depth) < 0.1


# Names and shapes.


@pytest.mark.parametrize("dialect", ["transformers", "original"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_every_tensor_of_every_size_has_its_place(size, dialect):
    state = reference_prompt.meta_model(size).state_dict()
    state = reference_prompt.authors_names(state) if dialect == "original" else reference.hub_names(state)
    tensors = reference.tensors(state)
    evidence = Evidence({name: array.shape for name, array in tensors.items()})
    family, found = detect(evidence, Path("model.ckpt"))
    assert (family.name, found) == ("prompt_depth_anything", dialect)
    config = family.dialects[dialect].read(evidence).config
    assert config == prompt_depth_anything_config(size)
    network = PromptDepthAnything(config)
    weights = to_mlx_layout(network, apply(family.dialects[dialect].rules, tensors))
    assert {name: array.shape for name, array in weights.items()} == parameter_shapes(network)


@pytest.mark.parametrize("size", ["small", "large"])
def test_the_registry_counts_what_upstream_has(size):
    spec = MODELS[f"prompt-depth-anything-{size}"]
    assert spec.parameters == sum(tensor.numel() for tensor in reference_prompt.meta_model(size).parameters())
    written = {**reference_prompt.config(size).to_dict(), "max_depth": None}  # as the Hub's files have had it
    reading = FAMILY.dialects["transformers"].read(Evidence({}, written))
    assert reading.config == spec.config


def test_v2_and_prompts_do_not_take_each_other(folders, tmp_path):
    plain = reference.save(reference.model("tiny"), tmp_path / "v2")
    assert mlx_depth.load(plain, dtype="float32").spec.family == "depth_anything"
    assert mlx_depth.load(folders(), dtype="float32").spec.family == "prompt_depth_anything"
    config = json.loads((folders() / "config.json").read_text())
    names = list(reference_prompt.model("tiny").state_dict())
    evidence = Evidence(dict.fromkeys(names, (1,)), {**config, "model_type": "depth_anything"})
    with pytest.raises(
        CheckpointError, match="says model_type 'depth_anything', but the tensors are prompt_depth_anyt"
    ):
        detect(evidence, Path("x"))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("promptda_vits", "prompt-depth-anything-small"),
        ("promptda_vitl", "prompt-depth-anything-large"),
        ("depth-anything/prompt-depth-anything-vits-transparent", "prompt-depth-anything-small-transparent"),
        ("prompt_depth_anything_vitl", "prompt-depth-anything-large"),
        ("depth_anything_v2_vits", None),
        ("prompt-depth-anything-vitb", None),
    ],
)
def test_official_names(file, name):
    assert FAMILY.published_name(file) == name
