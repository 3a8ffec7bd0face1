"""Fixtures of a real browser and servers for it; without Debian's chromium and playwright the tests are skipped.

apt-get install chromium && pip install playwright      (no browser of playwright's own is downloaded)
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# Nothing may leave the machine; without these flags chromium keeps asking the network for updates.
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync")
START_SECONDS = 120
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright for Python is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium (Debian: apt install chromium)")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield running
        running.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Callable[..., Any]]:
    """`tab(**settings)` is a new page in a window of its own; an error in the page's scripts fails the test."""
    windows, errors = [], []

    def open_one(**settings: Any) -> Any:
        windows.append(browser.new_context(**settings))
        page = windows[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        return page

    yield open_one
    for window in windows:
        window.close()
    assert errors == []


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Callable[[str], str]]]:
    """Yield the folder of a JupyterLab on this machine, and a function from a notebook's name to its address."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    folder, state, token = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("state"), secrets.token_hex(16)
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--LabApp.news_url=", "--expose-app-in-browser"]
    options += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}"]
    with serving("jupyterlab", options, folder, state, token) as address:
        yield folder, lambda name: f"{address}/lab/tree/{name}?token={token}&reset"


@pytest.fixture(scope="session")
def app() -> Iterator[str]:
    """Yield the address of the web app, started as `make app` starts it."""
    pytest.importorskip("tornado", reason="Tornado is not installed")
    rule = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\napp: $(STAMP)\n")[2].splitlines()[0]
    arguments = rule.partition("$(PY) ")[2].replace("$(ARGS)", "--no-browser --port 0").split()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            said = server.stdout.readline()
            assert said.startswith("The app: http://127.0.0.1:"), said
            yield said.split()[2]
        finally:
            server.terminate()


@contextmanager
def serving(module: str, options: list[str], folder: Path, state: Path, token: str) -> Iterator[str]:
    """Yield the address of a Jupyter server that runs in a folder with its own settings."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    environment = os.environ | {name: str(state / place) for name, place in settings.items()}
    environment |= {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_TOKEN": token}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", module, *options, f"--port={port}"]
    with (
        (state / "log.txt").open("w") as log,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(f"{address}/api", server, state / "log.txt")
            yield address
        finally:
            server.terminate()


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
        else:
            return
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-3000:]}")
