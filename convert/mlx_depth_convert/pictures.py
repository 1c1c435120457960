"""What everything is compared on where the user gives none: a picture, and distances."""

import numpy as np
import numpy.typing as npt

SIZE = (420, 560)
PROMPT_SIZE = (192, 256)  # of a phone's LiDAR


def generated_picture(size: tuple[int, int] = SIZE) -> npt.NDArray[np.uint8]:
    """Draw ramps, waves, edges and grain, in all three channels; the same each time.

    Args:
        size: ``(height, width)`` in pixels.
    Returns:
        RGB uint8 ``(height, width, 3)``.
    """
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]] / np.array(size).reshape(2, 1, 1)
    ramps = [rows, columns, 0.5 + 0.5 * np.sin(9 * rows + 7 * columns**2)]
    discs = [((rows - y) ** 2 + (columns - x) ** 2 < r**2) for y, x, r in ((0.6, 0.3, 0.2), (0.4, 0.7, 0.25))]
    grain = np.random.RandomState(0).standard_normal((*size, 3)) * 0.03
    picture = np.stack(ramps, axis=-1) * 0.6 + np.stack([*discs, ~discs[0]], axis=-1) * 0.3 + grain
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def generated_prompt(size: tuple[int, int] = PROMPT_SIZE) -> npt.NDArray[np.float32]:
    """Draw a floor that recedes, and a ball on it; the same each time.

    Args:
        size: ``(height, width)``.
    Returns:
        Distances ``(height, width)``, float32, metres, 0.8 to 4.
    """
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]] / np.array(size).reshape(2, 1, 1)
    floor = 4 - 3 * rows
    ball = (rows - 0.6) ** 2 + (columns - 0.4) ** 2 < 0.04
    metres: npt.NDArray[np.float32] = np.where(ball, 0.8 + 2 * (columns - 0.4) ** 2, floor).astype(np.float32)
    return metres
