"""What an exported page saves, with the network off, and what its address keeps."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import tables
from PIL import Image

from mtanytime.explore.budget import BudgetExplorer
from mtanytime.explore.contents.transfer import transfer_contents
from mtanytime.explore.transfer import TransferExplorer

ODD = "<b>&\"'\x01 ü"  # a layer's name that no format holds as it stands


@pytest.fixture
def opened(tab: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`opened(explorer, fragment)` is its page, offline; an error on the console fails the test."""
    errors = []

    def go(explorer: Any, fragment: str = "", **settings: Any) -> Any:
        page = tab(offline=True, viewport={"width": 1200, "height": 900}, **settings)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        path = explorer.save_html(tmp_path / "page.html", force=True)
        page.goto(path.as_uri() + fragment)
        page.wait_for_selector(".mtanytime svg")
        return page

    yield go
    assert errors == []


def saved(page: Any, kind: str) -> bytes:
    """Return the file that an item of the menu saves."""
    if not page.get_by_role("button", name=kind, exact=True).is_visible():
        page.locator("summary").focus()
        page.keyboard.press("Enter")
    with page.expect_download() as download:
        page.get_by_role("button", name=kind, exact=True).press("Enter")
    assert download.value.suggested_filename.endswith(f".{kind.lower()}")
    return Path(download.value.path()).read_bytes()


def svg_texts(data: bytes) -> list[str]:
    """Return the texts of an SVG file, read as XML."""
    return [text.text or "" for text in ElementTree.fromstring(data).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_map_is_saved(scheme: str, opened: Callable[..., Any]) -> None:
    """CSV holds the numbers of the step, as a trace that can be explored; SVG and PNG the picture, light or dark."""
    trace = tables.trace(sources=("layer1", ODD), steps=(0, 100))
    explorer = TransferExplorer(trace, tables.channels(trace))
    page = opened(explorer, color_scheme=scheme)
    page.locator("input[type=range]").press("Home")
    table = pd.read_csv(io.BytesIO(saved(page, "CSV")))
    assert list(table) == ["step", "source", "target", "weight", "weight_std"]
    first = trace[trace["step"] == 0]
    assert table["source"].tolist() == first["source"].tolist()
    np.testing.assert_allclose(table["weight"], first["weight"], atol=1e-3)
    assert transfer_contents(table)["values"] == [explorer.content["values"][0]]
    texts = svg_texts(saved(page, "SVG"))
    assert {f"{weight:.2f}" for weight in first["weight"]} <= set(texts)
    assert "<b>&\"'\ufffd ü" in texts
    assert {"What is transferred where", "λ at step 0", "Channel weights at step 0"} <= set(texts)
    picture = np.asarray(Image.open(io.BytesIO(saved(page, "PNG"))).convert("RGB"))
    assert (picture[2, 2] < 64).all() if scheme == "dark" else (picture[2, 2] == 255).all()
    pixels = {tuple(colour) for colour in picture.reshape(-1, 3)[::7].tolist()}
    brightest = explorer.content["colours"][-1]
    assert tuple(int(brightest[k : k + 2], 16) for k in (1, 3, 5)) in pixels


def test_a_comparison_is_saved(opened: Callable[..., Any]) -> None:
    """Of several maps there is a column per map."""
    trace = tables.trace()
    runs = {"a": trace, "b": trace.assign(weight=trace["weight"] + 1)}
    explorer = TransferExplorer(runs)
    explorer.compare = "b"
    table = pd.read_csv(io.BytesIO(saved(opened(explorer), "CSV")))
    assert list(table)[3:] == ["weight a", "weight_std a", "weight b", "weight_std b", "weight a − b"]
    np.testing.assert_allclose(table["weight a − b"], -1)


def test_a_budget_is_saved(opened: Callable[..., Any]) -> None:
    """The points of the models shown, as a curve that can be explored, with the picks; the images in the SVG."""
    curve = tables.curve()
    explorer = BudgetExplorer(curve, *tables.strip(curve))
    explorer.hidden, explorer.at = ["msdnet"], ["sliced", 2]
    page = opened(explorer)
    table = pd.read_csv(io.BytesIO(saved(page, "CSV")))
    assert table["model"].unique().tolist() == ["sliced"]
    assert table["exit"][table["picked"]].tolist() == [2]
    again = BudgetExplorer(table[["model", "exit", "macs", "accuracy"]])
    np.testing.assert_allclose(again.picks(4e6)["accuracy"], explorer.picks()["accuracy"])
    data = saved(page, "SVG")
    texts = svg_texts(data)
    assert {"Accuracy against multiply-adds (MACs)", "sliced"} <= set(texts)  # with a legend
    assert "msdnet" not in texts
    assert len(list(ElementTree.fromstring(data).iter("{http://www.w3.org/2000/svg}image"))) == 3
    assert b"color(" not in data
    assert Image.open(io.BytesIO(saved(page, "PNG"))).size[0] > 1000


def kept(page: Any) -> dict[str, Any]:
    """Return the choices in a page's address."""
    page.wait_for_timeout(350)
    return {name: values[0] for name, values in parse_qs(page.evaluate("location.hash.slice(1)")).items()}


def test_a_link_shows_the_same(opened: Callable[..., Any]) -> None:
    """Step, run, comparison, scale, pair and pins are in the address; a page opened with it shows the same."""
    trace = tables.trace(sources=("a&b=c#", "ü+ %"))
    explorer = TransferExplorer({"x": trace, "y z": trace.assign(weight=trace["weight"] + 1)})
    page = opened(explorer)
    assert kept(page) == {}
    page.get_by_label("Run", exact=True).select_option("y z")
    page.get_by_label("Compare with").select_option("x")
    page.get_by_label("Scale").select_option("change share")
    page.locator("input[type=range]").press("ArrowLeft")
    page.get_by_label("Pair: target layer").select_option("t1")
    page.get_by_role("button", name="Pin", exact=True).click()
    found = kept(page)
    assert found | {"pinned": None} == {
        "run": "y z",
        "compare": "x",
        "relative": "true",
        "change": "true",
        "step": "100",
        "pair": '["ü+ %","t1"]',
        "pinned": None,
    }
    assert json.loads(found["pinned"]) == [["ü+ %", "t1"]]
    shown = lambda page: page.locator(".mtanytime").inner_text(), page.locator("svg").all_inner_texts()
    other = opened(explorer, page.evaluate("location.hash"))
    assert shown[0](other) == shown[0](page)
    assert other.locator("svg").all_inner_texts() == shown[1]
    other.evaluate("location.hash = '#step=0'")
    other.get_by_text("step 0 of 200", exact=True).wait_for()
    assert other.locator(".stack").count() == 1  # what the new address does not say is as at first
    other.locator("input[type=range]").press("End")
    assert kept(other) == {}


def test_a_link_to_a_budget(opened: Callable[..., Any]) -> None:
    """Budget, cost and hidden models are in the address."""
    page = opened(BudgetExplorer(tables.curve()))
    page.get_by_label("Cost").select_option("latency_ms")
    page.locator("input[type=range]").press("Home")
    page.get_by_role("button", name="msdnet", exact=True).click()
    assert kept(page) == {"cost": "latency_ms", "at": '["sliced",1]', "hidden": '["msdnet"]'}
    other = opened(BudgetExplorer(tables.curve()), page.evaluate("location.hash"))
    assert other.locator("output").inner_text() == "2 ms · sliced exit 1 of 4"
    assert other.locator(".picks tbody tr").count() == 1


BAD = (
    "step=17", "step=1e999", "step=null", "run=zz", "compare=__proto__", "relative=1", "change=yes", "quantity=arrived",
    'pair=["a"]', "pair=[", 'pair={"0":"layer1"}', f"pinned={'[' * 5000}", 'pinned=[["layer1","t1"],["layer1","t1"]]',
    "content={}", "kind=budget", "%E0%A4%A", "&&=&", "<script>document.title=1</script>", "constructor=1&toString=2",
)  # fmt: skip


def test_bad_addresses_are_ignored(opened: Callable[..., Any]) -> None:
    """A fragment that names what is not there, or is no JSON, leaves the page as it was."""
    page = opened(TransferExplorer(tables.trace()))
    before = page.locator(".mtanytime").inner_text()
    for text in BAD:
        page.evaluate("text => { location.hash = text; }", quote(text, safe="=&%") if text[0] != "%" else text)
        page.wait_for_timeout(20)
        assert page.locator(".mtanytime").inner_text() == before, text
    assert page.title() == "What is transferred where"
    page = opened(TransferExplorer(tables.trace()), "#" + "&".join(BAD[3:9]) + "&step=100")
    assert page.locator("output").inner_text() == "step 100 of 200"  # the one that is good
    page = opened(BudgetExplorer(tables.curve()), '#hidden=["sliced","msdnet"]&at=["sliced",9]&cost=gold&level=x')
    assert page.locator(".picks tbody tr").count() == 2
