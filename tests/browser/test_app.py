"""The web app in a real browser: the explorers of notebook 07 as a page without code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


def test_app_is_moved_by_keyboard(app: str, tab: Callable[..., Any]) -> None:
    """The app shows every explorer and no code, fetches nothing from elsewhere, and follows its sliders."""
    page = tab(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(150_000)
    fetched: list[str] = []
    page.on("response", lambda response: fetched.append(response.url))
    page.goto(app)
    explorers = page.locator(".mtanytime")
    explorers.nth(5).wait_for()
    transfer, budget, live, playground = (explorers.nth(i) for i in range(4))
    assert page.get_by_text("import numpy").count() == 0
    before = transfer.locator("canvas").evaluate("c => c.toDataURL()")
    transfer.locator("input[type=range]").focus()
    page.keyboard.press("Home")
    assert transfer.locator("output").inner_text().startswith("step 1 of")
    assert transfer.locator("canvas").evaluate("c => c.toDataURL()") != before
    budget.locator("input[type=range]").focus()
    page.keyboard.press("End")
    assert budget.locator("output").inner_text().count("msdnet exit 7 of 7") == 1
    assert "finished" in live.locator("output").inner_text()
    playground.locator("input[type=range]").focus()
    page.keyboard.press("Home")
    assert playground.locator("output").inner_text() == "0 ms · no answer yet"
    page.keyboard.press("End")
    assert playground.locator("output").inner_text().endswith("exit 3 of 3")
    assert all(url.startswith((app, "data:", "blob:")) for url in fetched), fetched


def test_app_stays_on_this_machine() -> None:
    """With the settings of `make app` the server listens to this machine only."""
    settings = json.loads((ROOT / "notebooks" / "voila.json").read_text(encoding="utf-8"))
    assert settings["Voila"]["ip"] == "127.0.0.1"
    assert "app: $(STAMP)\n\tcd notebooks && ../$(PY) -m voila 07_explore.ipynb" in (ROOT / "Makefile").read_text()
