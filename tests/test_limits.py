"""Files, classes, signatures and prose stay within the project's limits, so that each can be read in one go."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import ROOT, project_files, python_files

LINES_PER_FILE = 450
LINES_PER_CLASS = 300
PARAMETERS = 8  # of a public function, other than a trainer's constructor
README_WORDS = 1200
KEYWORDS_STAY = {"MSDNet.__init__"}  # a constructor from version 0.1, whose every keyword stays
PER = (
    "class|exit|epoch|batch|image|step|run|stage|branch|slice|block|second|model|method|seed|pair|file|round|iteration"
)
COUNTED = (
    "accuracy|dot|fraction|row|line|file|pass|passes|network|images|labels|digits|steps|rows|blocks|slices|seconds|ms"
)
HABITS = {  # expressions that a reader stumbles over -> what to write
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\banew\b": "again, or re- (resampled, rewritten)",
    r"\bby heart\b": "memorized",
    r"\bput(?:s|ting)? right\b": "validate, correct",
    r"\b(?:take|takes|taken|taking|took) up\b": "restore, resume",
    r"\bthe like\b": "similar",
    r"(?i)(?:initialis|normalis|optimis|synchronis)": "the form with z",
    r"\bcome what may\b": "always",
    r"\bdrawn afresh\b": "resampled",
    rf"\b(?:one|{COUNTED}) an? (?:{PER})\b": "per",
}
PROSE = {".py", ".md", ".ipynb", ".js", ".css", ".toml", ".yml", ".cff", ""}


def module(path: Path) -> ast.Module:
    """Parse a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def public_functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield name and parameter count (without self and cls) of a module's public functions, methods, constructors."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.name, parameters(node)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if not isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    continue
                if inner.name == "__init__" or not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", parameters(inner)


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the named parameters of a function, without self and cls."""
    arguments = function.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def habits(text: str) -> list[str]:
    """Return the expressions of `HABITS` that a text holds, with what to write instead."""
    return [f"{match[0]!r} (write: {better})" for habit, better in HABITS.items() for match in re.finditer(habit, text)]


def test_files_and_classes_are_short() -> None:
    """One idea per file: what outgrows a limit holds two."""
    for path in python_files("mtanytime"):
        name = path.relative_to(ROOT)
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= LINES_PER_FILE, f"{name} has {lines} lines"
        for node in ast.walk(module(path)):
            if isinstance(node, ast.ClassDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= LINES_PER_CLASS, f"{node.name} in {name} has {lines} lines"


def test_public_functions_take_few_parameters() -> None:
    """Nine loose parameters belong in an object of their own; a trainer's keywords are the settings of a run."""
    for path in python_files("mtanytime"):
        for name, count in public_functions(module(path)):
            if not name.endswith("Trainer.__init__") and name not in KEYWORDS_STAY:
                assert count <= PARAMETERS, f"{name} in {path.relative_to(ROOT)} has {count} parameters"


def test_readme_is_short() -> None:
    """A newcomer reads the README in five minutes; results and checks have files of their own."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= README_WORDS


def test_prose_is_plain() -> None:
    """Prose that reads as if translated costs every reader a second reading."""
    found = []
    for path in project_files():
        if path.suffix in PROSE and path.name != Path(__file__).name:
            found += [f"{path}: {habit}" for habit in habits((ROOT / path).read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def test_limits_are_measured() -> None:
    """The tests above would pass vacuously if they counted wrongly."""
    code = "def f(a, /, b, *c, d, **e): ...\ndef _g(a): ...\n"
    code += "class A:\n    def __init__(self, a, b): ...\n    def _h(self): ..."
    assert list(public_functions(ast.parse(code))) == [("f", 3), ("A.__init__", 2)]


@pytest.mark.parametrize("text", ["mend it", "drawn anew", "learned by heart", "one accuracy an exit", "rows a step"])
def test_habits_are_found(text: str) -> None:
    """An expression that the list names is found in a sentence."""
    assert len(habits(text)) == 1
    assert not habits("an amendment of one accuracy per exit, a class and rows of a step")
