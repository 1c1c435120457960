"""What a Core ML export can be asked for: the words of the options, and their check before any work."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_depth.errors import OptionError
from mlx_depth.io.colormaps import colormap_table
from mlx_depth.models.depth_anything.network import DepthAnythingConfig
from mlx_depth.registry import ModelSpec
from mlx_depth.result import DepthKind

Size = tuple[int, int]
SizeRequest = str | Size

# (height, width): the long side is 518, so that both sides stay near the pixel count of the training images.
PRESETS: dict[str, Size] = {
    "landscape": (392, 518),
    "portrait": (518, 392),
    "square": (518, 518),
    "wide": (294, 518),
    "tall": (518, 294),
}
ASPECTS = {"4:3": "landscape", "3:4": "portrait", "1:1": "square", "16:9": "wide", "9:16": "tall"}
SIZES = (*PRESETS, *ASPECTS)
DEFAULT_SIZES = ("landscape",)

PRECISIONS = ("float16", "float32")
ATTENTIONS = ("auto", "split", "batched", "sdpa")
OUTPUTS = ("normalized", "raw", "metric")
COMPRESSIONS = ("int8", "palette6", "palette8")
LAYOUTS = ("ane", "gpu")
TARGETS = {  # deployment target → the iOS release with the same specification
    "iOS17": "iOS17",
    "macOS14": "iOS17",
    "iOS18": "iOS18",
    "macOS15": "iOS18",
}

SUFFIX = ".mlpackage"
NOT_A_FOLDER = (".mlmodel", ".mlmodelc")  # Core ML's other forms: a folder named so would mislead
MAX_SIDE = 2058  # 147 patches: a float16 attention map of a square this size is 0.9 GB a head
SPLIT_MAX_HEADS, SPLIT_MAX_LAYERS = 12, 12  # base; split, a large model compiles five times longer


@dataclass(frozen=True)
class ExportOptions:
    """Checked options. ``output`` and ``attention`` are decided, ``sizes`` are pixels by function name."""

    sizes: dict[str, Size]
    precision: str
    target: str
    attention: str
    output: str
    colormap: str | None
    compress: str | None
    layout: str


def parse_size(request: SizeRequest, *, multiple_of: int) -> Size:
    """Read a preset's name, ``"HxW"`` or ``(height, width)``.

    Args:
        request: What the user wrote.
        multiple_of: The patch size in pixels.
    Returns:
        ``(height, width)`` in pixels.
    Raises:
        OptionError: If there is no such preset, or the sides do not fit.
    """
    size = _read_size(request)
    fitting = tuple(max(1, round(side / multiple_of)) * multiple_of for side in size)
    if size != fitting:
        raise OptionError(
            f"the size {size[0]}x{size[1]} is not made of multiples of {multiple_of}: "
            f"the nearest that is, is {fitting[0]}x{fitting[1]}."
        )
    if max(size) > MAX_SIDE:
        raise OptionError(f"the size {size[0]}x{size[1]} has a side above {MAX_SIDE} pixels: give a smaller one.")
    return size


def _read_size(request: SizeRequest) -> Size:
    if not isinstance(request, str):
        if len(request) != 2 or not all(isinstance(side, int) for side in request):
            raise OptionError(f"the size {request} is not (height, width): give two whole numbers.")
        return request
    if request in SIZES:
        return PRESETS[ASPECTS.get(request, request)]
    match = re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", request)
    if match is None:
        close = difflib.get_close_matches(request, SIZES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise OptionError(f"no size {request!r}: {hint}Give HEIGHTxWIDTH in pixels, or one of {', '.join(SIZES)}.")
    return int(match[1]), int(match[2])


def function_name(size: Size) -> str:
    """The name of a package's function for a size: the preset's, else ``size_HxW``."""
    presets = {preset_size: name for name, preset_size in PRESETS.items()}
    return presets.get(size, f"size_{size[0]}x{size[1]}")


def check_options(
    spec: ModelSpec,
    *,
    sizes: SizeRequest | Iterable[SizeRequest],
    precision: str,
    target: str | None,
    attention: str,
    output: str | None,
    colormap: str | None,
    compress: str | None,
    layout: str,
) -> ExportOptions:
    """Decide what is left open and refuse what cannot work; see ``export_coreml`` for the arguments."""
    if not isinstance(spec.config, DepthAnythingConfig):
        raise OptionError(f"{spec.name} is of the family {spec.family}, which Core ML export does not know yet.")
    _choose("precision", precision, PRECISIONS)
    _choose("attention", attention, ATTENTIONS)
    _choose("layout", layout, LAYOUTS)
    if compress is not None:
        _choose("compress", compress, COMPRESSIONS)
    if colormap is not None:
        colormap_table(colormap)
    functions = _functions(sizes, multiple_of=spec.config.backbone.patch_size)
    return ExportOptions(
        sizes=functions,
        precision=precision,
        target=_target(target, several=len(functions) > 1, sdpa=attention == "sdpa"),
        attention=_attention(attention, layout, spec.config),
        output=_output(output, spec),
        colormap=colormap,
        compress=compress,
        layout=layout,
    )


def _choose(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise OptionError(f"no {option} {value!r}: choose one of {', '.join(choices)}.")


def _functions(sizes: SizeRequest | Iterable[SizeRequest], *, multiple_of: int) -> dict[str, Size]:
    one = isinstance(sizes, str) or (isinstance(sizes, tuple) and all(isinstance(side, int) for side in sizes))
    requests: list[SizeRequest] = [sizes] if one else list(sizes)  # type: ignore[list-item,arg-type]
    if not requests:
        raise OptionError(f"no sizes are given: name one or more of {', '.join(SIZES)}, or HEIGHTxWIDTH.")
    parsed = [parse_size(request, multiple_of=multiple_of) for request in requests]
    repeated = [size for index, size in enumerate(parsed) if size in parsed[:index]]
    if repeated:
        raise OptionError(f"the size {repeated[0][0]}x{repeated[0][1]} is given twice: leave one out.")
    return {function_name(size): size for size in parsed}


def _target(target: str | None, *, several: bool, sdpa: bool) -> str:
    if target is None:
        return "iOS18" if several or sdpa else "iOS17"
    _choose("target", target, tuple(TARGETS))
    if TARGETS[target] == "iOS17" and (several or sdpa):
        what = "several sizes in one package" if several else "the attention operation (sdpa)"
        raise OptionError(f"{what} needs iOS18 or macOS15, not {target}: raise the target, or give up the former.")
    return TARGETS[target]


def _attention(attention: str, layout: str, config: DepthAnythingConfig) -> str:
    if attention == "split" and layout == "gpu":
        raise OptionError("attention split by head is for the layout 'ane': choose 'batched' or 'auto' for 'gpu'.")
    if attention != "auto":
        return attention
    backbone = config.backbone
    small = backbone.num_heads <= SPLIT_MAX_HEADS and backbone.num_layers <= SPLIT_MAX_LAYERS
    return "split" if small and layout == "ane" else "batched"


def _output(output: str | None, spec: ModelSpec) -> str:
    metric = spec.depth_kind is DepthKind.METRIC
    if output is None:
        return "metric" if metric else "normalized"
    _choose("output", output, OUTPUTS)
    if output == "metric" and not metric:
        raise OptionError(
            f"{spec.name} gives {spec.depth_kind.description}, not metres: choose output 'normalized' or 'raw', or a "
            "metric model such as depth-anything-v2-metric-indoor-small."
        )
    if output == "raw" and metric:
        raise OptionError(f"the raw output of {spec.name} is in metres: choose output 'metric'.")
    return output


def package_path(out: str | Path, name: str | None, spec: ModelSpec) -> Path:
    """Where the package goes: ``out`` itself where it ends in ``.mlpackage``, else in that folder.

    Xcode makes a Swift class of the package's base name, so that has to be a Swift identifier.

    Args:
        out: As for ``export_coreml``.
        name: As for ``export_coreml``.
        spec: The model, whose name is the default: ``depth-anything-v2-small`` gives ``DepthAnythingV2Small``.
    Returns:
        The path, free, in an existing folder or a new one.
    Raises:
        OptionError: If the name is no Swift identifier, is given twice or of another format, or the path exists.
    """
    out = Path(out).expanduser()
    if out.suffix.lower() in NOT_A_FOLDER:
        raise OptionError(f"{out} is not the name of a package: end it in {SUFFIX}, or give a folder.")
    if out.suffix == SUFFIX:
        if name is not None:
            raise OptionError(f"{out} names the package already: leave the name out, or give a folder.")
        name, folder = out.stem, out.parent
    else:
        name, folder = name or swift_name(spec.name), out
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise OptionError(
            f"{name!r} is not a Swift identifier, and Xcode makes a class of it: call it {swift_name(name)!r}, say."
        )
    path = folder / f"{name}{SUFFIX}"
    if path.exists():
        raise OptionError(f"{path} exists: choose another name, or remove it first.")
    obstacle = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    if not obstacle.is_dir():
        raise OptionError(f"{obstacle} is not a folder: choose another place for the package.")
    return path


def swift_name(text: str) -> str:
    """Words in upper camel case: ``my-model v2`` → ``MyModelV2``."""
    words = re.findall(r"[A-Za-z0-9]+", text.rsplit("/", 1)[-1].split("@")[0])
    name = "".join(word[0].upper() + word[1:] for word in words)
    return name if name and not name[0].isdigit() else f"Depth{name}"
