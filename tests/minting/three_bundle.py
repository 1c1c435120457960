"""Bundle three.js for the viewer's page: ``python tests/minting/three_bundle.py``. Needs node with npm, and a network.

Takes three and esbuild from npm at the versions below and writes ``mlx_depth/io/scene/viewer_page/three.min.js``: what
``viewer.js`` uses of three, with its OrbitControls, as one classic script that defines ``THREE``; and its license.
"""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import mlx_depth

THREE, ESBUILD = "0.170.0", "0.24.0"
# npm's own figure of the tarball, base64 of SHA-512; npm checks it as it installs.
THREE_INTEGRITY = "sha512-FQK+LEpYc0fBD+J8g6oSEyyNzjp+Q7Ks1C568WWaoMRLW+TkNNWmenWeGgJjV105Gd+p/2ql1ZcjYvNiPZBhuQ=="
PAGE = Path(mlx_depth.__file__).parent / "io" / "scene" / "viewer_page"
ENTRY = """\
export {
  BufferAttribute, BufferGeometry, ColorManagement, LineBasicMaterial, LineSegments, LinearSRGBColorSpace,
  PerspectiveCamera, Points, PointsMaterial, Scene, Vector3, WebGLRenderer,
} from "three";
export { OrbitControls } from "three/addons/controls/OrbitControls.js";
"""
BANNER = f"/* three.js {THREE} with OrbitControls. Copyright 2010-2024 three.js authors. MIT: LICENSE-three.txt */"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packages = {"dependencies": {"three": THREE, "esbuild": ESBUILD}}
        (folder / "package.json").write_text(json.dumps(packages))
        (folder / "entry.js").write_text(ENTRY)
        subprocess.run(["npm", "install", "--no-audit", "--no-fund"], cwd=folder, check=True)
        lock = json.loads((folder / "package-lock.json").read_text())
        assert lock["packages"]["node_modules/three"]["integrity"] == THREE_INTEGRITY
        options = ["--bundle", "--minify", "--format=iife", "--global-name=THREE", "--target=es2020"]
        bundle = ["npx", "esbuild", "entry.js", *options, f"--banner:js={BANNER}", "--outfile=three.min.js"]
        subprocess.run(bundle, cwd=folder, check=True)
        shutil.copy(folder / "three.min.js", PAGE)
        shutil.copy(folder / "node_modules" / "three" / "LICENSE", PAGE / "LICENSE-three.txt")


if __name__ == "__main__":
    main()
