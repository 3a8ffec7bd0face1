"""The benchmark of images in files: each reader reads every image, and the memory of its processes is measured."""

from pathlib import Path

import pandas as pd
import pytest

from mtanytime.__main__ import main
from mtanytime.experiments.data_bench import READERS, data_bench


def test_readers(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command line, to a table; two of the readers, as each starts a process."""
    monkeypatch.setattr("mtanytime.experiments.data_bench.READERS", READERS[1::2])
    command = ["bench", "data", "--images", "200", "--pixels", "20", "--size", "16", "--batch", "50"]
    assert main([*command, "--csv", str(tmp_path / "a.csv")]) == 0
    table = pd.read_csv(tmp_path / "a.csv", comment="#")
    assert table["reader"].tolist() == list(READERS[1::2])
    assert (table["images"] == 200).all()
    assert (table["images_per_second"] > 0).all()
    if Path("/proc/self/smaps_rollup").exists():
        assert table["resident_mb"].between(50, 20_000).all()  # torch alone takes that
        assert (table["shared_mb"] <= table["resident_mb"]).all()
    assert "torchvision ImageFolder" in capsys.readouterr().out


def test_bad_numbers() -> None:
    """Before anything is written."""
    with pytest.raises(ValueError, match="workers: expected a number >= 1, got 0"):
        data_bench(workers=0)
