"""Trainings that test_distributed.py runs by one process and by several.

Each case's weights, tables and accuracies go into FOLDER/CASE.pt, and the error of each process that a bad input gives
into FOLDER/NAME.json, written by the first process.
"""

import json
import os
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tiny
import torch
import transfer_runs
from torch import Tensor, nn

from mtanytime.anytime.trainer import AnytimeTrainer
from mtanytime.data.batches import crop_flip
from mtanytime.training.distributed import Processes, start
from mtanytime.training.trainer import Trainer
from mtanytime.transfer import PAPER, FreshBatch, MapSearch, trial_search, trials
from mtanytime.transfer.baselines import BaselineTrainer


def without_norms(network: nn.Module) -> nn.Module:
    """The network with an identity in place of each batch norm."""
    for module in list(network.modules()):
        for name, part in module.named_children():
            if isinstance(part, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return network


class Exits(nn.Module):
    """Two exits of a TinyNet, the first of which reads its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.early = tiny.TinyNet(), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits of both exits."""
        return [self.early(self.body.first(images).mean(dim=(2, 3))), self.body(images)]


def network(kind: Callable[[], nn.Module], norms: bool) -> nn.Module:
    """A network in float64 with weights from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = kind()
    return (made if norms else without_norms(made)).double()


def settings(**options: Any) -> dict[str, Any]:
    """Two epochs of batches of 7, 7 and 4 images, which three processes share unevenly."""
    return {"epochs": 2, "batch_size": 7, "lr": 0.05, "seed": 3, "device": "cpu", "progress": False} | options


def plain(norms: bool, folder: Path | None = None, **options: Any) -> Trainer:
    """One network on one task, with augmentation and validation."""
    others = {"augment": crop_flip(1), "validation": tiny.images(7, seed=5), "folder": folder} | options
    return Trainer(network(tiny.TinyNet, norms), tiny.images(18), tiny.images(11, seed=6), **settings(**others))


def anytime(norms: bool) -> AnytimeTrainer:
    """Both exits of a network."""
    return AnytimeTrainer(network(Exits, norms), tiny.images(18), tiny.images(11, seed=6), **settings())


def transfer(norms: bool, **options: Any) -> Any:
    """L2T-ww with views and meta-networks that have left their even start, for one epoch."""
    source, target = network(partial(tiny.TinyNet, 5), True).eval(), network(tiny.TinyNet, norms)
    others = settings(views=5, trace_every=2, epochs=1) | options
    data = {"data": tiny.images(18), "test": tiny.images(11, seed=6)}
    return transfer_runs.stirred(transfer_runs.transfer(source=source, target=target, **data, **others))


def baseline(norms: bool) -> BaselineTrainer:
    """Learning without forgetting and attention transfer on labelled images, views and unlabelled ones."""
    source, target = network(partial(tiny.TinyNet, 5), True).eval(), network(tiny.TinyNet, norms)
    extra = {"views": 5, "unlabelled": tiny.images(12, seed=9), "unlabelled_per_step": 6}

    return BaselineTrainer(source, target, tiny.images(18), terms={"lwf": 1.0, "at": 10.0}, **extra, **settings())


CASES: dict[str, Callable[[], Any]] = {
    "plain": partial(plain, False),
    "plain-norms": partial(plain, True),
    "anytime": partial(anytime, False),
    "anytime-norms": partial(anytime, True),
    "transfer": partial(transfer, False),
    "transfer-norms": partial(transfer, True),
    "recompute-norms": partial(transfer, True, mode="recompute", stages=2, inner_steps=3),
    "unroll-norms": partial(transfer, True, mode="unroll", views=None),
    "normalized": partial(transfer, False, normalize_weights=True, meta_clip=0.1, meta_every=2),
    "first-order": partial(transfer, False, first_order=True),
    # batches of 7 and 4, and fresh ones of 8, which two and three processes share in different parts
    "fresh": lambda: transfer(False, outer=FreshBatch(tiny.images(12, seed=8), 8)),
    "unlabelled": lambda: transfer(True, unlabelled=tiny.images(12, seed=9), unlabelled_per_step=6),
    "baseline": lambda: baseline(True),
}


def outcome(trainer: Trainer) -> dict[str, Any]:
    """Weights, tables without seconds, and accuracies of a run, as plain values."""
    gradients = []
    if getattr(trainer, "meta_optimizer", None) is not None:  # of one batch, which every process has
        pixels = torch.rand(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        with torch.random.fork_rng():
            torch.manual_seed(0)  # of fresh batches
            gradients = trainer.meta_gradient(pixels, torch.arange(5) % 3)
    result = trainer.train()
    tables = {name: table.drop(columns="seconds", errors="ignore") for name, table in result.tables.items()}
    return {
        "states": {name: module.state_dict() for name, module in trainer.modules.items()},
        "tables": {name: table.select_dtypes("number").to_numpy().tolist() for name, table in tables.items()},
        "meta-gradient": gradients,
        "accuracies": [result.accuracy, result.last_accuracy],
    }


class Forgetful(Trainer):
    """A trainer whose own step forgets the other processes."""

    def train_on_batch(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """One step on this process's images alone."""
        loss = self.loss(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}


class Skipping(nn.Module):
    """A network of which each process skips another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3, bias=False)])

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.layers[Processes().rank % 2](images.mean(dim=(2, 3)))


def skipping() -> None:
    """Train it: a process without a gradient has the part zero of its sum."""
    trainer = Trainer(network(Skipping, True), tiny.images(18), **settings())
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert not any(torch.equal(*pair) for pair in zip(before, trainer.model.parameters(), strict=True))


def forgetful() -> None:
    """Train with it."""
    Forgetful(network(tiny.TinyNet, True), tiny.images(18), **settings()).train()


def occupied(folder: Path) -> None:
    """A folder that holds something else."""
    folder.mkdir(exist_ok=True)
    (folder / "notes.txt").write_text("mine")
    plain(True, folder)


def search(folder: Path | None = None) -> MapSearch:
    """Which pairs of layers to match, by four trials of two pairs."""
    source, target = (network(kind, True) for kind in (partial(tiny.TinyNet, 5), tiny.TinyNet))
    layers = {f"{name}_layers": ["first", "second"] for name in ("source", "target")}
    options = PAPER | layers | {"what": False, "where": "off", "folder": folder} | settings(epochs=1)
    return trial_search(source.eval(), target, tiny.images(18), trials=4, kept=1, **options)


def unlike() -> None:
    """A search by processes whose machines compute other last digits: all of them have the first one's losses."""
    loss, rank = trials.calibrated_cross_entropy, Processes().rank
    trials.calibrated_cross_entropy = lambda *batch: loss(*batch) * (1 + 1e-3 * rank)
    try:
        found = search()
    finally:
        trials.calibrated_cross_entropy = loss
    losses = Processes().gathered([found.losses, found.map])
    assert losses == losses[:1] * Processes().count


def damaged(folder: Path) -> None:
    """A search whose folder holds a file that a loss of power left empty."""
    folder.mkdir(exist_ok=True)
    (folder / "trial0.json").touch()
    search(folder)


def errors(folder: Path, rank: int) -> dict[str, Callable[[], Any]]:
    """What fails, by name."""
    return {
        "settings": lambda: plain(True, lr=0.05 + rank),
        "data": lambda: Trainer(network(tiny.TinyNet, True), tiny.images(18, seed=rank), **settings()),
        "batch": lambda: plain(True, batch_size=17),
        "weights": forgetful,
        "skipping": skipping,
        "loss": lambda: plain(True, loss=nn.CrossEntropyLoss(reduction="sum")),
        "occupied": lambda: occupied(folder / "occupied"),
        "unlike": unlike,
        "damaged": lambda: damaged(folder / "damaged"),
        "diverged": lambda: plain(True, lr=1e30).train(),
    }


def stopped(folder: Path) -> None:
    """A run that is left after its third step."""
    for report in plain(True, folder / "kept"):
        if report.step == 3:
            break


def endless(folder: Path) -> None:
    """A run that goes on until it is stopped, and names this process's id once it has stored some steps."""
    trainer = plain(True, folder / "endless", epochs=100_000, validation=None, checkpoint_seconds=0.1)
    began, place = time.monotonic(), folder / f"{trainer.processes.rank}.pid"
    for report in trainer:
        if report.step >= 5 and time.monotonic() - began > 0.5 and not place.exists():
            place.write_text(str(os.getpid()))


def main(folder: Path, names: Sequence[str]) -> None:
    """Do what is named: a case, "cases", "errors", or one of the runs above."""
    with start() as processes:
        for name in names:
            for case in CASES if name == "cases" else [name] if name in CASES else []:
                found = outcome(CASES[case]())
                if processes.first:
                    torch.save(found, folder / f"{case}.pt")
            for case, run in errors(folder, processes.rank).items() if name == "errors" else ():
                try:
                    run()
                    message = "none"
                except (ValueError, RuntimeError, FloatingPointError) as error:
                    message = f"{type(error).__name__}: {error}"
                everyone = processes.gathered(message)
                if processes.first:
                    (folder / f"{case}.json").write_text(json.dumps(everyone))
            if name in ("stopped", "endless"):
                {"stopped": stopped, "endless": endless}[name](folder)
            if name == "resumed":
                found = outcome(plain(True, folder / "kept"))
                if processes.first:
                    torch.save(found, folder / "resumed.pt")


def as_rank(environment: dict[str, str], log: Path, folder: Path, *names: str) -> None:
    """Do it in a process that torchrun could have started; its output goes to a file."""
    os.environ |= environment
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run where SIGINT is ignored
    warnings.simplefilter("error", FutureWarning)
    torch.set_num_threads(1)
    with log.open("w") as file:
        for output in (1, 2):
            os.dup2(file.fileno(), output)
    main(folder, names)
