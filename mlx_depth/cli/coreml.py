"""The verbs coreml and coreml-check of the command ``mlx-depth``.

Exit codes: 0 done, 1 past a gate of the check, 2 nothing could be done as asked.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from mlx_depth_convert.coreml.options import (
    ATTENTIONS,
    COMPRESSIONS,
    DEFAULT_SIZES,
    LAYOUTS,
    OUTPUTS,
    PRECISIONS,
    PRESETS,
    TARGETS,
)

from mlx_depth.io.colormaps import COLORMAPS

_MODEL = "name, owner/name, folder or .safetensors file"


def add_verbs(verbs: Any) -> None:
    """Declare the verbs on what ``ArgumentParser.add_subparsers`` returned."""
    export = verbs.add_parser("coreml", help="export a Core ML package")
    add = export.add_argument
    add("model", metavar="MODEL", help=_MODEL)
    add("out", type=Path, metavar="OUT", help="OUT.mlpackage, or a folder to put it into")
    add(
        "--sizes",
        nargs="+",
        default=DEFAULT_SIZES,
        metavar="SIZE",
        help=f"{', '.join(PRESETS)}, an aspect such as 4:3, or HxW in multiples of the patch size; several make a "
        f"multi-function package (default: {' '.join(DEFAULT_SIZES)})",
    )
    add("--precision", choices=PRECISIONS, default="float16", help="of the computation (default: float16)")
    add("--target", choices=TARGETS, help="oldest system that runs it (default: the oldest that the options allow)")
    add("--attention", choices=ATTENTIONS, default="auto", help="form of the attention (default: auto)")
    add("--output", choices=OUTPUTS, help="default: metric for metric models, raw for MoGe-2, else normalized")
    add("--cmap", metavar="NAME", help=f"one more, colored output: {', '.join(COLORMAPS)}")
    add("--compress", choices=COMPRESSIONS, help="compress the weights")
    add("--layout", choices=LAYOUTS, default="ane", help="for the Neural Engine or the GPU (default: ane)")
    add("--name", help="name of the package, which becomes a Swift class")
    export.set_defaults(run=_run_export)

    check = verbs.add_parser("coreml-check", help="prove that a Core ML package computes the model's depth")
    add = check.add_argument
    add("package", type=Path, metavar="PACKAGE", help="an .mlpackage of `mlx-depth coreml`")
    add("model", nargs="?", metavar="MODEL", help=f"{_MODEL} (default: the one that the package names)")
    add("--image", metavar="PATH", help="a photo to compare on (default: a drawn one)")
    add("--json", action="store_true", help="one JSON object instead of text")
    check.set_defaults(run=_run_check)


def _run_export(options: argparse.Namespace) -> int:
    from mlx_depth_convert.coreml import export_coreml

    path = export_coreml(
        options.model,
        options.out,
        sizes=options.sizes,
        precision=options.precision,
        target=options.target,
        attention=options.attention,
        output=options.output,
        cmap=options.cmap,
        compress=options.compress,
        layout=options.layout,
        name=options.name,
    )
    print(path)
    return 0


def _run_check(options: argparse.Namespace) -> int:
    from mlx_depth_convert.coreml import check_package

    report = check_package(options.package, options.model, options.image)
    print(json.dumps(report.as_json()) if options.json else report.as_text())
    return 0 if report.passed else 1
