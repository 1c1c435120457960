"""PyTorch files, written by torch and read without it; and the files that must be refused."""

import io
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_depth_convert.sources import LazyTensor, stage
from mlx_depth_convert.sources.torch_pickle import LEGACY_MAGIC, LEGACY_PROTOCOL, read
from support import require, seeded

from mlx_depth.errors import CheckpointError
from mlx_depth.weights.prefixes import find_model

torch = require("reference", "torch")
ZIP, LEGACY = {}, {"_use_new_zipfile_serialization": False}
FORMATS = pytest.mark.parametrize("options", [ZIP, LEGACY], ids=["zip", "legacy"])


def saved(path: Path, content: object, options: dict[str, Any]) -> Path:
    torch.save(content, path, **options)
    return path


def tensors_of(path: Path) -> Mapping[str, LazyTensor]:
    """The tensors of a file that holds them at the top and nowhere else."""
    (part,) = read(path).parts.items()
    assert part[0] == ""
    return part[1].tensors


def as_numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().to(torch.float32).numpy() if tensor.dtype == torch.bfloat16 else tensor.detach().numpy()


def every_kind() -> dict[str, Any]:
    values = torch.from_numpy(seeded("values", (4, 6)))
    storage = torch.from_numpy(seeded("shared", (10, 3)))
    return {
        "float32": values,
        "float16": values.half(),
        "bfloat16": values.bfloat16(),
        "int64": torch.arange(-3, 3),
        "uint8": torch.arange(7, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "transposed": values.t(),
        "permuted": torch.from_numpy(seeded("conv", (2, 3, 4, 5))).permute(0, 3, 1, 2),
        "transposed.bfloat16": values.bfloat16().t(),
        "every.second": values[1::2, ::3],
        "parameter": torch.nn.Parameter(values.t() * 2),
        "shared.all": storage,
        "shared.row": storage[4],
        "shared.part": storage[2:7, 1:],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }


@FORMATS
def test_reads_what_torch_saved(tmp_path: Path, options: dict[str, Any]) -> None:
    tensors = every_kind()
    found = tensors_of(saved(tmp_path / "a.pth", tensors, options))
    assert list(found) == list(tensors)
    for name, expected in tensors.items():
        lazy = found[name]
        array = lazy.read()
        assert (lazy.shape, lazy.dtype) == (tuple(expected.shape), str(expected.dtype).removeprefix("torch.")), name
        assert array.dtype == getattr(mx, "bool_" if lazy.dtype == "bool" else lazy.dtype), name
        shown = array.astype(mx.float32) if lazy.dtype == "bfloat16" else array
        np.testing.assert_array_equal(np.array(shown), as_numpy(expected), err_msg=name)


@FORMATS
def test_module_state_dict_with_its_metadata(tmp_path: Path, options: dict[str, Any]) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = network.state_dict()
    assert isinstance(state, OrderedDict)
    assert state._metadata
    source = read(saved(tmp_path / "a.pth", state, options))
    assert list(source.parts) == [""]
    assert source.parts[""].beside == ()
    assert {name: lazy.shape for name, lazy in source.parts[""].tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }


@FORMATS
def test_unwraps_training_checkpoints_and_says_what_it_skipped(tmp_path: Path, options: dict[str, Any]) -> None:
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {
        "model": {f"module.{name}": tensor for name, tensor in network.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "epoch": 7,
        "best": {"abs_rel": 0.1},
        "device": torch.device("cpu"),
        "dtype": torch.float16,
    }
    source = read(saved(tmp_path / "a.pth", {"state_dict": content}, options))
    names = {key: list(part.tensors) for key, part in source.parts.items()}
    found = find_model(names, lambda key, names: {*names} == {"weight", "bias"}, where="a.pth")
    assert (found.key, found.names) == ("state_dict.model", {"weight": "module.weight", "bias": "module.bias"})
    assert source.parts[found.key].beside == ("optimizer", "epoch", "best", "device", "dtype")
    weight = source.parts[found.key].tensors["module.weight"].read()
    np.testing.assert_array_equal(np.array(weight), network.weight.detach().numpy())


def test_lists_entries_beside_the_tensors(tmp_path: Path) -> None:
    content = {"a": torch.ones(1), "epoch": 3, "optimizer": {"state": {}}}
    assert read(saved(tmp_path / "a.pth", content, ZIP)).parts[""].beside == ("epoch", "optimizer")


def test_plain_values_beside_the_tensors_are_metadata(tmp_path: Path) -> None:
    """Such as the arguments of a model's class; nothing that is made, large, or goes on without end."""
    plain = {"dims": [384, (1, 2)], "kind": "exp", "norm": None, "rate": 0.5, "strict": True}
    endless: dict[str, Any] = {}
    endless["again"] = [endless]
    repeated: Any = []
    for _ in range(12):
        repeated = [repeated] * 12
    others = {
        "endless": endless,
        "repeated": {"x": repeated},
        "huge": {"x": 10**5000},
        "many": dict.fromkeys(map(str, range(20_000))),
        "numbers": {1: {torch.float32}},
        "epoch": 7,
        "list": [1, 2],
    }
    torch.save({"model": {"w": torch.ones(2)}, "model_config": plain, **others}, tmp_path / "x.pt")
    source = read(tmp_path / "x.pt")
    assert source.metadata == {"model_config": plain}
    assert list(source.parts["model"].tensors) == ["w"]


def test_keeps_module_prefix_that_not_all_names_share(tmp_path: Path) -> None:
    content = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert list(tensors_of(saved(tmp_path / "a.pth", content, ZIP))) == ["module.a", "b"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_all_binary_pickle_protocols(tmp_path: Path, protocol: int) -> None:
    path = saved(tmp_path / "a.pth", {"a": torch.arange(3)}, {"pickle_protocol": protocol})
    np.testing.assert_array_equal(np.array(tensors_of(path)["a"].read()), [0, 1, 2])


def test_big_endian_storages(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0]).bfloat16()}, ZIP)
    swapped = {
        "byteorder": lambda _: b"big",
        "data/0": lambda raw: np.frombuffer(raw, "<f4").astype(">f4").tobytes(),
        "data/1": lambda raw: raw[::-1],
    }
    tensors = tensors_of(repacked(path, change=swapped))
    np.testing.assert_array_equal(np.array(tensors["a"].read()), [1, 2])
    np.testing.assert_array_equal(np.array(tensors["b"].read().astype(mx.float32)), [3])


def test_archive_whose_root_is_a_nested_folder(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"a": torch.arange(3)}, ZIP)
    assert list(tensors_of(repacked(path, rename=lambda name: f"some/where/{name}"))) == ["a"]


def test_checksums_that_torch_left_out(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "a.pth", {"a": torch.arange(3)}, ZIP)
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(np.array(tensors_of(path)["a"].read()), [0, 1, 2])


@FORMATS
def test_staged_file_holds_the_same_tensors(tmp_path: Path, options: dict[str, Any]) -> None:
    floats = {name: tensor for name, tensor in every_kind().items() if tensor.is_floating_point()}
    stage(tensors_of(saved(tmp_path / "a.pth", floats, options)), tmp_path / "a.safetensors")
    staged = mx.load(str(tmp_path / "a.safetensors"))
    assert isinstance(staged, dict)
    assert staged.keys() == floats.keys()
    for name, expected in floats.items():
        np.testing.assert_array_equal(np.array(staged[name].astype(mx.float32)), as_numpy(expected.float()))


@FORMATS
def test_reads_values_only_when_asked_and_without_torch(tmp_path: Path, options: dict[str, Any]) -> None:
    path = saved(tmp_path / "a.pth", {f"t{i}": torch.zeros(8 << 20) for i in range(4)}, options)
    code = f"""
import resource, sys
from pathlib import Path
from mlx_depth_convert.sources.torch_pickle import read
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = read(Path({str(path)!r}))
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert grown * (1 if sys.platform == "darwin" else 1024) < 8 << 20, grown
assert float(source.parts[""].tensors["t0"].read().sum()) == 0
assert not {{"torch", "transformers"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Files that must be refused


def repacked(
    path: Path,
    *,
    change: dict[str, Callable[[bytes], bytes]] | None = None,
    rename: Callable[[str], str] = str,
    add: tuple[tuple[str, bytes], ...] = (),
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """The same archive with members changed (by their name below the root folder), renamed or added."""
    out = path.with_name("repacked.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", compression) as new, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a duplicate name, which is meant
        for name in old.namelist():
            edit = (change or {}).get(name.split("/", 1)[1], lambda raw: raw)
            new.writestr(rename(name), edit(old.read(name)))
        for name, raw in add:
            new.writestr(name, raw)
    return out


def archive(path: Path, data_pkl: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """A zip checkpoint around a pickle made by hand."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", data_pkl)
        for key, raw in (storages or {}).items():
            file.writestr(f"a/data/{key}", raw)
    return path


class Call:
    """Pickles as a call, the way hostile files do."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.reduced


def hostile(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that would run code, and the global that the error has to name."""
    import os

    command = f"touch {canary}"
    nested = Call(getattr, Call(__import__, "os"), "system")
    annotated = OrderedDict()
    annotated._metadata = Call(subprocess.check_call, ["touch", str(canary)])
    return {
        "os.system": (pickle.dumps({"a": Call(os.system, command)}, 2), f"{os.system.__module__}.system"),
        "eval": (pickle.dumps(Call(eval, f"open({str(canary)!r}, 'w')"), 2), "__builtin__.eval"),
        "eval in protocol 4": (pickle.dumps(Call(eval, f"open({str(canary)!r}, 'w')"), 4), "builtins.eval"),
        "exec": (pickle.dumps([1, (Call(exec, f"open({str(canary)!r}, 'w')"),)], 4), "builtins.exec"),
        "nested reduce": (pickle.dumps(Call(nested.reduced[0], *nested.reduced[1]), 4), "builtins.getattr"),
        "inside a state dict's metadata": (
            pickle.dumps(annotated, 4),
            "subprocess.check_call",
        ),
        "old instance": (b"(ios\nsystem\n.", "os.system"),
        "two-step name": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.", "os.system"),
        "class": (b"\x80\x02c__main__\nNet\n)\x81}b.", "__main__.Net"),
        "torch loader": (b"\x80\x02ctorch\nload\n(X\x01\x00\x00\x00xtR.", "torch.load"),
        "attribute chain": (b"\x80\x04\x8c\x05torch\x8c\x0e_utils.__doc__\x93.", "torch._utils.__doc__"),
    }


@pytest.mark.parametrize("case", list(hostile(Path("x"))))
@pytest.mark.parametrize("container", ["zip", "legacy", "bare"])
def test_hostile_pickles_are_refused_by_name(tmp_path: Path, case: str, container: str) -> None:
    canary = tmp_path / "canary"
    code, name = hostile(canary)[case]
    path = tmp_path / "a.pth"
    if container == "zip":
        archive(path, code)
    else:
        head = b"" if container == "bare" else b"".join(pickle.dumps(x, 2) for x in (LEGACY_MAGIC, LEGACY_PROTOCOL, {}))
        path.write_bytes(head + code)
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert name in str(caught.value)
    assert "safetensors" in str(caught.value)
    assert not canary.exists()


class Placed(pickle.Pickler):
    """Writes ``Persistent`` objects as persistent ids."""

    def persistent_id(self, value: Any) -> Any:
        return value.identity if isinstance(value, Persistent) else None


class Persistent:
    def __init__(self, *identity: Any):
        self.identity = identity


class Rebuilt:
    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return torch._utils._rebuild_tensor_v2, self.arguments


def placed(content: object, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    Placed(buffer, protocol).dump(content)
    return buffer.getvalue()


def storage(count: object = 4, kind: object = None, name: object = "storage", key: object = "0") -> Persistent:
    return Persistent(name, torch.FloatStorage if kind is None else kind, key, "cpu", count)


BAD_TENSORS: dict[str, tuple[Any, ...]] = {
    "past its storage": (storage(), 0, (5,), (1,), False, OrderedDict()),
    "offset past its storage": (storage(), 4, (1,), (1,), False, OrderedDict()),
    "strides past its storage": (storage(), 0, (2, 2), (3, 1), False, OrderedDict()),
    "negative stride": (storage(), 3, (4,), (-1,), False, OrderedDict()),
    "negative offset": (storage(), -1, (1,), (1,), False, OrderedDict()),
    "huge, of one value": (storage(), 0, (2**30, 2**30), (0, 0), False, OrderedDict()),
    "huge and empty": (storage(), 0, (0, 2**40), (1, 1), False, OrderedDict()),
    "huge storage": (storage(2**60), 0, (2**30, 2**29), (2**29, 1), False, OrderedDict()),
    "other storage size": (storage(3), 0, (3,), (1,), False, OrderedDict()),
    "shape of text": (storage(), 0, ("4",), (1,), False, OrderedDict()),
    "shape and strides of different lengths": (storage(), 0, (4,), (1, 1), False, OrderedDict()),
    "too many axes": (storage(), 0, (1,) * 33, (1,) * 33, False, OrderedDict()),
    "no storage": ("0", 0, (4,), (1,), False, OrderedDict()),
    "storage that is missing": (storage(key="7"), 0, (4,), (1,), False, OrderedDict()),
    "storage called like a path": (storage(key="../../data.pkl"), 0, (4,), (1,), False, OrderedDict()),
    "persistent module": (storage(name="module"), 0, (4,), (1,), False, OrderedDict()),
    "storage type that is no type": (storage(kind="FloatStorage"), 0, (4,), (1,), False, OrderedDict()),
    "negative storage": (storage(-4), 0, (4,), (1,), False, OrderedDict()),
    "too few facts": (storage(), 0, (4,)),
}


@pytest.mark.parametrize("case", list(BAD_TENSORS))
def test_tensors_that_cannot_be(tmp_path: Path, case: str) -> None:
    path = archive(tmp_path / "a.pth", placed({"a": Rebuilt(*BAD_TENSORS[case])}), {"0": bytes(16)})
    with pytest.raises(CheckpointError, match="download it again"):
        read(path)


def test_the_same_tensor_made_right(tmp_path: Path) -> None:
    good = (storage(), 0, (4,), (1,), False, OrderedDict())
    path = archive(tmp_path / "a.pth", placed({"a": Rebuilt(*good)}), {"0": bytes(16)})
    np.testing.assert_array_equal(np.array(tensors_of(path)["a"].read()), np.zeros(4))


BAD_PICKLES = {
    "empty": b"",
    "no stop": b"\x80\x02}",
    "unknown opcode": b"\x80\x02\xff.",
    "empty stack": b"\x80\x02R.",
    "nothing left": b"\x80\x02.",
    "mark without a start": b"\x80\x02t.",
    "memo that was never put": b"\x80\x02h\x05.",
    "key that is a tuple": b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"Ns.",
    "list as a key": b"\x80\x02}]Ns.",
    "odd number of keys and values": b"\x80\x02}(Nu.",
    "text that claims 4 GB": b"\x80\x02X\xff\xff\xff\xff.",
    "bytes that claim 8 EB": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
    "buffer that claims 8 EB": b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.",
    "global without a name": b"\x80\x04]]\x93.",
    "global named by a deep tuple": b"\x80\x04)" + b"\x85" * 100_000 + b"]\x93.",
    "call of a list": b"\x80\x02])R.",
    "state for a list": b"\x80\x02]}b.",
    "a list that appends to itself": b"\x80\x02}q\x00h\x00a.",
    "a number": b"\x80\x02K\x05.",
    "a dict within itself": b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.",
    "no tensors": pickle.dumps({"epoch": 3}, 2),
}


@pytest.mark.parametrize("case", list(BAD_PICKLES))
def test_pickles_that_cannot_be_read(tmp_path: Path, case: str) -> None:
    with pytest.raises(CheckpointError, match=r"download it again|state_dict\(\)"):
        read(archive(tmp_path / "a.pth", BAD_PICKLES[case]))


def test_memo_index_of_four_billion_costs_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tensors"):
        read(archive(tmp_path / "a.pth", b"\x80\x02}r\xff\xff\xff\xff."))


def test_archives_that_torch_never_writes(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"a": torch.zeros(1000)}, ZIP)
    cases = {
        "points outside": [
            repack_with(path, name) for name in ("../evil", "a/../../evil", "/etc/x", "C:/x", "a\\..\\x")
        ],
        "appears twice": [repack_with(path, "a/data/0")],
        "is compressed": [lambda: repacked(path, compression=zipfile.ZIP_DEFLATED)],
        "is encrypted": [lambda: with_entry(path, 8, b"\x01")],
        "lies outside the file": [lambda: with_entry(path, 42, b"\xf0\xff\xff\xff")],
        "2 data.pkl": [repack_with(path, "b/data.pkl")],
        "0 data.pkl": [lambda: repacked(path, rename=lambda name: name.replace("data.pkl", "code.pkl"))],
        "unknown byte order": [lambda: repacked(path, change={"byteorder": lambda _: b"middle"})],
        "another size": [lambda: repacked(path, change={"data/0": lambda raw: raw[:-4]})],
    }
    for message, makers in cases.items():
        for make in makers:
            with pytest.raises(CheckpointError, match=message):
                read(make())


def repack_with(path: Path, name: str) -> Callable[[], Path]:
    return lambda: repacked(path, add=((name, b"x"),))


def with_entry(path: Path, at: int, value: bytes) -> Path:
    """The archive with bytes of the directory's first entry replaced."""
    raw = bytearray(path.read_bytes())
    start = raw.index(b"PK\x01\x02") + at
    raw[start : start + len(value)] = value
    out = path.with_name("patched.pth")
    out.write_bytes(raw)
    return out


@FORMATS
def test_every_truncation_is_an_error(tmp_path: Path, options: dict[str, Any]) -> None:
    raw = saved(tmp_path / "a.pth", {"a": torch.ones(3)}, options).read_bytes()
    cut = tmp_path / "cut.pth"
    for length in range(0, len(raw), 7):
        cut.write_bytes(raw[:length])
        with pytest.raises(CheckpointError):
            read(cut)


def test_legacy_storages_that_do_not_match(tmp_path: Path) -> None:
    raw = saved(tmp_path / "a.pth", {"a": torch.ones(3)}, LEGACY).read_bytes()
    path = tmp_path / "b.pth"
    path.write_bytes(raw[:-20] + struct.pack("<q", 2**60) + raw[-12:])
    with pytest.raises(CheckpointError, match="another size than declared"):
        read(path)
    path.write_bytes(raw.replace(b"\x8a\nl\xfc\x9cF", b"\x8a\nl\xfc\x9cG", 1))
    with pytest.raises(CheckpointError, match="neither PyTorch's zip archive"):
        read(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(CheckpointError, match="check the path"):
            read(path)


def test_agrees_with_torch_on_what_is_safe(tmp_path: Path) -> None:
    """Each hostile pickle is one that torch's own restricted loader refuses, too."""
    for case, (code, _) in hostile(tmp_path / "canary").items():
        path = archive(tmp_path / "a.pth", code)
        with pytest.raises((pickle.UnpicklingError, RuntimeError), match=r".+"):
            torch.load(path, weights_only=True)
        assert not (tmp_path / "canary").exists(), case
