"""Backbones alone, as feature extractors: from a photo to the tokens of its patches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from mlx_depth.backbones import dinov3
from mlx_depth.backbones.dinov2 import LayerTokens
from mlx_depth.backbones.dinov3 import DINOv3, DINOv3Config
from mlx_depth.checkpoints.checkpoint import evaluated, read_config
from mlx_depth.checkpoints.resolve import resolve
from mlx_depth.errors import CheckpointError
from mlx_depth.io.image import ImageSource, load_image
from mlx_depth.processor import InputSize, Processor
from mlx_depth.runtime.forward import cores_for, resolve_dtype
from mlx_depth.runtime.process import computing
from mlx_depth.weights.config_values import check_against_shapes
from mlx_depth.weights.rules import apply, check_complete, to_mlx_layout
from mlx_depth.weights.safetensors_io import read_tensors


class Features(NamedTuple):
    """The tokens of a photo."""

    layers: tuple[LayerTokens, ...]
    """One a tapped layer, the shallowest first: ``patch_tokens`` (1, gh * gw, C) and ``cls_token`` (1, C)."""
    grid_size: tuple[int, int]
    """Patches ``(gh, gw)``; a patch is 16 network pixels wide."""


@dataclass(frozen=True, eq=False, repr=False)
class FeatureExtractor:
    """A backbone in memory.

    Attributes:
        backbone: Normalized pixel values (B, H, W, 3) → one ``LayerTokens`` a tapped layer.
        processor: How photos become pixel values.
        dtype: Number format that the backbone computes in.
    """

    backbone: DINOv3
    processor: Processor
    dtype: mx.Dtype

    @computing
    def __call__(self, image: ImageSource, *, input_size: InputSize | None = None) -> Features:
        """Compute the features of one photo.

        Args:
            image: As for ``DepthModel.predict``.
            input_size: Short side in network pixels, or an exact ``(height, width)`` in multiples of 16; None: 512.
        Raises:
            ImageError: If the image cannot be read.
            OptionError: If the input size cannot work.
        """
        pixel_values = self.processor(load_image(image).pixels, input_size=input_size).astype(self.dtype)
        _, H, W, _ = pixel_values.shape
        with cores_for((H, W)):
            layers = tuple(self.backbone(pixel_values))
            mx.eval(layers)
        patch = self.processor.multiple_of
        return Features(layers, (H // patch, W // patch))


def load_backbone(
    source: str | Path,
    *,
    out_layers: Sequence[int] | None = None,
    dtype: str | mx.Dtype | None = None,
    revision: str | None = None,
    progress: bool = True,
) -> FeatureExtractor:
    """Load a DINOv3 vision transformer without a head; download it first where that is needed.

    Args:
        source: A Hub repository such as ``"facebook/dinov3-vits16-pretrain-lvd1689m"`` (its license has to be accepted
            there once), a folder, or a ``.safetensors`` file in transformers' or in Meta's names.
        out_layers: Layers whose tokens are wanted, zero-based and rising; None: the last.
        dtype: As for ``load``.
        revision: As for ``load``.
        progress: As for ``load``.
    Returns:
        The feature extractor. Its tokens have gone through the last norm, as transformers' ``last_hidden_state``.
    Raises:
        ModelNotFoundError: If there is no such source, or it cannot be downloaded.
        CheckpointError: If it is no DINOv3 vision transformer, damaged, or not what its config.json says.

    Example:
        >>> backbone = mlx_depth.load_backbone("facebook/dinov3-vits16-pretrain-lvd1689m")
        >>> features = backbone("photo.jpg")
        >>> features.layers[-1].patch_tokens.shape, features.grid_size
        ((1, 1344, 384), (32, 42))
    """
    chosen = resolve_dtype(dtype)
    return _read(resolve(source, revision=revision, progress=progress).path, out_layers, chosen)


@computing
def _read(path: Path, out_layers: Sequence[int] | None, dtype: mx.Dtype) -> FeatureExtractor:
    tensors = read_tensors(path)
    config = _config(path, tensors)
    if out_layers is not None:
        config = replace(config, out_layers=tuple(out_layers))
    backbone = DINOv3(config)
    weights = to_mlx_layout(backbone, apply(dinov3.table_of(tensors), tensors))
    check_complete(backbone, weights)
    backbone.load_weights(list(evaluated(weights, dtype).items()))
    backbone.eval()
    return FeatureExtractor(backbone, Processor(input_size=512, multiple_of=config.patch_size), dtype)


def _config(path: Path, tensors: dict[str, mx.array]) -> DINOv3Config:
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    written = read_config(path)
    if written is not None and written.get("model_type") != dinov3.MODEL_TYPE:
        raise CheckpointError(
            f"{path} is no DINOv3 vision transformer, its config.json says model_type "
            f"{written.get('model_type')!r:.60}: name one, such as facebook/dinov3-vits16-pretrain-lvd1689m."
        )
    config = dinov3.read_config(shapes, written)
    check_against_shapes(config, shapes, path)
    return config
