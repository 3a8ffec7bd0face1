"""Sweeps: the grid and its names, folders, failures, interrupts, and results that are the same in any case."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import filelock
import pandas as pd
import pytest
from sweep_runs import TINY, Inline, command, environment, results, run_tiny, tiny_grid

from mtanytime.__main__ import main
from mtanytime.experiments import cell
from mtanytime.experiments.cell import Job, held, run_job
from mtanytime.experiments.grid import LETTERS_UP_TO, cell_name, make_grid
from mtanytime.experiments.runner import RECIPES, run
from mtanytime.experiments.sweep import collect, sweep
from mtanytime.experiments.workers import Workers


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """The processes of a sweep have one thread each, and results differ in their last bits with more."""


def test_grid_and_names() -> None:
    """The cells are every combination in the order of the table, however the command ordered them."""
    grid = make_grid("smoke", [1, 0], {"lr": "0.10,0.01", "methods": "l2t,scratch"}, {"epochs": "3", "beta": "4"})
    assert [cell.name for cell in grid.cells] == [
        f"{method},lr={lr},seed={seed}" for method in ("scratch", "l2t") for lr in (0.01, 0.1) for seed in (0, 1)
    ]
    assert grid.cells[0].settings["methods"] == ("scratch",)
    assert (grid.cells[0].settings["epochs"], grid.cells[0].settings["lr"]) == (3, 0.01)
    assert grid.command == (
        "python -m mtanytime sweep smoke --out FOLDER --seed 0 1 --over methods=scratch,l2t lr=0.01,0.1 --set epochs=3"
    )  # β = 4 is the default
    widths = make_grid("anytime-cifar10", [0], {"slice_widths": "8,4,2,2/4,4,4,4"}, {}).cells
    assert [cell.name for cell in widths] == ["slice_widths=4-4-4-4,seed=0", "slice_widths=8-4-2-2,seed=0"]


@pytest.mark.parametrize("values", [{"images": "data/a b"}, {"images": "x" * 200}, {"images": "ä"}])
def test_names_are_safe(values: dict[str, str]) -> None:
    """A name with a slash would be a folder in a folder, and one that is cut off must not be that of another cell."""
    name = cell_name(values, 0)
    assert name.isascii()
    assert not set("/ ") & set(name)
    assert len(name) <= LETTERS_UP_TO
    assert name == cell_name(values, 0)
    assert name != cell_name({"images": values["images"] + "_"}, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["smok"], "recipe: expected the name of a recipe, got 'smok'; the nearest is 'smoke'"),
        (["smoke", "--over", "metods=l2t"], "got 'metods'; the nearest is 'methods'"),
        (["smoke", "--set", "epoch=3"], "got 'epoch'; the nearest is 'epochs'"),
        (["smoke", "--over", "methods=l2t,l3t"], "got 'l3t'; the nearest is 'l2t'"),
        (["smoke", "--over", "lr=0.1,fast"], "lr: expected a number, such as 0.05, got 'fast'"),
        (["smoke", "--over", "lr="], "--over lr: expected values separated by ',', each of them not empty, got ''"),
        (["smoke", "--over", "lr=0.1,,0.2"], "--over lr: expected values separated by ',', each of them not empty"),
        (["smoke", "--over", "lr=0.1,0.10"], "--over lr: expected each value once, got 0.1 twice"),
        (["smoke", "--over", "lr=0.1", "lr=0.2"], "--over: expected each setting once, got 'lr=0.1 lr=0.2'"),
        (["smoke", "--over", "lr=1", "--set", "lr=2"], "--over: expected settings that --set does not name, got lr"),
        (["smoke", "--over", "seed=0,1"], "--over: expected settings of the recipe, got 'seed'; seeds are given by"),
        (["smoke", "--over", "lr"], "--over: expected KEY=VALUE, got 'lr'"),
        (["smoke", "--seed", "1", "1"], "--seed: expected one or more different whole numbers, got [1, 1]"),
        (["smoke", "--processes", "0"], "--processes: expected a whole number >= 1, got 0"),
        (["smoke", "--cpus", "0"], "--cpus: expected a whole number >= 1, got 0"),
        (["smoke", "--on", "ray", "--gpus", "-1"], "--gpus: expected a number in [0, 1], or a whole number, got -1.0"),
        (["smoke", "--on", "ray", "--gpus", "nan"], "--gpus: expected a number in [0, 1], or a whole number, got nan"),
        (["smoke", "--gpus", "0.5"], "--gpus: expected 0 without --on, got 0.5"),
        (["smoke", "--on", "ray://head"], "--on: expected ray, auto or HOST:PORT, got 'ray://head'"),
        (["smoke", "--on", "auto", "--processes", "2"], "--processes: expected none on a cluster"),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    """One line states the error before anything is started or written."""
    assert main(["sweep", *options, "--out", str(tmp_path / "sweep")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_a_bad_setting_names_its_cell(tmp_path: Path) -> None:
    """Among a hundred cells, the one with the bad setting must be named, and none may have been trained."""
    with pytest.raises(ValueError, match=r"beta: expected a number > 0, got 0\.0 \(in matching_all,beta=0\.0,seed=0\)"):
        sweep(tiny_grid((0,), methods="matching_all", beta="0,1"), tmp_path / "sweep", Inline(), progress=False)
    assert not (tmp_path / "sweep").exists()


def test_sources_are_shared_and_done_cells_are_skipped(tmp_path: Path) -> None:
    """A source is trained once, first; what is done is only read; seeds and values may be added; order is no matter."""
    first, then = Inline(), Inline()
    sweep(tiny_grid((1,), methods="matching_one"), tmp_path / "grown", first, progress=False)
    assert [Path(name).parts[0] for name in first.ran] == ["sources", "matching_one,seed=1"]
    checkpoint = tmp_path / "grown" / "matching_one,seed=1" / "source" / "checkpoint.pt"
    assert checkpoint.stat().st_nlink == 2
    outcome = sweep(tiny_grid((0,), methods="scratch,matching_one"), tmp_path / "grown", then, progress=False)
    assert then.ran == ["scratch,seed=0", "matching_one,seed=0"]
    assert outcome.table[["method", "seed"]].to_records(index=False).tolist() == [
        ("scratch", 0),
        ("matching_one", 0),
        ("matching_one", 1),
    ]
    grid = tiny_grid((0, 1), methods="matching_one,scratch")
    sweep(grid, tmp_path / "grown", Inline(), progress=False)
    sweep(grid, tmp_path / "whole", Inline(), progress=False)
    assert results(tmp_path / "grown") == results(tmp_path / "whole")
    expected = run("smoke", tmp_path / "run", [0], TINY | {"methods": "matching_one"}, progress=False).table
    columns = ["method", "seed", "beta", "epochs", "accuracy", "last_accuracy"]
    row = collect(tmp_path / "whole").query("method == 'matching_one' and seed == 0")
    pd.testing.assert_frame_equal(row[columns].reset_index(drop=True), expected[columns])


def test_results_outlive_other_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version's defaults and settings are not those of the runs, which stay readable."""
    sweep(tiny_grid((0,), methods="scratch"), tmp_path, Inline(), progress=False)
    before, smoke = collect(tmp_path), RECIPES["smoke"]
    assert {"weight_decay", "one_more"}.isdisjoint(TINY)
    monkeypatch.setitem(
        RECIPES, "smoke", replace(smoke, settings=smoke.settings | {"weight_decay": 0.25, "one_more": 1})
    )
    pd.testing.assert_frame_equal(collect(tmp_path), before)


def test_a_cell_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The others finish, the error is told with its log at the end, and the same command does what is missing."""
    monkeypatch.setattr("mtanytime.experiments.sweep_commands.Workers", lambda count, threads: Inline())
    out = tmp_path / "sweep"
    (out / "scratch,seed=0").mkdir(parents=True)
    (out / "scratch,seed=0" / "scratch-seed0").write_text("in the way")
    (out / "sweep.json").write_text(json.dumps(tiny_grid((0,), methods="scratch").record()))
    options = ["sweep", "smoke", "--out", str(out), "--seed", "0", "1", "--over", "methods=scratch", "--processes", "1"]
    options += ["--set", *(f"{key}={value}" for key, value in TINY.items())]
    assert main(options) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: scratch,seed=0: ValueError: folder: expected a folder for the run at ")
    assert str(out / "scratch,seed=0" / "log.txt") in error
    assert "Traceback" in (out / "scratch,seed=0" / "log.txt").read_text()
    assert list(collect(out)["seed"]) == [1]
    (out / "scratch,seed=0" / "scratch-seed0").unlink()
    assert main(options) == 0
    assert list(pd.read_csv(out / "results.csv", comment="#")["seed"]) == [0, 1]


def test_a_source_that_fails(tmp_path: Path) -> None:
    """Cells that need a source which failed are not started, and each is reported."""

    def block(job: Job) -> None:
        if job["name"].startswith("sources"):
            (tmp_path / "sweep" / job["name"]).mkdir(parents=True)
            (tmp_path / "sweep" / job["name"] / "source").write_text("in the way")

    outcome = sweep(tiny_grid((0, 1), methods="matching_one"), tmp_path / "sweep", Inline(block), progress=False)
    assert len(outcome.table) == 0
    assert [name for name, error in outcome.failed.items() if "its source" in error] == [
        "matching_one,seed=0",
        "matching_one,seed=1",
    ]


def test_a_run_that_diverges(tmp_path: Path) -> None:
    """It is done and has a row without accuracy: running it again would diverge again."""
    grid, again = tiny_grid((0,), methods="matching_all", beta="1,1e30"), Inline()
    table = sweep(grid, tmp_path / "sweep", Inline(), progress=False).table
    assert table["accuracy"].isna().tolist() == [False, True]
    assert list(table.columns[:3]) == ["method", "beta", "seed"]
    sweep(grid, tmp_path / "sweep", again, progress=False)
    assert again.ran == []


def test_folder_of_something_else(tmp_path: Path) -> None:
    """Results of other settings, or other people's files, must not be mixed with a sweep's."""
    grid = tiny_grid((0,), methods="scratch")
    sweep(grid, tmp_path / "sweep", Inline(), progress=False)
    before = (tmp_path / "sweep" / "results.csv").read_bytes()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    for other, folder, message in (
        (make_grid("smoke", [0], {"methods": "scratch"}, {**TINY, "lr": "1"}), "sweep", r"lr: there 0\.05, here 1\.0"),
        (make_grid("built-in", [0], {"methods": "scratch"}, TINY), "sweep", "recipe: there smoke, here built-in"),
        (tiny_grid((0,), lr="0.05"), "sweep", "what varies: there methods, here lr"),
        (grid, "other", "which holds 'notes.txt'"),
        (grid, "other/notes.txt", "which is a file"),
    ):
        with pytest.raises(ValueError, match=f"--out: expected an empty folder or the folder of .*{message}"):
            sweep(other, tmp_path / folder, Inline(), progress=False)
    assert (tmp_path / "sweep" / "results.csv").read_bytes() == before
    sweep(
        make_grid("smoke", [0], {"methods": "scratch"}, {**TINY, "checkpoint_seconds": "9"}),
        tmp_path / "sweep",
        Inline(),
        progress=False,
    )
    (tmp_path / "sweep" / "scratch,seed=0" / "result.json").write_text('{"rows": [], "recipe": "smoke", "seed": 3}')
    with pytest.raises(ValueError, match="scratch,seed=0: expected the result of this cell, got one with seed 3, not"):
        sweep(grid, tmp_path / "sweep", Inline(), progress=False)
    with (
        filelock.FileLock(tmp_path / "new" / ".lock"),
        pytest.raises(RuntimeError, match="another sweep is running in"),
    ):
        sweep(grid, tmp_path / "new", Inline(), progress=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_full_disk(tmp_path: Path) -> None:
    """Results are written whole or not at all, and the finished cells are kept."""
    grid = tiny_grid((0,), methods="scratch")
    sweep(grid, tmp_path, Inline(), progress=False)
    before = (tmp_path / "results.csv").read_bytes()
    (tmp_path / "results.csv.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"could not write it \(No space left on device\).*results\.csv"):
        sweep(tiny_grid((0, 1), methods="scratch"), tmp_path, Inline(), progress=False)
    assert (tmp_path / "results.csv").read_bytes() == before
    assert len(collect(tmp_path)) == 2


def test_lock_of_a_machine_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems keep the lock of a dead machine: without signs of life it is removed, otherwise not."""
    monkeypatch.setattr(cell, "BEAT", 0.1)
    monkeypatch.setattr(cell, "STALE", 5.0)
    dead = filelock.FileLock(tmp_path / cell.LOCK)
    dead.acquire()
    os.utime(tmp_path / cell.LOCK, (1, 1))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    with held(tmp_path):
        assert not (tmp_path / "run" / ".lock").exists()
        os.utime(tmp_path / cell.LOCK, (1, 1))
        time.sleep(0.5)  # a sign of life
        with pytest.raises(RuntimeError, match="another process is training in"), held(tmp_path, wait=0):
            pass
    dead.release()
    with held(tmp_path):
        pass


def test_a_folder_that_is_not_shared(tmp_path: Path) -> None:
    """A machine that does not see the sweep's folder must say so, and not make one of its own."""
    assert "the sweep's folder is not on " in run_job({"folder": str(tmp_path / "sweep"), "name": "a"})
    assert not (tmp_path / "sweep").exists()


def test_a_process_that_crashes() -> None:
    """Its job fails with the status, the next job gets another process, and that one ends with its stdin.

    So the processes of a sweep that was killed do not go on in the folders of the next one.
    """
    workers = Workers(1)
    try:
        workers.prepare(1)
        crashed = workers._idle[0]
        crashed.kill()
        workers._jobs["a"] = workers._idle.pop()  # as if it had taken a job
        assert until_one_ends(workers) == ("a", f"its process ended with status {-signal.SIGKILL}")
        assert workers.has_room()
        workers.start({"folder": "/nowhere", "name": "b"})
        assert not workers.has_room()
        name, error = until_one_ends(workers)
        assert name == "b"
        assert error.startswith("/nowhere: the sweep's folder is not on ")
        (process,) = workers._idle
        process.stdin.close()
        assert process.wait(30) == 0
    finally:
        workers.stop()


def until_one_ends(workers: Workers) -> tuple[str, str | None]:
    """Wait for a job to end."""
    ended: list[tuple[str, str | None]] = []
    while not ended:
        ended = workers.wait()
    return ended[0]


def test_stopped_and_continued(tmp_path: Path) -> None:
    """SIGTERM, as from a job system, stops the processes after their step; what they saved is continued elsewhere."""
    grid, out = tiny_grid((0,), methods="matching_one,matching_all"), tmp_path / "sweep"
    started = command(grid, out, "--processes", "1")
    with subprocess.Popen(started, env=environment(), text=True, stdout=subprocess.PIPE) as process:
        while not list(out.glob("matching*/matching*/log.csv")) and process.poll() is None:
            time.sleep(0.02)
        process.terminate()
        printed, _ = process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    assert ("stopped; the same command continues" in printed) == (process.returncode == 130)
    again = Inline()
    sweep(grid, out, again, progress=False)
    assert not [name for name in again.ran if name.startswith("sources")]
    sweep(grid, tmp_path / "whole", Inline(), progress=False)
    assert results(out) == results(tmp_path / "whole")


def test_killed_and_continued(tmp_path: Path, begin: Callable[..., ForkServerProcess]) -> None:
    """A sweep that is killed three times, at random moments, ends with the table of one that is not."""
    seeds, over, out, moments = (
        (0,),
        {"methods": "scratch,matching_one,matching_all"},
        tmp_path / "killed",
        random.Random(0),
    )
    for _ in range(3):
        logs = len(list(out.rglob("log.csv")))
        process = begin(run_tiny, out, seeds, over)
        while len(list(out.rglob("log.csv"))) == logs and process.is_alive():
            time.sleep(0.02)
        process.join(moments.uniform(0, 0.5))
        process.kill()
        process.join()
    done = len(list(out.glob("*/result.json")))
    sweep(tiny_grid(seeds, **over), out, Inline(), progress=False)
    assert done < 3
    sweep(tiny_grid(seeds, **over), tmp_path / "whole", Inline(), progress=False)
    assert results(out) == results(tmp_path / "whole")
