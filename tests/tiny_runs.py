"""Networks, data and runs so small that tests can make, kill and compare many of them.

The functions at the end run in processes of their own, which a test may kill.
"""

import csv
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mtanytime.__main__ import main
from mtanytime.backbones import Normalized
from mtanytime.data.batches import crop_flip
from mtanytime.data.images import ImageSet, Task
from mtanytime.training import run_folder
from mtanytime.training.stored_run import load_run
from mtanytime.training.trainer import Trainer
from mtanytime.transfer import PAPER, Lookahead, TransferTrainer

Begin = Callable[..., ForkServerProcess]
State = dict[str, Any]  # see `end_of`


def coloured(per_class: int = 8, classes: int = 3, size: int = 8, seed: int = 0) -> ImageSet:
    """Noise with a tint per class: trivially separable."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(per_class)
    images = torch.randint(0, 120, (len(labels), 3, size, size), generator=generator)
    images[torch.arange(len(labels)), labels % 3] += 100
    return ImageSet(images.to(torch.uint8), labels, tuple("abcdefghij"[:classes]), name="coloured")


def task(per_class: int = 8, seed: int = 0) -> Task:
    """Training and test images of the same three colours."""
    return Task(coloured(per_class, seed=2 * seed), coloured(5, seed=2 * seed + 1))


class Pairs(Dataset):
    """An `ImageSet` as a torch dataset: float images in [0, 1] and integer labels."""

    def __init__(self, data: ImageSet) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.data.images[index] / 255, int(self.data.labels[index])


def loader(data: ImageSet, batch_size: int = 5, **options: Any) -> DataLoader:
    """A shuffled `DataLoader`, whose last batch is smaller."""
    return DataLoader(Pairs(data), batch_size, shuffle=True, **options)


def network(classes: int = 3, width: int = 4, dropout: float = 0.0, seed: int = 0) -> nn.Sequential:
    """Conv-BN-ReLU-pool twice, then a linear layer; its layers are named "0", "1", …"""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(width, classes),
        )


def trainer(folder: Path | None = None, **options: Any) -> Trainer:
    """A run with all that is random (dropout, augmentation, order) and a smaller last batch."""
    settings = {"epochs": 3, "batch_size": 5, "lr": 0.05, "device": "cpu", "progress": False}
    settings |= {"augment": crop_flip(1), "validation": 0.25, "folder": folder, **options}
    model, data = settings.pop("model", None), settings.pop("data", None)
    return Trainer(network(dropout=0.3) if model is None else model, task() if data is None else data, **settings)


def transfer(folder: Path | None = None, **options: Any) -> TransferTrainer:
    """A transfer between two tiny networks, with a checkpoint after every step."""
    settings = PAPER | {"epochs": 4, "batch_size": 5, "lr": 0.05, "device": "cpu", "progress": False}
    settings |= {
        "validation": 0.25,
        "meta_lr": 0.01,
        "trace_every": 2,
        "augment": crop_flip(1),
        "checkpoint_seconds": 0.0,
    }
    settings |= {"source_layers": ["2", "6"], "target_layers": ["2", "6"], "folder": folder, **options}
    return TransferTrainer(network(5, width=3, seed=1).eval(), network(dropout=0.3), task(), **settings)


def state_of(run: Trainer) -> dict[str, Any]:
    """All that a run has computed, without its times."""
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in run.tables["log"]]
    parts = [module.state_dict() for module in (*run.modules.values(), *run.optimizers.values())]
    return dict(flattened({"parts": parts, "log": repr(rows), "best": run._best, "step": run.step}))


def end_of(folder: Path) -> State:
    """All that a run leaves in its folder, without its times: the checkpoint's values and the tables' rows as text."""
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    state = dict(flattened({key: value for key, value in checkpoint.items() if key != "seconds"}))
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        timed = [i for i, name in enumerate(rows[0]) if name == "seconds"]
        state[path.name] = [[cell for i, cell in enumerate(row) if i not in timed] for row in rows]
    return state


def flattened(state: Any, path: str = "") -> list[tuple[str, Any]]:
    """A nested state as pairs of path and value; a tensor as its type, shape and bytes."""
    if isinstance(state, Tensor):
        return [(path, (state.dtype, tuple(state.shape), state.numpy().tobytes()))]
    if isinstance(state, dict | list):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return [pair for key, value in items for pair in flattened(value, f"{path}/{key}")]
    return [(path, state)]


def wait_for_some(process: ForkServerProcess, folder: Path, moments: random.Random) -> None:
    """Wait until the process has written up to three more checkpoints, and some more milliseconds."""

    def mark() -> int:
        path = folder / "checkpoint.pt"
        return path.stat().st_mtime_ns if path.exists() else 0

    for _ in range(moments.randrange(4)):
        before = mark()
        while mark() == before and process.is_alive():
            time.sleep(0.001)
    process.join(moments.uniform(0.0, 0.03))


# Run in processes of their own.

MAKERS: dict[str, Callable[..., Trainer]] = {"trainer": trainer, "transfer": transfer}


def finish(maker: str, folder: Path, pipe: Connection | None = None) -> None:
    """Train to the end; says when it begins."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run where SIGINT is ignored
    run = MAKERS[maker](folder)
    if pipe is not None:
        pipe.send("begins")
    run.train()


def command_line(arguments: list[str]) -> None:
    """Run `python -m mtanytime` with these arguments, without its output."""
    torch.set_num_threads(1)
    with open(os.devnull, "w") as sys.stdout:
        sys.exit(main(arguments))


def finish_unless_killed_at(maker: str, folder: Path, moment: int) -> None:
    """Train, and die at the `moment`-th of the places where a death may do damage: within steps and within writes."""
    count = 0

    def place() -> bool:
        nonlocal count
        count += 1
        return count == moment

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if place():
                die()
            result = real(*args, **kwargs)
            if place():
                die()
            return result

        setattr(owner, name, call)

    real_save, real_append = torch.save, run_folder.RunFolder.append

    def save(value: Any, file: Any) -> None:
        start = file.tell()
        real_save(value, file)
        if place():  # half of it is on the disk
            file.truncate(start + (file.tell() - start) // 2)
            die()

    def append(self: run_folder.RunFolder, table: str, rows: list[run_folder.Row]) -> None:
        path = self.path / f"{table}.csv"
        before = path.stat().st_size if path.exists() else 0
        real_append(self, table, rows)
        if place():
            os.truncate(path, before + (path.stat().st_size - before) // 2)
            die()

    torch.save, run_folder.RunFolder.append = save, append
    for owner, name in (
        (os, "fsync"),
        (Path, "replace"),
        (Trainer, "_advance"),
        (torch.optim.SGD, "step"),
        (torch.optim.Adam, "step"),
        (Lookahead, "backward"),
    ):
        around(owner, name)
    finish(maker, folder)


def wait_in_the_middle(maker: str, folder: Path, pipe: Connection) -> None:
    """Do three steps, report that, wait for an answer, and train to the end."""
    torch.set_num_threads(1)
    run = MAKERS[maker](folder)
    for report in run:
        if report.step == 3:
            pipe.send(report.step)
            pipe.recv()
    run.train()


def complaints(pipe: Connection, options: list[dict[str, Any]]) -> None:
    """Send the errors for settings of the wrong type, which the type checker of the tests would refuse first."""
    for settings in options:
        try:
            trainer(**settings)
            pipe.send("nothing")
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")


def interrupt_in_step(run: Trainer, at: int, times: int = 1) -> None:
    """Have the process send itself real SIGINTs during the `at`-th call of the loss."""
    owner = getattr(run, "lookahead", run)  # whose loss a step calls
    real, calls = owner.loss, iter(range(1, 1_000_000))

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        if next(calls) == at:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return real(output, labels)

    object.__setattr__(owner, "loss", loss)  # a Lookahead is frozen


def save_beyond_the_limit(folder: Path, pipe: Connection) -> None:
    """Send the error of a checkpoint that cannot be written, because files may not become so large."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    held = run_folder.RunFolder(folder, {})
    with held.held():
        try:
            held.save({"weights": torch.zeros(100_000)})
        except OSError as error:
            pipe.send(str(error))


def store_logits(folder: Path, file: Path) -> None:
    """Load a run of a normalized `network` and store the logits of its best and last weights for the test images."""
    torch.set_num_threads(1)
    images, logits = task().test.images / 255, {}
    for weights in ("best", "last"):
        model = Normalized(network(seed=9), (0.0,) * 3, (1.0,) * 3, size=16)
        with torch.no_grad():
            logits[weights] = load_run(folder, model, weights=weights).network(images)
    torch.save(logits, file)
