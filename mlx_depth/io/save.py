"""Results as files: the format follows the suffix, every number keeps its kind and unit."""

import dataclasses
import difflib
import json
import os
import secrets
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError, SaveError
from mlx_depth.result import DepthKind, DepthResult
from mlx_depth.version import __version__

FORMATS: dict[str, tuple[str, ...]] = {
    "npy": (".npy",),
    "npz": (".npz",),
    "png16": (".png",),
    "color": (".png", ".jpg", ".jpeg"),
    "gray": (".png",),
    "side-by-side": (".png", ".jpg", ".jpeg"),
    "tiff": (".tiff", ".tif"),
    "pfm": (".pfm",),
    "exr": (".exr",),
    "json": (".json",),
}
"""Format → the suffixes it may have, the usual one first."""

# Where several formats share a suffix, the first of FORMATS has it: .png is png16, .jpg is color.
_FORMAT_OF_SUFFIX = {suffix: name for name, suffixes in reversed(FORMATS.items()) for suffix in suffixes}

_Pixels: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

_METADATA_KEY = "mlx_depth"
_LEVELS = 65535
_MILLIMETRES, _KITTI = 1000, 256  # levels a metre
_IMAGE_DESCRIPTION = 270  # TIFF 6.0, section 8
_PNG_LEVEL = 4  # half the time of zlib's default, 6; 16-bit files are 4 % larger, colour pictures 30 %


def save(
    result: DepthResult,
    path: str | Path,
    *,
    format: str | None = None,
    overwrite: bool = False,
    cmap: str = "Spectral_r",
) -> Path:
    """Write a result to one file, whole or not at all.

    Args:
        result: The result.
        path: The file; ``~`` is expanded and missing folders are made.
        format: One of ``FORMATS``. Default: by the suffix (.png is the 16-bit one, .jpg the colour picture).
            npy: depth, float32. npz: all fields that are set. png16: 16-bit gray, see ``png16_values``.
            color, gray: 8-bit pictures, near = red in ``Spectral_r``, near = white in gray. side-by-side: the
            photo and the colour picture. tiff, pfm: depth, float32. exr: depth, float32, channel ``Z``.
            json: ``sidecar`` alone. PNG, JPEG, TIFF, EXR and npz carry the sidecar too.
        overwrite: Replace a file that exists.
        cmap: Colour map of color and side-by-side, one of ``mlx_depth.io.colormaps.COLORMAPS``.
    Returns:
        The path written.
    Raises:
        OptionError: If the format, the suffix or the colour map does not exist or does not fit.
        SaveError: If the file exists, cannot be written, or needs an extra that is not installed.
    """
    path = Path(path).expanduser()
    atomic_write(path, _writer(result, path, format, cmap), overwrite=overwrite)
    return path


def atomic_write(path: str | Path, write: Callable[[BinaryIO], None], *, overwrite: bool = False) -> None:
    """Write a file so that nobody ever sees a part of it.

    Args:
        path: The file; missing folders are made.
        write: Called once with an open binary file beside the destination.
        overwrite: Replace a file that exists; without it, of several processes at once exactly one succeeds.
    Raises:
        SaveError: If the file exists or cannot be written.

    What ``write`` raises passes through, and nothing is left behind.
    """
    path = Path(path)
    if not overwrite and os.path.lexists(path):
        raise _exists(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_beside(path, write, overwrite)
    except SaveError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise SaveError(f"cannot write {path}: {reason}. Check the folder and the free space.") from error


def sidecar(result: DepthResult) -> dict[str, Any]:
    """Say what the numbers of a result are and where they came from.

    Args:
        result: The result.
    Returns:
        JSON-ready: ``kind``, ``unit``, ``larger_is``, ``min`` and ``max`` of the finite depth, ``max_depth``,
        ``png16`` (``depth = value * scale + offset`` where value is not ``no_data``), ``size`` and
        ``input_size`` (height, width), ``focal_length_px``, ``camera``, ``model``, ``revision``, ``dtype``,
        ``license``, ``image``, and the version of ``mlx_depth``. What is not known is None.
    """
    low, high = result.depth_range or (None, None)
    scale, offset = png16_scale(result)
    return {
        "kind": result.kind.value,
        "unit": result.unit,
        "larger_is": "nearer" if result.kind.larger_is_nearer else "farther",
        "min": low,
        "max": high,
        "max_depth": _number(result.max_depth),
        "png16": {"scale": scale, "offset": offset, "no_data": 0},
        "size": [int(side) for side in result.image_size],
        "input_size": [int(side) for side in result.input_size],
        "focal_length_px": _number(result.focal_length_px),
        "camera": {name: matrix.tolist() for name, matrix in _camera_fields(result).items()} or None,
        "model": result.model,
        "revision": result.revision,
        "dtype": result.dtype,
        "license": result.license,
        "image": result.source,
        "mlx_depth": __version__,
    }


def png16_scale(result: DepthResult) -> tuple[float, float]:
    """Scale and offset of the 16-bit PNG: ``depth = value * scale + offset``.

    Args:
        result: The result.
    Returns:
        ``(scale, offset)``. Metric depth: a millimetre a level where ``max_depth`` is known and at most
        65.535 m, else 1/256 m, offset 0. Relative kinds: the finite depth spread over 1..65535; a constant
        one has scale 0.

    The 1/256 m is KITTI's rule.
    """
    if result.kind is DepthKind.METRIC:
        fits = result.max_depth is not None and result.max_depth * _MILLIMETRES <= _LEVELS
        return 1 / (_MILLIMETRES if fits else _KITTI), 0.0
    low, high = result.depth_range or (0.0, 0.0)
    scale = (high - low) / (_LEVELS - 1)
    return scale, low - scale


def png16_values(result: DepthResult) -> npt.NDArray[np.uint16]:
    """The depth as 16-bit levels.

    Args:
        result: The result.
    Returns:
        ``(H, W)``, uint16: ``(depth - offset) / scale`` of ``png16_scale``, rounded, held within 1..65535,
        never wrapped; 0 = no data, where the depth is not finite, or metric and not positive.

    Gives the depth back to half a level.
    """
    scale, offset = png16_scale(result)
    known = np.isfinite(result.depth)
    if result.kind is DepthKind.METRIC:
        known &= result.depth > 0
    depth = np.where(known, result.depth, 0).astype(np.float64)
    levels = np.clip(np.rint((depth - offset) / (scale or 1.0)), 1, _LEVELS)
    return np.where(known, levels, 0).astype(np.uint16)


def _writer(result: DepthResult, path: Path, format: str | None, cmap: str) -> Callable[[BinaryIO], None]:
    """What writes the format; a wrong option raises here, before the disk is touched."""
    name = _format_name(path, format)
    if name in _PICTURES:
        pixels = _PICTURES[name](result, cmap)
        write = _write_png if path.suffix.lower() == ".png" else _write_jpeg
        return partial(write, pixels, _json(result))
    return partial(_DATA[name], result)


def _format_name(path: Path, format: str | None) -> str:
    suffix = path.suffix.lower()
    if format is None:
        if suffix not in _FORMAT_OF_SUFFIX:
            known = " ".join(sorted(_FORMAT_OF_SUFFIX))
            raise OptionError(f"no format has the suffix {suffix!r} of {path.name!r}: choose one of {known}.")
        return _FORMAT_OF_SUFFIX[suffix]
    if format not in FORMATS:
        close = difflib.get_close_matches(format, FORMATS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise OptionError(f"no format {format!r}: {hint}Choose one of {', '.join(FORMATS)}.")
    if suffix not in FORMATS[format]:
        fitting = " or ".join(FORMATS[format])
        raise OptionError(f"{format} does not go into {path.name!r}: give a name that ends with {fitting}.")
    return format


def _write_beside(path: Path, write: Callable[[BinaryIO], None], overwrite: bool) -> None:
    # Opened by us, not by tempfile, so that the file gets the user's usual permissions.
    temporary = path.with_name(f".mlx-depth-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as stream:
            write(stream)
        _publish(temporary, path, overwrite)
    finally:
        temporary.unlink(missing_ok=True)


def _publish(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(path)
        return
    try:
        _claim(temporary, path)
    except FileExistsError:
        raise _exists(path) from None


def _claim(temporary: Path, path: Path) -> None:
    """Give the file its name if nobody has it, in one step: of two processes one gets FileExistsError."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # exFAT and some network volumes have no hard links
        path.touch(exist_ok=False)
        temporary.replace(path)


def _exists(path: Path) -> SaveError:
    return SaveError(f"{path} exists: pass overwrite=True (--overwrite on the command line).")


def _json(result: DepthResult) -> str:
    return json.dumps(sidecar(result), allow_nan=False)  # ASCII, as PNG, TIFF and EXR text want it


def _camera_fields(result: DepthResult) -> dict[str, npt.NDArray[np.floating]]:
    if result.camera is None:
        return {}
    fields = {"intrinsics": result.camera.intrinsics, "extrinsics": result.camera.extrinsics}
    return {name: matrix for name, matrix in fields.items() if matrix is not None}


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _write_png(pixels: _Pixels, metadata: str, stream: BinaryIO) -> None:
    from PIL import Image, PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(_METADATA_KEY, metadata)
    Image.fromarray(pixels).save(stream, "PNG", pnginfo=chunks, compress_level=_PNG_LEVEL)


def _write_jpeg(pixels: _Pixels, metadata: str, stream: BinaryIO) -> None:
    from PIL import Image

    # Full colour resolution: depth edges are colour edges.
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling=0, comment=metadata)


def _write_npy(result: DepthResult, stream: BinaryIO) -> None:
    np.save(stream, result.depth, allow_pickle=False)


def _write_npz(result: DepthResult, stream: BinaryIO) -> None:
    names = [field.name for field in dataclasses.fields(result) if field.name not in ("kind", "camera")]
    values = {name: getattr(result, name) for name in names}
    values |= {"kind": result.kind.value, "unit": result.unit, _METADATA_KEY: _json(result)}
    values |= _camera_fields(result)
    arrays = {name: np.asarray(value) for name, value in values.items() if value is not None}
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # the stub reads them as allow_pickle


def _write_tiff(result: DepthResult, stream: BinaryIO) -> None:
    from PIL import Image

    Image.fromarray(result.depth).save(stream, "TIFF", tiffinfo={_IMAGE_DESCRIPTION: _json(result)})


def _write_pfm(result: DepthResult, stream: BinaryIO) -> None:
    height, width = result.depth.shape
    stream.write(f"Pf\n{width} {height}\n-1.0\n".encode())  # the minus sign means little-endian
    stream.write(result.depth[::-1].astype("<f4").tobytes())  # bottom row first


def _write_exr(result: DepthResult, stream: BinaryIO) -> None:
    try:
        import OpenEXR  # ships no types
    except ImportError as error:
        raise SaveError("OpenEXR is missing, which .exr files need: pip install 'mlx-depth[exr]'.") from error
    header = {
        "compression": OpenEXR.ZIP_COMPRESSION,
        "type": OpenEXR.scanlineimage,
        _METADATA_KEY: _json(result),
    }
    with tempfile.TemporaryDirectory() as folder:  # OpenEXR 3.3 writes to a file name alone
        file = Path(folder) / "depth.exr"
        OpenEXR.File(header, {"Z": np.ascontiguousarray(result.depth)}).write(str(file))
        stream.write(file.read_bytes())


def _write_json(result: DepthResult, stream: BinaryIO) -> None:
    stream.write(json.dumps(sidecar(result), allow_nan=False, indent=2).encode() + b"\n")


_PICTURES: dict[str, Callable[[DepthResult, str], _Pixels]] = {
    "png16": lambda result, _: png16_values(result),
    "color": DepthResult.colorize,
    "gray": lambda result, _: (result.normalized() * 255).astype(np.uint8),
    "side-by-side": DepthResult.side_by_side,
}
_DATA: dict[str, Callable[[DepthResult, BinaryIO], None]] = {
    "npy": _write_npy,
    "npz": _write_npz,
    "tiff": _write_tiff,
    "pfm": _write_pfm,
    "exr": _write_exr,
    "json": _write_json,
}
