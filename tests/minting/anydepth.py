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
if sys.path[1] == str(Path(__file__).parent):  # where this file would hide the tests' module of its name
    del sys.path[1]

import anydepth  # noqa: E402
import authors_sdt  # noqa: E402
import reference_dinov3  # noqa: E402

TAPPED = {4: (0, 1, 2, 3), 12: (2, 5, 8, 11)}
LEADING = 5  # tokens that are no patches
STRIDE = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, metavar="CLONE", help="a clone of the repository")
    source = parser.parse_args().source
    decoder = authors_sdt.decoder_class(source)
    heads = {size: head(decoder, size) for size in anydepth.BACKBONES}
    commit = f"{authors_sdt.REPOSITORY} {authors_sdt.commit(source)}"
    facts = {
        "provenance": {
            "reference": f"{commit} on transformers {transformers.__version__}",
            "versions": f"torch {torch.__version__}, float32",
            "command": "python tests/minting/anydepth.py --source CLONE",
            "seeds": "tests/anydepth.py: a tensor's values come from its name",
            "values": f"depth[:, ::{STRIDE}, ::{STRIDE}]",
        },
        "shapes": {
            size: {name: list(x.shape) for name, x in network.state_dict().items()} for size, network in heads.items()
        },
    }
    depths = {size: run(network, size) for size, network in heads.items()}
    np.savez_compressed(anydepth.GOLDEN, facts=json.dumps(facts), **depths)


def head(decoder: Any, size: str) -> Any:
    width = anydepth.backbone(size).config.hidden_size
    return authors_sdt.filled(decoder([width] * 4, anydepth.FEATURES[size], n_output_channels=1, use_cls_token=True))


def run(network: Any, size: str) -> np.ndarray:
    backbone = anydepth.backbone(size)
    pixels = anydepth.pixels(size)
    layers = reference_dinov3.layers(backbone, pixels)
    tapped = [layers[layer].numpy() for layer in TAPPED[len(layers)]]
    tokens = [(x[:, LEADING:], x[:, 0]) for x in tapped]
    grid_size = (pixels.shape[1] // 16, pixels.shape[2] // 16)
    with torch.no_grad():
        depth = torch.relu(network(authors_sdt.as_theirs(tokens, grid_size))) + authors_sdt.LEAST_DEPTH
    depth = depth[:, 0].numpy()
    assert depth.std() > 0.05 * depth.mean(), "a reference that hardly varies proves nothing"
    return depth[:, ::STRIDE, ::STRIDE]


if __name__ == "__main__":
    main()
