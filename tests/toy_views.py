"""A network of views that knows the scene: it reads from a photo's color which view it is, and gives truth.

Each call gives its views in a world and unit of their own, as networks do.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import scenes
import toy
from PIL import Image

from mlx_depth.geometry.alignment import Similarity, aligned
from mlx_depth.model import DepthModel
from mlx_depth.models.base import DepthNetwork, DepthOutputs, NetworkConfig
from mlx_depth.processor import Processor
from mlx_depth.registry import ModelSpec
from mlx_depth.result import DepthKind

SIZE = (24, 32)
PROCESSOR = Processor(input_size=32, multiple_of=8, policy="long_side", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True)
class KnownConfig(NetworkConfig):
    depth_kind = DepthKind.RELATIVE


FAMILY = replace(toy.TOY, name="toy_views", config_type=KnownConfig, processor=PROCESSOR)


class Known(DepthNetwork):
    """Gives what was rendered, moved by another similarity at each call."""

    takes = "views"
    conditions = ("extrinsics", "intrinsics")
    multiple_of = 8

    def __init__(self, truth: scenes.Rendered, *, same: bool = True):
        super().__init__()
        self._truth = truth
        self._same = same  # whether two windows see the same scene
        self._random = np.random.default_rng(0)
        self._moves: list[Similarity] = []

    @property
    def moves(self) -> list[Similarity]:
        return self._moves

    def __call__(
        self,
        pixel_values: mx.array,
        extrinsics: mx.array | None = None,
        intrinsics: mx.array | None = None,
        *,
        reference_view: str,
        gaussians: bool,
    ) -> DepthOutputs:
        views = [number_of(np.array(view)) for view in pixel_values[0]]
        move = similarity(self._random)
        self._moves.append(move)
        H, W = pixel_values.shape[2:4]
        top, left = (SIZE[0] - H) // 2, (SIZE[1] - W) // 2
        truth, shift = self._truth, np.array([[0, 0, left], [0, 0, top], [0, 0, 0]])
        sky = truth.sky[views] * (self._random.uniform(0.5, 2) - 1)  # there each call gives any depth
        depth = (move.scale * truth.depth[views] * (1 + sky))[:, top : top + H, left : left + W]
        if not self._same:
            depth = depth * self._random.uniform(0.3, 3, depth.shape)
        maps = {"confidence": truth.confidence + 20 * truth.sky, "sky": truth.sky}  # and is sure of it
        cut = {name: mx.array(x[views][:, top : top + H, left : left + W])[None] for name, x in maps.items()}
        return DepthOutputs(
            depth=mx.array(depth.astype(np.float32))[None],
            extrinsics=mx.array(aligned(truth.extrinsics[views], move).astype(np.float32))[None],
            intrinsics=mx.array((truth.intrinsics[views] - shift).astype(np.float32))[None],
            **cut,
        )

    def largest_map(self, size: tuple[int, int]) -> int:
        return size[0] * size[1]


def walk(views: int) -> scenes.Rendered:
    """The boxes, seen from a path that goes past them."""
    places = np.linspace(-1, 1, views)
    extrinsics = [scenes.look_at((1.2 * x, -0.3 * abs(x), 0.4 * x), (0.2 * x, 0.5, 4.0), 0.1 * x) for x in places]
    return scenes.render(np.repeat(scenes.intrinsics_of(SIZE)[None], views, axis=0), np.stack(extrinsics), SIZE)


def model(network: Known) -> DepthModel:
    """With the family ``toy_views``, which the test puts into ``FAMILIES``."""
    return DepthModel(ModelSpec("known", "toy_views", KnownConfig(), PROCESSOR, "MIT"), network, PROCESSOR, mx.float32)


def photos(folder: Path, views: int, size: tuple[int, int] = SIZE) -> list[Path]:
    """A file a view, of one color, which is its number."""
    paths = [folder / f"{view:04}.png" for view in range(views)]
    for view, path in enumerate(paths):
        Image.new("RGB", size[::-1], (view % 256, view // 256, 0)).save(path)
    return paths


def number_of(pixel_values: np.ndarray) -> int:
    red, green, _ = np.rint(pixel_values[0, 0] * 255).astype(int)
    return int(red + 256 * green)


def similarity(random: np.random.Generator) -> Similarity:
    Q, R = np.linalg.qr(random.normal(size=(3, 3)))
    Q = Q * np.sign(np.diag(R))
    return Similarity(Q * np.linalg.det(Q), random.normal(0, 3, 3), float(np.exp(random.normal(0, 0.7))))
