"""Where encoded images come from beside files and addresses, how much is read, and what messages quote."""

import base64
import io
import os
import threading

import numpy as np
import pytest
from PIL import Image

from mlx_depth.errors import ImageError
from mlx_depth.io import bounded
from mlx_depth.io.image import ImageInfo, load_image

SCENE = np.arange(32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3)


def a_png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(SCENE).save(stream, "PNG")
    return stream.getvalue()


# Addresses that are the image


@pytest.mark.parametrize(
    "written",
    [
        lambda data: "data:image/png;base64," + base64.b64encode(data).decode(),
        lambda data: "DATA:image/png;name=a.png;BASE64," + base64.b64encode(data).decode().rstrip("="),
        lambda data: "data:;base64," + base64.urlsafe_b64encode(data).decode(),
        lambda data: "data:image/png;base64,\n" + base64.encodebytes(data).decode(),
        lambda data: "data:image/png;base64," + base64.b64encode(data).decode().replace("+", "%2B").replace("/", "%2f"),
        lambda data: "data:image/png," + "".join(f"%{byte:02x}" for byte in data),
    ],
    ids=["usual", "no-padding", "for-addresses", "lines", "quoted", "not-base64"],
)
def test_data_uri(written):
    pixels, info = load_image(written(a_png()))
    np.testing.assert_array_equal(pixels, SCENE)
    assert info == ImageInfo("<data URI>", (32, 48))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "data:image/png;base64," + "A" * 4001,
            r"data:image/png;base64,… is not sound base64 .*: copy the whole address",
        ),
        ("data:image/png;base64,", r"<data URI> is empty \(0 bytes\)"),
        ("data:text/plain,hello%20world", "<data URI> is not an image"),
        ("data:image/png;base64" + "A" * 9000, r"check the path"),
    ],
)
def test_data_uris_that_fail(uri, message):
    with pytest.raises(ImageError, match=message) as raised:
        load_image(uri)
    assert len(str(raised.value)) < 500


# Bounds, and what messages quote


class Endless:
    """A pipe that never ends, such as a camera's stream."""

    name = "camera"

    def __init__(self, start: bytes):
        self.start = start
        self.given = 0

    def read(self, count: int) -> bytes:
        part = (self.start + bytes(count))[:count]
        self.start = b""
        self.given += count
        return part


def test_an_endless_file_object_is_bounded(monkeypatch):
    monkeypatch.setattr(bounded, "MAX_BYTES", 5_000_000)
    endless = Endless(a_png())
    with pytest.raises(ImageError, match=r"camera is larger than 5,000,000 bytes: download it yourself"):
        load_image(endless)
    assert endless.given == 5_000_001


def test_an_endless_pipe_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded, "MAX_BYTES", 500_000)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    written = []

    def write() -> None:
        with pipe.open("wb", buffering=0) as stream:
            try:
                while True:
                    written.append(stream.write(bytes(50_000)))
            except BrokenPipeError:
                return

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    with pytest.raises(ImageError, match=r"pipe is larger than 500,000 bytes"):
        load_image(pipe)
    writer.join(10)
    assert not writer.is_alive()
    assert sum(written) < 2_000_000


@pytest.mark.parametrize(
    "source",
    ["a\x1b[2Jb.png", "http://127.0.0.1:1/\x1b]0;x\x07.png", "ftp://\x9b31m/" + "y" * 9000, "z\u202e" + "w" * 9000],
)
def test_messages_are_short_and_free_of_control_characters(source, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(ImageError) as raised:
        load_image(source)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500
