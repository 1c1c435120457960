"""depth-anything.cpp's files of Depth Anything 3: three families, six number formats, a pair of files, their faults."""

import copy
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import gguf_da3
import mlx.core as mx
import numpy as np
import pytest
import reference_da3
from gguf_da3 import Type
from mlx_depth_convert import convert
from mlx_depth_convert.opening import open_checkpoint
from reference_da3 import ANY_VIEW, GIANT, METRIC, MONO, NESTED, torch
from support import relative_error

import mlx_depth
from mlx_depth.checkpoints import hub
from mlx_depth.checkpoints.checkpoint import build_network
from mlx_depth.checkpoints.detect import detect, identify
from mlx_depth.cli import main
from mlx_depth.errors import CheckpointError, ModelNotFoundError, OptionError
from mlx_depth.models.base import Evidence
from mlx_depth.models.families import FAMILIES
from mlx_depth.registry import MODELS, find_model
from mlx_depth.result import DepthKind
from mlx_depth.weights.choose import choose, other_half
from mlx_depth.weights.rules import apply, check_complete, to_mlx_layout

GATE = 1e-4
SIZE = (70, 98)


def tiny(name: str) -> Any:
    return reference_da3.model(name, tiny=True)


def opened(path: Path | str, **options: Any) -> tuple[Any, Any]:
    """The checkpoint of a file, and its network in float32."""
    with open_checkpoint(path, **options) as (checkpoint, _):
        return checkpoint, build_network(checkpoint, dtype=mx.float32, expand=True)


def check(found: Any, expected: Mapping[str, Any], names: Mapping[str, str]) -> None:
    for ours, theirs in names.items():
        value = expected[theirs].numpy()
        assert np.std(value) > 1e-3, f"{theirs} does not vary"
        array = np.array(getattr(found, ours))
        assert relative_error(array, value[..., :3, :] if ours == "extrinsics" else value) <= GATE, ours


VIEWS = {"depth": "depth", "confidence": "depth_conf", "extrinsics": "extrinsics", "intrinsics": "intrinsics"}


@pytest.mark.parametrize("V", [1, 3])
@pytest.mark.parametrize("name", [ANY_VIEW, GIANT])
def test_any_view(tmp_path: Path, name: str, V: int) -> None:
    upstream = tiny(name)
    checkpoint, network = opened(gguf_da3.save_any_view(upstream, tmp_path / "mine.gguf"))
    config = checkpoint.spec.config
    assert (checkpoint.dialect, checkpoint.spec.family) == ("gguf", "depth_anything_3")
    assert (config.head.rays, config.camera_encoder, config.gaussians) == (False, False, name == GIANT)
    assert config.backbone == reference_da3.tiny_config(name).backbone
    pixels = reference_da3.pixels(1, V, *SIZE)
    found = network(mx.array(pixels))
    assert found.rays is None
    assert found.ray_confidence is None
    check(found, reference_da3.run(upstream, pixels), VIEWS)


def test_gaussians_are_those_of_the_authors_file(tmp_path: Path) -> None:
    _, network = opened(gguf_da3.save_any_view(tiny(GIANT), tmp_path / "mine.gguf"))
    pixels = reference_da3.pixels(1, 2, *SIZE)
    expected = reference_da3.run(tiny(GIANT), pixels, infer_gs=True)["gaussians"]
    found = network(mx.array(pixels), gaussians=True).gaussians
    for name in ("means", "scales", "opacities"):
        assert relative_error(np.array(found[name]), getattr(expected, name).numpy()) <= GATE, name


def test_rays_where_they_were_exported(tmp_path: Path) -> None:
    checkpoint, network = opened(gguf_da3.save_any_view(tiny(ANY_VIEW), tmp_path / "mine.gguf", rays=True))
    assert checkpoint.spec.config.head.rays
    pixels = reference_da3.pixels(1, 2, *SIZE)
    expected = reference_da3.rays(tiny(ANY_VIEW), pixels)
    found = network(mx.array(pixels))
    for name, value in expected.items():
        assert relative_error(np.array(getattr(found, name)), value) <= GATE, name


def test_what_the_file_leaves_out_is_said_where_it_is_asked_for(tmp_path: Path) -> None:
    out = convert(gguf_da3.save_any_view(tiny(ANY_VIEW), tmp_path / "mine.gguf"), tmp_path / "out")
    written = json.loads((out / "config.json").read_text())["config"]
    assert (written["camera_encoder"], written["head"]["rays"]) == (False, False)
    model = mlx_depth.load(out, dtype="float32")
    photos = [np.full((40, 60, 3), value, np.uint8) for value in (50, 150)]
    assert model.predict_views(photos, input_size=SIZE).rays is None
    with pytest.raises(OptionError, match="this model has no rays: leave pose_from out"):
        model.predict_views(photos, input_size=SIZE, pose_from="rays")
    extrinsics, intrinsics = reference_da3.cameras(2, (40, 60))
    with pytest.raises(OptionError, match=r"take no known cameras, as their file left that part out: give none, or"):
        model.predict_views(photos, input_size=SIZE, extrinsics=extrinsics, intrinsics=intrinsics)


@pytest.mark.parametrize(
    ("name", "checkpoint_name", "kind"),
    [(MONO, "DA3MONO-LARGE", DepthKind.RELATIVE), (METRIC, "DA3METRIC-LARGE", DepthKind.METRIC)],
)
def test_mono_and_metric_are_told_apart_by_the_checkpoint_that_was_exported(
    tmp_path: Path, name: str, checkpoint_name: str, kind: DepthKind
) -> None:
    checkpoint, network = opened(gguf_da3.save_mono(tiny(name), tmp_path / "mine.gguf", checkpoint_name))
    assert checkpoint.spec.config == reference_da3.tiny_config(name)
    assert (checkpoint.spec.family, checkpoint.spec.depth_kind) == ("depth_anything_3_mono", kind)
    pixels = reference_da3.pixels(1, 1, *SIZE)
    kept: dict[str, Any] = {}  # of the head, before the network fills the sky
    handle = tiny(name).head.register_forward_hook(lambda _, __, outputs: kept.update(outputs))
    try:
        reference_da3.run(tiny(name), pixels)
    finally:
        handle.remove()
    expected = {key: value[0] for key, value in kept.items()}
    check(network(mx.array(pixels[0])), expected, {"depth": "depth", "sky": "sky"})


def test_mono_of_a_name_that_tells_nothing(tmp_path: Path) -> None:
    path = gguf_da3.save_mono(tiny(MONO), tmp_path / "mine.gguf", "my-run")
    with pytest.raises(CheckpointError, match=r"checkpoint_name 'my-run' does not tell .*named DA3MONO-LARGE or"):
        opened(path)


# The pair


def test_a_nested_model_is_two_files_and_either_brings_the_other(tmp_path: Path) -> None:
    halves = gguf_da3.save_nested(tiny(NESTED), tmp_path, rays=True)
    pixels = reference_da3.pixels(1, 3, *SIZE)
    expected = reference_da3.run(tiny(NESTED), pixels)
    for source in (*halves, tmp_path):
        with open_checkpoint(source) as (checkpoint, origin):
            assert (checkpoint.spec.family, checkpoint.dialect) == ("depth_anything_3_nested", "gguf")
            assert {file.name for file in origin.files} == {half.name for half in halves}
            network = build_network(checkpoint, dtype=mx.float32, expand=True)
        check(network(mx.array(pixels)), expected, VIEWS)


def test_converting_the_pair_records_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    halves = gguf_da3.save_nested(tiny(NESTED), tmp_path)
    assert main(["convert", str(halves[1]), str(tmp_path / "out"), "--name", "mine"]) == 0
    assert "mine: metric depth" in capsys.readouterr().err
    source = json.loads((tmp_path / "out" / "config.json").read_text())["source"]
    assert sorted(source["sha256"]) == ["mine-anyview.gguf", "mine-metric.gguf"]


@pytest.mark.parametrize(("index", "half", "other"), [(0, "anyview", "metric"), (1, "metric", "anyview")])
def test_half_a_pair(tmp_path: Path, index: int, half: str, other: str) -> None:
    halves = gguf_da3.save_nested(tiny(NESTED), tmp_path)
    halves[1 - index].unlink()
    text = f"is the {half} half of a nested model: put the {other} half, mine-{other}.gguf, beside it"
    for source in (halves[index], tmp_path):
        with pytest.raises(CheckpointError, match=re.escape(text)):
            opened(source)
    renamed = halves[index].rename(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match=rf"{half} half of a nested model: name it .*-{half}\.gguf .*by side"):
        opened(renamed)


def test_halves_of_two_models(tmp_path: Path) -> None:
    halves = gguf_da3.save_nested(tiny(NESTED), tmp_path)
    gguf_da3.save_metric_half(tiny(METRIC), halves[1], "DA3NESTED-GIANT-LARGE-1.1-metric")
    with pytest.raises(CheckpointError, match=r"no pair: they say 'DA3NESTED-GIANT-LARGE-anyview' and .*1\.1-metric"):
        opened(halves[0])
    shutil.copy(halves[0], halves[1])
    with pytest.raises(CheckpointError, match="are no pair"):
        opened(halves[0])


def test_the_pair_by_its_names() -> None:
    pair = ("depth-anything-nested-anyview.gguf", "depth-anything-nested-metric.gguf")
    assert [other_half(name) for name in pair] == [pair[1], pair[0]]
    assert choose([*reversed(pair), "README.md"], where="here", convertible=True) == pair
    with pytest.raises(CheckpointError, match="holds several checkpoints"):
        choose([*pair, "depth-anything-small-f32.gguf"], where="here", convertible=True)
    assert [other_half(name) for name in ("metric.pth", "biometric.gguf", "a.gguf")] == [None] * 3


def test_a_repository_brings_the_other_half(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = [half.name for half in gguf_da3.save_nested(tiny(NESTED), tmp_path)]
    asked: list[str] = []

    def download(repo: str, revision: str, wanted: list[str]) -> Path:
        asked.extend(wanted)
        return tmp_path

    monkeypatch.setattr(hub, "cached", lambda *_, **__: None)
    monkeypatch.setattr(hub, "_ask", lambda *_: (tmp_path.name, [*names, "depth-anything-small-f32.gguf"]))
    monkeypatch.setattr(hub, "_snapshot", download)
    checkpoint, _ = opened("some-one/files", file=names[1])
    assert sorted(asked) == names
    assert checkpoint.spec.family == "depth_anything_3_nested"


# Number formats


def packed_blocks(kind: Type, rows: int, name: str) -> np.ndarray:
    """Random blocks of a K-quant, one a row, whose scales give weights of a usual size."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = np.random.RandomState(len(name)).randint(0, 256, (rows, size)).astype(np.uint8)
    scale = np.array([2e-5 if kind == Type.Q6_K else 1e-4], "<f2").view(np.uint8)
    for place in (size - 2,) if kind == Type.Q6_K else (0, 2):
        blocks[:, place : place + 2] = scale
    return blocks


FORMATS = [Type.F32, Type.F16, Type.Q8_0, Type.Q6_K, Type.Q5_K, Type.Q4_K]


@pytest.mark.parametrize("kind", FORMATS, ids=[kind.name for kind in FORMATS])
def test_every_number_format(tmp_path: Path, kind: Type) -> None:
    """As ``src/quantize.cpp`` does it: K-quants where a row is whole blocks of 256, else Q8_0."""
    upstream = copy.deepcopy(tiny(ANY_VIEW))
    state = dict(upstream.named_parameters())
    expanded: dict[str, np.ndarray] = {}

    def pack(name: str, values: np.ndarray) -> tuple[np.ndarray, Type] | None:
        if kind == Type.F32 or not gguf_da3.quantizable(name, values) or values.shape[1] % 32:
            return None
        used = kind if values.shape[1] % 256 == 0 or kind in (Type.F16, Type.Q8_0) else Type.Q8_0
        if used in (Type.F16, Type.Q8_0):
            data = values.astype(np.float16) if used == Type.F16 else gguf.quants.quantize(values, used)
        else:
            data = packed_blocks(used, len(values), name)
        expanded[name] = data.astype(np.float32) if used == Type.F16 else gguf.quants.dequantize(data, used)
        return data, used

    path = gguf_da3.save_any_view(upstream, tmp_path / "mine.gguf", pack=pack, rewritten=True)
    used = {tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
    assert kind in used
    theirs = {"mlp_fc2": "mlp.fc2", "mlp_fc1": "mlp.fc1", "attn_qkv": "attn.qkv", "attn_proj": "attn.proj"}
    cameras = {"cam.bb0": "cam_dec.backbone.0", "cam.bb2": "cam_dec.backbone.2", "cam.fc_t": "cam_dec.fc_t"}
    cameras |= {"cam.fc_q": "cam_dec.fc_qvec", "cam.fc_fov": "cam_dec.fc_fov.0"}
    for name, values in expanded.items():
        own = name.replace("vit.blk.", "backbone.pretrained.blocks.")
        for ours, upstreams in {**theirs, **cameras}.items():
            own = own.replace(ours, upstreams)
        with torch.no_grad():
            state[own].copy_(torch.from_numpy(values))
    assert len(expanded) == (0 if kind == Type.F32 else 6 * 4 + 5)
    checkpoint, network = opened(path)
    if kind not in (Type.F32, Type.F16):
        ours = np.array(checkpoint.weights["backbone.blocks.3.mlp.fc2.weight"])
        np.testing.assert_array_equal(ours, expanded["vit.blk.3.mlp_fc2.weight"])
    pixels = reference_da3.pixels(1, 2, *SIZE)
    check(network(mx.array(pixels)), reference_da3.run(upstream, pixels), VIEWS)


# Full size, whose it is, and what is wrong


FULL = [
    (ANY_VIEW, "depth-anything-small-f32", "depth_anything_3"),
    ("da3-base", "depth-anything-base-q4_k", "depth_anything_3"),
    ("da3-large", "depth-anything-large-f32", "depth_anything_3"),
    (GIANT, "depth-anything-giant-f32", "depth_anything_3"),
    (MONO, "depth-anything-mono-large-f32", "depth_anything_3_mono"),
    (METRIC, "depth-anything-metric-large-f32", "depth_anything_3_mono"),
]


def full_evidence(name: str) -> Evidence:
    network = reference_da3.meta_network(name)
    return Evidence(gguf_da3.shapes(network), None, gguf_da3.metadata(network, name.upper()))


@pytest.mark.parametrize(("name", "file", "family"), FULL)
def test_full_size(name: str, file: str, family: str) -> None:
    evidence = full_evidence(name)
    found, dialect = detect(evidence, Path(f"{file}.gguf"))
    assert (found.name, dialect) == (family, "gguf")
    reading = found.dialects["gguf"].read(evidence)
    spec = MODELS[str(found.published_name(file))]
    assert spec == find_model(name)
    assert (reading.whole or reading.config) == spec.config
    tensors = {source: mx.zeros(shape) for source, shape in evidence.shapes.items()}
    weights = apply(found.dialects["gguf"].rules, tensors)
    network = found.network(reading.config)
    check_complete(network, to_mlx_layout(network, weights))


def test_full_size_nested() -> None:
    network = reference_da3.meta_network(NESTED)
    half = gguf_da3.metadata(network.da3_metric, "x")
    metric = {key.replace(".vit.", ".m_vit.").replace(".head.", ".m_head."): value for key, value in half.items()}
    metric.pop("depthanything3.m_head.pos_embed")
    evidence = Evidence(
        {**gguf_da3.shapes(network.da3), **gguf_da3.shapes(network.da3_metric, start="m_")},
        None,
        {**metric, **gguf_da3.metadata(network.da3, "x")},
    )
    family, _ = detect(evidence, Path("x.gguf"))
    assert family.name == "depth_anything_3_nested"
    assert family.dialects["gguf"].read(evidence).whole == find_model(NESTED).config
    for name in ("depth-anything-nested-anyview", "depth-anything-nested-metric-q8_0"):
        assert family.published_name(name) == "depth-anything-3-nested-giant-large"


def test_an_official_file_has_the_published_name_and_license(tmp_path: Path) -> None:
    path = tmp_path / "depth-anything-giant-f32.gguf"
    path.touch()
    family = FAMILIES["depth_anything_3"]
    found = identify(path, family, "gguf", full_evidence(GIANT), spec=None, like=None, name=None)
    assert (found.name, found.license) == ("depth-anything-3-giant", "CC-BY-NC-4.0")
    assert not found.config.camera_encoder


def test_nothing_of_v2_is_taken() -> None:
    evidence = full_evidence(MONO)
    assert evidence.metadata is not None
    older = {**evidence.metadata, "depthanything3.arch": "depthanything2"}
    owners = {
        arch: [family.name for family in FAMILIES.values() if family.detect(Evidence(evidence.shapes, None, metadata))]
        for arch, metadata in {"3": evidence.metadata, "2": older}.items()
    }
    assert owners == {"3": ["depth_anything_3_mono"], "2": ["depth_anything"]}
    for name in ("depth-anything2-small-f32", "depth-anything-small-hf", "depth-anything-large"):
        assert FAMILIES["depth_anything_3"].published_name(name) is None


CHANGED = [
    ("vit.rope_freq", 10000.0),
    ("vit.cat_token", False),
    ("vit.num_register_tokens", 4),
    ("vit.interpolate_antialias", True),
    ("head.activation", "relu"),
    ("head.conf_activation", "sigmoid"),
    ("head.down_ratio", 2),
    ("head.pos_embed", False),
]


@pytest.mark.parametrize(("key", "value"), CHANGED)
def test_other_architectures_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    path = gguf_da3.save_any_view(tiny(ANY_VIEW), tmp_path / "mine.gguf", changed={key: value})
    with pytest.raises(CheckpointError, match=rf"is no Depth Anything 3 for any number of views \(.*{re.escape(key)}"):
        opened(path)


@pytest.mark.parametrize("key", ["vit.alt_start", "vit.rope_freq", "head.features", "patch_size", "vit.ffn_type"])
def test_missing_keys_are_named(tmp_path: Path, key: str) -> None:
    path = gguf_da3.save_any_view(tiny(ANY_VIEW), tmp_path / "mine.gguf", changed={key: None})
    with pytest.raises(CheckpointError, match=rf"lacks the key depthanything3\.{re.escape(key)}: export it again"):
        opened(path)


def test_starts_that_differ(tmp_path: Path) -> None:
    path = gguf_da3.save_any_view(tiny(ANY_VIEW), tmp_path / "mine.gguf", changed={"vit.rope_start": 3})
    with pytest.raises(CheckpointError, match=r"alt_, rope_ and qknorm_start differ \(\[2, 3, 2\]\)"):
        opened(path)


def test_a_folder_of_many_files_asks_for_one(tmp_path: Path) -> None:
    gguf_da3.save_mono(tiny(MONO), tmp_path / "a.gguf")
    gguf_da3.save_mono(tiny(MONO), tmp_path / "b.gguf")
    with pytest.raises(CheckpointError, match=r"several checkpoints \(a\.gguf, b\.gguf\): name the file itself"):
        opened(tmp_path)
    with pytest.raises(ModelNotFoundError, match="no file or folder"):
        opened(tmp_path / "c.gguf")
