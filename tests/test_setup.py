"""The set-up files agree with each other and with the code, and importing the library is quick and quiet."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from project import ROOT, imported_modules, notebook_code, project_files, python_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMPORT_NAMES = {  # of packages that are imported under another name
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "ipython": "IPython",
    "myst-nb": "myst_nb",
    "axe-playwright-python": "axe_playwright_python",
}


def declared(*extras: str) -> set[str]:
    """Return the import names of the packages that the base install and these extras declare."""
    requirements = list(PROJECT["dependencies"])
    for extra in extras:
        requirements += PROJECT["optional-dependencies"][extra]
    names = (re.match(r"[A-Za-z0-9._-]+", requirement).group().lower() for requirement in requirements)
    return {IMPORT_NAMES.get(name, name) for name in names}


def run_python(code: str, *search_path: Path) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter that looks for modules in `search_path` first."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*search_path, ROOT)))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_conda_environment_installs_the_same_package() -> None:
    """Conda users must get the same name, Python and packages; a second list of packages would go out of date."""
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert conda["name"] == PROJECT["name"]
    assert set(PROJECT["optional-dependencies"]) == {"notebooks", "test", "export", "cluster", "docs"}
    *plain, through_pip = conda["dependencies"]
    python, pip = plain
    assert pip == "pip"
    minor = re.fullmatch(r"python=3\.(\d+)", python)  # the only form from which Binder learns the version
    assert minor is not None
    assert int(minor[1]) >= int(PROJECT["requires-python"].removeprefix(">=3."))
    assert through_pip == {"pip": ["-e .[notebooks,test]"]}


def test_requirements_are_lower_bounds() -> None:
    """A pin or an upper bound in a library's own requirements would conflict with the reader's other packages."""
    extras = PROJECT["optional-dependencies"].values()
    for requirement in [*PROJECT["dependencies"], *(line for lines in extras for line in lines)]:
        own = r"mtanytime\[(notebooks|export|cluster|docs)\]"
        assert re.fullmatch(rf"{own}|[A-Za-z0-9-]+>=[0-9.]+", requirement), requirement


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("mtanytime", ()),
        ("mtanytime/explore", ("notebooks",)),
        ("mtanytime/app", ("notebooks",)),
        ("docs", ("docs", "notebooks")),
        ("tests", ("notebooks", "test", "cluster", "docs")),
    ],
)
def test_every_import_is_declared(folder: str, extras: tuple[str, ...]) -> None:
    """An import that no requirement declares works here and fails on a fresh machine."""
    allowed = declared(*extras) | set(sys.stdlib_module_names) | {"mtanytime"}
    files = python_files(folder)
    if folder == "mtanytime":  # the library itself needs the base install only; its widgets and its app need Jupyter's
        files = [path for path in files if not {"explore", "app"} & set(path.relative_to(ROOT).parts)]
        files.remove(ROOT / "mtanytime/deploy/predict.py")  # stands alone and needs the extra export
        files.remove(ROOT / "mtanytime/experiments/cluster.py")  # imports Ray, of the extra cluster, when it is used
    if folder == "docs":  # the site needs the extra docs only
        files.remove(ROOT / "docs/film.py")  # drives a browser with playwright, of the extra test
    if folder in ("docs", "tests"):
        allowed |= {path.stem for path in (*files, *python_files("docs", "notebooks"))}
    for path in files:
        tops = {module.split(".")[0] for module in imported_modules(path.read_text(encoding="utf-8"), "mtanytime")}
        assert tops <= allowed, f"{path.relative_to(ROOT)} imports {sorted(tops - allowed)}"


def test_every_import_of_a_notebook_is_declared() -> None:
    """A notebook that imports an undeclared package stops a newcomer in its first cell."""
    allowed = declared("notebooks") | set(sys.stdlib_module_names) | {"mtanytime", "stored"}  # notebooks/stored.py
    for path in [*python_files("notebooks"), *sorted((ROOT / "notebooks").glob("*.ipynb"))]:
        code = notebook_code(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
        tops = {module.split(".")[0] for module in imported_modules(code)}
        assert tops <= allowed, f"{path.name} imports {sorted(tops - allowed)}"


def test_import_is_quiet() -> None:
    """`import mtanytime` must load no Jupyter, no plotting, no scikit-learn: each takes longer than all the rest.

    torchvision takes as long as torch, as it imports torch's compiler.
    """
    heavy = ["IPython", "ipykernel", "ipywidgets", "jupyter_client", "matplotlib", "seaborn", "sklearn"]
    heavy += ["torchvision", "torch._dynamo"]
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
    """A CPU-only torch beside another torchvision fails with an unhelpful message; ours must say how to fix it."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(torchvision, encoding="utf-8")
    finished = run_python("import mtanytime; mtanytime.resnet(8, 10)", tmp_path)
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
    """Without a suitable Python, set-up must name what to install and must not leave a half-made .venv."""
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


def test_the_site_is_published_from_the_main_branch() -> None:
    """GitHub Pages shows what `make site` builds, and nothing that a pull request could change."""
    site = yaml.safe_load((ROOT / ".github/workflows/site.yml").read_text(encoding="utf-8"))
    assert site[True] == {"push": {"branches": ["main"]}, "workflow_dispatch": None}  # YAML reads "on" as true
    assert site["permissions"] == {"contents": "read"}
    build, publish = site["jobs"]["build"], site["jobs"]["publish"]
    *_, made, uploaded = build["steps"]
    assert made == {"run": "make site"}
    assert uploaded["uses"].startswith("actions/upload-pages-artifact@v")
    assert uploaded["with"] == {"path": "build"}
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"pages": "write", "id-token": "write"}
    assert publish["steps"][-1]["uses"].startswith("actions/deploy-pages@v")
    assert re.search(r"^site: .*\n\t.* docs/build\.py", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_citation_names_both_papers() -> None:
    """A reader must be able to cite the paper whose method they use."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    papers = {reference["identifiers"][0]["value"]: reference["title"] for reference in citation["references"]}
    assert papers == {
        "arXiv:1905.05901": "Learning What and Where to Transfer",
        "arXiv:1807.02609": "Anytime Neural Prediction via Slicing Networks Vertically",
    }
    assert citation["license"] == PROJECT["license"] == "MIT"


def test_no_path_of_one_machine() -> None:
    """A path into somebody's home folder works on one machine only."""
    for path in project_files():
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not text
        found = re.search(r"(?<![\w.~)}>])/(?:home|root|work|Users)/\w[\w./-]*", text)
        assert not found, f"{path} names {found.group()}"
