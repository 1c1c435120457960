"""MLX's compiled loops come from a folder of the user's own, survive damage, and their absence costs time alone.

Each case is a process of its own, as MLX keeps what it has loaded.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_depth.linux_cpu import fused, kernel_cache

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or mx.default_device() != mx.Device(mx.cpu), reason="only a Linux CPU uses it"
)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="MLX builds nothing without g++")

COMPUTE = """
import json, sys, warnings
import mlx_depth, mlx.core as mx, mlx.nn as nn
from mlx_depth.linux_cpu import fused, kernels
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    x = mx.random.normal((1, 1, 50, 8))
    ours = kernels.gelu(x)
    strided = kernels.gelu(x[..., ::2])
    attention = kernels.attention(x, x, x, scale=1.0)
    usable = fused.usable()
    mx.eval(ours, strided, attention)
exact = x * (1 + mx.erf(x / 2**0.5)) / 2
plain = mx.fast.scaled_dot_product_attention(x, x, x, scale=1.0)
errors = [mx.abs(ours - exact), mx.abs(strided - exact[..., ::2]), mx.abs(attention - plain)]
print(json.dumps([usable, max(error.max().item() for error in errors), [str(one.message) for one in caught]]))
"""
PREDICT = """
import sys, mlx_depth, numpy as np
model = mlx_depth.load("mlx-depth-demo", dtype=sys.argv[1])
print(model.predict(np.zeros((40, 50, 3), np.uint8), input_size=28).depth.shape)
"""
REMEMBER = """#!/bin/sh
[ "$1" = --version ] && exec {compiler} --version
for argument; do case "$argument" in *.cpp) source="$argument" ;; esac; library="$argument"; done
kept="{folder}/$(sha256sum < "$source" | cut -c 1-64).so"
if [ -f "$kept" ]; then cp "$kept" "$library"; else {compiler} "$@" && cp "$library" "$kept"; fi
"""


@pytest.fixture(scope="module", autouse=True)
def remembering_compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A g++ that compiles a source once, as most cases build the same three libraries again."""
    compiler, folder = shutil.which("g++"), tmp_path_factory.mktemp("compiler")
    with pytest.MonkeyPatch.context() as patch:
        if compiler is not None:
            (folder / "g++").write_text(REMEMBER.format(compiler=compiler, folder=folder))
            (folder / "g++").chmod(0o755)
            patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        yield


def start(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def compute(cache: Path, **environment: str) -> tuple[bool, list[str]]:
    """Whether compiled loops were used, and the warnings; the numbers are right in any case."""
    usable, error, warned = json.loads(start(COMPUTE, XDG_CACHE_HOME=str(cache), **environment))
    assert error < 3e-6
    return usable, warned


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that a process has filled."""
    cache = tmp_path_factory.mktemp("cache")
    assert compute(cache) == (True, [])
    return cache


@pytest.fixture
def cache(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "cache"))


def ready(cache: Path) -> Path:
    (folder,) = (cache / "mlx-depth/kernels").iterdir()
    return folder


def libraries(cache: Path) -> list[Path]:
    return sorted(ready(cache).rglob("*.so"))


@needs_compiler
def test_the_folder_is_private_and_holds_whole_builds_alone(built: Path) -> None:
    folder = built / "mlx-depth/kernels"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [entry.name.split("-")[0] for entry in folder.iterdir()] == [mx.__version__]
    assert len(libraries(built)) == len(fused._pairs) == 3


@needs_compiler
def test_the_next_process_builds_nothing(cache: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in libraries(cache)}
    assert compute(cache) == (True, [])
    assert {file: file.stat().st_mtime_ns for file in libraries(cache)} == before


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_prediction_takes_nothing_from_the_shared_folder(dtype: str, cache: Path, tmp_path: Path) -> None:
    """Nor does it look there: with a planted library for each of ours, none is loaded, and no folder is made."""
    shared = tmp_path / "shared"
    planted = shared / "mlx" / mx.__version__ / "cpu"
    planted.mkdir(parents=True)
    for library in libraries(cache):
        (planted / library.name).write_bytes(b"planted")
    before = sorted(file.name for file in planted.iterdir())
    assert start(PREDICT, dtype, TMPDIR=str(shared), XDG_CACHE_HOME=str(cache)) == "(40, 50)\n"
    assert sorted(file.name for file in planted.iterdir()) == before
    empty = tmp_path / "empty"
    empty.mkdir()
    start(PREDICT, dtype, TMPDIR=str(empty), XDG_CACHE_HOME=str(cache))
    assert list(empty.iterdir()) == []


@needs_compiler
def test_a_library_planted_for_the_first_run_is_not_loaded(cache: Path, tmp_path: Path) -> None:
    """Loading one that is no library would fail, so only a fresh build passes."""
    planted = tmp_path / "shared/mlx" / mx.__version__ / "cpu"
    planted.mkdir(parents=True)
    for library in libraries(cache):
        (planted / library.name).write_bytes(b"planted")
    assert compute(tmp_path / "fresh", TMPDIR=str(tmp_path / "shared")) == (True, [])


@needs_compiler
@pytest.mark.parametrize("place", ["missing", "file", "read-only"])
def test_temporary_folder_that_cannot_serve(place: str, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "read-only").mkdir(mode=0o500)
    assert compute(cache, TMPDIR=str(tmp_path / place)) == (True, [])


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:3000])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def zeroed(file: Path) -> None:
    """As large as before: what a crash of the machine leaves."""
    file.write_bytes(bytes(file.stat().st_size))


@needs_compiler
@pytest.mark.parametrize("damage", [cut, emptied, zeroed, Path.unlink])
def test_damaged_library_is_built_again(damage, cache: Path) -> None:
    whole = {file.name for file in libraries(cache)}
    damage(libraries(cache)[1])
    assert compute(cache) == (True, [])
    assert {file.name for file in libraries(cache)} == whole
    assert kernel_cache._is_intact(ready(cache))


@needs_compiler
def test_library_of_another_machine_is_built_again(cache: Path) -> None:
    """Intact, and yet it cannot be loaded."""
    libraries(cache)[0].write_bytes(b"of a machine with another processor")
    (ready(cache) / "manifest.json").write_text(json.dumps(kernel_cache._digests(ready(cache))))
    assert compute(cache) == (True, [])


@needs_compiler
@pytest.mark.parametrize("text", ["{", "{}"])
def test_broken_manifest_is_built_again(text: str, cache: Path) -> None:
    (ready(cache) / "manifest.json").write_text(text)
    assert compute(cache) == (True, [])


@needs_compiler
def test_folder_that_others_may_write_into_is_not_used(cache: Path) -> None:
    (cache / "mlx-depth/kernels").chmod(0o777)
    usable, (warning,) = compute(cache)
    assert not usable
    assert "open to others" in warning
    assert warning.endswith("set XDG_CACHE_HOME to a folder of yours.")


@needs_compiler
def test_parent_that_others_may_write_into_is_not_used(cache: Path) -> None:
    (cache / "mlx-depth").chmod(0o777)
    usable, (warning,) = compute(cache)
    assert not usable
    assert "writable for all" in warning


@needs_compiler
def test_link_in_the_place_of_the_folder_is_not_used(cache: Path, tmp_path: Path) -> None:
    (cache / "mlx-depth/kernels").rename(tmp_path / "elsewhere")
    (cache / "mlx-depth/kernels").symlink_to(tmp_path / "elsewhere")
    assert compute(cache)[0] is False


@needs_compiler
def test_file_in_the_place_of_the_folder_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "mlx-depth").write_bytes(b"")
    usable, (warning,) = compute(tmp_path)
    assert not usable
    assert "set XDG_CACHE_HOME" in warning


def fake_compiler(folder: Path, text: str) -> str:
    """A PATH whose g++ says that it works, and does not."""
    folder.mkdir()
    (folder / "g++").write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{text}\n')
    (folder / "g++").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(
    "text",
    [
        "echo 'ld: final link failed: No space left on device'; exit 1",
        'for last; do :; done; while [ "$1" != -o ]; do shift; done; echo cut short > "$2"',
    ],
    ids=["full disk", "half a library"],
)
def test_compiler_that_fails_costs_time_alone(text: str, tmp_path: Path) -> None:
    """The second is how a folder mounted noexec looks to MLX, too: the library is there and cannot be loaded."""
    usable, (warning,) = compute(tmp_path / "cache", PATH=fake_compiler(tmp_path / "bin", text))
    assert not usable
    assert "g++ builds nothing that runs" in warning
    assert warning.endswith("check the free space, and that programs may run there.")
    assert list((tmp_path / "cache/mlx-depth/kernels").iterdir()) == []


def test_no_compiler_is_one_warning(tmp_path: Path) -> None:
    usable, (warning,) = compute(tmp_path, PATH="/nonexistent")
    assert not usable
    assert "install it (apt install g++)" in warning


def test_importing_touches_nothing(tmp_path: Path) -> None:
    start("import mlx_depth", XDG_CACHE_HOME=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@needs_compiler
def test_a_killed_build_leaves_nothing_that_is_loaded(cache: Path) -> None:
    left = cache / "mlx-depth/kernels/building-killed"
    shutil.copytree(ready(cache), left)
    shutil.rmtree(cache / "mlx-depth/kernels" / f"{mx.__version__}-{os.uname().machine}")
    for library in left.rglob("*.so"):
        cut(library)
    os.utime(left, (0, 0))
    assert compute(cache) == (True, [])
    assert not left.exists()
