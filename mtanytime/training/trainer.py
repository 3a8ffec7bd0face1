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
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mtanytime.checks import Words, require
from mtanytime.data.batches import batches_of
from mtanytime.data.images import LabelledImages, Task
from mtanytime.devices import autocast, best_device
from mtanytime.measure.evaluation import batch_accuracy, class_count, evaluate
from mtanytime.measure.logits import find_logits
from mtanytime.randomness import derive_seed, seeded
from mtanytime.training.batch_norm import settle_for_evaluation
from mtanytime.training.checkpoint import check_readable, copied_state, finite_value, weights_of
from mtanytime.training.distributed import Processes
from mtanytime.training.identity import run_record
from mtanytime.training.interrupt import step_interrupts
from mtanytime.training.kept_run import KeptRun
from mtanytime.training.network import make_network
from mtanytime.training.optimizers import group_rates, make_optimizer, set_rates
from mtanytime.training.progress import with_progress
from mtanytime.training.run_folder import Row, RunFolder
from mtanytime.training.sets import prepare_sets
from mtanytime.training.settings import TrainerSettings, check_keywords, complete, with_keywords_of
from mtanytime.training.shared_batch_norm import shared_batch_norm
from mtanytime.training.stored_run import describe_network
from mtanytime.training.trial import (
    Images,
    Labels,
    as_numbers,
    cautions,
    check_labels,
    check_mean,
    other_sizes,
    probe,
    smallest_batch,
    training_probe,
    try_network,
)

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
class Trainer(KeptRun):
    """Train one network on one task, step by step.

    `for report in trainer` runs the steps and yields a `StepReport` after each; leave the loop and iterate again to
    continue. `train()` is that loop with a progress bar. An interrupt takes effect at the end of the step; a
    second one takes effect at once. The run can then continue, with the same trainer or with a new one that has the
    same arguments and folder. A run that was stopped within a step returns to its last checkpoint.

    Args:
        model: the network, `logits = model(images)`, trained in place on `device`, in train mode at every step; or a
            function that makes it, called under the run's seed. A resumed run has its weights from the checkpoint.
        data: a `Task` (its test set is used), an image set, or a `DataLoader` of (images in [0, 1], labels).
        test: the test set; it replaces that of a `Task`.
        validation: a validation set, or the fraction of an image set to hold out for it, balanced by class. The test
            accuracy is then measured with the weights of the best validation epoch (the first of equally good ones).
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
    defaults: ClassVar[Mapping[str, Any]] = {}  # settings whose defaults a subclass changes

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
        self.processes = Processes()
        self.checkpoint_seconds, self.progress = checkpoint_seconds, progress and self.processes.first
        self.notes: list[str] = []
        train, self.validation, self.test = prepare_sets(data, test, validation, self.seed, self.device)
        options = {"seed": self.seed, "augment": settings.augment, "remainder": settings.remainder}
        self.batches = batches_of(train, settings.batch_size, **options)
        self.notes += cautions(self.batches, self.validation)
        self.epochs = settings.epochs or math.ceil(settings.steps / len(self.batches))
        self.steps = settings.steps or self.epochs * len(self.batches)
        self.model = make_network(model, self.batches, self.seed, self.device)
        self.outputs: int | None = None  # the number of classes in the network's output, known after its trial
        self.modules, self.optimizers = {"model": self.model}, {}
        self.tables, self._rows_every = {"log": []}, {"log": 1}
        self._build()
        self.notes += other_sizes(self.model, self.batches, validation=self.validation, test=self.test)
        self.optimizers["optimizer"] = self.optimizer
        self._group_rates = group_rates(self.optimizer, settings.schedule, self.steps, len(self.batches))
        self.rates = self._group_rates[0]  # one per step
        self.step, self.seconds = 0, 0.0
        self._best = self._last = self._scores = None
        self._mid_step, self._saved_step, self._saved_at = False, -1, time.monotonic()
        self.origin, self.folder, self.kept = {}, None, folder is not None
        self.share = 1.0  # of the step's images, those that this process has
        if self.processes.count > 1:
            self._join_processes()
        if folder is not None:
            check_readable(self.modules | self.optimizers)
            few, _ = self._probe_batch() if self.test is None else probe(self.test, next(self.model.parameters()))
            self._network = describe_network(self.model, self.batches.data, few)
            with self.processes.together():
                if self.processes.first:
                    self.folder = RunFolder(folder, run_record(self) | self._config(), self._network["structure"])
            self._load()
            with self.processes.together():
                if self.folder is not None and self.folder.read_only and self.step < self.steps:
                    self.folder.deny()

    def _build(self) -> None:
        """Try the network on the data and make the optimizer."""
        self._try_model()
        self.optimizer = make_optimizer(self.settings, self.model)

    def _join_processes(self) -> None:
        """Check that all processes make the same run on batches that they can share; take the first one's weights."""
        self.processes.check_same(run_record(self) | self._config())
        least, count = smallest_batch(self.batches), self.processes.count
        remedy = 'choose another batch size, or remainder="drop"'
        expected = f"batches of {count} images or more, one per process"
        require(least is None or least >= count, "batch_size", expected, Words(f"one of {least}"), remedy)
        self.processes.copy_first(self.modules)
        images, labels = self.batches.batch(0, 0)
        check_mean(self.loss, self.model, images[:8], labels[:8], self.precision)
        self.batches.needed = self.processes.rows

    def _config(self) -> Row:
        """Further settings that identify the run."""
        return {}

    def train_on_batch(self, images: Images, labels: Labels) -> dict[str, float]:
        """Do one training step on one batch and return its metrics (losses, accuracy, …).

        The loop calls it under the step's own seed, with floats in [0, 1] on the device, the network in train mode. Of
        several processes, each gets its part of the batch (see `distributed`); the metrics are those of the full batch.
        """
        with autocast(self.device, self.precision):
            output = self.model(images)
            loss = self.loss(output, labels)
        metrics = self._metrics({"loss": loss, "accuracy": batch_accuracy(self._logits(output), labels)})
        self._descend(loss)
        return metrics

    def _metrics(self, means: Mapping[str, float | Tensor]) -> dict[str, float]:
        """Means over this process's images as means over all; FloatingPointError for a loss that is not finite."""
        numbers = {name: value.item() if isinstance(value, Tensor) else value for name, value in means.items()}
        metrics = self.processes.metrics(numbers, self.share)
        self._finite(metrics["loss"], "loss")
        return metrics

    def _descend(self, loss: Float[Tensor, ""]) -> None:
        """Take one step of the optimizer on a loss, a mean over this process's images."""
        self.optimizer.zero_grad()
        (loss if self.processes.count == 1 else loss * self.share).backward()
        self.processes.sum_gradients([p for group in self.optimizer.param_groups for p in group["params"]])
        self.optimizer.step()

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
        """Add rows to further tables; called after each step, which `step` already counts."""

    def __iter__(self) -> Iterator[StepReport]:
        """Run the remaining steps and yield a report after each."""
        self._restore()
        if self.step >= self.steps:
            return
        agree = self.processes.any if self.processes.count > 1 else None
        with self._locked_folder(), step_interrupts(agree) as whole_step:
            while self.step < self.steps:
                epoch, position = divmod(self.step, len(self.batches))
                started, before = time.perf_counter(), self.step
                batches = self.batches.epoch(epoch, start=position)
                for images, labels in islice(batches, min(len(self.batches) - position, self.steps - self.step)):
                    with self.processes.losses_explained(), whole_step():
                        report = self._advance(epoch, images, labels, started)
                        if time.monotonic() - self._saved_at >= self.checkpoint_seconds:
                            self._save()
                    yield report
                    self._restore()
                    started = time.perf_counter()
                    if self.step != report.step:  # another iterator of this trainer has made steps
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
            self._check_weights()
            with nullcontext() if self.folder is None or self.folder.read_only else self.folder.held():
                last = None if self.test is None else self.processes.evaluate(self.test, self._evaluate)
                best = last
                if self._best is not None and last is not None:
                    with weights_of(self.model, self._best["model"]):
                        best = self.processes.evaluate(self.test, self._evaluate)
                self._scores = {"accuracy": best, "last_accuracy": last}
                self._save(force=True)
        best_epoch = self.epochs if self._best is None else self._best["epoch"]
        tables = {name: pd.DataFrame(rows) for name, rows in self.tables.items()}
        return self.result_type(**self._scores, best_epoch=best_epoch, seconds=self.seconds, tables=tables)

    def load_best(self) -> None:
        """Load the weights of the best validation epoch so far; RuntimeError before the first validation.

        A run with steps left still continues from its own weights.
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
        own_images = self.processes.part(images).to(self.device, next(self.model.parameters()).dtype)
        own_labels = self.processes.part(labels).to(self.device)
        self.share = len(own_labels) / len(labels)
        seed = derive_seed(self.seed, _STEP, self.step)
        with seeded(seed, self.device), shared_batch_norm(self.processes):
            metrics = as_numbers(self.train_on_batch(own_images, own_labels))
        self.step += 1
        if self.step == 1 and self.kept:  # an optimizer's state begins with its first step
            check_readable(self.optimizers)
        if self.step & (self.step - 1) == 0 or self.step == self.steps:  # at steps 1, 2, 4, 8, …
            self.processes.check_weights(self.modules)
        ends = self.step % len(self.batches) == 0 or self.step == self.steps
        if self.step == self.steps or (ends and self.validation is not None):  # the network is evaluated
            settle_for_evaluation(self.model, self.batches, derive_seed(self.seed, _SETTLE, self.step), self.precision)
        if self.validation is not None:
            metrics["val_accuracy"] = math.nan
            if ends:
                self._check_weights()
                metrics["val_accuracy"] = value = self._summary(
                    self.processes.evaluate(self.validation, self._evaluate)
                )
                if self._best is None or value > self._best["val_accuracy"]:
                    self._best = {"epoch": epoch + 1, "val_accuracy": value, "model": copied_state(self.model)}
        self.seconds += time.perf_counter() - started
        row = {"step": self.step, "epoch": epoch + 1, "seconds": round(self.seconds, 4), "lr": lr, **metrics}
        self._add("log", [row])
        self._after_step()
        self._mid_step = False
        return StepReport(self.step, self.steps, epoch + 1, self.epochs, metrics)

    def _finite(self, loss: Float[Tensor, ""] | float, name: str, context: str = "") -> float:
        """The loss as a number; FloatingPointError if it is not finite."""
        return finite_value(loss, name, f"at step {self.step + 1} ({self._error_context()}{context})")

    def _probe_batch(self) -> tuple[Images, Labels]:
        """A few training images and labels, on the run's device."""
        return training_probe(self.batches, next(self.model.parameters()))

    def _try_model(self) -> None:
        """Run the network on a few images of each set, leaving it unchanged; ValueError if that fails."""
        others = {"validation": self.validation, "test": self.test}
        self.outputs = try_network(self.model, self.loss, self.batches, others, self._logits, self.precision)
