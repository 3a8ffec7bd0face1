"""What all tests share: inputs that are the same on every machine, and files beside the project that may be absent."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# The same examples on every run and machine, and no time limit for one: a slow processor is no bug.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """`shared("data/x.npz")` is that file in `shared`, beside the project; without it, the test is skipped."""

    def find(name: str) -> Path:
        path = ROOT.parent / "shared" / name
        if not path.exists():
            pytest.skip(f"there is no ../shared/{name} beside the project")
        return path

    return find
