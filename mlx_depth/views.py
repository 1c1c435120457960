"""The photos of one scene as one network input: a common size, and cameras in its pixels."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError

Offset = tuple[int, int]
"""``(top, left)`` of a crop, in network pixels."""

Floats = npt.NDArray[np.floating]


def unify(views: Sequence[mx.array], size: tuple[int, int] | None = None) -> tuple[mx.array, tuple[Offset, ...]]:
    """Crop views of different sizes, around their centers, to the smallest height and the smallest width.

    Args:
        views: Pixel values of each photo, ``(1, h, w, C)``, as ``Processor`` gives them; one type, any sizes.
        size: Crop to this ``(height, width)`` instead, which none may fall short of.
    Returns:
        The batch, ``(1, V, H, W, C)``; and each crop's ``(top, left)``: row i of its view is row ``top + i`` of
        what came in.
    Raises:
        OptionError: If there is no view, one is not ``(1, h, w, C)``, or one is smaller than ``size``.

    ``_unify_batch_shapes`` of Depth Anything 3's ``input_processor.py``. An odd border is larger at the end; upstream
    rounds it in two ways (torchvision's for pixels), but sizes in whole patches of 14 never leave one.
    """
    shapes = [view.shape for view in views]
    if not shapes or any(len(shape) != 4 or shape[0] != 1 or shape[3] != shapes[0][3] for shape in shapes):
        raise OptionError(f"views are pixel values (1, h, w, C) of one or more photos, not of shapes {shapes}.")
    smallest = (min(shape[1] for shape in shapes), min(shape[2] for shape in shapes))
    height, width = size or smallest
    if height > smallest[0] or width > smallest[1]:
        raise OptionError(f"a view of {smallest} pixels does not hold {(height, width)}: give one input_size (H, W).")
    offsets = tuple(((shape[1] - height) // 2, (shape[2] - width) // 2) for shape in shapes)
    crops = (view[:, top : top + height, left : left + width] for view, (top, left) in zip(views, offsets, strict=True))
    return mx.stack(list(crops), axis=1), offsets


def intrinsics_to_network(
    intrinsics: Floats, image_size: tuple[int, int], network_size: tuple[int, int], *, offset: Offset = (0, 0)
) -> Floats:
    """Intrinsics of a photo, for what the network sees of it.

    Args:
        intrinsics: ``(..., 3, 3)``, in pixels of the photo.
        image_size: ``(height, width)`` of the photo in pixels.
        network_size: ``(height, width)`` of the resized photo, before any crop.
        offset: ``(top, left)`` of the crop, from ``unify``.
    Returns:
        ``(..., 3, 3)``, in pixels of the crop; the float type of ``intrinsics``.
    Raises:
        OptionError: If ``intrinsics`` has another shape, or a size is below 1.

    ``_resize_ixt`` of Depth Anything 3's ``input_processor.py``: rows are scaled, which leaves the photo's corner in
    place, not the center of its first pixel.
    """
    scaled = _row_scaled(intrinsics, image_size, network_size)
    scaled[..., :2, 2] -= offset[::-1]
    return scaled


def intrinsics_to_photo(
    intrinsics: Floats, image_size: tuple[int, int], network_size: tuple[int, int], *, offset: Offset = (0, 0)
) -> Floats:
    """Intrinsics of what the network saw, for the whole photo: undoes ``intrinsics_to_network``.

    Args:
        intrinsics: ``(..., 3, 3)``, in pixels of the crop.
        image_size: As for ``intrinsics_to_network``.
        network_size: As for ``intrinsics_to_network``.
        offset: As for ``intrinsics_to_network``.
    Returns:
        ``(..., 3, 3)``, in pixels of the photo; the float type of ``intrinsics``.
    Raises:
        OptionError: As for ``intrinsics_to_network``.
    """
    whole = _checked(intrinsics)
    whole[..., :2, 2] += offset[::-1]
    return _row_scaled(whole, network_size, image_size)


def _row_scaled(intrinsics: Floats, size: tuple[int, int], new_size: tuple[int, int]) -> Floats:
    scaled = _checked(intrinsics)
    if min(*size, *new_size) < 1:
        raise OptionError(f"cannot scale intrinsics from {size} to {new_size} pixels: give sides of at least 1.")
    scaled[..., 0, :] *= new_size[1] / size[1]
    scaled[..., 1, :] *= new_size[0] / size[0]
    return scaled


def _checked(intrinsics: Floats) -> Floats:
    """A copy in floats."""
    copy = np.array(intrinsics, np.result_type(intrinsics, np.float32))
    if copy.shape[-2:] != (3, 3):
        raise OptionError(f"intrinsics are (..., 3, 3), not {copy.shape}: give one matrix for each photo.")
    return copy
