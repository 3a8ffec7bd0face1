"""A Sphinx extension that prepares executed notebooks as pages: explorers live, pictures with their texts.

An explorer's contents are in the metadata of its output (notebooks/stored.py put them there). They become a page in
explorers/, the same that `save_html` writes, shown in a frame. Pictures become files in pictures/.
"""

import html
import json
import re
from base64 import b64decode
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell
from sphinx.application import Sphinx

IMAGES = {"image/png": "png", "image/jpeg": "jpg"}
FRAME = (
    '<iframe class="explorer" src="{place}" title="{title}" loading="lazy"></iframe>\n'
    '<p class="quiet"><a href="{place}">Open this explorer on a page of its own</a></p>'
)
PICTURE = '<img class="picture" src="{place}" alt="{alt}"{size} loading="lazy">'
DOWNLOAD = '<p class="quiet"><a href="{name}.ipynb" download>Download this chapter as a notebook</a></p>'


def prepare(notebook: NotebookNode, name: str, site: Path) -> None:
    """Replace pictures and explorers among a notebook's outputs by HTML, and write their files into the site."""
    heading, count = name, 0  # the count numbers the files
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ +(.+?)\s*$", cell.source, re.MULTILINE) or [heading])[-1]
        for output in cell.get("outputs", ()):
            data, metadata = output.get("data", {}), output.get("metadata", {})
            kind = next((kind for kind in IMAGES if kind in data), None)
            if kind is None:
                continue
            count += 1
            looks = metadata.get(kind, {})
            alt = looks.get("alt") or cell.metadata.get("alt")
            alt = alt or f"Figure {count}, under “{re.sub('[*`]', '', heading)}”"
            if "explorer" in metadata:
                shown = framed(metadata["explorer"], alt, site / "explorers" / f"{name}-{count}.html")
            else:
                path = site / "pictures" / f"{name}-{count}.{IMAGES[kind]}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b64decode(data[kind]))
                size = "".join(f' {side}="{looks[side]}"' for side in ("width", "height") if side in looks)
                shown = PICTURE.format(place=f"../pictures/{path.name}", alt=html.escape(alt), size=size)
            output.data = NotebookNode({"text/html": shown})
    notebook.cells.append(new_markdown_cell(DOWNLOAD.format(name=name)))


def framed(explorer: str, alt: str, path: Path) -> str:
    """Write an explorer's page, and return the frame that shows it in a chapter."""
    from mtanytime.explore.export import save  # needs torch, which the rest of this file does without

    choices = json.loads(explorer)
    content = choices.pop("content")
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, content, choices, alt, force=True)
    return FRAME.format(place=f"../explorers/{path.name}", title=html.escape(content["title"]))


def on_read(app: Sphinx, page: str, source: list[str]) -> None:
    """Prepare a page's source if it is a notebook."""
    if Path(app.env.doc2path(page)).suffix == ".ipynb":
        notebook = nbformat.reads(source[0], as_version=4)
        prepare(notebook, page.rpartition("/")[2], Path(app.outdir))
        source[0] = nbformat.writes(notebook)


def setup(app: Sphinx) -> dict[str, bool]:
    """Prepare every notebook before it is parsed."""
    app.connect("source-read", on_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
