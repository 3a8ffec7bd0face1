"""The web app without a browser: its page, its training, and what a visitor is told when something goes wrong."""

import asyncio
import json
import queue
import re
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tables
from project import ROOT
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders
from tornado.netutil import bind_sockets
from tornado.websocket import websocket_connect

from mtanytime.__main__ import main
from mtanytime.app import training
from mtanytime.app.page import page_of
from mtanytime.app.server import application

SAYS = "import sys; print('{}', flush=True); "


def visited(visit: Callable[[str], Awaitable[Any]], *command: str, trainings: int = 1) -> Any:
    """Return what `visit(address)` returns of an app whose training is this Python code."""

    async def scenario() -> Any:
        server = HTTPServer(application("the page", trainings, (sys.executable, "-c", *command)))
        (socket,) = bind_sockets(0, "127.0.0.1")
        server.add_sockets([socket])
        try:
            return await asyncio.wait_for(visit(f"127.0.0.1:{socket.getsockname()[1]}"), 60)
        finally:
            server.stop()
            await server.close_all_connections()
            for task in [task for task in asyncio.all_tasks() if task.get_coro().__name__ == "_train"]:
                await asyncio.wait([task])  # until its process has ended

    with ThreadPoolExecutor(1) as thread:  # in this one, the browser tests' playwright may keep a loop
        return thread.submit(lambda: asyncio.run(scenario())).result()


async def messages(address: str) -> list[dict[str, Any]]:
    """Return everything that the server says to one page about its training."""
    socket = await websocket_connect(f"ws://{address}/training")
    said = []
    while (message := await socket.read_message()) is not None:
        said.append(json.loads(message))
    socket.close()
    return said


def test_page_holds_its_explorers(tmp_path: Path) -> None:
    """One explorer per place, in order; a name that looks like markup stays text; the page loads nothing."""
    trace, curve = tmp_path / "trace.csv", tmp_path / "curve.csv"
    tables.trace(sources=("</script><b>",)).to_csv(trace, index=False)
    tables.curve().to_csv(curve, index=False)
    page = page_of([trace, curve])
    states = [json.loads(text) for text in re.findall(r'class="state">(.*?)</script>', page, re.DOTALL)]
    assert [state["content"]["kind"] for state in states] == ["transfer", "budget"]
    assert states[0]["content"]["sources"] == ["</script><b>"]
    assert {"cost", "at", "hidden"} < set(states[1])
    assert not re.search(r"""(?:src|href)=["']""", page.partition('<script type="module">')[0])
    assert "connect-src 'self'" in page


def test_a_place_that_cannot_be_shown_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped folder is named before the server starts."""
    assert main(["app", str(tmp_path / "none.csv"), "--no-browser"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"error: .*none\.csv.*\n", said.err)


def test_other_addresses_are_one_line() -> None:
    """No traceback, and no page of the server's own."""

    async def visit(address: str) -> str:
        assert (await AsyncHTTPClient().fetch(f"http://{address}/")).body == b"the page"
        with pytest.raises(HTTPClientError) as failed:
            await AsyncHTTPClient().fetch(f"http://{address}/etc/../x")
        return failed.value.response.body.decode()

    assert visited(visit) == "404: Not Found\n"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost", "[::1]"])
def test_requests_by_another_name_are_refused(host: str) -> None:
    """A foreign page whose name was made to mean this machine reads no results and starts no training."""

    async def visit(address: str) -> tuple[list[int], str]:
        headers, port = HTTPHeaders({"Host": f"{host}:{address.rpartition(':')[2]}"}), address.rpartition(":")[2]
        headers["Origin"] = f"http://{host}:{port}"
        page = await AsyncHTTPClient().fetch(f"http://{address}/", headers=headers, raise_error=False)
        try:
            socket = await websocket_connect(HTTPRequest(f"ws://{address}/training", headers=headers))
        except HTTPClientError as refused:
            return [page.code, refused.code], page.body.decode()
        socket.close()
        return [page.code, 101], page.body.decode()

    codes, body = visited(visit, "pass")
    if "evil" in host:
        assert codes == [403, 403]
        assert body == "403: the app answers requests for this machine's address alone, see --host\n"
    else:
        assert (codes, body) == ([200, 101], "the page")


def test_a_port_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused: the system would take it modulo 65536, without a word."""
    assert main(["app", "--port", "99999", "--no-browser"]) == 1
    assert "error: port: expected a number from 0 to 65535, got 99999" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "last"),
    [
        (SAYS.format('{"kind": "training"}') + "sys.exit(3)", "ended unexpectedly, with status 3"),
        ("import sys; sys.exit(1)", "ended unexpectedly, with status 1"),
        ("print('{\"kind\": \"pla', end='')", "ended unexpectedly, with status 0"),
        (SAYS.format('{"kind": "error", "text": "no room"}') + "sys.exit(1)", "no room"),
    ],
)
def test_a_training_that_fails_is_one_line(code: str, last: str) -> None:
    """Whatever ends a training, its page is told once, in one line."""
    said = visited(messages, code)
    errors = [message["text"] for message in said if message["kind"] == "error"]
    assert len(errors) == 1
    assert errors[0] == said[-1]["text"]
    assert last in errors[0]
    assert "\n" not in errors[0]


def test_a_training_that_cannot_be_started_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is told so, and not left waiting."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert visited(messages, "")[-1]["text"].startswith("The training could not be started: ")


def test_trainings_wait_for_each_other() -> None:
    """Of two pages one waits and is told so; both get their training."""

    async def visit(address: str) -> list[list[str]]:
        both = await asyncio.gather(messages(address), messages(address))
        return [[message["text"] for message in said] for said in both]

    code = "import time; time.sleep(0.5); " + SAYS.format('{"kind": "playground", "text": "Trained."}')
    first, second = sorted(visited(visit, code), key=len)
    assert first == ["The training starts …", "Trained."]
    assert second[0].startswith("The server runs 1 trainings at once")
    assert second[1:] == first


def test_a_training_ends_with_its_page() -> None:
    """A closed page leaves no training behind: the next one starts at once."""

    async def visit(address: str) -> int:
        for _ in range(3):
            socket = await websocket_connect(f"ws://{address}/training")
            while json.loads(await socket.read_message())["kind"] != "training":
                pass
            socket.close()
            await socket.read_message()  # until it is closed
        return 3

    assert visited(visit, SAYS.format('{"kind": "training"}') + "sys.stdin.read()") == 3


def test_pages_of_others_start_no_training() -> None:
    """A page from elsewhere that a visitor has open cannot make this machine train."""

    async def visit(address: str) -> int:
        from tornado.httpclient import HTTPRequest

        headers = HTTPHeaders({"Origin": "http://elsewhere.example"})
        with pytest.raises(HTTPClientError) as refused:
            await websocket_connect(HTTPRequest(f"ws://{address}/training", headers=headers))
        return refused.value.code

    assert visited(visit) == 403


def test_training_is_sent_stopped_and_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's buttons reach the run, and the playground comes at its end."""
    monkeypatch.setattr("mtanytime.explore.live.SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(training, "IMAGES", 2)
    orders: queue.Queue[str] = queue.Queue()
    said: list[tuple[str, dict[str, Any]]] = []

    def send(kind: str, **message: Any) -> None:
        said.append((kind, json.loads(json.dumps(message))))
        if kind == "training":
            state = message["content"]["state"]
            if state == "running" and message["content"]["step"] == 1:
                orders.put("stop\n")
            elif state == "stopped":
                orders.put("resume\n")

    training.watch(*training.build(per_class=10, epochs=2), iter(orders.get, None), send)
    states = [message["content"]["state"] for kind, message in said if kind == "training"]
    assert "stopped" in states[:-1]
    assert states[-1] == "finished"
    kind, message = said[-1]
    assert kind == "playground"
    assert len(message["state"]["content"]["images"]) == 2
    assert re.fullmatch(r"Trained\. .*: exit 1: \d+%, exit 2: \d+%, exit 3: \d+%\.", message["text"])


def test_a_stopped_training_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A visitor who stops a training and goes away must not keep others from theirs."""
    monkeypatch.setattr(training, "STOPPED_SECONDS", 0)
    monkeypatch.setattr("mtanytime.explore.live.SECONDS_BETWEEN", 0.0)
    orders: queue.Queue[str] = queue.Queue()
    with pytest.raises(ValueError, match=r"training: expected to be resumed within .*; start it again"):
        training.watch(*training.build(per_class=10), iter(orders.get, None), lambda kind, **_: orders.put("stop\n"))


def test_make_app_serves_the_committed_results() -> None:
    """`make app` shows real runs, on this machine alone."""
    rule = (ROOT / "Makefile").read_text().partition("\napp: $(STAMP)\n")[2].splitlines()[0]
    places = re.findall(r"data/results/\S+", rule)
    assert "--host" not in rule
    assert len(places) == 2
    assert page_of([ROOT / place for place in places]).count('class="state"') == 2
