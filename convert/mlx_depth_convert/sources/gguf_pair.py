"""depth-anything.cpp's nested model: two GGUF files, one for the views and one that knows metres, read as one.

Neither file names the other. The program is given both; here they lie side by side and differ in one word of their
names: ``depth-anything-nested-anyview.gguf`` and ``depth-anything-nested-metric.gguf``.
"""

from pathlib import Path
from typing import Literal

from mlx_depth.errors import CheckpointError
from mlx_depth.weights.choose import other_half
from mlx_depth.weights.gguf_metadata import PREFIX
from mlx_depth_convert.sources import Part, Source, gguf

Half = Literal["anyview", "metric"]
_CHECKPOINT = f"{PREFIX}checkpoint_name"  # the exporter ends it with the half
_METRIC_START, _ANY_VIEW_START = "m_vit.", "vit."


def read(path: Path) -> Source:
    """``gguf.read``; of one half of a nested model, both.

    Args:
        path: A GGUF file.
    Returns:
        The tensors and metadata of the file or the pair, whose names do not meet.
    Raises:
        CheckpointError: As ``gguf.read``, or if the other half is missing or another model's.
    """
    source = gguf.read(path)
    half = _half(source)
    if half is None:
        return source
    name = other_half(path.name)
    wanted: Half = "anyview" if half == "metric" else "metric"
    if name is None:
        raise CheckpointError(
            f"{path} is the {half} half of a nested model: name it and the {wanted} half …-{half}.gguf and "
            f"…-{wanted}.gguf, and put them side by side."
        )
    other = path.with_name(name)
    if not other.exists():
        raise CheckpointError(f"{path} is the {half} half of a nested model: put the {wanted} half, {name}, beside it.")
    second = gguf.read(other)
    if _half(second) != wanted or _model(second) != _model(source):
        raise CheckpointError(
            f"{path} and {other} are no pair: they say {_name(source)!r:.60} and {_name(second)!r:.60}. "
            f"Put the {wanted} half of the same model there."
        )
    tensors = {**source.parts[""].tensors, **second.parts[""].tensors}
    return Source({"": Part(tensors)}, {**second.metadata, **source.metadata}, (other,))


def _half(source: Source) -> Half | None:
    """Which half of a nested model a file is; None for one that is whole."""
    names = source.parts[""].tensors
    if any(name.startswith(_METRIC_START) for name in names):
        return None if any(name.startswith(_ANY_VIEW_START) for name in names) else "metric"
    return "anyview" if _name(source).endswith("-anyview") else None


def _name(source: Source) -> str:
    return str(source.metadata.get(_CHECKPOINT))


def _model(source: Source) -> str:
    return _name(source).removesuffix("-anyview").removesuffix("-metric")
