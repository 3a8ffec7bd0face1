"""Train an anytime network: all of its exits at once, with a joint loss."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mtanytime.anytime.joint_loss import JointLoss
from mtanytime.checks import Words, mismatch
from mtanytime.data.images import LabelledImages, Task
from mtanytime.devices import Precision, autocast
from mtanytime.features import unwrapped
from mtanytime.measure.costs import exit_costs, has_exits
from mtanytime.measure.evaluation import batch_accuracy, class_count, fraction_correct, right_answers, without_nan
from mtanytime.measure.logits import Pick, find_exits
from mtanytime.training.settings import with_keywords_of
from mtanytime.training.trainer import Trainer, TrainingResult
from mtanytime.training.trial import probe


@dataclass(frozen=True)
class AnytimeResult(TrainingResult):
    """`TrainingResult` of an anytime run: `accuracy` and `last_accuracy` hold one accuracy per exit, thin to wide."""

    accuracy: list[float] | None
    last_accuracy: list[float] | None


@with_keywords_of(Trainer)
class AnytimeTrainer(Trainer):
    """Train all exits of a network with a joint loss; otherwise like `Trainer`, and with its arguments.

    The log has the training batch's accuracy per exit, `accuracy_1`, `accuracy_2`, …; `accuracy` is their mean.
    `val_accuracy` is the mean over the exits too, and the best validation epoch is chosen by it.

    Args:
        model: a network whose output is the list of its exits' logits, thin to wide, or a function that makes it.
        data: see `Trainer`.
        test: see `Trainer`.
        loss: `loss(output, labels)` of the network's output, a scalar, such as `JointLoss()` or a
            `taxonomy.CoarseToFineLoss`.
        settings: the other arguments of `Trainer`.

    Raises:
        ValueError: as `Trainer`, and for a network with another output.
    """

    result_type: ClassVar[type[TrainingResult]] = AnytimeResult

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        data: Task | LabelledImages | DataLoader,
        test: LabelledImages | DataLoader | None = None,
        *,
        loss: Callable[[list[Tensor], Tensor], Tensor] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, data, test, loss=JointLoss() if loss is None else loss, **settings)
        self._costs: pd.DataFrame | None = None
        if self.kept and self.step < self.steps:
            self._costs = self._count_costs()  # before training, as it may fail

    def result(self) -> AnytimeResult:
        """Accuracies and tables of a finished run, as `Trainer.result`; also writes the run's curve to its folder.

        The curve is curve.csv with the columns model (the network's class), seed, exit, macs, macs_own_head, params and
        accuracy. Costs are those of a test image. It is written for networks whose exits can be cut out (`extract`).
        """
        result = super().result()
        written = self.folder is None or self.folder.read_only or (self.folder.path / "curve.csv").exists()
        costs = None if written else self._costs if self._costs is not None else self._count_costs()
        if costs is not None:
            names = {"model": type(unwrapped(self.model)).__name__, "seed": self.seed}
            self.folder.write("curve", costs.assign(accuracy=result.accuracy, **names)[[*names, *costs, "accuracy"]])
        return result

    def _count_costs(self) -> pd.DataFrame | None:
        """What a test image costs at each exit; None without test images, or if exits cannot be cut out."""
        if self.test is None or not has_exits(unwrapped(self.model)):
            return None
        images, _ = probe(self.test, next(self.model.parameters()))
        return exit_costs(self.model, images.shape[1:])

    def train_on_batch(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Do one training step on one batch, on the joint loss, and return its metrics."""
        with autocast(self.device, self.precision):
            output = self.model(images)
            loss = self.loss(output, labels)
        accuracies = [batch_accuracy(logits, labels) for logits in find_exits(output, pick=self.settings.logits)]
        means = {"loss": loss, "accuracy": sum(accuracies) / len(accuracies)}
        metrics = self._metrics(means | {f"accuracy_{k}": accuracy for k, accuracy in enumerate(accuracies, 1)})
        self._descend(loss)
        return metrics

    def _logits(self, output: Any) -> Tensor:
        pick = self.settings.logits
        with suppress(ValueError):  # the error below fits better
            output = find_exits(output, pick=pick) if pick or not isinstance(output, Tensor) else output
        matrices = isinstance(output, list | tuple) and all(isinstance(o, Tensor) and o.ndim == 2 for o in output)
        if not matrices or len({logits.shape for logits in output}) != 1:
            shown = [tuple(logits.shape) for logits in output] if matrices else type(output).__name__
            raise mismatch(
                "model", "a network that returns a list of logits (batch, classes), one per exit", Words(shown)
            )
        return output[-1]

    def _evaluate(self, data: LabelledImages | DataLoader) -> list[float]:
        return evaluate_exits(self.model, data, precision=self.precision, logits=self.settings.logits)

    def _summary(self, accuracy: list[float]) -> float:
        return sum(accuracy) / len(accuracy)


def evaluate_exits(
    model: nn.Module,
    data: LabelledImages | DataLoader,
    *,
    batch_size: int = 256,
    precision: Precision = "float32",
    logits: Pick | None = None,
) -> list[float]:
    """Top-1 accuracy in [0, 1] of each exit in eval mode. Modes and torch's random state are restored.

    `logits` picks the list of the exits' logits from the model's output; default: see `measure.logits.find_exits`.
    Raises ValueError as `measure.evaluate`.
    """
    classes = class_count(data)

    def correct(output: Any, labels: Tensor) -> Tensor:
        return right_answers(without_nan(torch.stack(find_exits(output, classes, logits))), labels).sum(dim=1)

    return fraction_correct(model, data, correct, batch_size, precision).tolist()
