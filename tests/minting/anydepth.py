"""Mint tests/goldens/anydepth.npz: ``python tests/minting/anydepth.py --source CLONE`` (of AIGeeksGroup/AnyDepth).

Runs transformers' DINOv3 and, on its tokens, the authors' decoder and ``FeaturesToDepth``, on weights and pixels that
the tests draw again by name (``tests/anydepth.py``), and keeps every fourth row and column of the depth.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import anydepth  # noqa: E402
import sdt_weights  # noqa: E402

TAPPED = {4: (0, 1, 2, 3), 12: (2, 5, 8, 11)}
STRIDE = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, metavar="CLONE", help="a clone of the repository")
    source = parser.parse_args().source
    heads = {size: head(sdt_weights.decoder_class(source), size) for size in anydepth.SIZES}
    decoder = f"{sdt_weights.REPOSITORY} {sdt_weights.commit(source)}"
    facts = {
        "provenance": {
            "reference": f"{decoder} on transformers {transformers.__version__}",
            "versions": f"torch {torch.__version__}, float32",
            "command": "python tests/minting/anydepth.py --source CLONE",
            "seeds": "tests/anydepth.py: a tensor's values come from its name",
            "values": f"depth[:, ::{STRIDE}, ::{STRIDE}]",
        },
        "shapes": {size: sdt_weights.shapes(network) for size, network in heads.items()},
    }
    depths = {size: run(network, size) for size, network in heads.items()}
    np.savez_compressed(anydepth.GOLDEN, facts=json.dumps(facts), **depths)


def head(upstream: Any, size: str) -> Any:
    width = anydepth.SIZES[size]["hidden_size"]
    return sdt_weights.filled(upstream([width] * 4, anydepth.FEATURES[size], n_output_channels=1))


def run(network: Any, size: str) -> np.ndarray:
    backbone = transformers.DINOv3ViTModel(anydepth.backbone_config(size)).eval()
    state = {name: torch.from_numpy(array) for name, array in anydepth.backbone_state(size).items()}
    own = {name: state[name.removeprefix("model.")] for name in backbone.state_dict()}
    backbone.load_state_dict(own)
    tokens: list[Any] = []
    for layer in TAPPED[len(backbone.model.layer)]:
        backbone.model.layer[layer].register_forward_hook(lambda _, inputs, output: tokens.append(output))
    B, H, W = anydepth.PIXELS[size]
    with torch.no_grad():
        backbone(torch.from_numpy(np.ascontiguousarray(anydepth.pixels(size).transpose(0, 3, 1, 2))))
        features = [(x[:, 5:].mT.reshape(B, -1, H // 16, W // 16), x[:, 0]) for x in tokens]
        depth = (torch.relu(network(features)) + 0.001)[:, 0].numpy()  # model/__init__.py, FeaturesToDepth
    print(size, depth.shape, depth.mean(), depth.std(), (depth == np.float32(0.001)).mean())
    assert depth.std() > 0.05 * depth.mean(), "a reference that hardly varies proves nothing"
    return depth[:, ::STRIDE, ::STRIDE]


if __name__ == "__main__":
    main()
