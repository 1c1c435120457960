"""Any checkpoint to a folder in our own format, smaller if wished, and proved."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from mlx_depth.checkpoints import hub
from mlx_depth.checkpoints.checkpoint import (
    Checkpoint,
    expand_checkpoint,
    packable_layers,
    quantize_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from mlx_depth.errors import CheckpointError, OptionError
from mlx_depth.registry import ModelSpec
from mlx_depth.runtime.forward import resolve_dtype
from mlx_depth.weights.quantization import Quantization
from mlx_depth.weights.rules import check_complete
from mlx_depth_convert.opening import AS_IT_IS, Origin, SourceOptions, open_checkpoint
from mlx_depth_convert.report import Report
from mlx_depth_convert.verify import compare


@dataclass(frozen=True)
class Recipe:
    """Bits of most layers, and of those in the first and last blocks, which matter most."""

    bits: int
    edge_bits: int
    edge_blocks: int


RECIPES = {"mixed-4-8": Recipe(4, 8, 2), "mixed-4-6": Recipe(4, 6, 2), "mixed-6-8": Recipe(6, 8, 2)}


@dataclass(frozen=True)
class Conversion:
    """What a conversion made."""

    path: Path
    spec: ModelSpec
    skipped: tuple[str, ...]  # layers whose width the group size does not divide
    report: Report | None  # of the verification, where one was asked for
    url: str | None  # where it was uploaded


@dataclass(frozen=True)
class ConvertOptions:
    """How a checkpoint is stored, and what is done with it then: ``convert`` says what each option means."""

    model: str | None = None
    name: str | None = None
    license: str | None = None
    dtype: str | None = None
    quantize: int | None = None
    group_size: int = 64
    recipe: str | None = None
    verify: bool = False
    push_to_hub: str | None = None
    source: SourceOptions = AS_IT_IS

    def opening(self) -> dict[str, Any]:
        """The options of ``open_checkpoint``."""
        return {"model": self.model, **vars(self.source)}

    def __post_init__(self) -> None:
        if self.quantize is not None and self.recipe is not None:
            raise OptionError("--quantize and --recipe exclude each other: give one of them.")
        if self.recipe is not None and self.recipe not in RECIPES:
            raise OptionError(f"no recipe {self.recipe!r}: choose one of {', '.join(RECIPES)}.")
        Quantization(self.quantize if self.quantize is not None else 8, self.group_size)
        if self.push_to_hub is not None:
            hub.check_repo(self.push_to_hub)
        if self.dtype is not None:
            resolve_dtype(self.dtype)


def convert(
    source: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    name: str | None = None,
    license: str | None = None,
    dtype: str | None = None,
    quantize: int | None = None,
    group_size: int = 64,
    recipe: str | None = None,
    verify: bool = False,
    push_to_hub: str | None = None,
    source_options: SourceOptions = AS_IT_IS,
) -> Path:
    """Write a checkpoint as a folder that ``mlx_depth.load`` reads; one source always gives the same bytes.

    Args:
        source: Registry name, Hub repository ``owner/name[@revision]``, folder, or a ``.safetensors``, ``.pth``,
            ``.pt``, ``.bin``, ``.ckpt`` or ``.gguf`` file.
        out: The folder to make; it must not exist.
        model: A model of the registry with the same architecture, where the tensors alone do not tell it (V1, V2 and
            metric weights have the same ones); None: recognized.
        name: What to call the model; None: the registry's name for published weights, else that of the source.
        license: License of the weights, an SPDX identifier; None: the registry's for published weights, else that of
            the source's model card, or unknown.
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"`` for the floating-point tensors; None: as in the source,
            and float16 beside quantized layers. A quantized source is expanded to it.
        quantize: 8, 6 or 4 bits for the backbone's linear layers.
        group_size: Weights that share a scale: 32, 64 or 128.
        recipe: Name of a mix of bits from ``RECIPES``, instead of ``quantize``.
        verify: Compare the result with the source, stage by stage.
        push_to_hub: Repository ``owner/name`` to upload the folder to.
        source_options: Which file, part or range of the source is meant, where it does not tell by itself.
    Returns:
        ``out``.
    Raises:
        OptionError: If an argument cannot work, or ``out`` exists.
        ModelNotFoundError: If there is no such source, or the Hub cannot be reached.
        CheckpointError: If the source is damaged, unknown or not the named model, or the verification fails.
        SaveError: If ``out`` cannot be written.
    """
    options = ConvertOptions(
        model, name, license, dtype, quantize, group_size, recipe, verify, push_to_hub, source_options
    )
    done = convert_and_report(source, out, options)
    if done.report is not None and not done.report.passed:
        raise CheckpointError(
            f"{done.path} drifts from its source at {done.report.first_drift}: "
            "run mlx-depth verify for the table, or quantize less."
        )
    return done.path


def convert_and_report(
    source: str | Path, out: str | Path, options: ConvertOptions, *, progress: bool = False
) -> Conversion:
    """``convert`` with all that there is to say about the result.

    Args:
        source: As for ``convert``.
        out: As for ``convert``.
        options: Those of ``convert``.
        progress: Show progress bars on stderr.
    Returns:
        The conversion. A failed verification is in its report, and keeps the folder from being uploaded.
    """
    out = Path(out).expanduser()
    if out.exists():
        raise OptionError(f"{out} exists: choose another folder, or remove it first.")
    with open_checkpoint(source, **options.opening(), progress=progress) as (opened, origin):
        checkpoint = _labeled(opened, options)
        check_complete(checkpoint.family.network(checkpoint.spec.config), expand_checkpoint(checkpoint).weights)
        packed, skipped = _shrunk(checkpoint, options)
        target = resolve_dtype(options.dtype) if options.dtype is not None else None
        if packed.quantization is not None and checkpoint.quantization is None and target is None:
            target = mx.float16
        if packed is not checkpoint:
            checkpoint.weights.clear()  # or they would stay in memory once they are read
        _write(packed, origin, out, target, progress)
    report = _verified(out, source, options, progress) if options.verify else None
    passed = report is None or report.passed
    message = f"Convert {origin.id} with mlx-depth"
    repo = options.push_to_hub
    url = hub.upload_folder(out, repo, message=message) if repo is not None and passed else None
    return Conversion(out, packed.spec, tuple(skipped), report, url)


def _write(checkpoint: Checkpoint, origin: Origin, out: Path, dtype: mx.Dtype | None, progress: bool) -> None:
    facts: dict[str, Any] = {"id": origin.id, "revision": origin.revision, "sha256": origin.sha256()}
    if origin.backbone is not None:
        facts["backbone"] = {"source": origin.backbone.source, "sha256": origin.backbone.sha256()}
    with tqdm(total=len(checkpoint.weights), unit="tensor", disable=not progress) as bar:
        write_checkpoint(
            checkpoint,
            out,
            source=facts,
            card=_card(checkpoint, origin),
            dtype=dtype,
            release=True,
            on_tensor=lambda _: bar.update(),
        )


def _shrunk(checkpoint: Checkpoint, options: ConvertOptions) -> tuple[Checkpoint, list[str]]:
    """The checkpoint as it is to be stored, and the layers that were to be packed and cannot be."""
    if options.quantize is None and options.recipe is None:
        return (checkpoint if options.dtype is None else expand_checkpoint(checkpoint)), []
    if checkpoint.quantization is not None:
        raise OptionError(
            f"{checkpoint.spec.name} is quantized already: convert its float checkpoint, or expand it first with "
            "--dtype float32."
        )
    packable, skipped = packable_layers(checkpoint, options.group_size)
    if not packable and not skipped:
        raise OptionError(f"{checkpoint.spec.name} has no layers that are quantized: leave --quantize out.")
    if options.quantize is not None:
        quantization = Quantization(options.quantize, options.group_size)
    else:
        quantization = _mixed(RECIPES[str(options.recipe)], packable, options.group_size)
    return quantize_checkpoint(checkpoint, quantization), skipped


def _labeled(checkpoint: Checkpoint, options: ConvertOptions) -> Checkpoint:
    labels = {"name": options.name, "license": options.license}
    given: dict[str, Any] = {label: text for label, text in labels.items() if text is not None}
    return dataclasses.replace(checkpoint, spec=dataclasses.replace(checkpoint.spec, **given))


def _verified(out: Path, source: str | Path, options: ConvertOptions, progress: bool) -> Report:
    with open_checkpoint(source, **options.opening()) as (reference, origin):
        return compare(read_checkpoint(out), reference, model=out.name, against=origin.id, progress=progress)


def _mixed(recipe: Recipe, paths: list[str], group_size: int) -> Quantization:
    blocks = {path: int(number.group(1)) for path in paths if (number := re.search(r"\.(\d+)\.", path))}
    edge = max(blocks.values(), default=0) + 1 - recipe.edge_blocks
    at_edge = [path for path, block in blocks.items() if block < recipe.edge_blocks or block >= edge]
    return Quantization(recipe.bits, group_size, dict.fromkeys(sorted(at_edge), recipe.edge_bits))


def _card(checkpoint: Checkpoint, origin: Origin) -> str:
    """The folder's README.md, as the Hub shows it."""
    spec = checkpoint.spec
    front: dict[str, Any] = {
        "license": _hub_license(spec.license),
        "library_name": "mlx-depth",
        "pipeline_tag": "depth-estimation",
        "tags": "[mlx, depth-estimation]",
    }
    on_hub = [part.id for part in (origin, origin.backbone) if part is not None and part.on_hub]
    bases = tuple(on_hub) or checkpoint.base_model
    if bases:
        front["base_model"] = bases[0] if len(bases) == 1 else f"[{', '.join(bases)}]"
    lines = "\n".join(f"{key}: {value}" for key, value in front.items())
    revision = f" at {origin.revision}" if origin.revision else ""
    backbone = f" and the backbone `{origin.backbone.source}`" if origin.backbone is not None else ""
    return f"""---
{lines}
---
# {spec.name} for MLX

Converted from `{origin.id}`{revision}{backbone} with mlx-depth.

- Depth: {spec.depth_kind.description}
- Weights: {_precision(checkpoint.quantization)}
- License: {spec.license or "unknown, see the source"}{"" if spec.commercial else "; check it before commercial use"}

```python
import mlx_depth

result = mlx_depth.predict("photo.jpg", model="path/to/this/folder/")
result.save("depth.png")
```
"""


def _hub_license(license: str | None) -> str:
    """As the Hub names it, which knows single licenses alone."""
    return "other" if license is None or " " in license else license.lower()


def _precision(quantization: Quantization | None) -> str:
    if quantization is None:
        return "not quantized"
    mixed = sorted({quantization.bits, *quantization.layers.values()})
    bits = " and ".join(str(bits) for bits in mixed)
    return f"linear layers of the backbone in {bits} bits, groups of {quantization.group_size}"
