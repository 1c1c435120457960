"""Options of the verbs that run a model: which one, on what, and how large."""

import argparse

from mlx_depth.cli.terminal import input_size
from mlx_depth.weights.safetensors_io import DTYPES


def add_model_options(parser: argparse.ArgumentParser, *, default: str, side: str, also: str = "") -> None:
    """Declare --model, --revision, --input-size, --dtype and --device.

    Args:
        parser: Of the verb.
        default: Name of the model that is taken where none is given.
        side: The side of the network image that ``--input-size`` means, in words.
        also: What else the help of ``--model`` says.
    """
    add = parser.add_argument
    add("--model", default=default, help=f"name, folder, file or owner/name (default: {default}{also})")
    add("--revision", help="branch, tag or commit of the Hub repository")
    add("--input-size", type=input_size, metavar="N|HxW", help=f"{side} of the network image, or its exact size")
    add("--dtype", choices=DTYPES, help="default: float16 on a GPU, float32 on a CPU")
    add("--device", choices=("gpu", "cpu"), help="where to compute (default: the GPU, if MLX has one)")
