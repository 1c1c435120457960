"""What a network and a model family are: the contract that every folder of ``models/`` keeps.

Photo → ``Processor`` → ``pixel_values`` → ``DepthNetwork`` → ``DepthOutputs`` → ``Family.postprocess`` → result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy.typing as npt

from mlx_depth.errors import OptionError
from mlx_depth.nn.resize import resize
from mlx_depth.processor import Processor, Reference, resize_depth
from mlx_depth.result import DepthKind
from mlx_depth.weights.rules import Rule

Size = tuple[int, int]
Shapes = Mapping[str, tuple[int, ...]]
Takes = Literal["image", "views", "video"]
PROMPT = "prompt_depth"  # the condition that is a depth prompt: (B, h, w), metres
VALID = 0.5  # above it a mask says that the depth is valid
_LEAST_LENGTH = 1e-12  # torch's, in ``functional.normalize``
_AXES: dict[Takes, str] = {"image": "(B, H, W, 3)", "views": "(B, V, H, W, 3)", "video": "(B, T, H, W, 3)"}


class DepthOutputs(NamedTuple):
    """What a network computes, at its own input size. Networks of views have V behind B, those of clips T.

    A new output is a field here, and each family's ``postprocess`` says what becomes of it: none is dropped silently.
    """

    depth: mx.array
    """``(B, H, W)``, in the kind and unit of the model."""
    confidence: mx.array | None = None
    """``(B, H, W)``, larger = surer."""
    sky: mx.array | None = None
    """``(B, H, W)``, 0..1, 1 = sky."""
    mask: mx.array | None = None
    """``(B, H, W)``, 0..1, above 0.5 = the depth there is valid."""
    normals: mx.array | None = None
    """``(B, H, W, 3)``, unit vectors in camera axes (x right, y down, z forward)."""
    points: mx.array | None = None
    """``(B, H, W, 3)``, in camera axes and the unit of the depth."""
    intrinsics: mx.array | None = None
    """``(B, 3, 3)``, in network pixels."""
    extrinsics: mx.array | None = None
    """``(B, 3, 4)``, world → camera, OpenCV axes."""
    rays: mx.array | None = None
    """``(B, h, w, 6)``, direction and origin in world axes."""
    ray_confidence: mx.array | None = None
    """``(B, h, w)``, larger = surer."""
    metric_depth: mx.array | None = None
    """``(B, H, W)``, of a second network that knows metres, for a camera whose focal length it names."""
    scale: mx.array | None = None
    """``(B,)``, one for all views: the factor by which depth and translations were brought to metres."""
    field_of_view: mx.array | None = None
    """``(B,)``, of the photo from left to right, in degrees."""
    gaussians: Mapping[str, mx.array] | None = None
    """3D Gaussians, by name of their property."""
    raw: Mapping[str, mx.array] | None = None
    """Of what other outputs are made, for a ``postprocess`` that makes them at the photo's size instead."""
    state: Mapping[str, mx.array] | None = None
    """What a network of clips wants back at its next call, as ``state=``."""

    def first_view(self) -> "DepthOutputs":
        """Of a network of views, those of the first, with the axes of a network of images."""
        whole = ("scale", "gaussians", "state")  # of all views together
        return DepthOutputs(**{name: x if name in whole else x[:, 0] for name, x in self.present().items()})

    def present(self) -> dict[str, Any]:
        """The outputs that there are, by name: a tree of arrays, which MLX can compile and evaluate."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class DepthNetwork(nn.Module):
    """Base of all networks: what the runtime may ask of one, beside calling it.

    A subclass says what it takes (``takes``, and ``conditions``: the names of keyword arrays beside the pixels, such as
    ``prompt_depth``, ``extrinsics`` or ``state``) and what ``multiple_of`` pixels each side has to be.
    """

    takes: ClassVar[Takes] = "image"
    conditions: ClassVar[tuple[str, ...]] = ()

    @property
    def multiple_of(self) -> int:
        """Both sides of the input are multiples of this many pixels: the patch size, where there are patches."""
        raise NotImplementedError

    @property
    def only_size(self) -> Size | None:
        """The one ``(height, width)`` of input that it takes; None: any multiples of ``multiple_of``."""
        return None

    @property
    def everything(self) -> Mapping[str, Any]:
        """Options with which it computes all that it can, where some outputs are made on request alone."""
        return {}

    def __call__(self, pixel_values: mx.array) -> DepthOutputs:
        """Compute depth; arrays in, arrays out, nothing is evaluated.

        Args:
            pixel_values: Normalized RGB in the axes of ``takes``, channels last.
        """
        raise NotImplementedError

    def prepare(self, size: Size) -> list[mx.array]:
        """What images of a size share, such as position tables: kept by the network, evaluated before it is called.

        Args:
            size: ``(height, width)`` in network pixels.
        """
        return []

    def largest_map(self, size: Size) -> int:
        """Values of the largest map that exists as a whole, for one image: the runtime bounds memory by it.

        Args:
            size: ``(height, width)`` in network pixels.
        """
        raise NotImplementedError

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ``OptionError`` unless pixel values of this shape can be taken: once, before every route."""
        axes = _AXES[self.takes]
        if len(shape) != axes.count(",") + 1 or shape[-1] != 3 or 0 in shape[:-3]:
            raise OptionError(f"pixel_values have shape {tuple(shape)}: pass {axes}, channels last")
        H, W = shape[-3:-1]
        if self.only_size not in (None, (H, W)):
            raise OptionError(
                f"pixel_values are {H}×{W}: this network takes {self.only_size[0]}×{self.only_size[1]} alone"
            )
        if not (H and W) or H % self.multiple_of or W % self.multiple_of:
            raise OptionError(f"pixel_values are {H}×{W}: make both sides multiples of {self.multiple_of}")


class NetworkConfig:
    """Base of a family's frozen config dataclass, which goes to config.json and back."""

    @property
    def depth_kind(self) -> DepthKind:
        """What the network's depth means."""
        raise NotImplementedError

    @property
    def max_depth(self) -> float | None:
        """The farthest distance that the network can give, in metres; None where there is none, or no metres."""
        return None

    def meaning(self, conditions: Mapping[str, npt.NDArray[Any]]) -> "Meaning":
        """What the depth of one photo means, given what came in beside its pixels, by name."""
        return Meaning(self.depth_kind, self.max_depth)


class Meaning(NamedTuple):
    """What the numbers of a depth map are."""

    kind: DepthKind
    max_depth: float | None  # metres that they cannot pass; None: none known, or no metres


@dataclass(frozen=True)
class Evidence:
    """What a checkpoint says of itself before its tensors are read."""

    shapes: Shapes  # source name → shape
    config: Mapping[str, Any] | None = None  # of the config.json beside it
    metadata: Mapping[str, Any] | None = None  # of the container, such as a GGUF file's

    @property
    def model_type(self) -> str | None:
        """What transformers calls the architecture; None where no config.json says so."""
        found = (self.config or {}).get("model_type")
        return None if found is None else str(found)


class Reading(NamedTuple):
    """The architecture of a checkpoint."""

    config: Any  # of the family's config type
    certain: bool = True  # False: the tensors are those of several models, and only the file's name can tell which
    whole: Any = None  # the config of the model that this is a part of; None: the file leaves nothing out


@dataclass(frozen=True)
class Dialect:
    """One way in which checkpoints of a family name their tensors."""

    rules: tuple[Rule, ...]
    owns: Callable[[Evidence], bool]  # whether a checkpoint is of this family and dialect
    read: Callable[[Evidence], Reading]  # how its network is built
    lost_axes: bool = False  # the container drops axes of length 1 in front


def owner(
    *tensors: str, without: tuple[str, ...] = (), model_types: tuple[str, ...] = ()
) -> Callable[[Evidence], bool]:
    """The usual decision for ``Dialect.owns``, by tensor names and config together.

    Args:
        tensors: Names that each such checkpoint has.
        without: Parts of names that only relatives have.
        model_types: What a config.json may say, where it names a ``model_type``; none given: it must name none.
    """

    def owns(evidence: Evidence) -> bool:
        return (
            (evidence.model_type is None or evidence.model_type in model_types)
            and all(name in evidence.shapes for name in tensors)
            and not any(part in name for part in without for name in evidence.shapes)
        )

    return owns


@dataclass(frozen=True)
class Photo:
    """What ``postprocess`` may know of the photo behind an output."""

    size: Size  # (height, width) of the original
    input_size: Size  # (height, width) that the network saw
    focal_length_px: float | None = None  # in pixels of the original, from EXIF or the caller
    focal_length_given: bool = False  # by the caller, who knows; EXIF's is rounded, and stays when a photo is cropped


class PhotoOutputs(NamedTuple):
    """One photo's outputs at its own size, not yet evaluated; the fields become those of ``DepthResult``."""

    depth: mx.array  # (H, W)
    confidence: mx.array | None = None  # (H, W)
    sky: mx.array | None = None  # (H, W)
    mask: mx.array | None = None  # (H, W), bool: where the depth is valid; elsewhere it is infinite
    normals: mx.array | None = None  # (H, W, 3), unit vectors in camera axes; 0 where the mask is False
    intrinsics: mx.array | None = None  # (3, 3), in pixels of the photo
    extrinsics: mx.array | None = None  # (3, 4)

    def present(self) -> dict[str, mx.array]:
        """The outputs that there are, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def to_photo(outputs: DepthOutputs, processor: Processor, photo: Photo) -> PhotoOutputs:
    """The usual ``postprocess``: maps back to the photo's size, intrinsics to its pixels, no depth outside the mask.

    Args:
        outputs: Of one image, B = 1.
        processor: Says how depth is resized; confidence, sky, mask and normals are resized bilinearly.
        photo: Size of the photo, and of the network's input.
    Returns:
        The outputs at the photo's size, float32.
    Raises:
        NotImplementedError: If the network has an output that this function would drop: its family needs its own.
    """
    known = ("state", *PhotoOutputs._fields)
    unknown = [name for name in outputs.present() if name not in known]
    if unknown:
        raise NotImplementedError(f"to_photo knows no {', '.join(unknown)}: give the family a postprocess of its own")

    def grown(x: mx.array | None) -> mx.array | None:
        return None if x is None else resize(x.astype(mx.float32)[..., None], photo.size, align_corners=True)[0, ..., 0]

    share = grown(outputs.mask)
    mask = None if share is None else share > VALID
    normals = outputs.normals
    if normals is not None:
        normals = resize(normals.astype(mx.float32), photo.size, align_corners=True)[0]
    depth = resize_depth(outputs.depth, photo.size, method=processor.restore)[0]
    return PhotoOutputs(
        depth=depth if mask is None else mx.where(mask, depth, mx.inf),
        confidence=grown(outputs.confidence),
        sky=grown(outputs.sky),
        mask=mask,
        normals=None if normals is None else unit_vectors(normals, mask),
        intrinsics=None if outputs.intrinsics is None else photo_intrinsics(outputs.intrinsics[0], photo),
        extrinsics=None if outputs.extrinsics is None else outputs.extrinsics[0].astype(mx.float32),
    )


def unit_vectors(x: mx.array, mask: mx.array | None = None) -> mx.array:
    """Vectors ``(…, 3)`` of length 1, float32; 0 stays 0, and so becomes what lies outside a mask ``(…)``."""
    x = x.astype(mx.float32)
    x = x / mx.maximum(mx.sqrt((x * x).sum(axis=-1, keepdims=True)), _LEAST_LENGTH)
    return x if mask is None else mx.where(mask[..., None], x, 0.0)


def photo_intrinsics(intrinsics: mx.array, photo: Photo) -> mx.array:
    """Intrinsics ``(3, 3)`` in network pixels → in pixels of the photo."""
    across, down = photo.size[1] / photo.input_size[1], photo.size[0] / photo.input_size[0]
    return intrinsics.astype(mx.float32) * mx.array([[across], [down], [1.0]])


@dataclass(frozen=True)
class Stage:
    """A place inside the network where two implementations are compared."""

    name: str
    module: str  # path of the module
    at: Literal["input", "output"] = "output"


def nothing(*_: Any) -> None:
    """For what a family does not have."""


@dataclass(frozen=True)
class Family:
    """One model family, as data and functions; see CONTRIBUTING.md for how to write one."""

    name: str
    config_type: type[NetworkConfig]
    network: Callable[[Any], DepthNetwork]  # config → network with lazy parameters
    processor: Processor  # where a checkpoint brings no preprocessor_config.json
    dialects: Mapping[str, Dialect]
    read_processor: Callable[[Mapping[str, Any]], Processor]  # preprocessor_config.json → processor
    follow: Callable[[Any, Processor, Reference], tuple[Any, Processor]]  # config, processor by a reference's rules
    published_name: Callable[[str], str | None] = nothing  # name of a file or folder → model of the registry
    postprocess: Callable[[Any, DepthOutputs, Processor, Photo], PhotoOutputs] = (  # the config comes first
        lambda config, outputs, processor, photo: to_photo(outputs, processor, photo)
    )
    photo_conditions: Callable[[Sequence[Photo]], Mapping[str, mx.array]] = lambda photos: {}  # what it is told of them
    read_first: Callable[[DepthOutputs], Any] = nothing  # outputs whose numbers postprocess looks at: evaluated before
    with_cameras: Callable[[Any, DepthOutputs], DepthOutputs] = lambda config, outputs: outputs  # what hangs on cameras
    options: Callable[[Any, Photo], Mapping[str, Any]] = (
        lambda config, photo: {}
    )  # of the network, hashable, for a photo
    no_depth: str = "the network's numbers are not finite: dtype='float32' may help"  # why a photo has none
    quantizable: Callable[[str, nn.Module], bool] = lambda path, module: isinstance(module, nn.Linear)
    stages: Callable[[Any], tuple[Stage, ...]] = lambda config: ()  # before the final depth, in the order of the data

    @property
    def takes(self) -> Takes:
        """What its networks take."""
        return getattr(self.network, "takes", "image")

    @property
    def conditions(self) -> tuple[str, ...]:
        """What its networks take beside the pixels."""
        return tuple(getattr(self.network, "conditions", ()))

    def detect(self, evidence: Evidence) -> str | None:
        """The dialect of a checkpoint; None where the family does not take it for its own."""
        return next((name for name, dialect in self.dialects.items() if dialect.owns(evidence)), None)
