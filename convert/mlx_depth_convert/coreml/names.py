"""What an app sees of a package: the names of its images and arrays, and of its function."""

from collections.abc import Sequence

IMAGE, DEPTH, CONFIDENCE, SKY, COLORS = "image", "depth", "confidence", "sky", "colors"
POINTS, MASK, NORMALS, SCALE = "points", "mask", "normals", "scale"
MAIN = "main"  # of a package with one size


def is_image(shape: Sequence[int]) -> bool:
    """Whether an output of this shape is a gray image: a map of one channel, ``(1, 1, H, W)``."""
    return len(shape) == 4 and shape[1] == 1
