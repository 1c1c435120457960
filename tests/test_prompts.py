"""Depth prompts from the door to the network, on a family that only these tests know."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import toy
from PIL import Image
from safetensors.numpy import save_file
from support import seeded

import mlx_depth
from mlx_depth import DepthKind, DepthModel, ImageError, OptionError, cli
from mlx_depth.models.base import DepthOutputs, Meaning
from mlx_depth.models.families import FAMILIES


@dataclasses.dataclass(frozen=True)
class PromptedConfig(toy.ToyConfig):
    def meaning(self, conditions: dict) -> Meaning:
        return Meaning(DepthKind.METRIC, 10.0) if conditions else Meaning(DepthKind.RELATIVE, None)


class Prompted(toy.Toy):
    """Its depth is that of the toy, plus the first value of the prompt."""

    conditions = ("prompt_depth",)

    def __call__(self, pixel_values: mx.array, prompt_depth: mx.array | None = None) -> DepthOutputs:
        outputs = super().__call__(pixel_values)
        if prompt_depth is None:
            return outputs
        return outputs._replace(depth=outputs.depth + prompt_depth[:, :1, :1])


PROMPTED = dataclasses.replace(
    toy.TOY,
    config_type=PromptedConfig,
    network=Prompted,
    dialects={
        "original": dataclasses.replace(
            toy.TOY.dialects["original"],
            read=lambda evidence: toy.TOY.dialects["original"].read(evidence)._replace(config=PromptedConfig(16)),
        )
    },
)


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "toy", PROMPTED)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "toy-model"
    folder.mkdir()
    shapes = {"stem.weight": (16, 3, 8, 8), "stem.bias": (16,), "out.weight": (2, 16), "out.bias": (2,)}
    save_file({name: seeded(name, shape, 0.2) for name, shape in shapes.items()}, folder / "weights.safetensors")
    return folder


@pytest.fixture
def model(source: Path) -> DepthModel:
    return mlx_depth.load(source, dtype="float32")


def photo(height: int, width: int) -> np.ndarray:
    return np.clip(seeded(f"{height}x{width}", (height, width, 3), 60) + 128, 0, 255).astype(np.uint8)


def prompt(first: float, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    values = np.full(size, 100, np.float32)
    values[0, 0] = first
    return values


def test_the_network_gets_it_in_metres(model: DepthModel) -> None:
    plain = model.predict(photo(48, 64))
    for given, options in (
        (prompt(2), {}),
        (prompt(2000), {"prompt_unit": "mm"}),
        (prompt(2000).astype(np.uint16), {}),
        (Image.fromarray(prompt(2000).astype(np.uint16)), {}),
    ):
        result = model.predict(photo(48, 64), prompt=given, **options)
        np.testing.assert_allclose(result.depth - plain.depth, 2, rtol=1e-4)
        assert (result.kind, result.unit, result.max_depth) == (DepthKind.METRIC, "m", 10.0)
    assert (plain.kind, plain.unit, plain.max_depth) == (DepthKind.RELATIVE, "", None)


def test_the_front_door_takes_it(source: Path) -> None:
    plain, found = (mlx_depth.predict(photo(48, 64), model=source, prompt=given) for given in (None, prompt(2)))
    np.testing.assert_allclose(found.depth - plain.depth, 2, rtol=1e-4)
    many = mlx_depth.predict([photo(48, 64)] * 2, model=source, prompt=[prompt(2), prompt(3)])
    for result, first in zip(many, (2, 3), strict=True):
        np.testing.assert_allclose(result.depth - plain.depth, first, rtol=1e-4)


def test_batches_of_prompts_of_many_sizes(model: DepthModel) -> None:
    images = [photo(48, 64) // divisor for divisor in (1, 2, 3, 4, 5)]
    sizes = [(6, 8), (12, 16), (6, 8), (12, 16), (3, 4)]
    prompts = [prompt(1 + number, size) for number, size in enumerate(sizes)]
    for given in (prompts, iter(prompts)):
        results = list(model.predict_batch(images, prompts=given, batch_size=2))
        for number, (image, result) in enumerate(zip(images, results, strict=True)):
            np.testing.assert_array_equal(result.image, image)
            np.testing.assert_allclose(result.depth - model.predict(image).depth, 1 + number, rtol=1e-4)


def test_a_buffer_that_is_reused_for_prompts(model: DepthModel) -> None:
    def sensor() -> Iterator[np.ndarray]:
        buffer = prompt(0)
        for number in range(9):
            buffer[0, 0] = 1 + number
            yield buffer

    plain = model.predict(photo(48, 64)).depth
    for number, result in enumerate(model.predict_batch([photo(48, 64)] * 9, prompts=sensor(), batch_size=2)):
        np.testing.assert_allclose(result.depth - plain, 1 + number, rtol=1e-4)


def test_one_prompt_for_each_image(model: DepthModel) -> None:
    images = [photo(48, 64)] * 2
    with pytest.raises(OptionError, match="there are 1 prompts for 2 images: give one for each"):
        model.predict_batch(images, prompts=[prompt(1)])
    with pytest.raises(OptionError, match="prompts takes one for each image, in a list, not int"):
        model.predict_batch(images, prompts=3)  # type: ignore[arg-type]
    for prompts, short in ((iter([prompt(1)]), "prompts end after 1"), (iter([prompt(1)] * 3), "images end after 2")):
        results = model.predict_batch(images, prompts=prompts)
        with pytest.raises(OptionError, match=f"the {short}: give one for each"):
            list(results)


def test_a_bad_prompt_fails_its_photo_alone(model: DepthModel) -> None:
    failed = []
    prompts = [prompt(1), np.ones((6, 8)), prompt(1)[:, :3]]
    results = model.predict_batch(
        [photo(48, 64)] * 3, prompts=prompts, on_error=lambda image, error: failed.append(str(error))
    )
    assert len(list(results)) == 1
    assert [text.split(":")[0] for text in failed] == [
        "<array> is 1 m everywhere",
        "<array> has 48×64 pixels and its depth prompt 6×3 (height × width)",
    ]
    with pytest.raises(ImageError, match="is 1 m everywhere"):
        model.predict(photo(48, 64), prompt=prompts[1])


def test_a_model_that_takes_none() -> None:
    demo = mlx_depth.load("mlx-depth-demo")
    message = "mlx-depth-demo takes no depth prompt: leave it out, or take a model that does, such as prompt-depth-any"
    with pytest.raises(OptionError, match=message):
        demo.predict(photo(28, 28), prompt=prompt(1))
    with pytest.raises(OptionError, match=message):
        demo.predict_batch([photo(28, 28)], prompts=[prompt(1)])
    with pytest.raises(OptionError, match="takes no prompt_depth beside the pixels: it takes nothing"):
        demo.infer(mx.zeros((1, 28, 28, 3)), {"prompt_depth": mx.ones((1, 4, 4))})


def test_infer_takes_conditions(model: DepthModel) -> None:
    pixel_values = mx.zeros((2, 32, 40, 3))
    given = model.infer(pixel_values, {"prompt_depth": mx.array(np.stack([prompt(1), prompt(2)]))})
    gain = np.array(given.depth - model.infer(pixel_values).depth)
    np.testing.assert_allclose(gain.mean(axis=(1, 2)), [1, 2], rtol=1e-4)
    with pytest.raises(OptionError, match="takes no extrinsics beside the pixels: it takes prompt_depth"):
        model.infer(pixel_values, {"extrinsics": mx.zeros((2, 3, 4))})


# Folders and the command.


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """Photos, and in a folder beside them their LiDAR."""
    (tmp_path / "rgb").mkdir()
    (tmp_path / "lidar").mkdir()
    for number, name in enumerate("ab"):
        Image.fromarray(photo(48, 64) // (1 + number)).save(tmp_path / "rgb" / f"{name}.png")
        Image.fromarray(prompt(1000 * (1 + number)).astype(np.uint16)).save(tmp_path / "lidar" / f"{name}.png")
    return tmp_path


def predict(capture: Path, *options: object) -> int:
    command = ["predict", capture / "rgb", "-o", capture / "out", "--model", capture / "toy-model", *options]
    return cli.main([*map(str, command), "--dtype", "float32"])


def test_a_folder_of_prompts(source: Path, capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(capture, "--prompt", capture / "lidar", "--json") == 0
    facts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [fact["kind"] for fact in facts] == ["metric", "metric"]
    assert [fact["prompt"]["file"] for fact in facts] == ["../lidar/a.png", "../lidar/b.png"]
    loaded = mlx_depth.load(source, dtype="float32")
    expected = list(loaded.predict_batch(capture / "rgb", prompts=capture / "lidar"))
    for name, result in zip("ab", expected, strict=True):
        np.testing.assert_allclose(np.load(capture / "out" / f"{name}.npy"), result.depth, rtol=1e-5)
    assert abs(expected[1].depth - loaded.predict(capture / "rgb" / "b.png").depth - 2).max() < 1e-3


def test_resume_sees_another_prompt(source: Path, capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lidar = ("--prompt", capture / "lidar")
    assert predict(capture, *lidar) == 0
    assert predict(capture, *lidar, "--resume") == 0
    assert "0 done, 2 complete before" in capsys.readouterr().err
    Image.fromarray(prompt(5000).astype(np.uint16)).save(capture / "lidar" / "b.png")
    assert predict(capture, *lidar, "--resume") == 0
    assert "1 done, 1 complete before" in capsys.readouterr().err
    assert predict(capture, *lidar, "--prompt-unit", "mm", "--resume") == 0
    assert "2 done, 0 complete before" in capsys.readouterr().err
    assert predict(capture, "--resume") == 0
    assert "2 done, 0 complete before" in capsys.readouterr().err


def test_prompts_that_do_not_fit_are_refused_before_any_work(
    source: Path, capture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(capture, "--prompt", capture / "lidar" / "a.png") == 2
    assert "is no folder, and there are 2 images: give a folder of prompts" in capsys.readouterr().err
    (capture / "lidar" / "b.png").unlink()
    assert predict(capture, "--prompt", capture / "lidar") == 2
    assert "b.png needs one prompt in" in capsys.readouterr().err
    assert not (capture / "out").exists()
    (capture / "rgb" / "b.png").unlink()
    assert predict(capture, "--prompt", capture / "lidar" / "a.png") == 0
    assert json.loads((capture / "out" / "a.json").read_text())["kind"] == "metric"


def test_the_command_with_a_model_that_takes_none(
    source: Path, capture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(capture, "--prompt", capture / "lidar", "--model", "mlx-depth-demo") == 2
    assert "mlx-depth-demo takes no depth prompt" in capsys.readouterr().err
