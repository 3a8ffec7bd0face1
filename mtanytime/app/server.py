"""Serve the app's page, and run a training for each page that asks for one."""

import asyncio
import json
import os
import re
import sys
import webbrowser
from collections.abc import Sequence
from os import PathLike
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from mtanytime.app.page import page_of
from mtanytime.checks import require

PORT, PORTS = 8866, 20  # the first port that is free of this many
LOCAL = ("127.0.0.1", "localhost", "::1")
COMMAND = (sys.executable, "-m", "mtanytime.app.training")
LINE_BYTES = 2**24  # of a training's messages
PING_SECONDS = 30  # a page that does not answer is gone
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class _Handler(RequestHandler):
    """Answer with one line where something is wrong."""

    def set_default_headers(self) -> None:
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def write_error(self, status_code: int, **_: Any) -> None:
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(f"{status_code}: {self._reason}\n")


class _Missing(_Handler):
    def prepare(self) -> None:
        self.send_error(404)


class _OtherHost(_Handler):
    """Refuse requests by another name: a foreign page whose name came to mean this machine might send them."""

    def prepare(self) -> None:
        self.send_error(403, reason="the app answers requests for this machine's address alone, see --host")


class _Page(_Handler):
    def initialize(self, page: bytes) -> None:
        self._page = page

    def get(self) -> None:
        self.finish(self._page)


class _Icon(_Handler):
    def get(self) -> None:  # browsers ask for one, and would report that there is none
        self.set_status(204)


class _Training(WebSocketHandler):
    """A page's training: a process that ends with the page's connection."""

    def initialize(self, command: Sequence[str], places: asyncio.Semaphore, most: int) -> None:
        self._command, self._places, self._most = command, places, most
        self._process: asyncio.subprocess.Process | None = None

    def open(self) -> None:
        self._task = asyncio.create_task(self._train())

    async def _train(self) -> None:
        if self._places.locked():
            text = f"The server runs {self._most} trainings at once. Yours starts as soon as one of them has ended."
            self._say("waiting", text)
        async with self._places:
            self._say("waiting", "The training starts …")
            pipes = dict.fromkeys(("stdin", "stdout"), asyncio.subprocess.PIPE)
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command, **pipes, limit=LINE_BYTES, env=environment
                )
            except OSError as error:
                self._say("error", f"The training could not be started: {error}")
                self.close()
                return
            last = b""
            try:
                async for line in self._process.stdout:
                    if line.endswith(b"\n"):  # else the process died within the line
                        self.write_message(line.decode())
                        last = line
                status = await self._process.wait()
            except WebSocketClosedError:
                return
            finally:
                if self._process.returncode is None:
                    self._process.kill()
                    await self._process.wait()
        if not last or json.loads(last)["kind"] not in ("playground", "error"):
            self._say("error", f"The training ended unexpectedly, with status {status}. Start it again.")
        self.close()

    def _say(self, kind: str, text: str) -> None:
        self.write_message(json.dumps({"kind": kind, "text": text}))

    def on_message(self, message: str | bytes) -> None:
        if message in ("stop", "resume") and self._process is not None and self._process.returncode is None:
            self._process.stdin.write(f"{message}\n".encode())

    def on_close(self) -> None:
        self._task.cancel()


def application(page: str, trainings: int, command: Sequence[str] = COMMAND, local: bool = True) -> Application:
    """Return the app.

    Args:
        page: what `page.page_of` returns.
        trainings: how many run at once; further ones wait.
        command: the command that trains, see `app.training`.
        local: answer only requests whose Host header names this machine, as localhost or by its loopback address.
    """
    training = {"command": command, "places": asyncio.Semaphore(trainings), "most": trainings}
    app = Application(
        default_handler_class=_OtherHost if local else _Missing,
        websocket_ping_interval=PING_SECONDS,
        compress_response=True,
    )
    app.add_handlers(
        f"(?:{'|'.join(map(re.escape, (*LOCAL, '[::1]')))})$" if local else ".*",
        [
            (r"/", _Page, {"page": page.encode(errors="replace")}),
            (r"/favicon.ico", _Icon),
            (r"/training", _Training, training),
            (r".*", _Missing),
        ],
    )
    return app


def serve(
    places: Sequence[str | PathLike[str]],
    host: str = "127.0.0.1",
    port: int | None = None,
    trainings: int | None = None,
    browser: bool = True,
) -> None:
    """Serve the app until it is interrupted.

    Args:
        places: what the page shows, see `page.page_of`.
        host: the address that it listens to; the default, and localhost or ::1, answer this machine alone.
        port: default: the first free one from 8866 on.
        trainings: how many trainings run at once, each on one thread; default: one per core, at least 2.
        browser: open the page in the default browser.

    Raises:
        ValueError: as `page.page_of`, no training may run, or no such port.
        OSError: a table cannot be read, or the port is taken.
    """
    trainings = max(os.cpu_count() or 1, 2) if trainings is None else trainings
    require(trainings >= 1, "trainings", "a number >= 1", trainings)
    require(port is None or 0 <= port < 2**16, "port", "a number from 0 to 65535", port)
    asyncio.run(_serve(page_of(places), host, port, trainings, browser))


async def _serve(page: str, host: str, port: int | None, trainings: int, browser: bool) -> None:
    server = HTTPServer(application(page, trainings, local=host in LOCAL))
    sockets = _bound(host, port)
    server.add_sockets(sockets)
    name = f"[{host}]" if ":" in host else host  # of IPv6
    address = f"http://{name}:{sockets[0].getsockname()[1]}/"
    print(f"The app: {address}   (Ctrl+C stops it)", flush=True)
    if browser:
        webbrowser.open(address)
    await asyncio.Event().wait()


def _bound(host: str, port: int | None) -> list[Any]:
    if port is not None:
        return bind_sockets(port, host)
    for candidate in range(PORT, PORT + PORTS):
        try:
            return bind_sockets(candidate, host)
        except OSError as error:
            last = error
    raise last
