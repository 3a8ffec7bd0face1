"""Resume: whenever and however a run stops, it ends bit for bit as an uninterrupted one."""

import multiprocessing
import random
import shutil
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_runs
import torch
from tiny_runs import Begin, State, end_of, loader, state_of, task, trainer, transfer, wait_for_some

from mtanytime.training.trainer import Trainer
from mtanytime.transfer import Lookahead

pytestmark = pytest.mark.usefixtures("one_thread")


# A run that dies.


def test_killed_at_random_moments(tmp_path: Path, uninterrupted: State, begin: Begin) -> None:
    """Machines die at any moment: a run that is killed repeatedly ends bit for bit as an uninterrupted one."""
    moments, steps = random.Random(0), []
    ours, theirs = multiprocessing.Pipe()
    while True:
        process = begin(tiny_runs.finish, "transfer", tmp_path / "run", theirs)
        ours.recv()
        wait_for_some(process, tmp_path / "run", moments)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        if (checkpoint := tmp_path / "run" / "checkpoint.pt").exists():
            steps.append(torch.load(checkpoint, weights_only=True)["step"])
    assert process.exitcode == 0
    assert len(set(steps)) > 2, steps
    assert end_of(tmp_path / "run") == uninterrupted


def test_killed_within_every_kind_of_write_and_step(tmp_path: Path, uninterrupted: State, begin: Begin) -> None:
    """Random kills miss short moments: half a checkpoint, half a line, around a rename, within a lookahead."""
    for place in range(1, 100):  # creating the folder and the first step take about twenty places
        process = begin(tiny_runs.finish_unless_killed_at, "transfer", tmp_path / "run", place)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert place > 20
    assert end_of(tmp_path / "run") == uninterrupted


def test_files_left_by_a_death(tmp_path: Path, uninterrupted: State) -> None:
    """Files that a death may leave do no harm: temporary files, half a line, rows of steps that are repeated."""
    folder = tmp_path / "run"
    run = transfer(folder)
    for report in run:
        if report.step == 12:
            break
    (folder / "checkpoint.pt.tmp").write_bytes(b"PK half a checkpoint")
    (folder / "config.json.tmp").write_text("{")
    for name in ("log", "trace", "channels"):
        path = folder / f"{name}.csv"
        row = path.read_text().splitlines()[-1].split(",", 1)[1]
        path.write_text(path.read_text() + f"13,{row}\n13,{row}\n14,{row[:4]}")
    again = transfer(folder)
    assert [row["step"] for row in again.tables["log"]] == list(range(1, 13))
    again.train()
    assert end_of(folder) == uninterrupted


@pytest.mark.parametrize("left", [(), (".lock",), (".lock", "config.json.tmp")], ids=["nothing", "lock", "config"])
def test_folder_of_a_run_that_died_at_once(tmp_path: Path, uninterrupted: State, left: tuple[str, ...]) -> None:
    """A run that died before its first checkpoint starts again in the same folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in left:
        (folder / name).write_text("")
    transfer(folder).train()
    assert end_of(folder) == uninterrupted


def test_tables_before_the_first_checkpoint(tmp_path: Path, uninterrupted: State) -> None:
    """An empty table, or one with steps after the checkpoint, is written again."""
    folder = tmp_path / "run"
    run = transfer(folder)
    next(iter(run))
    (folder / "checkpoint.pt").unlink()
    (folder / "trace.csv").write_text("")
    (folder / "channels.csv").write_text("step,sou")
    transfer(folder).train()
    assert end_of(folder) == uninterrupted


def test_killed_before_its_result_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may die between its last step and the test evaluation: the result is computed later and is the same."""
    expected = transfer(tmp_path / "whole").train()
    for _ in transfer(tmp_path / "run"):
        pass
    result = transfer(tmp_path / "run").train()
    assert (result.accuracy, result.last_accuracy) == (expected.accuracy, expected.last_accuracy)
    assert end_of(tmp_path / "run") == end_of(tmp_path / "whole")


# A run folder of version 0.1.


@pytest.mark.parametrize("maker", ["trainer", "transfer"])
def test_a_run_of_the_version_before_is_resumed(tmp_path: Path, root: Path, maker: str) -> None:
    """Runs that version 0.1 left at step 6 continue: their record is that of the same run today, bit for bit.

    Another processor than the one that made them differs in the last bits, so their figures are compared roughly.
    """
    shutil.copytree(root / "tests" / "reference" / "old_run" / maker, tmp_path / "old")
    config, log = ((tmp_path / "old" / name).read_text() for name in ("config.json", "log.csv"))
    run, fresh = (tiny_runs.MAKERS[maker](tmp_path / name) for name in ("old", "new"))
    assert run.step == 6
    result, expected = run.train(), fresh.train()
    assert (tmp_path / "new" / "config.json").read_text() == config
    assert (tmp_path / "old" / "log.csv").read_text().startswith(log)
    assert result.tables.keys() == expected.tables.keys()
    for name, table in expected.tables.items():
        pd.testing.assert_frame_equal(
            result.tables[name].drop(columns="seconds", errors="ignore"),
            table.drop(columns="seconds", errors="ignore"),
            rtol=1e-3,
            atol=1e-3,
        )


# A run that is left and continued.


def test_leaving_the_loop_and_continuing(tmp_path: Path, uninterrupted: State) -> None:
    """A loop that a notebook leaves with `break` and continues, with the same or a new trainer, changes no bit."""
    folder = tmp_path / "run"
    run = transfer(folder, checkpoint_seconds=60.0)
    for at in (1, 6, 8):  # within the first and the second epoch, and at the end of an epoch
        for report in run:
            if report.step == at:
                break
        assert run.step == at
    run = transfer(folder)
    for report in run:
        if report.step == 11:
            break
    transfer(folder).train()
    assert end_of(folder) == uninterrupted


def test_resumed_within_an_epoch_with_a_loader(tmp_path: Path) -> None:
    """The order of a `DataLoader`, with or without its own generator, is that of the uninterrupted run."""
    for name, options in (("plain", {}), ("generator", {"generator": torch.Generator().manual_seed(3)})):

        def run(folder: Path | None = None, options: dict[str, Any] = options) -> Trainer:
            return trainer(folder, data=loader(task().train, **options), validation=None)

        expected = run()
        expected.train()
        for at in (2, 7):
            for report in run(tmp_path / name):
                if report.step == at:
                    break
        resumed = run(tmp_path / name)
        resumed.train()
        assert state_of(resumed) == state_of(expected)


def test_two_trainers_take_turns(tmp_path: Path, uninterrupted: State) -> None:
    """Two notebooks share one run: a trainer notices the steps of the other and continues from there."""
    first, second = transfer(tmp_path / "run"), transfer(tmp_path / "run")
    for run, at in ((first, 3), (second, 6), (first, 7)):
        for report in run:
            if report.step == at:
                break
    second.train()
    assert end_of(tmp_path / "run") == uninterrupted
    assert first.train().log.equals(second.result().log)


def test_an_error_in_a_step_goes_back_to_the_checkpoint(
    tmp_path: Path, uninterrupted: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that fails, say for lack of memory, leaves half-changed weights: the run returns to its checkpoint."""
    run = transfer(tmp_path / "run", checkpoint_seconds=60.0)
    for report in run:
        if report.step == 5:
            break
    with monkeypatch.context() as patch:
        patch.setattr(Lookahead, "backward", None)
        with pytest.raises(TypeError):
            next(iter(run))
    run.train()
    assert end_of(tmp_path / "run") == uninterrupted


def test_a_finished_run_is_read_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running a finished notebook again gives the same result without a step or an evaluation."""
    first = transfer(tmp_path / "run").train()
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    monkeypatch.setattr(Trainer, "_advance", None)
    monkeypatch.setattr("mtanytime.training.trainer.evaluate", None)
    run = transfer(tmp_path / "run")
    second = run.train()
    assert second == first
    assert type(second) is type(first)
    assert set(second.tables) == set(first.tables) == {"log", "trace", "channels"}
    for name, table in first.tables.items():
        pd.testing.assert_frame_equal(second.tables[name], table, check_exact=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_seconds_add_up(tmp_path: Path) -> None:
    """Training time is the sum over all sessions, without the time between them."""
    run = trainer(tmp_path / "run")
    for report in run:
        if report.step == 4:
            break
    before = run.seconds
    time.sleep(0.6)
    log = trainer(tmp_path / "run").train().log
    assert before <= log["seconds"][4] < before + 0.6
    assert log["seconds"].is_monotonic_increasing


# Several processes.


def test_a_second_process_is_refused(tmp_path: Path, uninterrupted: State, begin: Begin) -> None:
    """Two processes that write one run would corrupt it: the second is refused, and the first continues."""
    ours, theirs = multiprocessing.Pipe()
    process = begin(tiny_runs.wait_in_the_middle, "transfer", tmp_path / "run", theirs)
    assert ours.recv() == 3
    second = transfer(tmp_path / "run")
    with pytest.raises(RuntimeError, match=r"another process or loop is training in .*run; wait for its end"):
        second.train()
    ours.send("go on")
    process.join()
    assert process.exitcode == 0
    assert end_of(tmp_path / "run") == uninterrupted
    second.train()  # the other process has finished it
    assert end_of(tmp_path / "run") == uninterrupted


def test_another_run_started_meanwhile(tmp_path: Path) -> None:
    """Of two runs with different settings for one new folder, the second to start is refused."""
    first, second = trainer(tmp_path / "run"), trainer(tmp_path / "run", lr=0.5)
    first.train()
    with pytest.raises(ValueError, match=r"already holds another run \(lr: there 0.05, here 0.5\)"):
        second.train()


def test_the_folder_is_unlocked_after_errors(tmp_path: Path) -> None:
    """A lock that outlives an error would lock the notebook out of its own run."""
    run = trainer(tmp_path / "run")
    run.loss = None
    for _ in range(2):
        with pytest.raises(TypeError):
            run.train()
    trainer(tmp_path / "run").train()


def test_closing_an_iterator_closes_the_files(tmp_path: Path) -> None:
    """An iterator that is closed unlocks its folder at once."""
    run = trainer(tmp_path / "run")
    with closing(iter(run)) as reports:
        next(reports)
    with trainer(tmp_path / "run").folder.held():
        pass


def test_a_deleted_folder_is_noticed(tmp_path: Path) -> None:
    """A run whose folder was deleted between two cells has lost its tables: it raises an error."""
    run = trainer(tmp_path / "run")
    for report in run:
        if report.step == 4:
            break
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RuntimeError, match="has lost its checkpoint"):
        run.train()
