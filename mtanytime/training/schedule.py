"""Learning-rate schedules: the learning rate of each step of a run."""

import math
from collections.abc import Callable
from typing import Literal

from mtanytime.checks import require

Schedule = Literal["cosine", "steps", "constant", "warm-up cosine"] | Callable[[float], float]

# Name -> factor of the learning rate, as a function of the fraction of the run that is done.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "steps": lambda progress: 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01,
    "constant": lambda progress: 1.0,
    "warm-up cosine": lambda progress: min(progress / 0.05, 1.0) * 0.5 * (1 + math.cos(math.pi * progress)),
}

# Schedules that change the rate at every step, for runs of a few epochs; the others change it at every epoch.
STEP_BY_STEP = ("warm-up cosine",)


def learning_rates(lr: float, schedule: Schedule, steps: int, steps_per_epoch: int) -> list[float]:
    """The learning rate of each step; the last epoch may be a part of one.

    Raises ValueError for a schedule with a factor below 0 or not finite.
    """
    factor = schedule if callable(schedule) else SCHEDULES[schedule]
    if schedule in STEP_BY_STEP:
        return [lr * factor((step + 1) / (steps + 1)) for step in range(steps)]
    epochs = math.ceil(steps / steps_per_epoch)
    rates = [lr * factor(epoch / epochs) for epoch in range(epochs)]
    require(all(0 <= rate < math.inf for rate in rates), "schedule", "finite factors >= 0", rates)
    return [rates[step // steps_per_epoch] for step in range(steps)]
