"""Prompt Depth Anything's published weights give the published values: ``MLX_DEPTH_REAL_WEIGHTS=1``; needs the Hub.

The corners are those of transformers' tests and of its conversion script, on the authors' own photo and ARKit depth.
"""

import os
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest

import mlx_depth

pytestmark = pytest.mark.skipif(
    os.environ.get("MLX_DEPTH_REAL_WEIGHTS") != "1", reason="downloads weights: MLX_DEPTH_REAL_WEIGHTS=1 runs it"
)

EXAMPLES = "https://raw.githubusercontent.com/DepthAnything/PromptDA/main/assets/example_images"
# Model → the first 3 × 3 values with the prompt, in metres, and how far they may be off.
CORNERS = {
    "prompt-depth-anything-small": (
        [[3.0100, 3.0016, 3.0219], [3.0046, 3.0137, 3.0275], [3.0083, 3.0191, 3.0292]],
        1e-3,
    ),
    "prompt-depth-anything-small-transparent": (
        [[3.0058, 3.0397, 3.0460], [3.0314, 3.0393, 3.0504], [3.0326, 3.0465, 3.0545]],
        5e-3,
    ),
    "prompt-depth-anything-large": (
        [[3.1336, 3.1358, 3.1363], [3.1368, 3.1267, 3.1414], [3.1397, 3.1385, 3.1448]],
        5e-3,
    ),
}
WITHOUT_PROMPT = [[0.5029, 0.5120, 0.5176], [0.4998, 0.5147, 0.5197], [0.4973, 0.5201, 0.5241]]


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' photo, 1440×1920, and its LiDAR, 192×256."""
    folder = tmp_path_factory.mktemp("capture")
    for name in ("image.jpg", "arkit_depth.png"):
        with urlopen(f"{EXAMPLES}/{name}") as answer:
            (folder / name).write_bytes(answer.read())
    return folder


def corner(model: mlx_depth.DepthModel, capture: Path, prompt: Path | None) -> np.ndarray:
    """Of the map that the network makes, 756×1008: at that size it is not resized."""
    import mlx.core as mx

    from mlx_depth.io.prompt import load_prompt

    pixel_values = model.processor(mlx_depth.load_image(capture / "image.jpg").pixels)
    assert pixel_values.shape == (1, 756, 1008, 3)
    conditions = {} if prompt is None else {"prompt_depth": mx.array(load_prompt(prompt))[None]}
    return np.array(model.infer(pixel_values, conditions).depth)[0, :3, :3]


@pytest.mark.parametrize("name", CORNERS)
def test_the_published_corner(name: str, capture: Path) -> None:
    model = mlx_depth.load(name, dtype="float32", reference="transformers")
    expected, tolerance = CORNERS[name]
    np.testing.assert_allclose(corner(model, capture, capture / "arkit_depth.png"), expected, rtol=0, atol=tolerance)


def test_the_published_corner_without_a_prompt(capture: Path) -> None:
    model = mlx_depth.load("prompt-depth-anything-small", dtype="float32", reference="transformers")
    np.testing.assert_allclose(corner(model, capture, None), WITHOUT_PROMPT, rtol=0, atol=1e-3)
