"""The command line: its output, its errors, and resuming a killed recipe."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_runs
import torch
from tiny_runs import Begin
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mtanytime.__main__ import main
from mtanytime.anytime import SliceCascade, SlicedResNeXt, SliceShape, doubling_widths
from mtanytime.backbones import vgg9
from mtanytime.devices import processor
from mtanytime.experiments import benchmarks
from mtanytime.experiments.runner import plan
from mtanytime.measure.costs import exit_costs

SHORT = ["--set", "letters_per_class=2", "epochs=3", "digits_per_class=4", "batch_size=10", "checkpoint_seconds=0"]


def test_list_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    """The list shows what each recipe reproduces, its duration, the expected result, and its settings."""
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in ("smoke", "built-in", "reproduces:", "takes:", "expect:", "epochs="):
        assert name in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smok"], "recipe: expected the name of a recipe, got 'smok'; the nearest is 'smoke'"),
        (
            ["smoke", "--set", "epoch=3"],
            "setting: expected one of the recipe's settings, got 'epoch'; the nearest is 'epochs'",
        ),
        (["smoke", "--set", "epochs=three"], "epochs: expected a whole number, such as 10, got 'three'"),
        (["smoke", "--set", "epochs"], "--set: expected KEY=VALUE, got 'epochs'"),
        (["smoke", "--set", "methods=l3t"], "methods: expected names among scratch, matching_all, matching_one, what"),
        (["smoke", "--set", "methods="], "methods: expected one or more of scratch, "),
        (["smoke", "--set", "betas=1,two"], "betas: expected numbers separated by commas, such as 0.5,2, got '1,two'"),
        (["smoke", "--set", "scored_on=train"], "scored_on: expected 'test' or 'validation', got 'train'"),
        (["smoke", "--set", "scored_on=validation", "digits_per_class=87"], "so that validation has digits, got 87"),
        (["smoke", "--set", "beta=0"], "beta: expected a number > 0, got 0.0"),
        (["smoke", "--seed", "1", "1"], "seeds: expected one or more different seeds, got [1, 1]"),
        (["smoke", "--set", "methods=l2t,l2t"], "methods: expected each name once, got 'l2t,l2t'"),
        (["smoke", "--set", "betas=1,1.0"], "betas: expected different numbers, got (1.0, 1.0)"),
        (
            ["cifar10-few", "--set", "source=nowhere.tar"],
            "source: expected an existing file or folder, got 'nowhere.tar'; set it to the L2T-ww authors'",
        ),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """One line states the error and the nearest name, and nothing is written."""
    assert main(["run", *arguments, "--out", str(tmp_path / "run")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_killed_and_resumed(tmp_path: Path, one_thread: None, begin: Begin, capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe killed with SIGKILL at random moments and run again ends with the same bits as an uninterrupted one.

    MTANYTIME_KILLS=50 kills the full recipe fifty times, starting another run whenever one finishes; by default a
    shorter recipe is killed once, soon after its training has begun.
    """
    kills = int(os.environ.get("MTANYTIME_KILLS", "1"))
    settings = [] if kills > 1 else SHORT

    def command(name: str) -> list[str]:
        return ["run", "smoke", *settings, "--out", str(tmp_path / name)]

    def end(name: str) -> tuple[dict, bytes, bytes]:
        checkpoint = torch.load(tmp_path / name / "l2t-seed0" / "checkpoint.pt", weights_only=True)
        tables = [(tmp_path / name / "l2t-seed0" / f"{table}.csv").read_bytes() for table in ("trace", "channels")]
        return {key: checkpoint[key] for key in ("modules", "optimizers", "extra", "scores")}, *tables

    def training(name: str) -> bool:
        logs = (tmp_path / name / "l2t-seed0").glob("log.csv")
        return any(log.read_bytes().count(b"\n") > 2 for log in logs)

    start = time.monotonic()
    assert main(command("uninterrupted")) == 0
    duration = time.monotonic() - start
    expected, moments, killed, round_ = end("uninterrupted"), random.Random(0), 0, 0
    started = 0  # kills after training started
    while killed < kills or not started:
        process = begin(tiny_runs.command_line, command(f"killed{round_}"))
        while kills == 1 and process.is_alive() and not training(f"killed{round_}"):
            time.sleep(0.01)
        process.join(moments.uniform(0, 0.1) if kills == 1 else moments.uniform(0.2, 0.6) * duration)
        finished = process.exitcode is not None
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        killed += not finished
        started += any((tmp_path / f"killed{round_}").rglob("log.csv"))
        if finished or killed >= kills:
            capsys.readouterr()
            assert main(command(f"killed{round_}")) == 0
            assert not finished or capsys.readouterr().out.count("already finished") == 2
            resumed = end(f"killed{round_}")
            assert resumed[1:] == expected[1:]
            differing = [
                name
                for name, (a, b) in enumerate(zip(tree_leaves(resumed[0]), tree_leaves(expected[0]), strict=True))
                if not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b)
            ]
            assert not differing
            round_ += 1


def test_results_of_several_seeds_and_strengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both files start with the command; the results have one row per network, the maps those of the learned runs.

    A strength that diverges has a row without accuracy, and an existing file is not overwritten.
    """
    settings = [*SHORT, "methods=scratch,matching_one,l2t", "betas=0.5,1e30", "scored_on=validation"]
    command = ["run", "smoke", "--out", str(tmp_path / "runs"), "--csv", str(tmp_path / "results" / "few.csv")]
    assert main([*command, "--seed", "3", "4", *settings]) == 1  # because of the runs that diverged
    lines = (tmp_path / "results" / "few.csv").read_text().splitlines()
    assert lines[0].startswith("# python -m mtanytime run smoke --out FOLDER --seed 3 4 --set letters_per_class=2 ")
    assert lines[0].endswith("(the last one without validation), last_accuracy after the last")  # says which counts
    assert re.search(r"\d threads?; Python", lines[0])
    assert f"torch {torch.__version__}" in lines[0]
    table = pd.read_csv(tmp_path / "results" / "few.csv", comment="#")
    assert list(table["method"]) == 2 * ["scratch", *2 * ["matching_one"], *2 * ["l2t"]]
    assert list(table["beta"]) == 2 * [0, 0.5, 1e30, 0.5, 1e30]
    assert list(table["accuracy"].isna()) == 2 * [False, False, True, False, True]
    maps = pd.read_csv(tmp_path / "results" / "few_maps.csv", comment="#")
    assert len(maps) == 2 * 15
    assert set(maps["seed"]) == {3, 4}
    assert main([*command, *settings]) == 1
    assert "csv: expected a file that does not exist yet, got " in capsys.readouterr().err


def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan counts the steps that a folder has done already, and writes nothing."""
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
    """The multiply-adds of a step from scratch are those that torch counts in a forward and a backward pass."""
    rows = {row["part"]: row for row in plan("smoke", tmp_path, changes={"methods": "scratch,l2t", "epochs": "2"})}
    images, labels = torch.rand(40, 3, 32, 32), torch.arange(40) % 10
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.cross_entropy(vgg9(10, width=4)(images), labels).backward()
    assert rows["scratch"]["macs"] == rows["scratch"]["steps"] * counter.get_total_flops() // 2
    assert rows["l2t"]["macs"] > 9 * rows["scratch"]["macs"]  # 28 passes against 3, and the source


BENCH = ["bench", "transfer", "--compile", "--batch", "2", "--inner-steps", "1", "--rounds", "1"]


def test_bench_transfer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line is one JSON object with the seconds and memory of every mode, and the settings.

    `--compile` times each part plain and compiled. Without `--json` there is a line for each. To save time, nothing is
    warmed up, and the memory of one mode stands for all.
    """
    measured = benchmarks._peak_memory("ours", 2, 1, None)
    monkeypatch.setattr(benchmarks, "_peak_memory", lambda *arguments: measured)
    monkeypatch.setattr(benchmarks, "WARM_UP", 0)
    monkeypatch.setattr(torch, "compile", lambda network: network)
    assert main([*BENCH, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("ours", "recompute", "unroll", "first_order"):
        assert figures[f"{name}_s"] > 0
        assert figures[f"{name}_mb"] > 100
    assert {"source_s", "step_s", "matching_s", "meta_gradient_s"} == set(figures["parts"])
    assert min(figures["fixed_weights"].values()) > 0
    assert 0 < figures["first_order_error"]["relative_error"] < 1 < 2 * figures["first_order_error"]["cosine"]
    assert {"source", "target", "pairs", "batch", "inner_steps", "dtype", "threads"} <= set(figures["config"])
    assert figures["config"]["batch"] == 2

    ranges = {name: (1.0, 2.0) for name in ("ours", "recompute", "unroll", "first_order")}
    monkeypatch.setattr("mtanytime.experiments.bench_commands.bench_transfer", lambda *arguments: (figures, ranges))
    assert main(BENCH) == 0  # the same figures as lines
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()[:2]) for line in lines if ", compiled " in line] == [
        "torch.compile: source",
        "torch.compile: step",
    ]
    assert f"channels_last {figures['fixed_weights']['channels_last_s']:.3f} s" in "\n".join(lines)
    assert f"not run the source again: {figures['fixed_weights']['trial_s']:.3f} s" in "\n".join(lines)


def test_a_memory_measurement_that_fails(tmp_path: Path) -> None:
    """The error of the other process is told, not only that it failed."""
    with pytest.raises(RuntimeError, match=r"peak memory of 'authors' failed: \w+Error: .*"):
        benchmarks._peak_memory("authors", 2, 1, tmp_path)


def test_bench_without_a_compiler(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing compiler is reported before any timing."""

    def missing(network: nn.Module) -> nn.Module:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", missing)
    monkeypatch.setattr("mtanytime.experiments.benchmarks._in_turn", None)
    assert main(BENCH) == 1
    assert "no C++ compiler" in capsys.readouterr().err


def test_bad_count(capsys: pytest.CaptureFixture[str]) -> None:
    """A count below 1 is an error message, not a traceback."""
    with pytest.raises(SystemExit):
        main(["bench", "transfer", "--rounds", "0"])
    assert "argument --rounds: expected a whole number >= 1, got '0'" in capsys.readouterr().err


def test_bench_anytime(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line is one JSON object that a script can read; the table names the baseline of each ratio."""
    small = ["--width", "8", "--branches", "2", "--blocks", "1", "--batch", "2", "--rounds", "1"]
    assert main(["bench", "anytime", "--json", "--onnxruntime", *small]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("sliced_joint_s", "widest_s", "inclusive_joint_s", "stepup_s", "first_s", "full_s"):
        assert figures[name] > 0
    for name in ("stepup_s", "first_s", "full_s"):
        for way in ("unfolded", "channels_last", "onnxruntime"):
            assert figures[way][name] > 0
            assert figures[f"{way}_batch_1"][name] > 0
        assert figures["batch_1"][name] > 0
    assert figures["joined"]["stepup_s"] > 0
    assert figures["joined_batch_1"]["stepup_s"] > 0
    sizes = {"width": 8, "bottleneck": 4, "branches": 2, "blocks": 1, "batch": 2, "dtype": "float32"}
    assert sizes.items() <= figures["config"].items()
    assert figures["config"]["threads"] == torch.get_num_threads()
    ranges = {name: (1.0, 2.0) for name in ("sliced_joint", "widest", "inclusive_joint", "stepup", "first", "full")}
    monkeypatch.setattr("mtanytime.experiments.bench_commands.bench_anytime", lambda *arguments: (figures, ranges))
    assert main(["bench", "anytime", *small]) == 0  # the same figures as lines
    lines = capsys.readouterr().out
    assert "× widest" in lines
    assert "channels last batch 1 stepup: " in lines
    monkeypatch.undo()
    assert main(["bench", "anytime", *small, "--authors", "nowhere"]) == 1
    assert "authors: expected a clone of hankook/IResNeXt" in capsys.readouterr().err


def test_ways_of_inference_give_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared in seconds must compute the same: in every layout, with buffers or without, compiled or not."""
    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    torch.manual_seed(0)
    network, images = SlicedResNeXt(10, 8, 4, 2, 1), torch.rand(3, 3, 32, 32)
    network(images)  # the batch norms' statistics become other than 0 and 1
    ways, _ = benchmarks.inference_ways(network, images, compiled=True)
    with torch.no_grad():
        wanted = network.eval()(images)
    assert set(ways) == {"folded", "unfolded", "channels_last", "joined", "compiled"}
    assert len(compiled) == 1
    for name, expected in {"stepup": wanted, "first": wanted[0], "full": wanted[-1]}.items():
        answers = [work[name]() for work in ways.values() if name in work]
        assert len(answers) >= 3
        for answer in answers:
            torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)


def test_explore_writes_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A curve becomes a page; an existing page is kept without `--force`; a bad table gives one line of error."""
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


def test_bench_of_a_folder_that_is_not_a_clone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped folder is reported before anything is timed."""
    assert main(["bench", "transfer", "--authors", str(tmp_path)]) == 1
    assert "authors: expected a clone of alinlab/L2T-ww" in capsys.readouterr().err


def test_bench_of_layers_and_shapes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Both print tables; times are kept in a file, which another machine's may not be."""
    csv, times = tmp_path / "layers.csv", tmp_path / "times.csv"
    layers = ["bench", "layers", "--rounds", "1", "--batch", "1", "--runtime", "eager", "--channels", "8"]
    assert main([*layers, "--csv", str(csv)]) == 0
    assert "gmacs_per_s" in capsys.readouterr().out
    assert len(pd.read_csv(csv, comment="#")) == 8
    shapes = ["bench", "shapes", "--rounds", "1", "--multiple", "4", "--largest", "4", "--times", str(times)]
    assert main([*shapes, "--milliseconds", "1000", "2000"]) == 0
    assert re.search(r"slice_widths=4,4/8,8/\d+,\d+ ", capsys.readouterr().out)
    cascade = [*shapes, "--block", "inverted", "--reads", "stages", "--blocks", "2", "1", "1"]
    assert main([*cascade, "--milliseconds", "1000", "2000", "--csv", str(tmp_path / "shapes.csv")]) == 0
    assert "slice_reads=stages slice_block=inverted slice_blocks=2,1,1" in capsys.readouterr().out
    assert (
        "shapes --milliseconds 1000 2000 --blocks 2 1 1 --batch 1 --block inverted --reads stages"
        in ((tmp_path / "shapes.csv").read_text(encoding="utf-8").splitlines()[0])
    )
    found = pd.read_csv(tmp_path / "shapes.csv", comment="#")
    best = found[found["rank"] == 1]
    widths = tuple(tuple(map(int, stage.split(","))) for stage in best["slice_widths"].iloc[0].split("/"))
    own = exit_costs(SliceCascade(10, SliceShape(widths, (2, 1, 1), "inverted")))["macs_own_head"]
    heads = [10 * sum(widths[-1][:k]) for k in best["exit"]]
    assert (best["macs"].to_numpy() + heads).tolist() == own.tolist()
    kept = times.read_text()
    assert main([*shapes, "--milliseconds", "0.000001"]) == 1
    assert "error: budgets: expected at least " in capsys.readouterr().err
    assert times.read_text() == kept
    times.write_text(kept.replace(processor(), "another"))
    assert main([*shapes, "--milliseconds", "1000"]) == 1
    assert re.search(r"error: .*times.csv: expected times of .*, got \['another'\]; choose", capsys.readouterr().err)


def test_bench_of_exits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One row per model, way to answer and exit; networks with `refine` also answer step by step."""
    csv = tmp_path / "exits.csv"
    small = ["slice_widths=4,4", "msdnet_blocks=2", "msdnet_base=1", "models=sliced,msdnet"]
    sizes = ["--rounds", "1", "--batch", "1", "2", "--runtime", "eager", "channels-last"]
    assert main(["bench", "exits", *sizes, "--set", *small, "--csv", str(csv)]) == 0
    table = pd.read_csv(csv, comment="#")
    answers = table.groupby(["model", "runtime", "answer"])["exit"].apply(list).to_dict()
    ways = [(model, way) for model in ("msdnet", "sliced") for way in ("alone", "step-up")]
    assert answers == {(model, runtime, way): [1, 2] for model, way in ways for runtime in ("eager", "channels-last")}
    assert (table[["latency1_ms", "latency2_ms"]] > 0).all(axis=None)
    sliced = table[table["model"] == "sliced"].groupby("exit")["macs_own_head"].unique()
    expected = exit_costs(SliceCascade(10, SliceShape(doubling_widths((4, 4)), 2, "inverted")))["macs_own_head"]
    assert [list(costs) for costs in sliced] == [[cost] for cost in expected]
    capsys.readouterr()
    assert main(["bench", "exits", "--set", "models=separate"]) == 1
    assert "models: expected names among sliced, msdnet, inclusive, got 'separate'" in capsys.readouterr().err
    assert main(["bench", "exits", "--csv", str(csv)]) == 1
    assert "csv: expected a file that does not exist yet" in capsys.readouterr().err


def test_options_given_several_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """All of them count: the first would otherwise be dropped without a word."""
    calls: list[tuple[Any, ...]] = []

    def called(*arguments: Any) -> Any:
        calls.append(arguments)
        raise ValueError("enough")

    monkeypatch.setattr("mtanytime.__main__.run", called)
    several = ["--set", "epochs=2", "--seed", "0", "--set", "lr=0.01", "--seed", "1", "2"]
    assert main(["run", "smoke", "--out", str(tmp_path), *several]) == 1
    assert calls[0][2:] == ([0, 1, 2], {"epochs": "2", "lr": "0.01"})
    assert main(["run", "smoke", "--out", str(tmp_path)]) == 1
    assert calls[1][2:] == ([0], {})
    assert main(["run", "smoke", "--out", str(tmp_path), "--set", "lr=1", "lr=2"]) == 1
    assert "--set: expected each setting once, got 'lr=1 lr=2'" in capsys.readouterr().err
    monkeypatch.setattr("mtanytime.experiments.sweep_commands.make_grid", called)
    several = ["--over", "methods=scratch,l2t", "--over", "lr=0.1,0.01", "--set", "epochs=2"]
    assert main(["sweep", "smoke", "--out", str(tmp_path), *several]) == 1
    assert calls[2] == ("smoke", [0], {"methods": "scratch,l2t", "lr": "0.1,0.01"}, {"epochs": "2"})


def test_files_are_checked_before_hours_of_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Maps and trials go to other files, which may hold another experiment's; times to a folder that exists."""
    for file in ("a_maps.csv", "b_trials.csv"):
        (tmp_path / file).write_text("precious")
        assert main(["run", "smoke", "--out", str(tmp_path / "run"), "--csv", str(tmp_path / f"{file[0]}.csv")]) == 1
        assert re.search(rf"csv: expected a file that does not exist yet, got .*{file}", capsys.readouterr().err)
    shapes = ["bench", "shapes", "--milliseconds", "1000", "--times", str(tmp_path / "nowhere" / "times.csv")]
    assert main(shapes) == 1
    assert "--times: expected a file in a folder that exists" in capsys.readouterr().err


def test_commands_without_the_module_resource() -> None:
    """Windows has none; only a measurement of memory needs it."""
    code = "import sys; sys.modules['resource'] = None; import mtanytime.__main__"
    subprocess.run([sys.executable, "-c", code], check=True)
