"""A whole model family in a few lines, with a confidence and a camera: what a new family has to write, and no more."""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_depth.models.base import DepthNetwork, DepthOutputs, Dialect, Family, NetworkConfig, Reading, Stage, owner
from mlx_depth.models.dpt_image_processor import read_processor
from mlx_depth.processor import Processor
from mlx_depth.result import DepthKind
from mlx_depth.weights.rules import Rename


@dataclass(frozen=True)
class ToyConfig(NetworkConfig):
    width: int
    depth_kind = DepthKind.METRIC
    max_depth = 10.0


class Toy(DepthNetwork):
    multiple_of = 8

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.embed = nn.Conv2d(3, config.width, kernel_size=8, stride=8)
        self.head = nn.Linear(config.width, 2)

    def __call__(self, pixel_values: mx.array) -> DepthOutputs:
        self.check(pixel_values.shape)
        B, H, W, _ = pixel_values.shape
        maps = mx.sigmoid(self.head(nn.gelu(self.embed(pixel_values))).astype(mx.float32))
        grown = mx.repeat(mx.repeat(maps, 8, axis=1), 8, axis=2)  # (B, gh, gw, 2) → (B, H, W, 2)
        camera = mx.array([[W, 0.0, W / 2], [0.0, W, H / 2], [0.0, 0.0, 1.0]])
        pose = mx.concatenate([mx.eye(3), mx.ones((3, 1))], axis=1)
        return DepthOutputs(
            depth=10 * grown[..., 0],
            confidence=grown[..., 1],
            intrinsics=mx.broadcast_to(camera, (B, 3, 3)),
            extrinsics=mx.broadcast_to(pose, (B, 3, 4)),
        )

    def largest_map(self, size: tuple[int, int]) -> int:
        return size[0] * size[1] * 2


TOY = Family(
    name="toy",
    config_type=ToyConfig,
    network=Toy,
    processor=Processor(input_size=32, multiple_of=8),
    dialects={
        "original": Dialect(
            rules=(Rename("stem.{p}", "embed.{p}"), Rename("out.{p}", "head.{p}")),
            owns=owner("stem.weight", "out.weight", model_types=("toy",)),
            read=lambda evidence: Reading(ToyConfig(evidence.shapes["stem.weight"][0])),
        )
    },
    read_processor=read_processor,
    follow=lambda config, processor, reference: (config, processor),
    stages=lambda config: (Stage("embedding", "embed"),),
)
