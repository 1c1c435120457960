"""What a Core ML export can be asked for: the words of the options, and their check before any work."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_depth.errors import OptionError, similar
from mlx_depth.io.colormaps import colormap_table
from mlx_depth.registry import ModelSpec
from mlx_depth.result import DepthKind
from mlx_depth_convert.coreml.emitters import emitter_of
from mlx_depth_convert.coreml.emitters.base import Plan, Size

SizeRequest = str | Size

LONG_SIDE = 518  # pixels at most, so that both sides stay near the pixel count of the training images
# Height and width in parts of the long side; for patches of 14 pixels 392x518, 518x392, 518x518, 294x518 and 518x294.
PRESETS: dict[str, tuple[float, float]] = {
    "landscape": (3 / 4, 1),
    "portrait": (1, 3 / 4),
    "square": (1, 1),
    "wide": (9 / 16, 1),
    "tall": (1, 9 / 16),
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

MAX_SIDE = 2058  # 147 patches: a float16 attention map of a square this size is 0.9 GB a head
FLOAT16_LIMIT = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class ExportOptions:
    """What ``export_coreml`` is asked for: that function says what each option means."""

    sizes: SizeRequest | Iterable[SizeRequest] = DEFAULT_SIZES
    precision: str = "float16"
    target: str | None = None
    attention: str = "auto"
    output: str | None = None
    cmap: str | None = None
    compress: str | None = None
    layout: str = "ane"


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
    size = _read_size(request, multiple_of)
    fitting = tuple(max(1, round(side / multiple_of)) * multiple_of for side in size)
    if size != fitting:
        raise OptionError(
            f"the size {size[0]}x{size[1]} is not made of multiples of {multiple_of}: "
            f"the nearest that is, is {fitting[0]}x{fitting[1]}."
        )
    if max(size) > MAX_SIDE:
        raise OptionError(f"the size {size[0]}x{size[1]} has a side above {MAX_SIDE} pixels: give a smaller one.")
    return size


def preset_size(name: str, *, multiple_of: int) -> Size:
    """The ``(height, width)`` of one of ``PRESETS`` in pixels; ``multiple_of`` as for ``parse_size``."""
    long_side = LONG_SIDE // multiple_of
    height, width = (round(part * long_side) * multiple_of for part in PRESETS[name])
    return height, width


def _read_size(request: SizeRequest, multiple_of: int) -> Size:
    if not isinstance(request, str):
        if len(request) != 2 or not all(isinstance(side, int) for side in request):
            raise OptionError(f"the size {request} is not (height, width): give two whole numbers.")
        return request
    if request in SIZES:
        return preset_size(ASPECTS.get(request, request), multiple_of=multiple_of)
    match = re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", request)
    if match is None:
        close = similar(request, SIZES)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise OptionError(f"no size {request!r}: {hint}Give HEIGHTxWIDTH in pixels, or one of {', '.join(SIZES)}.")
    return int(match[1]), int(match[2])


def function_name(size: Size, *, multiple_of: int) -> str:
    """The name of a package's function for a size: the preset's, else ``size_HxW``; ``multiple_of`` as above."""
    presets = {preset_size(name, multiple_of=multiple_of): name for name in PRESETS}
    return presets.get(size, f"size_{size[0]}x{size[1]}")


def check_options(spec: ModelSpec, options: ExportOptions) -> Plan:
    """Decide what is left open and refuse what cannot work.

    Args:
        spec: The model.
        options: As they were given.
    Returns:
        The options, decided.
    Raises:
        OptionError: If one cannot work, or the model's family has no emitter.
    """
    emitter = emitter_of(spec)
    _choose("precision", options.precision, PRECISIONS)
    _choose("attention", options.attention, ATTENTIONS)
    _choose("layout", options.layout, LAYOUTS)
    if options.compress is not None:
        _choose("compress", options.compress, COMPRESSIONS)
    if options.cmap is not None:
        colormap_table(options.cmap)
    if emitter.raw_only:
        _refuse_other_forms(spec, options)
    functions = _functions(options.sizes, multiple_of=emitter.multiple_of(spec.config))
    output = "raw" if emitter.raw_only else _output(options.output, spec)
    _check_range(spec, output, options.precision)
    return Plan(
        sizes=functions,
        precision=options.precision,
        target=_target(options.target, several=len(functions) > 1, sdpa=options.attention == "sdpa"),
        attention=_attention(options.attention, options.layout, splits=emitter.splits_attention(spec.config)),
        output=output,
        cmap=options.cmap,
        compress=options.compress,
        layout=options.layout,
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
    return {function_name(size, multiple_of=multiple_of): size for size in parsed}


def _target(target: str | None, *, several: bool, sdpa: bool) -> str:
    if target is None:
        return "iOS18" if several or sdpa else "iOS17"
    _choose("target", target, tuple(TARGETS))
    if TARGETS[target] == "iOS17" and (several or sdpa):
        what = "several sizes in one package" if several else "the attention operation (sdpa)"
        raise OptionError(f"{what} needs iOS18 or macOS15, not {target}: raise the target, or give up the former.")
    return TARGETS[target]


def _attention(attention: str, layout: str, *, splits: bool) -> str:
    if attention == "split" and layout == "gpu":
        raise OptionError("attention split by head is for the layout 'ane': choose 'batched' or 'auto' for 'gpu'.")
    if attention != "auto":
        return attention
    return "split" if splits and layout == "ane" else "batched"


def _refuse_other_forms(spec: ModelSpec, options: ExportOptions) -> None:
    if options.cmap is not None:
        raise OptionError(f"the depth of {spec.name} has no colors before an app has seen its mask: leave cmap out.")
    if options.output not in (None, "raw"):
        _choose("output", options.output, OUTPUTS)
        raise OptionError(
            f"a package of {spec.name} gives depth as the network does, before its shift is known: choose output 'raw' "
            "or leave it out, or choose a metric model such as depth-anything-v2-metric-indoor-small."
        )


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


def _check_range(spec: ModelSpec, output: str, precision: str) -> None:
    """A depth image is float16 whatever the precision; inside, float32 takes more."""
    max_depth = spec.config.max_depth
    if max_depth is None or max_depth <= FLOAT16_LIMIT or (output != "metric" and precision == "float32"):
        return
    advice = "choose precision 'float32'" if output != "metric" else "choose output 'normalized', precision 'float32'"
    raise OptionError(
        f"{spec.name} reaches {max_depth:g} m, and float16 ends at {FLOAT16_LIMIT:g}, as do depth images: {advice}."
    )
