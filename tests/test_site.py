"""The site of the notebooks: whole, readable without the network, and true to the notebooks."""

import ast
import json
import os
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from project import ROOT, python_files

LOADED = {  # what a browser loads by itself -> the attribute with its address
    "script": "src",
    "img": "src",
    "iframe": "src",
    "link": "href",
    "source": "src",
    "video": "src",
    "object": "data",
}
LINKS_ONLY = {"search", "index", "next", "prev", "canonical"}  # kinds of <link> that nothing is loaded for
MEGABYTES = 12
BESIDE = {".sphinx", "runs", "explore", "exported"}  # what else is in build/
WIDGET = "application/vnd.jupyter.widget-view+json"


class Page(HTMLParser):
    """The addresses in a page, its ids, its pictures and frames, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.unnamed: list[str] = []
        self.frames: list[str] = []
        self.formulas = 0
        self.words: list[str] = []
        self._silent = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect what the element names."""
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADED and LOADED[tag] in given and given.get("rel") not in LINKS_ONLY:
            self.loaded.append(given[LOADED[tag]])
        if (tag == "img" and not given.get("alt")) or (tag == "iframe" and not given.get("title")):
            self.unnamed.append(str(given))
        if tag == "iframe":
            self.frames.append(given["src"])
        self.formulas += tag == "math"
        self._silent += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        """Leave a script or style."""
        self._silent -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        """Collect text, but no code of scripts."""
        if not self._silent:
            self.words.append(data)


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """All pages of the site, by their paths."""
    paths = [path for path in sorted(site.rglob("*.html")) if path.relative_to(site).parts[0] not in BESIDE]
    return {path: Page(path) for path in paths}


def external(address: str) -> bool:
    """Whether an address leaves the site."""
    return bool(re.match(r"(?:https?:)?//", address))


def test_everything_is_there(site: Path, pages: dict[Path, Page]) -> None:
    """A chapter per notebook, reference, instructions, results and changelog, within a size that loads quickly."""
    names = {path.relative_to(site).as_posix() for path in pages}
    chapters = {f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert chapters
    assert chapters | {"index.html", "use.html", "clusters.html", "results.html", "changelog.html"} <= names
    assert {"reference/transfer.html", "reference/anytime.html"} <= names
    published = [path for path in site.rglob("*") if path.is_file() and path.relative_to(site).parts[0] not in BESIDE]
    assert sum(path.stat().st_size for path in published) < MEGABYTES * 1e6
    assert max(path.stat().st_size for path in pages) < 1e6


def test_links_and_anchors_resolve(pages: dict[Path, Page]) -> None:
    """Every link inside the site leads to a file, and to a place in it where it names one."""
    broken = []
    for path, page in pages.items():
        for address in [*page.links, *page.loaded]:
            if external(address) or address.startswith(("mailto:", "data:")):
                continue
            name, anchor = urldefrag(address)
            target = Path(os.path.normpath(path.parent / unquote(name.split("?")[0]))) if name else path
            there = target.is_file()
            if there and anchor and target.suffix == ".html":
                there = unquote(anchor) in pages[target].ids
            if not there:
                broken.append(f"{path.name}: {address}")
    assert not broken, "\n".join(broken)


def test_nothing_comes_from_the_network(site: Path, pages: dict[Path, Page]) -> None:
    """A reader without network sees the same: no script, style, font or picture from elsewhere."""
    assert [(path.name, address) for path, page in pages.items() for address in page.loaded if external(address)] == []
    for path in site.rglob("*.css"):
        style = path.read_text(encoding="utf-8")
        assert not re.search(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""", style), path.name


def test_pictures_and_frames_have_texts(pages: dict[Path, Page]) -> None:
    """A blind reader hears what each picture and each explorer shows."""
    assert [(path.name, page.unnamed) for path, page in pages.items() if page.unnamed] == []


def stored_outputs(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the stored outputs of a notebook."""
    for cell in nbformat.read(path, as_version=4).cells:
        yield from cell.get("outputs", ())


def test_explorers_are_live(site: Path, pages: dict[Path, Page]) -> None:
    """Each explorer of the notebooks is a page in a frame, with the contents that the notebook stored."""
    count = 0
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        stored = [
            json.loads(o.metadata["explorer"]) for o in stored_outputs(path) if "explorer" in o.get("metadata", {})
        ]
        frames = pages[site / "notebooks" / f"{path.stem}.html"].frames
        count += len(frames)
        assert len(frames) == len(stored)
        for frame, explorer in zip(frames, stored, strict=True):
            text = (site / "notebooks" / frame).read_text(encoding="utf-8")
            state = json.loads(re.search(r'id="state">(.*?)</script>', text, re.DOTALL)[1])
            assert state == {**explorer, "page": True}
    assert count >= 7


def test_chapters_are_offered_as_notebooks(site: Path) -> None:
    """What a reader downloads is the notebook itself, without the site's changes."""
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert (site / "notebooks" / path.name).read_bytes() == path.read_bytes()


def test_formulas_are_mathml(site: Path, pages: dict[Path, Page]) -> None:
    """Formulas need no script, and none is left as LaTeX."""
    for name in ("01_matching_features", "02_learning_what_and_where", "04_slicing_a_network"):
        page = pages[site / "notebooks" / f"{name}.html"]
        assert page.formulas > 5
        assert not re.search(r"\$\$|\\(?:frac|sum|lambda|text|left|begin|mathrm)\b", "".join(page.words))


def test_public_names_are_in_the_reference(site: Path, pages: dict[Path, Page]) -> None:
    """A reader finds each public name of the library, with a signature that can be read."""
    folder = site / "reference"
    ids = {name for path, page in pages.items() if path.parent == folder for name in page.ids}
    code = "\n".join(path.read_text(encoding="utf-8") for path in python_files("mtanytime"))
    missing = []
    for package in ("data", "training", "measure", "transfer", "anytime", "deploy", "explore.draw"):
        listing = (ROOT / "mtanytime" / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")
        for name in ast.literal_eval(re.search(r"__all__ = (\[.*?\])", listing, re.DOTALL)[1]):
            described = re.search(rf"^(?:class|def) {name}\b", code, re.MULTILINE)  # values and types may have no text
            if described and f"mtanytime.{package}.{name}" not in ids:
                missing.append(f"{package}.{name}")
    assert missing == []
    words = "".join(word for path, page in pages.items() if path.parent == folder for word in page.words)
    assert re.search(r"<\w+>|\bt\.Any|~torch", words) is None


def test_the_site_says_nothing_of_its_making(site: Path, pages: dict[Path, Page]) -> None:
    """A reader wants to read about networks, not about tools of the site."""
    for path, page in pages.items():
        if site / "_static" not in path.parents:
            assert not re.search(r"Sphinx|Furo|Made with|MyST", "".join(page.words)), path.name


def test_the_index_knows_the_words_of_the_chapters(site: Path) -> None:
    """Search without a server reads this file."""
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert all(f'"{word}"' in index for word in ("lookahead", "slice", "regressor"))


def test_what_was_executed_last_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make run` shows what it has executed, but a notebook that was changed since comes with its stored outputs."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import build

    for name in ("docs", "notebooks", "executed"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(build, "HERE", tmp_path / "docs")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "COPIED", {})
    names = ("0.ipynb", "1.ipynb", "2.ipynb")
    for name in names:
        (tmp_path / "notebooks" / name).write_text("stored")
    for name in names[:2]:
        (tmp_path / "executed" / name).write_text("executed")
    later = (tmp_path / "executed" / "1.ipynb").stat().st_mtime + 10
    os.utime(tmp_path / "notebooks" / "1.ipynb", (later, later))
    target = tmp_path / "source"
    (target / "notebooks").mkdir(parents=True)
    (target / "notebooks" / "gone.ipynb").write_text("deleted since")
    build.gather(tmp_path / "executed", target)
    shown = {path.name: path.read_text() for path in (target / "notebooks").iterdir()}
    assert shown == dict(zip(names, ("executed", "stored", "stored"), strict=True))


def test_pictures_of_a_chapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture keeps its alternative text and size, and is named after its section where it has no text."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import chapters

    data = {"image/png": b64encode(b"PNG").decode(), "text/plain": "a picture"}
    texts = ({"image/png": {"alt": "λ < 6 & more", "width": 9}}, {})
    outputs = [new_output("display_data", data, metadata=metadata) for metadata in texts]
    table = new_output("display_data", {"text/html": "<table>"})
    cells = [new_markdown_cell("# One\n\n## A *part*"), new_code_cell("x", outputs=[*outputs, table])]
    notebook = new_notebook(cells=cells)
    chapters.prepare(notebook, "00", tmp_path)
    first, second, third = (output.data["text/html"] for output in notebook.cells[1].outputs)
    assert 'src="../pictures/00-1.png" alt="λ &lt; 6 &amp; more" width="9" ' in first
    assert 'alt="Figure 2, under “A part”"' in second
    assert third == "<table>"
    assert (tmp_path / "pictures" / "00-2.png").read_bytes() == b"PNG"
    assert 'href="00.ipynb"' in notebook.cells[-1].source


def test_an_explorers_contents_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stored notebook holds contents and choices of an explorer, but no scripts, and nothing of other widgets."""
    monkeypatch.syspath_prepend(ROOT / "notebooks")
    import stored

    content = {"kind": "transfer", "title": "T", "numbers": [0.5, None]}
    traits = {"content": content, "step": 3, "_esm": "code", "layout": "IPY_MODEL_1", "tabbable": None, "tooltip": None}
    states = {"1": {"state": traits}, "2": {"state": {"value": 1}}, "3": {"state": {"content": "text"}}}
    outputs = [new_output("display_data", {WIDGET: {"model_id": name}, "image/png": "A"}) for name in "1234"]
    notebook = new_notebook(cells=[new_code_cell("x", outputs=outputs)])
    notebook.metadata["widgets"] = {stored.STATE: {"state": states}}
    kept = stored.normalized(notebook)
    first, *others = kept.cells[0].outputs
    assert json.loads(first.metadata["explorer"]) == {"content": content, "step": 3}
    assert [output.metadata for output in others] == [{}, {}, {}]
    assert all(set(output.data) == {"image/png"} for output in kept.cells[0].outputs)
    assert "widgets" not in kept.metadata
    monkeypatch.setattr(stored, "CHARACTERS_UP_TO", 20)
    assert stored.explorer_of(traits) == ""


def prose_of_notebooks() -> str:
    """Return the text cells of all notebooks."""
    cells = (cell for path in (ROOT / "notebooks").glob("*.ipynb") for cell in nbformat.read(path, as_version=4).cells)
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_spelling(tmp_path: Path) -> None:
    """Misspelled words in what a reader reads: Markdown files, docstrings and the notebooks' text."""
    pytest.importorskip("codespell_lib", reason="codespell is not installed")
    (tmp_path / "notebooks.md").write_text(prose_of_notebooks(), encoding="utf-8")
    (tmp_path / "wrong.md").write_text("A mispelled word.", encoding="utf-8")
    command = [sys.executable, "-m", "codespell_lib", "--toml", str(ROOT / "pyproject.toml")]
    places = [*map(str, ROOT.glob("*.md")), str(ROOT / "docs"), str(ROOT / "mtanytime"), str(tmp_path)]
    found = subprocess.run([*command, *places], capture_output=True, text=True, check=False).stdout.splitlines()
    assert [line for line in found if "wrong.md" not in line] == []
    assert len(found) == 1  # the check above would pass vacuously if nothing was read
