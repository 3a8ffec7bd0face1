"""The budget page in a real browser: points that are hovered over and clicked, models that are hidden."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tables

from mtanytime.explore.budget import BudgetExplorer


@pytest.fixture
def page(tab: Callable[..., Any], tmp_path: Path) -> Any:
    """The page of two models, offline."""
    opened = tab(offline=True, viewport={"width": 1200, "height": 900})
    curve = tables.curve()
    opened.goto(BudgetExplorer(curve, *tables.strip(curve)).save_html(tmp_path / "page.html").as_uri())
    opened.wait_for_selector(".mtanytime svg")
    return opened


def test_points_show_and_set_the_budget(page: Any) -> None:
    """Hovering over a point shows its values and leaves the budget; a click makes its cost the budget."""
    output = page.locator("output")
    before = output.inner_text()
    chart = page.locator("svg[role=img]").first
    circle = chart.locator("circle:not(.ring)").nth(3).bounding_box()  # exit 4 of the first model
    at = circle["x"] + circle["width"] / 2 + 4, circle["y"] + circle["height"] / 2 + 4  # near enough
    page.mouse.move(*at)
    assert chart.locator(".about text").all_text_contents() == ["sliced, exit 4 of 4", "16 M MACs, 90.0 ± 1.0 %"]
    assert output.inner_text() == before
    page.mouse.click(*at)
    assert output.inner_text() == "16 M MACs · sliced exit 4 of 4"
    page.mouse.move(5, 5)
    assert not chart.locator(".about").is_visible()
    box = chart.bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.8 * box["height"])  # far from all points
    assert output.inner_text() == "16 M MACs · sliced exit 4 of 4"


def test_models_are_hidden_by_keyboard(page: Any) -> None:
    """A legend entry hides its model in chart, table, images and stops; the last model stays."""
    sliced, msdnet = (page.get_by_role("button", name=name, exact=True) for name in ("sliced", "msdnet"))
    curves = page.locator("svg[role=img]").first.locator("polyline")
    assert (curves.count(), page.locator(".picks tbody tr").count()) == (2, 2)
    assert sliced.get_attribute("aria-pressed") == "true"
    sliced.focus()
    page.keyboard.press("Space")
    assert sliced.get_attribute("aria-pressed") == "false"
    assert page.locator(".picks tbody tr").all_inner_texts()[0].strip().startswith("msdnet")
    assert page.locator(".strip tbody tr").count() == 2  # the images and one model
    assert page.locator("input[type=range]").get_attribute("max") == "3"
    assert page.locator("[role=status]").is_visible()
    assert page.evaluate("document.activeElement.textContent") == "sliced"
    msdnet.click(force=True)
    assert msdnet.get_attribute("aria-pressed") == "true"
    assert msdnet.get_attribute("aria-disabled") == "true"
    page.locator("input[type=range]").focus()
    page.keyboard.press("Home")
    assert page.locator("output").inner_text() == "1.5 M MACs · msdnet exit 1 of 4"
    page.get_by_label("Cost").select_option("latency_ms")
    page.locator("input[type=range]").press("ArrowRight")
    assert (
        page.locator("output").inner_text() == "6 ms · msdnet exit 2 of 4"
    )  # which costs as much as an exit of the other
    sliced.click()
    assert page.locator("output").inner_text() == "6 ms · sliced exit 3 of 4, msdnet exit 2 of 4"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_table_fits_a_phone(scheme: str, tab: Callable[..., Any], tmp_path: Path) -> None:
    """At 400 pixels the table has fewer columns, says as much as in a wide window, and does not scroll sideways."""
    opened = tab(offline=True, viewport={"width": 1200, "height": 900}, color_scheme=scheme)
    opened.goto(BudgetExplorer(tables.curve()).save_html(tmp_path / "page.html").as_uri())
    table = opened.locator(".picks")
    words = lambda: sorted(table.locator("tbody").inner_text().replace("the next exit:", "").split())  # noqa: E731
    wide = words()
    opened.set_viewport_size({"width": 400, "height": 900})
    opened.locator(".picks.narrow").wait_for()
    assert words() == wide
    assert table.bounding_box()["width"] <= table.locator("..").evaluate("box => box.clientWidth") + 1
