"""The benchmark of exported networks: one row for everything timed, and what deadlines promise."""

from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch

from mtanytime.__main__ import main
from mtanytime.anytime.slice_shape import SliceShape
from mtanytime.anytime.sliced_resnet import SlicedResNet
from mtanytime.experiments.export_bench import deadline_answers, export_times, kept_deadlines

pytest.importorskip("onnxruntime", reason="the extra export is not installed")


def test_a_row_for_everything_timed(tmp_path: Path) -> None:
    """Both runtimes, both kinds of network; the chain's times rise and have a place only where there is a chain."""
    with torch.random.fork_rng():
        sliced = SlicedResNet(3, SliceShape(((4, 4), (4, 4))))
    networks = {"sliced": sliced, "plain": tiny.made()}
    table = export_times(networks, tmp_path, (3, 8, 8), (1, 2), rounds=2, progress=False)
    assert len(table) == (2 + 1) * 2 * 2  # exits, runtimes, batch sizes
    assert (table["ms"] > 0).all()
    assert (table.loc[table["runtime"] == "onnxruntime", "largest_difference"] < 1e-5).all()
    for (network, _, _), rows in table.groupby(["network", "runtime", "batch"]):
        if network == "sliced":
            assert rows["chain_ms"].is_monotonic_increasing
        else:
            assert rows["chain_ms"].isna().all()
    sizes = {
        name: (tmp_path / "plain-float32" / name).stat().st_size for name in ("exit1.onnx", "exit1.pt2", "weights.bin")
    }
    plain = table[table["network"] == "plain"].groupby("runtime")["bytes"].first()
    assert plain["torch"] == sizes["exit1.pt2"]
    assert plain["onnxruntime"] == pytest.approx(sizes["exit1.onnx"] + sizes["weights.bin"], abs=64)  # aligned
    answers = deadline_answers(tmp_path / "sliced-float32", count=30, progress=False)
    assert len(answers) == 30
    assert answers["exit"].isin([1, 2]).all()
    assert (answers["answered_ms"] > 0).all()
    assert (answers["returned_ms"] >= answers["answered_ms"]).all()
    assert set(kept_deadlines(answers)) == {"answered", "returned", "longest_ms", "latest_ms"}


def test_kept_deadlines() -> None:
    """Counted by hand: two of three possible deadlines have an answer, and one call of four returns too late."""
    times = {"answered_ms": [9.0, 2.4, 8.0, 5.0, 2.1], "returned_ms": [9.0, 2.4, 8.5, 7.0, 2.1]}
    table = pd.DataFrame({"deadline_ms": [1.0, 2.4, 5.0, 6.0, 2.0], "exit": 1, "first_ms": 2.0} | times)
    table["longest_ms"] = 3.0
    assert kept_deadlines(table) == {"answered": 2 / 3, "returned": 3 / 4, "longest_ms": 3.0, "latest_ms": 3.5}


def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is exported."""
    with pytest.raises(ValueError, match=r"batch_sizes: expected one or more sizes >= 1, got \[\]"):
        export_times({}, tmp_path / "new", batch_sizes=[])
    with pytest.raises(ValueError, match="rounds: expected a number >= 1, got 0"):
        export_times({}, tmp_path / "new", rounds=0)
    with pytest.raises(ValueError, match="count: expected a number >= 1, got 0"):
        deadline_answers(tmp_path, count=0)
    (tmp_path / "a.csv").write_text("mine")
    command = ["bench", "export", "--out", str(tmp_path / "new")]
    assert main([*command, "--csv", str(tmp_path / "a.csv")]) == 1
    assert main([*command, "--deadlines", str(tmp_path / "a.csv")]) == 1
    assert "csv: expected a file that does not exist yet" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
