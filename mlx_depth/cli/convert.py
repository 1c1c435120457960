"""The verbs convert, verify, inspect and bench of the command ``mlx-depth``: each is one API call.

Exit codes: 0 done, 1 past the gate of a verification, 2 nothing could be done as asked.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

from mlx_depth.cli.terminal import input_size, say
from mlx_depth.errors import OptionError
from mlx_depth.io.atomic import atomic_write
from mlx_depth.predictor import DEFAULT_MODEL
from mlx_depth.weights.quantization import BITS, GROUP_SIZES
from mlx_depth.weights.safetensors_io import DTYPES

_SOURCE = "name, owner/name[@revision], folder, or .safetensors, .pth, .pt, .bin or .gguf file"


def add_verbs(verbs: Any) -> None:
    """Declare the verbs on what ``ArgumentParser.add_subparsers`` returned."""
    _add_convert(verbs)
    _add_verify(verbs)
    _add_inspect(verbs)
    _add_bench(verbs)


def _add_convert(verbs: Any) -> None:
    verb = verbs.add_parser("convert", help="turn any checkpoint into an MLX folder")
    add = verb.add_argument
    add("source", metavar="SOURCE", help=_SOURCE)
    add("out", type=Path, metavar="OUT", help="folder to make")
    add("--model", metavar="NAME", help="a model of the same architecture, where the tensors do not tell it")
    add("--name", help="what to call the model (default: the published name, or that of the source)")
    add("--license", metavar="SPDX", help="license of the weights (default: the published one, or the card's)")
    add("--max-depth", type=float, metavar="METRES", help="range of a metric model, where no config tells it")
    add("--file", metavar="PATH", help="folder or file in the folder or repository, where it holds several models")
    add("--key", help="key of the dict that holds the weights in a .pth, where several do")
    add("--backbone", metavar="SOURCE", help="where the backbone comes from, if SOURCE is a head alone")
    add("--prefix", help="what stands before the names of all the model's tensors, where it is not found")
    add("--ignore", nargs="+", default=[], metavar="PATTERN", help="surplus tensors that may be left out")
    add("--dtype", choices=DTYPES, help="of the floating-point tensors (default: the source's; float16 if quantized)")
    add("--quantize", type=int, choices=BITS, help="bits of the backbone's linear layers")
    add("--group-size", type=int, choices=GROUP_SIZES, default=64, help="weights that share a scale (default: 64)")
    add("--recipe", metavar="NAME", help="a mix of bits instead: mixed-4-8, mixed-4-6 or mixed-6-8")
    add("--verify", action="store_true", help="compare the result with the source")
    add("--push-to-hub", metavar="OWNER/NAME", help="upload the folder")
    add("--json", action="store_true", help="one JSON object on stdout")
    verb.set_defaults(run=_run_convert)


def _run_convert(options: argparse.Namespace) -> int:
    from mlx_depth_convert.convert import ConvertOptions, convert_and_report
    from mlx_depth_convert.opening import SourceOptions

    wanted = ConvertOptions(
        model=options.model,
        name=options.name,
        license=options.license,
        dtype=options.dtype,
        quantize=options.quantize,
        group_size=options.group_size,
        recipe=options.recipe,
        verify=options.verify,
        push_to_hub=options.push_to_hub,
        source=SourceOptions(
            options.max_depth, options.file, options.key, options.prefix, tuple(options.ignore), options.backbone
        ),
    )
    done = convert_and_report(options.source, options.out, wanted, progress=sys.stderr.isatty())
    spec, report = done.spec, done.report
    say(f"{spec.name}: {spec.depth_kind.description}, license {spec.license or 'unknown'}")
    if done.skipped:
        names = ", ".join(done.skipped[:4]) + (" …" if len(done.skipped) > 4 else "")
        say(f"{len(done.skipped)} layers are not quantized, as {options.group_size} does not divide them: {names}")
    if report is not None:
        say(report.as_text())
    if done.url is not None:
        say(f"uploaded to {done.url}")
    facts = {
        "path": str(done.path),
        "model": spec.name,
        "license": spec.license,
        "skipped": done.skipped,
        "url": done.url,
    }
    print(json.dumps({**facts, "verification": report and report.as_json()}) if options.json else done.path)
    return 0 if report is None or report.passed else 1


def _add_verify(verbs: Any) -> None:
    verb = verbs.add_parser("verify", help="compare a model with its source or its reference, stage by stage")
    add = verb.add_argument
    add("model", metavar="MODEL", help=_SOURCE)
    add(
        "--against",
        metavar="SOURCE|transformers|depth-anything-3",
        help="another source, or the package that the model's family is proved against "
        "(default: the source that MODEL records)",
    )
    add("--image", nargs="+", default=[], metavar="PATH", help="photos to compare on (default: a generated picture)")
    add("--views", type=int, default=1, metavar="N", help="photos that a network for several sees at once (default: 1)")
    _add_input_size(verb)
    add("--report", nargs="+", type=Path, default=[], metavar="FILE", help="also write the report, to .json or .md")
    add("--json", action="store_true", help="one JSON object on stdout instead of text")
    verb.set_defaults(run=_run_verify)


def _run_verify(options: argparse.Namespace) -> int:
    from mlx_depth_convert.verify import verify

    for file in options.report:
        if file.suffix.lower() not in (".json", ".md"):
            raise OptionError(f"a report goes into a .json or .md file, not {file}: change the suffix.")
    report = verify(
        options.model,
        against=options.against,
        images=options.image,
        views=options.views,
        input_size=options.input_size,
        progress=sys.stderr.isatty(),
    )
    print(json.dumps(report.as_json()) if options.json else report.as_text())
    for file in options.report:
        as_json = file.suffix.lower() == ".json"
        _write(file, json.dumps(report.as_json(), indent=2) + "\n" if as_json else report.as_markdown())
    return 0 if report.passed else 1


def _add_inspect(verbs: Any) -> None:
    verb = verbs.add_parser("inspect", help="show every layer of a forward pass")
    add = verb.add_argument
    add("model", metavar="MODEL", help=_SOURCE)
    add("--image", metavar="PATH", help="photo to run on (default: a generated picture)")
    _add_input_size(verb)
    form = verb.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="CSV instead of aligned text")
    form.add_argument("--json", action="store_true", help="one JSON object instead of aligned text")
    add("--plot", type=Path, metavar="P.png", help="also draw the depth: histogram, middle row and column, surface")
    verb.set_defaults(run=_run_inspect)


def _run_inspect(options: argparse.Namespace) -> int:
    from mlx_depth_convert.inspect_model import inspect_model, plot_depth

    found = inspect_model(
        options.model, image=options.image, input_size=options.input_size, progress=sys.stderr.isatty()
    )
    if options.plot is not None:
        say(f"wrote {plot_depth(found.depth, options.plot)}")
    if options.json:
        print(json.dumps(found.as_json()))
    else:
        print(found.as_csv() if options.csv else found.as_text(), end="" if options.csv else "\n")
    return 0


def _add_bench(verbs: Any) -> None:
    verb = verbs.add_parser("bench", help="measure load time, latency, memory and size")
    add = verb.add_argument
    add("models", nargs="*", metavar="MODEL", help=f"{_SOURCE} (default: {DEFAULT_MODEL})")
    add(
        "--heads",
        nargs="*",
        metavar="small|base|large",
        help="not models but decoders alone, SDT beside DPT, for tokens of backbones of that size (default: all)",
    )
    add(
        "--input-size",
        nargs="+",
        type=input_size,
        metavar="N|HxW",
        help="network pixels (default: the model's own; of decoders 256, 512 and 1024)",
    )
    add("--batch", nargs="+", type=int, default=[1], metavar="N", help="images, or scenes, at once (default: 1)")
    add("--views", nargs="+", type=int, default=[1], metavar="N", help="images of a scene, for networks of several")
    add("--dtype", nargs="+", choices=DTYPES, default=[None], help="default: float16 on a GPU, float32 on a CPU")
    add("--quantize", nargs="+", type=int, choices=BITS, default=[None], help="bits of the linear layers")
    add("--compare", choices=["torch"], help="run the family's reference, too, in turn with ours")
    add("--runs", type=int, metavar="N", help="timed runs (default: 10; of decoders 3)")
    add("--json", action="store_true", help="one JSON object instead of a Markdown table")
    add("--plot", type=Path, metavar="P.png", help="also draw the medians")
    verb.set_defaults(run=_run_bench)


def _run_bench(options: argparse.Namespace) -> int:
    from mlx_depth_convert.bench import bench, plot_benchmark

    if options.heads is not None:
        return _run_bench_heads(options)
    found = bench(
        options.models or [DEFAULT_MODEL],
        input_sizes=options.input_size or [None],
        batches=options.batch,
        views=options.views,
        dtypes=options.dtype,
        quantize=options.quantize,
        compare=options.compare,
        runs=10 if options.runs is None else options.runs,
        progress=sys.stderr.isatty(),
    )
    print(json.dumps(found.as_json()) if options.json else found.as_markdown())
    if options.plot is not None:
        say(f"wrote {plot_benchmark(found, options.plot)}")
    return 0


def _run_bench_heads(options: argparse.Namespace) -> int:
    from mlx_depth_convert.bench_heads import INPUT_SIZES, RUNS, WIDTHS, bench_heads

    of_models = {
        "MODEL": options.models,
        "--batch": options.batch != [1],
        "--views": options.views != [1],
        "--quantize": options.quantize != [None],
        "--compare": options.compare,
        "--plot": options.plot,
    }
    surplus = [name for name, given in of_models.items() if given]
    if surplus:
        raise OptionError(f"--heads measures decoders alone: leave {', '.join(surplus)} out.")
    found = bench_heads(
        options.heads or tuple(WIDTHS),
        input_sizes=options.input_size or INPUT_SIZES,
        dtypes=options.dtype,
        runs=RUNS if options.runs is None else options.runs,
        progress=sys.stderr.isatty(),
    )
    print(json.dumps(found.as_json()) if options.json else found.as_markdown())
    return 0


def _add_input_size(verb: Any) -> None:
    verb.add_argument(
        "--input-size", type=input_size, metavar="N|HxW", help="short side of the network image, or its exact size"
    )


def _write(path: Path, text: str) -> None:
    def write(stream: BinaryIO) -> None:
        stream.write(text.encode())

    atomic_write(path, write, overwrite=True)
