"""Mint tests/goldens/midas.npz: ``python tests/minting/midas.py --source CLONE`` (of github.com/isl-org/MiDaS).

Needs timm and OpenCV. Runs the authors' networks on weights and pixels that the tests draw again by name
(``tests/midas_weights.py``), and keeps what comes out, and some of what is computed on the way. MiDaS 2.1 small has
its full size; of DPT, whose sizes the authors fix, the tiny networks are theirs with a tiny backbone of timm's. The
names and shapes of the tensors are those of the published models.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import timm
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import midas_weights  # noqa: E402

REPOSITORY = "https://github.com/isl-org/MiDaS"
SHAPES = {"small": ((1, 64, 96), (2, 96, 32)), "vit": ((1, 64, 96), (2, 96, 32)), "hybrid": ((1, 64, 96), (2, 96, 32))}
STAGES = {
    "small": [f"pretrained.layer{i}" for i in (1, 2, 3, 4)] + [f"scratch.refinenet{i}" for i in (4, 3, 2, 1)],
    "vit": [f"scratch.layer{i}_rn" for i in (1, 2, 3, 4)] + [f"scratch.refinenet{i}" for i in (4, 3, 2, 1)],
    "hybrid": [f"scratch.layer{i}_rn" for i in (1, 2, 3, 4)] + [f"scratch.refinenet{i}" for i in (4, 3, 2, 1)],
}
KEPT = 256  # values of a stage, spread over it
PHOTO = "coffee.jpg"
PHOTO_SIZES = ((480, 640), (640, 480), (1080, 1920), (37, 311), (384, 384), (400, 600), (3000, 4000), (100, 101))
TINY = {"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 64, "hooks": [0, 1, 2, 3], "widths": [8, 16, 24, 32]}
HYBRID = {"layers": (1, 2, 1), "channels": (128, 256, 512), "stem_chs": 32, "hooks": [0, 1, 2, 3]}
HYBRID_WIDTHS = [128, 256, 24, 32]
FEATURES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, metavar="CLONE", help="a clone of the repository")
    parser.add_argument("--commit", help="its commit, where it is no clone")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.source))
    commit = arguments.commit or subprocess.check_output(
        ["git", "-C", str(arguments.source), "rev-parse", "HEAD"], text=True
    )
    facts = {
        "provenance": {
            "reference": f"{REPOSITORY} {commit.strip()}",
            "versions": f"torch {torch.__version__}, timm {timm.__version__}, cv2 {cv2.__version__}, float32",
            "command": "python tests/minting/midas.py --source CLONE",
            "seeds": "tests/midas_weights.py: a tensor's values come from its name",
        },
        "shapes": {name: shapes(build(name)) for name in SHAPES},
        "inputs": SHAPES,
        "stages": STAGES,
        "published": published(),
        "photo": PHOTO,
        "photo_sizes": PHOTO_SIZES,
    }
    arrays: dict[str, np.ndarray] = {}
    for name, inputs in SHAPES.items():
        network = filled(build(name))
        for number, shape in enumerate(inputs):
            arrays |= {f"{name}.{number}.{key}": array for key, array in run(name, network, shape).items()}
    arrays |= photo()
    np.savez_compressed(ROOT / "tests/goldens/midas.npz", facts=json.dumps(facts), **arrays)


def build(name: str, *, full_size: bool = False) -> Any:
    """An authors' network; ``small`` has its full size always."""
    if name == "small":
        return _small()
    from midas import dpt_depth

    if full_size:
        return dpt_depth.DPTDepthModel(path=None, backbone={"vit": "vitl16_384", "hybrid": "vitb_rn50_384"}[name])
    encoder = {"vit": _tiny_vit, "hybrid": _tiny_hybrid}[name]()
    with mock.patch.object(dpt_depth, "_make_encoder", return_value=encoder):
        return dpt_depth.DPTDepthModel(path=None, features=FEATURES, backbone="vitb16_384")


def _small() -> Any:
    from midas.midas_net_custom import MidasNet_small

    backbone = timm.create_model("tf_efficientnet_lite3")  # gen-efficientnet-pytorch's, by the same author
    backbone.act1 = torch.nn.Identity()  # timm has it in the norm before
    with mock.patch.object(torch.hub, "load", return_value=backbone):
        return MidasNet_small(
            None, features=64, backbone="efficientnet_lite3", exportable=True, blocks={"expand": True}
        )


def _tiny_vit() -> tuple[Any, Any]:
    from midas.backbones.vit import _make_vit_b16_backbone
    from midas.blocks import _make_scratch

    vit = timm.models.vision_transformer.VisionTransformer(
        img_size=TINY["img_size"], embed_dim=TINY["embed_dim"], depth=TINY["depth"], num_heads=TINY["num_heads"]
    )
    widths = TINY["widths"]
    made = _make_vit_b16_backbone(
        vit, widths, [64, 64], TINY["hooks"], vit_features=TINY["embed_dim"], use_readout="project"
    )
    return made, _make_scratch(widths, FEATURES, groups=1, expand=False)


def _tiny_hybrid() -> tuple[Any, Any]:
    from functools import partial

    from midas.backbones.vit import _make_vit_b_rn50_backbone
    from midas.blocks import _make_scratch
    from timm.layers import StdConv2dSame
    from timm.models.resnetv2 import ResNetV2
    from timm.models.vision_transformer_hybrid import HybridEmbed

    resnet = ResNetV2(
        layers=HYBRID["layers"],
        channels=HYBRID["channels"],
        stem_chs=HYBRID["stem_chs"],
        num_classes=0,
        global_pool="",
        preact=False,
        stem_type="same",
        conv_layer=partial(StdConv2dSame, eps=1e-8),
    )
    vit = timm.models.vision_transformer.VisionTransformer(
        img_size=TINY["img_size"],
        embed_dim=TINY["embed_dim"],
        depth=TINY["depth"],
        num_heads=TINY["num_heads"],
        embed_layer=partial(HybridEmbed, backbone=resnet),
        patch_size=1,
    )
    made = _make_vit_b_rn50_backbone(
        vit, HYBRID_WIDTHS, [64, 64], HYBRID["hooks"], vit_features=TINY["embed_dim"], use_readout="project"
    )
    return made, _make_scratch(HYBRID_WIDTHS, FEATURES, groups=1, expand=False)


def published() -> dict[str, Any]:
    """Names, shapes and the number of parameters of the published models; no memory is taken."""
    found = {}
    for name in SHAPES:
        with torch.device("meta"):
            network = build(name, full_size=True)
        found[name] = {"parameters": sum(p.numel() for p in network.parameters()), "shapes": shapes(network)}
    return found


def shapes(network: Any) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def filled(network: Any) -> Any:
    state = midas_weights.state(shapes(network))
    network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state.items()})
    return network.eval()


def run(name: str, network: Any, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Depth, and some values of each stage, channels last, in the order of ``ravel`` with the step beside them."""
    outputs: dict[str, np.ndarray] = {}
    handles = [
        network.get_submodule(stage).register_forward_hook(
            lambda _, inputs, output, stage=stage: outputs.update({stage: output.numpy().transpose(0, 2, 3, 1)})
        )
        for stage in STAGES[name]
    ]
    with torch.no_grad():
        depth = network(torch.from_numpy(midas_weights.pixels(shape)).permute(0, 3, 1, 2)).numpy()
    for handle in handles:
        handle.remove()
    print(name, shape, depth.shape, f"zeros {(depth == 0).mean():.3f}, spread {depth.std() / depth.mean():.2f}")
    assert (depth > 0).mean() > 0.7, "the last ReLU lets next to nothing through: other weights"
    assert depth.std() > 0.1 * depth.mean()
    kept = {"depth": depth}
    for stage, output in outputs.items():
        step = -(-output.size // KEPT) | 1  # odd, so that it meets all channels, rows and columns
        kept |= {stage: output.ravel()[::step], f"{stage}.step": np.array(step)}
    return kept


def photo() -> dict[str, np.ndarray]:
    """From a photo to the map of its size, as run.py does it, and the sizes of other photos inside the networks."""
    from midas.transforms import NormalizeImage, PrepareForNet, Resize

    pixels = cv2.cvtColor(cv2.imread(str(ROOT / "examples" / PHOTO)), cv2.COLOR_BGR2RGB) / 255.0
    kept = {}
    for name, (side, method) in {"small": (256, "upper_bound"), "vit": (384, "minimal")}.items():
        sizes = {"resize_target": None, "keep_aspect_ratio": True, "ensure_multiple_of": 32}
        resize = Resize(side, side, **sizes, resize_method=method, image_interpolation_method=cv2.INTER_CUBIC)
        kept[f"{name}.sizes"] = np.array([resize.get_size(width, height)[::-1] for height, width in PHOTO_SIZES])
        mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if name == "small" else ([0.5] * 3, [0.5] * 3)
        sample = {"image": pixels}
        for step in (resize, NormalizeImage(mean=mean, std=std), PrepareForNet()):
            sample = step(sample)
        kept[f"{name}.pixels"] = sample["image"].transpose(1, 2, 0)[::8, ::8]
        with torch.no_grad():
            depth = filled(build(name))(torch.from_numpy(sample["image"])[None])
            grown = torch.nn.functional.interpolate(
                depth[:, None], size=pixels.shape[:2], mode="bicubic", align_corners=False
            )
        kept[f"{name}.photo"] = grown[0, 0].numpy()[::8, ::8]
    return kept


if __name__ == "__main__":
    main()
