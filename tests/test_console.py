"""Consoles that lack letters: the command line and the library's progress replace them and go on."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_runs

from mtanytime.console import printable


def test_the_command_line_on_a_console_without_greek(tmp_path: Path) -> None:
    """`run` prints β: ASCII alone, the narrowest of code pages, ends with status 0 and a complete run."""
    environment = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    short = ["epochs=1", "letters_per_class=2", "digits_per_class=2"]
    command = [sys.executable, "-m", "mtanytime", "run", "smoke", "--out", str(tmp_path / "é run"), "--set", *short]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"? 4" in done.stdout
    assert (tmp_path / "é run" / "l2t-seed0" / "checkpoint.pt").exists()


def test_notes_and_progress_in_ascii(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own program keeps its stdout, and notes with other letters are printed with question marks."""
    bytes_written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_written, encoding="ascii"))
    run = tiny_runs.trainer(tmp_path / "é", epochs=1, progress=True)
    run.notes.append("λ of the source")
    run.train()
    sys.stdout.flush()
    assert b"? of the source" in bytes_written.getvalue()
    assert printable("β é a") == "? ? a"
