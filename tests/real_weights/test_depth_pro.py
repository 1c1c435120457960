"""Depth Pro's published weights: the first values, and the field of view, that transformers' tests state.

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
import reference_depth_pro
from hub_server import FakeHub
from PIL import Image

CATS = (
    "https://raw.githubusercontent.com/huggingface/transformers/main/tests/fixtures/tests_samples/COCO/000000039769.png"
)
GATE = 1e-3  # of a value; the source states four digits
CORNER = [[1.0582, 1.1225, 1.1335], [1.1154, 1.1398, 1.1486], [1.1434, 1.1500, 1.1643]]
DEGREES = 47.2459

SCRIPT = """
import json, sys
import numpy as np
import mlx_depth
source, image = sys.argv[1:]
model = mlx_depth.load(source, dtype="float32")
outputs = model.infer(model.processor(mlx_depth.load_image(image).pixels))
print(json.dumps({"corner": np.array(outputs.depth)[0, :3, :3].tolist(), "degrees": outputs.field_of_view[0].item()}))
"""


def answer(source: str, image: object, **environment: str) -> dict[str, Any]:
    """What a fresh interpreter finds: huggingface_hub reads its settings when it is imported."""
    command = [sys.executable, "-c", SCRIPT, source, str(image)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_stated(found: dict[str, Any], corner: Any, degrees: float) -> None:
    np.testing.assert_allclose(found["corner"], corner, rtol=GATE)
    assert found["degrees"] == pytest.approx(degrees, rel=GATE)


@pytest.mark.skipif(not os.environ.get("MLX_DEPTH_REAL_WEIGHTS"), reason="MLX_DEPTH_REAL_WEIGHTS=1 downloads weights")
def test_the_stated_corner() -> None:
    assert_stated(answer("depth-pro", CATS), CORNER, DEGREES)


def test_the_way_there(tmp_path: Path) -> None:
    upstream = reference_depth_pro.model("tiny")
    reference_depth_pro.save(upstream, tmp_path / "hub" / "some-one" / "tiny-pro")
    photo = tmp_path / "photo.png"
    Image.effect_noise((60, 45), 80).convert("RGB").save(photo)
    with Image.open(photo) as image:
        depth, degrees = reference_depth_pro.run(upstream, reference_depth_pro.photo_pixels(upstream, np.array(image)))
    with FakeHub(tmp_path / "hub") as hub:
        found = answer("some-one/tiny-pro", photo, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"))
    assert_stated(found, depth[0, :3, :3], degrees[0])
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_stated(found, depth[0, :3, :3] * 1.002, degrees[0])
