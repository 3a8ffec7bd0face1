"""The site in a real browser, opened from files without a network, at several widths, light and dark."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FIRST, CHAPTER, REFERENCE = "index.html", "notebooks/01_matching_features.html", "reference/transfer.html"
EXPLORERS = "notebooks/07_explore.html"
SCHEMES = ("light", "dark")


@pytest.fixture
def visit(site: Path, tab: Callable[..., Any]) -> Callable[..., Any]:
    """`visit(page, width)` opens a page offline; a message in the console or a request fails the test."""

    def go(page: str, width: int = 1000, height: int = 900, **settings: Any) -> Any:
        opened = tab(offline=True, viewport={"width": width, "height": height}, **settings)
        opened.on("console", lambda message: pytest.fail(message.text) if message.type == "error" else None)
        opened.on("request", lambda request: pytest.fail(request.url) if request.url.startswith("http") else None)
        opened.goto((site / page).as_uri())
        return opened

    return go


def is_dark(element: Any) -> bool:
    """Whether an element's ground, "rgb(r, g, b)", is dark."""
    ground = element.evaluate("e => getComputedStyle(e).backgroundColor")
    return sum(map(int, re.findall(r"\d+", ground)[:3])) < 300


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pages_fit_their_window(scheme: str, visit: Callable[..., Any]) -> None:
    """No page is wider than its window, and it is as light or dark as the reader's system."""
    script = "(all, width) => all.filter((e) => e.getBoundingClientRect().right > width).map((e) => e.outerHTML)"
    for name in (FIRST, CHAPTER, REFERENCE, "results.html", EXPLORERS):
        page = visit(name, color_scheme=scheme)
        assert page.locator("h1").first.is_visible()
        assert is_dark(page.locator("body")) == (scheme == "dark"), name
        for width in (400, 1000, 1600):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
            assert page.locator("article img, article iframe").evaluate_all(script, width) == [], name


def test_the_reader_may_choose_light_or_dark(visit: Callable[..., Any]) -> None:
    """The button changes the page and the explorers in it, whatever the system says."""
    page = visit("notebooks/05_anytime_results.html", color_scheme="light")
    page.locator("iframe.explorer").first.scroll_into_view_if_needed()
    inside = page.frame_locator("iframe.explorer").first.locator("body")
    inside.locator("svg").first.wait_for()
    seen = set()
    for _ in range(3):  # follow the system, light, dark: in an order that is the theme's
        page.locator("button.theme-toggle:visible").first.click()
        page.wait_for_timeout(300)
        assert is_dark(page.locator("body")) == is_dark(inside)
        seen.add(is_dark(inside))
    assert seen == {True, False}


def test_formulas_are_drawn(visit: Callable[..., Any]) -> None:
    """Formulas have a size, a fraction is higher than a letter, and the sum's sign stands over its index."""
    page = visit(CHAPTER)
    boxes = page.locator("math").evaluate_all("all => all.map((m) => m.getBoundingClientRect().height)")
    assert min(boxes) > 5
    shown = page.locator(".formula").first
    tops = shown.locator("mfrac > *").evaluate_all("all => all.map((m) => m.getBoundingClientRect().top)")
    assert tops[0] + 5 < tops[1]
    assert shown.evaluate("m => getComputedStyle(m.querySelector('math')).display").endswith("math")


def test_one_click_leads_to_a_slider(visit: Callable[..., Any]) -> None:
    """From the first page, one click shows an explorer; its slider moves, and its frame is as tall as it is."""
    page = visit(FIRST, color_scheme="dark")
    page.get_by_role("link", name="Move a slider", exact=True).click()
    page.wait_for_url("**/07_explore.html#*")
    frame = page.locator("iframe[title='Accuracy for a budget']").first
    frame.scroll_into_view_if_needed()
    inside = page.frame_locator("iframe[title='Accuracy for a budget']").first
    slider, said = inside.locator("input[type=range]").first, inside.locator("output").first
    slider.focus()
    page.keyboard.press("Home")
    first = said.inner_text()
    page.keyboard.press("End")
    assert said.inner_text() != first
    height = inside.locator("html").evaluate("root => root.getBoundingClientRect().height")
    assert abs(frame.bounding_box()["height"] - height) < 5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_explorers_fit_a_telephone(scheme: str, visit: Callable[..., Any]) -> None:
    """At 400 pixels each explorer is whole: no scroll bar in its frame, and as dark as the page around it."""
    page = visit(EXPLORERS, 400, color_scheme=scheme)
    frames = page.locator("iframe.explorer")
    for i in range(frames.count()):
        frames.nth(i).scroll_into_view_if_needed()
        root = page.frame_locator("iframe.explorer").nth(i).locator("html")
        root.locator(".mtanytime").wait_for()
        page.wait_for_timeout(200)
        sizes = root.evaluate("r => [r.scrollWidth - innerWidth, r.scrollHeight - innerHeight]")
        assert max(sizes) <= 1, (i, sizes)
        assert is_dark(root.locator("body")) == (scheme == "dark")


@pytest.mark.parametrize("word", ["regressor", "Dirichlet"])
def test_search_finds(word: str, visit: Callable[..., Any]) -> None:
    """Search works from files: a word leads to the chapter or the part of the reference that has it."""
    page = visit(FIRST, 1600)
    box = page.get_by_role("textbox", name="Search")
    box.fill(word)
    box.press("Enter")
    results = page.locator("ul.search li a")
    results.first.wait_for()
    results.first.click()
    page.wait_for_url(lambda address: "search.html" not in address)  # and until all of it is there
    assert word.lower() in page.locator("article").inner_text().lower()


def test_chapters_follow_each_other(visit: Callable[..., Any]) -> None:
    """Next and previous lead through the chapters in their order, and contents lead to every one."""
    page = visit("notebooks/00_quickstart.html", 1600)
    page.locator("a.next-page").click()
    assert page.url.endswith("01_matching_features.html")
    page.locator("a.prev-page").click()
    assert page.url.endswith("00_quickstart.html")
    page.locator(".sidebar-tree").get_by_role("link", name="Slicing a network").click()
    assert page.url.endswith("04_slicing_a_network.html")
    page.locator(".toc-tree").get_by_role("link", name="A budget picks an exit").click()
    assert page.url.endswith("#a-budget-picks-an-exit")


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1000, "light")])
def test_no_serious_fault_for_people_with_disabilities(
    width: int, scheme: str, site: Path, tab: Callable[..., Any]
) -> None:
    """axe-core, which checks pages against WCAG, finds no serious or critical fault."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    options = {"preload": False, "resultTypes": ["violations"]}  # preloading needs a server
    for name in (FIRST, CHAPTER, "reference/deploy.html"):
        page = tab(offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.goto((site / name).as_uri())
        grave = [
            (fault["id"], len(fault["nodes"]), fault["nodes"][0]["html"][:200])
            for fault in axe.run(page, options=options).response["violations"]
            if fault["impact"] in ("serious", "critical")
        ]
        assert grave == [], name


def test_a_frame_is_used_from_side_to_side(visit: Callable[..., Any]) -> None:
    """In a frame that follows its height an explorer leaves no room for a scroll bar, and its table fits a phone."""
    page = visit(EXPLORERS, 400)
    page.locator("iframe[title='Accuracy for a budget']").first.scroll_into_view_if_needed()
    inside = page.frame_locator("iframe[title='Accuracy for a budget']").first
    inside.locator("html.fitted .picks.narrow").wait_for(state="attached")
    assert inside.locator("html").evaluate("root => root.clientWidth === innerWidth")
    assert inside.locator(".picks").evaluate(
        "table => table.parentElement.scrollWidth <= table.parentElement.clientWidth"
    )
