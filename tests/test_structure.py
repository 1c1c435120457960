"""The shape of the code itself: layers, the public names, and a light import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mlx_depth

PACKAGE = Path(mlx_depth.__file__).parent
# Lowest first; a module imports from its own line or from lines above it.
LAYERS = [
    {"errors", "version"},
    {"kinds", "camera", "fit", "geometry", "gaussians"},
    {"linux_cpu", "weights"},
    {"io"},
    {"result"},
    {"scene"},
    {"single_view"},
    {"nn"},
    {"processor", "views", "backbones", "heads"},
    {"models"},
    {"registry"},
    {"checkpoints", "runtime"},
    {"multiview", "sequence", "features"},
    {"model"},
    {"predictor"},
    {"jobs"},
    {"cli"},
    {"__init__", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
HEAVY = ["torch", "transformers", "coremltools", "huggingface_hub", "matplotlib", "tqdm", "cv2", "gguf"]
HEAVY += ["trimesh", "pycolmap", "mlx_depth.linux_cpu.kernel_cache"]  # the last builds libraries, for Linux CPUs alone


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """First-level parts of mlx_depth that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "mlx_depth":
            found |= {alias.name if alias.name in RANK else "__init__" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlx_depth."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mlx_depth.")}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_never_point_upward(path):
    here = part(path)
    assert not {name for name in imports(path) if RANK[name] > RANK[here]}


def test_the_tool_is_imported_by_the_command_line_alone():
    users = {part(path) for path in PACKAGE.rglob("*.py") if "mlx_depth_convert" in path.read_text()}
    assert users <= {"cli"}


def test_linux_cpu_has_one_seam():
    tool = PACKAGE.parent / "convert"
    files = [*PACKAGE.rglob("*.py"), *tool.rglob("*.py")]
    namers = {path.relative_to(PACKAGE.parent).as_posix() for path in files if "linux_cpu" in path.read_text()}
    seams = {"mlx_depth/__init__.py", "mlx_depth/nn/ops.py"}
    own = ("mlx_depth/linux_cpu/", "mlx_depth/runtime/")
    assert {name for name in namers if not name.startswith(own)} == seams


def test_only_hub_imports_huggingface_hub():
    users = {
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("huggingface_hub"))
        or (isinstance(node, ast.Import) and any(a.name.startswith("huggingface_hub") for a in node.names))
    }
    assert users == {"hub.py"}


def test_import_is_light():
    code = f"import sys, mlx_depth; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_installed_metadata_is_needed(tmp_path):
    """As in a vendored copy, a zipapp, or a clone on PYTHONPATH."""
    code = f"""
import importlib.metadata as metadata
found = metadata.distribution
def distribution(name):
    if name.startswith("mlx") and "depth" in name:
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.distribution = distribution
import mlx_depth, numpy
photo = numpy.zeros((30, 40, 3), numpy.uint8)
mlx_depth.predict(photo, model="mlx-depth-demo", input_size=14).save({str(tmp_path / "a.png")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert mlx_depth.__version__.encode() in (tmp_path / "a.png").read_bytes()


def test_public_names_are_sorted_and_documented():
    assert mlx_depth.__all__ == sorted(mlx_depth.__all__)
    undocumented = [name for name in mlx_depth.__all__ if not (getattr(mlx_depth, name).__doc__ or "").strip()]
    assert not undocumented
