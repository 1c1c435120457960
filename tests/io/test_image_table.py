"""Container × bits × channels × alpha × order × photometric tag × profile: read as others read it, or refused.

Every picture is made here, so that its values are known; what OpenCV or tifffile read of a file is compared as well.
"""

import io
import itertools
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pillow_heif
import pytest
import tifffile
from image_files import png, tiff, tiff_page
from PIL import Image, ImageCms
from support import require

from mlx_depth.errors import ImageError
from mlx_depth.io.image import load_image

cv2 = require("reference", "cv2")

SIZE = (35, 37)
UNIT = np.random.RandomState(0).random_sample((*SIZE, 4))  # R, G, B, A
UNIT[:2] = np.linspace(0, 1, SIZE[1])[:, np.newaxis]  # black and white are among them
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
BACKGROUND = (0, 200, 90)
NOT_READ = r"which is not read: save it as 8-bit RGB, or as PNG"
RAW = r"is a camera raw file, .*: export it as JPEG, PNG or TIFF from a raw converter"


@dataclass(frozen=True)
class Case:
    name: str
    data: Callable[[], bytes]
    expected: np.ndarray | None  # RGB, 0..255, before rounding; None: refused
    reason: str = NOT_READ
    others: bool = True  # whether OpenCV and tifffile say the same
    tolerance: int = 1  # 2 where color and alpha are both cut to 8 bits before they are mixed


def levels(channels: int, bits: int) -> np.ndarray:
    """Integers (H, W, channels)."""
    return np.rint(UNIT[..., :channels] * (2**bits - 1)).astype(np.int64)


def gray(samples: np.ndarray, white: int) -> np.ndarray:
    return np.repeat(samples[..., :1] / white * 255, 3, axis=2)


def over(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """On the background, where alpha, 0..1, is that of every pixel."""
    return color * alpha[..., np.newaxis] + np.array(BACKGROUND) * (1 - alpha[..., np.newaxis])


def png_cases() -> Iterator[Case]:
    kinds = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
    for (kind, all_bits), profile in itertools.product(kinds.items(), (False, True)):
        for bits in all_bits:
            white = 2**bits - 1
            samples = levels(channels[kind], bits)
            chunks = [(b"iCCP", b"p\0\0" + zlib.compress(PROFILE))] if profile else []
            expected = gray(samples, white) if kind in (0, 4) else samples[..., :3] / white * 255
            if kind == 3:
                table = np.random.RandomState(1).randint(0, 256, (white + 1, 3), np.uint8)
                chunks.append((b"PLTE", table.tobytes()))
                expected = table[samples[..., 0]].astype(float)
            if kind in (4, 6):
                expected = over(expected, samples[..., -1] / white)
            yield Case(
                f"png-type{kind}-{bits}bit{'-profile' * profile}",
                lambda samples=samples, bits=bits, kind=kind, chunks=chunks: png(samples, bits, kind, *chunks),
                expected,
                others=kind not in (4, 6),
                tolerance=2 if kind in (4, 6) and bits == 16 else 1,
            )


def tiff_gray_cases() -> Iterator[Case]:
    for inverted, bits, order, deflate in itertools.product(
        (False, True), (1, 2, 4, 8, 10, 12, 14, 16, 32), "<>", (False, True)
    ):
        samples = levels(1, bits)
        white = 2**bits - 1
        expected = gray(white - samples if inverted else samples, white)
        upside_down_and_big = inverted and order == ">"
        read = bits <= 8 or (bits == 16 and not upside_down_and_big) or (bits, inverted, order) == (12, False, "<")
        unscaled = (bits, inverted, order) == (32, False, "<")
        reason = "holds 32-bit values from .* scale them to 16 bits" if unscaled else NOT_READ
        yield Case(
            f"tiff-gray{'-min-is-white' * inverted}-{bits}bit-{'little' if order == '<' else 'big'}{'-zip' * deflate}",
            lambda samples=samples, bits=bits, inverted=inverted, order=order, deflate=deflate: tiff(
                tiff_page(samples, bits, 0 if inverted else 1, order=order, deflate=deflate), order=order
            ),
            expected if read else None,
            reason,
        )


COLORS = {  # name → photometric tag, samples, meaning of the last one (0 unknown, 1 premultiplied, 2 alpha)
    "rgb": (2, 3, None),
    "rgba": (2, 4, 2),
    "rgb-and-more": (2, 4, 0),
    "premultiplied": (2, 4, 1),
    "gray-alpha": (1, 2, 2),
    "gray-alpha-min-is-white": (0, 2, 2),
    "cmyk": (5, 4, None),
    "lab": (8, 3, None),
    "ycbcr-in-blocks": (6, 3, None),
}


def tiff_color_cases() -> Iterator[Case]:
    for name, bits, order, in_planes, deflate in itertools.product(COLORS, (8, 16), "<>", (False, True), (False, True)):
        photometric, count, extra = COLORS[name]
        white = 2**bits - 1
        samples = levels(count, bits)
        if name == "premultiplied":
            samples[..., 3] = white
        yield Case(
            f"tiff-{name}-{bits}bit-{'little' if order == '<' else 'big'}{'-planes' * in_planes}{'-zip' * deflate}",
            lambda a=(samples, bits, photometric), order=order, planes=in_planes, deflate=deflate, extra=extra: tiff(
                tiff_page(
                    *a,
                    order=order,
                    in_planes=planes,
                    deflate=deflate,
                    tags={} if extra is None else {338: ("H", [extra])},
                ),
                order=order,
            ),
            color_of(name, samples, white) if is_read(name, bits, in_planes, deflate) else None,
            others=name in ("rgb", "rgb-and-more", "premultiplied"),
            tolerance=2 if name == "rgba" and bits == 16 else 1,
        )


def color_of(name: str, samples: np.ndarray, white: int) -> np.ndarray:
    unit = samples / white
    if name == "cmyk":
        return 255 * (1 - unit[..., :3]) * (1 - unit[..., 3:])
    if name == "gray-alpha":
        return over(gray(samples, white), unit[..., 1])
    return over(unit[..., :3] * 255, unit[..., 3]) if name == "rgba" else unit[..., :3] * 255


def is_read(name: str, bits: int, in_planes: bool, deflate: bool) -> bool:
    if name in ("lab", "ycbcr-in-blocks", "gray-alpha-min-is-white"):
        return False
    if name == "gray-alpha":
        return bits == 8 and not in_planes
    if name == "cmyk":
        return bits == 8
    if name in ("rgb-and-more", "premultiplied") and in_planes:
        return deflate
    return bits == 8 or deflate or not in_planes


def tiff_other_cases() -> Iterator[Case]:
    eight, sixteen = levels(3, 8).astype(np.uint8), levels(3, 16).astype(np.uint16)
    for order, big, tile, zipped in itertools.product("<>", (False, True), (None, (16, 16)), (None, "zlib")):
        for values in (eight, sixteen, sixteen[..., 0]):
            white = np.iinfo(values.dtype).max
            options = {"byteorder": order, "bigtiff": big, "tile": tile, "compression": zipped}
            name = f"tiff{'-big' * big}-{values.ndim}axes-{values.dtype}-{'little' if order == '<' else 'big'}"
            yield Case(
                name + "-tiles" * bool(tile) + "-zip" * bool(zipped),
                lambda values=values, options=options: by_tifffile(values, **options),
                None if big and order == ">" else np.atleast_3d(values) / white * 255 * np.ones(3),
                reason="is not an image|is a TIFF|truncated or damaged",
                others=tile is None,  # OpenCV leaves the last tiles of 16-bit gray empty
            )
    for dtype in (np.int8, np.int16):
        values = (levels(1, 8)[..., 0] // 2).astype(dtype)
        yield Case(f"tiff-{np.dtype(dtype)}", lambda values=values: by_tifffile(values, photometric="minisblack"), None)
    for dtype in (np.float16, np.float32, np.float64):
        values = UNIT[..., 0].astype(dtype)
        expected = values[..., np.newaxis] * 255 * np.ones(3) if dtype is np.float32 else None
        yield Case(f"tiff-{np.dtype(dtype)}", lambda values=values: by_tifffile(values), expected, others=False)
    for bits in (1, 4, 8, 16):
        index = levels(1, bits)
        table = np.random.RandomState(2).randint(0, 256, (3, 2**bits)) * 257
        tags = {320: ("H", table.ravel().tolist())}
        yield Case(
            f"tiff-palette-{bits}bit",
            lambda index=index, bits=bits, tags=tags: tiff(tiff_page(index, bits, 3, tags=tags)),
            None if bits == 16 else table.T[index[..., 0]] / 257.0,
            others=False,
        )
    ycbcr = {530: ("H", [1, 1])}
    yield Case(
        "tiff-ycbcr-in-full",
        lambda: tiff(tiff_page(np.asarray(Image.fromarray(eight).convert("YCbCr")), 8, 6, tags=ycbcr)),
        np.asarray(Image.fromarray(eight).convert("YCbCr").convert("RGB")).astype(float),
        others=False,
    )
    yield Case("tiff-5-6-5-bits", lambda: tiff(tiff_page(levels(3, 8), 8, 2, tags={258: ("H", [5, 6, 5])})), None)


def by_tifffile(values: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


REDUCED = {254: ("I", [1])}


def tiff_page_cases() -> Iterator[Case]:
    """Thumbnails, previews and raw data in one file with the photo."""
    photo, small = levels(3, 8), levels(3, 8)[:4, :5]
    full = tiff_page(photo, 8, 2)
    preview = tiff_page(small, 8, 2, tags=REDUCED)
    expected = photo.astype(float)
    turned = tiff_page(small, 8, 2, tags={**REDUCED, 274: ("H", [6])})
    mosaic = tiff_page(photo[..., :1], 8, 32803)
    linear = tiff_page(photo, 8, 34892)
    table = {
        "photo-then-thumbnail": (lambda: tiff(full, preview), expected),
        "photo-then-other-photo": (lambda: tiff(tiff_page(small, 8, 2), full), small.astype(float)),
        "thumbnail-then-photo": (lambda: tiff(preview, full), expected),
        "thumbnail-around-photo": (lambda: tiff(preview, full, within=1), expected),
        "thumbnail-around-photo-big": (
            lambda: tiff(
                tiff_page(small, 8, 2, tags=REDUCED, order=">"), tiff_page(photo, 8, 2, order=">"), order=">", within=1
            ),
            expected,
        ),
        "thumbnail-says-the-turn": (lambda: tiff(turned, full, within=1), np.rot90(expected, -1)),
        "thumbnail-alone": (lambda: tiff(preview), small.astype(float)),
        "dng": (lambda: tiff(preview, mosaic, within=1), None),
        "dng-of-two-previews": (
            lambda: tiff(preview, mosaic, tiff_page(photo[:20], 8, 2, tags=REDUCED), within=2),
            None,
        ),
        "dng-linear": (lambda: tiff(preview, linear, within=1), None),
        "raw-without-a-thumbnail": (lambda: tiff(mosaic), None),
        "preview-that-does-not-say-so": (lambda: tiff(tiff_page(small, 8, 2), mosaic), None),
    }
    for name, (data, wanted) in table.items():
        yield Case(f"tiff-{name}", data, wanted, RAW, others=False)


def netpbm_cases() -> Iterator[Case]:
    for white, plain in itertools.product((1, 100, 255, 1023, 4095, 65535), (False, True)):
        for count in (1, 3):
            samples = np.rint(UNIT[..., :count] * white).astype(np.int64)
            number = (2 if count == 1 else 3) + (0 if plain else 3)
            header = f"P{number}\n{SIZE[1]} {SIZE[0]}\n{white}\n".encode()
            body = (
                " ".join(map(str, samples.ravel())).encode()
                if plain
                else samples.astype(">u2" if white > 255 else "u1").tobytes()
            )
            yield Case(
                f"netpbm-P{number}-white{white}",
                lambda header=header, body=body: header + body,
                np.broadcast_to(samples / white * 255, (*SIZE, 3)),
                others=white in (255, 65535),
            )


def by_pillow(picture: np.ndarray, form: str, mode: str | None = None, **options: object) -> bytes:
    image = Image.fromarray(picture)
    stream = io.BytesIO()
    (image.convert(mode) if mode else image).save(stream, form, **options)
    return stream.getvalue()


def by_opencv(picture: np.ndarray, suffix: str, *options: int) -> bytes:
    ok, data = cv2.imencode(suffix, picture[..., ::-1] if picture.ndim == 3 else picture, options)
    assert ok
    return data.tobytes()


def library_cases() -> Iterator[Case]:
    eight, sixteen = levels(3, 8).astype(np.uint8), levels(3, 16).astype(np.uint16)
    color, luma = eight.astype(float), eight[..., 0]
    of_luma = np.repeat(luma[..., np.newaxis], 3, axis=2).astype(float)
    clear = np.dstack([eight, levels(4, 8)[..., 3].astype(np.uint8)])
    blended = over(color, clear[..., 3] / 255)
    empty = np.dstack([eight, np.zeros(SIZE, np.uint8)])
    for form, options in {
        "PNG": {},
        "BMP": {},
        "PPM": {},
        "TIFF": {},
        "TIFF-lzw": {"compression": "tiff_lzw"},
        "TIFF-deflate": {"compression": "tiff_adobe_deflate"},
        "TIFF-packbits": {"compression": "packbits"},
        "WEBP": {"lossless": True},
        "JPEG2000": {},
    }.items():
        kind = form.partition("-")[0]
        for profile in (b"", PROFILE) if kind in ("PNG", "TIFF", "WEBP") else (b"",):
            told = {**options, "icc_profile": profile} if profile else options
            end = f"{form}{'-profile' * bool(profile)}"
            yield Case(f"pillow-rgb-{end}", lambda k=kind, t=told: by_pillow(eight, k, **t), color)
            if kind != "WEBP":
                yield Case(f"pillow-gray-{end}", lambda k=kind, t=told: by_pillow(luma, k, **t), of_luma)
            if kind not in ("PPM", "BMP"):
                yield Case(f"pillow-rgba-{end}", lambda k=kind, t=told: by_pillow(clear, k, **t), blended, others=False)
        if kind not in ("PPM", "JPEG2000"):
            exact = {**options, "exact": True} if kind == "WEBP" else options
            yield Case(f"pillow-no-alpha-{form}", lambda k=kind, t=exact: by_pillow(empty, k, **t), color, others=False)
    for suffix, values in itertools.product((".png", ".tiff", ".pnm", ".jp2"), (eight, sixteen, luma, sixteen[..., 0])):
        wide_color = values is sixteen and suffix == ".jp2"
        expected = None if wide_color else np.atleast_3d(values) / np.iinfo(values.dtype).max * 255 * np.ones(3)
        lossless = (cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000) if suffix == ".jp2" else ()
        yield Case(
            f"opencv{suffix}-{values.ndim}axes-{values.dtype}",
            lambda v=values, s=suffix, o=lossless: by_opencv(v, s, *o),
            expected,
            "is a JPEG 2000 of 3 x 16 bits, whose white the decoder makes black: save it as 8-bit RGB, or as PNG",
        )
    yield Case("opencv.bmp", lambda: by_opencv(eight, ".bmp"), color)
    yield Case("opencv.webp", lambda: by_opencv(eight, ".webp", cv2.IMWRITE_WEBP_QUALITY, 101), color)
    yield Case("heic", lambda: by_libheif(eight), color, others=False)
    yield Case("heic-10bit", lambda: by_libheif_in_ten_bits(levels(3, 10)), levels(3, 10) / 1023 * 255, others=False)
    yield Case("heic-profile", lambda: by_libheif(eight, icc_profile=PROFILE), color, others=False)


def by_libheif(picture: np.ndarray, **info: object) -> bytes:
    image = Image.fromarray(picture)
    image.info.update(info)
    stream = io.BytesIO()
    pillow_heif.from_pillow(image).save(stream, quality=-1, chroma=444, matrix_coefficients=0)
    return stream.getvalue()


def by_libheif_in_ten_bits(samples: np.ndarray) -> bytes:
    stream = io.BytesIO()
    wide = (samples << 6).astype("<u2").tobytes()
    picture = pillow_heif.from_bytes("RGB;16", SIZE[::-1], wide)
    picture.save(stream, quality=-1, chroma=444, matrix_coefficients=0)
    return stream.getvalue()


CASES = [
    *png_cases(),
    *tiff_gray_cases(),
    *tiff_color_cases(),
    *tiff_other_cases(),
    *tiff_page_cases(),
    *netpbm_cases(),
    *library_cases(),
]


def test_the_table_is_large_and_names_each_case_once():
    assert len(CASES) >= 120
    assert len({case.name for case in CASES}) == len(CASES)
    assert sum(case.expected is not None for case in CASES) >= 200


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_read_right_or_refused(case):
    data = case.data()
    if case.expected is None:
        with pytest.raises(ImageError, match=case.reason):
            load_image(data, background=BACKGROUND)
        return
    pixels = load_image(data, background=BACKGROUND).pixels
    assert pixels.shape == case.expected.shape
    off = np.abs(pixels - case.expected).max()
    assert off <= case.tolerance
    if case.others:
        for reading in [*by_opencvs_reader(data), *by_tifffiles_reader(data)]:
            off = np.abs(pixels - reading).max()
            assert off <= 1


def by_opencvs_reader(data: bytes) -> Iterator[np.ndarray]:
    """RGB, 0..255, of what OpenCV takes."""
    read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if read is not None and read.dtype.kind == "u":
        yield read[..., ::-1] / np.iinfo(read.dtype).max * 255


def by_tifffiles_reader(data: bytes) -> Iterator[np.ndarray]:
    """RGB, 0..255, of gray and RGB in TIFFs; it gives values as they are stored."""
    if data[:2] not in (b"II", b"MM"):
        return
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        if page.bitspersample not in (8, 16) or page.photometric.name not in ("MINISBLACK", "MINISWHITE", "RGB"):
            return
        if page.compression not in (1, 8, 32946):
            return
        values = page.asarray()
        if page.planarconfig == 2 and values.ndim == 3:
            values = np.moveaxis(values, 0, -1)
    unit = np.atleast_3d(values) / np.iinfo(values.dtype).max
    unit = 1 - unit if page.photometric.name == "MINISWHITE" else unit
    yield np.broadcast_to(unit[..., :3] * 255, (*unit.shape[:2], 3))
