"""OpenBLAS before MLX: each case in a fresh interpreter, as symbols are bound once a process."""

import ctypes
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from support import REQUIRED, require

from mlx_depth.errors import OptionError
from mlx_depth.linux_cpu import openblas

linux = pytest.mark.skipif(sys.platform != "linux", reason="OpenBLAS is loaded on Linux only")

# The package without its __init__, which would load OpenBLAS before the case sets its scene.
PRELUDE = """
import json, pathlib, sys, types
sys.modules["mlx_depth"] = types.ModuleType("mlx_depth")
sys.modules["mlx_depth"].__path__ = [str(pathlib.Path(sys.argv[1]).parents[1])]
from mlx_depth.linux_cpu import openblas
"""


def run(code: str, **environment: str) -> dict[str, object]:
    """Run ``code`` in a fresh interpreter; what it leaves in ``answer``."""
    inherited = {key: value for key, value in os.environ.items() if key != openblas.SWITCH}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code + "\nprint(json.dumps(answer))", openblas.__file__],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def installed() -> str:
    """A usable OpenBLAS of this machine; the OpenCV wheel of the reference extra bundles one."""
    found = next((name for name in openblas._candidates() if openblas._problem(name) is None), None)
    if found is None and "reference" in REQUIRED:
        pytest.fail("no OpenBLAS: pip install 'mlx-depth[reference]', or apt install libopenblas0")
    return found or pytest.skip("no OpenBLAS: apt install libopenblas0")


@pytest.fixture
def nothing_global(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had no OpenBLAS and no MLX yet."""
    monkeypatch.setattr(openblas, "_library_in_use", lambda: None)
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    monkeypatch.delenv(openblas.SWITCH, raising=False)


MULTIPLY = """
import os
loaded = openblas.load_openblas()
import mlx.core as mx
mx.eval(mx.ones((8, 8)) @ mx.ones((8, 8)))
answer = {"loaded": loaded, "hint": openblas.hint()}
"""


def sgemm_provider(tmp_path: Path, **environment: str) -> tuple[str, dict[str, object]]:
    """The file that libmlx's ``cblas_sgemm`` was bound to, as the dynamic linker itself logs it."""
    log = tmp_path / "bindings"
    answer = run(MULTIPLY, LD_DEBUG="bindings", LD_DEBUG_OUTPUT=str(log), **environment)
    lines = [line for path in tmp_path.glob("bindings.*") for line in path.open() if "`cblas_sgemm'" in line]
    bound = [line.split(" to ")[1].split(" [")[0] for line in lines if "libmlx" in line.split(" to ")[0]]
    assert len(bound) == 1, lines
    return Path(bound[0]).name, answer


@linux
def test_mlx_multiplies_with_openblas(tmp_path: Path) -> None:
    expected = installed()
    library, answer = sgemm_provider(tmp_path)
    assert "openblas" in library
    assert answer == {"loaded": expected, "hint": None}


@linux
@pytest.mark.parametrize("value", ["0", "off", "OFF"])
def test_switched_off(tmp_path: Path, value: str) -> None:
    library, answer = sgemm_provider(tmp_path, MLX_DEPTH_OPENBLAS=value)
    assert "openblas" not in library
    assert answer == {"loaded": None, "hint": None}


@linux
def test_a_path_is_loaded(tmp_path: Path) -> None:
    require("reference", "cv2")  # its wheel bundles an OpenBLAS
    bundled = next(name for name in openblas._candidates() if "opencv" in name)
    library, answer = sgemm_provider(tmp_path, MLX_DEPTH_OPENBLAS=bundled)
    assert library == Path(bundled).name
    assert answer["loaded"] == bundled


@linux
def test_too_late_loads_nothing_and_says_so() -> None:
    installed()
    answer = run(
        "import mlx.core\nanswer = {'loaded': openblas.load_openblas(), 'hint': openblas.hint()}",
    )
    assert answer["loaded"] is None
    assert "import mlx_depth before mlx" in str(answer["hint"])


@linux
@pytest.mark.usefixtures("nothing_global")
def test_nothing_found_is_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openblas, "_candidates", lambda: iter(["libopenblas-of-nowhere.so.0"]))
    assert openblas.load_openblas() is None
    text = openblas.hint()
    assert text is not None
    assert "apt install libopenblas0" in text
    assert f"{openblas.SWITCH}=off" in text


@linux
@pytest.mark.usefixtures("nothing_global")
def test_order_of_the_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "site-packages" / "opencv_python.libs" / "libopenblasp-r0.so"
    conda = tmp_path / "lib" / "libopenblas.so.0"
    elsewhere = tmp_path / "work" / "evil.libs" / "libopenblas.so"
    for path in (wheel, conda, elsewhere):
        path.parent.mkdir(parents=True)
        path.touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "path", ["", str(elsewhere.parents[1]), str(wheel.parents[1])])
    monkeypatch.chdir(elsewhere.parents[1])
    assert list(openblas._candidates()) == [*openblas._SYSTEM, str(conda), str(wheel)]


@linux
@pytest.mark.usefixtures("nothing_global")
@pytest.mark.parametrize(
    ("make", "reason"),
    [(lambda path: None, "cannot open"), (lambda path: path.write_text("no library"), "file too short")],
    ids=["missing", "not a library"],
)
def test_a_wrong_path_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    path = tmp_path / "libopenblas.so"
    make(path)
    monkeypatch.setenv(openblas.SWITCH, str(path))
    with pytest.raises(OptionError, match=reason) as caught:
        openblas.load_openblas()
    assert str(path) in str(caught.value)
    assert "or unset it" in str(caught.value)


@linux
def test_a_wrong_path_does_not_stop_the_import() -> None:
    environment = {**os.environ, openblas.SWITCH: "/no/such/file"}
    code = "import mlx_depth"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "MLX_DEPTH_OPENBLAS=/no/such/file" in done.stderr
    assert "Traceback" not in done.stderr


@linux
@pytest.mark.usefixtures("nothing_global")
def test_a_library_without_plain_symbols_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(openblas.SWITCH, "libc.so.6")
    with pytest.raises(OptionError, match="no function cblas_sgemm"):
        openblas.load_openblas()


@pytest.mark.usefixtures("nothing_global")
def test_64_bit_integers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: types.SimpleNamespace(cblas_sgemm=None))
    monkeypatch.setattr(openblas, "_config", lambda _: b"OpenBLAS 0.3.30 USE64BITINT DYNAMIC_ARCH")
    assert "64-bit integers" in str(openblas._problem("libopenblas64.so"))


@pytest.mark.usefixtures("nothing_global")
def test_a_mac_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv(openblas.SWITCH, "/no/such/file")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: pytest.fail("a library was opened"))
    assert openblas.load_openblas() is None
    assert openblas.hint() is None
