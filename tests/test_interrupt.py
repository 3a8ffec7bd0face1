"""Ctrl-C and the stop button of a notebook: the step is finished, and the run can continue."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_runs
import torch
from tiny_runs import Begin, State, end_of, interrupt_in_step, state_of, trainer, transfer, wait_for_some

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts() -> Iterator[None]:
    """Python's own handler of SIGINT, which is missing where SIGINT is ignored when Python starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_these_tests_pass_where_interrupts_are_ignored() -> None:
    """A background job of a script starts with SIGINT ignored, and so may the tests, in their processes too."""
    command = "trap '' INT; exec \"$@\""
    tests = ["-k", "from_outside or waits_for_the_end", "-o", "addopts=", "-p", "no:cacheprovider", __file__]
    arguments = ["bash", "-c", command, "bash", sys.executable, "-m", "pytest", *tests]
    done = subprocess.run(arguments, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_interrupted_from_outside(tmp_path: Path, uninterrupted: State, begin: Begin) -> None:
    """Ctrl-C at any moment ends the process properly, and the run resumes bit for bit."""
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
        if process.exitcode != 1:  # it had finished
            break
        interrupted += 1
    assert interrupted > 2
    transfer(tmp_path / "run").train()
    assert end_of(tmp_path / "run") == uninterrupted


def test_interrupt_waits_for_the_end_of_the_step(tmp_path: Path, uninterrupted: State) -> None:
    """A notebook's stop button within a step loses nothing: the step is finished and saved, and the run continues."""
    run, handler = transfer(tmp_path / "run", checkpoint_seconds=60.0), signal.getsignal(signal.SIGINT)
    interrupt_in_step(run, at=8)  # in about the third step, the outer loss
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert signal.getsignal(signal.SIGINT) is handler
    assert 0 < run.step < run.steps
    assert len(run.tables["log"]) == run.step
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == run.step
    run.train()
    assert end_of(tmp_path / "run") == uninterrupted


def test_second_interrupt_takes_effect_at_once(tmp_path: Path, uninterrupted: State) -> None:
    """A second interrupt ends the step at once, and the run returns to its last checkpoint."""
    run = transfer(tmp_path / "run")
    interrupt_in_step(run, at=8, times=2)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    with pytest.raises(RuntimeError, match="finish it first"):
        run.result()
    run.train()
    assert end_of(tmp_path / "run") == uninterrupted


def test_own_handlers_of_interrupts_are_respected(tmp_path: Path) -> None:
    """A handler of the program's own is called after the step, and an ignored SIGINT stays ignored."""
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


def test_training_in_another_thread() -> None:
    """Training works in another thread too, where Python allows no signal handlers."""
    expected, run = trainer(), trainer()
    expected.train()
    thread = threading.Thread(target=run.train)
    thread.start()
    thread.join()
    assert state_of(run) == state_of(expected)
