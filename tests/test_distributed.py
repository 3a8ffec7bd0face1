"""Several processes train as one does on the whole batch, and say what is wrong where they cannot."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import distributed_runs
import filelock
import pytest
import torch
from project import ROOT


def places(count: int) -> list[dict[str, str]]:
    """What torchrun's agent sets in the environment of each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(count)]
    return [{key: str(value) for key, value in place.items()} for place in ranks]


def command_line(count: int, *arguments: str) -> list[tuple[int, str]]:
    """Exit status and output of each of several processes that run a command."""
    started = []
    for place in places(count):
        paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        env = os.environ | place | paths | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::FutureWarning"}
        command = [sys.executable, "-m", "mtanytime", *arguments]
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    ended = []
    for process in started:
        text, _ = process.communicate(timeout=300)
        ended.append((process.returncode, text))
    return ended


def launch(processes: ForkServerContext, count: int, folder: Path, *names: str) -> list[ForkServerProcess]:
    """Start processes as torchrun does, without its agent; rank r writes into log-r.txt."""
    started = []
    for rank, place in enumerate(places(count)):
        arguments = (place, folder / f"log-{rank}.txt", folder, *names)
        started.append(processes.Process(target=distributed_runs.as_rank, args=arguments))
        started[-1].start()
    return started


def finish(started: list[ForkServerProcess], folder: Path) -> list[tuple[int | None, str]]:
    """Exit status and output of each."""
    ended = []
    for rank, process in enumerate(started):
        process.join(300)
        ended.append((process.exitcode, (folder / f"log-{rank}.txt").read_text()))
    return ended


def run(processes: ForkServerContext, count: int, folder: Path, *names: str) -> None:
    """Run cases by several processes, which must succeed."""
    for status, text in finish(launch(processes, count, folder, *names), folder):
        assert status == 0, text


def once(factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], object]) -> Path:
    """A folder that is filled by the first of pytest's workers that needs it, and read by the others."""
    alone = os.environ.get("PYTEST_XDIST_WORKER") is None
    folder = (factory.getbasetemp() if alone else factory.getbasetemp().parent) / name
    with filelock.FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            folder.mkdir()
            fill(folder)
            (folder / "done").touch()
    return folder


@pytest.fixture(scope="module")
def two(processes: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases by two processes, what goes wrong with them, and a run stopped after its third step."""
    return once(tmp_path_factory, "two", lambda folder: run(processes, 2, folder, "cases", "errors", "stopped"))


@pytest.fixture(scope="module")
def three(processes: ForkServerContext, two: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases by three processes, which also continue the run that two have stopped."""

    def fill(folder: Path) -> None:
        shutil.copytree(two / "kept", folder / "kept")
        run(processes, 3, folder, "cases", "resumed")

    return once(tmp_path_factory, "three", fill)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """All cases by one process."""
    names = distributed_runs.CASES

    def fill(folder: Path) -> None:
        for name, make in names.items():
            torch.save(distributed_runs.outcome(make()), folder / f"{name}.pt")

    folder = once(tmp_path_factory, "one", fill)
    return {name: torch.load(folder / f"{name}.pt") for name in names}


def compare(found: dict, expected: dict) -> None:
    """Compare two outcomes; training accuracies are computed in float32."""
    torch.testing.assert_close(found["states"], expected["states"], rtol=0, atol=1e-10)
    torch.testing.assert_close(found["meta-gradient"], expected["meta-gradient"], rtol=0, atol=1e-10)
    torch.testing.assert_close(found["accuracies"], expected["accuracies"], rtol=0, atol=1e-12)
    assert found["tables"].keys() == expected["tables"].keys()
    for name, rows in expected["tables"].items():
        close = {"rtol": 0, "atol": 1e-7, "equal_nan": True}
        torch.testing.assert_close(torch.tensor(found["tables"][name]), torch.tensor(rows), **close)


@pytest.mark.parametrize("case", distributed_runs.CASES)
def test_several_processes_equal_one(case: str, one: dict[str, dict], two: Path, three: Path) -> None:
    """The point of it all: N processes do what one does on the whole batch, φ and batch norm included, to rounding."""
    for folder in (two, three):
        compare(torch.load(folder / f"{case}.pt"), one[case])


def test_a_run_changes_its_number_of_processes(one: dict[str, dict], two: Path, three: Path, tmp_path: Path) -> None:
    """A job is often continued on other machines: two processes begin, three or one go on."""
    compare(torch.load(three / "resumed.pt"), one["plain-norms"])
    shutil.copytree(two / "kept", tmp_path / "kept")
    trainer = distributed_runs.plain(True, tmp_path / "kept")
    assert trainer.step == 3
    compare(distributed_runs.outcome(trainer), one["plain-norms"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("settings", ["ValueError: lr: expected 0.05 in every process, as in process 0, got 1.05 in process 1"] * 2),
        ("data", ["ValueError: train: expected "] * 2),
        (
            "batch",
            ["ValueError: batch_size: expected batches of 2 images or more, one per process, got one of 1; "] * 2,
        ),
        ("weights", ["RuntimeError: the processes' weights differ: "] * 2),
        ("skipping", ["none", "none"]),  # layers that one process alone skips at random are no error
        ("occupied", ["ValueError: folder: expected an empty folder", "RuntimeError: process 0 stopped: folder: "]),
        ("unlike", ["none", "none"]),
        ("damaged", ["ValueError: ", "RuntimeError: process 0 stopped: "]),
        ("loss", ["ValueError: loss: expected a mean over the images, which several processes can share, got "] * 2),
        ("diverged", ["FloatingPointError: loss is nan at step "] * 2),
    ],
)
def test_what_goes_wrong_is_said_in_every_process(name: str, expected: list[str], two: Path) -> None:
    """A process that waits for another one in vain would look as if it were working."""
    found = json.loads((two / f"{name}.json").read_text())
    assert [text[: len(start)] for text, start in zip(found, expected, strict=True)] == expected


@pytest.fixture
def endless(processes: ForkServerContext, tmp_path: Path) -> Iterator[tuple[list[ForkServerProcess], Path]]:
    """Two processes that train until they are stopped."""
    started = launch(processes, 2, tmp_path, "endless")
    until = time.monotonic() + 120
    while not all((tmp_path / f"{rank}.pid").exists() for rank in range(2)):
        assert time.monotonic() < until
        assert all(process.exitcode is None for process in started), finish(started, tmp_path)
        time.sleep(0.05)
    yield started, tmp_path
    for process in started:
        process.kill()
        process.join()


def test_an_interrupt_stops_all_after_the_same_step(endless: tuple[list[ForkServerProcess], Path]) -> None:
    """Signals reach processes at different moments; one that stops early would leave the others waiting."""
    started, folder = endless
    os.kill(started[1].pid, signal.SIGINT)  # to one of them only
    ended = finish(started, folder)
    assert all("KeyboardInterrupt" in text and "lost another" not in text for _, text in ended), ended
    assert torch.load(folder / "endless" / "checkpoint.pt")["step"] >= 5


def test_a_lost_process_is_reported_and_the_run_goes_on(endless: tuple[list[ForkServerProcess], Path]) -> None:
    """Machines fail; the others must not wait for ever, and what was trained must be there."""
    started, folder = endless
    started[1].kill()
    (status, text), _ = finish(started, folder)
    assert status == 1
    assert "process 0 of 2 lost another one" in text
    trainer = distributed_runs.plain(True, folder / "endless", epochs=100_000, validation=None, checkpoint_seconds=0.1)
    assert trainer.step >= 1
    assert next(iter(trainer)).step == trainer.step


def test_the_command_line_under_torchrun(tmp_path: Path) -> None:
    """`torchrun -m mtanytime run …` is how a cluster's jobs call it; the first process alone writes and prints."""
    settings = ["letters_per_class=8", "epochs=1", "methods=l2t", "source_depth=8", "digits_per_class=4"]
    options = ["run", "smoke", "--out", str(tmp_path / "out"), "--csv", str(tmp_path / "a.csv"), "--set", *settings]
    ended = command_line(2, *options)
    assert [status for status, _ in ended] == [0, 0], ended
    assert "l2t" in ended[0][1]
    assert ended[1][1] == ""
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 3  # the command, the header and a row


def test_a_bad_setting_under_torchrun(tmp_path: Path) -> None:
    """Every process meets it; their lines must not run into each other, and the first one's reads as ever."""
    options = ["run", "smoke", "--out", str(tmp_path / "out"), "--set", "epoch=1"]
    ended = command_line(2, *options)
    message = "setting: expected one of the recipe's settings, got 'epoch'; the nearest is 'epochs'\n"
    assert ended == [(1, f"error: {message}"), (1, f"error in process 1: {message}")]
