"""Build the site of the notebooks: chapters with live explorers, the reference, results and instructions.

    python docs/build.py                         the first page is build/index.html
    python docs/build.py --notebooks notebooks   from the outputs stored in the notebooks

Nothing is executed. A chapter is the notebook that notebooks/execute.py left in build/notebooks, or the one in
notebooks/ with its stored outputs if that is newer or the only one.
"""

import argparse
import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import build_main

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
COPIED = {  # files of the project that are pages or parts of pages
    "README.md": "parts/README.md",
    "RESULTS.md": "results.md",
    "CHANGELOG.md": "changelog.md",
    "data/explorers.gif": "explorers.gif",
}
PAGES = ("*.md", "reference/*.md", "slurm/*")


def gather(notebooks: Path, folder: Path) -> None:
    """Copy all sources of the site into one folder, as Sphinx reads them; what is no longer a source is removed."""
    copies = {ROOT / source: folder / target for source, target in COPIED.items()}
    for pattern in PAGES:
        copies |= {path: folder / path.relative_to(HERE) for path in HERE.glob(pattern)}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        executed = notebooks / path.name
        newer = executed.is_file() and executed.stat().st_mtime >= path.stat().st_mtime
        copies[executed if newer else path] = folder / "notebooks" / path.name
    for path in {path for path in folder.rglob("*") if path.is_file()} - set(copies.values()):
        path.unlink()
    for source, target in copies.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)  # with its time, so that Sphinx reads only what has changed


def main(arguments: list[str] | None = None) -> int:
    """Build the site and return the exit status: 0 if there was no error and no warning."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--notebooks", type=Path, help="folder of executed notebooks; default: notebooks/ in OUTPUT")
    parser.add_argument("--output", type=Path, default=ROOT / "build", help="default: build/ in the project")
    options = parser.parse_args(arguments)
    work = options.output / ".sphinx"
    gather(options.notebooks or options.output / "notebooks", work / "source")
    command = ["-b", "html", "-q", "-W", "--keep-going", "-c", str(HERE), "-d", str(work / "doctrees")]
    if status := build_main([*command, str(work / "source"), str(work / "html")]):  # myst_nb also writes beside it
        return status
    shutil.copytree(work / "html", options.output, dirs_exist_ok=True)
    for path in (work / "source" / "notebooks").glob("*.ipynb"):
        shutil.copy2(path, options.output / "notebooks" / path.name)  # to download
    print(f"The site: {(options.output / 'index.html').resolve().as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
