"""The explorers in JupyterLab in a real browser, as a reader of the notebooks sees them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

TESTS = Path(__file__).resolve().parent.parent
CELLS = (
    f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
    "import tables\n"
    "from mtanytime.explore.budget import BudgetExplorer\n"
    "from mtanytime.explore.transfer import TransferExplorer",
    "transfer = TransferExplorer(tables.trace(), tables.channels(tables.trace()))\ntransfer",
    "budget = BudgetExplorer(tables.curve(), *tables.strip(tables.curve()))\nbudget",
)
ASK = "print('kernel:', transfer.step, budget.at, transfer.values().to_numpy().round(2).tolist())"
CLOSE = "transfer.close(); budget.close()"


def run_cell(page: Any, number: int) -> None:
    """Execute one cell as a reader does, by the keyboard."""
    page.locator(".jp-Cell").nth(number).locator(".cm-content").click()
    page.keyboard.press("Control+Enter")


@pytest.fixture
def opened(lab: tuple[Path, Callable[[str], str]], tab: Callable[..., Any]) -> Callable[..., Any]:
    """`opened(name, *code)` is the page of a new notebook with these cells, its kernel running."""

    def go(name: str, *code: str) -> Any:
        folder, address = lab
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        cells = [new_code_cell(text) for text in code]
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / name)
        page = tab(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(90_000)
        page.goto(address(name))
        page.locator(".jp-Notebook .cm-content").first.wait_for()
        page.get_by_text("| Idle").wait_for()  # the kernel is there
        return page

    return go


@pytest.fixture
def notebook(opened: Callable[..., Any]) -> Any:
    """A notebook with two explorers on the screen."""
    page = opened("explore.ipynb", *CELLS, ASK, CLOSE)
    for number in range(len(CELLS)):
        run_cell(page, number)
    page.locator(".mtanytime svg").nth(3).wait_for()
    return page


def test_sliders_move_in_jupyterlab(notebook: Any) -> None:
    """JupyterLab passes arrow keys on; picture, read-out and kernel follow."""
    transfer, budget = (notebook.locator(".mtanytime").nth(i) for i in (0, 1))
    pixels = "c => c.toDataURL()"
    before = transfer.locator("canvas").evaluate(pixels), budget.locator("img").count()
    transfer.locator("input[type=range]").focus()
    notebook.keyboard.press("ArrowLeft")
    transfer.get_by_text("step 100 of 200", exact=True).wait_for()
    assert transfer.locator("[role=status]").inner_text().startswith("Step 100. layer2 → t3: λ 2.50 ± 0.10")
    assert transfer.locator("canvas").evaluate(pixels) != before[0]
    assert before[1] == 3
    budget.locator("input[type=range]").focus()
    notebook.keyboard.press("End")
    budget.get_by_text("24 M MACs · msdnet exit 4 of 4", exact=True).wait_for()
    run_cell(notebook, 3)
    said = notebook.locator(".jp-OutputArea-output pre", has_text="kernel:").inner_text()
    assert said.startswith("kernel: 100 ['msdnet', 4]")
    values = json.loads(said[said.index("[[") :])
    shown = transfer.locator(".stack svg text").all_text_contents()
    assert [f"{value:.2f}" for row in values for value in row] == shown[:6]
    transfer.get_by_text("Download", exact=True).click()
    for kind, start in (("CSV", b"step,source,target,weight"), ("SVG", b"<svg"), ("PNG", b"\x89PNG")):
        with notebook.expect_download() as download:
            transfer.get_by_role("button", name=kind, exact=True).click()
        assert Path(download.value.path()).read_bytes().startswith(start)
    run_cell(notebook, 4)
    notebook.locator(".mtanytime").first.wait_for(state="detached")
    assert notebook.locator(".mtanytime").count() == 0


def test_explorers_follow_the_dark_theme(notebook: Any) -> None:
    """Text is bright in JupyterLab's dark theme."""
    ink = "e => getComputedStyle(e).fill"
    title = notebook.locator(".mtanytime svg text.strong").first
    light = title.evaluate(ink)
    notebook.evaluate("jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    notebook.locator("body[data-jp-theme-light=false]").wait_for(state="attached")
    dark = title.evaluate(ink)
    brightness = [sum(map(float, colour[colour.index("(") + 1 : -1].split(",")[:3])) for colour in (light, dark)]
    assert brightness[0] < 200 < 550 < brightness[1]


TRAIN = """from mtanytime import Trainer, datasets
from mtanytime.explore.live import LiveTraining
from torch import nn
make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
trainer = Trainer(make, datasets.digits(16), epochs=100_000, lr=0.01, progress=False)
live = LiveTraining(trainer)
result = live.train()
print("kernel:", result, trainer.step < trainer.steps)"""
AGAIN = "trainer.steps = trainer.step + 3\nprint('kernel:', live.train().accuracy > 0)"


def test_training_is_watched_and_stopped(opened: Callable[..., Any]) -> None:
    """The figure grows while its cell runs, the button stops the run meanwhile, and the run can be resumed."""
    page = opened("live.ipynb", TRAIN, AGAIN)
    run_cell(page, 0)
    page.locator(".mtanytime svg").first.wait_for()
    step = lambda: int(page.locator(".mtanytime output").inner_text().split()[1].replace(",", ""))  # noqa: E731
    first = step()
    said = "document.querySelector('.mtanytime output').textContent"
    page.wait_for_function(f"first => Number({said}.split(' ')[1].replaceAll(',', '')) > first", arg=first)
    assert page.locator(".mtanytime").count() == 1  # in place
    page.get_by_role("button", name="Stop", exact=False).filter(has_text="■").click()
    page.get_by_text("kernel: None True").wait_for()
    assert "stopped" in page.locator(".mtanytime output").inner_text()
    assert "goes on from step" in page.locator(".mtanytime [role=status]").inner_text()
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Stop", exact=False).filter(has_text="■").click()  # while no cell runs
    page.get_by_role("button", name="Resume").wait_for()
    run_cell(page, 1)
    page.get_by_text("kernel: True").wait_for()
