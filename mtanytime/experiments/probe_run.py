"""A linear probe of the source, as one run of a recipe."""

import time
from collections.abc import Sequence
from functools import cache

from torch import nn

from mtanytime.data.images import ImageSet, Task
from mtanytime.measure.evaluation import evaluate
from mtanytime.training.trainer import TrainingResult
from mtanytime.transfer.probe import STRENGTHS, LinearProbe, fit_probe


@cache  # a recipe's trainers are built twice, first to validate them
def timed_probe(
    source: nn.Module, data: ImageSet, layers: Sequence[str] | None = None, strengths: Sequence[float] = STRENGTHS
) -> tuple[LinearProbe, float]:
    """Fit a probe (see `fit_probe`) and return it with the seconds that this took; the same one for equal arguments."""
    started = time.perf_counter()
    return fit_probe(source, data, layers=layers, strengths=strengths), time.perf_counter() - started


class ProbeRun:
    """The fitted probe in the place of a trainer: nothing is left to train, and `result` evaluates it."""

    def __init__(self, probe: LinearProbe, task: Task, seconds: float) -> None:
        self.model, self._task, self.seconds = probe, task, seconds
        self.step = self.steps = self.epochs = 0

    def train(self) -> TrainingResult:
        """The accuracy on the test set."""
        accuracy = evaluate(self.model, self._task.test)
        return TrainingResult(accuracy, accuracy, 0, self.seconds, {})
