"""The exported pages in a real browser, opened from a file and without a network."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tables
import torch
from torch import nn

from mtanytime.data.synthetic import digits
from mtanytime.explore.budget import BudgetExplorer
from mtanytime.explore.live import LiveTraining
from mtanytime.explore.playground import AnytimePlayground
from mtanytime.explore.transfer import TransferExplorer
from mtanytime.training.trainer import Trainer

SLIDER = "input[type=range]"


@pytest.fixture
def visit(tab: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`visit(explorer)` exports it and opens the file offline; any request fails the test."""

    def go(explorer: Any, **settings: Any) -> Any:
        page = tab(offline=True, **settings)
        page.on("console", lambda message: pytest.fail(message.text) if message.type == "error" else None)
        page.on("request", lambda request: pytest.fail(request.url) if request.url.startswith("http") else None)
        page.goto(explorer.save_html(tmp_path / "page.html", force=True).as_uri())
        page.wait_for_selector(".mtanytime svg")
        return page

    return go


def cells(page: Any) -> list[str]:
    """Return the numbers in the heat map's cells."""
    return [text for text in page.locator(".stack svg text").all_text_contents() if re.fullmatch(r"[\d.]+|nan", text)]


def colours(page: Any) -> list[list[int]]:
    """Return the heat map's colours, cell by cell, as red, green, blue and opacity."""
    script = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    return np.array(page.locator(".stack canvas").evaluate(script)).reshape(-1, 4).tolist()


def test_transfer_page_is_moved_by_keyboard(visit: Callable[..., Any]) -> None:
    """Read-out, numbers, colours and detail follow the slider, also for screen readers."""
    trace = tables.trace(steps=(0, 100, 200))
    page = visit(TransferExplorer(trace, tables.channels(trace)))
    last = colours(page)
    assert "step 200 of 200" in page.locator("output").inner_text()
    page.locator(SLIDER).focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.locator("output").inner_text() == "step 100 of 200"
    assert page.locator(SLIDER).get_attribute("aria-valuetext") == "step 100 of 200"
    assert colours(page) != last
    shown = trace[trace["step"] == 100]["weight"]
    assert cells(page)[: len(shown)] == [f"{weight:.2f}" for weight in shown]
    strongest = trace.loc[shown.idxmax()]
    said = page.locator("[role=status]").inner_text()
    assert f"Largest: {strongest['source']} → {strongest['target']}, {strongest['weight']:.2f}." in said
    assert f"at step 100; largest: {strongest['source']}" in page.locator(".stack svg").get_attribute("aria-label")
    assert "Channel weights at step 0" in page.locator("svg").last.text_content()  # the last that were kept by then
    assert all(page.locator("svg[role=img]").nth(i).get_attribute("aria-label") for i in range(3))


def test_transfer_page_plays_and_chooses(visit: Callable[..., Any]) -> None:
    """Play runs to the end and stops; network, slice, scale and pair can be chosen in menus."""
    trace = tables.trace(sources=("birds/a", "cars/a"), slices=("1", "2"), steps=(0, 10, 20))
    explorer = TransferExplorer(trace)
    explorer.step = 0
    page = visit(explorer)
    page.get_by_role("button", name="Play").click()
    page.get_by_text("step 20 of 20").wait_for()
    page.get_by_role("button", name="Play").wait_for()
    page.get_by_label("Source network").select_option("cars")
    page.get_by_role("combobox", name="Slice").select_option("2")
    explorer.step, explorer.network, explorer.slice = 20, "cars", "2"
    assert cells(page)[:3] == [f"{weight:.2f}" for weight in explorer.values().to_numpy().ravel()]
    page.get_by_label("Scale").select_option("share")
    assert "100%" in page.locator(".stack svg").text_content()
    page.get_by_label("Pair: target layer").select_option("t1 slice 2")
    assert "cars/a → t1 slice 2: share of λ 100%" in page.locator("[role=status]").inner_text()


def test_switch_from_asked_to_arrived(visit: Callable[..., Any]) -> None:
    """The switch shows R² on a scale from 0 to 1, at the last step measured until then, and back."""
    trace = tables.trace(steps=(0, 100, 200))
    explorer = TransferExplorer(trace, arrived=tables.arrived(trace, steps=(100, 200)))
    page = visit(explorer)
    asked = cells(page)
    page.get_by_label("Show").select_option("arrived")
    explorer.quantity = "arrived"
    stack = page.locator(".stack svg")
    shown = [text for text in stack.locator("text").all_text_contents() if re.fullmatch(r"-?\d\.\d\d", text)]
    assert shown[:6] == [f"{r2:.2f}" for r2 in explorer.values().to_numpy().ravel()]
    assert shown[0] == "-0.30"
    assert "R² at step 200" in stack.text_content()
    assert "R²: share of the source's variance" in stack.text_content()
    coloured = colours(page)
    assert coloured[0][:3] == [int(explorer.content["colours"][0][k : k + 2], 16) for k in (1, 3, 5)]
    assert coloured[5][:3] == [int(explorer.content["colours"][-1][k : k + 2], 16) for k in (1, 3, 5)]
    assert page.get_by_label("Scale").locator("option").count() == 2  # no share of R²
    page.locator(SLIDER).focus()
    page.keyboard.press("Home")
    said = page.locator("[role=status]").inner_text()
    assert said.startswith("Step 0. layer2 → t3: R² 0.50, measured at step 100. Largest: layer2 → t3, 0.50.")
    assert "R² over time" in page.locator("svg[role=img]").nth(1).text_content()
    page.keyboard.press("End")
    page.get_by_label("Show").select_option("asked")
    assert cells(page) == asked


def test_click_on_a_cell_chooses_the_pair(visit: Callable[..., Any]) -> None:
    """A click on a cell shows its pair in the detail, also where the page has shrunk the map."""
    page = visit(
        TransferExplorer(tables.trace(sources=("a", "b"), targets=("u", "v"))),
        viewport={"width": 600, "height": 800},
    )
    box = page.locator(".stack canvas").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.75)
    assert page.locator("[role=status]").inner_text().split(". ")[1].startswith("b → u: λ")


def test_large_map_speaks_by_colour_and_readout(visit: Callable[..., Any]) -> None:
    """60 × 60 cells have no numbers; a diverged one is marked, and the brightest cell is the largest."""
    names = tuple(f"layer{i}" for i in range(60))
    trace = tables.trace(sources=names, targets=names, steps=(1, 2))
    trace.loc[(trace["step"] == 2) & (trace["source"] == "layer3") & (trace["target"] == "layer5"), "weight"] = np.nan
    page = visit(TransferExplorer(trace))
    assert page.locator(".stack svg text").all_text_contents().count("×") == 1
    assert cells(page)[:1] == ["0"]  # of the colour bar
    shown = np.array(colours(page)).reshape(60, 60, 4)
    assert shown[3, 5].tolist() == pytest.approx([128, 128, 128, 60], abs=2)
    brightness = shown[..., :3].sum(-1)
    brightness[3, 5] = 0
    weights = trace[trace["step"] == 2]["weight"].to_numpy().reshape(60, 60)
    assert brightness.flat[np.nanargmax(weights)] == brightness.max()


def test_budget_page_is_moved_by_keyboard(visit: Callable[..., Any]) -> None:
    """Table, markers and images follow the budget, also for another cost; every stop names what it buys."""
    curve = tables.curve()
    images, predictions = tables.strip(curve)
    explorer = BudgetExplorer(curve, images, predictions)
    page = visit(explorer)
    page.locator(SLIDER).focus()
    page.keyboard.press("Home")
    cheapest = curve.loc[curve["macs"].idxmin()]
    assert page.locator("output").inner_text() == "1 M MACs · sliced exit 1 of 4"
    rows = page.locator(".figures tbody tr")
    assert rows.nth(1).inner_text().strip().endswith("none: its cheapest exit costs 1.5 M MACs")
    assert page.locator(".ring[visibility=hidden]").count() == 1
    page.keyboard.press("End")
    explorer.at = ["msdnet", 4]
    assert page.locator("output").inner_text() == "24 M MACs · msdnet exit 4 of 4"
    for row, pick in zip(rows.all(), explorer.picks().itertuples(), strict=True):
        assert f"{100 * pick.accuracy:.1f} ± {100 * pick.spread:.1f} %" in row.inner_text()
    assert page.locator(".ring[visibility=hidden]").count() == 0
    wanted = predictions[(predictions["model"] == "sliced") & (predictions["exit"] == 4)]
    strip = page.locator(".strip tr").nth(1).inner_text()
    for answer in wanted.itertuples():
        assert f"{'✓' if answer.right else '✗'} " in strip
        assert answer.coarse in strip
    assert cheapest["model"] == "sliced"
    page.get_by_label("Cost").select_option("latency_ms")
    assert page.locator("output").inner_text() == "12 ms · msdnet exit 4 of 4"  # still the same exit


NAMES = ["<script>document.title='!'</script>", "<img src=x onerror=document.title='!'>", "</script>$\u2028'\"{x}"]


@pytest.mark.parametrize("name", NAMES)
def test_names_stay_text(name: str, visit: Callable[..., Any]) -> None:
    """Names that look like markup are shown as text and never run."""
    page = visit(TransferExplorer(tables.trace(sources=(name, "b"))))
    assert page.title() == "What is transferred where"
    assert name in page.locator(".stack svg").text_content()
    page = visit(BudgetExplorer(tables.curve().replace("sliced", name)))
    assert page.title() == "Accuracy for a budget"
    assert name in page.locator(".figures tbody").inner_text()


def test_the_policy_lets_nothing_else_run(tab: Callable[..., Any], tmp_path: Path) -> None:
    """Were a name ever to become markup, the page's content policy would still refuse its script and style."""
    page = tab(offline=True)
    page.goto(TransferExplorer(tables.trace()).save_html(tmp_path / "page.html").as_uri())
    page.wait_for_selector(".mtanytime svg")
    markup = (
        "<img src=x onerror='document.title = 1'><b style='color: rgb(1, 2, 3)'>b</b><style>b { opacity: 0 }</style>"
    )
    page.evaluate("markup => document.body.insertAdjacentHTML('beforeend', markup)", markup)
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "document.title = 2";
        document.body.append(script);
    }""")
    page.wait_for_timeout(100)
    assert page.title() == "What is transferred where"
    style = page.locator("b").last.evaluate("b => [getComputedStyle(b).color, getComputedStyle(b).opacity]")
    assert style[0] != "rgb(1, 2, 3)"
    assert style[1] == "1"


def test_long_names_leave_room(visit: Callable[..., Any]) -> None:
    """A name of 200 letters is shortened in the picture; the read-out has all of it."""
    name = "encoder." * 25
    page = visit(TransferExplorer(tables.trace(sources=("a", name))))
    assert page.locator(".stack").bounding_box()["width"] < 1000
    assert name in page.locator("[role=status]").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_follow_the_readers_colours(scheme: str, visit: Callable[..., Any]) -> None:
    """Text has the contrast that WCAG asks for, in light and dark."""
    page = visit(TransferExplorer(tables.trace()), color_scheme=scheme)
    script = (
        "e => [getComputedStyle(e).color, getComputedStyle(e).fill, getComputedStyle(document.body).backgroundColor]"
    )
    for element in (".readout", "svg text.strong", "select"):
        colour, ink, paper = page.locator(element).first.evaluate(script)
        text = ink if "svg" in element else colour
        assert contrast(text, paper) > 7
        assert (luminance(paper) < 0.1) == (scheme == "dark")


class Steps(nn.Module):
    """Three answers to any image: an animal, a dog, a car."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def refine(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield one answer after the other, some milliseconds apart."""
        for row in ([2.0, 1.99, 1.0], [0.0, 3.0, 0.0], [0.0, 0.0, 5.0]):
            time.sleep(0.005)
            yield torch.tensor([row])


def trained() -> LiveTraining:
    """Return a short run that has ended."""
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))  # noqa: E731
    explorer = LiveTraining(Trainer(make, digits(16), epochs=3, validation=0.2, lr=0.01, progress=False))
    explorer.run()
    return explorer


def test_playground_page_is_moved_by_keyboard(visit: Callable[..., Any]) -> None:
    """Answers and label tree follow the deadline, and a click changes the image."""
    page = visit(AnytimePlayground(Steps(), *tables.pictures(), tables.TREE))
    page.locator(SLIDER).focus()
    page.keyboard.press("Home")
    assert page.locator("output").inner_text() == "0 ms · no answer yet"
    assert "no answer yet; the first comes after" in page.locator("[role=status]").inner_text()
    assert page.locator(".node.lit").count() == 0
    lit = {}
    for _ in range(100):
        page.keyboard.press("ArrowRight")
        lit[page.locator("output").inner_text().partition(" · ")[2]] = page.locator(".node.lit").count()
    assert lit == {"no answer yet": 0, "exit 1 of 3": 1, "exit 2 of 3": 2, "exit 3 of 3": 2}
    assert page.locator("[role=status]").inner_text().endswith("says car (99%), which is incorrect.")
    page.get_by_role("button", name="image 1, car").click()
    assert page.locator("[role=status]").inner_text().endswith("says car (99%), which is correct.")
    assert page.locator("tbody tr").first.inner_text().split()[-2:] == ["animal", "84%"]
    page.get_by_role("button", name="Play").click()
    page.get_by_role("button", name="Pause").wait_for()
    page.get_by_role("button", name="Play").wait_for()
    assert page.locator("output").inner_text().endswith("exit 3 of 3")


def test_training_page_shows_the_run(visit: Callable[..., Any]) -> None:
    """The page of a finished run has two panels with alternative texts, and no button."""
    page = visit(trained())
    assert page.locator("output").inner_text().endswith("finished")
    assert page.locator("svg[role=img]").count() == 2
    assert page.get_by_role("button").count() == 0
    assert "val accuracy now" in page.locator("svg[role=img]").nth(1).get_attribute("aria-label")


LONG = tuple(f"imagenet/encoder.layers.encoder_layer_{i}.mlp" for i in range(3))
PAGES = {
    "transfer": lambda: TransferExplorer(tables.trace(), tables.channels(tables.trace(), 100)),
    "shares": lambda: TransferExplorer(tables.trace(slices=("1", "2")), relative=True),
    "one pair": lambda: TransferExplorer(tables.trace(("a",), ("b",), (123456,))),
    "long names": lambda: TransferExplorer(tables.trace(LONG, LONG), tables.channels(tables.trace(LONG, LONG))),
    "small and large": lambda: TransferExplorer(tables.trace().assign(weight=lambda t: t["weight"] * 1e-5)),
    "budget": lambda: BudgetExplorer(tables.curve()),
    "one exit": lambda: BudgetExplorer(tables.curve().iloc[:1]),
    "playground": lambda: AnytimePlayground(Steps(), *tables.pictures(), tables.TREE),
    "training": lambda: trained(),
}


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_cut_off(name: str, visit: Callable[..., Any]) -> None:
    """Every text of every picture lies inside the picture."""
    page = visit(PAGES[name](), viewport={"width": 1280, "height": 900})
    script = """() => [...document.querySelectorAll("svg[role=img]")].flatMap((svg) => {
        const whole = svg.getBoundingClientRect();
        return [...svg.querySelectorAll("text")].filter((text) => text.textContent).filter((text) => {
            const box = text.getBoundingClientRect();
            const across = Math.min(box.left - whole.left, whole.right - box.right);
            return Math.min(across, box.top - whole.top, whole.bottom - box.bottom) < -1;
        }).map((text) => text.textContent);
    })"""
    assert page.evaluate(script) == []


def luminance(colour: str) -> float:
    """Relative luminance of an "rgb(r, g, b)", as WCAG 2 defines it."""
    parts = np.array([float(part) for part in re.findall(r"[\d.]+", colour)[:3]]) / 255
    linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_one_row_is_a_page(visit: Callable[..., Any]) -> None:
    """A run of one step and one pair, and a curve of one exit, have pictures and sliders that cannot move."""
    page = visit(TransferExplorer(tables.trace(sources=("a",), targets=("b",), steps=(7,))))
    assert page.locator(SLIDER).is_disabled()
    assert "Step 7. a → b: λ" in page.locator("[role=status]").inner_text()
    page = visit(BudgetExplorer(tables.curve().iloc[:1]))
    assert page.locator("output").inner_text() == "1 M MACs · exit 1 of 1"


THREE = {f"l2t-seed{seed}": tables.trace(steps=(0, 100, 200)) for seed in range(3)}
# Pictures are drawn again when the window's width changes, by the second frame.
DRAWN = "() => new Promise(shown => requestAnimationFrame(() => requestAnimationFrame(shown)))"
ACCESSIBLE = {
    "transfer": lambda: TransferExplorer(THREE, arrived={name: tables.arrived(trace) for name, trace in THREE.items()}),
    "large": lambda: TransferExplorer(tables.trace(tuple(map(str, range(60))), tuple(map(str, range(60))), (1, 2))),
    "budget": lambda: BudgetExplorer(tables.curve(), *tables.strip(tables.curve())),
    "playground": lambda: AnytimePlayground(Steps(), *tables.pictures(), tables.TREE),
    "training": lambda: trained(),
}


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [(name, 400, "dark") for name in ACCESSIBLE] + [("transfer", 1400, "light"), ("budget", 1400, "light")],
)
def test_pages_are_accessible(name: str, width: int, scheme: str, visit: Callable[..., Any]) -> None:
    """axe-core finds no serious fault, and the page itself never scrolls sideways, on a phone and on a wide screen."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    explorer = ACCESSIBLE[name]()
    if name == "transfer":
        explorer.compare, explorer.quantity, explorer.pinned = "l2t-seed1", "both", [["layer1", "t1"]]
    page = visit(explorer, viewport={"width": width, "height": 900}, color_scheme=scheme)
    if page.locator("summary").count():
        page.locator("summary").click()
    found = axe.Axe().run(page).response["violations"]
    faults = [(fault["id"], [node["html"][:120] for node in fault["nodes"]]) for fault in found]
    serious = [fault for fault, rule in zip(faults, found, strict=True) if rule["impact"] in ("serious", "critical")]
    assert serious == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_pictures_grow_and_stack(visit: Callable[..., Any]) -> None:
    """Pictures are larger in a wide window, side by side, and below each other on a phone."""
    page = visit(TransferExplorer(tables.trace(), tables.channels(tables.trace())))
    boxes = {}
    for width in (400, 1600):
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate(DRAWN)
        boxes[width] = page.locator("svg[role=img]").evaluate_all(
            "all => all.map(one => one.getBoundingClientRect()).map(({y, width, height}) => ({y, width, height}))"
        )
    assert boxes[400][1]["y"] >= boxes[400][0]["y"] + boxes[400][0]["height"]
    assert boxes[1600][1]["y"] < boxes[1600][0]["y"] + boxes[1600][0]["height"]
    assert boxes[400][1]["width"] < boxes[1600][1]["width"]


@pytest.mark.parametrize("name", ACCESSIBLE)
def test_letters_have_one_size(name: str, visit: Callable[..., Any]) -> None:
    """All pictures of a page have letters of one size, whatever the window's width, and fit it if they can."""
    page = visit(ACCESSIBLE[name]())
    pictures = page.locator("svg[role=img]")
    for width in (400, 1000, 1400):
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate(DRAWN)
        sizes = pictures.evaluate_all("""pictures => pictures.map(picture => {
            const letters = picture.querySelector("text:not(.small, .strong, .number)");
            const scale = picture.getBoundingClientRect().width / picture.viewBox.baseVal.width;
            return scale * parseFloat(getComputedStyle(letters).fontSize);
        })""")
        assert sizes == pytest.approx([12] * len(sizes))
        if name != "large" or width > 400:  # 60 columns scroll on a phone
            assert max(pictures.evaluate_all("all => all.map(one => one.getBoundingClientRect().right)")) <= width


def test_forced_colours(visit: Callable[..., Any]) -> None:
    """In a contrast theme text has the theme's colour, and the cells keep theirs, with numbers that can be read."""
    page = visit(TransferExplorer(tables.trace()), forced_colors="active", color_scheme="dark")
    ink, paper = page.evaluate("""() => { const probe = document.createElement("p"); document.body.append(probe);
        probe.style.color = "CanvasText"; probe.style.background = "Canvas";
        return [getComputedStyle(probe).color, getComputedStyle(probe).backgroundColor]; }""")
    fill = "e => getComputedStyle(e).fill"
    assert page.locator("svg text.strong").first.evaluate(fill) == ink
    assert contrast(ink, paper) > 7
    texts = page.locator(".stack svg text").all()[:6]
    for text, cell in zip(texts, colours(page), strict=True):
        assert contrast(text.evaluate(fill), f"rgb({cell[0]}, {cell[1]}, {cell[2]})") > 4.5
