"""Every source gives the same folder; sizes, recipes, provenance, memory, and the Hub at the other end."""

import dataclasses
import functools
import hashlib
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import containers
import gguf
import huggingface_hub
import mlx.core as mx
import numpy as np
import pytest
import reference
from mlx_depth_convert import convert
from mlx_depth_convert.convert import RECIPES, ConvertOptions, convert_and_report
from mlx_depth_convert.opening import SourceOptions, open_checkpoint
from mlx_depth_convert.verify import GATES, compare
from safetensors.numpy import load_file
from support import correlation

import mlx_depth
from mlx_depth.checkpoints import hub
from mlx_depth.checkpoints.checkpoint import quantize_checkpoint, read_checkpoint, write_checkpoint
from mlx_depth.cli import main
from mlx_depth.errors import CheckpointError, ModelNotFoundError, OptionError, SaveError
from mlx_depth.registry import MODELS
from mlx_depth.weights.quantization import Quantization

SMALL_LINEAR = 12 * (4 * 384 * 384 + 2 * 384 * 1536)  # weights of the backbone's linear layers
SMALL_PARAMETERS = 24_710_849  # those that our network has


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference.save(reference.model("tiny"), tmp_path_factory.mktemp("tiny") / "tiny-depth")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """V2 small at full size, converted from the Hub's form."""
    folder = tmp_path_factory.mktemp("small")
    return convert(reference.save(reference.model("small"), folder / "hub"), folder / "mlx", model="da2-small")


@pytest.fixture
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification after a conversion takes the model's own input size; this is quicker."""
    module = importlib.import_module("mlx_depth_convert.convert")  # the package's attribute is the function
    monkeypatch.setattr(module, "compare", functools.partial(compare, input_size=70))


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


# One model, many containers


def test_small_at_full_size_is_bit_identical_from_every_container(small: Path, tmp_path: Path) -> None:
    upstream = reference.model("small")
    sources = {
        "pth": containers.save_pth(upstream, tmp_path / "depth_anything_v2_vits.pth"),
        "gguf": containers.save_gguf(upstream, tmp_path / "depth-anything2-small-f32.gguf"),
    }
    for kind, source in sources.items():
        out = convert(source, tmp_path / kind)
        assert digest(out) == digest(small), kind
        facts = config(out)
        assert (facts["name"], facts["license"]) == ("depth-anything-v2-small", "Apache-2.0")
        assert facts["source"] == {
            "id": source.name,
            "revision": None,
            "sha256": {source.name: hashlib.sha256(source.read_bytes()).hexdigest()},
        }
    stored = load_file(small / "model.safetensors")
    assert sum(array.size for array in stored.values()) == SMALL_PARAMETERS


@pytest.mark.parametrize("options", [{"legacy": True}, {"key": "state_dict"}, {"key": "model"}], ids=str)
def test_forms_of_pth(tiny: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    wanted = digest(convert(tiny, tmp_path / "wanted"))
    source = containers.save_pth(reference.model("tiny"), tmp_path / "tiny.pth", **options)
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    assert digest(convert(source, tmp_path / "out")) == wanted


@pytest.mark.parametrize("max_depth", [None, 20])
def test_gguf_tells_its_own_config(tmp_path: Path, max_depth: int | None) -> None:
    upstream = reference.model("tiny", max_depth=max_depth)
    expected = convert(reference.save(upstream, tmp_path / "hub"), tmp_path / "expected")
    out = convert(containers.save_gguf(upstream, tmp_path / "tiny.gguf"), tmp_path / "out")
    assert digest(out) == digest(expected)
    assert config(out)["config"] == config(expected)["config"]
    assert config(out)["license"] is None


@pytest.mark.parametrize(("kind", "least"), [("F16", 0.9999999), ("Q8_0", 0.9999)])
def test_gguf_of_fewer_bits(tmp_path: Path, kind: str, least: float) -> None:
    upstream = reference.model("tiny")
    source = containers.save_gguf(upstream, tmp_path / "tiny.gguf", kind=gguf.GGMLQuantizationType[kind])
    with open_checkpoint(source) as (checkpoint, _):
        ours = np.array(checkpoint.weights["backbone.blocks.1.mlp.fc1.weight"].astype(mx.float32))
    original = upstream.state_dict()["backbone.encoder.layer.1.mlp.fc1.weight"].numpy()
    assert least < correlation(ours, original) < 1


def test_a_folder_with_one_foreign_file(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    containers.save_pth(reference.model("tiny"), folder / "pytorch_model.bin")
    (folder / "config.json").write_text((tiny / "config.json").read_text())
    out = convert(folder, tmp_path / "out")
    assert digest(out) == digest(convert(tiny, tmp_path / "wanted"))


def test_a_hub_repository_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / ("c" * 40)
    snapshot.mkdir()
    containers.save_pth(reference.model("small"), snapshot / "depth_anything_v2_vits.pth")
    asked: list[str] = []

    def download(repo: str, revision: str, wanted: Sequence[str]) -> Path:
        asked.extend(wanted)
        return snapshot

    monkeypatch.setattr(hub, "cached", lambda *_, **__: None)
    monkeypatch.setattr(hub, "_ask", lambda *_: (snapshot.name, ["README.md", "depth_anything_v2_vits.pth"]))
    monkeypatch.setattr(hub, "_snapshot", download)
    out = convert("depth-anything/Depth-Anything-V2-Small", tmp_path / "out", dtype="float16")
    assert asked == ["README.md", "depth_anything_v2_vits.pth"]
    facts = config(out)
    assert facts["name"] == "depth-anything-v2-small"
    assert facts["source"]["id"] == "depth-anything/Depth-Anything-V2-Small"
    assert facts["source"]["revision"] == snapshot.name
    assert "base_model: depth-anything/Depth-Anything-V2-Small" in (out / "README.md").read_text()


# Quantization


@pytest.mark.parametrize("bits", [8, 4])
def test_small_quantized_has_the_size_of_the_arithmetic_and_loads(small: Path, tmp_path: Path, bits: int) -> None:
    out = convert(small, tmp_path / "out", quantize=bits)
    packed = SMALL_LINEAR * (bits / 8 + 2 * 2 / 64)  # two float16 numbers for each group of 64
    expected = packed + 2 * (SMALL_PARAMETERS - SMALL_LINEAR)
    assert (out / "model.safetensors").stat().st_size == pytest.approx(expected, rel=0.03)
    assert config(out)["quantization"] == {"bits": bits, "group_size": 64, "layers": {}}
    model = mlx_depth.load(f"{out}/", dtype="float32")
    result = model.predict(np.zeros((98, 98, 3), np.uint8), input_size=98)
    assert np.isfinite(result.depth).all()
    stored = read_checkpoint(out)
    assert stored.weights["head.conv1.weight"].dtype == mx.float16
    assert stored.weights["backbone.blocks.0.attn.query_proj.weight"].dtype == mx.uint32


def test_recipes_keep_the_edges_finer(small: Path, tmp_path: Path) -> None:
    out = convert(small, tmp_path / "out", recipe="mixed-4-8")
    quantization = read_checkpoint(out).quantization
    assert quantization is not None
    assert quantization.bits == 4
    blocks = {path.split(".")[2] for path in quantization.layers}
    assert (blocks, set(quantization.layers.values())) == ({"0", "1", "10", "11"}, {8})
    assert (quantization.bits_of("backbone.blocks.5.mlp.fc1"), quantization.bits_of("backbone.blocks.0.mlp.fc1")) == (
        4,
        8,
    )
    weights = read_checkpoint(out).weights
    assert (
        weights["backbone.blocks.0.mlp.fc1.weight"].shape[1] == 2 * weights["backbone.blocks.5.mlp.fc1.weight"].shape[1]
    )
    result = mlx_depth.load(out).predict(np.zeros((70, 70, 3), np.uint8), input_size=70)
    assert np.isfinite(result.depth).all()


def test_a_width_that_the_group_does_not_divide_is_skipped_and_said(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tiny is 32 wide, its hidden layers 128."""
    done = convert_and_report(tiny, tmp_path / "a", ConvertOptions(quantize=8, group_size=64))
    assert len(done.skipped) == 4 * 5  # query, key, value, out and fc1 of four blocks
    assert main(["convert", str(tiny), str(tmp_path / "b"), "--quantize", "8"]) == 0
    assert "20 layers are not quantized, as 64 does not divide them" in capsys.readouterr().err
    assert convert_and_report(tiny, tmp_path / "c", ConvertOptions(quantize=8, group_size=32)).skipped == ()
    assert mlx_depth.load(tmp_path / "a").predict(np.zeros((70, 70, 3), np.uint8), input_size=70).depth.shape == (
        70,
        70,
    )


def test_a_quantized_source_is_expanded_or_left(tiny: Path, tmp_path: Path) -> None:
    packed = convert(tiny, tmp_path / "packed", quantize=8, group_size=32)
    with pytest.raises(OptionError, match=r"quantized already: .*--dtype float32"):
        convert(packed, tmp_path / "again", quantize=4)
    assert digest(convert(packed, tmp_path / "copy")) == digest(packed)
    plain = convert(packed, tmp_path / "plain", dtype="float32")
    assert config(plain)["quantization"] is None
    image = np.full((70, 70, 3), 99, np.uint8)
    depths = [mlx_depth.load(folder, dtype="float32").predict(image, input_size=70).depth for folder in (packed, plain)]
    assert np.array_equal(*depths)


def test_hidden_nan_is_not_packed_away(tiny: Path, tmp_path: Path) -> None:
    """mx.quantize itself makes finite scales of a group with NaN."""
    checkpoint = read_checkpoint(tiny)
    name = "backbone.blocks.2.mlp.fc2.weight"
    checkpoint.weights[name] = checkpoint.weights[name] * mx.where(mx.arange(128) == 7, mx.nan, 1.0)
    with pytest.raises(CheckpointError, match=r"blocks\.2\.mlp\.fc2\.weight holds NaN"):
        write_checkpoint(checkpoint, tmp_path / "out", source={}, card="")
    packed = quantize_checkpoint(checkpoint, Quantization(8, 32))
    with pytest.raises(CheckpointError, match=r"blocks\.2\.mlp\.fc2\.scales holds NaN"):
        write_checkpoint(packed, tmp_path / "out", source={}, card="")
    assert list(tmp_path.iterdir()) == []


# The folder


def test_two_conversions_give_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    folders = [convert(tiny, tmp_path / name, quantize=8, group_size=32) for name in ("one", "two")]
    for name in ("config.json", "model.safetensors", "README.md"):
        one, two = ((folder / name).read_bytes() for folder in folders)
        assert one == two, name
    assert {file.name for file in folders[0].iterdir()} == {"config.json", "model.safetensors", "README.md"}


def test_config_and_card_say_what_it_is(tmp_path: Path) -> None:
    out = convert("mlx-depth-demo", tmp_path / "out", dtype="float16")
    facts = config(out)
    assert facts["format"] == "mlx_depth/1"
    assert (facts["family"], facts["name"], facts["depth_kind"]) == (
        "depth_anything",
        "mlx-depth-demo",
        "relative_inverse",
    )
    assert facts["tool"] == f"mlx-depth {mlx_depth.__version__}"
    assert facts["processor"]["input_size"] == 364
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    for words in ("relative inverse depth (unitless, larger = nearer)", "License: Apache-2.0", "mlx_depth.predict("):
        assert words in card


def test_progress_is_a_bar_over_tensors_on_stderr(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert_and_report(tiny, tmp_path / "out", ConvertOptions(), progress=True)
    printed = capsys.readouterr()
    count = len(read_checkpoint(tiny).weights)
    assert printed.out == ""
    assert f"{count}/{count}" in printed.err
    assert "tensor/s" in printed.err


def test_the_readme_lists_every_checkpoint_with_its_license() -> None:
    readme = (Path(__file__).parents[2] / "convert" / "README.md").read_text()
    for spec in MODELS.values():
        if spec.hub_id is not None:
            assert f"| `{spec.hub_id}` | `mlx-depth convert {spec.name} OUT` | {spec.license} |" in readme


def test_dtype(tiny: Path, tmp_path: Path) -> None:
    for name, dtype in (("float16", mx.float16), ("bfloat16", mx.bfloat16)):
        out = convert(tiny, tmp_path / name, dtype=name)
        assert {array.dtype for array in read_checkpoint(out).weights.values()} == {dtype}


def test_shards(tiny: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(tiny)
    total = sum(array.nbytes for array in checkpoint.weights.values())
    out = write_checkpoint(checkpoint, tmp_path / "out", source={}, card="", shard_bytes=total // 3)
    files = sorted(file.name for file in out.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert 3 <= len(files) <= 6
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total
    again = read_checkpoint(out).weights
    assert set(index["weight_map"]) == set(again) == set(checkpoint.weights)
    assert all(mx.array_equal(again[name], checkpoint.weights[name]) for name in again)


MEASURE = """
import sys
from mlx_depth_convert import convert

def high_water():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

before = high_water()
convert(sys.argv[1], sys.argv[2], **eval(sys.argv[3]))
print(high_water() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("options", [{}, {"quantize": 8}, {"dtype": "bfloat16"}], ids=str)
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_memory_stays_far_below_the_file(small: Path, tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    source = small
    if kind == "pth":
        source = containers.save_pth(reference.model("small"), tmp_path / "depth_anything_v2_vits.pth")
    command = [sys.executable, "-c", MEASURE, str(source), str(tmp_path / "out"), repr(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < (small / "model.safetensors").stat().st_size / 2


# Names


@pytest.mark.usefixtures("small_pictures")
def test_a_wrong_name_says_what_it_looks_like(small: Path, tmp_path: Path) -> None:
    source = containers.save_pth(reference.model("small"), tmp_path / "mine.pth")
    with pytest.raises(CheckpointError, match=r"is not depth-anything-v2-base, its tensors are those of .*v2-small or"):
        convert(source, tmp_path / "out", model="da2-base")
    with pytest.raises(CheckpointError, match=r"is hub, not depth-anything-v2-base"):
        convert(small, tmp_path / "out", model="da2-base")
    with pytest.raises(ModelNotFoundError, match="did you mean 'depth-anything-v2-small'"):
        convert(source, tmp_path / "out", model="depth-anything-v2-smal")
    named = convert(source, tmp_path / "out", model="da2-indoor-small", verify=True)
    assert config(named)["config"] == config_of("depth-anything-v2-metric-indoor-small")
    assert config(named)["depth_kind"] == "metric"


def config_of(name: str) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(MODELS[name].config)))


def test_a_file_without_a_name_is_taken_for_v2_with_a_warning(tmp_path: Path) -> None:
    source = containers.save_pth(reference.model("small"), tmp_path / "mine.pth")
    with pytest.warns(UserWarning, match=r"mine\.pth has no config\.json and no official name: taken for .*v2-small"):
        out = convert(source, tmp_path / "out", dtype="float16")
    assert config(out)["license"] is None


# Options and the command


def test_options_are_checked_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    nowhere = tmp_path / "nowhere.pth"
    for expected, options in (
        ("exists: choose another folder", {"out": tmp_path / "there"}),
        ("no recipe 'best': choose one of mixed-4-8", {"recipe": "best"}),
        ("exclude each other", {"recipe": "mixed-4-8", "quantize": 4}),
        ("cannot quantize to 5 bits", {"quantize": 5}),
        ("groups of 48", {"quantize": 4, "group_size": 48}),
        ("no dtype 'int8'", {"dtype": "int8"}),
        ("write owner/name", {"push_to_hub": "mine"}),
    ):
        with pytest.raises(OptionError, match=expected):
            convert(nowhere, **{"out": tmp_path / "out", **options})
    assert set(RECIPES) == {"mixed-4-8", "mixed-4-6", "mixed-6-8"}


def test_a_folder_that_cannot_be_written(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"cannot write .*: choose another folder"):
        convert(tiny, tmp_path / "file" / "out")


def test_command_prints_the_path_and_the_license(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(tiny), str(tmp_path / "a"), "--dtype", "float16"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'a'}\n"
    assert "license unknown" in printed.err
    assert main(["convert", str(tiny), str(tmp_path / "b"), "--json", "--verify"]) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert facts["path"] == str(tmp_path / "b")
    assert facts["verification"]["passed"] is True
    assert "passed" in printed.err
    assert "both in MLX, on the same pixels" in facts["verification"]["meaning"]
    assert facts["verification"]["meaning"] in printed.err


@pytest.mark.usefixtures("small_pictures")
def test_a_failed_verification_is_exit_1_and_keeps_the_folder_local(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four bits are far outside the gate of float32."""
    monkeypatch.setitem(GATES, "4-bit", GATES["float32"])
    monkeypatch.setattr(hub, "upload_folder", lambda *_, **__: pytest.fail("uploaded"))
    arguments = ["--quantize", "4", "--group-size", "32", "--dtype", "float32", "--verify", "--push-to-hub", "me/tiny"]
    assert main(["convert", str(tiny), str(tmp_path / "a"), *arguments]) == 1
    assert "FAILED: first stage past the gate: layer 0" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="drifts from its source at layer 0"):
        convert(tiny, tmp_path / "b", quantize=4, group_size=32, dtype="float32", verify=True)


class FakeApi:
    """As much of ``HfApi`` as an upload needs."""

    calls: list[tuple[Any, ...]] = []  # noqa: RUF012

    def create_repo(self, repo: str, *, exist_ok: bool) -> None:
        self.calls.append(("create", repo, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.calls.append(("upload", repo_id, sorted(file.name for file in folder_path.iterdir()), commit_message))


def test_push_to_hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    done = convert_and_report(tiny, tmp_path / "out", ConvertOptions(push_to_hub="me/tiny-mlx"))
    assert done.url == "https://huggingface.co/me/tiny-mlx"
    assert FakeApi.calls == [
        ("create", "me/tiny-mlx", True),
        (
            "upload",
            "me/tiny-mlx",
            ["README.md", "config.json", "model.safetensors"],
            "Convert tiny-depth with mlx-depth",
        ),
    ]


def test_an_upload_that_fails_says_what_to_do(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(FakeApi, "create_repo", refuse)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    with pytest.raises(ModelNotFoundError, match=r"cannot upload .* \(no route to host\): log in"):
        convert(tiny, tmp_path / "out", push_to_hub="me/tiny-mlx")


# Somebody's own training run.


def test_a_fine_tune_never_gets_a_published_name_or_license(tmp_path: Path) -> None:
    run = containers.save_pth(reference.model("small"), tmp_path / "my_finetune.pth")
    out = convert(run, tmp_path / "m", model="depth-anything-v2-metric-outdoor-small", dtype="float16")
    facts = config(out)
    assert (facts["name"], facts["license"], facts["depth_kind"]) == ("my_finetune", None, "metric")
    assert facts["config"]["head"]["max_depth"] == 80
    assert "unknown, see the source" in (out / "README.md").read_text()


def test_its_name_and_license_can_be_given(tmp_path: Path) -> None:
    run = containers.save_pth(reference.model("small"), tmp_path / "run.pth")
    arguments = ["--model", "da2-small", "--name", "rooms-v3", "--license", "MIT", "--dtype", "float16", "--json"]
    assert main(["convert", str(run), str(tmp_path / "m"), *arguments]) == 0
    facts = config(tmp_path / "m")
    assert (facts["name"], facts["license"]) == ("rooms-v3", "MIT")
    assert "license: mit" in (tmp_path / "m" / "README.md").read_text()


@pytest.mark.parametrize("way", ["config", "option"])
def test_a_metric_run_with_a_range_of_its_own(way: str, tmp_path: Path) -> None:
    """As the authors' metric code has it: the encoder's name and the range, no more."""
    run = containers.save_pth(reference.model("small"), tmp_path / "run.pth")
    options = SourceOptions(max_depth=35)
    if way == "config":
        (tmp_path / "config.json").write_text(json.dumps({"encoder": "vits", "max_depth": 35}))
        options = SourceOptions()
    out = convert(run, tmp_path / "m", dtype="float16", source_options=options)
    facts = config(out)
    assert (facts["depth_kind"], facts["config"]["head"]["max_depth"]) == ("metric", 35.0)
    assert mlx_depth.load(out).spec.config.max_depth == 35.0


def test_an_authors_config_of_another_encoder_is_refused(tmp_path: Path) -> None:
    run = containers.save_pth(reference.model("small"), tmp_path / "run.pth")
    (tmp_path / "config.json").write_text(json.dumps({"encoder": "vitl", "max_depth": 35}))
    with pytest.raises(CheckpointError, match=r"\{'encoder': 'vitl'\}, but the tensors are those of vits"):
        convert(run, tmp_path / "m")


def test_convert_predict_and_load_name_a_folder_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "mlx-depth-demo", "x", "--dtype", "float16"]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed == "x"
    assert mlx_depth.load(printed).spec.name == "mlx-depth-demo"
