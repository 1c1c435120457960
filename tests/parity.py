"""Print the table of tests/README.md: ``python tests/parity.py`` (needs the extra ``reference``; three minutes).

Full-size networks (narrow ones of Depth Pro) with name-seeded weights, ours and the upstream ones from the same pixels,
float32: transformers' for V1, V2, Prompt Depth Anything, Depth Pro and DPT, the authors' packages for Depth Anything 3
and MoGe-2, what AnyDepth's own decoder gave on transformers' DINOv3, and what MiDaS's code gave. The demo has its
real weights, on the photos of examples/.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import mlx_depth  # first, so that an installed OpenBLAS is used

# isort: split
import anydepth
import midas_weights
import mlx.core as mx
import numpy as np
import reference
import reference_da3
import reference_depth_pro
import reference_dpt
import reference_moge
import reference_prompt
from mlx_depth_convert import convert
from mlx_depth_convert.references.moge import exact_resizes
from safetensors.numpy import save_file
from support import correlation, relative_error

from mlx_depth.registry import find_model

SEEDED = [
    ("V2 small", {}, (1, 518, 518)),
    ("V2 small", {}, (1, 392, 518)),
    ("V2 small, batch of 3", {}, (3, 70, 98)),
    ("V1 small", {"version": 1}, (1, 392, 518)),
    ("V2 metric small, indoor", {"max_depth": 20}, (1, 392, 518)),
    ("V2 metric small, outdoor", {"max_depth": 80}, (1, 392, 518)),
]


MOGE_SIZE = (224, 308)
SCENES = [(1, 336, 504), (2, 336, 504), (5, 196, 252)]
OUTPUTS = {"depth": "depth", "confidence": "depth_conf", "extrinsics": "extrinsics", "intrinsics": "intrinsics"}


def main() -> None:
    print("| model | input | relative error | 1 − correlation |")
    print("|---|---|---|---|")
    for name, options, shape in SEEDED:
        upstream = reference.model("small", **options)
        with tempfile.TemporaryDirectory() as folder:
            reference.save(upstream, Path(folder))
            model = mlx_depth.load(folder, dtype="float32", reference="transformers")
        print_row(name, upstream, model, reference.pixels(*shape), zeros=0.1)
    demo = mlx_depth.load("mlx-depth-demo", dtype="float32", reference="transformers")
    upstream = reference.transformers.DepthAnythingForDepthEstimation(reference.config("small")).eval()
    reference.fill_from_ours(upstream, demo.network)
    for photo in sorted((Path(__file__).parents[1] / "examples").glob("*.jpg")):
        pixel_values = np.array(demo.processor(mlx_depth.load_image(photo).pixels))
        print_row(f"demo, {photo.name}", upstream, demo, pixel_values, zeros=0.6)
    print_prompts()
    print_scenes()
    print_anydepth()
    print_moge()
    print_depth_pro()
    print_dpt()
    print_midas_small()


def print_prompts() -> None:
    upstream = reference_prompt.model("small")
    with tempfile.TemporaryDirectory() as folder:
        reference_prompt.save(upstream, Path(folder))
        model = mlx_depth.load(folder, dtype="float32", reference="transformers")
    pixel_values, prompt = reference.pixels(1, 392, 518), reference_prompt.prompt(1, (192, 256))
    for name, given in (("a prompt of 192×256", prompt), ("no prompt", None)):
        conditions = {} if given is None else {"prompt_depth": mx.array(given)}
        found = np.array(model.infer(mx.array(pixel_values), conditions).depth)
        expected = reference_prompt.run(upstream, pixel_values, given)
        print_errors(f"Prompt small, {name}", pixel_values.shape[1:3], found, expected)


def print_scenes() -> None:
    upstream = reference_da3.model(reference_da3.ANY_VIEW)
    with tempfile.TemporaryDirectory() as folder:
        path = reference_da3.save(reference_da3.ANY_VIEW, Path(folder) / "small", tiny=False)
        model = mlx_depth.load(path, dtype="float32")
    for V, H, W in SCENES:
        pixel_values = reference_da3.pixels(1, V, H, W)
        expected, found = reference_da3.run(upstream, pixel_values), model.infer(mx.array(pixel_values))
        pairs = {name: (getattr(found, name), expected[theirs].numpy()) for name, theirs in OUTPUTS.items()}
        pairs |= {
            name: (getattr(found, name), rays) for name, rays in reference_da3.rays(upstream, pixel_values).items()
        }
        for name, (ours, theirs) in pairs.items():
            print_errors(f"DA3 small, {V} view{'s' * (V > 1)}: {name}", (H, W), np.array(ours), theirs)


def print_depth_pro() -> None:
    """Narrow layers behind the published windows: the whole network is a test of ``pytest -m nightly``."""
    upstream = reference_depth_pro.model("narrow")
    with tempfile.TemporaryDirectory() as folder:
        model = mlx_depth.load(reference_depth_pro.save(upstream, Path(folder)), dtype="float32")
    pixel_values = reference_depth_pro.pixels(1, 1536)
    depth, angle = reference_depth_pro.run(upstream, pixel_values)
    found = model.infer(mx.array(pixel_values))
    print_errors("Depth Pro, narrow: inverse depth", (1536, 1536), np.array(found.depth), depth)
    error = relative_error(np.array(found.field_of_view), angle)
    print(f"| Depth Pro, narrow: field of view | 1536×1536 | {error:.0e} | one number |", flush=True)


def print_anydepth() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = anydepth.save(anydepth.authors_state("small"), Path(folder) / "small")
        model = mlx_depth.load(path, dtype="float32")
    pixel_values = anydepth.pixels("small")
    found = np.array(model.infer(mx.array(pixel_values)).depth)[:, ::4, ::4]
    print_errors("AnyDepth small", pixel_values.shape[1:3], found, np.load(anydepth.GOLDEN)["small"])


def print_moge() -> None:
    config = find_model("moge-2-small").config
    with tempfile.TemporaryDirectory() as folder:
        out = convert(reference_moge.save(config, Path(folder) / "source"), Path(folder) / "out")
        model = mlx_depth.load(out, dtype="float32")
    photo, patches = reference_moge.image(*MOGE_SIZE), MOGE_SIZE[0] * MOGE_SIZE[1] // 14**2
    with reference_moge.torch.no_grad(), exact_resizes():
        pixels = reference_moge.tensor(photo)[None]
        expected = reference_moge.model(config)(pixels, num_tokens=patches)
    found = model.infer(model.processor(photo, input_size=MOGE_SIZE))
    for name, theirs in reference_moge.OUTPUTS.items():
        values = expected[theirs].numpy()
        if name == "points":
            values = values * expected["metric_scale"].numpy()[:, None, None, None]
        if name != "scale":  # one number
            print_errors(f"MoGe-2 small: {name}", MOGE_SIZE, np.array(getattr(found, name)), values)
    whole = reference_moge.infer(reference_moge.model(config), photo, num_tokens=patches)
    result = model.predict(photo, input_size=MOGE_SIZE)
    seen = result.mask & whole["mask"]
    print_errors("MoGe-2 small, from a photo: metres", MOGE_SIZE, result.depth[seen], whole["depth"][seen])


def print_dpt() -> None:
    upstream = reference_dpt.model("dinov2-small")
    with tempfile.TemporaryDirectory() as folder:
        reference_dpt.save(upstream, Path(folder))
        model = mlx_depth.load(folder, dtype="float32", reference="transformers")
    pixel_values = reference_dpt.pixels(1, 140, 196)
    found = np.array(model.infer(mx.array(pixel_values)).depth)
    print_errors("DPT on DINOv2 small", (140, 196), found, reference_dpt.run(upstream, pixel_values))


def print_midas_small() -> None:
    golden = np.load(Path(__file__).parent / "goldens" / "midas.npz")
    facts = json.loads(str(golden["facts"]))
    state = midas_weights.state(facts["shapes"]["small"])
    with tempfile.TemporaryDirectory() as folder:
        save_file(state, Path(folder) / "midas_v21_small_256.safetensors")
        model = mlx_depth.load(Path(folder) / "midas_v21_small_256.safetensors", dtype="float32")
    shape = tuple(facts["inputs"]["small"][0])
    found = np.array(model.infer(mx.array(midas_weights.pixels(shape))).depth)
    print_errors("MiDaS 2.1 small", shape[1:], found, golden["small.0.depth"])


def print_row(name: str, upstream, model: mlx_depth.DepthModel, pixel_values: np.ndarray, *, zeros: float) -> None:
    expected = reference.run(upstream, pixel_values, zeros=zeros)
    print_errors(name, pixel_values.shape[1:3], np.array(model.network(mx.array(pixel_values)).depth), expected)


def print_errors(name: str, size: tuple[int, ...], found: np.ndarray, expected: np.ndarray) -> None:
    error, drift = relative_error(found, expected), 1 - correlation(found, expected)
    print(f"| {name} | {'×'.join(map(str, size))} | {error:.0e} | {max(drift, 0):.0e} |", flush=True)


if __name__ == "__main__":
    main()
