"""The committed notebooks are complete, small and portable, and the script that executes them reports its progress.

`pytest --nbval notebooks` (part of `make test`) executes the notebooks and compares every text output with the stored
one; pictures are never compared. A cell whose output differs between machines (a trained accuracy, seconds) has the tag
`nbval-ignore-output` and asserts bounds instead; a cell that cannot run in a test has the tag `nbval-skip`.
"""

import base64
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import quote

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"
ELSEWHERE = r"https://(?:colab\.research\.google\.com|mybinder\.org)/[^\s)]*"
MACHINE_PATH = r"(?<![\w.])/(?:home|root|work|tmp|Users)/\w"


def faults(notebook: nbformat.NotebookNode) -> list[str]:
    """Return, in words, everything that keeps a notebook from being published."""
    problems = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [cell for cell in code if not cell.metadata.get("jupyter", {}).get("source_hidden")]
    lines = sum(len(cell.source.splitlines()) for cell in shown)  # solutions and drawings are folded away
    if not notebook.cells or not re.match(r"# \S", notebook.cells[0].source):
        problems.append("does not start with a markdown heading")
    if len(notebook.cells) > 40:
        problems.append(f"has {len(notebook.cells)} cells, more than 40")
    if lines > 150:
        problems.append(f"has {lines} lines of code, more than 150")
    folded = [cell for cell in code if {"hide-input", "hide-cell"} & set(cell.metadata.get("tags", []))]
    if any(cell in shown for cell in folded):
        problems.append("has cells that are hidden on the site but not in JupyterLab (source_hidden)")
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        problems.append(f"was not run from top to bottom in one go: its execution counts are {counts}")
    widget_state = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json")
    if widget_state is not None and "state" not in widget_state:
        problems.append("holds a widget state without its key 'state'")
    for cell in code:
        for output in cell.outputs:
            where = f"cell [{cell.execution_count}]"
            text = json.dumps(
                {key: value for key, value in output.items() if key != "data"}
                | {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
            )
            if output.output_type == "error":
                problems.append(f"{where} failed: {output.ename}: {output.evalue}")
            if output.get("name") == "stderr":
                problems.append(f"{where} wrote to stderr: {output.text[:80]}")
            if path := re.search(MACHINE_PATH, text):
                problems.append(f"{where} shows a path of one machine: {text[path.start() :][:60]}")
            if WIDGET in output.get("data", {}) and widget_state is None:
                problems.append(f"{where} shows a widget whose state is not saved")
    return problems


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_committed_notebook_is_publishable(path: Path) -> None:
    """Readers see the stored outputs first: they must be complete, free of noise, and quick to load."""
    assert faults(nbformat.read(path, as_version=4)) == []
    assert path.stat().st_size < 1_000_000


def repository() -> str | None:
    """The address on GitHub that the project names, `OWNER/NAME`, or None."""
    root = NOTEBOOKS.parent
    urls = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    text = "\n".join([*urls.values(), (root / "CITATION.cff").read_text(encoding="utf-8")])
    address = re.search(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?[\"']?(?:\s|$)", text)
    return address[1] if address else None


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebook_opens_elsewhere(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links to Colab and Binder lead to the repository that the project names, and only Colab installs from there.

    While the project names none there are none: another address would install a stranger's code.
    """
    project = repository()
    first, second, *_ = (notebook := nbformat.read(path, as_version=4)).cells
    text = "\n".join(cell.source for cell in notebook.cells)
    if project is None:
        assert re.findall(ELSEWHERE, text) == []
        assert "google.colab" not in text
        return
    place = f"notebooks/{path.name}"
    assert re.findall(ELSEWHERE, first.source) == re.findall(ELSEWHERE, text)
    assert re.findall(ELSEWHERE, text) == [
        f"https://colab.research.google.com/github/{project}/blob/main/{place}",
        f"https://mybinder.org/v2/gh/{project}/main?labpath={quote(place, safe='')}",
    ]
    assert second.metadata.jupyter.source_hidden
    calls: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
    monkeypatch.setattr(os, "chdir", lambda folder: calls.append(["cd", folder]))
    exec(second.source, {})
    assert calls == []
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    monkeypatch.setattr(os.path, "isdir", lambda _: False)
    exec(second.source, {})
    (git, *_, address), (_, *pip), (_, folder) = calls
    assert (git, address) == ("git", f"https://github.com/{project}")
    assert pip[:3] == ["-m", "pip", "install"]
    assert folder == f"{project.split('/')[1]}/notebooks"


def test_faults_are_found() -> None:
    """The check above would pass vacuously if it missed the faults that it looks for."""
    error = new_output("error", ename="ValueError", evalue="no", traceback=[])
    noise = new_output("stream", name="stderr", text="a warning")
    path = new_output("display_data", {"text/plain": "/".join(["", "home", "me", "x.csv"]), "image/png": "/home/"})
    widget = new_output("display_data", {WIDGET: {"model_id": "1"}, "text/plain": "A"})
    outputs = [error, noise, path, widget]
    cells = [new_code_cell("1\n" * 4, execution_count=2, outputs=outputs) for _ in range(41)]
    cells[0].metadata.tags = ["hide-input"]
    problems = "\n".join(faults(new_notebook(cells=cells)))
    for words in (
        "heading",
        "41 cells",
        "lines of code",
        "counts",
        "failed",
        "stderr",
        "path of one",
        "not saved",
        "JupyterLab",
    ):
        assert words in problems
    fine = [new_markdown_cell("# Title"), new_code_cell("1", execution_count=1)]
    assert faults(new_notebook(cells=fine)) == []


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run notebooks/execute.py on all notebooks in a folder."""
    paths = [str(path) for path in sorted(folder.glob("*.ipynb"))]
    command = [sys.executable, str(NOTEBOOKS / "execute.py"), "--output", str(folder / "executed"), *arguments, *paths]
    return subprocess.run(command, capture_output=True, text=True, check=False)


PNG = base64.b64encode(b"\x89PNG not really").decode()
SHOW = f"""from IPython.display import display
from pathlib import Path
Path("cwd.txt").write_text("here")
picture = {{"image/png": "{PNG}", "text/plain": "a picture"}}
display(picture, metadata={{"image/png": {{"alt": "λ < 6 & more", "width": 9}}}}, raw=True)"""


def test_executed_notebooks_are_written_beside(tmp_path: Path) -> None:
    """`make run` must not change the sources; the executed notebooks keep every figure with its text."""
    path = tmp_path / "00_first.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# First"), new_code_cell(SHOW)]), path)
    before = path.read_bytes()
    finished = run(tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert re.search(r"\[1/1\] 00_first  1 cells, [\d.]+ s\n", finished.stdout)
    assert path.read_bytes() == before
    assert (tmp_path / "cwd.txt").read_text() == "here"  # a notebook works in its own folder
    executed = nbformat.read(tmp_path / "executed" / "00_first.ipynb", as_version=4)
    (output,) = executed.cells[1].outputs
    assert output.data == {"image/png": PNG, "text/plain": "a picture"}
    assert output.metadata == {"image/png": {"alt": "λ < 6 & more", "width": 9}}


@pytest.mark.parametrize("keeps_state", [False, True])
def test_in_place_stores_outputs_only(keeps_state: bool, tmp_path: Path) -> None:
    """Outputs are committed, so executing twice must give the same file, without times, versions or widget names."""
    widget = (
        "import ipywidgets\nclass Slider(ipywidgets.IntSlider):\n    def _repr_mimebundle_(self, **_):\n        return "
    )
    widget += f'super()._repr_mimebundle_() | {{"image/png": "{PNG}", "text/plain": "a slider"}}\nSlider()'
    cell = new_code_cell(widget, metadata={"tags": ["nbval-skip"], "execution": {"iopub.execute_input": "2026"}})
    path = tmp_path / "00_first.ipynb"
    live = new_code_cell("ipywidgets.IntSlider()")
    nbformat.write(new_notebook(cells=[new_markdown_cell("# First"), cell, *([live] if keeps_state else [])]), path)
    assert run(tmp_path, "--in-place").returncode == 0
    first = path.read_text(encoding="utf-8")
    assert run(tmp_path, "--in-place").returncode == 0
    assert path.read_text(encoding="utf-8") == first
    stored = nbformat.reads(first, as_version=4)
    assert faults(stored) == []
    assert stored.cells[1].metadata == {"tags": ["nbval-skip"]}
    assert stored.metadata.language_info == {"name": "python"}
    assert set(stored.cells[1].outputs[0].data) == {"image/png", "text/plain"}
    assert ("widgets" in stored.metadata) == keeps_state
    assert not (tmp_path / "executed").exists()


def test_failure_names_the_failing_cell(tmp_path: Path) -> None:
    """When a notebook fails, the command must name it, the cell and the error, stop there, and fail."""
    for name, code in (("00_fails", "1 / 0"), ("01_never", "1")):
        cells = [new_markdown_cell("# Title"), new_code_cell("1"), new_code_cell(code)]
        nbformat.write(new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    finished = run(tmp_path)
    assert finished.returncode == 1
    assert "00_fails.ipynb, code cell 2 of 2 failed:" in finished.stderr
    assert "ZeroDivisionError: division by zero" in finished.stderr
    assert "01_never" not in finished.stdout


def test_a_missing_notebook_is_refused(tmp_path: Path) -> None:
    """A mistyped name must not be taken for an empty run."""
    finished = run(tmp_path, str(tmp_path / "none.ipynb"))
    assert finished.returncode != 0
    assert "there is no notebook" in finished.stderr


def test_badges_are_put_once(tmp_path: Path) -> None:
    """The script adds the links and the cell, counts the later cells on, and a second call changes nothing."""
    notebook = new_notebook(cells=[new_markdown_cell("# Title\n\nText."), new_code_cell("1 + 1", execution_count=1)])
    (tmp_path / "notebooks").mkdir()
    path = tmp_path / "notebooks" / "00_one.ipynb"
    nbformat.write(notebook, path)
    command = [sys.executable, str(NOTEBOOKS / "badges.py"), str(path), "--address", "https://github.com/a/b"]
    said = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert said == ["00_one.ipynb changed\n", "00_one.ipynb unchanged\n"]
    first, install, last = nbformat.read(path, as_version=4).cells
    assert [place.split("/")[2] for place in re.findall(ELSEWHERE, first.source)] == [
        "colab.research.google.com",
        "mybinder.org",
    ]
    assert "https://github.com/a/b" in install.source
    assert (install.execution_count, last.execution_count) == (1, 2)
