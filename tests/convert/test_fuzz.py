"""10,000 damaged files: each reader raises our errors only, runs nothing from the file and keeps its memory bounded.

Run as a script, this file is the child process, in which a crash, a hang or a leak of one reader can be told.
"""

import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_depth_convert.sources import gguf, torch_pickle
from support import require, seeded

from mlx_depth.checkpoint import _load_file, write_safetensors
from mlx_depth.errors import MlxDepthError

ROUNDS = {"zip": 4000, "legacy": 3000, "safetensors": 2000, "gguf": 1000}
MAX_GROWTH = 64 << 20  # bytes; the files have less than 5 kB, and a hostile size in them is at least 2 GB
SECONDS = 60

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "subprocess.Popen", "socket.connect")
HOSTILE = (
    b"cposix\nsystem\nX\x0c\x00\x00\x00touch canary\x85R",
    b"c__builtin__\neval\nX\x14\x00\x00\x00open('canary', 'w+')\x85R",
    b"\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85R",
    b"(X\x0c\x00\x00\x00touch canaryios\nsystem\n",
)
INTERESTING = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\xff" * 7 + b"\x7f", b"\xff" * 8)
TEXT = (
    b"0",
    b"-1",
    b"9999999999",
    b"18446744073709551616",
    b"1e9",
    b"null",
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b",",
    b"F8_E5M2",
)


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


def read_torch(path: Path) -> None:
    for lazy in torch_pickle.read(path).tensors.values():
        assert lazy.read().shape == lazy.shape


def read_gguf(path: Path) -> None:
    for lazy in gguf.read(path).tensors.values():
        assert lazy.read().shape == lazy.shape


def read_safetensors(path: Path) -> None:
    mx.eval(list(_load_file(path).values()))


READERS: dict[str, Callable[[Path], None]] = {
    "zip": read_torch,
    "legacy": read_torch,
    "safetensors": read_safetensors,
    "gguf": read_gguf,
}


def fuzz(name: str, folder: Path) -> None:
    """Read damaged copies of the seed files; anything but an error of ours ends the process."""
    reader, seeds = READERS[name], [path.read_bytes() for path in sorted(folder.glob(f"{name}-*"))]
    for path in sorted(folder.glob(f"{name}-*")):
        reader(path)
    sys.addaudithook(refuse_actions)
    rng = random.Random(name)
    target = folder / f"damaged-{name}"
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
    sys.stdout.write(f"{refused} of {ROUNDS[name]} refused\n")


def refuse_actions(event: str, arguments: tuple[object, ...]) -> None:
    if event in FORBIDDEN or event == "pickle.find_class":
        sys.stderr.write(f"a file made its reader do {event} {arguments}\n")
        sys.exit(3)


def write_seeds(folder: Path) -> None:
    torch = require("reference", "torch")
    import gguf as package

    linear = torch.nn.Linear(3, 2).state_dict()
    values = torch.arange(6.0).reshape(2, 3)
    tree = {"model": {"module.a": values.t(), "module.b": torch.nn.Parameter(values.bfloat16())}, "epoch": 1}
    for number, (content, protocol) in enumerate([(linear, 2), (tree, 2), (tree, 4)]):
        torch.save(content, folder / f"zip-{number}", pickle_protocol=protocol)
        options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": False}
        torch.save(content, folder / f"legacy-{number}", **options)
    arrays = {"a": mx.arange(6.0).reshape(2, 3), "b": mx.ones((2,), mx.bfloat16), "c": mx.zeros((0, 3), mx.float16)}
    write_safetensors(folder / "safetensors-0", arrays, {"format": "pt"})
    write_safetensors(folder / "safetensors-1", {"weight": mx.arange(40.0)}, {})
    writer = package.GGUFWriter(folder / "gguf-0", "x")
    writer.add_array("list", [1, 2, 3])
    writer.add_array("words", ["a", "b"])
    writer.add_tensor("a", seeded("a", (2, 3)))
    q8_0 = package.GGMLQuantizationType.Q8_0
    writer.add_tensor("q", package.quants.quantize(seeded("q", (2, 32)), q8_0), raw_dtype=q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return folder


@pytest.mark.parametrize("name", list(READERS))
def test_damaged_files_only_raise_our_errors(name: str, seeds: Path) -> None:
    paths = [str(Path(__file__).parents[1]), *sys.path]
    code = f"import sys; sys.path[:] = {paths!r}; sys.argv = [{__file__!r}, {name!r}, {str(seeds)!r}]; "
    code += f"import runpy; runpy.run_path({__file__!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=seeds, timeout=SECONDS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (seeds / "canary").exists()


def test_the_audit_sees_code_that_runs(tmp_path: Path) -> None:
    """The guard is real: an ordinary unpickler on the first hostile snippet trips it."""
    code = f"import sys; sys.path[:] = {[str(Path(__file__).parents[1]), *sys.path]!r}; import runpy, pickle; "
    code += f"space = runpy.run_path({__file__!r}, run_name='guard'); sys.addaudithook(space['refuse_actions']); "
    code += "pickle.loads(bytes([128, 2]) + space['HOSTILE'][0] + b'.')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "pickle.find_class" in done.stderr) == (3, True)
    assert not (tmp_path / "canary").exists()


if __name__ == "__main__":
    start = time.monotonic()
    fuzz(sys.argv[1], Path(sys.argv[2]))
    sys.stdout.write(f"{time.monotonic() - start:.1f} s\n")
