"""Learning-rate schedules: the learning rate of each step of a run."""

import math
from collections.abc import Callable
from typing import Any, Literal

from mtanytime.checks import Words, mismatch, require

Schedule = Literal["cosine", "steps", "constant", "warm-up cosine"] | Callable[[float], float]

# Name -> factor of the learning rate, as a function of the completed fraction of the run.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "steps": lambda progress: 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01,
    "constant": lambda progress: 1.0,
    "warm-up cosine": lambda progress: min(progress / 0.05, 1.0) * 0.5 * (1 + math.cos(math.pi * progress)),
}

# Schedules that change the rate at every step, for runs of a few epochs; the others change it at every epoch.
STEP_BY_STEP = ("warm-up cosine",)


def learning_rates(lr: float, schedule: Schedule, steps: int, steps_per_epoch: int) -> list[float]:
    """The learning rate of each step; the last epoch may be incomplete.

    Raises ValueError for a schedule with a factor below 0 or not finite.
    """
    factor = schedule if callable(schedule) else SCHEDULES[schedule]
    if schedule in STEP_BY_STEP:
        return [float(lr * factor((step + 1) / (steps + 1))) for step in range(steps)]
    epochs = math.ceil(steps / steps_per_epoch)
    rates = [float(lr * factor(epoch / epochs)) for epoch in range(epochs)]
    require(all(0 <= rate < math.inf for rate in rates), "schedule", "finite factors >= 0", rates)
    return [rates[step // steps_per_epoch] for step in range(steps)]


def check_extension(trainer: Any) -> None:
    """Check that a run may be extended to more epochs or steps.

    Raises ValueError if the longer run would have taken other steps than those already done: its schedule has other
    learning rates for them, or the shorter run validated within an epoch.
    """
    made = [row["lr"] for row in trainer.tables["log"]]
    length = "steps" if trainer.settings.epochs is None else "epochs"
    remedy = (
        'choose another folder, schedule="constant" from the start, or begin a new run with these weights: '
        "model=mtanytime.load_run(folder, model).network"
    )
    if made != trainer.rates[: trainer.step]:
        step = next(i for i, pair in enumerate(zip(made, trainer.rates, strict=False)) if pair[0] != pair[1])
        schedule = trainer.settings.schedule
        name = repr(schedule) if isinstance(schedule, str) else "of its own"
        expected = f"the number of {length} in {trainer.folder.path}, since a run's schedule ({name}) depends on it"
        came = f"{getattr(trainer, length)}, with learning rate {trainer.rates[step]:.4g} at step {step + 1}"
        raise mismatch(length, expected, Words(f"{came} in place of {made[step]:.4g}"), remedy)
    within = trainer.validation is not None and trainer.step % len(trainer.batches) > 0
    if within and math.isfinite(trainer.tables["log"][-1]["val_accuracy"]):
        came = Words(f"{trainer.steps}, after a validation at step {trainer.step}, within an epoch")
        raise mismatch(length, f"the number of {length} in {trainer.folder.path}", came, remedy)
