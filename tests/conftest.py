"""Fixtures of all tests: steady examples, files that may be absent, and runs in processes of their own."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import disk  # noqa: F401
import jaxtyping
import pytest
from filelock import FileLock
from hypothesis import settings
from typechecker import jaxtyped

ROOT = Path(__file__).resolve().parent.parent

# The same examples in every run and on every machine, and no time limit per example: a slow processor is not an error.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")

# The import hook of jaxtyping's plugin decorates the library with this name, as no test has imported the library yet.
jaxtyping.jaxtyped = jaxtyped


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """`shared("data/x.npz")` is that file in `shared`, beside the project; without the file, the test is skipped."""

    def find(name: str) -> Path:
        path = ROOT.parent / "shared" / name
        if not path.exists():
            pytest.skip(f"there is no ../shared/{name} beside the project")
        return path

    return find


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch off jaxtyping's checks of signatures, which in tests would fail before the library's own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread in torch, as in the processes of `begin`: sums over more threads differ in their last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# What optimizers, networks, letters and digits import at their first use, three seconds in all.
SLOW_TO_IMPORT = ("torch._dynamo", "torchvision", "matplotlib.ft2font", "sklearn.datasets")


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """The context of processes that train: they are forked from a server that has imported what they need."""
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent)]))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["disk", "tiny_runs", *SLOW_TO_IMPORT])
        forkserver.ensure_running()
    return context


@pytest.fixture
def begin(processes: ForkServerContext) -> Iterator[Callable[..., ForkServerProcess]]:
    """`begin(function, *arguments)` starts a process, which ends with the test."""
    begun: list[ForkServerProcess] = []

    def start(function: Callable[..., object], *arguments: object) -> ForkServerProcess:
        begun.append(processes.Process(target=function, args=arguments))
        begun[-1].start()
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.join()
        process.close()


@pytest.fixture
def uninterrupted(one_thread: None, _uninterrupted: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `tiny_runs.transfer` leaves when it is never stopped, as `tiny_runs.end_of` reads it."""
    import tiny_runs

    if not _uninterrupted:
        folder = tmp_path_factory.mktemp("uninterrupted") / "run"
        tiny_runs.transfer(folder).train()
        _uninterrupted.append(tiny_runs.end_of(folder))
    return _uninterrupted[0]


@pytest.fixture(scope="session")
def _uninterrupted() -> list[Any]:
    return []


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built from the notebooks' stored outputs once for all processes of a test run.

    MTANYTIME_SITE=FOLDER names a site that was built before.
    """
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    if "MTANYTIME_SITE" in os.environ:
        return Path(os.environ["MTANYTIME_SITE"]).resolve()
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all workers
    folder = shared / "site"
    with FileLock(shared / "site.lock"):
        if not (folder / "index.html").exists():
            command = [sys.executable, str(ROOT / "docs/build.py"), "--notebooks", str(ROOT / "notebooks")]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
            run = [*command, "--output", str(folder)]
            built = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
            assert built.returncode == 0, built.stderr
            assert built.stderr == ""
    return folder
