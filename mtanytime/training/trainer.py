"""A training run: seed, schedule, progress, log, checkpoints and resume; one iterator of step reports.

`Trainer` trains one network on one task. Every trainer of the library is a subclass that says what one step does.

Every step's random numbers come from (seed, step) alone and every batch from (seed, epoch, position), so a run has no
random state to save: stopped anywhere and resumed from its last checkpoint, it ends as the uninterrupted one does.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from numbers import Integral
from typing import Any, ClassVar, TypedDict, get_args

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from mtanytime.checks import require_wanted
from mtanytime.data.images import Augment, Batches, ImageSet, Task, batches_of
from mtanytime.devices import Precision, autocast, best_device
from mtanytime.functional import functional_call, trial_run
from mtanytime.measure.evaluation import batch_accuracy, evaluate
from mtanytime.randomness import derive_seed, seeded
from mtanytime.training.identity import describe_data, describe_model, name_of
from mtanytime.training.interrupt import delay_interrupt
from mtanytime.training.run_folder import Row, RunFolder
from mtanytime.training.schedule import SCHEDULES, STEP_BY_STEP, Schedule


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
    training steps, with their data and the validation.
    """

    accuracy: float | None
    last_accuracy: float | None
    best_epoch: int
    seconds: float
    tables: dict[str, pd.DataFrame] = field(repr=False, compare=False)

    @property
    def log(self) -> pd.DataFrame:
        """One row a step: step, epoch, seconds, lr, the losses, accuracy and, on an epoch's last row, val_accuracy."""
        return self.tables["log"]


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
    and leaves a run that goes on: the same trainer, or a new one with the same arguments and folder. A run that broke
    off within a step goes back to its last checkpoint.

    Args:
        model: the network, `logits = model(images)`; trained in place, moved to `device` and put in train mode, all of
            it, for every step. A function is called without arguments under the run's seed to make it. (A run that
            is resumed takes its weights from the checkpoint, whatever weights a ready-made network comes with.)
        data: a `Task` (its test set is used), an `ImageSet`, or a `DataLoader` that gives (images in [0, 1], labels).
        test: the test set, where `data` is no `Task`.
        validation: a fraction of an `ImageSet` to hold back, balanced by class, or a set of its own; the test accuracy
            is then read at the best validation epoch, the first of equals.
        epochs, batch_size: the last, incomplete batch of an epoch is used; a `DataLoader` keeps its own batch size.
        lr, momentum, weight_decay, nesterov: of `torch.optim.SGD`.
        schedule: the learning rate's factor by epoch: "cosine", "steps" (÷ 10 at ½ and at ¾), "constant" or a function
            of the fraction of epochs done; or by step: "warm-up cosine", which rises over the first twentieth.
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
        PermissionError: nothing can be written in the folder; as early.
        FloatingPointError: in training, a loss or weights that are not finite; the last checkpoint is kept.
        RuntimeError: in training, another process is at work in the folder.
        OSError: in training, a checkpoint that could not be written (a full disk); the one before it is kept.
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
        require_wanted(isinstance(epochs, Integral) and epochs >= 1, "epochs a whole number >= 1", epochs)
        require_wanted(
            isinstance(batch_size, Integral) and batch_size >= 1, "batch_size a whole number >= 1", batch_size
        )
        require_wanted(0 < lr < math.inf, "lr > 0", lr)
        require_wanted(0 <= momentum < 1, "momentum in [0, 1)", momentum)
        require_wanted(0 <= weight_decay < math.inf, "weight_decay >= 0", weight_decay)
        require_wanted(momentum > 0 or not nesterov, "momentum > 0 with nesterov", momentum)
        require_wanted(precision in get_args(Precision), f"precision one of {get_args(Precision)}", precision)
        require_wanted(
            callable(schedule) or schedule in SCHEDULES, f"schedule a function or one of {list(SCHEDULES)}", schedule
        )
        self.device = torch.device(device) if device is not None else best_device()
        self.precision, self.seed, self.epochs, self.loss = precision, seed, epochs, loss
        self.progress, self.checkpoint_seconds = progress, checkpoint_seconds
        self.notes: list[str] = []
        self._outputs: int | None = None  # classes that the network tells apart, once it was tried

        if isinstance(data, Task):
            data, test = data.train, data.test if test is None else test
        data = self._placed("data", data)
        if isinstance(validation, int | float):
            require_wanted(isinstance(data, ImageSet), "validation as a set of its own beside a DataLoader", validation)
            data, validation = data.split(validation, seed)
        if isinstance(data, ImageSet):
            missing = sorted(set(range(len(data.classes))) - set(data.labels.tolist()))
            if missing:
                raise ValueError(
                    f"wanted training images of every class; there are none of {data.classes[missing[0]]!r}"
                )
        self.batches = batches_of(data, batch_size, seed=seed, augment=augment)
        self.validation = None if validation is None else self._placed("validation", validation)
        self.test = None if test is None else self._placed("test", test)
        for name, other in (("validation", self.validation), ("test", self.test)):
            if isinstance(data, ImageSet) and isinstance(other, ImageSet) and other.classes != data.classes:
                raise ValueError(f"wanted a {name} set of classes {data.classes}; got {other.classes}")
        self.steps = epochs * len(self.batches)
        self.rates = self._rates(lr, schedule)

        with seeded(derive_seed(seed, _INITIAL), self.device):
            self.model = (model if isinstance(model, nn.Module) else model()).to(self.device)
        trained = any(parameter.requires_grad for parameter in self.model.parameters())
        require_wanted(trained, "a network with parameters that require grad", type(self.model).__name__)
        self.optimizer: torch.optim.Optimizer
        self.modules: dict[str, nn.Module] = {"model": self.model}  # all that a checkpoint keeps
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.tables: dict[str, list[Row]] = {"log": []}
        self._sgd = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        self._build()
        self.optimizers["optimizer"] = self.optimizer

        self.step, self.seconds = 0, 0.0
        self._best: dict[str, Any] | None = None  # epoch, val_accuracy and weights of the best validation epoch
        self._last: dict[str, Tensor] | None = None  # the run's own weights while `load_best` shows others
        self._scores: dict[str, float | None] | None = None
        self._torn, self._saved_step, self._saved_at = False, -1, time.monotonic()
        self.folder = None
        if folder is not None:
            config = {
                "trainer": type(self).__name__,
                "epochs": epochs,
                "batch_size": self.batches.batch_size,
                **self._sgd,
                "schedule": name_of(schedule),
                "loss": name_of(loss),
                "augment": name_of(augment),
                "seed": seed,
                "precision": precision,
                "model": describe_model(self.model),
                "train": describe_data(self.batches.data),
                "validation": describe_data(self.validation),
                "test": describe_data(self.test),
                **self._config(),
            }
            self.folder = RunFolder(folder, config)
            self._load()

    def _rates(self, lr: float, schedule: Schedule) -> list[float]:
        """The learning rate of each step."""
        factor = schedule if callable(schedule) else SCHEDULES[schedule]
        if schedule in STEP_BY_STEP:
            return [lr * factor((step + 1) / (self.steps + 1)) for step in range(self.steps)]
        rates = [lr * factor(epoch / self.epochs) for epoch in range(self.epochs)]
        require_wanted(all(0 <= rate < math.inf for rate in rates), "a schedule of finite factors >= 0", rates)
        return [rate for rate in rates for _ in range(len(self.batches))]

    # What a subclass says of itself.

    def _build(self) -> None:
        """Try the network on the data and make the optimiser."""
        self._try_model()
        self.optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], **self._sgd)

    def _config(self) -> Row:
        """Further settings that tell one run from another."""
        return {}

    def train_on_batch(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Do one training step on one batch and return its metrics (losses, accuracy, …).

        `images` are floats in [0, 1] and `labels` int64, both on the run's device. The network must be in train mode:
        the loop puts it there, and calls this under the step's own seed.
        """
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

    def _logits(self, output: Any) -> Tensor | None:
        """Of the network's output, the logits that labels are checked against; ValueError for a wrong output."""
        return output if isinstance(output, Tensor) and output.ndim == 2 else None

    def _evaluate(self, data: ImageSet | DataLoader) -> Any:
        """What `TrainingResult.accuracy` is to hold for a set; `_summary` makes it one number."""
        return evaluate(self.model, data, precision=self.precision)

    def _summary(self, accuracy: Any) -> float:
        """The number by which the best validation epoch is chosen."""
        return accuracy

    def _after_step(self) -> None:
        """Add rows to further tables; called with `step` counted up."""

    # The run.

    def __iter__(self) -> Iterator[StepReport]:
        """Run the steps that are left, yielding a report after each."""
        self._take_up()
        if self.step >= self.steps:
            return
        with self._at_work():
            while self.step < self.steps:
                epoch, position = divmod(self.step, len(self.batches))
                started, before = time.perf_counter(), self.step
                batches = self.batches.epoch(epoch, start=position)
                for images, labels in islice(batches, len(self.batches) - position):
                    with delay_interrupt():
                        report = self._advance(epoch, images, labels, started)
                        if time.monotonic() - self._saved_at >= self.checkpoint_seconds:
                            self._save()
                    yield report
                    started = time.perf_counter()
                    if self.step != report.step:  # another iterator of this trainer went on
                        break
                if self.step == before:
                    wanted = len(self.batches)
                    raise RuntimeError(f"the data gave {position} batches in epoch {epoch + 1}; wanted {wanted}")

    def train(self) -> TrainingResult:
        """Run to the end with a progress bar and return the result."""
        self._take_up()
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
        shown: dict[str, str] = {}
        for report in bar:
            if not bar.disable:
                names = ("loss", "accuracy", "mean_lambda", "val_accuracy")
                now = {k: v for k, v in report.metrics.items() if k in names and math.isfinite(v)}
                shown |= {k: f"{v:.3g}" for k, v in now.items()}
                bar.set_postfix(shown, refresh=False)
        return self.result()

    def result(self) -> TrainingResult:
        """Accuracies and tables of a finished run; evaluated once. RuntimeError while steps are left."""
        if self.step < self.steps or self._torn:
            raise RuntimeError(f"the run is at step {self.step} of {self.steps}; wanted a finished one")
        if self._scores is None:
            with nullcontext() if self.folder is None else self.folder.held():
                last = None if self.test is None else self._evaluate(self.test)
                best = last
                if self._best is not None and last is not None:
                    state = _copied(self.model)
                    try:
                        self.model.load_state_dict(self._best["model"])
                        best = self._evaluate(self.test)
                    finally:
                        self.model.load_state_dict(state)
                self._scores = {"accuracy": best, "last_accuracy": last}
                self._save(force=True)
        best_epoch = self.epochs if self._best is None else self._best["epoch"]
        tables = {name: pd.DataFrame(rows) for name, rows in self.tables.items()}
        return self.result_type(**self._scores, best_epoch=best_epoch, seconds=self.seconds, tables=tables)

    def load_best(self) -> None:
        """Give the model the weights of its best validation epoch so far; RuntimeError without validation.

        A run that is not finished goes on from its own weights all the same.
        """
        if self._best is None:
            raise RuntimeError("no validation has been made; wanted validation=… and at least one epoch")
        if self.step == self.steps and not self._torn:
            self.result()  # reads the last weights
        elif self._last is None:
            self._last = _copied(self.model)
        self.model.load_state_dict(self._best["model"])

    def _take_up(self) -> None:
        """Put the run's own state back where something else stands: after `load_best`, or a broken step."""
        if self._last is not None:
            self.model.load_state_dict(self._last)
            self._last = None
        if self._torn:
            if self.folder is None:
                raise RuntimeError("the run broke off within a step and has no folder with a checkpoint to go back to")
            self._load()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Hold the folder, if there is one, with no rows of steps that are to come; save in the end, come what may."""
        with nullcontext() if self.folder is None else self.folder.held():
            if self.folder is not None:
                if self.folder.moved_on:  # another trainer was at work here in between
                    self._load()
                for table in self.tables:
                    self.folder.trim(table, self.step)
                if self._saved_step < 0:
                    self._save()  # the start, so that there is always a place to go back to
            try:
                yield
            finally:
                with delay_interrupt():
                    self._save()

    def _advance(self, epoch: int, images: Tensor, labels: Tensor, started: float) -> StepReport:
        if isinstance(self.batches.data, DataLoader):  # an ImageSet's labels were checked as a whole
            self._check_labels("training", labels)
        self._torn = True
        lr = self.rates[self.step]
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        images = images.to(self.device, next(self.model.parameters()).dtype)
        with seeded(derive_seed(self.seed, _STEP, self.step), self.device):
            figures = self.train_on_batch(images, labels.to(self.device))
        self.step += 1
        if self.validation is not None:
            figures["val_accuracy"] = math.nan
            if self.step % len(self.batches) == 0:
                figures["val_accuracy"] = value = self._summary(self._evaluate(self.validation))
                if self._best is None or value > self._best["val_accuracy"]:
                    self._best = {"epoch": epoch + 1, "val_accuracy": value, "model": _copied(self.model)}
        self.seconds += time.perf_counter() - started
        row = {"step": self.step, "epoch": epoch + 1, "seconds": round(self.seconds, 4), "lr": lr, **figures}
        self._add("log", [row])
        self._after_step()
        self._torn = False
        return StepReport(self.step, self.steps, epoch + 1, self.epochs, figures)

    def _add(self, table: str, rows: list[Row]) -> None:
        self.tables.setdefault(table, []).extend(rows)
        if self.folder is not None:
            self.folder.append(table, rows)

    def _finite(self, loss: Tensor, name: str, also: str = "") -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"{name} is {value} at step {self.step + 1} ({self._at()}{also})")
        return value

    def _at(self) -> str:
        lr = f"learning rate {self.optimizer.param_groups[0]['lr']:.4g}"
        return lr if self._saved_step < 0 else f"{lr}; the last checkpoint is of step {self._saved_step}"

    def _try_model(self) -> None:
        """Run the network forward on a few images of each set, leaving it unchanged; ValueError if that fails."""
        images, labels = self._probe_batch()
        output = self._try("training", images, labels)
        try:
            loss = self.loss(output, labels)
        except Exception as error:
            raise ValueError(f"the loss {name_of(self.loss)} does not take the network's output: {error}") from error
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        require_wanted(shape == (), "a loss that gives a scalar tensor", shape)
        for name, data in (("validation", self.validation), ("test", self.test)):
            if data is not None:
                self._try(name, *self._few(data, 4))

    def _try(self, name: str, images: Tensor, labels: Tensor) -> Any:
        """The network's output for a few images of a set, in train mode for the training set and else in eval mode."""
        training = name == "training"
        with torch.no_grad(), trial_run(self.model, self.device, training) as buffers:
            try:
                with autocast(self.device, self.precision):
                    output = functional_call(self.model, buffers, images)
            except Exception as error:
                what = f"a batch of {len(images)} {name} images of shape {tuple(images.shape[1:])}"
                raise ValueError(f"{type(self.model).__name__} does not take {what}: {error}") from error
        if (logits := self._logits(output)) is not None:
            self._outputs = logits.shape[1]
            self._check_labels(name, labels)
        return output

    def _check_labels(self, name: str, labels: Tensor) -> None:
        """Refuse labels that the network has no output for, before a loss fails on them or, on a GPU, the process."""
        if self._outputs is not None and len(wrong := labels[(labels < 0) | (labels >= self._outputs)]):
            label = int(wrong[0])
            raise ValueError(f"{name} label {label} is out of range: the network has {self._outputs} outputs")

    def _probe_batch(self) -> tuple[Tensor, Tensor]:
        """A few training images, as many as the smallest batch has (batch norm may not take a single one)."""
        data, size = self.batches.data, self.batches.batch_size
        if isinstance(data, ImageSet):
            return self._few(data, len(data) % size or size)
        if data.batch_size is None or data.drop_last or isinstance(data.dataset, IterableDataset):
            return self._few(data, 4)
        return self._few(data, len(data.sampler) % data.batch_size or data.batch_size)

    def _few(self, data: ImageSet | DataLoader, size: int) -> tuple[Tensor, Tensor]:
        """Up to 4 images of a set; of an `ImageSet`, with its highest label, which is the one to try."""
        if isinstance(data, ImageSet):
            require_wanted(len(data) > 0, "a set with images", data)
            few = data.subset(torch.arange(min(size, 4, len(data))))
            images, labels = next(Batches(few, 4, seed=0, shuffle=False).epoch(0))
            labels = data.labels.max().expand(len(few))
        else:
            images, labels = next(Batches(data, None, seed=self.seed).epoch(0))
            images, labels = images[: min(size, 4)], labels[: min(size, 4)]
        return images.to(self.device, next(self.model.parameters()).dtype), labels.to(self.device)

    def _placed(self, name: str, data: ImageSet | DataLoader) -> ImageSet | DataLoader:
        """A set on the run's device."""
        require_wanted(isinstance(data, ImageSet | DataLoader), f"{name} as an ImageSet or a DataLoader", data)
        return data.to(self.device) if isinstance(data, ImageSet) else data

    def _save(self, force: bool = False) -> None:
        if self._torn or (self.step == self._saved_step and not force):
            return
        for name, module in self.modules.items():
            if not all(parameter.isfinite().all() for parameter in module.parameters()):
                self._torn = True
                raise FloatingPointError(f"weights of the {name} are not finite after step {self.step} ({self._at()})")
        if self.folder is not None:
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
            self._saved_step = self.step
        self._saved_at = time.monotonic()

    def _load(self) -> None:
        """Go to the folder's last checkpoint, if it has one."""
        checkpoint = self.folder.load()
        if checkpoint is None:
            if self.step > 0:
                raise RuntimeError(f"{self.folder.path} has lost its checkpoint; make a new trainer to start again")
            return
        try:
            for name, module in self.modules.items():
                module.load_state_dict(checkpoint["modules"][name])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(checkpoint["optimizers"][name])
                for parameter, state in optimizer.state.items():
                    for key, value in state.items():
                        if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                            raise ValueError(f"{key} is {tuple(value.shape)}, wanted {tuple(parameter.shape)}")
            self._load_extra_state(checkpoint["extra"])
            self.step, self.seconds = checkpoint["step"], checkpoint["seconds"]
            self._best, self._scores = checkpoint["best"], checkpoint["scores"]
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"the checkpoint in {self.folder.path} does not fit this run: {error}") from error
        self.tables = {name: self.folder.read(name, self.step) for name in self.tables}
        self._torn, self._saved_step = False, self.step


_INITIAL, _STEP = -1, -2  # what a derived seed is for; those of epochs and batches begin with an epoch, 0 or more


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}
