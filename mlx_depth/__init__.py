"""Monocular depth on Apple silicon in pure MLX."""

import warnings

from mlx_depth.errors import OptionError

try:
    from mlx_depth.linux_cpu.openblas import load_openblas

    load_openblas()  # before anything imports mlx.core
except ModuleNotFoundError:  # linux_cpu may be left out
    pass
except OptionError as error:  # a wrong path costs speed alone
    warnings.warn(str(error), stacklevel=2)

from mlx_depth.errors import (
    CheckpointError,
    ImageError,
    MlxDepthError,
    ModelNotFoundError,
    OptionError,
    SaveError,
)
from mlx_depth.features import FeatureExtractor, load_backbone
from mlx_depth.gaussians import Gaussians
from mlx_depth.geometry.point_filter import PointFilter
from mlx_depth.io.colormaps import COLORMAPS
from mlx_depth.io.image import ImageInfo, LoadedImage, load_image
from mlx_depth.model import DepthModel
from mlx_depth.predictor import load, predict
from mlx_depth.processor import Processor
from mlx_depth.registry import ModelSpec, find_model, list_models
from mlx_depth.result import Camera, DepthKind, DepthResult
from mlx_depth.scene import SceneResult
from mlx_depth.sequence import merge_scenes
from mlx_depth.single_view import to_scene
from mlx_depth.version import __version__
from mlx_depth.weights.quantization import Quantization

__all__ = [
    "COLORMAPS",
    "Camera",
    "CheckpointError",
    "DepthKind",
    "DepthModel",
    "DepthResult",
    "FeatureExtractor",
    "Gaussians",
    "ImageError",
    "ImageInfo",
    "LoadedImage",
    "MlxDepthError",
    "ModelNotFoundError",
    "ModelSpec",
    "OptionError",
    "PointFilter",
    "Processor",
    "Quantization",
    "SaveError",
    "SceneResult",
    "__version__",
    "find_model",
    "list_models",
    "load",
    "load_backbone",
    "load_image",
    "merge_scenes",
    "predict",
    "to_scene",
]
