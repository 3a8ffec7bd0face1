"""A progress bar around the training loop, on stdout: notebooks compare stderr."""

import math
import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from mtanytime.console import say

_SHOWN = ("loss", "accuracy", "mean_lambda", "val_accuracy")


def with_progress(trainer: Any) -> Iterator[Any]:
    """Iterate over a trainer's step reports, showing its notes, a progress bar and the latest metrics."""
    for note in trainer.notes:
        say(note)
    if trainer.step >= trainer.steps:
        say("already finished")
        return
    if trainer.step:
        say(f"resuming at step {trainer.step} of {trainer.steps}")
    shown: dict[str, str] = {}
    bar = tqdm(trainer, total=trainer.steps, initial=trainer.step, unit="step", mininterval=0.5, file=sys.stdout)
    for report in bar:
        metrics = {k: v for k, v in report.metrics.items() if k in _SHOWN and math.isfinite(v)}
        shown |= {k: f"{v:.3g}" for k, v in metrics.items()}
        bar.set_postfix(shown, refresh=False)
        yield report
