"""The command line: what it prints, where it refuses, and that a killed recipe goes on."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mtanytime.__main__ import main
from mtanytime.backbones import vgg9
from mtanytime.experiments.runner import plan

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
        (["smoke", "--set", "betas=1,two"], "betas takes numbers with commas between, like 0.5,2; got '1,two'"),
        (["smoke", "--set", "scored_on=train"], "scored_on is 'test' or 'validation'; got 'train'"),
        (["smoke", "--set", "scored_on=validation", "digits_per_class=87"], "digits_per_class < 87, got 87"),
        (["smoke", "--set", "beta=0"], "wanted beta > 0; got 0.0"),
        (["smoke", "--seed", "1", "1"], "wanted different seeds, got [1, 1]"),
        (["smoke", "--set", "methods=l2t,l2t"], "wanted each method once, got 'l2t,l2t'"),
        (["smoke", "--set", "betas=1,1.0"], "wanted betas that differ, got '1,1.0'"),
        (["cifar10-few", "--set", "source=nowhere.tar"], "there is no 'nowhere.tar': set source=…, the L2T-ww"),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """One line names what was wrong and what is nearest, and nothing is written."""
    assert main(["run", *arguments, "--out", str(tmp_path / "run")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_killed_and_resumed(tmp_path: Path) -> None:
    """Killed with -9 at random moments of its life and run again, a recipe ends at the bits of one that ran through.

    MTANYTIME_KILLS=50 kills the full recipe fifty times, beginning anew whenever it gets to its end; by default a
    shorter one is killed twice.
    """
    kills = int(os.environ.get("MTANYTIME_KILLS", "2"))
    settings = [] if kills > 2 else SHORT
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(name: str) -> list[str]:
        return [sys.executable, "-m", "mtanytime", "run", "smoke", *settings, "--out", str(tmp_path / name)]

    def end(name: str) -> tuple[dict, bytes, bytes]:
        checkpoint = torch.load(tmp_path / name / "l2t-seed0" / "checkpoint.pt", weights_only=True)
        tables = [(tmp_path / name / "l2t-seed0" / f"{table}.csv").read_bytes() for table in ("trace", "channels")]
        return {key: checkpoint[key] for key in ("modules", "optimizers", "extra", "scores")}, *tables

    started = time.monotonic()
    subprocess.run(command("whole"), env=environment, check=True, stdout=subprocess.DEVNULL)
    longest = time.monotonic() - started
    wanted, moments, killed, round_ = end("whole"), random.Random(0), 0, 0
    begun = 0  # kills after training began
    while killed < kills or not begun:
        with subprocess.Popen(command(f"killed{round_}"), env=environment, stdout=subprocess.DEVNULL) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moments.uniform(0.2, 0.6) * longest)
            ended = process.poll() is not None
            process.kill()
        assert process.returncode in (0, -signal.SIGKILL)
        killed += not ended
        begun += any((tmp_path / f"killed{round_}").rglob("log.csv"))
        if ended or killed == kills:
            done = subprocess.run(
                command(f"killed{round_}"), env=environment, check=True, capture_output=True, text=True
            )
            assert not ended or done.stdout.count("already finished") == 2
            found = end(f"killed{round_}")
            assert found[1:] == wanted[1:]
            differing = [
                name
                for name, (a, b) in enumerate(zip(tree_leaves(found[0]), tree_leaves(wanted[0]), strict=True))
                if not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b)
            ]
            assert not differing
            round_ += 1


def test_results_of_several_seeds_and_strengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has a row a network, the maps those that were learned, both below how they were made; a strength that
    diverges has a row without accuracy, and neither file is overwritten."""
    settings = [*SHORT, "methods=scratch,matching_one,l2t", "betas=0.5,1e30", "scored_on=validation"]
    command = ["run", "smoke", "--out", str(tmp_path / "runs"), "--csv", str(tmp_path / "results" / "few.csv")]
    assert main([*command, "--seed", "3", "4", *settings]) == 1  # not all is well
    lines = (tmp_path / "results" / "few.csv").read_text().splitlines()
    assert lines[0].startswith("# python -m mtanytime run smoke --out FOLDER --seed 3 4 --set letters_per_class=2 ")
    assert "threads; Python" in lines[0]
    assert f"torch {torch.__version__}" in lines[0]
    table = pd.read_csv(tmp_path / "results" / "few.csv", comment="#")
    assert list(table["method"]) == 2 * ["scratch", *2 * ["matching_one"], *2 * ["l2t"]]
    assert list(table["beta"]) == 2 * [0, 0.5, 1e30, 0.5, 1e30]
    assert list(table["accuracy"].isna()) == 2 * [False, False, True, False, True]
    maps = pd.read_csv(tmp_path / "results" / "few_maps.csv", comment="#")
    assert len(maps) == 2 * 15
    assert set(maps["seed"]) == {3, 4}
    assert main([*command, *settings]) == 1
    assert "is there already" in capsys.readouterr().err


def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan counts what an unfinished folder has behind it, and writes nothing."""
    command = ["run", "smoke", "--out", str(tmp_path / "runs"), *SHORT, "methods=scratch,l2t", "--dry-run"]
    assert main([*command, "--seed", "0", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:-1]] == [
        ["source", "0"],
        *([m, s] for s in "01" for m in ("scratch", "l2t")),
    ]
    assert lines[-1].startswith("in all ")
    assert not (tmp_path / "runs").exists()
    assert main(command[:-1]) == 0
    capsys.readouterr()
    assert main(command) == 0
    done = {line.split()[0]: line.split()[3:5] for line in capsys.readouterr().out.splitlines()[1:-1]}
    assert done["source"][0] == done["source"][1]
    assert done["scratch"] == done["l2t"] == ["12", "12"]


def test_macs_of_a_plan(tmp_path: Path) -> None:
    """The multiply-adds of a step from scratch are those that torch counts in the network's two passes."""
    rows = {row["part"]: row for row in plan("smoke", tmp_path, changes={"methods": "scratch,l2t", "epochs": "2"})}
    images, labels = torch.rand(40, 3, 32, 32), torch.arange(40) % 10
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.cross_entropy(vgg9(10, width=4)(images), labels).backward()
    assert rows["scratch"]["macs"] == rows["scratch"]["steps"] * counter.get_total_flops() // 2
    assert rows["l2t"]["macs"] > 9 * rows["scratch"]["macs"]  # 28 passes against 3, and the source


def test_bench_transfer(capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts read one JSON object from the last line: seconds and memory of every mode, and the settings."""
    assert main(["bench", "transfer", "--json", "--batch", "2", "--inner-steps", "1", "--rounds", "1"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("ours", "recompute", "unroll", "first_order"):
        assert result[f"{name}_s"] > 0
        assert result[f"{name}_mb"] > 100
    assert {"source_s", "step_s", "matching_s", "meta_gradient_s"} == set(result["parts"])
    assert 0 < result["first_order_error"]["relative_error"] < 1 < 2 * result["first_order_error"]["cosine"]
    assert {"source", "target", "pairs", "batch", "inner_steps", "dtype", "threads"} <= set(result["config"])
    assert result["config"]["batch"] == 2


def test_bench_of_compiled_parts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.compile gains is shown part by part; a machine without a compiler says so before any timing."""
    monkeypatch.setattr(torch, "compile", lambda network: network)
    small = ["bench", "transfer", "--compile", "--batch", "2", "--inner-steps", "1", "--rounds", "1"]
    assert main(small) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()[:2]) for line in lines if ", compiled " in line] == [
        "torch.compile: source",
        "torch.compile: step",
    ]

    def missing(network: nn.Module) -> nn.Module:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", missing)
    monkeypatch.setattr("mtanytime.experiments.benchmarks._in_turn", None)
    assert main(small) == 1
    assert "no C++ compiler" in capsys.readouterr().err


def test_bad_count(capsys: pytest.CaptureFixture[str]) -> None:
    """A count that makes no sense is refused in words, not by a traceback."""
    with pytest.raises(SystemExit):
        main(["bench", "transfer", "--rounds", "0"])
    assert "wanted a whole number >= 1, got '0'" in capsys.readouterr().err


def test_bench_anytime(capsys: pytest.CaptureFixture[str]) -> None:
    """The last line is one JSON object that a script can read; the table names each ratio."""
    small = ["--width", "8", "--branches", "2", "--blocks", "1", "--batch", "2", "--rounds", "1"]
    assert main(["bench", "anytime", "--json", *small]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("sliced_joint_s", "widest_s", "inclusive_joint_s", "stepup_s", "first_s", "full_s"):
        assert found[name] > 0
    wanted = {"width": 8, "bottleneck": 4, "branches": 2, "blocks": 1, "batch": 2, "dtype": "float32"}
    assert wanted.items() <= found["config"].items()
    assert found["config"]["threads"] == torch.get_num_threads()
    assert main(["bench", "anytime", *small]) == 0
    assert "× widest" in capsys.readouterr().out
    assert main(["bench", "anytime", *small, "--authors", "nowhere"]) == 1
    assert "wanted a clone of hankook/IResNeXt" in capsys.readouterr().err


def test_explore_writes_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A curve becomes a page; what is there already stays unless forced; a bad table is one line of error."""
    csv, page = tmp_path / "curve.csv", tmp_path / "curve.html"
    csv.write_text("model,exit,macs,accuracy\na,1,1000000,0.5\na,2,2000000,0.6\n")
    assert main(["explore", str(csv), "--html", str(page)]) == 0
    before = page.read_bytes()
    assert main(["explore", str(csv), "--html", str(page)]) == 1
    assert main(["explore", str(csv), "--html", str(page), "--force"]) == 0
    assert page.read_bytes() == before
    csv.write_text("model,exit,accuracy\na,1,0.5\n")
    capsys.readouterr()
    assert main(["explore", str(csv), "--html", str(tmp_path / "other.html")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "other.html").exists()


def test_bench_of_a_folder_that_is_no_clone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped folder is refused before anything is timed."""
    assert main(["bench", "transfer", "--authors", str(tmp_path)]) == 1
    assert "wanted a clone of alinlab/L2T-ww" in capsys.readouterr().err
