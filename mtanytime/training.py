"""A training run: seed, schedule, progress, log, checkpoints and resume; one iterator of step reports.

`Trainer` trains one network on one task. Every trainer of the library is a subclass that says what one step does.

Every step's random numbers come from (seed, step) alone and every batch from (seed, epoch, position), so a run has no
random state to save: stopped anywhere and resumed from its last checkpoint, it ends as the uninterrupted one does.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypedDict, get_args

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from mtanytime.datasets import Augment, Batches, ImageSet, Task, derive_seed
from mtanytime.randomness import seeded
from mtanytime.runs import Row, RunFolder, fingerprint
from mtanytime.stateless import call_at, undisturbed

Precision = Literal["float32", "bfloat16"]
Schedule = Literal["cosine", "steps", "constant"] | Callable[[float], float]

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "steps": lambda progress: 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01,
    "constant": lambda progress: 1.0,
}


@dataclass(frozen=True)
class StepReport:
    """What one training step tells: `metrics` holds the log's figures (losses, accuracy in [0, 1], …)."""

    step: int
    steps: int
    epoch: int
    epochs: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended. Accuracies are fractions of the test images, None without a test set.

    `accuracy` is read with the weights of the best validation epoch, `last_accuracy` with the last ones; without a
    validation set they are the same. `tables` holds the run's tables by name ("log", …), `seconds` the time spent in
    training steps and evaluations.
    """

    accuracy: float | None
    last_accuracy: float | None
    best_epoch: int
    seconds: float
    tables: dict[str, pd.DataFrame] = field(repr=False)

    @property
    def log(self) -> pd.DataFrame:
        """One row a step: step, epoch, seconds, lr, the losses, accuracy and, on an epoch's last row, val_accuracy."""
        return self.tables["log"]


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """bfloat16 autocast where asked for; weights and optimiser states stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: ImageSet | DataLoader,
    *,
    batch_size: int = 256,
    precision: Precision = "float32",
) -> float:
    """Top-1 accuracy in [0, 1] of a model in eval mode; its mode is put back."""
    parameter = next(model.parameters())
    training = model.training
    model.eval()
    right = count = 0
    for images, labels in _batches(data, batch_size, seed=0, shuffle=False).epoch(0):
        images = images.to(parameter.device, parameter.dtype)
        with autocast(parameter.device, precision):
            output = model(images)
        right += int((output.argmax(dim=1).cpu() == labels.cpu()).sum())
        count += len(labels)
    model.train(training)
    return right / count


class TrainerOptions(TypedDict, total=False):
    """The keyword arguments that every trainer hands on to `Trainer`, where they are explained."""

    validation: float | ImageSet | DataLoader | None
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    nesterov: bool
    schedule: Schedule
    loss: Callable[[Any, Tensor], Tensor]
    augment: Augment | None
    seed: int
    device: str | torch.device | None
    precision: Precision
    folder: str | os.PathLike[str] | None
    checkpoint_seconds: float
    progress: bool


class Trainer:
    """Train one network on one task with SGD, step by step.

    `for report in trainer` runs the steps and yields a `StepReport` after each; leave the loop and iterate again to go
    on. `train()` is that loop with a progress bar. An interrupt waits for the end of the step (a second one does not)
    and leaves a run that goes on: the same trainer, or a new one with the same arguments and folder.

    Args:
        model: the network, `logits = model(images)`; trained in place and moved to `device`. A function is called
            without arguments under the run's seed to make it.
        data: a `Task` (its test set is used), an `ImageSet`, or a `DataLoader` that gives (images in [0, 1], labels).
        test: the test set, where `data` is no `Task`.
        validation: a fraction of an `ImageSet` to hold back, balanced by class, or a set of its own; the test accuracy
            is then read at the best validation epoch, the first of equals.
        epochs, batch_size: the last, incomplete batch of an epoch is used; a `DataLoader` keeps its own batch size.
        lr, momentum, weight_decay, nesterov: of `torch.optim.SGD`.
        schedule: the learning rate's factor by epoch: "cosine", "steps" (÷ 10 at ½ and at ¾), "constant" or a function
            of the fraction of epochs done.
        loss: `loss(model(images), labels)`, a scalar.
        augment: a batch transform such as `datasets.crop_flip()`.
        seed: of the data's order, augmentation, dropout and whatever the trainer initialises.
        device: default the accelerator if there is one.
        precision: "float32" or "bfloat16" (autocast; the weights stay as they are).
        folder: where to keep the run, resumed if it holds the same run; None keeps it in memory.
        checkpoint_seconds: how often a checkpoint is written.
        progress: print notes and a progress bar to stdout.

    Raises:
        ValueError: bad settings, a network that does not take the images or has too few outputs for the labels, a
            folder that holds another run or a broken checkpoint; before training and before anything is written.
        FloatingPointError: in training, a loss that is not finite; the last checkpoint is kept.
    """

    result_type: ClassVar[type[TrainingResult]] = TrainingResult

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        data: Task | ImageSet | DataLoader,
        test: ImageSet | DataLoader | None = None,
        *,
        validation: float | ImageSet | DataLoader | None = None,
        epochs: int = 200,
        batch_size: int = 128,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        nesterov: bool = False,
        schedule: Schedule = "cosine",
        loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
        augment: Augment | None = None,
        seed: int = 0,
        device: str | torch.device | None = None,
        precision: Precision = "float32",
        folder: str | os.PathLike[str] | None = None,
        checkpoint_seconds: float = 60.0,
        progress: bool = True,
    ) -> None:
        require(epochs >= 1, "epochs >= 1", epochs)
        require(batch_size >= 1, "batch_size >= 1", batch_size)
        require(lr > 0, "lr > 0", lr)
        require(precision in get_args(Precision), f"precision one of {get_args(Precision)}", precision)
        require(
            callable(schedule) or schedule in SCHEDULES, f"schedule a function or one of {list(SCHEDULES)}", schedule
        )
        self.device = torch.device(device) if device is not None else best_device()
        self.precision, self.seed, self.epochs, self.loss = precision, seed, epochs, loss
        self.progress, self.checkpoint_seconds = progress, checkpoint_seconds
        self.schedule = schedule if callable(schedule) else SCHEDULES[schedule]
        self.notes: list[str] = []

        train, self.test = (data.train, data.test) if isinstance(data, Task) and test is None else (data, test)
        train = train.train if isinstance(train, Task) else train
        if isinstance(validation, float):
            if not isinstance(train, ImageSet):
                raise ValueError(
                    "a fraction of a DataLoader cannot be held back; wanted validation as a set of its own"
                )
            train, validation = train.split(validation, seed)
        self.validation = validation
        train = train.to(self.device) if isinstance(train, ImageSet) else train
        self.batches = _batches(train, batch_size, seed=seed, augment=augment)
        self.steps = epochs * len(self.batches)

        with seeded(derive_seed(seed, _INITIAL), self.device):
            self.model = (model if isinstance(model, nn.Module) else model()).to(self.device)
        self.optimizer: torch.optim.Optimizer
        self.modules: dict[str, nn.Module] = {"model": self.model}  # all that a checkpoint keeps
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.tables: dict[str, list[Row]] = {"log": []}
        self._sgd = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        self._build()
        self.optimizers["optimizer"] = self.optimizer

        self.step, self.seconds = 0, 0.0
        self._best: dict[str, Any] | None = None
        self._scores: dict[str, float | None] | None = None
        self._torn, self._saved_step, self._saved_at = False, -1, time.monotonic()
        self.folder = None
        if folder is not None:
            config = {
                "trainer": type(self).__name__,
                "epochs": epochs,
                "batch_size": batch_size,
                **self._sgd,
                "schedule": name_of(schedule),
                "loss": name_of(loss),
                "augment": name_of(augment),
                "seed": seed,
                "precision": precision,
                "model": _described(self.model),
                "train": _described_data(train),
                "validation": _described_data(validation),
                **self._config(),
            }
            self.folder = RunFolder(folder, config)
            self._load()

    # What a subclass says of itself.

    def _build(self) -> None:
        """Try the network on the data and make the optimiser."""
        self._try_model()
        self.optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], **self._sgd)

    def _config(self) -> Row:
        """Further settings that tell one run from another."""
        return {}

    def _step(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Train on one batch, in train mode and under the step's seed; returns the log's figures."""
        with autocast(self.device, self.precision):
            output = self.model(images)
            loss = self.loss(output, labels)
        figures = {"loss": self._finite(loss, "loss"), "accuracy": batch_accuracy(output, labels)}
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return figures

    def _extra_state(self) -> dict[str, Any]:
        """What a checkpoint must keep beside modules and optimisers: plain values and tensors."""
        return {}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `_extra_state` gave."""

    def _after_step(self) -> None:
        """Add rows to further tables; called with `step` counted up."""

    # The run.

    def __iter__(self) -> Iterator[StepReport]:
        """Run the steps that are left, yielding a report after each."""
        if self._torn:
            if self.folder is None or self.folder.load() is None:
                raise RuntimeError("the run broke off in the middle of a step and has no checkpoint to go back to")
            self._load()
        if self.step >= self.steps:
            return
        if self.folder is not None:
            self.folder.open()
        try:
            while self.step < self.steps:
                epoch, position = divmod(self.step, len(self.batches))
                for images, labels in self.batches.epoch(epoch, start=position):
                    with _interrupt_waits():
                        report = self._advance(epoch, images, labels)
                        if time.monotonic() - self._saved_at > self.checkpoint_seconds:
                            self._save()
                    yield report
        finally:
            if self.folder is not None:
                try:
                    self._save()
                finally:
                    self.folder.close()

    def train(self) -> TrainingResult:
        """Run to the end with a progress bar and return the result."""
        if self.progress:
            for note in self.notes:
                print(note)
            if self.step:
                print(f"resuming at step {self.step} of {self.steps}" if self.step < self.steps else "already finished")
        bar = tqdm(
            self,
            total=self.steps,
            initial=self.step,
            unit="step",
            mininterval=0.5,
            file=sys.stdout,
            disable=not self.progress or self.step >= self.steps,
        )
        for report in bar:
            if self.progress:
                shown = ("loss", "accuracy", "mean_lambda", "val_accuracy")
                bar.set_postfix({k: f"{v:.3g}" for k, v in report.metrics.items() if k in shown}, refresh=False)
        return self.result()

    def result(self) -> TrainingResult:
        """Accuracies and tables of a finished run; evaluated once. RuntimeError while steps are left."""
        if self.step < self.steps:
            raise RuntimeError(f"the run is at step {self.step} of {self.steps}; wanted a finished one")
        if self._scores is None:
            last = None if self.test is None else self._evaluate(self.test)
            best = last
            if self._best is not None and last is not None:
                state = {name: value.clone() for name, value in self.model.state_dict().items()}
                self.load_best()
                best = self._evaluate(self.test)
                self.model.load_state_dict(state)
            self._scores = {"accuracy": best, "last_accuracy": last}
            if self.folder is not None:
                self.folder.open()
                self._save(force=True)
                self.folder.close()
        best_epoch = self.epochs if self._best is None else self._best["epoch"]
        tables = {name: pd.DataFrame(rows) for name, rows in self.tables.items()}
        return self.result_type(**self._scores, best_epoch=best_epoch, seconds=self.seconds, tables=tables)

    def load_best(self) -> None:
        """Give the model the weights of its best validation epoch so far; RuntimeError without validation."""
        if self._best is None:
            raise RuntimeError("no validation has been made; wanted validation=… and at least one epoch")
        self.model.load_state_dict(self._best["model"])

    def _advance(self, epoch: int, images: Tensor, labels: Tensor) -> StepReport:
        started = time.perf_counter()
        self._torn = True
        factor = self.schedule(epoch / self.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = self._sgd["lr"] * factor
        self.model.train()
        images = images.to(self.device, next(self.model.parameters()).dtype)
        with (
            seeded(derive_seed(self.seed, _STEP, self.step), self.device),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        ):
            figures = self._step(images, labels.to(self.device))
        self.step += 1
        if self.validation is not None:
            figures["val_accuracy"] = math.nan
            if self.step % len(self.batches) == 0:
                figures["val_accuracy"] = value = self._evaluate(self.validation)
                if self._best is None or value > self._best["val_accuracy"]:
                    state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
                    self._best = {"epoch": epoch + 1, "val_accuracy": value, "model": state}
        self.seconds += time.perf_counter() - started
        lr = self._sgd["lr"] * factor
        row = {"step": self.step, "epoch": epoch + 1, "seconds": round(self.seconds, 4), "lr": lr, **figures}
        self._add("log", [row])
        self._after_step()
        self._torn = False
        return StepReport(self.step, self.steps, epoch + 1, self.epochs, figures)

    def _add(self, table: str, rows: list[Row]) -> None:
        self.tables.setdefault(table, []).extend(rows)
        if self.folder is not None:
            self.folder.append(table, rows)

    def _evaluate(self, data: ImageSet | DataLoader) -> float:
        return evaluate(self.model, data, precision=self.precision)

    def _finite(self, loss: Tensor, name: str, also: str = "") -> float:
        value = loss.item()
        if not math.isfinite(value):
            lr = self.optimizer.param_groups[0]["lr"]
            raise FloatingPointError(f"{name} is {value} at step {self.step + 1} (learning rate {lr:.4g}{also})")
        return value

    def _try_model(self) -> None:
        """Run the network forward once on a few training images, leaving it unchanged."""
        images, labels = self._probe_batch()
        with torch.no_grad(), undisturbed(self.model, self.device, training=True) as buffers:
            try:
                output = call_at(self.model, buffers, images)
            except Exception as error:
                shape, name = tuple(images.shape[1:]), type(self.model).__name__
                raise ValueError(
                    f"{name} does not take a batch of {len(images)} images of shape {shape}: {error}"
                ) from error
            if isinstance(output, Tensor) and int(labels.max()) >= output.shape[1]:
                classes = output.shape[1]
                raise ValueError(f"label {int(labels.max())} is out of range: the network has {classes} outputs")
            self.loss(output, labels)

    def _probe_batch(self) -> tuple[Tensor, Tensor]:
        """A few training images, as many as the smallest batch has (batch norm may not take a single one)."""
        data = self.batches.data
        if isinstance(data, ImageSet):
            size = min(4, len(data) % self.batches.batch_size or self.batches.batch_size)
            data = data.subset(torch.arange(size))
            images, labels = next(Batches(data, size, seed=0, shuffle=False).epoch(0))
            labels = self.batches.data.labels.max().expand(size)  # the highest label is the one to try
        else:
            images, labels = next(self.batches.epoch(0))
            images, labels = images[:4], labels[:4]
        return images.to(self.device, next(self.model.parameters()).dtype), labels.to(self.device)

    def _save(self, force: bool = False) -> None:
        if self.folder is None or self._torn or (self.step == self._saved_step and not force):
            return
        self.folder.save(
            {
                "step": self.step,
                "seconds": self.seconds,
                "best": self._best,
                "scores": self._scores,
                "modules": {name: module.state_dict() for name, module in self.modules.items()},
                "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
                "extra": self._extra_state(),
            }
        )
        self._saved_step, self._saved_at = self.step, time.monotonic()

    def _load(self) -> None:
        checkpoint = self.folder.load()
        if checkpoint is not None:
            self.step, self.seconds = checkpoint["step"], checkpoint["seconds"]
            self._best, self._scores = checkpoint["best"], checkpoint["scores"]
            for name, module in self.modules.items():
                module.load_state_dict(checkpoint["modules"][name])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(checkpoint["optimizers"][name])
            self._load_extra_state(checkpoint["extra"])
        self.tables = {name: self.folder.read(name, self.step) for name in self.tables}
        self._torn, self._saved_step = False, self.step


_INITIAL, _STEP = 1, 2  # what a derived seed is for


def batch_accuracy(output: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> float:
    """Top-1 accuracy of a batch, in [0, 1]."""
    return (output.argmax(dim=1) == labels).float().mean().item()


def require(holds: bool, wanted: str, came: object) -> None:
    """ValueError that says what was wanted and what came."""
    if not holds:
        raise ValueError(f"wanted {wanted}; got {came!r}")


def name_of(value: object) -> object:
    """A function's or object's name, for the record of a run; a string is its own."""
    return getattr(value, "__qualname__", value if isinstance(value, str | None) else type(value).__qualname__)


def _described(model: nn.Module) -> str:
    shapes = {name: torch.tensor(value.shape) for name, value in model.state_dict().items()}
    return f"{type(model).__name__} {fingerprint(shapes)}"


def _described_data(data: ImageSet | DataLoader | None) -> str | None:
    if isinstance(data, ImageSet):
        return f"{data.name}: {len(data)} images {fingerprint({'images': data.images, 'labels': data.labels})}"
    return None if data is None else f"{type(data).__name__}: {len(data)} batches"


def _batches(data: ImageSet | DataLoader, batch_size: int, **settings: Any) -> Batches:
    return Batches(data, None if isinstance(data, DataLoader) else batch_size, **settings)


@contextmanager
def _interrupt_waits() -> Iterator[None]:
    """Hold an interrupt (SIGINT) back until the block's end; a second one goes through at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = False

    def on_interrupt(*_: object) -> None:
        nonlocal received
        if received:
            raise KeyboardInterrupt
        received = True

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if received:
        raise KeyboardInterrupt
