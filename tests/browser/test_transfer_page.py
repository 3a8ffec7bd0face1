"""The page of several runs in a real browser: comparing, changes, curves that are clicked, pairs that are pinned."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tables
import torch

from mtanytime.explore.feature_maps import write_feature_maps
from mtanytime.explore.transfer import TransferExplorer

STATUS = "[role=status]"


def runs() -> dict[str, pd.DataFrame]:
    """Return two runs; the second's λ is larger by half the number of the pair."""
    trace = tables.trace(steps=(0, 100, 200))
    return {"seed0": trace, "seed1": trace.assign(weight=trace["weight"] + np.tile(np.arange(6) / 2 - 1, 3))}


@pytest.fixture
def several(tab: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`several(**choices)` opens the page of two runs with these choices, offline."""

    def go(**choices: Any) -> tuple[Any, TransferExplorer]:
        traces = runs()
        explorer = TransferExplorer(traces, arrived={name: tables.arrived(trace) for name, trace in traces.items()})
        for name, value in choices.items():
            setattr(explorer, name, value)
        page = tab(offline=True, viewport={"width": 1400, "height": 900})
        page.goto(explorer.save_html(tmp_path / "page.html", force=True).as_uri())
        page.wait_for_selector(".mtanytime svg")
        return page, explorer

    return go


def numbers(page: Any, map: int) -> list[float]:
    """Return the numbers in the cells of a map."""
    texts = page.locator(".stack").nth(map).locator("svg text").all_text_contents()
    found = [text.replace("−", "-") for text in texts if re.fullmatch(r"[+−-]?\d+\.\d\d", text)]
    return [float(text) for text in found[:6]]


def test_two_runs_are_compared(several: Callable[..., Any]) -> None:
    """The menus show another run, both runs, and their difference around white, as the kernel computes it."""
    page, explorer = several()
    page.get_by_label("Run", exact=True).select_option("seed1")
    explorer.run = "seed1"
    np.testing.assert_allclose(numbers(page, 0), explorer.values().to_numpy().ravel(), atol=0.0051)
    page.get_by_label("Compare with").select_option("seed0")
    explorer.compare = "seed0"
    assert page.locator(".stack").count() == 3
    np.testing.assert_allclose(numbers(page, 2), explorer.differences().to_numpy().ravel(), atol=0.0051)
    assert numbers(page, 2) == [-1, -0.5, 0, 0.5, 1, 1.5]
    last = page.locator(".stack").nth(2)
    assert "λ: seed1 − seed0 (no unit)" in last.inner_text()
    script = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    colours = np.array(last.locator("canvas").evaluate(script)).reshape(6, 4)[:, :3]
    assert colours[2].min() > 240  # white for 0
    assert colours[0][2] > colours[0][0] + 50  # blue below 0
    assert colours[5][0] > colours[5][2] + 50  # red above
    said = page.locator(STATUS).inner_text()
    assert "in seed1; λ 3.50" in said
    assert said.endswith("Largest difference: layer2 → t3, +1.50.")
    assert "Solid lines: seed1; dashed: seed0." in page.locator(".detail").inner_text()
    page.get_by_label("Compare with").select_option("")
    assert page.locator(".stack").count() == 1


def test_change_since_the_first_step(several: Callable[..., Any]) -> None:
    """The scale of changes starts at 0 everywhere, for λ, for shares and for R²."""
    page, explorer = several()
    explorer.change = True
    page.get_by_label("Scale").select_option("change")
    np.testing.assert_allclose(numbers(page, 0), explorer.values().to_numpy().ravel(), atol=0.0051)
    assert (
        "Change of λ at step 200" in page.locator(".stack").text_content()
        or "change of λ" in page.locator(".stack").text_content()
    )
    page.locator("input[type=range]").focus()
    page.keyboard.press("Home")
    assert numbers(page, 0) == [0] * 6
    page.keyboard.press("End")
    page.get_by_label("Scale").select_option("change share")
    assert "percentage points" in page.locator(".stack").text_content()
    page.get_by_label("Show").select_option("both")
    assert page.locator(".stack").count() == 2
    explorer.quantity = "arrived"
    np.testing.assert_allclose(numbers(page, 1), explorer.values().to_numpy().ravel(), atol=0.0051)


def test_asked_beside_arrived(several: Callable[..., Any]) -> None:
    """λ and R² are seen at once, each with its scale, its curve and its part of the read-out."""
    page, explorer = several(quantity="both")
    np.testing.assert_allclose(numbers(page, 0), explorer.values().to_numpy().ravel(), atol=0.0051)
    explorer.quantity = "arrived"
    np.testing.assert_allclose(numbers(page, 1), explorer.values().to_numpy().ravel(), atol=0.0051)
    said = page.locator(STATUS).inner_text()
    assert "λ 3.50 ± 0.10 in seed0; R² 1.00 in seed0" in said
    titles = page.locator(".detail svg .strong").all_text_contents()
    assert titles == ["λ over time, ± 1 standard deviation", "R² over time"]


def test_a_click_on_the_curve_jumps(several: Callable[..., Any]) -> None:
    """A click within the chart of λ over time moves the slider to the nearest step."""
    page, _ = several()
    box = page.locator(".detail svg .field").first.bounding_box()
    for share, step in ((0.45, 100), (0.02, 0), (0.9, 200)):
        page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        assert page.locator("output").inner_text() == f"step {step} of 200"


def test_pairs_are_pinned(several: Callable[..., Any]) -> None:
    """A click pins a pair, a second one releases it; the button and the list do the same by keyboard."""
    page, _ = several()
    box = page.locator(".stack canvas").bounding_box()
    size = box["width"] / 3, box["height"] / 2
    cell = lambda row, column: (box["x"] + size[0] * (column + 0.5), box["y"] + size[1] * (row + 0.5))  # noqa: E731
    curves = page.locator(".detail svg").first.locator("polyline")
    assert curves.count() == 1
    page.mouse.click(*cell(0, 0))
    page.mouse.click(*cell(0, 1))
    chips = page.get_by_role("group", name="Pinned pairs").get_by_role("button")
    assert [chip.split("\n")[-1].strip() for chip in chips.all_inner_texts()] == ["1layer1 → t1 ×", "2layer1 → t2 ×"]
    assert page.locator(".stack .number").all_text_contents() == ["1", "2"]
    assert page.locator(".detail svg .end").all_text_contents() == ["1", "2"]
    assert curves.count() == 2
    page.mouse.click(*cell(0, 1))
    assert chips.count() == 1
    page.get_by_label("Pair: target layer").select_option("t3")
    assert curves.count() == 2  # the pinned pair's, and that of the pair that is only chosen
    page.get_by_role("button", name="Pin", exact=True).focus()
    page.keyboard.press("Enter")
    assert chips.count() == 2
    assert page.get_by_role("button", name="Unpin", exact=True).get_attribute("aria-pressed") == "true"
    chips.first.focus()
    page.keyboard.press("Enter")
    assert chips.count() == 1
    assert page.evaluate("document.activeElement.className") == "chip"
    page.keyboard.press("Enter")
    assert chips.count() == 0
    assert page.evaluate("document.activeElement.textContent") == "Pin"


def test_what_a_channel_sees(tab: Callable[..., Any], tmp_path: Path) -> None:
    """A bar's click, or the menu by keyboard, shows the channel's maps below the images, with weight and scale."""
    source = torch.nn.Sequential(torch.nn.Conv2d(3, 24, 1))
    trace = tables.trace(sources=("0",), targets=("u", "v"), steps=(0, 100))
    trace.to_csv(tmp_path / "trace.csv", index=False)
    tables.channels(trace, 24).to_csv(tmp_path / "channels.csv", index=False)
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    write_feature_maps(tmp_path, source, images, tmp_path, each=2)
    page = tab(offline=True, viewport={"width": 1400, "height": 1000})
    page.goto(TransferExplorer(tmp_path).save_html(tmp_path / "page.html").as_uri())
    menu = page.get_by_label("What does it see?")
    assert menu.locator("option").all_inner_texts() == ["none chosen", "23", "22", "1", "0"]
    bars = page.locator(".detail svg").last.locator(".field")
    bars.first.click()
    seen = page.locator(".seen .note")
    assert seen.inner_text().startswith("Channel 23 of 0: weight 0.08, number 1 of 24; black is ")
    assert page.locator("img.seen").count() == 3
    assert page.locator("img.maps_of").evaluate("i => [i.naturalWidth, i.naturalHeight]") == [24, 8]
    bars.nth(5).click()
    assert seen.inner_text() == "There is no feature map of channel 18 of 0 in the file."
    menu.focus()
    page.keyboard.press("End")
    assert "Channel 0 of 0: weight 0.00333, number 24 of 24" in seen.inner_text()
    page.locator("input[type=range]").press("Home")
    assert "weight 0.0417" in seen.inner_text()
    page.wait_for_timeout(350)
    assert "channel=0" in page.evaluate("location.hash")
