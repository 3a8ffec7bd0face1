"""How quickly the explorers appear and follow their sliders in JupyterLab, in a real browser. No test: it prints times.

    python tests/browser/timing.py [--json]

"Shown" is from the key that runs the cell to the explorer's picture on the screen; a step is from the slider's event to
the second animation frame after it, when its pixels have been drawn. Median and largest over all steps of the slider.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from conftest import FLAGS, ROOT, serving
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import sync_playwright

SETUP = f"""import sys; sys.path.insert(0, {str(ROOT / "tests")!r})
import tables
from mtanytime.explore.budget import BudgetExplorer
from mtanytime.explore.playground import AnytimePlayground
from mtanytime.explore.transfer import TransferExplorer
from mtanytime.anytime import SlicedResNeXt
layers = tuple(f"layer{{i}}" for i in range(60))
few = tables.trace(("a", "b", "c"), tuple("uvwxy"), tuple(range(50)))
many = tables.trace(layers, layers, tuple(range(50)))
net = SlicedResNeXt(3, 8, 4, 2, 1)"""
EXPLORERS = {
    "transfer, 3 × 5 layers, 50 steps": "TransferExplorer(few, tables.channels(few, 64))",
    "transfer, 60 × 60 layers, 50 steps": "TransferExplorer(many)",
    "budget, 2 models, 8 exits, 3 images": "BudgetExplorer(tables.curve(), *tables.strip(tables.curve()))",
    "playground, 8 images": "AnytimePlayground(net, *tables.pictures(8), tables.TREE)",
}
STEPS = """async (explorer) => {
    const slider = explorer.querySelector("input[type=range]");
    const frame = () => new Promise(requestAnimationFrame);
    const times = [];
    for (let i = 0; i <= Number(slider.max); i += 1) {
        await frame();
        const started = performance.now();
        slider.value = i;
        slider.dispatchEvent(new Event("input", { bubbles: true }));
        await frame();
        await frame();
        times.push(performance.now() - started);
    }
    return times;
}"""


def measured(page: Any, cell: int) -> dict[str, float]:
    """Return the milliseconds until an explorer is shown, and those of its slider's steps."""
    before = page.locator(".mtanytime").count()
    page.locator(".jp-Cell").nth(cell).locator(".cm-content").click()
    started = time.perf_counter()
    page.keyboard.press("Control+Enter")
    explorer = page.locator(".mtanytime").nth(before)
    explorer.locator("svg").first.wait_for()
    shown = 1000 * (time.perf_counter() - started)
    page.wait_for_timeout(1500)
    steps = explorer.evaluate(STEPS)
    return {"shown_ms": shown, "step_median_ms": statistics.median(steps), "step_largest_ms": max(steps)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        folder, state = Path(scratch, "lab"), Path(scratch, "state")
        folder.mkdir()
        state.mkdir()
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        cells = [new_code_cell(text) for text in (SETUP, *EXPLORERS.values())]
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "timing.ipynb")
        lab = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--LabApp.news_url=", f"--ServerApp.root_dir={folder}"]
        with serving("jupyterlab", lab, folder, state, token := "timing") as address:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
            page = browser.new_page(viewport={"width": 1300, "height": 1000})
            page.set_default_timeout(120_000)
            page.goto(f"{address}/lab/tree/timing.ipynb?token={token}&reset")
            page.get_by_text("| Idle").wait_for()
            page.locator(".jp-Cell").first.locator(".cm-content").click()
            page.keyboard.press("Control+Enter")
            page.locator(".jp-InputPrompt", has_text="[1]:").wait_for()
            for number, name in enumerate(EXPLORERS, start=1):
                results[name] = {key: round(value, 1) for key, value in measured(page, number).items()}
                if not options.json:
                    print(f"{name}: {results[name]}")
            browser.close()
    if options.json:
        print(json.dumps(results, ensure_ascii=False))


if __name__ == "__main__":
    main()
