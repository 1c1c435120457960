"""The picture that everything is compared on where the user gives none."""

import numpy as np
import numpy.typing as npt

SIZE = (420, 560)


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
