"""Put links to Colab and Binder below a notebook's title, and a hidden cell that installs the package on Colab alone.

    python notebooks/badges.py notebooks/*.ipynb [--address https://github.com/OWNER/NAME]

The address comes from pyproject.toml ([project.urls], Repository) or CITATION.cff (repository-code) beside the folder
of the notebook. Without one nothing is written. Nothing is executed: the counts of later cells move on by one. A second
call changes nothing; one with another address replaces it.
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path
from urllib.parse import quote

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

COLAB, BINDER = "https://colab.research.google.com/github", "https://mybinder.org/v2/gh"
LINKS = rf"\n\n\[\*\*Open in Colab\*\*\]\({re.escape(COLAB)}.*"  # the whole line
ON_COLAB = '"google.colab" in sys.modules'
HIDDEN = {"jupyter": {"outputs_hidden": True, "source_hidden": True}, "tags": ["hide-cell"]}
CODE = """# On Colab alone: get the project and install it. Elsewhere this cell does nothing.
import os
import subprocess
import sys

if "google.colab" in sys.modules and not os.path.isdir("../notebooks"):
    subprocess.run(["git", "clone", "-q", "--depth", "1", "{address}"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "./{name}[export]", "anywidget>=0.9"], check=True)
    os.chdir("{name}/notebooks")"""


def address_of(root: Path) -> str | None:
    """The repository's address on GitHub, or None if no file names it."""
    urls = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    named = [url for name, url in urls.items() if name.lower() in ("repository", "source", "homepage")]
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    named += re.findall(r"^repository-code:\s*[\"']?([^\s\"']+)", citation, re.MULTILINE)
    return next((address for address in map(on_github, named) if address), None)


def on_github(url: str) -> str | None:
    """`https://github.com/OWNER/NAME` of a repository's address, or None if it is elsewhere."""
    match = re.fullmatch(r"(https://github\.com/[\w.-]+/[\w.-]+?)(?:\.git)?/?", url)
    return match[1] if match else None


def put(notebook: NotebookNode, name: str, address: str) -> None:
    """Insert or refresh the links in the first cell and the cell below it."""
    project, place = address.removeprefix("https://github.com/"), f"notebooks/{name}"
    links = (
        f"[**Open in Colab**]({COLAB}/{project}/blob/main/{place}) "
        f"[**Open in Binder**]({BINDER}/{project}/main?labpath={quote(place, safe='')})"
    )
    first, *others = [cell for cell in notebook.cells if cell.cell_type != "code" or ON_COLAB not in cell.source]
    title, _, rest = re.sub(LINKS, "", first.source).partition("\n")
    first.source = f"{title}\n\n{links}\n{rest}"
    install = new_code_cell(CODE.format(address=address, name=project.split("/")[1]), metadata=HIDDEN)
    install.id = "install-on-colab"
    notebook.cells = [first, install, *others]
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count


def main() -> None:
    """Change the notebooks that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--address")
    options = parser.parse_args()
    for path in options.notebooks:
        address = on_github(options.address) if options.address else address_of(path.resolve().parent.parent)
        if address is None:
            sys.exit("address: expected https://github.com/OWNER/NAME in pyproject.toml, CITATION.cff or --address")
        before = path.read_text(encoding="utf-8")
        notebook = nbformat.reads(before, as_version=4)
        put(notebook, path.name, address)
        after = nbformat.writes(notebook) + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8")
        print(path.name, "unchanged" if after == before else "changed")


if __name__ == "__main__":
    main()
