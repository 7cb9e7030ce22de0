"""A browser without a window, driven by Chromium's own remote debugging protocol: clicks, waits and pictures."""

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WAIT = 180.0  # seconds; the machine may be busy


def program() -> str:
    """The browser; the test is skipped, and says so, where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(NAMES)} is here")
    return found


class Page:
    """One tab. All that it asked for over the network is in `asked`, all errors of its scripts in `errors`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._loop, self._socket, self._number = loop, socket, 0
        self.asked: list[str] = []
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        return self._loop.run_until_complete(asyncio.wait_for(self._send(method, params), WAIT))

    async def _send(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            told = await self._socket.receive_json()
            if told.get("id") == self._number:
                assert "error" not in told, told
                return dict(told["result"])
            self._note(told.get("method", ""), told.get("params", {}))

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:800])
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])

    def open(self, address: str) -> None:
        self.send("Page.navigate", url=address)

    def js(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        told = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Until an expression is true; its value."""
        until = time.monotonic() + WAIT
        while not (value := self.js(f"(() => {{ try {{ return {expression} }} catch {{ return null }} }})()")):
            assert time.monotonic() < until, f"{expression}\n{self.errors}\n{self.js('document.body.innerText')}"
            time.sleep(0.1)
        return value

    def place(self, selector: str) -> tuple[float, float]:
        """The middle of an element that is shown."""
        quoted = json.dumps(selector)
        self.wait(f"document.querySelector({quoted}) && !document.querySelector({quoted}).disabled")
        box = self.js(
            f"(() => {{ const e = document.querySelector({quoted}); e.scrollIntoView({{block: 'nearest'}}); "
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        return box[0], box[1]

    def mouse(self, kind: str, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def click(self, selector: str) -> None:
        x, y = self.place(selector)
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def drag(self, selector: str, share: float) -> None:
        """From the middle of an element to `share` of its width."""
        x, y = self.place(selector)
        box = self.js(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")
        self.mouse("mousePressed", x, y)
        self.mouse("mouseMoved", box["x"] + box["width"] * share, y)
        self.mouse("mouseReleased", box["x"] + box["width"] * share, y)

    def key(self, name: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def shot(self, name: str) -> None:
        """A picture, where $FACESWAP_SHOTS names a folder to look at it."""
        folder = os.environ.get("FACESWAP_SHOTS")
        if folder:
            content = base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
            (Path(folder) / f"{name}.png").write_bytes(content)

    def dark(self, dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])


@contextmanager
def browsing(folder: Path) -> Iterator[Page]:
    """A tab of 1280 x 800; the browser's own files lie in `folder`."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += ["--disable-background-networking", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen([program(), *flags, "about:blank"], stdout=nowhere, stderr=nowhere)
    loop = asyncio.new_event_loop()
    try:
        note, until = folder / "DevToolsActivePort", time.monotonic() + WAIT
        while not (note.exists() and "\n" in note.read_text()):
            assert process.poll() is None and time.monotonic() < until, "the browser does not start"
            time.sleep(0.1)
        port = note.read_text().split()[0]
        session = loop.run_until_complete(_session())
        try:
            page = Page(loop, loop.run_until_complete(_tab(session, port)))
            page.send("Emulation.setDeviceMetricsOverride", width=1280, height=800, deviceScaleFactor=1, mobile=False)
            yield page
        finally:
            loop.run_until_complete(session.close())
            loop.run_until_complete(asyncio.sleep(0.1))  # for the socket to close
    finally:
        process.terminate()
        process.wait(WAIT)
        loop.close()


async def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


async def _tab(session: aiohttp.ClientSession, port: str) -> aiohttp.ClientWebSocketResponse:
    async with session.get(f"http://127.0.0.1:{port}/json") as answer:
        tabs = await answer.json()
    address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
    return await session.ws_connect(address, max_msg_size=0)
