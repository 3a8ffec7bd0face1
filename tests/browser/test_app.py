"""The web app in a real browser: several visitors at once, light and dark, narrow and wide, and a training."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

TABS = ((400, "light"), (400, "dark"), (1400, "light"), (1400, "dark"), (1000, "light"))  # opened at the same time


@pytest.fixture
def visit(app: str, tab: Callable[..., Any]) -> Callable[..., Any]:
    """`visit(width, scheme, fragment)` opens the app; a console message or a request elsewhere fails the test."""

    def go(width: int = 1400, scheme: str = "light", fragment: str = "") -> Any:
        page = tab(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.set_default_timeout(90_000)
        page.on("console", lambda message: pytest.fail(message.text) if message.type == "error" else None)
        page.on("request", lambda request: None if request.url.startswith((app, "data:")) else pytest.fail(request.url))
        page.goto(f"{app}#{fragment}" if fragment else app, wait_until="commit")
        return page

    return go


def grave_faults(page: Any) -> list[tuple[str, str]]:
    """Return what axe-core, which checks pages against WCAG, calls serious or critical."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    found = axe.run(page, options={"preload": False, "resultTypes": ["violations"]}).response["violations"]
    return [(fault["id"], fault["nodes"][0]["html"]) for fault in found if fault["impact"] in ("serious", "critical")]


def test_five_tabs_from_a_cold_start(visit: Callable[..., Any]) -> None:
    """Each visitor sees the explorers, light or dark as their system is, within the window, without serious faults."""
    pages = [visit(*kind) for kind in TABS]
    for page, (width, scheme) in zip(pages, TABS, strict=True):
        page.locator(".mtanytime").nth(1).locator("svg").first.wait_for()
        assert page.locator(".mtanytime canvas").count() > 0
        assert page.get_by_text("Test accuracy after training, seed 0: 71").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ground = page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 300) == (scheme == "dark")
    for page in pages[1:3]:
        assert grave_faults(page) == []
    transfer, budget = (pages[-1].locator(".mtanytime").nth(i) for i in (0, 1))
    before = transfer.locator("canvas").first.evaluate("c => c.toDataURL()")
    transfer.locator("input[type=range]").focus()
    pages[-1].keyboard.press("Home")
    assert transfer.locator("output").inner_text() == "step 2 of 240"
    assert transfer.locator("canvas").first.evaluate("c => c.toDataURL()") != before
    transfer.get_by_label("Run", exact=True).select_option("seed 2")
    assert transfer.get_by_text("Test accuracy after training, seed 2: 67").is_visible()
    budget.locator("input[type=range]").focus()
    pages[-1].keyboard.press("End")
    assert "msdnet exit 7 of 7" in budget.locator("output").inner_text()


def test_training_is_watched(visit: Callable[..., Any]) -> None:
    """The button trains, the chart moves, the run can be stopped and resumed, and its answers appear at the end."""
    page = visit(400, "dark")
    page.get_by_role("button", name="Train a network").click()
    live, said = page.locator("#training .mtanytime"), page.locator("#training output")
    live.locator("svg").first.wait_for()
    first = live.locator("polyline").first.get_attribute("points")
    moved = "first => document.querySelector('#training polyline').getAttribute('points') !== first"
    page.wait_for_function(moved, arg=first)
    live.get_by_role("button", name="Stop").click()
    live.get_by_role("button", name="Resume").wait_for()
    assert "stopped" in said.inner_text()
    live.get_by_role("button", name="Resume").click()
    answers = page.locator("#answers .mtanytime")
    answers.locator("svg").first.wait_for()
    assert "finished" in said.inner_text()
    assert page.locator("#message").inner_text().startswith("Trained. Test images answered correctly: exit 1: ")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert grave_faults(page) == []
    answers.locator("input[type=range]").focus()
    page.keyboard.press("Home")
    assert answers.locator("output").inner_text() == "0 ms · no answer yet"
    assert page.get_by_role("button", name="Train again").is_enabled()


def test_an_error_is_one_line(visit: Callable[..., Any]) -> None:
    """A visitor reads what happened and can try again, and markup in a message stays text."""
    page = visit()
    message = page.locator("#message")
    errors = [{"kind": "error", "text": "The training failed. ValueError: <b>no room</b>"}, None]

    def answer(socket: Any) -> None:
        if (error := errors.pop(0)) is not None:
            socket.send(json.dumps(error))
        socket.close()

    page.route_web_socket(re.compile("/training$"), answer)
    for expected in ("The training failed. ValueError: <b>no room</b>", "The connection to the server was lost."):
        page.locator("#train").click()
        message.get_by_text(expected).wait_for()
        assert "\n" not in message.inner_text()
        assert page.get_by_role("button", name="Train again").is_enabled()


def test_a_link_shows_what_its_sender_saw(visit: Callable[..., Any], app: str) -> None:
    """The address holds the choices of every explorer, and shows them to another visitor, at the one moved last."""
    sender = visit()
    transfer, budget = (sender.locator(".mtanytime").nth(i) for i in (0, 1))
    transfer.get_by_label("Run", exact=True).select_option("seed 2")
    transfer.locator("input[type=range]").focus()
    sender.keyboard.press("Home")
    budget.get_by_role("button", name="msdnet").click()
    sender.wait_for_url(re.compile(r"2\.hidden"))
    address = sender.url
    assert address.startswith(f"{app}#")
    assert {"1.run=seed+2", "1.step=2"} <= set(address.partition("#")[2].split("&"))

    receiver = visit(fragment=address.partition("#")[2])
    transfer, budget = (receiver.locator(".mtanytime").nth(i) for i in (0, 1))
    budget.locator("svg").first.wait_for()
    assert transfer.locator("output").inner_text() == "step 2 of 240"
    assert transfer.get_by_label("Run", exact=True).input_value() == "seed 2"
    assert budget.get_by_role("button", name="msdnet").get_attribute("aria-pressed") == "false"
    assert receiver.evaluate("scrollY") > 0
    receiver.evaluate("location.hash = '#1.step=16&2.hidden=no'")  # a link that is pasted into the open page
    transfer.get_by_text("step 16 of 240", exact=True).wait_for()
    assert transfer.get_by_label("Run", exact=True).input_value() != "seed 2"
    assert budget.get_by_role("button", name="msdnet").get_attribute("aria-pressed") == "true"  # "no" is no choice
