"""The set-up files agree with each other and with the code, and importing the library is quick and quiet."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GROUND_FLOOR_MAY = {"ground"}
MAY_IMPORT = {  # "imports go down only": which part of the library each part may import
    "ground": GROUND_FLOOR_MAY,
    "transfer": {"ground", "transfer"},
    "anytime": {"ground", "anytime"},
    "upstairs": {"ground", "transfer", "anytime", "upstairs"},
    "explore": {"ground", "explore"},
    "__init__": {"ground", "transfer", "anytime", "upstairs"},
    "__main__": {"ground", "transfer", "anytime", "upstairs", "explore"},
}
UPSTAIRS = {"experiments"}
IMPORT_NAMES = {
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "ipython": "IPython",
}  # where they differ from the package's


def declared(*extras: str) -> set[str]:
    """The import names that the base install and these extras declare."""
    requirements = list(PROJECT["dependencies"])
    for extra in extras:
        requirements += PROJECT["optional-dependencies"][extra]
    names = (re.match(r"[A-Za-z0-9._-]+", requirement).group().lower() for requirement in requirements)
    return {IMPORT_NAMES.get(name, name) for name in names}


def python_files(*folders: str) -> list[Path]:
    """All Python files under these folders of the project."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def notebook_code(path: Path) -> str:
    """The code of a notebook, without its magic and shell lines."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def imported_modules(code: str, package: str = "") -> Iterator[str]:
    """Every module that the code names in an import, in full; `package` is what relative imports start from."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            if (ROOT / module.replace(".", "/")).is_dir():  # from package import a: a may be a module of its own
                yield from (f"{module}.{alias.name}" for alias in node.names)
            else:
                yield module


def part(module: str) -> str:
    """The part of the library a module belongs to: a wing, explore, or the floor it stands on."""
    name = module.split(".")[1] if "." in module else "__init__"
    if name in ("transfer", "anytime", "explore", "__init__", "__main__"):
        return name
    if name in UPSTAIRS:
        return "upstairs"
    return "ground" if any((ROOT / "mtanytime").glob(f"{name}*")) else "__init__"  # else a public name of the package


def project_files() -> list[Path]:
    """The files that git tracks or would track, relative to the root."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout, so the project's files cannot be told from other files")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(Path(name) for name in set(listed) if (ROOT / name).is_file())


def run_python(code: str, *search_path: Path) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter that looks for modules in `search_path` first."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*search_path, ROOT)))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_conda_environment_installs_the_same_package() -> None:
    """conda users must get the same name, Python and packages, and no second list of packages may grow stale."""
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert conda["name"] == PROJECT["name"]
    assert set(PROJECT["optional-dependencies"]) == {"notebooks", "test"}
    *plain, through_pip = conda["dependencies"]
    assert plain == [f"python{PROJECT['requires-python']}", "pip"]
    assert through_pip == {"pip": ["-e .[notebooks,test]"]}


def test_requirements_are_lower_bounds() -> None:
    """A pin or an upper bound in a library's own requirements would fight with the reader's other packages."""
    extras = PROJECT["optional-dependencies"].values()
    for requirement in [*PROJECT["dependencies"], *(line for lines in extras for line in lines)]:
        assert re.fullmatch(r"mtanytime\[notebooks\]|[A-Za-z0-9-]+>=[0-9.]+", requirement), requirement


@pytest.mark.parametrize(
    ("folder", "extras"), [("mtanytime", ()), ("mtanytime/explore", ("notebooks",)), ("tests", ("notebooks", "test"))]
)
def test_every_import_is_declared(folder: str, extras: tuple[str, ...]) -> None:
    """An import that no requirement declares works here and fails on a fresh machine."""
    allowed = declared(*extras) | set(sys.stdlib_module_names) | {"mtanytime"}
    files = python_files(folder)
    if folder == "mtanytime":  # the library itself needs the base install only; its widgets need Jupyter's
        files = [path for path in files if "explore" not in path.parts]
    if folder == "tests":
        allowed |= {path.stem for path in files} | {"build"}  # notebooks/build.py
    for path in files:
        tops = {module.split(".")[0] for module in imported_modules(path.read_text(encoding="utf-8"), "mtanytime")}
        assert tops <= allowed, f"{path.relative_to(ROOT)} imports {sorted(tops - allowed)}"


def test_every_import_of_a_notebook_is_declared() -> None:
    """A notebook that imports an undeclared package stops a newcomer in its first cell."""
    allowed = declared("notebooks") | set(sys.stdlib_module_names) | {"mtanytime"}
    for path in [*python_files("notebooks"), *sorted((ROOT / "notebooks").glob("*.ipynb"))]:
        code = notebook_code(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
        tops = {module.split(".")[0] for module in imported_modules(code)}
        assert tops <= allowed, f"{path.name} imports {sorted(tops - allowed)}"


def test_imports_go_down_only() -> None:
    """The wings stay apart and pictures know only tables, so that each paper can be read without the other."""
    for path in python_files("mtanytime"):
        package = ".".join(path.relative_to(ROOT).parent.parts)
        own = part(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        for module in imported_modules(path.read_text(encoding="utf-8"), package):
            if module.split(".")[0] == "mtanytime":
                assert part(module) in MAY_IMPORT[own], f"{path.relative_to(ROOT)} ({own}) imports {module}"


def test_part_knows_every_floor() -> None:
    """The rule above would pass vacuously if a wing's modules were taken for the ground floor."""
    modules = ["mtanytime", "mtanytime.transfer.matching", "mtanytime.explore.draw", "mtanytime.experiments.runner"]
    assert [part(module) for module in modules] == ["__init__", "transfer", "explore", "upstairs"]
    relative = "from . import draw\nfrom ..transfer import trainer\nfrom .. import __version__\nimport torch.nn"
    found = ["mtanytime.explore.draw", "mtanytime.transfer.trainer", "mtanytime.__version__", "torch.nn"]
    assert list(imported_modules(relative, "mtanytime.explore")) == found
    assert part("mtanytime.__version__") == "__init__"


def test_import_is_quiet() -> None:
    """`import mtanytime` must load no Jupyter and no plotting: both take longer than all the rest."""
    heavy = ["IPython", "ipykernel", "ipywidgets", "jupyter_client", "matplotlib", "seaborn", "sklearn"]
    code = f"import sys, mtanytime\nprint([name for name in {heavy} if name in sys.modules])"
    finished = run_python(code)
    assert finished.returncode == 0, finished.stderr
    assert (finished.stdout, finished.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    "torchvision",
    [
        'raise RuntimeError("operator torchvision::nms does not exist")',
        'raise OSError("libtorch_cuda.so: cannot open shared object file")',
        'raise ModuleNotFoundError("No module named torchvision")',
    ],
)
def test_torchvision_that_does_not_fit_is_named(torchvision: str, tmp_path: Path) -> None:
    """A CPU-only torch beside another torchvision dies with a message that helps nobody: ours says how to mend it."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(torchvision, encoding="utf-8")
    finished = run_python("import mtanytime", tmp_path)
    assert finished.returncode == 1
    last = finished.stderr[finished.stderr.rindex("ImportError: mtanytime needs") :]
    assert torchvision.split('"')[1] in last
    assert "torch 2" in last
    assert last.endswith("pip install --upgrade --force-reinstall torch torchvision\n")


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "There is no 'missing-python' here"),
        (
            'case "$1" in --version) echo Python 3.9.2;; *) exit 1;; esac',
            "needs Python >= 3.11, and './python' is Python 3.9.2",
        ),
        ('case "$2" in *ensurepip*) exit 1;; esac', "apt install python3-venv"),
    ],
)
def test_make_says_what_the_machine_lacks(script: str | None, message: str, tmp_path: Path) -> None:
    """On a machine without a fitting Python, set-up must name what to install before it leaves a half-made folder."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    if script:
        (tmp_path / "python").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (tmp_path / "python").chmod(0o755)
    command = ["make", "setup", f"PYTHON={'./python' if script else 'missing-python'}"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode != 0
    assert message in finished.stdout
    assert not (tmp_path / ".venv").exists()


def test_continuous_integration_calls_the_one_script() -> None:
    """What a contributor runs and what CI runs must be the same commands."""
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]["test"]["steps"]
    assert steps[-1] == {"run": ".ci/run"}


def test_citation_names_both_papers() -> None:
    """A reader must be able to cite the paper whose method they use."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    papers = {reference["identifiers"][0]["value"]: reference["title"] for reference in citation["references"]}
    assert papers == {
        "arXiv:1905.05901": "Learning What and Where to Transfer",
        "arXiv:1807.02609": "Anytime Neural Prediction via Slicing Networks Vertically",
    }
    assert citation["license"] == PROJECT["license"] == "MIT"


def test_readme_names_every_file() -> None:
    """A newcomer finds each file's purpose in the README's file structure, so none may be missing there."""
    files = project_files()
    if not (ROOT / "README.md").exists():
        pytest.skip("there is no README.md yet")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^#+ *File structure\s*$(.*?)(?=^#+ |\Z)", readme, re.MULTILINE | re.DOTALL | re.IGNORECASE)
    assert found, "README.md has no section 'File structure'"
    named = set(re.findall(r"[\w.\-]+/?", found.group(1)))
    for path in files:
        top = path.parts[0]
        if len(path.parts) > 1 and top not in ("mtanytime", "notebooks", "tests"):
            continue
        inner = {f"{folder}/" for folder in path.parts[1:-1]} - {"transfer/", "anytime/", "explore/"}
        if path.name != "__init__.py" or len(path.parts) == 2:
            assert path.name in named or inner & named, f"README.md's file structure does not name {path}"


def test_no_path_of_one_machine() -> None:
    """A path into somebody's home folder works on one machine only."""
    for path in project_files():
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not text
        found = re.search(r"(?<![\w.~)}>])/(?:home|root|work|Users)/\w[\w./-]*", text)
        assert not found, f"{path} names {found.group()}"
