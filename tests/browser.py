"""A browser for tests: Chromium without a window, driven through a pipe by its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any


class Browser:
    """A context manager that starts Chromium, with its profile in ``folder``, and ends it."""

    def __init__(self, folder: Path, patience: float = 40.0):
        self.folder, self.patience = folder, patience

    def __enter__(self) -> Browser:
        to_browser, self._send = os.pipe()
        self._receive, from_browser = os.pipe()
        options = f"--headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir={self.folder}"
        line = f"exec chromium {options} --remote-debugging-pipe 3<&{to_browser} 4>&{from_browser} 2>/dev/null"
        self._process = subprocess.Popen(["bash", "-c", line], pass_fds=(to_browser, from_browser))
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._buffer = 0, b""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._send)
        os.close(self._receive)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def show(self, page: Path, width: int, dark: bool = False, script: bool = True) -> None:
        """Load a page in a window of this width, below 600 of a phone, and wait until it is there."""
        self.events.clear()
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setTouchEmulationEnabled", enabled=width < 600)
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + self.patience
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, f"not true in {self.patience} s: {expression}"
            time.sleep(0.02)

    def hover(self, element: str, across: float) -> None:
        """Move the mouse over an element, given by an expression: so far across it, at half of its height."""
        self.evaluate(f"{element}.scrollIntoView({{block: 'center'}})")
        box = json.loads(self.evaluate(f"JSON.stringify({element}.getBoundingClientRect())"))
        x, y = box["left"] + across * box["width"], box["top"] + 0.5 * box["height"]
        for step in (2, 1, 0):  # a pointer that comes from somewhere
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x - step, y=y)

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        result = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(result["data"]))

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + self.patience
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._receive], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"Chromium says nothing for {self.patience} s"
            piece = os.read(self._receive, 1 << 20)
            assert piece, "Chromium has ended"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)
