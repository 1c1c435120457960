"""DPT's published weights: the first values that transformers' tests and its conversion script state.

``MLX_DEPTH_REAL_WEIGHTS=1`` downloads them; without it, the way there is tried on a tiny model of a Hub on loopback.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_dpt as reference
from hub_server import FakeHub
from PIL import Image

CATS = (
    "https://raw.githubusercontent.com/huggingface/transformers/main/tests/fixtures/tests_samples/COCO/000000039769.png"
)
GATE = 1e-3  # of a value; the sources state four digits
SHAPE = (576, 736)
CORNERS = {
    "dpt-dinov2-small-kitti": [[6.0336, 7.1502, 7.4130], [6.8977, 7.2383, 7.2268], [7.9180, 8.0525, 8.0134]],
    "dpt-dinov2-small-nyu": [[3.3576, 3.4741, 3.4345], [3.4324, 3.5012, 3.2775], [3.2560, 3.3563, 3.2354]],
}

SCRIPT = """
import json, sys
import numpy as np
import mlx_depth
from mlx_depth_convert import convert
source, out, image = sys.argv[1:]
try:
    mlx_depth.load(source)
    said = ""
except mlx_depth.ModelNotFoundError as error:
    said = str(error)
model = mlx_depth.load(convert(source, out), dtype="float32", reference="transformers")
depth = np.array(model.infer(model.processor(mlx_depth.load_image(image).pixels)).depth)[0]
print(json.dumps({"said": said, "shape": depth.shape, "corner": depth[:3, :3].tolist(), "kind": model.spec.depth_kind}))
"""


def answer(source: str, image: object, tmp_path: Path, **environment: str) -> dict[str, Any]:
    """What a fresh interpreter finds: huggingface_hub reads its settings when it is imported."""
    command = [sys.executable, "-c", SCRIPT, source, str(tmp_path / "converted"), str(image)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_corner(found: dict[str, Any], corner: Any) -> None:
    np.testing.assert_allclose(found["corner"], corner, rtol=GATE)


@pytest.mark.skipif(not os.environ.get("MLX_DEPTH_REAL_WEIGHTS"), reason="MLX_DEPTH_REAL_WEIGHTS=1 downloads weights")
@pytest.mark.parametrize("name", CORNERS)
def test_the_stated_corner(name: str, tmp_path: Path) -> None:
    found = answer(name, CATS, tmp_path)
    assert tuple(found["shape"]) == SHAPE
    assert_corner(found, CORNERS[name])


def test_the_way_there(tmp_path: Path) -> None:
    """A repository as Meta's are, its weights in ``pytorch_model.bin`` alone."""
    upstream, process = reference.model("dinov2"), reference.processor("dinov2")
    folder = tmp_path / "hub" / "some-one" / "tiny-dpt"
    folder.mkdir(parents=True)
    upstream.config.save_pretrained(folder)
    process.save_pretrained(folder)
    reference.torch.save(upstream.state_dict(), folder / "pytorch_model.bin")
    photo = tmp_path / "photo.png"
    Image.effect_noise((60, 45), 80).convert("RGB").save(photo)
    with Image.open(photo) as image:
        pixel_values = process(image, return_tensors="np")["pixel_values"]
    expected = reference.run(upstream, pixel_values.transpose(0, 2, 3, 1))[0]
    with FakeHub(tmp_path / "hub") as hub:
        found = answer("some-one/tiny-dpt", photo, tmp_path, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"))
    assert "mlx-depth convert some-one/tiny-dpt" in found["said"]
    assert (tuple(found["shape"]), found["kind"]) == (expected.shape, "metric")
    assert_corner(found, expected[:3, :3])
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_corner(found, expected[:3, :3] * 1.002)
