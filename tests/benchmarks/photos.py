"""Folders of photos for the benchmarks: crops of the examples, each of its own size."""

from pathlib import Path

import numpy as np
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
ASPECTS = (2 / 3, 3 / 4, 9 / 16, 1, 4 / 3, 3 / 2)  # height / width


def write_photos(folder: Path, count: int, long_sides: tuple[int, int]) -> None:
    """Write JPEGs whose long side lies within the limits, in pixels; equal calls write equal photos."""
    random = np.random.RandomState(0)
    examples = [Image.open(path).convert("RGB") for path in sorted(EXAMPLES.glob("*.jpg"))]
    for number in range(count):
        aspect, side = ASPECTS[number % len(ASPECTS)], int(random.randint(long_sides[0], long_sides[1] + 1))
        width, height = (side, round(side * aspect)) if aspect <= 1 else (round(side / aspect), side)
        cropped = _crop(examples[number % len(examples)], aspect, random)
        cropped.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number:04}.jpg", quality=92)


def _crop(image: Image.Image, aspect: float, random: np.random.RandomState) -> Image.Image:
    """A part of the image with that height / width, somewhere in it."""
    width = min(image.width, image.height / aspect) * random.uniform(0.7, 1)
    height = width * aspect
    left, top = random.uniform(0, image.width - width), random.uniform(0, image.height - height)
    return image.crop((round(left), round(top), round(left + width), round(top + height)))
