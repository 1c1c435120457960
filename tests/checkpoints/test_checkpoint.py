"""Checkpoints: every dialect and container loads to the same weights; every fault has its own error."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import reference
from safetensors.numpy import save_file
from support import correlation

import mlx_depth
from mlx_depth.checkpoints.checkpoint import build_network, quantize_checkpoint, read_checkpoint, write_checkpoint
from mlx_depth.errors import CheckpointError, OptionError
from mlx_depth.models.depth_anything.network import depth_anything_config
from mlx_depth.registry import DEMO_FOLDER, MODELS
from mlx_depth.weights.quantization import Quantization
from mlx_depth.weights.safetensors_io import write_safetensors

TINY = {"size": "tiny"}


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory) -> Path:
    return reference.save(reference.model("tiny"), tmp_path_factory.mktemp("hub"))


@pytest.fixture
def folder(hub_folder, tmp_path) -> Path:
    """A private copy of the tiny Hub folder."""
    return Path(shutil.copytree(hub_folder, tmp_path / "tiny"))


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    backbone = changes.pop("backbone", {})
    config["backbone_config"].update(backbone)
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def state_of(size: str = "tiny") -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in reference.model(size).state_dict().items()}


def same(first: dict[str, mx.array], second: dict[str, mx.array]) -> bool:
    return first.keys() == second.keys() and all(mx.array_equal(first[name], second[name]) for name in first)


def test_all_dialects_and_containers_hold_the_same_weights(hub_folder, tmp_path):
    expected = read_checkpoint(hub_folder).weights
    config = (hub_folder / "config.json").read_text()
    state = state_of()
    variants = {
        "new": state,
        "hub": reference.hub_names(state),
        "original": reference.authors_names(state),
    }
    for name, tensors in variants.items():
        out = tmp_path / name
        out.mkdir()
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, out / "model.safetensors")
        (out / "config.json").write_text(config)
        found = read_checkpoint(out)
        assert same(found.weights, expected), name
        assert found.dialect == ("original" if name == "original" else "transformers")


def test_a_fine_tune_is_its_own_model(folder):
    """A folder of Depth Anything's shape with a range, a size and a card of its own."""
    edit_config(folder, depth_estimation_type="metric", max_depth=10)
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: depth-anything/Depth-Anything-V2-Small-hf\n---\n")
    sizes = {"size": {"height": 70, "width": 70}, "ensure_multiple_of": 14, "keep_aspect_ratio": True}
    colors = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(sizes | colors))
    mine = Path(shutil.move(folder, folder.with_name("my-kitchen-depth")))
    result = mlx_depth.predict(np.full((40, 60, 3), 99, np.uint8), model=mine)
    assert (result.model, result.license, result.input_size) == ("my-kitchen-depth", "MIT", (70, 112))
    assert (result.kind.value, result.max_depth) == ("metric", 10)


def test_sharded_folders(hub_folder, tmp_path):
    reference.model("tiny").save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert same(read_checkpoint(tmp_path).weights, read_checkpoint(hub_folder).weights)


def test_transformers_writes_the_old_names(hub_folder):
    """What this test suite calls a Hub folder is one."""
    from safetensors import safe_open

    with safe_open(hub_folder / "model.safetensors", "np") as file:
        names = set(file.keys())
    assert "backbone.encoder.layer.0.attention.attention.query.weight" in names


def test_our_own_format_gives_back_what_was_written(hub_folder, tmp_path):
    first = read_checkpoint(hub_folder)
    out = write_checkpoint(first, tmp_path / "ours", source={"id": "here"}, card="# card\n")
    second = read_checkpoint(out)
    assert second.dialect == "mlx"
    assert second.spec.config == first.spec.config
    assert second.spec.processor == first.spec.processor
    assert same(second.weights, first.weights)
    assert (out / "README.md").read_text() == "# card\n"
    assert json.loads((out / "config.json").read_text())["source"] == {"id": "here"}


def test_two_writes_give_identical_bytes(hub_folder, tmp_path):
    checkpoint = quantize_checkpoint(read_checkpoint(hub_folder), Quantization(4, 32))
    written = [write_checkpoint(checkpoint, tmp_path / name, source={}, card="") for name in ("a", "b")]
    for name in ("model.safetensors", "config.json"):
        assert (written[0] / name).read_bytes() == (written[1] / name).read_bytes()


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_quantized_folders_load_on_both_kinds_of_device(bits, group_size, hub_folder, tmp_path):
    """Only widths that the group divides are packed: tiny's 32 and 128 channels."""
    plain = read_checkpoint(hub_folder)
    packed = quantize_checkpoint(plain, Quantization(bits, group_size))
    read = read_checkpoint(write_checkpoint(packed, tmp_path / "q", source={}, card="", dtype=mx.float16))
    assert read.quantization == Quantization(bits, group_size)
    scales = {name for name in read.weights if name.endswith(".scales")}
    assert all(name.startswith("backbone.blocks.") for name in scales)
    assert len(scales) == {32: 24, 64: 4, 128: 4}[group_size]
    pixel_values = mx.array(reference.pixels(1, 28, 28))
    depths = [
        np.array(build_network(checkpoint, dtype=mx.float32, expand=expand)(pixel_values).depth)
        for checkpoint, expand in ((plain, False), (read, True), (read, False))
    ]
    assert correlation(depths[1], depths[0]) > {4: 0.9, 6: 0.99, 8: 0.999}[bits]
    assert np.allclose(depths[1], depths[2], rtol=1e-4)


def test_safetensors_written_by_us_are_read_by_safetensors(tmp_path):
    from safetensors.numpy import load_file

    arrays = {"a": mx.arange(6).astype(mx.float32).reshape(2, 3), "b": mx.ones((3,), dtype=mx.float16)}
    arrays["c"] = arrays["a"].T  # not contiguous
    write_safetensors(tmp_path / "x.safetensors", arrays, {"k": "v"})
    for name, value in load_file(tmp_path / "x.safetensors").items():
        assert np.array_equal(value, np.array(arrays[name]))


def test_bfloat16_survives(tmp_path):
    array = mx.array([1.0, -2.5, 3e38]).astype(mx.bfloat16)
    write_safetensors(tmp_path / "x.safetensors", {"a": array}, {})
    assert mx.array_equal(mx.load(str(tmp_path / "x.safetensors"))["a"], array)


def test_an_existing_folder_is_never_written_over(hub_folder, tmp_path):
    with pytest.raises(OptionError, match="exists: choose another folder"):
        write_checkpoint(read_checkpoint(hub_folder), tmp_path, source={}, card="")


def test_nothing_is_left_of_a_failed_write(hub_folder, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("mlx_depth.weights.safetensors_io._write_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(read_checkpoint(hub_folder), tmp_path / "out", source={}, card="")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("depth_anything_v2_vits.safetensors", "depth-anything-v2-small"),
        ("depth_anything_v2_metric_hypersim_vits.safetensors", "depth-anything-v2-metric-indoor-small"),
        ("depth_anything_v2_metric_vkitti_vits.safetensors", "depth-anything-v2-metric-outdoor-small"),
        ("depth_anything_vits14.safetensors", "depth-anything-v1-small"),
    ],
)
def test_the_authors_files_are_known_by_tensors_and_name(file, model, small_authors_file, tmp_path):
    path = Path(shutil.copy(small_authors_file, tmp_path / file))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_checkpoint(path).spec is MODELS[model]


def test_a_nameless_file_is_recognized_with_a_warning(small_authors_file, tmp_path):
    path = Path(shutil.copy(small_authors_file, tmp_path / "weights.safetensors"))
    with pytest.warns(UserWarning, match=r"no config.json and no official name: taken for depth-anything-v2-small"):
        checkpoint = read_checkpoint(path)
    assert checkpoint.spec.name == "weights"
    assert checkpoint.spec.config == depth_anything_config("small")
    assert checkpoint.spec.license is None, "what the file is allowed to do is not known"


def test_a_file_named_for_another_size_is_refused(small_authors_file, tmp_path):
    path = Path(shutil.copy(small_authors_file, tmp_path / "depth_anything_v2_vitl.safetensors"))
    with pytest.raises(
        CheckpointError, match=r"named like depth-anything-v2-large, but its tensors are those of .*-v2-small"
    ):
        read_checkpoint(path)


@pytest.fixture(scope="module")
def small_authors_file(tmp_path_factory) -> Path:
    """V2 small at full size under the authors' names, all zeros: recognition reads shapes alone."""
    state = reference.authors_names(reference.meta_model("small").state_dict())
    path = tmp_path_factory.mktemp("authors") / "small.safetensors"
    save_file({name: np.zeros(tuple(value.shape), np.float16) for name, value in state.items()}, path)
    return path


MEASURE = """
import sys
import mlx.core as mx
import mlx_depth
from mlx_depth.checkpoints.checkpoint import fetch_checkpoint

def high_water():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

fetch_checkpoint(sys.argv[1])
mx.eval(mx.zeros(1))
before = high_water()
model = mlx_depth.load(sys.argv[1], dtype=sys.argv[2])
print(high_water() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("naming", ["original", "mlx"])
def test_loading_holds_no_second_copy(naming, dtype, small_authors_file, tmp_path):
    """As they are and converted, split (the authors' fused queries, keys and values) and whole."""
    path = Path(shutil.copy(small_authors_file, tmp_path / "depth_anything_v2_vits.safetensors"))
    if naming == "mlx":
        path = write_checkpoint(read_checkpoint(path), tmp_path / "ours", source={}, card="")
    command = [sys.executable, "-c", MEASURE, str(path), dtype]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    weights = {"float16": 2, "float32": 4}[dtype] * MODELS["depth-anything-v2-small"].parameters
    assert 0.5 * weights < grown < 1.3 * weights


def rewrite(folder: Path, change) -> None:
    """Apply ``change`` to the folder's tensors."""
    tensors = {name: np.array(value) for name, value in mx.load(str(folder / "model.safetensors")).items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_missing_tensor(folder):
    rewrite(folder, lambda tensors: tensors.pop("head.conv2.bias"))
    with pytest.raises(CheckpointError, match=r"missing: head\.conv2\.bias"):
        mlx_depth.load(folder)


def test_a_surplus_tensor(folder):
    rewrite(folder, lambda tensors: tensors.update(extra=np.zeros(3, np.float32)))
    with pytest.raises(CheckpointError, match="does not know: extra"):
        mlx_depth.load(folder)


def test_a_misshapen_tensor(folder):
    rewrite(folder, lambda tensors: tensors.update({"head.conv2.bias": np.zeros(3, np.float32)}))
    with pytest.raises(CheckpointError, match=r"wrong shape: head\.conv2\.bias is \(3,\), not \(32,\)"):
        mlx_depth.load(folder)


def test_a_config_of_another_size(folder):
    edit_config(folder, backbone={"num_hidden_layers": 5})
    with pytest.raises(CheckpointError, match=r"missing: backbone\.blocks\.4\.norm1"):
        mlx_depth.load(folder)


def test_an_unknown_config_key(folder):
    edit_config(folder, use_magic=True)
    with pytest.raises(
        CheckpointError, match=r"keys that mlx-depth does not know: use_magic. Take .* Known keys: .*max_depth"
    ):
        mlx_depth.load(folder)


def test_an_unknown_backbone_key(folder):
    edit_config(folder, backbone={"use_magic": True})
    with pytest.raises(CheckpointError, match="backbone_config has keys that mlx-depth does not know: use_magic"):
        mlx_depth.load(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_act", "relu"), ("layer_norm_eps", 1e-5), ("apply_layernorm", False)]
)
def test_another_architecture(key, value, folder):
    edit_config(folder, backbone={key: value})
    with pytest.raises(CheckpointError, match=f"{key} is .* and only .* is supported"):
        mlx_depth.load(folder)


@pytest.mark.parametrize(
    ("model", "backbone", "message"),
    [
        ({"depth_estimation_type": "disparity"}, {}, "depth_estimation_type is 'disparity', neither"),
        ({"depth_estimation_type": "metric", "max_depth": None}, {}, "max_depth is None, not a number above 0"),
        ({"depth_estimation_type": "metric", "max_depth": "20"}, {}, "max_depth is '20', not a number above 0"),
        ({"max_depth": -1}, {}, "max_depth is -1, not a number above 0"),
        ({"neck_hidden_sizes": None}, {}, "neck_hidden_sizes is None, not a list of 4 whole numbers above 0"),
        ({"neck_hidden_sizes": [8, 8, 8]}, {}, "not a list of 4 whole numbers"),
        ({"fusion_hidden_size": "64"}, {}, "fusion_hidden_size is '64', not a whole number above 0"),
        ({"fusion_hidden_size": 1}, {}, "cannot halve 1 features"),
        ({}, {"out_indices": 5}, "out_indices is 5, not a list of 4 whole numbers above 0"),
        ({}, {"out_indices": [1, 2, 3, "4"]}, "not a list of 4 whole numbers above 0"),
        ({}, {"out_indices": [-4, -3, -2, -1]}, "not a list of 4 whole numbers above 0"),
        ({}, {"out_indices": [1, 2, 3, 99]}, r"out_layers \(zero-based\) are \(0, 1, 2, 98\), not rising and below 4"),
        ({}, {"out_indices": [4, 3, 2, 1]}, "not rising"),
        ({}, {"out_indices": [1, 1, 2, 3]}, "not rising"),
        ({}, {"hidden_size": 0}, "hidden_size is 0, not a whole number above 0"),
        ({}, {"num_attention_heads": 5}, "5 heads cannot share an embed_dim of 32"),
        ({}, {"patch_size": 0}, "patch_size is 0, not a whole number above 0"),
        ({}, {"image_size": [518, 518]}, r"image_size is \[518, 518\], not a whole number above 0"),
    ],
)
def test_impossible_values(model, backbone, message, folder):
    edit_config(folder, **model, backbone=backbone)
    with pytest.raises(CheckpointError, match=message):
        mlx_depth.load(folder)


@pytest.mark.parametrize(("max_depth", "factor"), [(None, 1.0), (1, 1.0), (2, 2.0)])
def test_max_depth_is_a_factor_of_relative_depth_too(max_depth, factor, folder):
    """As in upstream's head; null stands for 1 in older files."""
    edit_config(folder, max_depth=max_depth)
    spec = read_checkpoint(folder).spec
    assert spec.config.head.max_depth == factor
    assert spec.config.max_depth is None, "relative depth has no range in metres"


def test_a_minimal_config_takes_transformers_defaults(folder):
    """Hub files leave out what equals transformers' defaults."""
    config = json.loads((folder / "config.json").read_text())
    plain = {"patch_size", "depth_estimation_type", "max_depth", "head_hidden_size", "reassemble_factors"}
    config = {key: value for key, value in config.items() if key not in plain}
    (folder / "config.json").write_text(json.dumps(config))
    assert read_checkpoint(folder).spec.config.head.hidden_channels == 32


def test_a_config_that_contradicts_the_registry(folder):
    with pytest.raises(CheckpointError, match=r"does not describe depth-anything-v2-small: backbone\.embed_dim is 32"):
        read_checkpoint(folder, MODELS["depth-anything-v2-small"])


def test_another_model_type(folder):
    edit_config(folder, model_type="bert")
    with pytest.raises(CheckpointError, match="model_type 'bert', but the tensors are depth_anything's"):
        read_checkpoint(folder)


def test_tensors_of_no_known_model(tmp_path):
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no model that mlx-depth knows \(its first tensors: w\)"):
        read_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize("size", [0, 4, 8, 100, 5000])
def test_a_truncated_file(size, folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="is damaged or no safetensors file"):
        read_checkpoint(folder)


def test_broken_json(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        read_checkpoint(folder)


def test_json_that_is_no_object(folder):
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json holds no JSON object"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {"a": "../x.safetensors"}}, r"points outside its folder: \.\./x"),
        ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors is missing"),
    ],
)
def test_a_bad_shard_index(index, message, folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)


def test_two_files_and_no_index(folder):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"several checkpoints \(a\.safetensors, b\.safetensors\): name the file"):
        read_checkpoint(folder)


def own(hub_folder: Path, tmp_path: Path, **changes) -> Path:
    """A folder in our format with a changed config.json; None removes a key."""
    out = write_checkpoint(read_checkpoint(hub_folder), tmp_path / "ours", source={}, card="")
    config = json.loads((out / "config.json").read_text()) | changes
    (out / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "remove"}))
    return out


def test_a_newer_format_is_refused(hub_folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"has the format 'mlx_depth/2', not 'mlx_depth/1': update mlx-depth"):
        read_checkpoint(own(hub_folder, tmp_path, format="mlx_depth/2"))


@pytest.mark.parametrize("changes", [{"family": "unknown"}, {"license": "remove"}])
def test_our_config_is_read_strictly(changes, hub_folder, tmp_path):
    with pytest.raises(CheckpointError, match="lacks or does not know"):
        read_checkpoint(own(hub_folder, tmp_path, **changes))


def test_unknown_keys_in_our_config_name_the_known_ones(hub_folder, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"unknown keys in the DepthAnythingConfig .*: magic. Known keys: backbone"
    ):
        read_checkpoint(own(hub_folder, tmp_path, config={"magic": 1}))


def test_quantizing_twice_is_refused(hub_folder):
    packed = quantize_checkpoint(read_checkpoint(hub_folder), Quantization(8, 32))
    with pytest.raises(OptionError, match="is quantized already"):
        quantize_checkpoint(packed, Quantization(4, 32))


@pytest.mark.parametrize(("bits", "group_size"), [(5, 64), (8, 48)])
def test_impossible_quantizations(bits, group_size):
    with pytest.raises(OptionError, match=r"choose bits from \(4, 6, 8\) and a group size from \(32, 64, 128\)"):
        Quantization(bits, group_size)


def test_the_bundled_demo(tmp_path):
    checkpoint = read_checkpoint(DEMO_FOLDER)
    assert checkpoint.spec.config == MODELS["mlx-depth-demo"].config
    assert checkpoint.spec.processor == MODELS["mlx-depth-demo"].processor
    assert checkpoint.quantization == Quantization(8, 64)
    packed = [name for name in checkpoint.weights if name.endswith(".scales")]
    assert len(packed) == 12 * 6
    assert (DEMO_FOLDER / "model.safetensors").stat().st_size < 31e6
    assert "not Depth Anything V2" in (DEMO_FOLDER / "README.md").read_text()
