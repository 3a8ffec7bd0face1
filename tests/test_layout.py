"""The layout keeps its promises: imports go down only, and README's file tree is complete and true."""

import re
from pathlib import Path

import pytest
from project import ROOT, imported_modules, project_files, python_files

from mtanytime._moved import MOVED, RENAMED

MAY_IMPORT = {  # "imports go down only": which parts of the library each part may import
    "ground": {"ground"},
    "transfer": {"ground", "transfer"},
    "anytime": {"ground", "anytime"},
    "deploy": {"ground", "anytime", "deploy"},
    "experiments": {"ground", "transfer", "anytime", "deploy", "experiments"},
    "explore": {"ground", "explore"},
    "app": {"ground", "anytime", "explore", "app"},
    "__init__": {"ground", "transfer", "anytime", "deploy", "experiments"},
    "__main__": {"ground", "transfer", "anytime", "deploy", "experiments", "explore", "app"},
}


def part(module: str) -> str:
    """Return the part of the library that a module belongs to: a key of `MAY_IMPORT`."""
    name = module.split(".")[1] if "." in module else "__init__"
    if name in MAY_IMPORT:
        return name
    return "ground" if any((ROOT / "mtanytime").glob(f"{name}*")) else "__init__"  # else a public name of the package


def test_imports_go_down_only() -> None:
    """The wings stay apart and pictures know only tables, so that each paper can be read without the other."""
    for path in python_files("mtanytime"):
        package = ".".join(path.relative_to(ROOT).parent.parts)
        own = part(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        for module in imported_modules(path.read_text(encoding="utf-8"), package):
            if module.split(".")[0] == "mtanytime":
                assert part(module) in MAY_IMPORT[own], f"{path.relative_to(ROOT)} ({own}) imports {module}"


def test_recipes_of_the_papers_stay_apart() -> None:
    """What the recipes of both papers share is in recipe.py, so neither paper's recipes import the other's."""
    for own, other in (("anytime", "transfer"), ("transfer", "anytime")):
        code = (ROOT / f"mtanytime/experiments/{own}_recipes.py").read_text(encoding="utf-8")
        apart = (f"mtanytime.experiments.{other}", f"mtanytime.{other}")
        assert not [module for module in imported_modules(code, "mtanytime.experiments") if module.startswith(apart)]


def test_part_knows_every_floor() -> None:
    """The rule above would pass vacuously if a wing's modules were taken for the ground floor."""
    parts = {
        "mtanytime": "__init__",
        "mtanytime.transfer.matching": "transfer",
        "mtanytime.explore.draw": "explore",
        "mtanytime.experiments.runner": "experiments",
        "mtanytime.checks": "ground",
        "mtanytime.training.trainer": "ground",
        "mtanytime.__version__": "__init__",
    }
    assert {module: part(module) for module in parts} == parts
    relative = "from . import draw\nfrom ..transfer import trainer\nfrom .. import __version__\nimport torch.nn"
    modules = ["mtanytime.explore.draw", "mtanytime.transfer.trainer", "mtanytime.__version__", "torch.nn"]
    assert list(imported_modules(relative, "mtanytime.explore")) == modules


def tree_paths(readme: str) -> set[str]:
    """Return the paths that the README's file tree names: folders with a trailing slash, files by name.

    A line's indentation says which folder its names are in; names in the description of a folder are inside it.
    """
    section = re.search(r"^## File tree\n+```\n(.*?)```", readme, re.MULTILINE | re.DOTALL)
    assert section, "README.md has no code block under the heading 'File tree'"
    paths: set[str] = set()
    folder = ""
    for line in section[1].splitlines():
        names, _, description = line.strip().partition("  ")
        parent = folder if line.startswith("  ") else ""
        here = [parent + name for name in names.split(" ")]
        if not parent and here[0].endswith("/"):
            folder = here[0]
        inside = re.findall(r"(?<![\w/])[\w.]+/(?![\w/])|\b\w+\.(?:py|csv|npz|png)\b", description)
        paths |= {*here, *(here[0] + name for name in inside)}
    return paths


def test_readme_tree_is_complete_and_true() -> None:
    """A newcomer learns from the tree what each folder is for, so it names every one, and nothing that is not there."""
    named = tree_paths((ROOT / "README.md").read_text(encoding="utf-8"))
    assert not [path for path in named if not (ROOT / path).exists()]
    needed = set()
    for path in project_files():
        if len(path.parts) == 1:
            needed.add(path.name)
        elif path.parts[0] == "mtanytime":
            needed |= {f"{folder}/" for folder in map(Path.as_posix, path.parents) if folder != "."}
        else:
            needed.add(f"{path.parts[0]}/")
    assert needed <= named, f"README.md's file tree lacks {sorted(needed - named)}"


@pytest.mark.parametrize(
    ("line", "paths"),
    [
        ("docs/  chapters (figures/)", {"docs/", "docs/figures/"}),
        ("docs/  chapters\n  inner/ other/  two more", {"docs/", "docs/inner/", "docs/other/"}),
        ("A.md B.md  read; see a/b", {"A.md", "B.md"}),
    ],
)
def test_tree_paths(line: str, paths: set[str]) -> None:
    """The test above would pass vacuously if the tree were read wrongly."""
    assert tree_paths(f"## File tree\n\n```\n{line}\n```\n") == paths


@pytest.mark.parametrize("name", ["README.md", "RESULTS.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_paths_in_the_text_exist(name: str) -> None:
    """A reader who follows a path or a link must find a file there."""
    text = (ROOT / name).read_text(encoding="utf-8")
    paths = re.findall(r"(?<![\w/])(?:mtanytime|tests|notebooks|data|\.ci)/[\w./-]*\w", text)
    paths += re.findall(r"`([A-Z]+\.md|Makefile|pyproject\.toml)`", text)
    paths += [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_changelog_names_every_moved_name() -> None:
    """A user whose code warns, or who looks for a module, finds the old and the new name in one row."""
    gone = {old: homes for old, homes in MOVED.items() if not any(ROOT.glob(f"mtanytime/{old.replace('.', '/')}*"))}
    assert len(gone) > 10
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    for old, homes in {**gone, **{old: (new,) for old, new in RENAMED.items()}}.items():
        rows = [line for line in lines if line.startswith(f"| `{old}`")]
        assert [row for row in rows if all(f"`{home}`" in row for home in homes)], f"{old} is now in {homes}"
