"""Mint tests/goldens/sdt.npz: ``python tests/minting/sdt.py --source CLONE`` (of github.com/AIGeeksGroup/AnyDepth).

Runs the authors' decoder, which is not ours to ship, on weights and tokens that the tests draw again by name
(``tests/authors_sdt.py``), and keeps what comes out, and some of what is computed on the way. The names and shapes of
its tensors are those of the published sizes.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import authors_sdt  # noqa: E402

WIDTHS = (384, 768, 1024)  # of the published backbones' tokens
STAGES = {  # ours, in order → the module whose output it is
    "fused": "detail_enhancer",
    "doubled0": "upsample_1.dysample1",
    "doubled1": "refinement_1",
    "doubled2": "upsample_2.dysample1",
    "doubled3": "output_conv",
}
KEPT = 4096  # values of a stage, spread over it


class Case(NamedTuple):
    """One decoder and its input."""

    name: str
    in_dim: int
    features: int
    grid_size: tuple[int, int]
    batch: int


CASES = (Case("odd", 24, 256, (3, 5), 2), Case("tall", 40, 32, (7, 1), 1), Case("narrow", 12, 48, (5, 8), 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, metavar="CLONE", help="a clone of the repository")
    source = parser.parse_args().source
    provenance = {
        "reference": f"{authors_sdt.REPOSITORY} {authors_sdt.commit(source)}",
        "versions": f"torch {torch.__version__}, float32",
        "command": "python tests/minting/sdt.py --source CLONE",
        "seeds": "tests/authors_sdt.py: a tensor's values come from its name",
    }
    upstream = authors_sdt.decoder_class(source)
    facts = {
        "provenance": provenance,
        "cases": {case.name: case._asdict() for case in CASES},
        "published": {width: published(upstream, width) for width in WIDTHS},
        "shapes": {case.name: authors_sdt.shapes(build(upstream, case)) for case in CASES},
    }
    arrays = {f"{case.name}.{key}": array for case in CASES for key, array in run(upstream, case).items()}
    np.savez_compressed(ROOT / "tests/goldens/sdt.npz", facts=json.dumps(facts), **arrays)


def build(upstream: Any, case: Case) -> Any:
    return upstream([case.in_dim] * 4, case.features, n_output_channels=1, use_cls_token=True)


def published(upstream: Any, width: int) -> dict[str, Any]:
    """Names, shapes and the number of parameters of a published size; no memory is taken."""
    with torch.device("meta"):
        network = upstream([width] * 4, n_output_channels=1, use_cls_token=True)
    return {"parameters": sum(p.numel() for p in network.parameters()), "shapes": authors_sdt.shapes(network)}


def run(upstream: Any, case: Case) -> dict[str, np.ndarray]:
    """Depth, and some values of each stage, channels last, in the order of ``ravel`` with the step beside them."""
    network = authors_sdt.filled(build(upstream, case))
    outputs: dict[str, np.ndarray] = {}
    for stage, name in STAGES.items():
        network.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, stage=stage: outputs.update({stage: output.numpy().transpose(0, 2, 3, 1)})
        )
    tokens = authors_sdt.features(case.name, case.in_dim, case.grid_size, case.batch)
    with torch.no_grad():
        depth = torch.relu(network(authors_sdt.as_theirs(tokens, case.grid_size))) + authors_sdt.LEAST_DEPTH
    depth = depth[:, 0].numpy()
    assert (depth > 0.001).mean() > 0.5, "the last ReLU lets next to nothing through: other weights"
    kept = {"depth": depth[:, ::2, ::2]}
    for stage, output in outputs.items():
        step = -(-output.size // KEPT) | 1  # odd, so that it meets all channels, rows and columns
        kept |= {stage: output.ravel()[::step], f"{stage}.step": np.array(step)}
    return kept


if __name__ == "__main__":
    main()
