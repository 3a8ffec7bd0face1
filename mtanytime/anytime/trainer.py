"""Train an anytime network: all of its exits at once, on a joint loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mtanytime.checks import require_wanted
from mtanytime.data.images import ImageSet, Task
from mtanytime.devices import Precision, autocast
from mtanytime.features import unwrapped
from mtanytime.measure.costs import exit_costs
from mtanytime.measure.evaluation import batch_accuracy, fraction_correct
from mtanytime.training.settings import with_keywords_of
from mtanytime.training.trainer import Trainer, TrainingResult


class JointLoss:
    """The weighted sum of the exits' losses (arXiv:1807.02609 sums them unweighted), with optional self-distillation.

    Args:
        weights: of the exits, thin to wide; None: 1 each.
        distillation: adds to each exit but the widest this much of its distillation loss: T² times the Kullback–Leibler
            divergence of its softened answer from the widest one's, which is taken as given (arXiv:1503.02531).
        temperature: T, by which the logits are divided for distillation.
        loss: of one exit, `loss(logits, labels)`, a scalar.

    Raises:
        ValueError: weights below zero or not finite, or none above; a temperature that is not above zero.
    """

    def __init__(
        self,
        weights: Sequence[float] | None = None,
        distillation: float = 0.0,
        temperature: float = 2.0,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        fine = weights is None or (all(0 <= weight < float("inf") for weight in weights) and any(weights))
        require_wanted(fine, "weights >= 0, some of them above", weights)
        require_wanted(0 <= distillation < float("inf"), "distillation >= 0", distillation)
        require_wanted(0 < temperature < float("inf"), "temperature > 0", temperature)
        self.weights = None if weights is None else tuple(float(weight) for weight in weights)
        self.distillation, self.temperature, self.loss = distillation, temperature, loss

    def __call__(
        self, outputs: list[Float[Tensor, "batch classes"]], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """The joint loss. Raises ValueError where there is not a weight for each exit."""
        weights = self.weights or (1.0,) * len(outputs)
        require_wanted(len(weights) == len(outputs), f"{len(outputs)} weights, one for each exit", weights)
        losses = [self.loss(logits, labels) for logits in outputs]
        if self.distillation:
            wanted = F.softmax(outputs[-1].detach() / self.temperature, dim=1)
            for k, logits in enumerate(outputs[:-1]):
                log_answer = F.log_softmax(logits / self.temperature, dim=1)
                divergence = F.kl_div(log_answer, wanted, reduction="batchmean")
                losses[k] = losses[k] + self.distillation * self.temperature**2 * divergence
        return sum(weight * loss for weight, loss in zip(weights, losses, strict=True))


@dataclass(frozen=True)
class AnytimeResult(TrainingResult):
    """How an anytime run ended: `accuracy` and `last_accuracy` hold one fraction an exit, thin to wide."""

    accuracy: list[float] | None
    last_accuracy: list[float] | None


@with_keywords_of(Trainer)
class AnytimeTrainer(Trainer):
    """Train all exits of a network on a joint loss, as `Trainer` does one network, with its arguments.

    The log has the training batch's accuracy of each exit, `accuracy_1`, `accuracy_2`, …; `accuracy` and `val_accuracy`
    are their means, and the best validation epoch is chosen by that mean.

    Args:
        model: a network whose output is the list of its exits' logits, thin to wide, or a function that makes one.
        data: see `Trainer`.
        test: see `Trainer`.
        loss: `loss(outputs, labels)`, a scalar, such as `JointLoss()` or a `taxonomy.CoarseToFineLoss`.
        settings: the other arguments of `Trainer`.

    Raises:
        ValueError: as `Trainer`, and for a network that gives something else.
    """

    result_type: ClassVar[type[TrainingResult]] = AnytimeResult

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        data: Task | ImageSet | DataLoader,
        test: ImageSet | DataLoader | None = None,
        *,
        loss: Callable[[list[Tensor], Tensor], Tensor] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, data, test, loss=JointLoss() if loss is None else loss, **settings)

    def result(self) -> AnytimeResult:
        """As `Trainer.result`. The run's folder then holds its curve, too, curve.csv: model (the class of the network),
        seed, exit, macs, macs_own_head, params, accuracy; for networks whose exits can be cut out (`extract`)."""
        result = super().result()
        network = unwrapped(self.model)
        there = self.folder is None or (self.folder.path / "curve.csv").exists()
        if not there and result.accuracy is not None and hasattr(network, "extract"):
            costs = exit_costs(self.model, self._probe_batch()[0].shape[1:])
            names = {"model": type(network).__name__, "seed": self.seed}
            self.folder.write("curve", costs.assign(accuracy=result.accuracy, **names)[[*names, *costs, "accuracy"]])
        return result

    def train_on_batch(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Do one SGD step on the joint loss; see `Trainer.train_on_batch`."""
        with autocast(self.device, self.precision):
            outputs = self.model(images)
            loss = self.loss(outputs, labels)
        accuracies = [batch_accuracy(logits, labels) for logits in outputs]
        figures = {"loss": self._finite(loss, "loss"), "accuracy": sum(accuracies) / len(accuracies)}
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return figures | {f"accuracy_{k}": accuracy for k, accuracy in enumerate(accuracies, 1)}

    def _logits(self, output: Any) -> Tensor:
        fine = isinstance(output, list | tuple) and all(isinstance(o, Tensor) and o.ndim == 2 for o in output)
        if not fine or len({logits.shape for logits in output}) != 1:
            came = [tuple(o.shape) for o in output] if fine else type(output).__name__
            raise ValueError(
                f"wanted a network that gives a list of logits, (batch, classes) for each exit; got {came}"
            )
        return output[-1]

    def _evaluate(self, data: ImageSet | DataLoader) -> list[float]:
        return evaluate_exits(self.model, data, precision=self.precision)

    def _summary(self, accuracy: list[float]) -> float:
        return sum(accuracy) / len(accuracy)


def evaluate_exits(
    model: nn.Module,
    data: ImageSet | DataLoader,
    *,
    batch_size: int = 256,
    precision: Precision = "float32",
) -> list[float]:
    """Top-1 accuracy in [0, 1] of every exit in eval mode; modes and torch's random state are put back."""
    right = lambda outputs, labels: (torch.stack(list(outputs)).argmax(dim=2) == labels).sum(dim=1)  # noqa: E731
    return fraction_correct(model, data, right, batch_size, precision).tolist()
