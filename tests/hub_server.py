"""A small Hugging Face Hub on loopback: as much of its HTTP interface as downloading a model needs.

``with FakeHub(folder) as hub`` serves ``folder/OWNER/NAME`` as repositories, each with one commit and one
branch. Weights come from another origin by redirect, as on the real Hub. Its attributes are the switches.
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+?)(/(?P<part>revision|tree)/(?P<revision>[^/]+))?")
FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
STORE = re.compile(r"/store/(?P<repo>[^/]+/[^/]+)/(?P<name>.+)")


class FakeHub:
    """The server and its switches; ``log`` holds ``METHOD path [range]`` of every request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log: list[str] = []
        self.gated = False
        self.status: int | None = None  # every answer is this error
        self.silent = False  # requests are taken, never answered
        self.html = False  # the login page of a public network
        self.cut_store = 0  # so many answers from the store break off half-way
        self.short_store = False  # the store sends half a file and calls it whole
        self.done = threading.Event()

    def __enter__(self) -> "FakeHub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections from now on; a second call does nothing."""
        if self.done.is_set():
            return
        self.done.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def files(self, repo: str) -> dict[str, Path]:
        root = self.folder / repo
        return {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}

    def commit(self, repo: str) -> str:
        digest = hashlib.sha1(repo.encode())
        for name, path in self.files(repo).items():
            digest.update(name.encode() + path.read_bytes())
        return digest.hexdigest()

    def fetched(self) -> set[str]:
        """Names of the files whose content was asked for."""
        paths = [line.split()[1] for line in self.log if line.startswith("GET")]
        matches = [STORE.fullmatch(path) or FILE.fullmatch(path) for path in paths]
        return {match["name"] for match in matches if match}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.log.append(" ".join([self.command, path, self.headers.get("Range", "")]).strip())
        if hub.silent:
            hub.done.wait(30)
            self.close_connection = True
        elif hub.status is not None:
            self.fail(hub.status)
        elif hub.html:
            self.answer(b"<html>Please log in</html>", kind="text/html")
        elif match := STORE.fullmatch(path):
            self.store(hub.files(match["repo"])[match["name"]].read_bytes())
        elif match := API.fullmatch(path) or FILE.fullmatch(path):
            self.repository(match)
        else:
            self.fail(404)

    def repository(self, match: re.Match[str]) -> None:
        repo = match["repo"]
        if not self.hub.files(repo):
            return self.fail(404, "RepoNotFound")
        commit = self.hub.commit(repo)
        if match["revision"] not in (None, "main", commit):
            return self.fail(404, "RevisionNotFound")
        if match.re is FILE:
            return self.file(repo, commit, match["name"])
        if match["part"] == "tree":
            return self.answer(json.dumps(self.tree(repo)).encode())
        siblings = [{"rfilename": name} for name in self.hub.files(repo)]
        self.answer(json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode())

    def tree(self, repo: str) -> list[dict[str, object]]:
        files = self.hub.files(repo).items()
        return [{"type": "file", "path": name, "size": path.stat().st_size, "oid": etag(path)} for name, path in files]

    def file(self, repo: str, commit: str, name: str) -> None:
        if self.hub.gated:
            return self.fail(403, "GatedRepo")
        path = self.hub.files(repo)[name]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag(path)}"'}
        if path.suffix != ".safetensors":
            return self.answer(path.read_bytes(), headers=headers)
        # localhost is another origin than 127.0.0.1: the client must take the size from these headers.
        headers |= {"X-Linked-ETag": f'"{etag(path)}"', "X-Linked-Size": str(path.stat().st_size)}
        headers["Location"] = f"http://localhost:{self.hub.port}/store/{repo}/{name}"
        self.answer(b"", status=302, headers=headers)

    def store(self, content: bytes) -> None:
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        content = content[start:]
        if self.hub.short_store:
            content = content[: len(content) // 2]
        cut = self.hub.cut_store > 0
        self.hub.cut_store -= cut
        self.answer(content, status=206 if start else 200, headers=headers, cut=cut)

    def fail(self, status: int, code: str | None = None) -> None:
        self.answer(b"{}", status=status, headers={} if code is None else {"X-Error-Code": code})

    def answer(
        self,
        content: bytes,
        *,
        status: int = 200,
        kind: str = "application/json",
        headers: dict[str, str] | None = None,
        cut: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = cut


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
