"""The project's own files and imports, read by the tests of its set-up and of its layout."""

import ast
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def project_files() -> list[Path]:
    """Return the files that git tracks or would track, relative to the root; skip the test outside a git checkout."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout, so the project's files cannot be told from other files")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(Path(name) for name in set(names) if (ROOT / name).is_file())


def python_files(*folders: str) -> list[Path]:
    """Return all Python files under these folders of the project."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def notebook_code(path: Path) -> str:
    """Return the code of a notebook, without its magic and shell lines."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def imported_modules(code: str, package: str = "") -> Iterator[str]:
    """Yield the full name of every module that the code imports; relative imports start from `package`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            if (ROOT / module.replace(".", "/")).is_dir():  # from package import a: a may itself be a module
                yield from (f"{module}.{alias.name}" for alias in node.names)
            else:
                yield module
