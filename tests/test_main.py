"""The command line: what it prints, where it refuses, and that a killed recipe goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mtanytime.__main__ import main

SHORT = ["--set", "letters_per_class=2", "epochs=3", "digits_per_class=4", "batch_size=10", "checkpoint_seconds=0"]


def test_list_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    """A user chooses from the list: what it reproduces, how long, what to expect, what can be set."""
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in ("smoke", "built-in", "reproduces:", "takes:", "expect:", "epochs="):
        assert name in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smok"], "there is no recipe 'smok'; the nearest is 'smoke'"),
        (["smoke", "--set", "epoch=3"], "there is no setting 'epoch'; the nearest is 'epochs'"),
        (["smoke", "--set", "epochs=three"], "epochs takes int, like 10; got 'three'"),
        (["smoke", "--set", "epochs"], "--set takes KEY=VALUE, got 'epochs'"),
        (["smoke", "--set", "methods=l3t"], "method 'l3t' is not known"),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """One line names what was wrong and what is nearest, and nothing is written."""
    assert main(["run", *arguments, "--out", str(tmp_path / "run")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_killed_and_resumed(tmp_path: Path) -> None:
    """Killed with -9 in the transfer and run again, a recipe ends at the bits of one that ran through."""
    command = [sys.executable, "-m", "mtanytime", "run", "smoke", *SHORT, "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, tmp_path / "whole"], env=environment, check=True, stdout=subprocess.DEVNULL)
    log = tmp_path / "killed" / "l2t-seed0" / "log.csv"
    with subprocess.Popen([*command, tmp_path / "killed"], env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 4):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    subprocess.run([*command, tmp_path / "killed"], env=environment, check=True, stdout=subprocess.DEVNULL)
    again = subprocess.run([*command, tmp_path / "killed"], env=environment, check=True, capture_output=True, text=True)
    assert again.stdout.count("already finished") == 2
    ends = [
        torch.load(tmp_path / name / "l2t-seed0" / "checkpoint.pt", weights_only=True)["modules"]
        for name in ("whole", "killed")
    ]
    for name, state in ends[0].items():
        assert all(torch.equal(value, ends[1][name][key]) for key, value in state.items())
    traces = [(tmp_path / name / "l2t-seed0" / "trace.csv").read_bytes() for name in ("whole", "killed")]
    assert traces[0] == traces[1]


def test_bench_transfer(capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts read one JSON object from the last line: seconds and memory of every mode, and the settings."""
    assert main(["bench", "transfer", "--json", "--batch", "2", "--inner-steps", "1", "--rounds", "1"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("ours", "recompute", "unroll", "first_order"):
        assert result[f"{name}_s"] > 0
        assert result[f"{name}_mb"] > 100
    assert {"source", "target", "pairs", "batch", "inner_steps", "dtype", "threads"} <= set(result["config"])
    assert result["config"]["batch"] == 2


def test_bad_count(capsys: pytest.CaptureFixture[str]) -> None:
    """A count that makes no sense is refused in words, not by a traceback."""
    with pytest.raises(SystemExit):
        main(["bench", "transfer", "--rounds", "0"])
    assert "wanted a whole number >= 1, got '0'" in capsys.readouterr().err
