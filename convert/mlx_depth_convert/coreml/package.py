"""Graph to package: conversion, compression, several functions in one, metadata, and the same bytes every time."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_depth.checkpoints.checkpoint import Checkpoint, expand_checkpoint, fetch_checkpoint
from mlx_depth.checkpoints.resolve import published_spec
from mlx_depth.errors import SaveError
from mlx_depth.registry import ModelSpec
from mlx_depth.result import DepthKind
from mlx_depth.version import __version__
from mlx_depth_convert.coreml import tools
from mlx_depth_convert.coreml.compress import compress_weights
from mlx_depth_convert.coreml.destination import package_path
from mlx_depth_convert.coreml.emitters import emitter_of
from mlx_depth_convert.coreml.emitters.base import Emitter, Plan, Size, Weights
from mlx_depth_convert.coreml.names import COLORS, DEPTH, IMAGE, MAIN, is_image
from mlx_depth_convert.coreml.options import DEFAULT_SIZES, ExportOptions, SizeRequest, check_options

Read = tuple[Checkpoint, str, str | None]  # what names it on any machine, empty for local files; the Hub's commit

# Of coremltools' hundred passes those that find something in our graphs: the others look for what emitters never write.
PASSES = frozenset(
    f"common::{name}"
    for name in (
        "add_conv_transpose_output_shape",
        "add_fp16_cast",
        "cast_optimization",
        "const_deduplication",
        "const_elimination",
        "dead_code_elimination",
        "dedup_op_and_var_names",
        "fuse_conv_bias",
        "fuse_transpose_matmul",
        "noop_elimination",
        "reduce_transposes",
        "remove_redundant_ops",
        "topological_reorder",
        "update_output_dtypes",
    )
)
METADATA = "mlx_depth."  # prefix of our keys in the package's user-defined metadata
_DATA = Path("Data/com.apple.CoreML")
_MODEL_ITEM, _WEIGHTS_ITEM = "3F1B8A52-6C0D-5E7A-9B44-0D5C2E8F7A10", "C2A7D9E4-1B35-5F68-8E02-7A9F4B6C3D21"


@dataclass(frozen=True)
class _Job:
    spec: ModelSpec
    weights: Weights
    source: str  # what names the weights on any machine: a registry name or a Hub repository; empty for local files
    revision: str | None
    plan: Plan


def export_coreml(
    model: str | Path | Checkpoint,
    out: str | Path,
    *,
    sizes: SizeRequest | Iterable[SizeRequest] = DEFAULT_SIZES,
    precision: str = "float16",
    target: str | None = None,
    attention: str = "auto",
    output: str | None = None,
    cmap: str | None = None,
    compress: str | None = None,
    layout: str = "ane",
    name: str | None = None,
) -> Path:
    """Write a model as a Core ML package: an 8-bit RGB image in, a depth image out, and the model's extras.

    Args:
        model: As ``source`` of ``mlx_depth.load``, or a checkpoint that was read already.
        out: The package to write, ``….mlpackage``, or a folder to write it in.
        sizes: One or more of ``options.SIZES``, ``"HxW"`` or ``(height, width)`` in pixels, multiples of the patch
            size (14, or 16 for AnyDepth). Several become one package with a function each, the first being the
            default; the weights are shared.
        precision: ``"float16"`` (the Neural Engine takes nothing else) or ``"float32"``.
        target: Oldest system that can run it, one of ``options.TARGETS``; None: iOS 17 and macOS 14, or iOS 18 and
            macOS 15 where several sizes or ``sdpa`` need them.
        attention: ``"split"`` by head, ``"batched"`` heads, ``"sdpa"`` (one operation; crashes of it are on record), or
            ``"auto"``: split for small and base models in the layout ``ane``, else batched.
        output: ``"normalized"`` (0..1 over the image, 1 = nearest), ``"raw"`` (the network's relative depth, comparable
            between the frames of a video) or ``"metric"`` (metres); None: metres if the model gives them, else
            normalized. MoGe-2's is raw alone, without a color map: metres but for a shift and a factor.
        cmap: One of ``mlx_depth.io.colormaps.COLORMAPS``: adds an output, the painted depth.
        compress: ``"int8"``, ``"palette8"`` or ``"palette6"``: weights of 8 or 6 bits; None: as ``precision``.
        layout: ``"ane"`` for the Neural Engine, ``"gpu"`` for the GPU.
        name: Base name of the package where ``out`` is a folder; Xcode makes a Swift class of it. None: the model's.
    Returns:
        Path of the package.
    Raises:
        OptionError: If an option cannot work, the package exists, or coremltools is missing: before any work.
        ModelNotFoundError: If there is no such model, or it cannot be downloaded.
        CheckpointError: If its files are damaged or not exactly what the model needs.
        SaveError: If the package cannot be written.
    """
    spec, read = _find(model)
    plan = check_options(spec, ExportOptions(sizes, precision, target, attention, output, cmap, compress, layout))
    with _writing(out):
        path = package_path(out, name, spec)
    tools.coremltools()
    checkpoint, source, revision = read()
    weights = expand_checkpoint(checkpoint).weights
    return _write(path, _Job(checkpoint.spec, weights, source, revision, plan))


def _find(model: str | Path | Checkpoint) -> tuple[ModelSpec, Callable[[], Read]]:
    """The model's facts, and how to read it: for a published model, facts need no download."""
    if isinstance(model, Checkpoint):
        return model.spec, lambda: (model, "", None)
    published = published_spec(model)
    if published is not None:
        return published, lambda: _read(model)
    found = _read(model)
    return found[0].spec, lambda: found


def _read(model: str | Path) -> Read:
    checkpoint, found = fetch_checkpoint(model)
    published = published_spec(model)
    source = published.name if published is not None else found.repo or ""
    return checkpoint, source, found.revision


def _write(path: Path, job: _Job) -> Path:
    """Work in a hidden folder beside the package, which appears complete or not at all."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as scratch:
            _write_package(Path(scratch, path.name), job, Path(scratch))
            Path(scratch, path.name).rename(path)
    return path


@contextlib.contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise SaveError(f"cannot write {path}: {reason}. Check the folder and the free space.") from error


def _write_package(path: Path, job: _Job, scratch: Path) -> None:
    functions = job.plan.sizes
    if len(functions) == 1:
        model = _convert(job, *functions.values())
        spec, weights = model.get_spec(), Path(model.weights_dir)
    else:
        spec, weights = _merge({name: _convert(job, size) for name, size in functions.items()}, scratch)
    _describe(spec, job)
    _save(path, spec, weights)


def _convert(job: _Job, size: Size) -> Any:
    """One function, as coremltools' ``MLModel``."""
    ct, plan = tools.coremltools(), job.plan
    program, emitter = _emit(job, size)
    function = program.functions[MAIN]
    function.set_output_types([_output_type(output, plan.precision, emitter) for output in function.outputs])
    with tools.quiet():
        model = ct.convert(
            program,
            source="milinternal",
            convert_to="mlprogram",
            compute_precision=_precision(plan.precision, emitter.float32_prefixes),
            inputs=[ct.ImageType(name=IMAGE, shape=(1, 3, *size), color_layout=ct.colorlayout.RGB)],
            minimum_deployment_target=getattr(ct.target, plan.target),
            pass_pipeline=_pipeline(ct),
            skip_model_load=True,
        )
    return model if plan.compress is None else compress_weights(model, plan.compress, emitter.float_prefixes)


def _output_type(output: Any, precision: str, emitter: Emitter) -> Any:
    """What an app gets of an output: an image of a map with one channel and of colors, else an array."""
    ct = tools.coremltools()
    if output.name == COLORS:
        return ct.ImageType(name=COLORS, color_layout=ct.colorlayout.RGB)
    if is_image(output.shape):
        return ct.ImageType(name=output.name, color_layout=ct.colorlayout.GRAYSCALE_FLOAT16)
    half = precision == "float16" and not output.name.startswith(emitter.float32_prefixes)
    return ct.TensorType(name=output.name, dtype=np.float16 if half else np.float32)


def _precision(precision: str, float32_prefixes: tuple[str, ...]) -> Any:
    """What ``ct.convert`` takes: float32, or float16 but for operations whose names begin so."""
    ct = tools.coremltools()
    if precision == "float32":
        return ct.precision.FLOAT32
    return ct.transform.FP16ComputePrecision(op_selector=lambda op: not op.name.startswith(float32_prefixes))


def _pipeline(ct: Any) -> Any:
    """``PASSES`` in coremltools' order, as often as it runs them."""
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(set(pipeline.passes) - PASSES)
    return pipeline


def _emit(job: _Job, size: Size) -> tuple[Any, Emitter]:
    """The graph of one function before conversion, as coremltools' ``Program``, and what wrote it."""
    ct = tools.coremltools()
    mil, target = ct.converters.mil, getattr(ct.target, job.plan.target)
    mil.Builder.name_count.clear()  # coremltools does so after a conversion only, not after one that failed
    program = mil.Program()
    image = mil.Builder.placeholder(shape=(1, 3, *size), dtype=mil.mil.types.fp32)
    with mil.Function({IMAGE: image}, opset_version=target) as function:
        emitter = emitter_of(job.spec)(mil.Builder, job.spec, job.weights, job.plan)
        function.set_outputs(emitter.outputs(function.inputs[IMAGE], size))
    program.add_function(MAIN, function)
    return program, emitter


def _merge(models: dict[str, Any], scratch: Path) -> tuple[Any, Path]:
    """Several functions in one model; equal weights are stored once."""
    utils = tools.coremltools().utils
    merged = scratch / "merged.mlpackage"
    descriptor = utils.MultiFunctionDescriptor()
    for name, model in models.items():
        part = scratch / f"{name}.mlpackage"
        _save(part, model.get_spec(), Path(model.weights_dir))
        descriptor.add_function(str(part), src_function_name=MAIN, target_function_name=name)
    descriptor.default_function_name = next(iter(models))
    with tools.quiet():
        utils.save_multifunction(descriptor, str(merged))
    return utils.load_spec(str(merged)), merged / _DATA / "weights"


def _describe(spec: Any, job: _Job) -> None:
    """Write what a developer reads in Xcode, and what the check reads back."""
    plan, model = job.plan, job.spec
    emitter, depth = emitter_of(model), depth_text(plan.output, model)
    texts = {
        IMAGE: "The photo in RGB, upright, scaled to fill.",
        DEPTH: depth,
        **emitter.extras,
        COLORS: f"The depth painted with {plan.cmap}: near is its last color.",
    }
    description = spec.description
    for function in description.functions or [description]:
        for feature in (*function.input, *function.output):
            feature.shortDescription = texts[feature.name]
    metadata = description.metadata
    metadata.Clear()
    repo = model.hub_id or model.convert_from
    owner = "unknown" if repo is None else repo.split("/")[0]
    metadata.shortDescription = f"{model.name}: {depth} {emitter.note}".rstrip()
    metadata.author = f"{owner} (weights), mlx-depth (conversion)"
    metadata.license = model.license or "unknown: ask the authors of the weights"
    metadata.versionString = __version__
    metadata.userDefined.update(
        {
            "com.apple.coreml.model.preview.type": "depthEstimation",
            **{f"{METADATA}{key}": value for key, value in _facts(job).items()},
        }
    )


def _facts(job: _Job) -> dict[str, str]:
    plan, model = job.plan, job.spec
    emitter, max_depth = emitter_of(model), model.config.max_depth
    focal_length = emitter.focal_length(model.config) if plan.output == "metric" else None
    return {
        "attention": plan.attention,
        "colormap": plan.cmap or "",
        "compress": plan.compress or "",
        "depth_kind": model.depth_kind.value,
        "focal_length": "" if focal_length is None else f"{focal_length:g}",
        "layout": plan.layout,
        "max_depth": "" if max_depth is None else str(max_depth),
        "model": model.name,
        "note": emitter.note,
        "output": plan.output,
        "precision": plan.precision,
        "revision": job.revision or "",
        "source": job.source,
        "unit": "m" if plan.output == "metric" else "",
    }


def depth_text(output: str, spec: ModelSpec) -> str:
    """What the depth output means, in words."""
    emitter = emitter_of(spec)
    if emitter.raw_only:
        return emitter.raw_only
    if output == "normalized":
        return "Depth between 0 and 1 over the image, 1 = nearest."
    focal_length = emitter.focal_length(spec.config)
    if focal_length is not None:
        return (
            f"Depth in metres for a focal length of {focal_length:g} pixels of this image, larger = farther: multiply "
            f"by the focal length in pixels of this image / {focal_length:g}."
        )
    if spec.depth_kind is DepthKind.METRIC:
        limit = "" if spec.config.max_depth is None else f", at most {spec.config.max_depth:g}"
        return f"Depth in metres, larger = farther{limit}."
    return f"{spec.depth_kind.description.capitalize()}, comparable between the frames of a video."


def _save(path: Path, spec: Any, weights: Path) -> None:
    """A package's files. coremltools' own writer draws random identifiers and orders maps by their hash."""
    data = path / _DATA
    data.mkdir(parents=True)
    (data / "model.mlmodel").write_bytes(spec.SerializeToString(deterministic=True))
    shutil.copytree(weights, data / "weights")
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            _MODEL_ITEM: _item("model.mlmodel", "CoreML Model Specification"),
            _WEIGHTS_ITEM: _item("weights", "CoreML Model Weights"),
        },
        "rootModelIdentifier": _MODEL_ITEM,
    }
    (path / "Manifest.json").write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n")


def _item(name: str, description: str) -> dict[str, str]:
    author = "com.apple.CoreML"
    return {"author": author, "description": description, "name": name, "path": f"{author}/{name}"}
