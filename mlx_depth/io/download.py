"""Images from http and https addresses: bounded in bytes and in time, and never from anywhere else."""

import http.client
import re
import socket
import string
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any
from urllib.parse import quote, urlsplit, urlunsplit

from mlx_depth.errors import ImageError, printable
from mlx_depth.io import bounded

TRANSFER_TIMEOUTS = 10
"""How many times the timeout of one read a whole transfer may take."""

_LEFT_AS_IS = string.punctuation  # the percent sign too: what is quoted stays as it is


def download(url: str, timeout: float) -> bytes:
    """Fetch what an address leads to.

    Args:
        url: http or https, quoted or as a browser shows it.
        timeout: Seconds that the server may stay silent; the whole transfer may take ``TRANSFER_TIMEOUTS`` times that.
    Returns:
        The bytes, at most ``bounded.MAX_BYTES``.
    Raises:
        ImageError: If they cannot be fetched.
    """
    name = printable(url)
    if not _is_http(url):
        raise ImageError(f"{name} is not an http or https URL: download it first and give the path.")
    with _deadline(timeout * TRANSFER_TIMEOUTS) as (watch, has_passed):
        try:
            with _opener(watch).open(_request(url), timeout=timeout) as response:
                data = _read(response, name)
        except (ImageError, OSError, ValueError, http.client.HTTPException) as error:
            if has_passed():
                raise _too_long(name, timeout) from error
            if isinstance(error, ImageError):
                raise
            raise _failed(name, error, timeout) from error
        if has_passed():  # cut off within its headers, an answer looks like an empty one
            raise _too_long(name, timeout)
    return data


def _read(response: Any, name: str) -> bytes:
    length = response.headers["Content-Length"]
    expected = None if length is None else int(length)
    if expected is not None and expected > bounded.MAX_BYTES:
        raise bounded.too_large(name)
    data = bounded.read_bounded(response.read, name)
    if expected is not None and len(data) < expected:
        raise ImageError(f"{name} broke off after {len(data):,} of {expected:,} bytes: try again.")
    return data


def _request(url: str) -> urllib.request.Request:
    return urllib.request.Request(_quoted(url), headers={"User-Agent": "mlx-depth"})


def _quoted(url: str) -> str:
    """The address as a server wants it: letters beyond ASCII and spaces quoted, a host's name in its ASCII form."""
    parts = urlsplit(url.strip())
    user, at, host = parts.netloc.rpartition("@")
    if not host.isascii():
        host = host.encode("idna").decode()
    rest = (quote(part, safe=_LEFT_AS_IS) for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, quote(user, safe=_LEFT_AS_IS) + at + host, *rest, ""))


def _is_http(url: str) -> bool:
    return re.match(r"https?://", url.strip(), re.IGNORECASE) is not None


def _opener(watch: Callable[[socket.socket], None]) -> urllib.request.OpenerDirector:
    """What ``urllib.request.build_opener`` gives, without its handlers of ftp, files and data, and watched."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _watched_http(watch),
        _watched_https(watch),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows http and https alone; urllib's own goes to ftp, too."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not _is_http(newurl):
            raise ImageError(
                f"{printable(req.full_url)} leads on to {printable(newurl)}, which is not an http or https URL: "
                "download it first and give the path."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _watched_http(watch: Callable[[socket.socket], None]) -> urllib.request.HTTPHandler:
    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            watch(self.sock)

    class Handler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Connection, req)

    return Handler()


def _watched_https(watch: Callable[[socket.socket], None]) -> urllib.request.HTTPSHandler:
    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            watch(self.sock)

    class Connection(http.client.HTTPSConnection, Plain):
        """Watched from before its handshake on: ``HTTPSConnection.connect`` begins with that of ``Plain``."""

    class Handler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Connection, req)

    return Handler()


@contextmanager
def _deadline(seconds: float) -> Iterator[tuple[Callable[[socket.socket], None], Callable[[], bool]]]:
    """Cut the watched connections after some time: a timeout alone lets a server go on drop by drop."""
    watched: list[socket.socket] = []
    passed = threading.Event()

    def cut() -> None:
        passed.set()
        for connection in watched:
            _shut(connection)

    def watch(connection: socket.socket) -> None:
        watched.append(connection.dup())  # TLS takes the connection's own handle away
        if passed.is_set():
            _shut(watched[-1])

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield watch, passed.is_set
    finally:
        timer.cancel()
        for connection in watched:
            connection.close()


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is closed already


def _failed(name: str, error: Exception, timeout: float) -> ImageError:
    reason = getattr(error, "reason", None)
    if isinstance(error, urllib.error.HTTPError):
        return ImageError(f"{name} answers {error.code} {printable(reason)}: check the URL.")
    if isinstance(error, TimeoutError) or isinstance(reason, TimeoutError):
        return ImageError(f"{name} did not answer for {timeout:g} s: try again, or raise timeout.")
    if isinstance(error, urllib.error.URLError):
        return ImageError(f"{name} cannot be reached ({printable(reason)}): check the URL and the network.")
    return ImageError(f"{name} cannot be downloaded ({printable(str(error).strip())}): check the URL.")


def _too_long(name: str, timeout: float) -> ImageError:
    return ImageError(
        f"{name} was not there after {timeout * TRANSFER_TIMEOUTS:g} s: try again, raise timeout, or download it "
        "yourself and give the path."
    )
