"""With the folder ``linux_cpu`` deleted the library works, and computes the same depth."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from support import relative_error, seeded

import mlx_depth

PACKAGE = Path(mlx_depth.__file__).parent
CODE = """
import sys
import numpy as np
import mlx_depth
from mlx_depth.runtime.cpu import environment_without_openblas

assert not [name for name in sys.modules if name.startswith("mlx_depth.linux_cpu")]
assert environment_without_openblas()
model = mlx_depth.load("mlx-depth-demo", dtype="float32")
np.save(sys.argv[2], model.predict(np.load(sys.argv[1]), input_size=98).depth)
print(mlx_depth.__file__)
"""


def test_predict_without_the_folder(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "mlx_depth", ignore=shutil.ignore_patterns("linux_cpu", "__pycache__"))
    photo = np.clip(seeded("photo", (90, 120, 3), 40) + 120, 0, 255).astype(np.uint8)
    np.save(tmp_path / "photo.npy", photo)
    done = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path / "photo.npy", tmp_path / "depth.npy"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == tmp_path / "mlx_depth"
    expected = mlx_depth.load("mlx-depth-demo", dtype="float32").predict(photo, input_size=98).depth
    assert expected.std() > 0
    assert relative_error(np.load(tmp_path / "depth.npy"), expected) <= 1e-5
