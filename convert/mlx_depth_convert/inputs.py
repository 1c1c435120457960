"""What two networks are compared on: photos, or generated pictures, in the axes that the network takes."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_depth.errors import OptionError
from mlx_depth.io.image import ImageSource, load_image
from mlx_depth.models.base import PROMPT, DepthNetwork, Takes
from mlx_depth.processor import InputSize, Processor
from mlx_depth_convert.pictures import generated_picture, generated_prompt

_SHIFT = 24  # columns between generated views


def generated_conditions(network: DepthNetwork, batch: int) -> dict[str, mx.array]:
    """What goes beside the pixels of any picture: ``generated_prompt`` for networks that take a prompt, (B, h, w)."""
    if PROMPT not in network.conditions:
        return {}
    return {PROMPT: mx.array(np.stack([generated_prompt()] * batch))}


@dataclass(frozen=True)
class Inputs:
    """How pictures become pixel values.

    Attributes:
        processor: Of the model.
        takes: What the network takes.
        views: Pictures that it sees at once.
        input_size: As for ``DepthModel.predict``; None: the model's own, or less where ``most_pixels`` bounds it.
        most_pixels: Of all pictures that it sees at once; None: any number.
    """

    processor: Processor
    takes: Takes
    views: int = 1
    input_size: InputSize | None = None
    most_pixels: int | None = None

    def __post_init__(self) -> None:
        if type(self.views) is not int or self.views < 1:
            raise OptionError(f"views is {self.views!r:.40}: give 1 or more.")
        if self.takes == "video" or (self.takes == "image" and self.views > 1):
            raise OptionError(f"a network that takes one {self.takes} sees no {self.views} views: leave views out.")

    def of(self, images: Iterable[ImageSource] = ()) -> Iterator[tuple[str, mx.array]]:
        """Names and pixel values, ``(1, H, W, 3)`` or ``(1, views, H, W, 3)``; of no images, of generated ones.

        Raises:
            ImageError: If one cannot be read.
            OptionError: If they do not make whole scenes, or are too large or of different sizes.
        """
        sources = list(images)
        if not sources:
            picture = generated_picture()
            pictures = [np.roll(picture, _SHIFT * view, axis=1) for view in range(self.views)]
            yield "generated picture", self._pixel_values(pictures)
            return
        if len(sources) % self.views:
            raise OptionError(f"{len(sources)} photos do not make scenes of {self.views} views: give a multiple.")
        for start in range(0, len(sources), self.views):
            scene = sources[start : start + self.views]
            loaded = [load_image(source) for source in scene]
            names = " + ".join(str(image.info.source) for image in loaded)
            yield names, self._pixel_values([image.pixels for image in loaded])

    def _pixel_values(self, pictures: list[np.ndarray]) -> mx.array:
        size = self.input_size
        if size is None and self._largest_side is not None:
            size = min(self.processor.input_size, self._largest_side)
        arrays = [self.processor(picture, input_size=size) for picture in pictures]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise OptionError("the views of a scene have one size, and these differ: name it (input_size=(H, W)).")
        pixel_values = mx.concatenate(arrays)
        if self.most_pixels is not None and pixel_values.size // 3 > self.most_pixels:
            raise OptionError(
                f"beyond {self.most_pixels:,} pixels the reference draws some at random, and its numbers are others "
                f"each time: give an input size of {self._largest_side} or less."
            )
        return pixel_values[None] if self.takes == "views" else pixel_values

    @property
    def _largest_side(self) -> int | None:
        """Of square pictures that are few enough pixels."""
        if self.most_pixels is None:
            return None
        multiple = self.processor.multiple_of
        return math.isqrt(self.most_pixels // self.views) // multiple * multiple
