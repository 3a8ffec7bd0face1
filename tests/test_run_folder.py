"""A run's folder: nothing is lost whenever a run dies, and nothing foreign is taken for a run."""

import errno
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_runs
import torch
from tiny_runs import end_of, interrupt_in_step, trainer, transfer
from torch import nn

from mtanytime.training.identity import fingerprint
from mtanytime.training.run_folder import RunFolder
from mtanytime.training.trainer import Trainer
from mtanytime.transfer import Lookahead

CONFIG = {"trainer": "Trainer", "lr": 0.1}
Begin = Callable[..., ForkServerProcess]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a transfer leaves that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    transfer(folder).train()
    return end_of(folder)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Where processes that train begin: torch is imported once for all of them."""
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent)]))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tiny_runs"])
        forkserver.ensure_running()
    return context


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes begun here: sums over more threads differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def begin(processes: ForkServerContext) -> Iterator[Begin]:
    """`begin(function, *arguments)` starts a process; it does not outlive the test."""
    begun: list[ForkServerProcess] = []

    def start(function: Callable[..., object], *arguments: object) -> ForkServerProcess:
        begun.append(processes.Process(target=function, args=arguments))
        begun[-1].start()
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.join()
        process.close()


def wait_for_some(process: ForkServerProcess, folder: Path, moments: random.Random) -> None:
    """Let the process write up to three more checkpoints, and some more milliseconds."""

    def mark() -> int:
        path = folder / "checkpoint.pt"
        return path.stat().st_mtime_ns if path.exists() else 0

    for _ in range(moments.randrange(4)):
        before = mark()
        while mark() == before and process.is_alive():
            time.sleep(0.001)
    process.join(moments.uniform(0.0, 0.03))


# A run that dies.


def test_killed_at_random_moments(tmp_path: Path, whole: dict[str, Any], begin: Begin) -> None:
    """Machines die at any moment: a run killed again and again ends bit for bit as one that was left alone."""
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
    assert end_of(tmp_path / "run") == whole


def test_killed_within_every_kind_of_write_and_step(tmp_path: Path, whole: dict[str, Any], begin: Begin) -> None:
    """Random kills miss short moments: half a checkpoint, half a line, before and after a rename, amid a lookahead."""
    for place in range(1, 100):  # the folder's making and the first step first, as they take some twenty
        process = begin(tiny_runs.finish_unless_killed_at, "transfer", tmp_path / "run", place)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert place > 20
    assert end_of(tmp_path / "run") == whole


def test_interrupted_from_outside(tmp_path: Path, whole: dict[str, Any], begin: Begin) -> None:
    """Ctrl-C at any moment ends the process in good order, and the run resumes bit for bit."""
    moments, interrupted = random.Random(1), 0
    ours, theirs = multiprocessing.Pipe()
    while True:
        process = begin(tiny_runs.finish, "transfer", tmp_path / "run", theirs)
        ours.recv()
        wait_for_some(process, tmp_path / "run", moments)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGINT)
            process.join()
        assert not list((tmp_path / "run").glob("*.tmp"))
        if process.exitcode != 1:  # it had come to its end
            break
        interrupted += 1
    assert interrupted > 2
    transfer(tmp_path / "run").train()
    assert end_of(tmp_path / "run") == whole


def test_interrupt_waits_for_the_end_of_the_step(tmp_path: Path, whole: dict[str, Any]) -> None:
    """A notebook's stop button within a step loses nothing: the step is finished, kept, and gone on from."""
    run, handler = transfer(tmp_path / "run", checkpoint_seconds=60.0), signal.getsignal(signal.SIGINT)
    interrupt_in_step(run, at=8)  # the outer loss of the third step or so
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert signal.getsignal(signal.SIGINT) is handler
    assert 0 < run.step < run.steps
    assert len(run.tables["log"]) == run.step
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == run.step
    run.train()
    assert end_of(tmp_path / "run") == whole


def test_second_interrupt_goes_through(tmp_path: Path, whole: dict[str, Any]) -> None:
    """Who presses stop twice wants out of the step at once; the run goes back to its last checkpoint."""
    run = transfer(tmp_path / "run")
    interrupt_in_step(run, at=8, times=2)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    with pytest.raises(RuntimeError, match="wanted a finished one"):
        run.result()
    run.train()
    assert end_of(tmp_path / "run") == whole


def test_own_handlers_of_interrupts_are_respected(tmp_path: Path) -> None:
    """A program that handles, or ignores, SIGINT itself gets just that, after the step."""
    calls: list[int] = []
    for handler, expected in ((lambda *_: calls.append(1), [1]), (signal.SIG_IGN, [])):
        calls.clear()
        before = signal.signal(signal.SIGINT, handler)
        try:
            run = trainer()
            interrupt_in_step(run, at=2)
            run.train()
            assert signal.getsignal(signal.SIGINT) is handler
        finally:
            signal.signal(signal.SIGINT, before)
        assert calls == expected


def test_leaving_the_loop_and_going_on(tmp_path: Path, whole: dict[str, Any]) -> None:
    """A notebook's loop with `break`, gone on with the same trainer and then a new one, changes no bit."""
    folder = tmp_path / "run"
    run = transfer(folder, checkpoint_seconds=60.0)
    for at in (1, 6, 8):  # amid the first epoch, the second, and at an epoch's end
        for report in run:
            if report.step == at:
                break
        assert run.step == at
    run = transfer(folder)
    for report in run:
        if report.step == 11:
            break
    transfer(folder).train()
    assert end_of(folder) == whole


def test_two_trainers_take_turns(tmp_path: Path, whole: dict[str, Any]) -> None:
    """Two notebooks on one run: a trainer sees that another one went on, and goes on from there."""
    first, second = transfer(tmp_path / "run"), transfer(tmp_path / "run")
    for run, at in ((first, 3), (second, 6), (first, 7)):
        for report in run:
            if report.step == at:
                break
    second.train()
    assert end_of(tmp_path / "run") == whole
    assert first.train().log.equals(second.result().log)


def test_an_error_in_a_step_goes_back_to_the_checkpoint(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that broke off, say for want of memory, leaves half-changed weights: they must not be gone on from."""
    run = transfer(tmp_path / "run", checkpoint_seconds=60.0)
    for report in run:
        if report.step == 5:
            break
    with monkeypatch.context() as patch:
        patch.setattr(Lookahead, "backward", None)
        with pytest.raises(TypeError):
            next(iter(run))
    run.train()
    assert end_of(tmp_path / "run") == whole


def test_left_overs_of_a_death(tmp_path: Path, whole: dict[str, Any]) -> None:
    """What a death may leave is no obstacle: temporary files, half a line, rows of steps that come again."""
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
    assert end_of(folder) == whole


@pytest.mark.parametrize("left", [(), (".lock",), (".lock", "config.json.tmp")], ids=["nothing", "lock", "config"])
def test_folder_of_a_run_that_died_at_once(tmp_path: Path, whole: dict[str, Any], left: tuple[str, ...]) -> None:
    """A run that died before its first checkpoint starts afresh in the same folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in left:
        (folder / name).write_text("")
    transfer(folder).train()
    assert end_of(folder) == whole


def test_tables_before_the_first_checkpoint(tmp_path: Path, whole: dict[str, Any]) -> None:
    """An empty table, or one of steps that no checkpoint covers, is written anew."""
    folder = tmp_path / "run"
    run = transfer(folder)
    next(iter(run))
    (folder / "checkpoint.pt").unlink()
    (folder / "trace.csv").write_text("")
    (folder / "channels.csv").write_text("step,sou")
    transfer(folder).train()
    assert end_of(folder) == whole


def test_a_finished_run_is_read_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running a finished notebook again costs nothing: the same result, with no step and no evaluation."""
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


def test_killed_before_its_result_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the last step and the test evaluation lies a moment too: the result is read later, and is the same."""
    expected = transfer(tmp_path / "whole").train()
    for _ in transfer(tmp_path / "run"):
        pass
    result = transfer(tmp_path / "run").train()
    assert (result.accuracy, result.last_accuracy) == (expected.accuracy, expected.last_accuracy)
    assert end_of(tmp_path / "run") == end_of(tmp_path / "whole")


def test_seconds_go_on(tmp_path: Path) -> None:
    """Training time is the sum over all sittings, without what lies between."""
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


def test_a_second_process_is_refused(tmp_path: Path, whole: dict[str, Any], begin: Begin) -> None:
    """Two processes that write one run would spoil it: the second is refused, and the first goes on unharmed."""
    ours, theirs = multiprocessing.Pipe()
    process = begin(tiny_runs.wait_in_the_middle, "transfer", tmp_path / "run", theirs)
    assert ours.recv() == 3
    second = transfer(tmp_path / "run")
    with pytest.raises(
        RuntimeError, match=r"another process or loop is training in .*run; wanted the folder to ourselves"
    ):
        second.train()
    ours.send("go on")
    process.join()
    assert process.exitcode == 0
    assert end_of(tmp_path / "run") == whole
    second.train()  # finished by the other one meanwhile
    assert end_of(tmp_path / "run") == whole


def test_another_run_began_meanwhile(tmp_path: Path) -> None:
    """Two runs with different settings made for one new folder: whoever comes second is refused."""
    first, second = trainer(tmp_path / "run"), trainer(tmp_path / "run", lr=0.5)
    first.train()
    with pytest.raises(ValueError, match=r"already holds another run \(lr: there 0.05, here 0.5\)"):
        second.train()


def test_the_folder_is_given_back_after_errors(tmp_path: Path) -> None:
    """A lock that outlives an error would lock the notebook out of its own run."""
    run = trainer(tmp_path / "run")
    run.loss = None
    for _ in range(2):
        with pytest.raises(TypeError):
            run.train()
    trainer(tmp_path / "run").train()


def test_a_deleted_folder_is_noticed(tmp_path: Path) -> None:
    """A run whose folder was deleted between two cells has lost its tables: it says so and doesn't go on silently."""
    run = trainer(tmp_path / "run")
    for report in run:
        if report.step == 4:
            break
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RuntimeError, match="has lost its checkpoint"):
        run.train()


# Disks.


@pytest.mark.parametrize("where", ["torch.save", "fsync", "table"])
def test_full_disk(tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A full disk stops the run with a clear error; the last good checkpoint stays, whole, and the run resumes."""
    folder = tmp_path / "run"
    run = transfer(folder)
    for report in run:
        if report.step == 5:
            break
    before = (folder / "checkpoint.pt").read_bytes()
    no_space = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full(*_: object) -> None:
        raise no_space

    def save(_state: object, file: Any) -> None:
        try:
            file.write(b"half of it")
            raise no_space
        except OSError:  # as torch does: its writer fails anew when it closes
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904

    with monkeypatch.context() as patch:
        if where == "torch.save":
            patch.setattr(torch, "save", save)
        elif where == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(RunFolder, "append", full)
        wanted = "No space left" if where == "table" else r"could not write a checkpoint \(No space left.*is kept.*run"
        with pytest.raises(OSError, match=wanted) as caught:
            run.train()
        assert caught.value.errno == errno.ENOSPC
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert not list(folder.glob("*.tmp"))
    run.train()  # with space again, the same trainer goes on
    assert end_of(folder) == whole


def test_a_checkpoint_reaches_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut keeps only what was synchronised: first the tables, then the new file whole, then the rename."""
    folder, synced = RunFolder(tmp_path, CONFIG), []
    fsync, replace = os.fsync, Path.replace

    def state(path: Path) -> tuple[int, int]:
        return path.stat().st_ino, path.stat().st_size

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        synced.append((status.st_ino, status.st_size))

    def checked(self: Path, target: Path) -> Path:
        assert synced == [state(tmp_path / "log.csv"), state(self)]
        return replace(self, target)

    with folder.held():
        folder.append("log", [{"step": 1}])
        folder.save({"step": 1})
        folder.append("log", [{"step": 2}])
        with (tmp_path / "checkpoint.pt").open("rb") as old, monkeypatch.context() as patch:
            patch.setattr(os, "fsync", noted)
            patch.setattr(Path, "replace", checked)
            folder.save({"step": 2})
            assert torch.load(old, weights_only=True)["step"] == 1
    assert folder.load()["step"] == 2


def test_a_really_full_file(tmp_path: Path, begin: Begin) -> None:
    """torch hides a failed write behind an error about file positions; ours names the disk's."""
    folder = RunFolder(tmp_path / "run", CONFIG)
    with folder.held():
        folder.save({"step": 0})
        ours, theirs = multiprocessing.Pipe()
        begin(tiny_runs.save_beyond_the_limit, tmp_path / "other", theirs)
        message = ours.recv()
    assert "could not write a checkpoint (File too large); there is none before it" in message
    assert not list((tmp_path / "other").glob("checkpoint*"))


# Foreign things.


def refused(folder: Path, match: str, **options: Any) -> None:
    """Making a trainer there is refused, and changes nothing."""

    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = content()
    with pytest.raises(ValueError, match=match):
        trainer(folder, **options)
    assert content() == before


def test_another_run_is_named(tmp_path: Path) -> None:
    """Whoever changed a setting and forgot the folder learns which one."""
    trainer(tmp_path).train()
    refused(
        tmp_path, r"already holds another run \(epochs: there 3, here 4; lr: there 0.05, here 0.01\)", epochs=4, lr=0.01
    )
    refused(tmp_path, "model: there 'Sequential", model=tiny_runs.network(dropout=0.4))
    refused(tmp_path, "train: there 'coloured: 18 images", data=tiny_runs.task(seed=1))
    refused(tmp_path, "loss: there 'cross_entropy'.*label_smoothing", loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    refused(tmp_path, "augment: there .*'padding': 1.* here .*'padding': 2", augment=tiny_runs.crop_flip(2))
    with pytest.raises(ValueError, match="trainer: there 'Trainer', here 'TransferTrainer'"):
        transfer(tmp_path)


def test_foreign_files(tmp_path: Path) -> None:
    """A folder with somebody's files, or somebody's config.json, is not ours to write in."""
    (tmp_path / "thesis.tex").write_text("important")
    refused(tmp_path, r"holds no run but 'thesis.tex'; wanted an empty folder or a run's")
    for text, reason in (
        ("{", "is not the record of a run"),
        ("[1, 2]", "is not the record"),
        ('{"a": 1}', "trainer: there None"),
    ):
        (tmp_path / "config.json").write_text(text)
        refused(tmp_path, reason)
    refused(tmp_path / "thesis.tex", "wanted a folder for the run.*thesis.tex is a file")
    refused(tmp_path / "thesis.tex" / "run", "wanted a folder for the run.*thesis.tex is a file")


def test_a_place_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unwritable place is found when the trainer is made, not after the first epoch."""
    denied = tmp_path / "denied"
    denied.mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != denied)  # root may write anywhere
    with pytest.raises(PermissionError, match="denied cannot be written to"):
        trainer(denied / "deep" / "run")
    assert not (denied / "deep").exists()


def test_broken_checkpoints(tmp_path: Path) -> None:
    """A truncated, foreign or unfit checkpoint is refused with its reason, and none of its code runs."""
    trainer(tmp_path).train()
    path, mark = tmp_path / "checkpoint.pt", tmp_path.parent / "code ran"
    good = path.read_bytes()
    content = torch.load(path, weights_only=True)

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(mark),)

    for size in (0, 100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:size])
        refused(tmp_path, r"checkpoint.pt is truncated or foreign \(.*\); wanted a checkpoint that this library wrote")
    for foreign in (torch.zeros(3), {"model": tiny_runs.network().state_dict()}, [1, 2]):
        torch.save(foreign, path)
        refused(tmp_path, "checkpoint.pt is foreign; wanted a checkpoint that this library wrote")
    path.write_bytes(pickle.dumps(Code()))
    refused(tmp_path, "is truncated or foreign")
    torch.save({**content, "extra": Code()}, path)
    refused(tmp_path, "is truncated or foreign")
    assert not mark.exists()

    def unfit(match: str, **changed: Any) -> None:
        torch.save({**content, **changed}, path)
        refused(tmp_path, f"does not fit this run: {match}")

    unfit("[^$]*size mismatch for 0.weight", modules={"model": tiny_runs.network(width=5).state_dict()})
    unfit("'model'", modules={})
    unfit("'optimizer'", optimizers={})
    states = content["optimizers"]["optimizer"]["state"]
    wrong = {**content["optimizers"]["optimizer"], "state": {**states, 0: {"momentum_buffer": torch.zeros(2)}}}
    unfit(r"momentum_buffer is \(2,\), wanted \(4, 3, 3, 3\)", optimizers={"optimizer": wrong})
    torch.save({"format": content["format"]}, path)
    refused(tmp_path, "does not fit this run")


def test_foreign_tables(tmp_path: Path) -> None:
    """A table that somebody edited is refused with the reason."""
    trainer(tmp_path).train()
    for text in ("epoch,step\n1,1\n", "step,loss\none,2\n"):
        (tmp_path / "log.csv").write_text(text)
        refused(tmp_path, "log.csv is not a table of this library")


# The parts.


def test_rows_are_read_back_as_they_were(tmp_path: Path) -> None:
    """Layers called "0", "1.10" or "null" stay names, numbers stay exact, and what is missing stays missing."""
    rows = [
        {"step": 1, "source": "0", "target": "1.10", "weight": 0.1 + 0.2, "val": float("nan"), "n": 3},
        {"step": 1, "source": "null", "target": "1.1", "weight": 1e-300, "val": 1.0, "n": 4},
        {"step": 2, "source": "a/b, c", "target": "1e5", "weight": float("inf"), "val": 5e-324, "n": 5},
    ]
    folder = RunFolder(tmp_path / "run", CONFIG)
    with folder.held():
        folder.append("trace", rows[:1])
        folder.append("trace", rows[1:])
    assert repr(folder.read("trace", 2)) == repr(rows)
    assert repr(folder.read("trace", 1)) == repr(rows[:2])
    assert folder.read("none", 2) == []


def test_trim_drops_only_what_comes_again(tmp_path: Path) -> None:
    """Rows up to the checkpoint are never touched; reading touches nothing at all."""
    folder = RunFolder(tmp_path / "run", CONFIG)
    with folder.held():
        folder.append("log", [{"step": step, "loss": 0.5} for step in (1, 2, 3)])
    path = tmp_path / "run" / "log.csv"
    text = path.read_text()
    path.write_text(text + "4,0.")
    assert len(folder.read("log", 3)) == 3
    assert path.read_text() == text + "4,0."
    folder.trim("log", 3)
    assert path.read_text() == text
    folder.trim("log", 1)
    assert path.read_text() == "step,loss\n1,0.5\n"
    folder.trim("none", 1)


def test_nothing_is_written_before_the_folder_is_held(tmp_path: Path) -> None:
    """Making a trainer, or trying one with bad settings, leaves no trace on the disk."""
    folder = RunFolder(tmp_path / "a" / "run", CONFIG)
    assert folder.load() is None
    assert not (tmp_path / "a").exists()
    with folder.held():
        assert json.loads((tmp_path / "a" / "run" / "config.json").read_text()) == CONFIG
    RunFolder(tmp_path / "a" / "run", CONFIG)


def test_numbers_of_other_libraries_in_the_settings(tmp_path: Path) -> None:
    """A seed from numpy is recorded as the number it is."""
    seed = torch.tensor([7]).numpy()[0]
    with RunFolder(tmp_path, {"seed": seed}).held():
        pass
    RunFolder(tmp_path, {"seed": 7})


def test_fingerprint_tells_tensors_apart() -> None:
    """One changed pixel, name, shape or type is another run; scalars and empty tensors have fingerprints too."""
    base = torch.arange(6.0)
    prints = [
        fingerprint(tensors)
        for tensors in (
            {"a": base},
            {"b": base},
            {"a": base.reshape(2, 3)},
            {"a": base.double()},
            {"a": base.index_fill(0, torch.tensor(5), 5.0001)},
            {"a": torch.tensor(3)},
            {"a": torch.tensor([])},
            {},
        )
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint({"a": base.reshape(2, 3).t()}) == fingerprint({"a": base.reshape(2, 3).t().contiguous()})


def test_closing_an_iterator_closes_the_files(tmp_path: Path) -> None:
    """An iterator that is thrown away gives its folder back at once."""
    run = trainer(tmp_path / "run")
    with closing(iter(run)) as reports:
        next(reports)
    with trainer(tmp_path / "run").folder.held():
        pass
