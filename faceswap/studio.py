"""A page in the browser, served by this machine to itself alone.

It listens on 127.0.0.1. The address that is printed ends in a key, which the browser keeps behind `#` and never sends
as part of an address; every request but that for the empty page must show it, those that change something in a header,
which no other site can set. A request by another host name is refused, so that no site can pretend to be ours by DNS.
The page loads nothing from anywhere: its policy forbids it.
"""

import asyncio
import errno
import secrets
import socket
import threading
import traceback
import webbrowser
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError, validate_call
from pydantic_core import to_json

from faceswap import console
from faceswap.desk import Desk, Picture
from faceswap.errors import FaceswapError, UsageError

try:
    from aiohttp import web
except ImportError:
    raise FaceswapError("faceswap studio needs aiohttp; pip install 'faceswap[studio]'") from None

PORT = 8765
KEY = "X-Faceswap-Key"
HOSTS = ("127.0.0.1", "localhost")  # any port: it may be that of an ssh tunnel
READS = ("here", "faces", "thrown", "face", "run", "preview", "settings", "frames", "job")
WRITES = ("throw_out", "bring_back", "compare", "start", "stop")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Listening:
    """Where the page is."""

    address: str  # with the key
    folder: Path


class Studio:
    """The page and the requests that it makes, of one desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.key = desk, secrets.token_urlsafe(24)
        self.app = web.Application(middlewares=[self._guarded])
        self.app.router.add_get("/", self._page)
        for name in READS:
            self.app.router.add_get(f"/{name}", self._read, name=name)
        for name in WRITES:
            self.app.router.add_post(f"/{name}", self._write, name=name)

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        refused = self._refused(request)
        if refused:
            response: web.StreamResponse = _said(403, refused)
        else:
            try:
                response = await handler(request)
            except (FaceswapError, OSError) as error:
                response = _said(400, " ".join(str(error).split()))
            except ValidationError as error:
                wrong = error.errors()[0]
                response = _said(400, f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}")
            except web.HTTPException as error:
                response = _said(error.status, error.reason)
            except Exception as error:  # of a library, such as no memory left on a card: said here and there
                traceback.print_exc()
                response = _said(500, f"{type(error).__name__}: {' '.join(str(error).split())}")
        _protect(response)
        return response

    def _refused(self, request: web.Request) -> str:
        """Why a request is not answered; empty if it is."""
        if _name(request.host) not in HOSTS:
            return f"expected a request to {HOSTS[0]}, found one to another host name"
        if request.headers.get("Origin", f"http://{request.host}") != f"http://{request.host}":
            return "expected a request of the studio's own page, found one of another site"
        if request.path == "/":
            return ""
        given = request.headers.get(KEY, "")
        if request.method == "GET" and not given:  # <img> sets no header
            given = request.query.get("key", "")
        if not secrets.compare_digest(given.encode(errors="replace"), self.key.encode()):
            return "expected the key; open the address that faceswap studio printed"
        return ""

    async def _page(self, request: web.Request) -> web.Response:
        nonce = secrets.token_urlsafe(16)
        text = Path(__file__).with_name("studio.html").read_text(encoding="utf-8").replace("NONCE", nonce)
        response = web.Response(text=text, content_type="text/html")
        response.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return response

    async def _read(self, request: web.Request) -> web.Response:
        return await self._answer(request, {name: value for name, value in request.query.items() if name != "key"})

    async def _write(self, request: web.Request) -> web.Response:
        try:
            given = await request.json()
        except ValueError:
            given = None
        if not isinstance(given, dict):
            raise UsageError("expected an object as JSON")
        return await self._answer(request, given)

    async def _answer(self, request: web.Request, given: dict[str, Any]) -> web.Response:
        work = validate_call(getattr(self.desk, request.path[1:]))
        found = await _aside(lambda: work(**given))
        if isinstance(found, Picture):
            return web.Response(body=found.content, content_type=found.kind)
        return web.Response(body=to_json(found, inf_nan_mode="null"), content_type="application/json")

    def address(self, port: int) -> str:
        return f"http://{HOSTS[0]}:{port}/#{self.key}"


async def _aside(work: Callable[[], Any]) -> Any:
    """What `work` gives, in a thread of its own, which nobody waits for when the studio ends."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(how: Callable[[Any], None], value: Any) -> None:
        if not done.done():
            how(value)

    def do() -> None:
        how: Callable[[Any], None] = done.set_result
        try:
            value = work()
        except Exception as error:
            how, value = done.set_exception, error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, how, value)

    threading.Thread(target=do, daemon=True).start()
    return await done


def _name(host: str) -> str | None:
    """The name in a Host header, None if there is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _said(status: int, error: str) -> web.Response:
    return web.json_response({"error": error}, status=status)


def _protect(response: web.StreamResponse) -> None:
    response.headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
    response.headers.update(
        {
            "Cache-Control": "no-store",  # faces stay out of the browser's folder
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }
    )


def listen(port: int | None) -> socket.socket:
    """A socket of this machine alone; None: at `PORT`, or at any if that is taken. `UsageError`: the port is taken."""
    try:
        return socket.create_server((HOSTS[0], PORT if port is None else port))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        if port is None:
            return socket.create_server((HOSTS[0], 0))
        raise UsageError(f"--port {port}: taken, or not yours to take; choose another, 0 is any free one") from None


def serve(desk: Desk, port: int | None, tell: Callable[[Listening], None], *, browser: bool = True) -> None:
    """Serve the page until Ctrl-C, then stop the jobs that it started. `tell` is told where."""
    studio = Studio(desk)
    with listen(port) as place:
        address = studio.address(place.getsockname()[1])
        tell(Listening(address, desk.root))
        if browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        with suppress(KeyboardInterrupt):
            asyncio.run(_serve(studio, place))
    stopped = desk.close()
    for job in stopped:
        console.say(f"{job}: stopped; faceswap run {job} goes on from there")
    console.say("studio closed")


async def _serve(studio: Studio, place: socket.socket) -> None:
    runner = web.AppRunner(studio.app, access_log=None, shutdown_timeout=2)
    await runner.setup()
    try:
        await web.SockSite(runner, place).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
