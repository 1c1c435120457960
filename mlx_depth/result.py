"""What a prediction returns: a depth map that knows its kind, its unit and where it came from."""

import base64
import dataclasses
import enum
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError

_THUMBNAIL = 512  # longest side of a notebook picture, in pixels


class DepthKind(str, enum.Enum):
    """What the numbers of a depth map mean; equal to its own name in lower case, as files store it."""

    RELATIVE_INVERSE = "relative_inverse"
    """Unitless, larger = nearer, unknown scale and shift (Depth Anything V1 and V2, MiDaS)."""
    RELATIVE = "relative"
    """Unitless, larger = farther, unknown scale (Depth Anything 3)."""
    METRIC = "metric"
    """Metres, larger = farther."""

    @property
    def unit(self) -> str:
        """``"m"`` for metric depth, else the empty string."""
        return "m" if self is DepthKind.METRIC else ""

    @property
    def larger_is_nearer(self) -> bool:
        return self is DepthKind.RELATIVE_INVERSE

    @property
    def description(self) -> str:
        """Kind, unit and direction in words."""
        name = self.value.replace("_", " ")
        unit = "metres" if self.unit else "unitless"
        return f"{name} depth ({unit}, larger = {'nearer' if self.larger_is_nearer else 'farther'})"


@dataclasses.dataclass(frozen=True, eq=False)
class Camera:
    """The camera that a model estimated, or was given.

    Attributes:
        intrinsics: ``(3, 3)``, in pixels of the original image, float.
        extrinsics: ``(3, 4)``, world → camera, OpenCV axes (x right, y down, z forward), float; the
            translation has the unit of the depth that the model gave.
    """

    intrinsics: npt.NDArray[np.floating]
    extrinsics: npt.NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        _check_matrix("intrinsics", self.intrinsics, (3, 3))
        if self.extrinsics is not None:
            _check_matrix("extrinsics", self.extrinsics, (3, 4))

    @property
    def focal_length_px(self) -> float:
        """Mean of the horizontal and the vertical focal length, in pixels of the original image."""
        return float(self.intrinsics[0, 0] + self.intrinsics[1, 1]) / 2


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DepthResult:
    """One depth map, at the size of the original image.

    Attributes:
        depth: ``(H, W)``, float32, in the unit of ``kind``; a pixel that is not finite has no depth.
        kind: What the numbers mean.
        model: Name of the model.
        image_size: ``(height, width)`` of the original image, after its EXIF turn.
        input_size: ``(height, width)`` that the network saw, in pixels.
        image: The photo, RGB ``(H, W, 3)``, uint8.
        confidence: ``(H, W)``, float32, larger = surer.
        sky: ``(H, W)``, float32, 0..1, 1 = sky.
        camera: The estimated or given camera.
        focal_length_px: From the photo's EXIF, in pixels of the original image.
        max_depth: The farthest distance that the depth can hold, in metres (metric depth only).
        revision: Commit or version of the weights.
        dtype: Number format that the network computed in.
        license: License of the weights.
        source: The image's path or URL, ``"<array>"`` or the like.
    """

    depth: npt.NDArray[np.float32]
    kind: DepthKind
    _: dataclasses.KW_ONLY
    model: str
    image_size: tuple[int, int]
    input_size: tuple[int, int]
    image: npt.NDArray[np.uint8] | None = None
    confidence: npt.NDArray[np.float32] | None = None
    sky: npt.NDArray[np.float32] | None = None
    camera: Camera | None = None
    focal_length_px: float | None = None
    max_depth: float | None = None
    revision: str | None = None
    dtype: str = "float32"
    license: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        size = tuple(self.image_size)
        _check_array("depth", self.depth, size, np.float32)
        if self.image is not None:
            _check_array("image", self.image, (*size, 3), np.uint8)
        for name, array in (("confidence", self.confidence), ("sky", self.sky)):
            if array is not None:
                _check_array(name, array, size, np.float32)
        for name, number in (("focal_length_px", self.focal_length_px), ("max_depth", self.max_depth)):
            if number is not None:
                _check_positive(name, number)
        if self.max_depth is not None and self.kind is not DepthKind.METRIC:
            raise OptionError(f"max_depth is in metres, but the depth is {self.kind.value}: leave it out.")

    @property
    def unit(self) -> str:
        """``"m"`` for metric depth, else the empty string."""
        return self.kind.unit

    @property
    def depth_range(self) -> tuple[float, float] | None:
        """Smallest and largest finite depth; None where no pixel is finite."""
        finite = self.depth[np.isfinite(self.depth)]
        return (float(finite.min()), float(finite.max())) if finite.size else None

    def normalized(self, *, limits: tuple[float, float] | None = None) -> npt.NDArray[np.float32]:
        """Bring the depth to 0..1 by an affine map, 1 = nearest whatever the kind.

        Args:
            limits: The ``(smallest, largest)`` depth to spread over 0..1, in the unit of the depth; beyond
                them it is clipped. Default: ``depth_range``. Give all frames of a video the same limits.
        Returns:
            ``(H, W)``, float32, 0..1. A constant depth gives zeros; infinities go to their end, NaN to 0.
        Raises:
            OptionError: If the limits are not finite and rising.

        Relative inverse depth: same numbers as upstream ``run.py``.
        """
        if limits is not None and not (np.isfinite(limits).all() and limits[0] < limits[1]):
            raise OptionError(f"limits {limits} are not (smallest, largest): give two finite, rising numbers.")
        ends = limits or self.depth_range or (0.0, 0.0)
        # Halved, which is exact: the span of two float32 numbers can overflow, that of their halves cannot.
        low, high = np.float32(ends[0]) / 2, np.float32(ends[1]) / 2
        if low == high:
            return np.zeros_like(self.depth)
        half = self.depth / 2
        with np.errstate(over="ignore"):  # far beyond given limits; clipped
            near: npt.NDArray[np.float32] = (half - low if self.kind.larger_is_nearer else high - half) / (high - low)
        np.clip(near, 0, 1, out=near)
        near[np.isnan(near)] = 0
        return near

    def colorize(self, cmap: str = "Spectral_r", *, limits: tuple[float, float] | None = None) -> npt.NDArray[np.uint8]:
        """Paint the depth; near takes the last colour of the map (red in ``Spectral_r``).

        Args:
            cmap: One of ``mlx_depth.io.colormaps.COLORMAPS``.
            limits: As in ``normalized``.
        Returns:
            RGB, ``(H, W, 3)``, uint8.
        Raises:
            OptionError: If the colour map does not exist or the limits are not finite and rising.

        Relative inverse depth: the picture that upstream ``run.py`` writes, pixel for pixel; metric depth:
        that of ``metric_depth/run.py`` within one entry of the map.
        """
        from mlx_depth.io.colormaps import apply_colormap

        entries = (self.normalized(limits=limits) * 255).astype(np.uint8)  # cut, as upstream cuts
        return apply_colormap(entries, cmap)

    def side_by_side(self, cmap: str = "Spectral_r") -> npt.NDArray[np.uint8]:
        """The photo and, to its right, the colour picture.

        Args:
            cmap: One of ``mlx_depth.io.colormaps.COLORMAPS``.
        Returns:
            RGB, ``(H, 2 W, 3)``, uint8.
        Raises:
            OptionError: If the result holds no image, or no colour map has that name.
        """
        if self.image is None:
            raise OptionError("side-by-side needs the photo, which this result does not hold: use color instead.")
        return np.concatenate([self.image, self.colorize(cmap)], axis=1)

    def inverse(self) -> "DepthResult":
        """Turn metric or relative depth into inverse depth, ``1 / depth``.

        Returns:
            A result of kind ``RELATIVE_INVERSE``; from metric depth its numbers are 1/metres, so
            ``.metric(1, 0)`` leads back. A depth of inf becomes 0; one that is not positive becomes NaN.
        Raises:
            OptionError: If the depth is already inverse: with its shift unknown, its reciprocal is no depth.
        """
        if self.kind is DepthKind.RELATIVE_INVERSE:
            raise OptionError(
                "the depth is already inverse, and its scale and shift are unknown: turn it into metres "
                "with fit_metric(known_points) or metric(scale, shift)."
            )
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.where(self.depth > 0, 1 / self.depth, np.float32(np.nan))
        return dataclasses.replace(self, depth=inverse, kind=DepthKind.RELATIVE_INVERSE, max_depth=None)

    def metric(self, scale: float, shift: float = 0.0, *, max_depth: float | None = None) -> "DepthResult":
        """Turn the depth into metres by a known scale and shift.

        Relative inverse depth: ``1 / (scale * depth + shift)``, infinite where the divisor is not positive.
        Relative or metric depth: ``scale * depth + shift``, NaN where that is not positive.

        Args:
            scale: Greater than 0, in 1/metres a unit of inverse depth, else in metres a unit of depth.
            shift: In 1/metres for inverse depth, else in metres.
            max_depth: Clip to this many metres, infinity too.
        Returns:
            A result of kind ``METRIC`` with that ``max_depth``. The translation of ``camera.extrinsics`` is
            scaled along; with a shift no translation fits, and the extrinsics are left out.
        Raises:
            OptionError: If the scale or ``max_depth`` is not positive, or a number is not finite.
        """
        _check_positive("scale", scale)
        if not np.isfinite(shift):
            raise OptionError(f"shift {shift} is not a finite number: give one.")
        if max_depth is not None:
            _check_positive("max_depth", max_depth)
        inverse = self.kind is DepthKind.RELATIVE_INVERSE
        line = scale * self.depth.astype(np.float64) + shift
        with np.errstate(divide="ignore", over="ignore"):
            metres = np.where(line <= 0, np.inf, 1 / line) if inverse else np.where(line <= 0, np.nan, line)
            metres = metres if max_depth is None else np.minimum(metres, max_depth)
            depth = metres.astype(np.float32)
        factor = None if shift else 1 / scale if inverse else scale
        return dataclasses.replace(
            self,
            depth=depth,
            kind=DepthKind.METRIC,
            max_depth=max_depth,
            camera=_rescaled(self.camera, factor),
        )

    def fit_metric(self, known_points: Sequence[Sequence[float]], *, max_depth: float | None = None) -> "DepthResult":
        """Turn the depth into metres by least squares through points of known distance.

        The line is fitted to 1/metres for relative inverse depth, and to metres for the other kinds.

        Args:
            known_points: Two or more ``(x, y, metres)``: column and row in pixels of the original image
                (rounded), and the distance along the optical axis.
            max_depth: As in ``metric``.
        Returns:
            ``metric(scale, shift)`` of the fit.
        Raises:
            OptionError: If a point is outside the image or without depth, if there are not two different
                depths, or if the points contradict the depth map.

        Same line as ``numpy.polyfit(…, 1)``.
        """
        depth, metres = self._sample(known_points)
        target = 1 / metres if self.kind is DepthKind.RELATIVE_INVERSE else metres
        if depth.min() == depth.max():
            raise OptionError("the known points all have the same depth: add one that is nearer or farther.")
        spread = depth - depth.mean()
        scale = float((spread * (target - target.mean())).sum() / (spread * spread).sum())
        shift = float(target.mean() - scale * depth.mean())
        if scale <= 0:
            raise OptionError(
                "the known points contradict the depth map, which has the far ones nearer: "
                "check that each is (column, row, metres)."
            )
        behind = np.flatnonzero(scale * depth + shift <= 0)
        if behind.size:
            raise OptionError(
                f"the fit puts known point {behind[0]} behind the camera or beyond infinity: "
                "check its distance, or add points."
            )
        return self.metric(scale, shift, max_depth=max_depth)

    def save(
        self,
        path: str | Path,
        *,
        format: str | None = None,
        overwrite: bool = False,
        cmap: str = "Spectral_r",
    ) -> Path:
        """Write the result to a file: ``mlx_depth.io.save.save`` with this result."""
        from mlx_depth.io.save import save

        return save(self, path, format=format, overwrite=overwrite, cmap=cmap)

    def show(self) -> None:
        """Open the colour picture in the system's viewer, beside the photo where the result holds it."""
        from PIL import Image

        Image.fromarray(self._picture()).show()

    def __repr__(self) -> str:
        height, width = self.image_size
        ends = self.depth_range
        unit = f" {self.unit}" if self.unit else ""
        values = f"{ends[0]:.4g}–{ends[1]:.4g}{unit}" if ends else "no finite values"
        return f"DepthResult({height}×{width}, {self.kind.description}, {values}, model={self.model!r})"

    def _repr_png_(self) -> bytes:
        from PIL import Image

        picture = Image.fromarray(self._picture())
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        return stream.getvalue()

    def _repr_html_(self) -> str:
        data = base64.b64encode(self._repr_png_()).decode()
        caption = html.escape(repr(self))
        return (
            f'<figure><img src="data:image/png;base64,{data}" alt="{caption}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )

    def _picture(self) -> npt.NDArray[np.uint8]:
        return self.colorize() if self.image is None else self.side_by_side()

    def _sample(
        self, known_points: Sequence[Sequence[float]]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Depth and metres at the known points, float64, checked."""
        if len(known_points) < 2:
            raise OptionError(f"{len(known_points)} known points do not make a fit: give two or more.")
        for point in known_points:
            self._check_point(point)
        points = np.array(known_points, np.float64)
        columns, rows = np.rint(points[:, :2]).astype(int).T
        return self.depth[rows, columns].astype(np.float64), points[:, 2]

    def _check_point(self, point: Sequence[float]) -> None:
        if len(point) != 3 or not np.isfinite(point).all() or point[2] <= 0:
            raise OptionError(f"{point} is no known point: give (column, row, metres), metres above 0.")
        height, width = self.image_size
        column, row = round(point[0]), round(point[1])
        if not (0 <= column < width and 0 <= row < height):
            raise OptionError(
                f"the known point {point} is outside the image of {width} columns and {height} rows: "
                "give (column, row, metres)."
            )
        if not np.isfinite(self.depth[row, column]):
            raise OptionError(f"the depth map has no depth at the known point {point}: choose another.")


def _rescaled(camera: Camera | None, factor: float | None) -> Camera | None:
    """The camera with its translation multiplied by ``factor``; None takes the extrinsics away."""
    if camera is None or camera.extrinsics is None:
        return camera
    if factor is None:
        return Camera(camera.intrinsics)
    return Camera(camera.intrinsics, camera.extrinsics * np.array([1, 1, 1, factor], camera.extrinsics.dtype))


def _check_array(name: str, array: npt.NDArray[np.generic], shape: tuple[int, ...], dtype: type) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        found = getattr(array, "dtype", type(array).__name__)
        raise OptionError(f"{name} is {found}: give a numpy array of {np.dtype(dtype)}.")
    if array.shape != shape or array.size == 0:
        raise OptionError(f"{name} has shape {array.shape}, image_size asks for {shape}: make them equal.")


def _check_matrix(name: str, matrix: npt.NDArray[np.floating], shape: tuple[int, int]) -> None:
    if not isinstance(matrix, np.ndarray) or matrix.dtype.kind != "f" or matrix.shape != shape:
        raise OptionError(f"{name} is not a float numpy array of shape {shape}: give one.")
    if not np.isfinite(matrix).all():
        raise OptionError(f"{name} holds numbers that are not finite: give finite ones.")


def _check_positive(name: str, number: float) -> None:
    if not (np.isfinite(number) and number > 0):
        raise OptionError(f"{name} {number} is not a finite number above 0: give one.")
