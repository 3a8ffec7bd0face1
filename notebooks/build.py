"""Execute the notebooks from top to bottom with one line of progress each, and collect their figures on one page.

    python notebooks/build.py                                  all of them, in order; the sources stay unchanged
    python notebooks/build.py --in-place                       store the outputs in the notebooks, to commit them
    python notebooks/build.py notebooks/00_quickstart.ipynb    only this one

Writes build/index.html (self-contained: every notebook's title, first paragraph, figures and duration, and links to the
explorers that notebooks exported to build/explore), and for each notebook build/NAME.ipynb and build/NAME.html. Stops
at the first failing cell, names it, and exits with status 1. Deletes build/runs and build/explore before executing all
notebooks, so that they do not resume earlier runs.
"""

import argparse
import asyncio
import contextlib
import html
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget-view+json"
IMAGES = ("image/png", "image/jpeg")
REPORT_SECONDS = 30  # between lines about one notebook in a log, which unlike a terminal cannot rewrite its line


class Progress:
    """A line of progress (notebook, cell, seconds), rewritten in a terminal and repeated now and then in a log."""

    def __init__(self, label: str, cells: int):
        self.label, self.cells, self.cell = label, cells, 0
        self.started = self.last_report = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the notebook started."""
        return time.perf_counter() - self.started

    async def tick(self) -> None:
        """Show the state until cancelled."""
        while True:
            line = f"{self.label}  cell {self.cell} of {self.cells}, {self.seconds:.0f} s"
            if sys.stdout.isatty():
                print(f"\r{line}\x1b[K", end="", flush=True)
            elif time.perf_counter() - self.last_report >= REPORT_SECONDS:
                self.last_report = time.perf_counter()
                print(line, flush=True)
            await asyncio.sleep(0.5)

    def close(self, state: str) -> None:
        """Replace the progress line with a final one."""
        start = "\r\x1b[K" if sys.stdout.isatty() else ""
        print(f"{start}{self.label}  {self.cells} cells, {self.seconds:.1f} s{state}", flush=True)


class Page(NamedTuple):
    """One notebook's part of the index; title and paragraph are HTML, a figure is (data URI, alt text, width)."""

    name: str
    title: str
    paragraph: str
    figures: list[tuple[str, str, str]]
    seconds: float


async def execute(notebook: NotebookNode, folder: Path, progress: Progress) -> None:
    """Run every cell in a new kernel whose working directory is `folder`; outputs replace those in `notebook`."""

    def count(cell: NotebookNode, cell_index: int) -> None:
        progress.cell += 1

    def interruptible(notebook: NotebookNode) -> None:
        # nbclient's own handler of the interrupt key stops the kernel and then fails because it is gone
        with contextlib.suppress(NotImplementedError):  # Windows has no signal handlers in event loops
            asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)

    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # otherwise every start warns about local sockets
        resources={"metadata": {"path": str(folder)}},
        on_notebook_start=interruptible,
        on_cell_execute=count,
        coalesce_streams=True,
        record_timing=False,
    )
    ticker = asyncio.create_task(progress.tick())
    try:
        await client.async_execute()
    except DeadKernelError:
        task = asyncio.current_task()
        if task and task.cancelling():  # the interrupt key stopped the kernel: the notebook did not fail
            raise asyncio.CancelledError from None
        raise
    finally:
        ticker.cancel()


def normalised(notebook: NotebookNode) -> NotebookNode:
    """Keep what a reader sees and drop what differs between machines and runs, so that diffs show only changes.

    A widget with a picture beside it keeps only the picture: its live form needs a kernel, and the state it would save
    (the bytes of every frame) shows nothing without one. Other widgets keep their state, under fixed names.
    """
    live = False
    for cell in notebook.cells:
        cell.metadata = {key: cell.metadata[key] for key in ("tags", "alt", "jupyter") if key in cell.metadata}
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if WIDGET in data and any(kind in data for kind in (*IMAGES, "text/html")):
                del data[WIDGET]
            live |= WIDGET in data
    widgets = notebook.metadata.get("widgets", {}) if live else {}
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
        **({"widgets": widgets} if widgets else {}),
    )
    text = nbformat.writes(notebook)
    for number, name in enumerate(widgets.get("application/vnd.jupyter.widget-state+json", {}).get("state", ())):
        text = text.replace(name, f"{number:032x}")
    return nbformat.reads(text, as_version=4)


def page(name: str, notebook: NotebookNode, seconds: float) -> Page:
    """Collect title, first paragraph and figures of an executed notebook."""
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    opening = re.search(r"^#+ +(.+?)\s*$(?:\s*^(?!#)(.+?)(?:\n\s*\n|\Z))?", prose, re.MULTILINE | re.DOTALL)
    title, paragraph = opening.groups() if opening else (name, None)
    figures, heading = [], title
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ +(.+?)\s*$", cell.source, re.MULTILINE) or [heading])[-1]
        for output in cell.get("outputs", ()):
            for kind in IMAGES:
                if kind in output.get("data", {}):
                    metadata = output.metadata.get(kind, {})
                    alt = metadata.get("alt") or cell.metadata.get("alt")
                    alt = alt or f"Figure {len(figures) + 1} of {name}, under “{heading}”"
                    data = f"data:{kind};base64,{''.join(output.data[kind].split())}"
                    width = f' width="{metadata["width"]}"' if "width" in metadata else ""
                    figures.append((data, html.escape(alt), width))
    inline = re.sub(r"^\s*<p>|</p>\s*$", "", markdown2html(title))
    return Page(name, inline, markdown2html(paragraph or ""), figures, seconds)


STYLE = """
:root { color-scheme: light dark;
  --text: #1b1b1f; --quiet: #5b5b66; --ground: #fcfcfd; --line: #d9d9e0; --link: #0b57d0 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6ea; --quiet: #a9a9b4; --ground: #17171a; --line: #3a3a42; --link: #8ab4f8 }
}
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.55 system-ui, sans-serif;
  color: var(--text); background: var(--ground) }
section { border-top: 1px solid var(--line); margin-top: 2rem }
a { color: var(--link) }
figure { margin: 1.5rem 0 }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px }
figcaption, .quiet { color: var(--quiet); font-size: .9rem }
"""


FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>mtanytime: the notebooks</title>
<style>{style}</style>
</head>
<body>
<h1>mtanytime: the notebooks</h1>
<ol>
{contents}</ol>
{explorers}{sections}</body>
</html>
"""
SECTION = """<section id="{p.name}">
<h2>{p.title}</h2>
{p.paragraph}
<p class="quiet">Ran in {p.seconds:.1f} s. Read it <a href="{p.name}.html">with its text and code</a>
or <a href="{p.name}.ipynb">as a notebook</a>.</p>
{figures}</section>
"""
FIGURE = '<figure><img src="{source}" alt="{alt}"{width}><figcaption>{alt}</figcaption></figure>\n'
EXPLORERS = """<section>
<h2>Interactive explorers</h2>
<p>Each is one file that works without a kernel and without a network, so it can be shared.</p>
<ul>
{links}</ul>
</section>
"""
LINK = '<li><a href="{place}">{title}</a> <span class="quiet">{file}</span></li>\n'
ENTRY = '<li><a href="#{p.name}">{p.title}</a> <span class="quiet">{p.seconds:.0f} s</span></li>\n'


def index(pages: list[Page], explorers: list[Path], folder: Path) -> str:
    """Return one HTML page for all notebooks, light and dark, with links relative to `folder` to exported explorers."""
    links = ""
    for path in explorers:
        place = html.escape(Path(os.path.relpath(path, folder.resolve())).as_posix())
        links += LINK.format(place=place, file=html.escape(path.name), title=title_of(path))
    contents = sections = ""
    for p in pages:
        figures = "".join(FIGURE.format(source=source, alt=alt, width=width) for source, alt, width in p.figures)
        contents += ENTRY.format(p=p)
        sections += SECTION.format(p=p, figures=figures)
    return FRAME.format(
        style=STYLE, contents=contents, explorers=EXPLORERS.format(links=links) if links else "", sections=sections
    )


def title_of(path: Path) -> str:
    """Return the title of an HTML page, as HTML; the file's name if it has none."""
    title = re.search("<title>(.*?)</title>", path.read_text(encoding="utf-8"), re.DOTALL)
    return title[1] if title else html.escape(path.stem)


def main(arguments: list[str] | None = None) -> int:
    """Execute the notebooks, write the pages, return the exit status: 1 if a notebook failed or there was none."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all in this script's folder, in order")
    parser.add_argument("--in-place", action="store_true", help="store the outputs in the notebooks, write no pages")
    parser.add_argument("--output", type=Path, default=HERE.parent / "build", help="default: build/ in the project")
    options = parser.parse_args(arguments)
    paths = options.notebooks or sorted(HERE.glob("*.ipynb"))
    if missing := [str(path) for path in paths if not path.is_file()]:
        parser.error(f"there is no notebook {', '.join(missing)}")
    if not paths:
        print(f"There are no notebooks in {HERE}.", file=sys.stderr)
        return 1

    if not options.notebooks:  # all of them: do not resume runs that earlier executions left in build/
        for name in ("runs", "explore"):
            shutil.rmtree(HERE.parent / "build" / name, ignore_errors=True)
    exporter = HTMLExporter()
    pages = []
    for number, path in enumerate(paths, start=1):
        notebook = nbformat.read(path, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
        progress = Progress(f"[{number}/{len(paths)}] {path.stem}", len(code))
        try:
            asyncio.run(execute(notebook, path.resolve().parent, progress))
        except (CellExecutionError, DeadKernelError) as error:
            progress.close("  FAILED")
            text = str(error) if sys.stderr.isatty() else re.sub(r"\x1b\[[0-9;]*m", "", str(error))
            print(f"{path.name}, code cell {progress.cell} of {len(code)} failed:\n{text}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            progress.close("  interrupted")
            return 130
        progress.close("")
        notebook = normalised(notebook)
        if options.in_place:
            nbformat.write(notebook, path)
            continue
        options.output.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, options.output / path.name)
        body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": path.stem}})
        (options.output / f"{path.stem}.html").write_text(body, encoding="utf-8")
        pages.append(page(path.stem, notebook, progress.seconds))
    if not options.in_place:
        target = options.output / "index.html"
        exported = {folder.resolve() for folder in (options.output / "explore", HERE.parent / "build" / "explore")}
        explorers = sorted(page for folder in exported for page in folder.glob("*.html"))
        target.write_text(index(pages, explorers, options.output), encoding="utf-8")
        print(f"\nThe notebooks and their figures: {target.resolve().as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
