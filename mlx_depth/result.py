"""What a prediction returns: a depth map that knows its kind, its unit and where it came from."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
import numpy.typing as npt

from mlx_depth.camera import Camera
from mlx_depth.errors import OptionError
from mlx_depth.fit import fit_line
from mlx_depth.geometry.point_filter import PointFilter
from mlx_depth.geometry.unproject import unproject
from mlx_depth.io.colormaps import apply_colormap
from mlx_depth.io.encode import Content
from mlx_depth.io.notebook import figure
from mlx_depth.io.png16 import png16_scale, png16_values
from mlx_depth.io.save import save
from mlx_depth.kinds import DepthKind
from mlx_depth.version import __version__

_SKY, _EDGE = PointFilter.max_sky or np.inf, PointFilter.edge_threshold or np.inf  # as of a scene's mesh


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
        mask: ``(H, W)``, bool, True = the model holds the depth for valid; elsewhere it is not finite.
        normals: ``(H, W, 3)``, float32, unit vectors of the surface, towards the camera, in its axes (x right, y down,
            z forward); 0 outside the mask.
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
    mask: npt.NDArray[np.bool_] | None = None
    normals: npt.NDArray[np.float32] | None = None
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
        if self.mask is not None:
            _check_array("mask", self.mask, size, np.bool_)
            if np.isfinite(self.depth[~self.mask]).any():
                raise OptionError("depth is finite where the mask is False: make it inf or NaN there.")
        if self.normals is not None:
            _check_array("normals", self.normals, (*size, 3), np.float32)
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
        return _range(self.depth)

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
        """Paint the depth; near takes the last color of the map (red in ``Spectral_r``).

        Args:
            cmap: One of ``mlx_depth.io.colormaps.COLORMAPS``.
            limits: As in ``normalized``.
        Returns:
            RGB, ``(H, W, 3)``, uint8.
        Raises:
            OptionError: If the color map does not exist or the limits are not finite and rising.

        Relative inverse depth: the picture that upstream ``run.py`` writes, pixel for pixel; metric depth:
        that of ``metric_depth/run.py`` within one entry of the map.
        """
        entries = (self.normalized(limits=limits) * 255).astype(np.uint8)  # cut, as upstream cuts
        return apply_colormap(entries, cmap)

    def side_by_side(self, cmap: str = "Spectral_r") -> npt.NDArray[np.uint8]:
        """The photo and, to its right, the color picture.

        Args:
            cmap: One of ``mlx_depth.io.colormaps.COLORMAPS``.
        Returns:
            RGB, ``(H, 2 W, 3)``, uint8.
        Raises:
            OptionError: If the result holds no image, or no color map has that name.
        """
        if self.image is None:
            raise OptionError("side-by-side needs the photo, which this result does not hold: use color instead.")
        return np.concatenate([self.image, self.colorize(cmap)], axis=1)

    @property
    def points(self) -> npt.NDArray[np.float32]:
        """Where each pixel lies in space, by its depth and the camera, computed anew each time.

        Returns:
            ``(H, W, 3)``, float32, in the camera's axes (x right, y down, z forward) and the unit of the depth; NaN
            where there is no depth. The same camera and depth as everywhere: z is the depth.
        Raises:
            OptionError: If the depth is inverse, or the result has no camera.
        """
        intrinsics = self._intrinsics("points")
        known = np.flatnonzero(np.isfinite(self.depth))
        points = np.full((self.depth.size, 3), np.nan, np.float32)
        points[known] = unproject(self.depth[None], intrinsics[None], np.eye(3, 4)[None], known)
        return points.reshape(*self.depth.shape, 3)

    def _intrinsics(self, what: str) -> npt.NDArray[np.floating]:
        """Those of the camera, for what needs one and depth that is not inverse."""
        if self.kind is DepthKind.RELATIVE_INVERSE:
            raise OptionError(
                f"{what} need depth, and this is inverse depth of unknown scale and shift: make metres of it with "
                "fit_metric(known_points), or a rough scene with mlx_depth.to_scene(result)."
            )
        if self.camera is None:
            raise OptionError(
                f"{what} need the camera, which this model does not estimate: "
                "give one with mlx_depth.to_scene(result, focal_length_px=…)."
            )
        return self.camera.intrinsics

    def normals_picture(self) -> npt.NDArray[np.uint8]:
        """The normals as colors: red = to the right, green = up, blue = towards the viewer.

        Returns:
            RGB, ``(H, W, 3)``, uint8, 0..255 for -1..1; gray, 127, outside the mask.
        Raises:
            OptionError: If the result holds no normals.

        ``colorize_normal`` of MoGe's ``utils/vis.py``, byte for byte.
        """
        if self.normals is None:
            raise OptionError("this result has no normals, which its model does not compute: leave normals out.")
        shares = self.normals * np.array([0.5, -0.5, -0.5]) + 0.5
        return (shares.clip(0, 1) * 255).astype(np.uint8)  # cut, as upstream cuts

    def inverse(self) -> "DepthResult":
        """Turn metric or relative depth into inverse depth, ``1 / depth``.

        Returns:
            A result of kind ``RELATIVE_INVERSE``; from metric depth its numbers are 1/metres, so
            ``.metric(1, 0)`` leads back. A depth of inf becomes 0; one that is not positive, or outside the mask, NaN.
        Raises:
            OptionError: If the depth is already inverse: with its shift unknown, its reciprocal is no depth.
        """
        if self.kind is DepthKind.RELATIVE_INVERSE:
            raise OptionError(
                "the depth is already inverse, and its scale and shift are unknown: turn it into metres "
                "with fit_metric(known_points) or metric(scale, shift)."
            )
        known = self.depth > 0 if self.mask is None else (self.depth > 0) & self.mask
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.where(known, 1 / self.depth, np.float32(np.nan))
        return dataclasses.replace(self, depth=inverse, kind=DepthKind.RELATIVE_INVERSE, max_depth=None)

    def metric(self, scale: float, shift: float = 0.0, *, max_depth: float | None = None) -> "DepthResult":
        """Turn the depth into metres by a known scale and shift.

        Relative inverse depth: ``1 / (scale * depth + shift)``, infinite where the divisor is not positive.
        Relative or metric depth: ``scale * depth + shift``, NaN where that is not positive.

        Args:
            scale: Greater than 0, in 1/metres a unit of inverse depth, else in metres a unit of depth.
            shift: In 1/metres for inverse depth, else in metres.
            max_depth: Clip to this many metres, infinity too, but for what is outside the mask.
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
            metres = metres if self.mask is None else np.where(self.mask, metres, np.inf)
            depth = metres.astype(np.float32)
        factor = None if shift else 1 / scale if inverse else scale
        return dataclasses.replace(
            self,
            depth=depth,
            kind=DepthKind.METRIC,
            max_depth=max_depth,
            camera=None if self.camera is None else self.camera.rescaled(factor),
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
        scale, shift = fit_line(self.depth, known_points, inverse=self.kind is DepthKind.RELATIVE_INVERSE)
        return self.metric(scale, shift, max_depth=max_depth)

    @overload
    def save(
        self,
        target: str | os.PathLike[str],
        *,
        format: str | None = None,
        overwrite: bool = False,
        cmap: str = "Spectral_r",
    ) -> Path: ...

    @overload
    def save(self, target: BinaryIO, *, format: str | None = None, cmap: str = "Spectral_r") -> None: ...

    def save(
        self,
        target: str | os.PathLike[str] | BinaryIO,
        *,
        format: str | None = None,
        overwrite: bool = False,
        cmap: str = "Spectral_r",
    ) -> Path | None:
        """Write the result to one file, whole or not at all.

        Args:
            target: The file; ``~`` is expanded and missing folders are made. Or a binary file object, such as
                ``io.BytesIO()``: give its ``format``.
            format: One of ``mlx_depth.io.formats.FORMATS``. Default: by the suffix (.png is the 16-bit one, .jpg the
                color picture). npy: depth, float32. npz: all fields that are set. png16: 16-bit gray, see
                ``io.png16.png16_values``. color, gray: 8-bit pictures, near = red in ``Spectral_r``, near = white in
                gray. side-by-side: the photo and the color picture. tiff, pfm: depth, float32. exr: depth, float32,
                channel ``Z``, and beside it ``confidence``, ``sky``, ``mask`` (0 or 1) and the normals ``N.X``, ``N.Y``
                and ``N.Z`` (x right, y up, z towards the viewer) where the model gives them (OpenCV before
                OpenEXR 3 reads ``Z`` as zeros: take tiff or pfm for it). json: ``sidecar`` alone.
                confidence, sky: that map, float32, .npy. mask: 8-bit gray, 255 = valid. normals: 8-bit,
                ``normals_picture``. mesh (.glb): the surface with the photo on it, cut where depth jumps, of depth
                with a camera (needs ``mlx-depth[scene]``). PNG, JPEG, TIFF, EXR, GLB and npz carry the sidecar too.
            overwrite: Replace a file that exists.
            cmap: Color map of color and side-by-side, one of ``mlx_depth.io.colormaps.COLORMAPS``.
        Returns:
            The path written; None for a file object.
        Raises:
            OptionError: If the format, the suffix or the color map does not exist or does not fit, or the result
                does not hold what the format needs.
            SaveError: If the file exists, cannot be written, or needs an extra that is not installed.
        """
        return save(self._content(), target, format=format, overwrite=overwrite, cmap=cmap)

    def sidecar(self) -> dict[str, Any]:
        """Say what the numbers are and where they came from.

        Returns:
            JSON-ready: ``kind``, ``unit``, ``larger_is``, ``min`` and ``max`` of the finite depth, ``max_depth``,
            ``png16`` (``depth = value * scale + offset`` where value is not ``no_data``), ``confidence`` and ``sky``
            (``min`` and ``max`` of each map), ``mask`` (``valid``, the share of the pixels), ``normals`` (``axes`` of
            the arrays), ``size`` and ``input_size`` (height, width), ``focal_length_px``, ``camera``, ``model``,
            ``revision``, ``dtype``, ``license``, ``image``, and the version of ``mlx_depth``.
            What is not known is None.
        """
        low, high = self.depth_range or (None, None)
        scale, offset = png16_scale(self.depth, self.kind, self.max_depth)
        matrices = {} if self.camera is None else self.camera.matrices()
        return {
            "kind": self.kind.value,
            "unit": self.unit,
            "larger_is": "nearer" if self.kind.larger_is_nearer else "farther",
            "min": low,
            "max": high,
            "max_depth": _number(self.max_depth),
            "png16": {"scale": scale, "offset": offset, "no_data": 0},
            "confidence": _map_facts(self.confidence),
            "sky": _map_facts(self.sky),
            "mask": None if self.mask is None else {"valid": float(self.mask.mean())},
            "normals": None if self.normals is None else {"axes": "x right, y down, z forward"},
            "size": [int(side) for side in self.image_size],
            "input_size": [int(side) for side in self.input_size],
            "focal_length_px": _number(self.focal_length_px),
            "camera": {name: matrix.tolist() for name, matrix in matrices.items()} or None,
            "model": self.model,
            "revision": self.revision,
            "dtype": self.dtype,
            "license": self.license,
            "image": self.source,
            "mlx_depth": __version__,
        }

    def _content(self) -> Content:
        maps = {"confidence": self.confidence, "sky": self.sky}
        return Content(
            depth=self.depth,
            maps={name: values for name, values in maps.items() if values is not None},
            channels=self._channels(),
            facts=self.sidecar(),
            fields=self._fields(),
            pictures={
                "png16": lambda _: png16_values(self.depth, self.kind, self.max_depth),
                "color": self.colorize,
                "gray": lambda _: (self.normalized() * 255).astype(np.uint8),
                "side-by-side": self.side_by_side,
                "mask": lambda _: self._mask_picture(),
                "normals": lambda _: self.normals_picture(),
            },
            mesh=self._mesh,
        )

    def _mask_picture(self) -> npt.NDArray[np.uint8]:
        if self.mask is None:
            raise OptionError("this result has no mask, which its model does not compute: leave mask out.")
        return np.where(self.mask, np.uint8(255), np.uint8(0))

    def _channels(self) -> dict[str, npt.NDArray[np.float32]]:
        """What EXR files hold beside the maps."""
        mask = {} if self.mask is None else {"mask": self.mask.astype(np.float32)}
        if self.normals is None:
            return mask
        turned = self.normals * np.array([1, -1, -1], np.float32) + np.float32(0)  # no minus zeros
        return {**mask, **{f"N.{axis}": turned[..., index] for index, axis in enumerate("XYZ")}}

    def _mesh(self) -> bytes:
        """The .glb file of the surface, without what is sky."""
        if self.image is None:
            raise OptionError("a mesh needs the photo, which this result does not hold: predict it anew.")
        intrinsics = self._intrinsics("meshes")
        from mlx_depth.io.scene.glb import mesh_glb  # by trimesh, an extra

        hidden = np.zeros(self.depth.shape, np.bool_) if self.sky is None else self.sky >= _SKY
        return mesh_glb(
            depth=np.where(hidden, np.float32(np.nan), self.depth),
            image=self.image,
            intrinsics=intrinsics,
            edge_threshold=_EDGE,
            normals=self.normals,
            facts=self.sidecar(),
        )

    def _fields(self) -> Mapping[str, npt.NDArray[Any]]:
        """All that is set, as arrays."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("kind", "camera")]
        values = {name: getattr(self, name) for name in names}
        values |= {"kind": self.kind.value, "unit": self.unit}
        values |= {} if self.camera is None else self.camera.matrices()
        return {name: np.asarray(value) for name, value in values.items() if value is not None}

    def show(self) -> None:
        """Open the color picture in the system's viewer, beside the photo where the result holds it."""
        from PIL import Image

        Image.fromarray(self._picture()).show()

    def __repr__(self) -> str:
        height, width = self.image_size
        ends = self.depth_range
        unit = f" {self.unit}" if self.unit else ""
        values = f"{ends[0]:.4g}–{ends[1]:.4g}{unit}" if ends else "no finite values"
        return f"DepthResult({height}×{width}, {self.kind.description}, {values}, model={self.model!r})"

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The depth, so that NumPy and what builds on it take the result as an array."""
        return np.array(self.depth, dtype=dtype, copy=copy)

    def _repr_html_(self) -> str:
        return figure(self._picture(), repr(self))

    def _picture(self) -> npt.NDArray[np.uint8]:
        return self.colorize() if self.image is None else self.side_by_side()


def _check_array(name: str, array: npt.NDArray[np.generic], shape: tuple[int, ...], dtype: type) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        found = getattr(array, "dtype", type(array).__name__)
        raise OptionError(f"{name} is {found}: give a numpy array of {np.dtype(dtype)}.")
    if array.shape != shape or array.size == 0:
        raise OptionError(f"{name} has shape {array.shape}, image_size asks for {shape}: make them equal.")


def _check_positive(name: str, number: float) -> None:
    if not (np.isfinite(number) and number > 0):
        raise OptionError(f"{name} {number} is not a finite number above 0: give one.")


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _range(values: npt.NDArray[np.float32]) -> tuple[float, float] | None:
    """Smallest and largest finite value; None where none is finite."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else None


def _map_facts(values: npt.NDArray[np.float32] | None) -> dict[str, float | None] | None:
    if values is None:
        return None
    low, high = _range(values) or (None, None)
    return {"min": low, "max": high}
