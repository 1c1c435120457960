"""AnyDepth whole: against the authors' decoder on transformers' DINOv3, and as users have its files."""

import dataclasses
import json
import warnings
from pathlib import Path

import anydepth
import mlx.core as mx
import numpy as np
import pytest
import reference
import torch
from mlx_depth_convert import opening
from mlx_depth_convert.convert import convert
from mlx_depth_convert.inspect_model import inspect_model
from mlx_depth_convert.opening import SourceOptions, open_checkpoint
from mlx_depth_convert.verify import verify
from PIL import Image
from support import correlation, relative_error

import mlx_depth
from mlx_depth import CheckpointError, DepthKind, ModelNotFoundError, OptionError
from mlx_depth.checkpoints.checkpoint import build_network, read_checkpoint
from mlx_depth.checkpoints.resolve import Resolved
from mlx_depth.cli.command import main
from mlx_depth.models.anydepth.network import AnyDepth, anydepth_config
from mlx_depth.weights.rules import parameter_shapes

GATE = 1e-4
GOLDENS = np.load(anydepth.GOLDEN)


@pytest.fixture(scope="module")
def authors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint under the authors' names; its heads are as wide as no published one's."""
    folder = tmp_path_factory.mktemp("authors") / "tiny"
    return anydepth.save(anydepth.authors_state("tiny"), folder, {"backbone_config": anydepth.backbone_config("tiny")})


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny backbone as the Hub has it."""
    folder = tmp_path_factory.mktemp("hub") / "dinov3"
    return anydepth.save(anydepth.backbone_state("tiny"), folder, anydepth.backbone_config("tiny"))


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny head alone, as a training script writes it."""
    path = tmp_path_factory.mktemp("head") / "sdt.pth"
    state = {f"module.decoder.{name}": torch.from_numpy(x) for name, x in anydepth.head_state("tiny").items()}
    torch.save({"epoch": 5, "model": state}, path)
    return path


def _error(network: AnyDepth, size: str) -> float:
    depth = np.array(network(mx.array(anydepth.pixels(size))).depth)
    assert depth.shape == anydepth.PIXELS[size]
    return relative_error(depth[:, ::4, ::4], GOLDENS[size])


def test_tiny_equals_the_authors(authors: Path) -> None:
    model = mlx_depth.load(authors, dtype="float32")
    assert _error(model.network, "tiny") <= GATE
    assert model.spec.depth_kind is DepthKind.RELATIVE_INVERSE


def test_small_equals_the_authors_at_full_size(tmp_path: Path) -> None:
    """Recognized by its shapes alone, as the registry's model."""
    checkpoint = read_checkpoint(anydepth.save(anydepth.authors_state("small"), tmp_path / "small"))
    assert checkpoint.spec.config == anydepth_config("small")
    assert _error(build_network(checkpoint, dtype=mx.float32, expand=True), "small") <= GATE


@pytest.mark.parametrize("change", [{"normalized": True}, {"norm_eps": 1e-2}, {"out_layers": (0, 1, 2)}])
def test_a_drift_is_noticed(authors: Path, change: dict) -> None:
    checkpoint = read_checkpoint(authors)
    config = checkpoint.spec.config
    if "out_layers" in change:
        with pytest.raises(CheckpointError, match=r"an SDT head takes 4 layers, and out_layers are \(0, 1, 2\)"):
            dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, **change))
        return
    config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, **change))
    drifted = dataclasses.replace(checkpoint, spec=dataclasses.replace(checkpoint.spec, config=config))
    assert _error(build_network(drifted, dtype=mx.float32, expand=True), "tiny") > 10 * GATE


def test_other_periods_are_noticed(authors: Path) -> None:
    """The checkpoint's own are used, and not those that its config would give."""
    checkpoint = read_checkpoint(authors)
    checkpoint.weights["backbone.rope_periods"] *= 2
    assert _error(build_network(checkpoint, dtype=mx.float32, expand=True), "tiny") > 10 * GATE


def test_a_head_and_a_backbone_from_elsewhere(head: Path, backbone: Path, authors: Path, tmp_path: Path) -> None:
    meta = anydepth.save(anydepth.meta_state("tiny"), tmp_path / "named by Meta")
    (meta / "config.json").write_text(json.dumps(anydepth.backbone_config("tiny")))
    for name, source in {"hub": backbone, "meta": meta}.items():
        with pytest.warns(
            UserWarning, match=r"the weights are under 'model'; 'module\.decoder\.' stands before their names"
        ):
            out = convert(head, tmp_path / name, source_options=SourceOptions(backbone=str(source)))
        assert _error(mlx_depth.load(out, dtype="float32").network, "tiny") <= GATE
        recorded = json.loads((out / "config.json").read_text())["source"]
        assert recorded["id"] == "sdt.pth"
        assert recorded["backbone"]["source"] == source.name
        assert list(recorded["backbone"]["sha256"]) == ["model.safetensors"]
        assert f"`sdt.pth` and the backbone `{source.name}`" in (out / "README.md").read_text()


def test_verify_goes_back_to_both_sources(
    head: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = {"someone/sdt": head, "facebook/dinov3": backbone}

    def resolve(source: str, **_: object) -> Resolved:
        repo, _, commit = str(source).partition("@")
        return Resolved(hub[repo], None, repo, commit or "c0ffee") if repo in hub else Resolved(Path(source))

    monkeypatch.setattr(opening, "resolve", resolve)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = convert("someone/sdt", tmp_path / "m", source_options=SourceOptions(backbone="facebook/dinov3"))
        report = verify(out, input_size=64)
    assert report.passed
    assert report.against == "someone/sdt"
    assert "base_model: [someone/sdt, facebook/dinov3]" in (out / "README.md").read_text()
    assert json.loads((out / "config.json").read_text())["source"]["backbone"]["source"] == "facebook/dinov3@c0ffee"


def test_the_command_puts_a_head_and_a_backbone_together(
    head: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["convert", str(head), str(tmp_path / "m"), "--backbone", str(backbone)]) == 0
        assert "relative inverse depth (unitless, larger = nearer), license unknown" in capsys.readouterr().err
        assert main(["convert", str(head), str(tmp_path / "n")]) == 2
    said = capsys.readouterr().err
    assert "are only a part of anydepth's: take the whole file, or, of a head alone, name its backbone" in said
    assert "Traceback" not in said


def test_a_backbone_of_another_width_or_kind_is_refused(head: Path, backbone: Path, tmp_path: Path) -> None:
    wider = {
        name: np.zeros((40, *x.shape[1:]), x.dtype) if x.shape[0] == 32 else x
        for name, x in anydepth.backbone_state("tiny").items()
    }
    config = {**anydepth.backbone_config("tiny"), "hidden_size": 40}
    other = anydepth.save(wider, tmp_path / "wider", config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            pytest.raises(
                CheckpointError, match=r"the backbone's width and patch size are \(40, 16\), the head's \(32"
            ),
            open_checkpoint(head, backbone=other),
        ):
            pass
        foreign = anydepth.save({"encoder.weight": np.zeros((2, 2), np.float32)}, tmp_path / "foreign")
        with (
            pytest.raises(CheckpointError, match="1 of its tensors have names of their own"),
            open_checkpoint(head, backbone=foreign),
        ):
            pass


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"encoder": "vits"}, "keys that AnyDepth does not know: encoder"),
        ({"use_backbone_norm": 1}, "use_backbone_norm is 1"),
        ({"backbone_out_layers": [3]}, r"takes 4 layers, and out_layers are \(3,\)"),
        ({"backbone_out_layers": [0, 1, 2, 12]}, "not rising and below 4"),
        ({"min_depth": -1}, "least_depth is -1.0"),
        ({"backbone_config": []}, r"backbone_config is \[\]"),
    ],
)
def test_config_json_is_read_strictly(authors: Path, tmp_path: Path, config: dict, message: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(authors / "model.safetensors")
    backbone = {"backbone_config": anydepth.backbone_config("tiny")}
    (folder / "config.json").write_text(json.dumps({**backbone, **config}))
    with pytest.raises(CheckpointError, match=message):
        mlx_depth.load(folder)


def test_the_authors_options_are_followed(authors: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(authors / "model.safetensors")
    options = {"use_backbone_norm": True, "min_depth": 0.5, "backbone_out_layers": [0, 1, 2, 3]}
    (folder / "config.json").write_text(json.dumps({"backbone_config": anydepth.backbone_config("tiny"), **options}))
    config = read_checkpoint(folder).spec.config
    assert (config.backbone.normalized, config.head.least_depth) == (True, 0.5)


def test_every_shape_that_no_published_backbone_has_wants_a_config(tmp_path: Path) -> None:
    folder = anydepth.save(anydepth.authors_state("tiny"), tmp_path / "m")
    with pytest.raises(CheckpointError, match="no published DINOv3 has 4 layers of width 32"):
        mlx_depth.load(folder)


def test_a_whole_citizen(authors: Path, tmp_path: Path) -> None:
    """Convert, quantize, verify, inspect, predict and batch."""
    plain = convert(authors, tmp_path / "plain")
    packed = convert(authors, tmp_path / "packed", quantize=8, group_size=32)
    assert verify(packed, against=plain, input_size=64).passed
    stages = [stage.stage for stage in verify(plain, against=authors, input_size=64).stages]
    assert stages == [
        "patch embedding",
        *(f"layer {i}" for i in range(4)),
        *(f"projection {i}" for i in range(4)),
        "enhancer",
        *(f"doubling {i}" for i in range(3)),
        "depth",
    ]
    assert any(row.name == "head.doubled.2" for row in inspect_model(plain, input_size=64).rows)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 130, 3), np.uint8))
    results = [mlx_depth.load(folder, dtype="float32").predict(photo, input_size=64) for folder in (plain, packed)]
    assert [(result.depth.shape, result.input_size, result.kind) for result in results] == [
        ((90, 130), (64, 96), DepthKind.RELATIVE_INVERSE)
    ] * 2
    assert correlation(results[0].depth, results[1].depth) > 0.99
    model = mlx_depth.load(plain, dtype="float32")
    many = list(model.predict_batch([photo] * 3, input_size=64, batch_size=2))
    assert all(relative_error(result.depth, results[0].depth) <= 1e-5 for result in many)
    assert len(many) == 3


def test_names_of_the_registry_say_what_to_do() -> None:
    with pytest.raises(ModelNotFoundError, match=r"mlx-depth convert AIGeeksGroup/AnyDepth anydepth-small-mlx --file"):
        mlx_depth.load("anydepth-small")
    with pytest.raises(OptionError, match="transformers has no AnyDepth: leave reference out"):
        mlx_depth.models.anydepth.family.FAMILY.follow(None, None, "transformers")


def test_a_file_of_the_authors_repository_is_the_published_model(tmp_path: Path) -> None:
    shapes = parameter_shapes(AnyDepth(anydepth_config("small")))
    assert shapes["head.projections.3.projection.weight"] == (256, 384)
    folder = anydepth.save(anydepth.authors_state("small"), tmp_path / "small")
    named = read_checkpoint(folder, name="AIGeeksGroup/AnyDepth").spec
    assert (named.name, named.commercial) == ("anydepth-small", False)
    assert named.license == "CC-BY-NC-SA-4.0 AND LicenseRef-DINOv3"
    assert read_checkpoint(folder).spec.license is None


def test_a_backbone_alone_gives_what_transformers_gives(backbone: Path, tmp_path: Path) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 130, 3), np.uint8))
    extractor = mlx_depth.load_backbone(backbone, out_layers=(1, 3), dtype="float32")
    features = extractor(photo, input_size=64)
    assert features.grid_size == (4, 6)
    assert [layer.patch_tokens.shape for layer in features.layers] == [(1, 24, 32)] * 2
    pixel_values = reference.nchw(np.array(extractor.processor(np.asarray(photo), input_size=64)))
    with torch.no_grad():
        expected = anydepth.backbone("tiny")(
            torch.from_numpy(np.ascontiguousarray(pixel_values))
        ).last_hidden_state.numpy()
    assert relative_error(np.array(features.layers[-1].patch_tokens), expected[:, 5:]) <= GATE
    assert relative_error(np.array(features.layers[-1].cls_token), expected[:, 0]) <= GATE
    meta = anydepth.save(anydepth.meta_state("tiny"), tmp_path / "meta", anydepth.backbone_config("tiny"))
    again = mlx_depth.load_backbone(meta, dtype="float32")(photo, input_size=64)
    assert relative_error(np.array(again.layers[0].patch_tokens), expected[:, 5:]) <= GATE


def test_what_is_no_dinov3_is_no_backbone(authors: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"is no DINOv3 vision transformer, its config\.json says model_type None"
    ):
        mlx_depth.load_backbone(authors)
    odd = anydepth.save(anydepth.backbone_state("tiny"), tmp_path / "odd", {"model_type": "vit"})
    with pytest.raises(CheckpointError, match="model_type 'vit'"):
        mlx_depth.load_backbone(odd)
