"""What several photos of one scene give: depth and cameras in one world, as points, files and Gaussians."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError, SaveError
from mlx_depth.gaussians import Gaussians
from mlx_depth.geometry.checks import check_array, check_count, check_depth, check_extrinsics, check_intrinsics
from mlx_depth.geometry.point_filter import PointFilter, Points, choose_points, has_depth
from mlx_depth.io.formats import format_of
from mlx_depth.io.scene.colmap import write_colmap
from mlx_depth.io.scene.drawing import depth_colors
from mlx_depth.io.scene.gaussian_ply import write_gaussian_ply
from mlx_depth.io.scene.npz import write_npz
from mlx_depth.io.scene.ply import write_ply
from mlx_depth.kinds import DepthKind
from mlx_depth.result import DepthResult
from mlx_depth.version import __version__

SCENE_FORMATS: dict[str, tuple[str, ...]] = {
    "ply": (".ply",),
    "gaussians": (".ply",),
    "glb": (".glb",),
    "mesh": (".glb",),
    "html": (".html",),
    "npz": (".npz",),
}
"""Format → the suffixes it may have; of those that share one the first has it."""

_BORDER = 8 / 256  # of upstream's Gaussian export, and the quantile below, too
_DEPTH_QUANTILE = 0.9
_NO_EDGE = 1e9  # a jump that no depth makes


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SceneResult:
    """Depth and cameras of V views in one world. Axes are OpenCV's: x right, y down, z forward.

    Attributes:
        depth: ``(V, H, W)``, float32, along each camera's z axis, in the unit of ``kind``; what is not finite or
            not above 0 has no depth.
        intrinsics: ``(V, 3, 3)``, float, in pixels of ``depth``, whose centers are at integers: the ray through row i,
            column j is ``K^-1 (j, i, 1)``.
        extrinsics: ``(V, 3, 4)``, float, world → camera, in the unit of the depth.
        images: V photos at the size of ``depth``, RGB ``(H, W, 3)``, uint8.
        kind: What the depth means; inverse depth makes no scene.
        confidence: ``(V, H, W)``, float32, larger = surer.
        sky: ``(V, H, W)``, float32, 0..1, 1 = sky.
        normals: ``(V, H, W, 3)``, float32, unit vectors in each camera's axes; 0 where there are none.
        rays: ``(V, h, w, 6)``, float32, the network's own: direction, then origin.
        ray_confidence: ``(V, h, w)``, float32.
        gaussians: The scene as 3D Gaussians.
        views: V results at the sizes of the photos, each with its camera in pixels of the photo; may be empty.
        names: V names of the photos; may be empty.
        photo_sizes: V times ``(height, width)`` of the photos; may be empty, as ``views`` tell them too.
        photo_intrinsics: ``(V, 3, 3)``, float, in pixels of the photos, beside ``photo_sizes``.
        model: Name of the model.
        revision: Commit or version of the weights.
        dtype: Number format that the network computed in.
        license: License of the weights.
        scale_factor: What the network's own unit was multiplied by to give metres.
    """

    depth: npt.NDArray[np.float32]
    intrinsics: npt.NDArray[np.floating]
    extrinsics: npt.NDArray[np.floating]
    _: dataclasses.KW_ONLY
    images: Sequence[npt.NDArray[np.uint8]]
    kind: DepthKind
    confidence: npt.NDArray[np.float32] | None = None
    sky: npt.NDArray[np.float32] | None = None
    normals: npt.NDArray[np.float32] | None = None
    rays: npt.NDArray[np.float32] | None = None
    ray_confidence: npt.NDArray[np.float32] | None = None
    gaussians: Gaussians | None = None
    views: tuple[DepthResult, ...] = ()
    names: tuple[str, ...] = ()
    photo_sizes: tuple[tuple[int, int], ...] = ()
    photo_intrinsics: npt.NDArray[np.floating] | None = None
    model: str | None = None
    revision: str | None = None
    dtype: str = "float32"
    license: str | None = None
    scale_factor: float | None = None

    def __post_init__(self) -> None:
        if self.kind is DepthKind.RELATIVE_INVERSE:
            raise OptionError(
                "inverse depth has no points, its scale and shift are unknown: turn each view into metres first, "
                "with metric(scale, shift) or fit_metric(known_points)."
            )
        check_depth(self.depth)
        views, height, width = self.depth.shape
        for name, maps in (("confidence", self.confidence), ("sky", self.sky)):
            if maps is not None:
                check_array(name, maps, self.depth.shape)
        if self.normals is not None:
            check_array("normals", self.normals, (*self.depth.shape, 3))
        check_count("images", len(self.images), views)
        for view, image in enumerate(self.images):
            check_array(f"the image of view {view}", image, (height, width, 3), np.uint8)
        check_intrinsics(self.intrinsics, views)
        check_extrinsics(self.extrinsics, views)
        self._check_rays()
        for name, parts in (("views", self.views), ("names", self.names), ("photo_sizes", self.photo_sizes)):
            if parts:
                check_count(name, len(parts), views)
        if bool(self.photo_sizes) != (self.photo_intrinsics is not None):
            raise OptionError("photo_sizes and photo_intrinsics belong together: give both, or none.")
        if self.photo_intrinsics is not None:
            check_intrinsics(self.photo_intrinsics, views)
        if self.scale_factor is not None and not (np.isfinite(self.scale_factor) and self.scale_factor > 0):
            raise OptionError(f"scale_factor {self.scale_factor} is not a finite number above 0: give one.")

    def _check_rays(self) -> None:
        rays, confidence = self.rays, self.ray_confidence
        if rays is not None and np.ndim(rays) != 4:
            raise OptionError(f"rays has shape {np.shape(rays)}: give (V, h, w, 6).")
        if confidence is not None and np.ndim(confidence) != 3:
            raise OptionError(f"ray_confidence has shape {np.shape(confidence)}: give (V, h, w).")
        if rays is not None:
            check_array("rays", rays, (len(self), *rays.shape[1:3], 6))
        if confidence is not None:
            grid = confidence if rays is None else rays
            check_array("ray_confidence", confidence, (len(self), *grid.shape[1:3]))

    @property
    def unit(self) -> str:
        """``"m"`` for metric depth, else the empty string; of points and camera positions, too."""
        return self.kind.unit

    @property
    def size(self) -> tuple[int, int]:
        """``(height, width)`` of each view's depth, in pixels."""
        _, height, width = self.depth.shape
        return height, width

    def __len__(self) -> int:
        """The number of views."""
        return len(self.depth)

    def points(
        self,
        *,
        min_confidence: float | None = PointFilter.min_confidence,
        confidence_percentile: float | None = PointFilter.confidence_percentile,
        edge_threshold: float | None = PointFilter.edge_threshold,
        voxel_size: float | None = PointFilter.voxel_size,
        max_points: int | None = PointFilter.max_points,
        max_sky: float | None = PointFilter.max_sky,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """The scene as colored points.

        Args:
            min_confidence: See ``PointFilter``, like the others. None turns a rule off.
            confidence_percentile: The share of pixels that are left out as the least sure.
            edge_threshold: Relative jump of the depth between neighbors that are left out.
            voxel_size: Side of the cubes that get one point each.
            max_points: At most so many.
            max_sky: Pixels with this sky value or more are left out.
        Returns:
            ``(N, 3)`` world coordinates, float32, in the unit of the depth; and ``(N, 3)`` RGB, uint8. N may be 0.
        Raises:
            OptionError: If an option is out of its range, or the scene has no confidence that ``min_confidence`` needs.
        """
        filter = PointFilter(min_confidence, confidence_percentile, edge_threshold, voxel_size, max_points, max_sky)
        chosen = self.choose(filter)
        return chosen.positions, self._colors(chosen)

    def choose(self, filter: PointFilter | None = None) -> Points:
        """The points that a filter leaves, and the pixels that they come from.

        Args:
            filter: Default: ``PointFilter()``.
        Returns:
            Pixels, ``(N,)``, and positions, ``(N, 3)``: ``scene.confidence.reshape(-1)[pixels]`` is their confidence.
        Raises:
            OptionError: If the filter asks for a confidence that the scene does not have.
        """
        return choose_points(
            self.depth,
            self.intrinsics,
            self.extrinsics,
            confidence=self.confidence,
            sky=self.sky,
            filter=filter or PointFilter(),
        )

    def save(
        self,
        target: str | os.PathLike[str],
        *,
        format: str | None = None,
        filter: PointFilter | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write the scene to one file, whole or not at all.

        Args:
            target: The file; ``~`` is expanded and missing folders are made.
            format: One of ``SCENE_FORMATS``. Default: by the suffix. ply: colored points. gaussians: the 3D Gaussians,
                a .ply too, as ``save_gaussians`` writes them. glb: colored points and the cameras (needs
                ``mlx-depth[scene]``, as mesh does). mesh: a scene of one view as a surface with the photo on it.
                html: a page that shows points and cameras in any browser, offline. npz: every array; ``image``,
                ``depth``, ``conf``, ``extrinsics`` and ``intrinsics`` have the names of upstream's export.
            filter: Which pixels become points of ply, glb and html. Default: ``PointFilter()``. A mesh leaves out the
                same sky and unsure pixels, is cut at the same edges, and has ``max_points`` corners (a million).
            overwrite: Replace a file that exists.
        Returns:
            The path written.
        Raises:
            OptionError: If the format or the suffix does not exist or does not fit, the scene does not hold what the
                format needs, or a filter is given where there are no points.
            SaveError: If no point is left, or the file exists, cannot be written, or needs an extra that is not
                installed.
        """
        path = Path(target).expanduser()
        name = format_of(path, format, SCENE_FORMATS)
        if filter is not None and name in ("gaussians", "npz"):
            raise OptionError(f"{name} holds no points that a filter could choose: leave filter out.")
        if name == "gaussians":
            return self.save_gaussians(path, overwrite=overwrite)
        if name == "npz":
            return write_npz(path, arrays=self._arrays(), facts=self.sidecar(), overwrite=overwrite)
        if name == "mesh":
            return self._save_mesh(path, filter or PointFilter(), overwrite)
        chosen = self._some_points(filter)
        points, colors = chosen.positions, self._colors(chosen)
        if name == "ply":
            return write_ply(path, points=points, colors=colors, facts=self.sidecar(), overwrite=overwrite)
        cameras = [(*matrices, self.size) for matrices in zip(self.intrinsics, self.extrinsics, strict=True)]
        if name == "html":
            from mlx_depth.io.scene.viewer import write_viewer  # a page, and what wraps it: only where it is written

            return write_viewer(
                path,
                points=points,
                colors=colors,
                confidence=None if self.confidence is None else self.confidence.reshape(-1)[chosen.pixels],
                depth_colors=depth_colors(self.depth.reshape(-1)[chosen.pixels]),
                cameras=cameras,
                facts=self.sidecar(),
                overwrite=overwrite,
            )
        from mlx_depth.io.scene.glb import write_glb  # by trimesh, an extra

        return write_glb(path, points=points, colors=colors, cameras=cameras, facts=self.sidecar(), overwrite=overwrite)

    def save_colmap(
        self,
        folder: str | os.PathLike[str],
        *,
        filter: PointFilter | None = None,
        binary: bool = True,
        overwrite: bool = False,
    ) -> Path:
        """Write cameras, images and points as a COLMAP model.

        Args:
            folder: Where the three files go; ``~`` is expanded, missing folders are made.
            filter: Which pixels become points, each seen by its own view. Default: ``PointFilter()``.
            binary: ``.bin`` files, else ``.txt``.
            overwrite: Replace the model in the folder.
        Returns:
            The folder.
        Raises:
            OptionError: If a view has no camera or a camera has skew, or a name cannot stand in such a file.
            SaveError: If no point is left, or the folder holds a model or cannot be written.

        With ``views`` everything is in pixels of the photos, and the names are those of the photos; else in pixels of
        ``depth``.
        """
        chosen = self._some_points(filter)
        sizes, intrinsics = self.photo_cameras()
        height, width = self.size
        views, place = np.divmod(chosen.pixels, height * width)
        rows, columns = np.divmod(place, width)
        # From the pixels of the depth to the photo's, along the same ray.
        to_photo = intrinsics @ np.linalg.inv(self.intrinsics.astype(np.float64))
        here = np.stack([columns, rows, np.ones_like(rows)], axis=-1)
        return write_colmap(
            Path(folder).expanduser(),
            intrinsics=intrinsics,
            extrinsics=self.extrinsics,
            sizes=sizes,
            names=self._photo_names(),
            points=chosen.positions,
            colors=self._colors(chosen),
            views=views,
            pixels=np.einsum("nij,nj->ni", to_photo[views, :2], here),
            binary=binary,
            overwrite=overwrite,
        )

    def save_gaussians(
        self,
        target: str | os.PathLike[str],
        *,
        border: float = _BORDER,
        depth_quantile: float = _DEPTH_QUANTILE,
        degree: int | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write the 3D Gaussians as viewers of Gaussian splatting read them.

        Args:
            target: The .ply file; ``~`` is expanded and missing folders are made.
            border: Leave out the Gaussians of so large a part of each image's height and width at its borders.
            depth_quantile: Leave out what is farther than this quantile of its view's depth; 1 keeps all.
            degree: Degree of the spherical harmonics in the file, 0..3. Default: all that there are, up to 3.
            overwrite: Replace a file that exists.
        Returns:
            The path written.
        Raises:
            OptionError: If the scene has no Gaussians or an option is out of its range.
            SaveError: If no Gaussian is left, or the file exists or cannot be written.

        With ``degree=0`` the numbers are those of upstream's ``gs_ply`` export.
        """
        if self.gaussians is None:
            raise OptionError("this scene has no Gaussians, which its model does not compute: write points instead.")
        kept = self.gaussians
        sized = np.min(kept.scales, axis=1) > 0
        if border != 0 or depth_quantile != 1:
            sized &= self._central(border, depth_quantile)
        kept = kept.chosen(sized)
        if len(kept) == 0:
            raise SaveError("no Gaussian is left to write: lower border or raise depth_quantile.")
        path = Path(target).expanduser()
        return write_gaussian_ply(path, **kept.arrays(), degree=degree, facts=self.sidecar(), overwrite=overwrite)

    def sidecar(self) -> dict[str, Any]:
        """Say what the numbers are and where they came from.

        Returns:
            JSON-ready: ``kind``, ``unit``, ``larger_is``, ``axes`` of the world, ``views`` (how many), ``size``
            (height, width), ``names``, ``scale_factor``, ``model``, ``revision``, ``dtype``, ``license``, and the
            version of ``mlx_depth``. What is not known is None.
        """
        return {
            "kind": self.kind.value,
            "unit": self.unit,
            "larger_is": "farther",
            "axes": "x right, y down, z forward",
            "views": len(self),
            "size": list(self.size),
            "names": list(self.names) or None,
            "scale_factor": None if self.scale_factor is None else float(self.scale_factor),
            "model": self.model,
            "revision": self.revision,
            "dtype": self.dtype,
            "license": self.license,
            "mlx_depth": __version__,
        }

    def __repr__(self) -> str:
        height, width = self.size
        views = "1 view" if len(self) == 1 else f"{len(self)} views"
        known = self.depth[has_depth(self.depth)]
        unit = f" {self.unit}" if self.unit else ""
        values = f"{known.min():.4g}–{known.max():.4g}{unit}" if known.size else "no depth"
        return f"SceneResult({views} of {height}×{width}, {self.kind.description}, {values}, model={self.model!r})"

    def _colors(self, chosen: Points) -> npt.NDArray[np.uint8]:
        return np.stack(list(self.images)).reshape(-1, 3)[chosen.pixels]

    def _some_points(self, filter: PointFilter | None) -> Points:
        chosen = self.choose(filter)
        if len(chosen.pixels):
            return chosen
        if not has_depth(self.depth).any():
            raise SaveError("the scene has no points: no pixel has a finite depth above 0. Save an npz instead.")
        limit = (filter or PointFilter()).max_sky
        if self.sky is not None and limit is not None and (self.sky >= limit).all():
            raise SaveError(
                "the scene has no points: every pixel is sky. Save an npz, or keep it with PointFilter(max_sky=None)."
            )
        raise SaveError(
            "the filter leaves no points: loosen it, as with PointFilter(confidence_percentile=0, edge_threshold=None)."
        )

    def _save_mesh(self, path: Path, filter: PointFilter, overwrite: bool) -> Path:
        if len(self) != 1:
            raise OptionError(f"a mesh is of one view, and the scene has {len(self)}: write glb, its points.")
        from mlx_depth.io.scene.glb import MAX_VERTICES, write_mesh_glb  # by trimesh, an extra

        kept = np.zeros(self.depth.size, np.bool_)
        whole = dataclasses.replace(filter, edge_threshold=None, voxel_size=None, max_points=None)
        kept[self._some_points(whole).pixels] = True
        return write_mesh_glb(
            path,
            depth=np.where(kept.reshape(self.size), self.depth[0], np.float32(np.nan)),
            image=self.images[0],
            intrinsics=self.intrinsics[0],
            extrinsics=self.extrinsics[0],
            edge_threshold=filter.edge_threshold or _NO_EDGE,
            normals=None if self.normals is None else self.normals[0],
            max_vertices=filter.max_points or MAX_VERTICES,
            facts=self.sidecar(),
            overwrite=overwrite,
        )

    def photo_cameras(self) -> tuple[list[tuple[int, int]], npt.NDArray[np.float64]]:
        """The cameras in pixels of the photos; in pixels of ``depth`` where the scene knows no photos.

        Returns:
            V sizes, ``(height, width)``, and the intrinsics in pixels of those, ``(V, 3, 3)``.
        Raises:
            OptionError: If one of ``views`` has no camera.
        """
        if self.photo_intrinsics is not None:
            return list(self.photo_sizes), self.photo_intrinsics.astype(np.float64)
        if not self.views:
            return [self.size] * len(self), self.intrinsics.astype(np.float64)
        missing = [view for view, result in enumerate(self.views) if result.camera is None]
        if missing:
            raise OptionError(
                f"views[{missing[0]}] has no camera, and its photo's pixels no place: give it one, or leave views out."
            )
        cameras = [result.camera for result in self.views if result.camera is not None]
        sizes = [(int(height), int(width)) for height, width in (result.image_size for result in self.views)]
        return sizes, np.stack([camera.intrinsics.astype(np.float64) for camera in cameras])

    def _photo_names(self) -> list[str]:
        if self.names:
            return list(self.names)
        return [f"view_{view:04d}.png" for view in range(len(self))]

    def _central(self, border: float, depth_quantile: float) -> npt.NDArray[np.bool_]:
        """``(N,)``: the Gaussians of pixels that are neither at a border nor far away."""
        if self.gaussians is None or len(self.gaussians) != self.depth.size:
            raise OptionError(
                "the scene does not have one Gaussian for each pixel, so that none can be left out by its pixel: "
                "use save_gaussians(..., border=0, depth_quantile=1)."
            )
        for name, share, most in (("border", border, 0.5), ("depth_quantile", depth_quantile, 1.0)):
            if not 0 <= share <= most:
                raise OptionError(f"{name} {share} is not within 0..{most:g}: give a share.")
        height, width = self.size
        top, left = int(border * height), int(border * width)
        kept = np.zeros(self.depth.shape, np.bool_)
        kept[:, top : height - top, left : width - left] = True
        far = np.nanquantile(self.depth.reshape(len(self), -1), depth_quantile, axis=1)
        return (kept & (self.depth <= far[:, None, None])).reshape(-1)

    def _arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """All that is set, as arrays; the first five under the names of upstream's export."""
        gaussians = {} if self.gaussians is None else self.gaussians.arrays()
        values = {
            "image": np.stack(list(self.images)),
            "depth": self.depth,
            "conf": self.confidence,
            "extrinsics": self.extrinsics,
            "intrinsics": self.intrinsics,
            "sky": self.sky,
            "normals": self.normals,
            "rays": self.rays,
            "ray_conf": self.ray_confidence,
            "kind": self.kind.value,
            "unit": self.unit,
            "names": self.names or None,
            **{name: getattr(self, name) for name in ("model", "revision", "dtype", "license", "scale_factor")},
            **{f"gaussian_{name}": values for name, values in gaussians.items()},
        }
        return {name: np.asarray(value) for name, value in values.items() if value is not None}
