"""Every way an image comes in, by value; every way it cannot, by message."""

import io
import os
import struct
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np
import pillow_heif
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import ExifTags, Image
from PIL.BmpImagePlugin import BmpImageFile
from support import require

from mlx_depth.errors import ImageError, OptionError
from mlx_depth.io.image import ImageInfo, LoadedImage, load_image

RED, GREEN, BLUE, GRAY = (230, 30, 20), (20, 200, 40), (10, 40, 210), (128, 128, 128)
BLOCK = 16
ORIENTATIONS = range(1, 9)
FILM_DIAGONAL = (36**2 + 24**2) ** 0.5


def scene() -> np.ndarray:
    """(32, 48, 3): six flat blocks; lossy coding keeps the color of their centres, and every turn shows."""
    blocks = np.array([[RED, GREEN, BLUE], [GRAY, (250, 250, 0), (0, 0, 0)]], np.uint8)
    return blocks.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)


def centres(pixels: np.ndarray) -> np.ndarray:
    return pixels[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK].astype(int)


def encode(picture: np.ndarray | Image.Image, form: str, **options: object) -> bytes:
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def encode_heic(picture: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(picture)).save(stream, quality=95, **options)
    return stream.getvalue()


def png(width: int, height: int, depth: int, color: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand, for the kinds that Pillow does not write."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in (header, *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        parts.append(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    return b"".join(parts)


def stored_as(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores under this tag: EXIF 2.32, 4.6.4 says where row 0 and column 0 of the file lie."""
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]


def exif_of(orientation: int | None = None, **tags: object) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    for name, value in tags.items():
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base[name]] = value
    return exif.tobytes()


# Sources


def test_every_source_gives_the_same_pixels(tmp_path, monkeypatch):
    data = encode(scene(), "PNG")
    path = tmp_path / "a photo é.png"
    path.write_bytes(data)
    monkeypatch.setenv("HOME", str(tmp_path))
    sources = {
        str(path): str(path),
        path: str(path),
        "~/a photo é.png": str(path),
        data: "<bytes>",
        memoryview(data): "<bytes>",
    }
    for source, name in [*sources.items(), (bytearray(data), "<bytes>"), (io.BytesIO(data), "<file>")]:
        pixels, info = load_image(source)
        np.testing.assert_array_equal(pixels, scene())
        assert info == ImageInfo(name, (32, 48), 1, None)
    with path.open("rb") as file:
        assert load_image(file).info.source == str(path)
    for source, name in ((Image.fromarray(scene()), "<PIL image>"), (scene(), "<array>")):
        pixels, info = load_image(source)
        np.testing.assert_array_equal(pixels, scene())
        assert info == ImageInfo(name, (32, 48))


def test_file_object_without_seek():
    class Pipe:
        def read(self):
            return encode(scene(), "PNG")

    np.testing.assert_array_equal(load_image(Pipe()).pixels, scene())


def test_named_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(encode(scene(), "PNG"),))
    writer.start()
    np.testing.assert_array_equal(load_image(pipe).pixels, scene())
    writer.join()


def test_pixels_are_contiguous_and_read_only():
    array = scene()
    for source in (array, array[:, ::-1], array[..., :1], encode(array, "PNG"), Image.fromarray(array)):
        pixels = load_image(source).pixels
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        assert not pixels.flags.writeable
    assert array.flags.writeable
    np.testing.assert_array_equal(mx.array(load_image(array).pixels), array)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "bool", "float32", "RGBA", "gray", "bytearray", "memoryview"])
def test_a_buffer_that_is_filled_again_does_not_change_what_was_read(kind):
    """As ``cv2.VideoCapture.read(buffer)`` does with its frames."""
    frame = {"RGBA": np.dstack([scene(), np.full((32, 48), 255, np.uint8)]), "gray": scene()[..., 0].copy()}.get(
        kind, scene()
    )
    if kind in ("bytearray", "memoryview"):
        buffer = bytearray(encode(frame, "BMP"))
        source = memoryview(buffer) if kind == "memoryview" else buffer
    else:
        source = buffer = {"float32": frame / np.float32(255), "uint16": frame * np.uint16(257), "bool": frame > 9}.get(
            kind, frame
        )
    pixels = load_image(source).pixels
    before = pixels.copy()
    buffer[:] = bytes(len(buffer)) if isinstance(buffer, bytearray) else 0
    np.testing.assert_array_equal(pixels, before)
    assert before.any()


# Formats


@pytest.mark.parametrize(
    ("form", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("PPM", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG2000", {}, 0),
        ("GIF", {}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 4),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 4),
        ("AVIF", {"quality": 95}, 8),
    ],
)
def test_formats(form, options, tolerance):
    pixels = load_image(encode(scene(), form, **options)).pixels
    assert np.abs(centres(pixels) - centres(scene())).max() <= tolerance


def test_heic():
    pixels, info = load_image(encode_heic(scene()))
    assert np.abs(centres(pixels) - centres(scene())).max() <= 8
    assert info == ImageInfo("<bytes>", (32, 48))


def with_brands(data: bytes, first: bytes, *others: bytes) -> bytes:
    """The same file, whose type box names other brands."""
    end = int.from_bytes(data[:4], "big")
    room = (end - 16) // 4
    return data[:8] + first + data[12:16] + b"".join([*others, *[others[-1]] * room][:room]) + data[end:]


@pytest.mark.parametrize("first", [b"mif1", b"msf1", b"miaf", b"mif2", b"MiHE", b"heim", b"hevx", b"isom", b"abcd"])
def test_the_decoders_say_which_brands_they_read(first):
    """Files that name the usual brand second, as some cameras and editors write them."""
    for data, usual in (
        (encode_heic(scene()), b"heic"),
        (encode(scene(), "AVIF", quality=95), b"avif"),
    ):
        pixels = load_image(with_brands(data, first, usual, b"mif1")).pixels
        assert np.abs(centres(pixels) - centres(scene())).max() <= 8


def test_a_film_in_the_container_of_heic_is_no_image():
    film = b"\0\0\0\x18ftypisom\0\0\0\0isomavc1" + bytes(400)
    with pytest.raises(ImageError, match=r"<bytes> is not an image, or its header is damaged .*: give JPEG, PNG"):
        load_image(film)


def test_avif_needs_no_libheif(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert load_image(encode(scene(), "AVIF")).info.size == (32, 48)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame(form):
    frames = [Image.new("RGB", (8, 6), color) for color in (RED, GREEN, BLUE)]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(load_image(data).pixels, np.full((6, 8, 3), RED))


# Color


def test_palette():
    picture = Image.fromarray(scene()).quantize(6)
    assert picture.mode == "P"
    np.testing.assert_array_equal(load_image(encode(picture, "PNG")).pixels, picture.convert("RGB"))


def test_palette_with_transparency():
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, *BLUE])
    picture.putdata([0, 1])
    one_index = load_image(encode(picture, "PNG", transparency=1), background=GREEN).pixels
    np.testing.assert_array_equal(one_index, [[RED, GREEN]])
    by_table = load_image(encode(picture, "PNG", transparency=b"\xff\x00"), background=GREEN).pixels
    np.testing.assert_array_equal(by_table, [[RED, GREEN]])


def test_gray_and_one_bit():
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    np.testing.assert_array_equal(load_image(encode(gray, "PNG")).pixels, np.stack([gray] * 3, axis=2))
    black_and_white = gray > 100
    loaded = load_image(encode(Image.fromarray(black_and_white), "PNG")).pixels
    np.testing.assert_array_equal(loaded, np.stack([black_and_white * 255] * 3, axis=2))


def test_cmyk_jpeg_is_not_inverted():
    picture = Image.fromarray(scene()).convert("CMYK")
    data = encode(picture, "JPEG", quality=95)
    assert b"Adobe" in data
    assert np.abs(centres(load_image(data).pixels) - centres(scene())).max() <= 6
    np.testing.assert_array_equal(load_image(encode(picture, "TIFF")).pixels, picture.convert("RGB"))


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "RGBX"])
def test_other_color_modes_of_pil_images(mode):
    picture = Image.fromarray(scene()).convert(mode)
    assert np.abs(load_image(picture).pixels.astype(int) - scene()).max() <= 6


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 77)])
def test_alpha_is_composited_on_the_background(background):
    rgba = np.array([[[*RED, 0], [*RED, 255], [*RED, 128], [*BLUE, 51]]], np.uint8)
    alpha = rgba[..., 3:] / 255
    expected = np.rint(rgba[..., :3] * alpha + np.array(background) * (1 - alpha))
    unit = (rgba / np.float32(255)).astype(np.float32)
    for source in (
        encode(rgba, "PNG"),
        Image.fromarray(rgba),
        rgba,
        mx.array(rgba),
        rgba * np.uint16(257),
        unit,
    ):
        loaded = load_image(source, background=background).pixels
        assert np.abs(loaded - expected).max() <= 0.5
    gray = Image.merge("LA", [Image.fromarray(rgba[..., band]) for band in (0, 3)])
    assert np.abs(load_image(gray, background=background).pixels - expected[..., :1])[:, 1].max() == 0
    np.testing.assert_array_equal(load_image(gray, background=background).pixels[0, 0], background)


def test_alpha_that_is_zero_everywhere_says_nothing():
    """Screenshots as BMP leave the fourth byte empty; so do some arrays of graphics cards."""
    rgba = np.dstack([scene(), np.zeros((32, 48), np.uint8)])
    for source in (encode(rgba, "PNG"), encode(rgba, "BMP"), encode(rgba, "TIFF"), Image.fromarray(rgba), rgba):
        np.testing.assert_array_equal(load_image(source, background=GREEN).pixels, scene())
    rgba[0, 0, 3] = 1
    assert (load_image(encode(rgba, "PNG"), background=GREEN).pixels[1:] == GREEN).all()
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *BLUE])
    palette.putdata([0, 1])
    unseen = encode(palette, "PNG", transparency=b"\0\0")
    np.testing.assert_array_equal(load_image(unseen, background=GREEN).pixels, [[RED, BLUE]])


def test_premultiplied_alpha_of_pil_images():
    rgba = Image.new("RGBA", (3, 2), (200, 100, 0, 128))
    expected = load_image(rgba).pixels.astype(int)
    assert np.abs(load_image(rgba.convert("RGBa")).pixels - expected).max() <= 2
    gray = Image.new("LA", (3, 2), (200, 128))
    assert np.abs(load_image(gray.convert("La")).pixels.astype(int) - load_image(gray).pixels).max() <= 2


def test_color_key_of_a_true_color_png():
    data = encode(np.array([[RED, BLUE]], np.uint8), "PNG", transparency=BLUE)
    np.testing.assert_array_equal(load_image(data, background=GREEN).pixels, [[RED, GREEN]])


def test_icc_profile_is_not_applied():
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    data = encode(scene(), "PNG", icc_profile=profile)
    np.testing.assert_array_equal(load_image(data).pixels, scene())


# Side data never costs the picture


def text_chunk(kind: bytes, keyword: bytes, text: bytes) -> tuple[bytes, bytes]:
    packed = zlib.compress(text)
    return {
        b"tEXt": (kind, keyword + b"\0" + text),
        b"zTXt": (kind, keyword + b"\0\0" + packed),
        b"iTXt": (kind, keyword + b"\0\1\0\0\0" + packed),
        b"iCCP": (kind, keyword + b"\0\0" + packed),
    }[kind]


@pytest.mark.parametrize("size", [10, 3_000_000])
@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("keyword", [b"workflow", b"XML:com.adobe.xmp", b"Raw profile type exif"])
def test_text_and_profiles_of_any_size(kind, keyword, size):
    rows = b"".join(b"\0" + row.tobytes() for row in scene())
    data = png(48, 32, 8, 2, rows, text_chunk(kind, keyword, b"x" * size))
    np.testing.assert_array_equal(load_image(data).pixels, scene())


def test_many_texts():
    rows = b"".join(b"\0" + row.tobytes() for row in scene())
    texts = [text_chunk(b"zTXt", b"XML:com.adobe.xmp", b"y" * 900_000) for _ in range(100)]
    np.testing.assert_array_equal(load_image(png(48, 32, 8, 2, rows, *texts)).pixels, scene())


def test_damaged_side_data():
    rows = b"".join(b"\0" + row.tobytes() for row in scene())
    for chunk in (
        (b"tEXt", b"no end"),
        (b"zTXt", b"k\0\0not packed"),
        (b"iTXt", b""),
        (b"iCCP", b"?"),
        (b"prVt", b"x"),
    ):
        data = png(48, 32, 8, 2, rows, chunk)
        np.testing.assert_array_equal(load_image(data).pixels, scene())
        at = data.index(chunk[0]) + 4 + len(chunk[1])
        wrong_sum = data[:at] + b"\0\0\0\0" + data[at + 4 :]
        np.testing.assert_array_equal(load_image(wrong_sum).pixels, scene())


def test_orientation_in_texts_of_a_png():
    """ImageMagick writes EXIF as hexadecimal text, Adobe's programs write XMP."""
    stored = np.ascontiguousarray(stored_as(scene(), 6))
    rows = b"".join(b"\0" + row.tobytes() for row in stored)
    exif = exif_of(6)
    raw = b"\nexif\n%8d\n" % len(exif) + exif.hex().encode() + b"\n"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    for chunk in (
        text_chunk(b"zTXt", b"Raw profile type exif", raw),
        text_chunk(b"iTXt", b"XML:com.adobe.xmp", xmp),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    ):
        pixels, info = load_image(png(32, 48, 8, 2, rows, chunk))
        assert info.orientation == 6
        np.testing.assert_array_equal(pixels, scene())


def test_each_decoder_error_has_its_own_advice(monkeypatch):
    for error, message in (
        (MemoryError(), "<bytes> does not fit into the memory that is free: shrink it"),
        (NotImplementedError("4:1:0"), r"of a kind that the decoder does not know \(4:1:0\): export it as PNG or JPEG"),
        (OSError("decoder jpeg2k not available"), "of a kind that the decoder does not know"),
        (OSError("broken data stream \x1b[2J"), r"is truncated or damaged \(broken data stream \\x1b\[2J\): fetch or"),
    ):

        def fail(self, error=error):
            raise error

        monkeypatch.setattr(BmpImageFile, "load", fail)
        with pytest.raises(ImageError, match=message):
            load_image(encode(scene(), "BMP"))


# Sixteen bits


WIDE = np.array([[0, 127, 128, 129, 256], [385, 386, 32768, 65406, 65407], [1, 300, 65535, 40000, 257]], np.uint16)
NARROW = np.rint(WIDE / 257.0)


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(lambda: encode(WIDE, "PNG"), id="png"),
        pytest.param(lambda: encode(WIDE, "TIFF"), id="tiff"),
        pytest.param(lambda: encode(Image.fromarray(WIDE).convert("I"), "TIFF"), id="tiff-mode-I"),
        pytest.param(lambda: b"P5 5 3 65535\n" + WIDE.astype(">u2").tobytes(), id="pgm"),
        pytest.param(
            lambda: encode(Image.frombytes("I;16B", (5, 3), WIDE.astype(">u2").tobytes()), "TIFF"),
            id="tiff-I;16B",
        ),
    ],
)
def test_sixteen_bit_gray_files_are_scaled_not_clipped(encoded):
    np.testing.assert_array_equal(load_image(encoded()).pixels, np.stack([NARROW] * 3, axis=2))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_sixteen_bit_pil_images(mode):
    kinds = {"I;16B": ">u2", "I": "=i4", "I;16N": "=u2"}
    picture = Image.frombytes(mode, (5, 3), WIDE.astype(kinds.get(mode, "<u2")).tobytes())
    np.testing.assert_array_equal(load_image(picture).pixels[..., 1], NARROW)


def test_sixteen_bit_gray_png_with_a_transparent_value():
    rows = b"\0" + struct.pack(">HHH", 1000, 40000, 1001)
    data = png(3, 1, 16, 0, rows, (b"tRNS", struct.pack(">H", 1000)))
    np.testing.assert_array_equal(load_image(data, background=GREEN).pixels, [[GREEN, [156] * 3, [4] * 3]])


def test_sixteen_bit_color_png():
    values = np.array([[[0, 257, 65535], [40000, 30000, 513]]], ">u2")
    data = png(2, 1, 16, 2, b"\0" + values.tobytes())
    assert np.abs(load_image(data).pixels - values / 257.0).max() <= 1


def test_float_files():
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    for data in (encode(values, "TIFF"), b"Pf 4 3 -1\n" + values[::-1].tobytes()):
        np.testing.assert_array_equal(load_image(data).pixels[..., 0], np.rint(values * 255))


def test_values_without_a_known_range_are_refused():
    with pytest.raises(ImageError, match="<bytes> holds 32-bit values from 0 to 70000: scale them to 16 bits"):
        load_image(encode(np.array([[0, 70000]], np.int32), "TIFF"))
    with pytest.raises(ImageError, match="<PIL image> holds 32-bit values from -1 to 5"):
        load_image(Image.fromarray(np.array([[-1, 5]], np.int32)))
    with pytest.raises(ImageError, match=r"<bytes> holds floats from 0 to 255: scale them to 0\.\.1"):
        load_image(encode(np.array([[0, 255]], np.float32), "TIFF"))
    with pytest.raises(ImageError, match="<bytes> holds NaN or infinite values"):
        load_image(encode(np.array([[0, np.nan]], np.float32), "TIFF"))


# Arrays


@given(
    data=st.data(),
    dtype=st.sampled_from(["u1", "<u2", ">u2", "?", "<f2", "<f4", ">f4", "<f8"]),
    channels=st.sampled_from([None, 1, 3]),
    in_mlx=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_arrays(data, dtype, channels, in_mlx):
    size = (data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7)))
    shape = size if channels is None else (*size, channels)
    elements = {"elements": st.floats(0, 1, width=16)} if "f" in dtype else {}
    array = data.draw(hnp.arrays(dtype, shape, **elements))
    scale = {"u1": 1, "<u2": 1 / 257, ">u2": 1 / 257}.get(dtype, 255)
    wide = array.astype(np.float64 if dtype == "<f8" else np.float32)
    expected = np.rint(wide * np.asarray(scale, wide.dtype))
    expected = np.broadcast_to(expected[..., np.newaxis] if channels is None else expected, (*size, 3))
    native = array.astype(array.dtype.newbyteorder("="))
    source = mx.array(native) if in_mlx and dtype != "<f8" else array
    pixels, info = load_image(source)
    np.testing.assert_array_equal(pixels, expected)
    assert info == ImageInfo("<array>", size)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
def test_mlx_floats(dtype):
    values = mx.array([[0.0, 0.25, 0.5, 1.0]]).astype(dtype)
    np.testing.assert_array_equal(load_image(values).pixels[0, :, 0], [0, 64, 128, 255])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((3, 20, 30)),
            r"\(3, 20, 30\) has its channels first: give \(H, W, C\), image.transpose\(1, 2, 0\)",
        ),
        (np.zeros((2, 20, 30, 3)), r"\(2, 20, 30, 3\) is a batch: give its images one at a time"),
        (np.zeros((20, 30, 2)), r"\(20, 30, 2\) is not an image: give \(H, W\)"),
        (np.zeros(20), r"\(20,\) is not an image"),
        (np.float32(1) * np.ones(()), r"\(\) is not an image"),
        (np.zeros((0, 30, 3)), r"\(0, 30, 3\) has no pixels"),
        (np.zeros((20, 30, 0)), r"\(20, 30, 0\) has no pixels"),
        (np.zeros((4, 4, 3), np.int64), "<array> has the type int64: convert it to uint8, uint16"),
        (np.zeros((4, 4, 3), np.uint32), "<array> has the type uint32"),
        (np.zeros((4, 4, 3), np.complex64), "<array> has the type complex64"),
        (np.full((4, 4), "x"), "<array> has the type <U1"),
        (np.full((4, 4), np.nan), "<array> holds NaN or infinite values"),
        (np.full((4, 4), np.inf, np.float16), "<array> holds NaN or infinite values"),
        (
            np.full((4, 4), 200.0),
            r"<array> holds floats from 200 to 200: scale them to 0\.\.1, or give uint8",
        ),
        (np.array([[-0.25, 1.0]]), r"<array> holds floats from -0\.25 to 1"),
        (mx.zeros((3, 20, 30)), "channels first"),
        (mx.zeros((4, 4), dtype=mx.int32), "<array> has the type int32"),
    ],
)
def test_arrays_that_are_no_images(array, message):
    if not isinstance(array, mx.array):
        array = np.asarray(array)
    with pytest.raises(ImageError, match=message):
        load_image(array)


# EXIF


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF-LZW", "AVIF"])
def test_exif_orientation_is_applied_once(form, orientation):
    form, _, compressed = form.partition("-")
    options = {"compression": "tiff_lzw"} if compressed else {"quality": 95}
    stored = stored_as(scene(), orientation)
    data = encode(np.ascontiguousarray(stored), form, exif=exif_of(orientation), **options)
    pixels, info = load_image(data)
    assert np.abs(centres(pixels) - centres(scene())).max() <= 10
    assert info == ImageInfo("<bytes>", (32, 48), orientation)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_heic_is_turned_once(orientation):
    """The decoder obeys the container's own turn, and the EXIF tag that repeats it must not count again."""
    stored = np.ascontiguousarray(stored_as(scene(), orientation))
    pixels, info = load_image(encode_heic(stored, exif=exif_of(orientation)))
    assert np.abs(centres(pixels) - centres(scene())).max() <= 8
    assert info == ImageInfo("<bytes>", (32, 48))


def test_orientation_of_a_pil_image_leaves_it_as_it_was():
    picture = Image.open(io.BytesIO(encode(scene(), "PNG", exif=exif_of(6))))
    for _ in range(2):
        assert load_image(picture).info == ImageInfo("<PIL image>", (48, 32), 6)
    assert picture.size == (48, 32)
    assert picture.getexif()[ExifTags.Base.Orientation] == 6


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_unknown_orientation_is_none(value):
    assert load_image(encode(scene(), "PNG", exif=exif_of(value))).info.orientation == 1


def test_damaged_exif_does_not_hide_the_pixels():
    data = encode(scene(), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x00")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels, info = load_image(data)
    np.testing.assert_array_equal(pixels, scene())
    assert info == ImageInfo("<bytes>", (32, 48))


DIAGONAL = (32**2 + 48**2) ** 0.5
FROM_26_MM = 26 * DIAGONAL / FILM_DIAGONAL


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, None),
        ({"FocalLengthIn35mmFilm": 26}, FROM_26_MM),
        ({"FocalLengthIn35mmFilm": 26, "FocalLength": 4.2}, FROM_26_MM),
        ({"FocalLengthIn35mmFilm": 0}, None),
        ({"FocalLengthIn35mmFilm": 65535}, None),
        ({"FocalLength": 4.2}, None),
        ({"FocalLength": 50.0, "FocalPlaneXResolution": 25.4}, 50.0),
        ({"FocalLength": 50.0, "FocalPlaneXResolution": 25.4, "FocalPlaneResolutionUnit": 2}, 50.0),
        ({"FocalLength": 50.0, "FocalPlaneXResolution": 12.0, "FocalPlaneResolutionUnit": 3}, 60.0),
        ({"FocalLength": 50.0, "FocalPlaneXResolution": 1.2, "FocalPlaneResolutionUnit": 4}, 60.0),
        ({"FocalLength": 50.0, "FocalPlaneXResolution": 12.0, "FocalPlaneResolutionUnit": 1}, None),
        ({"FocalLength": 50.0, "FocalPlaneXResolution": 0.0}, None),
        ({"FocalLength": 50.0, "FocalPlaneXResolution": 1e9}, None),
        (
            {
                "FocalLength": 50.0,
                "FocalPlaneXResolution": 254.0,
                "ExifImageWidth": 480,
                "ExifImageHeight": 320,
            },
            50.0,
        ),
        (
            {"FocalLengthIn35mmFilm": 0, "FocalLength": 50.0, "FocalPlaneXResolution": 25.4},
            50.0,
        ),
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_focal_length(form, tags, expected):
    for orientation in (1, 6):
        info = load_image(encode(scene(), form, exif=exif_of(orientation, **tags))).info
        assert info.focal_length_px == (None if expected is None else pytest.approx(expected, rel=1e-5))


def test_focal_length_in_heic():
    info = load_image(encode_heic(scene(), exif=exif_of(6, FocalLengthIn35mmFilm=26))).info
    assert info.focal_length_px == pytest.approx(FROM_26_MM)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_same_pixels_as_transformers(tmp_path, form, orientation):
    image_utils = require("reference", "transformers.image_utils")
    path = tmp_path / f"photo.{form.lower()}"
    path.write_bytes(encode(scene(), form, exif=exif_of(orientation)))
    np.testing.assert_array_equal(load_image(path).pixels, image_utils.load_image(str(path)))


# Limits


def bomb(width: int, height: int) -> bytes:
    """A small PNG whose header promises width x height pixels."""
    return png(width, height, 8, 2, b"")


# Pillow fills the canvas of this GIF while it reads the header: 3.6 GB where its limit is off.
GIF_BOMB = b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0x80, 0, 0) + bytes(6)
GIF_BOMB += b"!\xf9\x04\x08\0\0\0\0" + b"," + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\x02\x01\x44\0;"


@pytest.mark.parametrize(
    "data",
    [bomb(20_000, 20_000), bomb(2**31 - 1, 2**31 - 1), b"P6 30000 30000 255\n", GIF_BOMB],
    ids=["png", "largest-png", "ppm", "gif"],
)
def test_decompression_bombs_are_refused_before_anything_is_decoded(data):
    with pytest.raises(ImageError, match=r"<bytes> has more than 268,435,456 pixels: .* raise max_pixels") as raised:
        load_image(data)
    assert isinstance(raised.value.__cause__, Image.DecompressionBombError)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "AVIF", "TIFF", "JPEG2000"])
def test_max_pixels(form, recwarn):
    data, limit = encode(scene(), form), Image.MAX_IMAGE_PIXELS
    assert load_image(data, max_pixels=32 * 48).info.size == (32, 48)
    for smaller in (32 * 48 - 1, 32 * 48 // 3, 1):
        with pytest.raises(ImageError, match=f"<bytes> has more than {smaller:,} pixels"):
            load_image(data, max_pixels=smaller)
    assert limit == Image.MAX_IMAGE_PIXELS
    assert not recwarn.list


def test_max_pixels_of_heic_and_pil_images():
    for source in (encode_heic(scene()), Image.fromarray(scene())):
        with pytest.raises(ImageError, match="has more than 1,535 pixels"):
            load_image(source, max_pixels=1535)


def test_max_pixels_may_pass_the_limit_of_pillow(monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for form in ("PNG", "TIFF", "WEBP"):
        assert load_image(encode(scene(), form)).info.size == (32, 48)
    assert Image.MAX_IMAGE_PIXELS == 100
    assert not recwarn.list


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"background": (0, 0)}, "background"),
        ({"background": (0, 0, 256)}, "three integers from 0 to 255"),
        ({"background": (0.5, 0, 0)}, "background"),
        ({"max_pixels": 0}, "max_pixels is 0"),
        ({"timeout": 0}, "timeout is 0"),
    ],
)
def test_options_out_of_range(option, message):
    with pytest.raises(OptionError, match=message):
        load_image(scene(), **option)


# Files that cannot be read


def test_missing_file(tmp_path):
    with pytest.raises(ImageError, match=r"there is no image .*gone\.png: check the path"):
        load_image(tmp_path / "gone.png")


def test_folder(tmp_path):
    with pytest.raises(ImageError, match="is a folder: give the path of one image"):
        load_image(tmp_path)


def test_unreadable_file(monkeypatch):
    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match=r"secret\.png may not be read: change its permissions"):
        load_image("secret.png")


@pytest.mark.parametrize("name", ["nul\0.png", "~no-such-user-here/a.png", "x" * 5000])
def test_impossible_paths(name):
    with pytest.raises(ImageError, match="check the path"):
        load_image(name)


def test_empty_file(tmp_path):
    path = tmp_path / "empty.jpg"
    path.touch()
    with pytest.raises(ImageError, match=r"empty\.jpg is empty \(0 bytes\)"):
        load_image(path)
    with pytest.raises(ImageError, match=r"<bytes> is empty"):
        load_image(b"")


def test_file_that_was_read_before():
    file = io.BytesIO(encode(scene(), "PNG"))
    load_image(file)
    with pytest.raises(ImageError, match=r"<file> gives no bytes, it is empty or at its end: seek\(0\) takes it back"):
        load_image(file)


def test_text_named_png(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("dear diary\n" * 50)
    with pytest.raises(ImageError, match=r"notes\.png is not an image, or its header is damaged: give JPEG"):
        load_image(path)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "AVIF", "TIFF", "JPEG2000"])
def test_truncated_file(tmp_path, form):
    data = encode(noise(200, 300), form)
    path = tmp_path / f"half.{form.lower()}"
    for kept in (len(data) // 2, len(data) * 9 // 10):
        path.write_bytes(data[:kept])
        with pytest.raises(ImageError, match=r"half\.\w+ is (truncated or damaged|not an image)"):
            load_image(path)


def test_truncated_heic():
    data = encode_heic(noise(64, 64))
    with pytest.raises(ImageError, match="<bytes> is truncated or damaged"):
        load_image(data[: len(data) // 2])


def test_vector_graphics_are_refused():
    with pytest.raises(ImageError, match="is not an image"):
        load_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")


def test_closed_images_and_files(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encode(scene(), "PNG"))
    picture = Image.open(path)
    picture.close()
    with pytest.raises(ImageError, match="<PIL image> is truncated or damaged"):
        load_image(picture)
    file = path.open("rb")
    file.close()
    with pytest.raises(ImageError, match=r"photo\.png cannot be read .* open it again for reading"):
        load_image(file)
    with path.open(encoding="latin-1") as text, pytest.raises(ImageError, match="gives str instead of bytes"):
        load_image(text)


def test_one_pil_image_in_several_threads():
    data = encode(noise(300, 400), "JPEG")
    expected = load_image(data).pixels
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            same = [Image.open(io.BytesIO(data))] * 4  # not decoded yet
            assert all(np.array_equal(loaded.pixels, expected) for loaded in pool.map(load_image, same))


def test_pil_image_without_pixels():
    with pytest.raises(ImageError, match=r"<PIL image> has no pixels \(0 x 5\)"):
        load_image(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("source", [None, 3, ["a.png"], {"path": "a.png"}])
def test_things_that_are_no_images(source):
    with pytest.raises(ImageError, match=f"a {type(source).__name__} is not an image: give a path, URL"):
        load_image(source)


WHOLE = {form: encode(scene(), form) for form in ("PNG", "JPEG", "GIF", "TIFF", "WEBP")}
UNDAMAGED = {form: load_image(data).pixels for form, data in WHOLE.items()}


def load_or_error(data: bytes) -> LoadedImage | None:
    """The image, or None where an ImageError that names the source is raised; nothing else may be."""
    try:
        return load_image(data, max_pixels=1_000_000)
    except ImageError as error:
        if "<bytes>" not in str(error):
            raise
        return None


@given(form=st.sampled_from(sorted(WHOLE)), data=st.data())
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_cut_file_gives_all_pixels_or_an_error(form, data):
    kept = data.draw(st.integers(0, len(WHOLE[form]) - 1))
    loaded = load_or_error(WHOLE[form][:kept])
    assert loaded is None or np.array_equal(loaded.pixels, UNDAMAGED[form])


@given(st.binary(max_size=300))
@example(b"\x00\x00\x00\x20ftypheic")
@example(b"\x00\x00\x00\x20ftypavif")
@example(b"\x00\x00\x00\x0cjP  \r\n\x87\n")
@example(b"II*\x00\x08\x00\x00\x00")
@example(b"\xff\xd8\xff\xe1\x00\x10Exif\x00\x00")
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_bytes_give_an_image_or_an_error(data):
    loaded = load_or_error(data)
    assert loaded is None or loaded.pixels.shape == (*loaded.info.size, 3)


@given(form=st.sampled_from(sorted(WHOLE)), data=st.data())
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_bytes_give_an_image_or_an_error(form, data):
    damaged = bytearray(WHOLE[form])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(damaged), 400) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    loaded = load_or_error(bytes(damaged))
    assert loaded is None or loaded.pixels.shape == (*loaded.info.size, 3)
