"""The training loop: an iterator of step reports with validation, log, checkpoints and resume.

`Trainer` trains one network on one task. Every other trainer of the library is a subclass that replaces the training
step and may add networks, tables and settings.

The random numbers of a step depend on (seed, step) alone and a batch on (seed, epoch, position) alone, so there is no
random state to save: a run that is stopped anywhere and resumed from its last checkpoint ends with the same bits as an
uninterrupted one.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mtanytime.checks import Words, mismatch
from mtanytime.data.batches import batches_of
from mtanytime.data.images import LabelledImages, Task
from mtanytime.devices import autocast, best_device
from mtanytime.measure.evaluation import batch_accuracy, class_count, evaluate
from mtanytime.measure.logits import find_logits
from mtanytime.randomness import derive_seed, seeded
from mtanytime.training.batch_norm import settle_for_evaluation
from mtanytime.training.checkpoint import (
    check_finite,
    copied_state,
    finite_value,
    get_states,
    set_states,
    weights_of,
)
from mtanytime.training.identity import run_record
from mtanytime.training.interrupt import delay_interrupt
from mtanytime.training.network import make_network
from mtanytime.training.optimizers import group_rates, make_optimizer, set_rates
from mtanytime.training.progress import with_progress
from mtanytime.training.run_folder import Row, RunFolder
from mtanytime.training.schedule import check_extension
from mtanytime.training.sets import prepare_sets
from mtanytime.training.settings import TrainerSettings, check_keywords, complete, with_keywords_of
from mtanytime.training.stored_run import describe_network
from mtanytime.training.trial import Images, Labels, check_labels, training_probe, try_network

# First parts of derived seeds. Those of epochs and batches begin with an epoch, 0 or more.
_STEP, _SETTLE = -2, -5


@dataclass(frozen=True)
class StepReport:
    """Metrics of one training step: losses, accuracy in [0, 1], … as in the log."""

    step: int
    steps: int
    epoch: int
    epochs: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrainingResult:
    """Accuracies and tables of a finished run. Accuracies are fractions of the test images, None without a test set.

    `accuracy` is measured with the weights of the best validation epoch, `last_accuracy` with those of the last step;
    without a validation set they are the same. `tables` holds the run's tables by name ("log", …). `seconds` is the
    time spent on training steps, loading their data and validation.
    """

    accuracy: float | None
    last_accuracy: float | None
    best_epoch: int
    seconds: float
    tables: dict[str, pd.DataFrame] = field(repr=False, compare=False)

    @property
    def log(self) -> pd.DataFrame:
        """One row per step: step, epoch, seconds, lr, losses, accuracy and, in an epoch's last row, val_accuracy."""
        return self.tables["log"]


@with_keywords_of(TrainerSettings)
class Trainer:
    """Train one network on one task, step by step.

    `for report in trainer` runs the steps and yields a `StepReport` after each; leave the loop and iterate again to
    continue. `train()` is that loop with a progress bar. An interrupt takes effect at the end of the step (a second
    one at once) and leaves a run that can continue, with the same trainer or with a new one that has the same
    arguments and folder. A run that was stopped within a step returns to its last checkpoint.

    Args:
        model: the network, `logits = model(images)`, trained in place on `device`, in train mode at every step; or a
            function that makes it, called under the run's seed. A resumed run has its weights from the checkpoint.
        data: a `Task` (its test set is used), an image set, or a `DataLoader` of (images in [0, 1], labels).
        test: the test set; it replaces that of a `Task`.
        validation: a validation set, or the fraction of an image set to hold out for it, balanced by class. The test
            accuracy is then measured with the weights of the best validation epoch (the first of equals).
        device: where to train; default: the accelerator if there is one.
        folder: where to keep the run, which is resumed if the folder holds it; None keeps the run in memory.
        checkpoint_seconds: time between checkpoints in the folder.
        progress: show notes and a progress bar on stdout.
        settings: the fields of `TrainerSettings`: epochs, batch_size, lr, …

    Raises:
        TypeError: an unknown argument.
        ValueError: bad settings, a network that does not take the images or has too few outputs for the labels, or a
            folder with another run or a broken checkpoint; raised before training, with nothing written.
        PermissionError: the folder is not writable; raised before training.
        FloatingPointError: in training, a loss or weights that are not finite; the last checkpoint is kept.
        RuntimeError: in training, another process is training in the folder.
        OSError: in training, a checkpoint could not be written (a full disk); the one before it is kept.
    """

    result_type: ClassVar[type[TrainingResult]] = TrainingResult
    defaults: ClassVar[Mapping[str, Any]] = {}  # of settings, where a subclass has others than `TrainerSettings`

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        data: Task | LabelledImages | DataLoader,
        test: LabelledImages | DataLoader | None = None,
        *,
        validation: float | LabelledImages | DataLoader | None = None,
        device: str | torch.device | None = None,
        folder: str | os.PathLike[str] | None = None,
        checkpoint_seconds: float = 60.0,
        progress: bool = True,
        **settings: Any,
    ) -> None:
        check_keywords(type(self), settings)
        self.settings = settings = TrainerSettings(**complete(settings, self.defaults))
        self.loss, self.seed, self.precision = settings.loss, settings.seed, settings.precision
        self.device = torch.device(device) if device is not None else best_device()
        self.checkpoint_seconds, self.progress = checkpoint_seconds, progress
        self.notes: list[str] = []
        train, self.validation, self.test = prepare_sets(data, test, validation, self.seed, self.device)
        options = {"seed": self.seed, "augment": settings.augment, "remainder": settings.remainder}
        self.batches = batches_of(train, settings.batch_size, **options)
        self.epochs = settings.epochs or math.ceil(settings.steps / len(self.batches))
        self.steps = settings.steps or self.epochs * len(self.batches)
        self.model = make_network(model, self.batches, self.seed, self.device)
        self.outputs: int | None = None  # the number of classes in the network's output, known after its trial
        self.modules: dict[str, nn.Module] = {"model": self.model}  # these and the optimisers are in each checkpoint
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.tables: dict[str, list[Row]] = {"log": []}
        self._rows_every = {"log": 1}  # table -> after how many steps it gets rows
        self._build()
        self.optimizers["optimizer"] = self.optimizer
        self._group_rates = group_rates(self.optimizer, settings.schedule, self.steps, len(self.batches))
        self.rates = self._group_rates[0]  # one per step
        self.step, self.seconds = 0, 0.0
        self._best: dict[str, Any] | None = None  # epoch, val_accuracy and weights of the best validation epoch
        self._last: dict[str, Tensor] | None = None  # the run's own weights while `load_best` shows others
        self._scores: dict[str, Any] | None = None  # the result's accuracies
        self._mid_step, self._saved_step, self._saved_at = False, -1, time.monotonic()
        self.origin: dict[str, Any] = {}  # the recipe, part and settings that made the run; kept in checkpoints
        self.folder: RunFolder | None = None
        if folder is not None:
            self._network = describe_network(self.model, self.batches.data, self._probe_batch()[0])
            self.folder = RunFolder(folder, run_record(self) | self._config(), self._network["structure"])
            self._load()
            if self.folder.read_only and self.step < self.steps:
                self.folder.deny()

    def _build(self) -> None:
        """Try the network on the data and make the optimiser."""
        self._try_model()
        self.optimizer = make_optimizer(self.settings, self.model)

    def _config(self) -> Row:
        """Further settings that identify the run."""
        return {}

    def train_on_batch(self, images: Images, labels: Labels) -> dict[str, float]:
        """Do one training step on one batch and return its metrics (losses, accuracy, …).

        The loop calls it under the step's own seed, with floats in [0, 1] on the device, the network in train mode.
        """
        with autocast(self.device, self.precision):
            output = self.model(images)
            loss = self.loss(output, labels)
        metrics = {"loss": self._finite(loss, "loss"), "accuracy": batch_accuracy(self._logits(output), labels)}
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return metrics

    def _extra_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside modules and optimisers: plain values and tensors."""
        return {}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `_extra_state` returned."""

    def _logits(self, output: Any) -> Tensor:
        """The logits in the network's output, which labels are checked against; ValueError for a wrong output."""
        return find_logits(output, class_count(self.batches.data), self.settings.logits)

    def _evaluate(self, data: LabelledImages | DataLoader) -> Any:
        """Accuracy on a set, as `TrainingResult.accuracy` holds it; `_summary` makes it one number."""
        return evaluate(self.model, data, precision=self.precision, logits=self.settings.logits)

    def _summary(self, accuracy: Any) -> float:
        """The number by which the best validation epoch is chosen."""
        return accuracy

    def _after_step(self) -> None:
        """Add rows to further tables; called after each step, when `step` counts it."""

    def __iter__(self) -> Iterator[StepReport]:
        """Run the remaining steps and yield a report after each."""
        self._restore()
        if self.step >= self.steps:
            return
        with self._locked_folder():
            while self.step < self.steps:
                epoch, position = divmod(self.step, len(self.batches))
                started, before = time.perf_counter(), self.step
                batches = self.batches.epoch(epoch, start=position)
                for images, labels in islice(batches, min(len(self.batches) - position, self.steps - self.step)):
                    with delay_interrupt():
                        report = self._advance(epoch, images, labels, started)
                        if time.monotonic() - self._saved_at >= self.checkpoint_seconds:
                            self._save()
                    yield report
                    self._restore()
                    started = time.perf_counter()
                    if self.step != report.step:  # another iterator of this trainer made steps meanwhile
                        break
                if self.step == before:
                    raise RuntimeError(f"epoch {epoch + 1}: expected {len(self.batches)} batches, got {position}")

    def train(self) -> TrainingResult:
        """Run to the end with a progress bar and return the result."""
        self._restore()
        for _ in with_progress(self) if self.progress else self:
            pass
        return self.result()

    def result(self) -> TrainingResult:
        """Accuracies and tables of a finished run, evaluated once. RuntimeError while steps remain."""
        if self.step < self.steps or self._mid_step:
            raise RuntimeError(f"the run is at step {self.step} of {self.steps}; finish it first, with train()")
        if self._scores is None:
            with nullcontext() if self.folder is None or self.folder.read_only else self.folder.held():
                last = None if self.test is None else self._evaluate(self.test)
                best = last
                if self._best is not None and last is not None:
                    with weights_of(self.model, self._best["model"]):
                        best = self._evaluate(self.test)
                self._scores = {"accuracy": best, "last_accuracy": last}
                self._save(force=True)
        best_epoch = self.epochs if self._best is None else self._best["epoch"]
        tables = {name: pd.DataFrame(rows) for name, rows in self.tables.items()}
        return self.result_type(**self._scores, best_epoch=best_epoch, seconds=self.seconds, tables=tables)

    def load_best(self) -> None:
        """Load the weights of the best validation epoch so far; RuntimeError before the first validation.

        A run with steps left continues from its own weights all the same.
        """
        if self._best is None:
            raise RuntimeError("there was no validation yet; give validation=… and train for one epoch or more")
        if self.step == self.steps and not self._mid_step:
            self.result()  # evaluates the last weights
        elif self._last is None:
            self._last = copied_state(self.model)
        self.model.load_state_dict(self._best["model"])

    def _advance(self, epoch: int, images: Tensor, labels: Tensor, started: float) -> StepReport:
        """Do one step: train, validate at the end of an epoch, and add to the tables."""
        if isinstance(self.batches.data, DataLoader):  # the labels of an image set were checked before training
            check_labels("training", labels, self.outputs)
        self._mid_step = True
        lr = self.rates[self.step]
        set_rates(self.optimizer, [rates[self.step] for rates in self._group_rates])
        self.model.train()
        images = images.to(self.device, next(self.model.parameters()).dtype)
        with seeded(derive_seed(self.seed, _STEP, self.step), self.device):
            metrics = self.train_on_batch(images, labels.to(self.device))
        self.step += 1
        ends = self.step % len(self.batches) == 0 or self.step == self.steps
        if self.step == self.steps or (ends and self.validation is not None):  # the network is evaluated
            settle_for_evaluation(self.model, self.batches, derive_seed(self.seed, _SETTLE, self.step), self.precision)
        if self.validation is not None:
            metrics["val_accuracy"] = math.nan
            if ends:
                metrics["val_accuracy"] = value = self._summary(self._evaluate(self.validation))
                if self._best is None or value > self._best["val_accuracy"]:
                    self._best = {"epoch": epoch + 1, "val_accuracy": value, "model": copied_state(self.model)}
        self.seconds += time.perf_counter() - started
        row = {"step": self.step, "epoch": epoch + 1, "seconds": round(self.seconds, 4), "lr": lr, **metrics}
        self._add("log", [row])
        self._after_step()
        self._mid_step = False
        return StepReport(self.step, self.steps, epoch + 1, self.epochs, metrics)

    def _add(self, table: str, rows: list[Row]) -> None:
        """Add rows to a table, in memory and in the folder."""
        self.tables.setdefault(table, []).extend(rows)
        if self.folder is not None:
            self.folder.append(table, rows)

    def _finite(self, loss: Float[Tensor, ""], name: str, context: str = "") -> float:
        """The loss as a number; FloatingPointError if it is not finite."""
        return finite_value(loss, name, f"at step {self.step + 1} ({self._error_context()}{context})")

    def _error_context(self) -> str:
        lr = f"learning rate {self.optimizer.param_groups[0]['lr']:.4g}"
        return lr if self._saved_step < 0 else f"{lr}; the last checkpoint is from step {self._saved_step}"

    def _probe_batch(self) -> tuple[Images, Labels]:
        """A few training images and labels, on the run's device."""
        return training_probe(self.batches, next(self.model.parameters()))

    def _try_model(self) -> None:
        """Run the network on a few images of each set, leaving it unchanged; ValueError if that fails."""
        others = {"validation": self.validation, "test": self.test}
        self.outputs = try_network(self.model, self.loss, self.batches, others, self._logits, self.precision)

    def _restore(self) -> None:
        """Restore the run's own state after `load_best`, or after a step that was not finished."""
        if self._last is not None:
            self.model.load_state_dict(self._last)
            self._last = None
        if self._mid_step:
            if self.folder is None:
                raise RuntimeError("the run broke off within a step and has no folder with a checkpoint to return to")
            self._load()

    @contextmanager
    def _locked_folder(self) -> Iterator[None]:
        """Lock the folder, if there is one, and drop rows after the checkpoint; always save on exit."""
        with nullcontext() if self.folder is None else self.folder.held():
            if self.folder is not None:
                if self.folder.changed_elsewhere:  # another trainer trained in the folder meanwhile
                    self._load()
                for table in self.tables:
                    self.folder.trim(table, self.step)
                if self._saved_step < 0:
                    self._save()  # so that there is always a checkpoint to return to
            try:
                yield
            finally:
                with delay_interrupt():
                    self._save()

    def _save(self, force: bool = False) -> None:
        """Write a checkpoint, unless this step has one already (and `force` is off) or the step is not finished."""
        if self._mid_step or (self.step == self._saved_step and not force):
            return
        self._mid_step = True
        check_finite(self.modules, f"after step {self.step} ({self._error_context()})")
        self._mid_step = False
        if self.folder is not None and not self.folder.read_only:
            checkpoint = {"step": self.step, "seconds": self.seconds, "best": self._best, "scores": self._scores}
            checkpoint |= get_states(self.modules, self.optimizers, self._last)
            network = self._network | {"origin": self.origin}
            self.folder.save(checkpoint | {"network": network, "extra": self._extra_state()})
            self._saved_step = self.step
        self._saved_at = time.monotonic()

    def _load(self) -> None:
        """Load the folder's last checkpoint, if it has one."""
        checkpoint = self.folder.load()
        if checkpoint is None and self.step > 0:
            raise RuntimeError(f"{self.folder.path} has lost its checkpoint; make a new trainer to start again")
        if checkpoint is None:
            return
        try:
            set_states(checkpoint, self.modules, self.optimizers, self.steps)
            self._load_extra_state(checkpoint["extra"])
            self.step, self.seconds = checkpoint["step"], checkpoint["seconds"]
            self._best, self.origin = checkpoint["best"], checkpoint.get("network", {}).get("origin", {})
            self._scores = checkpoint["scores"] if self.step >= self.steps else None  # a longer run has none yet
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            came = Words(f"one that does not fit it: {error}")
            raise mismatch(f"{self.folder.path / 'checkpoint.pt'}", "a checkpoint of this run", came) from error
        self.tables = {k: self.folder.read(k, self.step, self.steps, self._rows_every.get(k)) for k in self.tables}
        if self.folder.extends:
            check_extension(self)
        self._mid_step, self._saved_step = False, self.step
