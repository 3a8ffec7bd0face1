"""The benchmark of several processes."""

from pathlib import Path

import pandas as pd
import pytest

from mtanytime.__main__ import main
from mtanytime.experiments.processes_bench import step_times


def test_a_row_per_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One process only, to save time; tests/test_distributed.py starts several in the same way."""
    csv = tmp_path / "steps.csv"
    assert main(["bench", "processes", "--processes", "1", "--batch", "2", "--steps", "1", "--csv", str(csv)]) == 0
    table = pd.read_csv(csv, comment="#")
    assert table["trainer"].tolist() == ["Trainer", "AnytimeTrainer", "TransferTrainer"]
    assert (table["seconds"] > 0).all()
    assert (table["speedup"] == 1).all()
    assert "TransferTrainer" in capsys.readouterr().out


def test_bad_arguments() -> None:
    """Before a process is started."""
    with pytest.raises(ValueError, match=r"counts: expected one or more numbers >= 1, got \[0\]"):
        step_times([0])
    with pytest.raises(ValueError, match="batch: expected 3 images or more, one per process, got 2"):
        step_times([1, 3], batch=2)
    with pytest.raises(ValueError, match="steps: expected a number >= 1, got 0"):
        step_times([1], steps=0)
