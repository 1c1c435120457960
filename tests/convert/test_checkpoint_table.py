"""Checkpoints as people have them: prefix × wrapper × container × what lies beside.

Each gives the weights, or one error that says what to do.
"""

import argparse
import dataclasses
import itertools
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import containers
import mlx.core as mx
import numpy as np
import pytest
import reference
from mlx_depth_convert.opening import open_checkpoint
from reference import torch, transformers
from safetensors.torch import save_file

from mlx_depth.cli import main
from mlx_depth.errors import CheckpointError

Tensors = dict[str, Any]


@pytest.fixture(scope="module")
def upstream() -> Any:
    return reference.model("tiny", max_depth=20)


@pytest.fixture(scope="module")
def plain(upstream: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers writes, and reads back the same."""
    folder = reference.save(upstream, tmp_path_factory.mktemp("plain") / "hub")
    again = transformers.DepthAnythingForDepthEstimation.from_pretrained(folder).state_dict()
    assert all(torch.equal(again[name], value) for name, value in upstream.state_dict().items())
    return folder


@pytest.fixture(scope="module")
def expected(plain: Path) -> dict[str, mx.array]:
    return weights_of(plain)


def weights_of(source: Path, **options: Any) -> dict[str, mx.array]:
    with open_checkpoint(source, **options) as (checkpoint, _):
        mx.eval(checkpoint.weights)
        return dict(checkpoint.weights)


def authors(upstream: Any) -> Tensors:
    return reference.authors_names(upstream.state_dict())


def transformers_new(upstream: Any) -> Tensors:
    return upstream.state_dict()


def transformers_old(upstream: Any) -> Tensors:
    return reference.hub_names(upstream.state_dict())


NAMES: dict[str, Callable[[Any], Tensors]] = {
    "authors": authors,
    "transformers": transformers_new,
    "hub": transformers_old,
}
PREFIXES = ["", "module.", "model.", "net._orig_mod.", "module._orig_mod.model.", "their.own.backbone."]
WRAPPERS = ["", "state_dict", "model", "module", "net", "network", "params", "params_ema", "ema", "model_state_dict"]
WRAPPERS += ["generator", "state_dict.model", "checkpoint.0.weights"]
CONTAINERS = [".pth", ".legacy.pth", ".pt", ".bin", ".ckpt", ".safetensors", ".gguf"]


def wrapped(tensors: Tensors, wrapper: str) -> Any:
    """The tensors under dotted keys, with what a training loop keeps beside them; a number is a place in a list."""
    content: Any = tensors
    for key in reversed(wrapper.split(".")) if wrapper else ():
        content = [content, 3] if key == "0" else {key: content, **beside()}
    return content


def beside() -> dict[str, Any]:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    return {
        "optimizer": optimizer.state_dict(),
        "epoch": 7,
        "best_loss": torch.tensor(0.5),
        "args": argparse.Namespace(lr=1e-4, encoder="vits"),
        "rng": (torch.get_rng_state(), np.random.RandomState(0).get_state()),
    }


def write(path: Path, upstream: Any, *, names: str = "authors", prefix: str = "", wrapper: str = "") -> Path:
    """One file of weights; its suffix says how."""
    if path.suffix == ".gguf":
        return containers.save_gguf(upstream, path, prefix=prefix)
    tensors = {prefix + name: value.contiguous() for name, value in NAMES[names](upstream).items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(wrapped(tensors, wrapper), path, _use_new_zipfile_serialization=".legacy" not in path.suffixes)
    return path


def leftovers(folder: Path) -> None:
    """What transformers' Trainer leaves."""
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "scaler.pt"):
        torch.save({"state": {"a": torch.ones(2)}}, folder / name)


def documents(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "LICENSE").write_text("MIT")
    (folder / "trainer_state.json").write_text("{}")


def adapter(folder: Path) -> None:
    save_file({"base.lora_A.weight": torch.ones(2)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")


COMPANIONS: dict[str, Callable[[Path], None]] = {
    "": lambda folder: None,
    "leftovers": leftovers,
    "documents": documents,
    "adapter": adapter,
}


def table() -> Iterator[Any]:
    """Every container with every prefix; every wrapper in both pickle formats; companions and names in turn."""
    companions, names = itertools.cycle(COMPANIONS), itertools.cycle(NAMES)
    rows = [(container, prefix, "") for container in CONTAINERS for prefix in PREFIXES]
    rows += [(".pth", "module.", wrapper) for wrapper in WRAPPERS] + [(".legacy.pth", "", each) for each in WRAPPERS]
    rows += [(".ckpt", prefix, "state_dict") for prefix in PREFIXES]
    rows += [(".bin", prefix, "model") for prefix in PREFIXES]
    for container, prefix, wrapper in rows:
        companion, name = next(companions), next(names)
        label = "-".join(filter(None, (container[1:], prefix, wrapper, companion, name)))
        yield pytest.param(container, prefix, wrapper, companion, name, id=label)


TABLE = list(table())
assert len(TABLE) >= 60


@pytest.mark.parametrize(("container", "prefix", "wrapper", "companion", "names"), TABLE)
def test_a_folder_gives_the_weights_of_torch(
    container: str, prefix: str, wrapper: str, companion: str, names: str,
    upstream: Any, plain: Path, expected: dict[str, mx.array], tmp_path: Path,
) -> None:  # fmt: skip
    write(tmp_path / f"weights{container}", upstream, names=names, prefix=prefix, wrapper=wrapper)
    shutil.copy(plain / "config.json", tmp_path)
    COMPANIONS[companion](tmp_path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = weights_of(tmp_path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert mx.array_equal(found[name], value), name
    lines = [
        str(each.message) for each in said if "before their names" in str(each.message) or "under" in str(each.message)
    ]
    assert len(lines) == bool(prefix or wrapper), "said in one line, and only where there is something to say"
    if prefix:
        assert prefix in lines[0]
    if wrapper:
        assert wrapper in lines[0]


def test_weights_in_double_precision_are_rounded(upstream: Any, plain: Path, expected: Any, tmp_path: Path) -> None:
    torch.save({name: value.double() for name, value in authors(upstream).items()}, tmp_path / "a.pth")
    shutil.copy(plain / "config.json", tmp_path)
    found = weights_of(tmp_path / "a.pth")
    assert all(mx.array_equal(found[name], value) for name, value in expected.items())


def test_an_averaged_model_with_its_counter(upstream: Any, plain: Path, expected: Any, tmp_path: Path) -> None:
    torch.save(torch.optim.swa_utils.AveragedModel(upstream).state_dict(), tmp_path / "a.pth")
    shutil.copy(plain / "config.json", tmp_path)
    with pytest.warns(UserWarning, match="left out: n_averaged"):
        found = weights_of(tmp_path / "a.pth")
    assert all(mx.array_equal(found[name], value) for name, value in expected.items())


@dataclasses.dataclass
class Kept:
    state: Tensors


def two(upstream: Any) -> tuple[Tensors, Tensors]:
    state = authors(upstream)
    return state, {name: value + 1 for name, value in state.items()}


@pytest.mark.parametrize("options", [{"key": "teacher"}, {"key": "teacher", "prefix": "module."}])
def test_the_user_chooses_between_two_dicts(
    options: Any, upstream: Any, plain: Path, expected: Any, tmp_path: Path
) -> None:
    state, other = two(upstream)
    torch.save(
        {"student": other, "teacher": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "a.pth"
    )
    shutil.copy(plain / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"a\.pth holds 2 models .*: choose one with --key"):
        weights_of(tmp_path / "a.pth")
    found = weights_of(tmp_path / "a.pth", **options)
    assert all(mx.array_equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_user_chooses_between_two_prefixes(
    suffix: str, upstream: Any, plain: Path, expected: Any, tmp_path: Path
) -> None:
    state, other = two(upstream)
    both = {
        **{f"student.{name}": v for name, v in other.items()},
        **{f"teacher.{name}": v for name, v in state.items()},
    }
    path = tmp_path / f"a{suffix}"
    save_file({n: v.contiguous() for n, v in both.items()}, path) if suffix == ".safetensors" else torch.save(
        both, path
    )
    shutil.copy(plain / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"2 models \('student\.', 'teacher\.'\): choose one with --prefix"):
        weights_of(path)
    found = weights_of(path, prefix="teacher")
    assert all(mx.array_equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("container", [".pth", ".safetensors"])
def test_one_surplus_tensor_is_named_and_can_be_left_out(
    container: str, upstream: Any, plain: Path, expected: Any, tmp_path: Path
) -> None:
    state = {**authors(upstream), "extra.scale": torch.ones(2)}
    path = tmp_path / f"a{container}"
    save_file({n: v.contiguous() for n, v in state.items()}, path) if container == ".safetensors" else torch.save(
        state, path
    )
    shutil.copy(plain / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"does not know: extra\.scale\. .*--ignore 'extra\.scale' leaves"):
        weights_of(path)
    with pytest.warns(UserWarning, match=r"ignored extra\.scale"):
        found = weights_of(path, ignore=("extra.*",))
    assert all(mx.array_equal(found[name], value) for name, value in expected.items())
    with pytest.raises(
        ValueError, match=r"--ignore head matches no surplus tensor .*: the surplus ones are extra\.scale"
    ):
        weights_of(path, ignore=("head",))


# What cannot be read: one line, exit code 2, and no folder


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def changed(name: str, value: Callable[[Any], Any]) -> Callable[[Tensors], Tensors]:
    return lambda state: {**state, name: value(state[name])}


POSITIONS, NORM = "pretrained.pos_embed", "pretrained.norm.weight"
NEARLY: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "no positions": (without(POSITIONS), r"missing: backbone\.pos_embed"),
    "no first block": (
        without("pretrained.blocks.0.attn.qkv.weight"),
        r"only a part of depth_anything's: take",
    ),
    "whole numbers": (changed(NORM, lambda v: v.long()), r"no floating-point numbers .*norm\.weight is int64"),
    "truth": (changed(NORM, lambda v: v > 0), r"no floating-point numbers \(backbone\.norm\.weight is bool"),
    "8-bit floats": (changed(NORM, lambda v: v.to(torch.float8_e4m3fn)), r"norm\.weight is a tensor that is not read"),
    "complex": (
        changed(NORM, lambda v: v.to(torch.complex64)),
        r"norm\.weight is a tensor .*not read \(complex64\)",
    ),
    "sparse": (changed(NORM, lambda v: v.to_sparse()), r"norm\.weight is a tensor that is not read \(sparse\)"),
    "no values": (changed(NORM, lambda v: v[:0]), r"wrong shape: backbone\.norm\.weight is \(0,\), not \(32,\)"),
    "a scalar": (changed(NORM, lambda v: v[0]), r"wrong shape: backbone\.norm\.weight is \(\), not"),
    "32 axes": (changed(NORM, lambda v: v.reshape(*(1,) * 31, 32)), r"wrong shape: backbone\.norm\.weight is \(1, 1"),
    "fused weights of no thirds": (
        changed("pretrained.blocks.0.attn.qkv.bias", lambda v: v[:95]),
        r"cannot be cut into 3 equal parts",
    ),
    "fused weights without axes": (
        changed("pretrained.blocks.0.attn.qkv.bias", lambda v: v[0]),
        r"cannot be cut into 3 equal parts",
    ),
    "NumPy arrays": (
        lambda s: {name: v.numpy() for name, v in s.items()},
        r"holds no tensors by name .*Save the",
    ),
    "an object of their own": (lambda s: Kept(s), r"asks for '[\w.]*Kept'.*Get the weights as \.safetensors"),
    "a whole module": (lambda s: torch.nn.Linear(2, 2), r"asks for 'torch\.nn\.modules\.linear\.Linear'"),
    "half in, half out": (
        lambda s: {("module." if "norm" in n else "") + n: v for n, v in s.items()},
        r"does not know: module\.",
    ),
    "an adapter": (
        lambda s: {"base.q.lora_A.weight": torch.ones(2)},
        r"is a LoRA adapter.*merge it into its base",
    ),
    "another model": (lambda s: {"conv.weight": torch.ones(2)}, r"holds no model that mlx-depth knows .*conv\.weight"),
}


@pytest.mark.parametrize("case", NEARLY)
def test_what_is_nearly_a_model_is_one_line(
    case: str, upstream: Any, plain: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change, message = NEARLY[case]
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(plain / "config.json", source)
    torch.save(change(authors(upstream)), source / "a.pth")
    refused(source / "a.pth", tmp_path, message, capfd)


def config_only(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an adapter alone": (adapter, r"is a LoRA adapter, not a whole model: merge it into its base first"),
    "an adapter's config alone": (config_only, r"is a LoRA adapter, not a whole model: merge it"),
    "leftovers alone": (leftovers, r"has no \*\.safetensors \(it holds .*optimizer\.pt"),
    "two files": (
        lambda f: [torch.save({}, f / name) for name in ("indoor.pth", "outdoor.pth")],
        r"holds several checkpoints \(indoor\.pth, outdoor\.pth\)",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_hold_no_model(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make, message = FOLDERS[case]
    (tmp_path / "source").mkdir()
    make(tmp_path / "source")
    refused(tmp_path / "source", tmp_path, message, capfd)


def refused(source: Path, scratch: Path, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(source), str(scratch / "out")]) == 2
    printed = capfd.readouterr()
    errors = [line for line in printed.err.splitlines() if "warning" not in line]
    assert len(errors) == 1, printed.err
    assert errors[0].startswith("mlx-depth: error: ")
    assert re.search(message, errors[0]), errors[0]
    assert not (scratch / "out").exists()
    assert not Path("/tmp/mlx-depth-was-here").exists()


def test_a_file_for_the_conversion_tool_comes_with_the_command(
    upstream: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "my model.pth", upstream)
    photo = Path(__file__).parents[2] / "examples" / "coffee.jpg"
    assert main(["predict", str(photo), "--model", str(path), "-o", str(tmp_path)]) == 2
    assert f"mlx-depth convert '{path}' 'my model-mlx'" in capfd.readouterr().err


def test_info_of_a_file_for_the_conversion_tool(
    plain: Path, upstream: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "model.pth", upstream)
    shutil.copy(plain / "config.json", tmp_path / "config.json")
    assert main(["info", str(path), "--json"]) == 0
    backbone = json.loads(capfd.readouterr().out)["config"]["backbone"]
    assert backbone["embed_dim"] == upstream.config.backbone_config.hidden_size
    (tmp_path / "config.json").unlink()
    assert main(["info", str(path)]) == 2
    assert capfd.readouterr().err.endswith("put the model's config.json beside the weights\n")


def test_the_card_goes_on_to_the_converted_folder(plain: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(plain, tmp_path / "source"))
    base = "depth-anything/Depth-Anything-V2-Small-hf"
    (source / "README.md").write_text(f"---\nlicense: mit\nbase_model: [{base}, lab/rooms]\n---\n")
    for number in ("once", "twice"):
        assert main(["convert", str(source), str(tmp_path / number)]) == 0
        assert json.loads((tmp_path / number / "config.json").read_text())["license"] == "MIT"
        card = (tmp_path / number / "README.md").read_text()
        assert card.startswith("---\nlicense: mit\n")
        assert f"base_model: [{base}, lab/rooms]\n" in card
        source = tmp_path / number
