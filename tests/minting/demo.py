"""Make the bundled demo model from its published float16 folder: ``python tests/minting/demo.py SOURCE``.

8 bits in groups of 64 on the backbone's linear layers, float16 elsewhere; the same bytes every time.
"""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import mlx.core as mx

from mlx_depth.checkpoints.checkpoint import quantize_checkpoint, read_checkpoint, write_checkpoint
from mlx_depth.registry import DEMO_FOLDER, MODELS
from mlx_depth.weights.quantization import Quantization


def main(source: Path) -> None:
    checkpoint = read_checkpoint(source)
    spec = dataclasses.replace(MODELS["mlx-depth-demo"], processor=checkpoint.spec.processor)
    packed = quantize_checkpoint(dataclasses.replace(checkpoint, spec=spec), Quantization(bits=8, group_size=64))
    origin = {"sha256": hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()}
    write_checkpoint(packed, DEMO_FOLDER, source=origin, card=card(source), dtype=mx.float16)
    print(json.dumps({file.name: file.stat().st_size for file in sorted(DEMO_FOLDER.iterdir())}))


def card(source: Path) -> str:
    text = (source / "model_card.md").read_text()
    front, note, body = text.partition("\n## Backbone\n")
    form = (
        "The backbone's linear layers are packed to 8 bits in groups of 64, the rest is float16 "
        "(`tests/minting/demo.py`); the figures below are those of the float16 weights."
    )
    return f"{front}\n## This form\n{form}\n{note}{body}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
