"""A headless Chromium, driven over a pipe by the DevTools protocol: what a page shows, asks for and complains of."""

import base64
import io
import json
import select
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from support import require_program

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-angle=swiftshader",  # WebGL without a graphics card
    "--enable-unsafe-swiftshader",
    "--remote-debugging-pipe",
]
SECONDS = 60  # for any one answer


class Browser:
    """One tab. ``events`` holds what the page reported since ``open``: ``(method, parameters)``."""

    def __init__(self, profile: Path) -> None:
        program = require_program("viewer", *NAMES)
        # The protocol's pipes are descriptors 3 and 4.
        shell = 'exec "$0" "$@" 3<&0 4>&1 0</dev/null 1>/dev/null'
        command = ["sh", "-c", shell, program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self._number, self._session, self._unread = 0, None, b""
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)
        self._process.stdin.close()
        self._process.stdout.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def open(self, path: Path, size: tuple[int, int] = (480, 640)) -> None:
        """Show a file in a window of ``(height, width)``, and wait until it is drawn."""
        self.resize(size)
        self.events.clear()
        page = self.call("Page.navigate", url=path.as_uri())["loaderId"]
        loaded = ("load", page)
        while loaded not in [(event.get("name"), event.get("loaderId")) for _, event in self.events]:
            self._next()
        self.picture()  # what a user does before a page is painted is thrown away

    def resize(self, size: tuple[int, int]) -> None:
        height, width = size
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are waited for."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self) -> None:
        """Until what was asked for is drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def picture(self) -> np.ndarray:
        """What is on the screen: ``(H, W, 3)``, uint8."""
        self.wait()
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def click(self, element: str) -> None:
        self.run(f"document.getElementById({element!r}).click()")

    def press(self, element: str, key: str, times: int = 1) -> None:
        """Press a key on a control, as a user without a mouse does."""
        self.run(f"document.getElementById({element!r}).focus()")
        code = {"ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35}[key]
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def drag(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        """With the left button, between two places ``(x, y)``."""
        for kind, (x, y), buttons in (
            ("mousePressed", start, 1),
            ("mouseMoved", end, 1),
            ("mouseReleased", end, 0),
        ):
            button = {"button": "left", "buttons": buttons, "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def requests(self) -> list[str]:
        """Every address that was asked for since ``open``."""
        return [event["request"]["url"] for method, event in self.events if method == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Errors of scripts, and what the browser refused."""
        thrown = [str(event) for method, event in self.events if method == "Runtime.exceptionThrown"]
        entries = [event["entry"] for method, event in self.events if method == "Log.entryAdded"]
        printed = [event for method, event in self.events if method == "Runtime.consoleAPICalled"]
        return [
            *thrown,
            *(entry["text"] for entry in entries if entry["level"] == "error"),
            *(str(event["args"]) for event in printed if event["type"] in ("error", "warning", "assert")),
        ]

    def _next(self) -> dict[str, Any]:
        """One message, kept if it is an event."""
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._unread:
            assert select.select([self._process.stdout], [], [], max(0, deadline - time.monotonic()))[0], "no answer"
            data = self._process.stdout.read(1 << 20)
            assert data, "the browser has ended"
            self._unread += data
        message, self._unread = self._unread.split(b"\0", 1)
        answer = json.loads(message)
        if "method" in answer:
            self.events.append((answer["method"], answer["params"]))
        return answer
