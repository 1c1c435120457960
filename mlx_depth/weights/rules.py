"""The vocabulary of the weight maps: how a source checkpoint's tensor names become ours.

A table is a list of rules. Patterns are dotted names in which ``{name}`` stands for exactly one segment. A table is
total: each source tensor meets exactly one rule, each destination is made exactly once, else one error lists both.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_depth.errors import CheckpointError, printable

LISTED = 8  # names shown in an error before "and N more"


@dataclass(frozen=True)
class Rename:
    """One source tensor becomes one destination parameter."""

    source: str
    target: str


@dataclass(frozen=True)
class Split:
    """One source tensor, cut into equal parts along its first axis, becomes several parameters.

    A part whose target is None is left out, and has to be all zeros. A ``mask`` is another source tensor that
    multiplies this one where the checkpoint has it; it needs a ``Drop`` of its own.
    """

    source: str
    targets: tuple[str | None, ...]
    mask: str | None = None


@dataclass(frozen=True)
class Drop:
    """A source tensor that the network does not use, with the reason."""

    source: str
    reason: str


@dataclass(frozen=True)
class Tie:
    """Source tensors that are one and the same, and become one parameter; a file may name it once or several times."""

    source: str
    target: str


@dataclass(frozen=True)
class FoldNorm:
    """A convolution and the batch normalization behind it become one convolution with a bias; names are modules'."""

    convolution: str
    norm: str
    target: str
    eps: float = 1e-5  # PyTorch's own

    @property
    def sources(self) -> tuple[str, ...]:
        """Tensors that are taken; the convolution may have a bias, and the count of batches is of no use."""
        return *self.needed, f"{self.convolution}.bias", f"{self.norm}.num_batches_tracked"

    @property
    def needed(self) -> tuple[str, ...]:
        """Tensors without which there is nothing to fold: of the convolution, then of the norm."""
        parts = ("weight", "bias", "running_mean", "running_var")
        return f"{self.convolution}.weight", *(f"{self.norm}.{part}" for part in parts)


Rule = Rename | Split | Drop | Tie | FoldNorm


def prefixed(rules: Iterable[Rule], source: str, target: str) -> tuple[Rule, ...]:
    """Put ``source`` before every source pattern and ``target`` before every target."""

    def move(rule: Rule) -> Rule:
        if isinstance(rule, Drop):
            return Drop(source + rule.source, rule.reason)
        if isinstance(rule, FoldNorm):
            return FoldNorm(source + rule.convolution, source + rule.norm, target + rule.target, rule.eps)
        if isinstance(rule, Split):
            targets = tuple(None if name is None else target + name for name in rule.targets)
            return Split(source + rule.source, targets, None if rule.mask is None else source + rule.mask)
        return type(rule)(source + rule.source, target + rule.target)

    return tuple(move(rule) for rule in rules)


def apply(rules: Sequence[Rule], tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Rename, split, fold and drop source tensors by a table.

    Args:
        rules: The table; the order does not matter.
        tensors: Source name to array, in the source's own layout.
    Returns:
        Destination name to array, still in the source's layout.
    Raises:
        CheckpointError: If a tensor meets no rule, cannot be split evenly, is left out without being zero, differs from
            one that it has to equal, or lacks those that it is folded with.
        ValueError: If the table itself is at fault: two rules for one tensor, or one destination produced twice.
    """
    compiled = _compiled(rules)
    produced: dict[str, mx.array] = {}
    folds: dict[FoldNorm, dict[str, mx.array]] = {}
    unknown: list[str] = []
    for name in tensors:
        hits = [(match, rule) for pattern, rule in compiled if (match := pattern.fullmatch(name))]
        if len(hits) > 1:
            raise ValueError(f"two rules take {name!r}: {[rule for _, rule in hits]}")
        if not hits:
            unknown.append(name)
            continue
        match, rule = hits[0]
        if isinstance(rule, FoldNorm):
            folds.setdefault(_filled(rule, match.groupdict()), {})[name] = tensors[name]
        for target, part in _produce(rule, match.groupdict(), name, tensors):
            if target in produced and isinstance(rule, Tie):
                _check_same(name, part, produced[target])
            elif target in produced:
                raise ValueError(f"{target!r} is produced twice, the second time by {name!r}")
            produced[target] = part
    for fold, parts in folds.items():
        for target, part in _folded(fold, parts):
            if target in produced:
                raise ValueError(f"{target!r} is produced twice, the second time by {fold}")
            produced[target] = part
    if unknown:
        raise CheckpointError(
            f"the checkpoint holds tensors that this model does not know: {listed(unknown)}. "
            f"Check that it is this model's; mlx-depth convert --ignore '{unknown[0]:.100}' leaves a surplus one out."
        )
    return produced


def unknown_names(rules: Sequence[Rule], names: Iterable[str]) -> list[str]:
    """The names that meet no rule of a table."""
    compiled = _compiled(rules)
    return [name for name in names if not any(pattern.fullmatch(name) for pattern, _ in compiled)]


def _compiled(rules: Iterable[Rule]) -> list[tuple[re.Pattern[str], Rule]]:
    return [
        (_compile(source), rule)
        for rule in rules
        for source in (rule.sources if isinstance(rule, FoldNorm) else (rule.source,))
    ]


def _compile(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", pattern)
    return re.compile("".join(f"(?P<{p}>[^.]+)" if i % 2 else re.escape(p) for i, p in enumerate(parts)))


def _produce(
    rule: Rule, fields: dict[str, str], name: str, tensors: Mapping[str, mx.array]
) -> Iterator[tuple[str, mx.array]]:
    tensor = tensors[name]
    if isinstance(rule, (Rename, Tie)):
        yield rule.target.format(**fields), tensor
    elif isinstance(rule, Split):
        if rule.mask is not None and (mask := rule.mask.format(**fields)) in tensors:
            tensor = _masked(name, tensor, mask, tensors[mask])
        count = len(rule.targets)
        if tensor.ndim == 0 or tensor.shape[0] % count:
            raise CheckpointError(
                f"{name}: shape {tensor.shape} cannot be cut into {count} equal parts. Download the checkpoint again."
            )
        for number, (target, part) in enumerate(zip(rule.targets, mx.split(tensor, count), strict=True), start=1):
            if target is not None:
                yield target.format(**fields), part
            elif not (part == 0).all():
                raise CheckpointError(
                    f"{name}: part {number} of {count} is not zero, and this network has no place for it: "
                    "this is another architecture. Take the original checkpoint, or another model."
                )


def _masked(name: str, tensor: mx.array, mask_name: str, mask: mx.array) -> mx.array:
    if tensor.shape != mask.shape:
        raise CheckpointError(
            f"{mask_name} is {mask.shape}, but {name}, which it masks, {tensor.shape}. Download the checkpoint again."
        )
    return tensor * mask.astype(tensor.dtype)


def _filled(fold: FoldNorm, fields: Mapping[str, str]) -> FoldNorm:
    """One convolution's rule, of a rule for many."""
    convolution, norm, target = (name.format(**fields) for name in (fold.convolution, fold.norm, fold.target))
    return FoldNorm(convolution, norm, target, fold.eps)


def _folded(fold: FoldNorm, parts: Mapping[str, mx.array]) -> Iterator[tuple[str, mx.array]]:
    """The convolution's weight and bias, float32: in half precision the product would be rounded once more."""
    missing = [name for name in fold.needed if name not in parts]
    if missing:
        raise CheckpointError(f"the checkpoint lacks {listed(missing)}: take the original file.")
    own, *of_norm, of_convolution, _ = fold.sources
    weight = parts[own]
    vectors = {name: parts.get(name, mx.zeros(weight.shape[:1])) for name in (*of_norm, of_convolution)}
    odd = [name for name, x in vectors.items() if x.shape != weight.shape[:1]]
    odd += [name for name, x in {own: weight, **vectors}.items() if not mx.issubdtype(x.dtype, mx.floating)]
    if odd:
        raise CheckpointError(
            f"{own} has shape {weight.shape}, and {listed(odd)} no floating-point number for each of its channels: "
            "take the original checkpoint."
        )
    gain, offset, mean, variance, bias = (x.astype(mx.float32) for x in vectors.values())
    scale = gain / mx.sqrt(variance + fold.eps)
    yield f"{fold.target}.weight", weight.astype(mx.float32) * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    yield f"{fold.target}.bias", offset + (bias - mean) * scale


def _check_same(name: str, tensor: mx.array, other: mx.array) -> None:
    if tensor.shape != other.shape or not mx.array_equal(tensor, other, equal_nan=True):
        raise CheckpointError(
            f"{name} differs from the tensor that it has to equal, as the network has one for both: "
            "take the original checkpoint."
        )


def with_front_axes(network: nn.Module, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Give back the axes of length 1 in front that ggml drops when it rewrites a file.

    Args:
        network: The destination; its parameters tell how many axes there are.
        weights: Destination name to array.
    Returns:
        The same names, each array with as many axes as its parameter.
    """
    ranks = {name: len(shape) for name, shape in parameter_shapes(network).items()}
    return {
        name: array.reshape(*(1,) * (ranks[name] - array.ndim), *array.shape) if name in ranks else array
        for name, array in weights.items()
    }


def to_mlx_layout(network: nn.Module, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Bring weights from PyTorch's axis order to MLX's, by the type of the module that owns each.

    Args:
        network: The destination; only its module types are read.
        weights: Destination name to array in PyTorch's layout.
    Returns:
        The same names: ``Conv2d`` weights (O, I, h, w) → (O, h, w, I), ``ConvTranspose2d`` (I, O, h, w) → (O, h, w, I).
    """
    axes = {f"{path}.weight": order for path, module in network.named_modules() if (order := _axes(module))}
    return {
        name: array.transpose(axes[name]) if name in axes and array.ndim == 4 else array
        for name, array in weights.items()
    }


def to_torch_layout(network: nn.Module, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The way back of ``to_mlx_layout``."""
    axes = {f"{path}.weight": order for path, module in network.named_modules() if (order := _axes(module))}
    return {
        name: array.transpose([axes[name].index(axis) for axis in range(4)]) if name in axes else array
        for name, array in weights.items()
    }


def _axes(module: nn.Module) -> tuple[int, ...] | None:
    if isinstance(module, nn.Conv2d):
        return (0, 2, 3, 1)
    if isinstance(module, nn.ConvTranspose2d):
        return (1, 2, 3, 0)
    return None


def check_complete(network: nn.Module, weights: Mapping[str, mx.array]) -> None:
    """Raise one ``CheckpointError`` with every missing, unexpected and misshapen tensor, or return."""
    wanted = parameter_shapes(network)
    missing = [name for name in wanted if name not in weights]
    unexpected = [name for name in weights if name not in wanted]
    misshapen = [
        f"{name} is {weights[name].shape}, not {shape}"
        for name, shape in wanted.items()
        if name in weights and weights[name].shape != shape
    ]
    faults = {"missing": missing, "not expected": unexpected, "wrong shape": misshapen}
    if any(faults.values()):
        text = "; ".join(f"{what}: {listed(names)}" for what, names in faults.items() if names)
        raise CheckpointError(
            f"the checkpoint does not fit the model ({text}). "
            "Check that its config.json belongs to these weights, or download it again."
        )


def parameter_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name to shape of every parameter; nothing is evaluated."""
    parameters = cast(list[tuple[str, mx.array]], tree_flatten(network.parameters()))
    return {name: array.shape for name, array in parameters}


def listed(names: Iterable[str]) -> str:
    """Name the first few, printable, and count the rest, for an error message."""
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(printable, names[:LISTED])) + more
