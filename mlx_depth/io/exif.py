"""EXIF: how an image is turned, and its focal length."""

import math
from typing import Any

from PIL import ExifTags, Image

from mlx_depth.io.damage import DECODER_ERRORS

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_FILM_DIAGONAL_MM = math.hypot(36, 24)
# Lenses on sale end at 3000 mm; broken cameras write 4,293 to 65,535 (exiftool.org/forum, topic 3572).
_FILM_FOCAL_MM = (1.0, 3000.0)
# FocalPlaneResolutionUnit; EXIF 2.32 names inch and centimetre, cameras also write millimetre and micrometre.
_UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where it is absent, unreadable or out of range."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except DECODER_ERRORS:
        return 1
    return int(value) if isinstance(value, int) and value in TURNS else 1


def focal_length_px_of(image: Image.Image) -> float | None:
    """From the 35 mm equivalent, else from the focal length and the resolution of the sensor.

    The equivalent compares the diagonal with that of 36 x 24 mm film (CIPA DCG-001; Apple's Depth Pro reads
    it so too) and therefore holds for any aspect ratio, turned or not.
    """
    try:
        exif = image.getexif().get_ifd(ExifTags.IFD.Exif)
    except DECODER_ERRORS:
        return None
    per_film_mm = math.hypot(image.width, image.height) / _FILM_DIAGONAL_MM
    shortest, longest = (limit * per_film_mm for limit in _FILM_FOCAL_MM)
    film_mm = _positive(exif.get(ExifTags.Base.FocalLengthIn35mmFilm))
    from_film = None if film_mm is None else film_mm * per_film_mm
    for focal_length_px in (from_film, _focal_from_sensor(exif, image.size)):
        if focal_length_px is not None and shortest <= focal_length_px <= longest:
            return focal_length_px
    return None


def _focal_from_sensor(exif: dict[int, Any], size: tuple[int, int]) -> float | None:
    focal_mm = _positive(exif.get(ExifTags.Base.FocalLength))
    resolution = _positive(exif.get(ExifTags.Base.FocalPlaneXResolution))
    unit = _positive(exif.get(ExifTags.Base.FocalPlaneResolutionUnit, 2))
    if focal_mm is None or resolution is None or unit not in _UNIT_MM:
        return None
    # The resolution belongs to the picture as it was taken; editors shrink the picture and leave these tags.
    taken = [_positive(exif.get(tag)) for tag in (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)]
    shrunk = max(size) / max(side for side in taken if side) if all(taken) else 1.0
    return focal_mm * resolution / _UNIT_MM[int(unit)] * shrunk


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ArithmeticError):
        return None
    return number if math.isfinite(number) and number > 0 else None
