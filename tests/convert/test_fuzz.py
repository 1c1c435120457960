"""10,000 damaged files: each reader raises our errors only, runs nothing from the file and keeps its memory bounded.

Run as a script, this file is the child process, in which a crash, a hang or a leak of one reader can be told.
"""

import codecs
import io
import os
import pickle
import pickletools
import random
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import gguf
import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_depth_convert.sources import Source, torch_pickle
from mlx_depth_convert.sources import gguf as gguf_source
from mlx_depth_convert.sources.pickle_machine import Machine, interpret
from support import require, seeded

from mlx_depth.errors import MlxDepthError
from mlx_depth.weights.safetensors_io import load_file, write_safetensors

ROUNDS = {"pickle": 4000, "zip": 2000, "legacy": 1500, "safetensors": 1500, "gguf": 1000}
OPCODES = 2000  # pickles made of random opcodes
MAX_GROWTH = 64 << 20  # bytes; the files have less than 5 kB, and a hostile size in them is at least 2 GB
SECONDS = 60

STORAGES = (24, 12)  # bytes of those in the seed pickles

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "subprocess.Popen", "socket.connect")
HOSTILE = (
    b"cposix\nsystem\nX\x0c\x00\x00\x00touch canary\x85R",
    b"c__builtin__\neval\nX\x14\x00\x00\x00open('canary', 'w+')\x85R",
    b"\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85R",
    b"(X\x0c\x00\x00\x00touch canaryios\nsystem\n",
)
INTERESTING = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\xff" * 7 + b"\x7f", b"\xff" * 8)
TEXT = (*(bytes([code]) for code in b'[]{}",09'), b"-1", b"9999999999", b"18446744073709551616", b"1e9", b"F8_E5M2")


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """One to three random damages."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(7)
        if kind == 0:  # bits
            for _ in range(rng.randint(1, 8)):
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:  # truncation
            del data[at:]
        elif kind == 2:  # a part of the file, somewhere else
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start : start + rng.randint(1, 64)]
        elif kind == 3:  # a hole
            del data[at : at + rng.randint(1, 64)]
        elif kind == 4:  # numbers at the limits
            value = rng.choice(INTERESTING)
            data[at : at + len(value)] = value
        elif kind == 5:
            data[at : at + rng.randint(0, 2)] = rng.choice(TEXT)
        else:
            code = rng.choice(HOSTILE)
            data[at : at + rng.choice((0, len(code)))] = code
    return bytes(data)


def read_all(source: Source) -> None:
    for part in source.parts.values():
        for lazy in part.tensors.values():
            assert lazy.read().shape == lazy.shape


def read_torch(path: Path) -> None:
    read_all(torch_pickle.read(path))


def read_pickle(path: Path) -> None:
    """A damaged pickle in a sound archive, so that the damage is not met before the pickle is."""
    archive = path.with_suffix(".archive")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a/data.pkl", path.read_bytes())
        for key, size in enumerate(STORAGES):
            file.writestr(f"a/data/{key}", bytes(size))
    read_torch(archive)


def read_gguf(path: Path) -> None:
    read_all(gguf_source.read(path))


def read_safetensors(path: Path) -> None:
    mx.eval(list(load_file(path).values()))


READERS: dict[str, Callable[[Path], None]] = {
    "pickle": read_pickle,
    "zip": read_torch,
    "legacy": read_torch,
    "safetensors": read_safetensors,
    "gguf": read_gguf,
}


def fuzz(name: str, folder: Path) -> None:
    """Read damaged copies of the seed files; anything but an error of ours ends the process."""
    reader, paths = READERS[name], sorted(folder.glob(f"*.{name}"))
    seeds = [path.read_bytes() for path in paths]
    for path in paths:
        reader(path)
    sys.addaudithook(refuse_actions)
    rng = random.Random(name)
    target = folder / f"damaged.{name}"
    refused = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(ROUNDS[name]):
        target.write_bytes(mutated(rng.choice(seeds), rng))
        try:
            reader(target)
        except MlxDepthError:
            refused += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < MAX_GROWTH, f"memory grew by {grown}"
    assert refused > ROUNDS[name] // 2, f"only {refused} refused: are the files damaged at all?"


def refuse_actions(event: str, arguments: tuple[object, ...]) -> None:
    if event in FORBIDDEN or event == "pickle.find_class":
        sys.stderr.write(f"a file made its reader do {event} {arguments}\n")
        sys.exit(3)


LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
MODULES = ("os", "posix", "builtins", "__builtin__", "subprocess", "torch", "torch._utils", "collections", "numpy")
MODULES += ("antigravity", "torch._tensor", "torch.storage", "runpy", "importlib", "ctypes", "webbrowser")
ATTRIBUTES = ("system", "eval", "exec", "Popen", "__import__", "getattr", "_rebuild_tensor_v2", "OrderedDict", "open")
ATTRIBUTES += ("FloatStorage", "UntypedStorage", "_rebuild_from_type_v2", "Tensor", "run_module", "CDLL", "storage")


@st.composite
def opcodes(draw: st.DrawFn) -> bytes:
    """One opcode with an argument of its form; names are those that hostile files ask for."""
    opcode = draw(st.sampled_from([each for each in pickletools.opcodes if each.name != "STOP"]))
    code = opcode.code.encode("latin-1")
    if opcode.name in ("GLOBAL", "INST"):
        return code + f"{draw(st.sampled_from(MODULES))}\n{draw(st.sampled_from(ATTRIBUTES))}\n".encode()
    if opcode.arg is None:
        return code
    if opcode.arg.n == pickletools.UP_TO_NEWLINE:
        return code + draw(st.sampled_from([b"0", b"17", b"1.5", b"'text'", b"5L", b"x"])) + b"\n"
    if opcode.arg.n in LENGTHS:
        content = draw(st.sampled_from([*MODULES, *ATTRIBUTES, "model", "0", "cpu"])).encode()
        return code + len(content).to_bytes(LENGTHS[opcode.arg.n], "little") + content
    return code + draw(st.sampled_from([bytes(8), b"\x01" + bytes(7), b"\xff" * 8]))[: opcode.arg.n]


WATCHED = (*FORBIDDEN, "import", "exec", "compile", "pickle.find_class", "ctypes.dlopen", "webbrowser.open")


def follow_random_opcodes() -> None:
    """Follow pickles made of random opcodes; whatever they ask for, nothing is imported, compiled or run."""
    watching = [False]

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching[0] and event in WATCHED:
            os.write(2, f"a pickle made its reader do {event} {arguments}".encode())
            os._exit(3)

    for codec in ("raw_unicode_escape", "unicode_escape"):
        codecs.lookup(codec)  # pickletools decodes old strings with these, whatever the file says
    sys.addaudithook(watch)
    ended = []

    @settings(max_examples=OPCODES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(opcodes(), max_size=30), st.sampled_from([b"", b"}", b"(", b"]("]))
    def follow(codes: list[bytes], start: bytes) -> None:
        stream = io.BytesIO(b"\x80\x04" + start + b"".join(codes) + b".")
        watching[0] = True
        try:
            interpret(stream, Machine())
            ended.append(True)
        except ValueError:
            pass
        finally:
            watching[0] = False

    follow()
    assert len(ended) > OPCODES // 50, f"only {len(ended)} came to their end: do the opcodes do anything?"


def legacy(code: bytes, storages: list[bytes], sizes: tuple[int, int]) -> bytes:
    """The older format around a pickle; torch would use the storages' addresses as keys, which change with each run."""
    head = (torch_pickle.LEGACY_MAGIC, torch_pickle.LEGACY_PROTOCOL, {"little_endian": True})
    raw = [struct.pack("<q", len(raw) // size) + raw for raw, size in zip(storages, sizes, strict=True)]
    return b"".join([*(pickle.dumps(value, 2) for value in head), code, pickle.dumps(["0", "1"], 2), *raw])


def write_seeds(folder: Path) -> None:
    torch = require("reference", "torch")
    torch.manual_seed(0)
    linear = torch.nn.Linear(3, 2).state_dict()
    values = torch.arange(6.0).reshape(2, 3)
    tree = {"model": {"module.a": values.t(), "module.b": torch.nn.Parameter(values.bfloat16())}, "epoch": 1}
    for number, (content, protocol) in enumerate([(linear, 2), (tree, 2), (tree, 4)]):
        torch.save(content, folder / f"{number}.zip", pickle_protocol=protocol)
        with zipfile.ZipFile(folder / f"{number}.zip") as file:
            code, storages = file.read(f"{number}/data.pkl"), [file.read(f"{number}/data/{key}") for key in "01"]
        (folder / f"{number}.legacy").write_bytes(legacy(code, storages, (4, 2 if content is tree else 4)))
        if content is tree:
            (folder / f"{number}.pickle").write_bytes(code)
    arrays = {"a": mx.arange(6.0).reshape(2, 3), "b": mx.ones((2,), mx.bfloat16), "c": mx.zeros((0, 3), mx.float16)}
    write_safetensors(folder / "0.safetensors", arrays, {"format": "pt"})
    write_safetensors(folder / "1.safetensors", {"weight": mx.arange(40.0)}, {})
    writer = gguf.GGUFWriter(folder / "0.gguf", "x")
    writer.add_array("list", [1, 2, 3])
    writer.add_array("words", ["a", "b"])
    writer.add_tensor("a", seeded("a", (2, 3)))
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("q", gguf.quants.quantize(seeded("q", (2, 32)), q8_0), raw_dtype=q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return folder


def child(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    paths = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", ""))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, timeout=SECONDS, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", list(READERS))
def test_damaged_files_only_raise_our_errors(name: str, seeds: Path) -> None:
    done = child([__file__, name, str(seeds)], seeds)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (seeds / "canary").exists()


def test_random_opcodes_import_and_run_nothing(tmp_path: Path) -> None:
    done = child([__file__, "opcodes", str(tmp_path)], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in tmp_path.iterdir()} <= {".hypothesis"}


def test_the_audit_sees_code_that_runs(tmp_path: Path) -> None:
    """The guard is real: an ordinary unpickler on the first hostile snippet trips it."""
    code = f"""
import pickle, runpy, sys
here = runpy.run_path({__file__!r})
sys.addaudithook(here["refuse_actions"])
pickle.loads(bytes([128, 2]) + here["HOSTILE"][0] + b".")
"""
    done = child(["-c", code], tmp_path)
    assert (done.returncode, "pickle.find_class" in done.stderr) == (3, True)
    assert not (tmp_path / "canary").exists()


if __name__ == "__main__":
    follow_random_opcodes() if sys.argv[1] == "opcodes" else fuzz(sys.argv[1], Path(sys.argv[2]))
