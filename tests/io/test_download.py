"""Images from addresses: what is asked for, what is followed, and how long and how much it may take."""

import http.server
import io
import itertools
import socket
import threading
import time

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


REDIRECTS = {
    "/to-ftp": "ftp://127.0.0.1:1/a.png",
    "/to-file": "file:///etc/passwd",
    "/twice-to-ftp": "/to-ftp",
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        data = a_png()
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/photo.png?size=full")
            self.end_headers()
        elif self.path in REDIRECTS:
            self.send_response(302)
            self.send_header("Location", REDIRECTS[self.path])
            self.end_headers()
        elif self.path == "/rude.png":
            self.send_response(404, "\x1b[2Jgone")
            self.end_headers()
        elif self.path.startswith("/drops"):
            self.answer_in_drops(data)
        elif self.path == "/gone.png":
            self.send_error(404)
        elif self.path == "/slow.png":
            self.server.released.wait(20)
        elif self.path == "/huge.png":
            self.answer(data, 10**12)
        elif self.path == "/endless.png":
            self.answer(data * 4, None)
        elif self.path == "/broken.png":
            self.answer(data[:20], len(data))
        elif self.path == "/page.html":
            self.answer(b"<html></html>", 13)
        elif self.path == "/nonsense":
            self.wfile.write(b"not http\r\n\r\n")
        else:
            self.answer(data, len(data))

    def answer_in_drops(self, data: bytes) -> None:
        """Never silent for long, never done: from the headers on, or from the body on."""
        if self.path == "/drops-of-body.png":
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
        for byte in itertools.cycle(
            data if self.path == "/drops-of-body.png" else b"HTTP/1.1 200 OK\r\nX: yyyyyyyyyyy"
        ):
            if self.server.released.wait(0.02):
                break
            try:
                self.wfile.write(bytes([byte]))
            except OSError:
                break

    def answer(self, data: bytes, length: int | None) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def asked_paths() -> list[str]:
    """What the server was asked for."""
    return []


@pytest.fixture
def server(monkeypatch, asked_paths):
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.released = threading.Event()
        running.asked = asked_paths
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.released.set()
        running.shutdown()


@pytest.mark.parametrize("path", ["/photo.png", "/moved"])
def test_url(server, path):
    pixels, info = load_image(server + path)
    np.testing.assert_array_equal(pixels, SCENE)
    assert info == ImageInfo(server + path, (32, 48))
    np.testing.assert_array_equal(load_image(server.replace("http", "HTTP") + path).pixels, SCENE)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/gone.png", r"/gone\.png answers 404 Not Found: check the URL"),
        ("/huge.png", r"/huge\.png is larger than 268,435,456 bytes: download it yourself"),
        ("/broken.png", r"/broken\.png broke off after 20 of \d+ bytes: try again"),
        ("/page.html", r"/page\.html is not an image"),
        ("/nonsense", r"/nonsense cannot be downloaded .*: check the URL"),
        ("/rude.png", r"/rude\.png answers 404 \\x1b\[2Jgone: check the URL"),
        ("/to-ftp", r"/to-ftp leads on to ftp://127\.0\.0\.1:1/a\.png, which is not an http or https URL"),
        ("/to-file", r"/to-file answers 302 .*file:///etc/passwd' is not allowed: check the URL"),
        ("/twice-to-ftp", r"leads on to ftp://127\.0\.0\.1:1/a\.png, which is not an http or https URL"),
    ],
)
def test_urls_that_fail(server, path, message):
    with pytest.raises(ImageError, match=message):
        load_image(server + path)


def test_url_without_a_length_is_limited_too(server, monkeypatch):
    monkeypatch.setattr(bounded, "MAX_BYTES", 100)
    with pytest.raises(ImageError, match=r"/endless\.png is larger than 100 bytes"):
        load_image(server + "/endless.png")


def test_silent_url(server):
    with pytest.raises(ImageError, match=r"/slow\.png did not answer for 0\.2 s: try again, or raise timeout"):
        load_image(server + "/slow.png", timeout=0.2)


@pytest.mark.parametrize("path", ["/drops-of-headers.png", "/drops-of-body.png"])
def test_a_whole_transfer_has_a_deadline(server, path):
    start = time.monotonic()
    with pytest.raises(ImageError, match=rf"{path} was not there after 1 s: try again, raise timeout, or download"):
        load_image(server + path, timeout=0.1)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("shown", "asked"),
    [
        ("/a b.png", "/a%20b.png"),
        ("/peñoles.png", "/pe%C3%B1oles.png"),
        ("/写真.png", "/%E5%86%99%E7%9C%9F.png"),
        ("/a.png?q=é&r=ü ü", "/a.png?q=%C3%A9&r=%C3%BC%20%C3%BC"),
        ("/already%20quoted.png?a=%2F", "/already%20quoted.png?a=%2F"),
        ("/a.png#part é", "/a.png"),
        ("/(a),[b];c=~d'e!.png", "/(a),[b];c=~d'e!.png"),
    ],
)
def test_addresses_as_browsers_show_them(server, asked_paths, shown, asked):
    pixels, info = load_image(server + shown)
    np.testing.assert_array_equal(pixels, SCENE)
    assert info.source == server + shown
    assert asked_paths == [asked]


def test_hosts_beyond_ascii(monkeypatch):
    asked = []

    def refuse(place, *arguments, **options):
        asked.append(place)
        raise OSError("no network in tests")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(ImageError, match="cannot be reached"):
        load_image("http://bücher.example:81/ä.png")
    assert asked == [("xn--bcher-kva.example", 81)]


def test_unreachable_url(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    with pytest.raises(ImageError, match=rf"http://127\.0\.0\.1:{port}/a\.png cannot be reached .* check the URL"):
        load_image(f"http://127.0.0.1:{port}/a.png")


@pytest.mark.parametrize("url", ["s3://bucket/a.png", "file:///etc/passwd", "ftp://host/a.png"])
def test_other_urls(url):
    with pytest.raises(ImageError, match=f"{url} is not an http or https URL: download it first"):
        load_image(url)


def test_urls_without_a_host():
    with pytest.raises(ImageError, match=r"http:///a\.png cannot be"):
        load_image("http:///a.png")
