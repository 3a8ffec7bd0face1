"""Watch a training run while it goes on: a figure that grows in place, and a button that stops it."""

import math
import sys
import time
from typing import Any

import numpy as np
import pandas as pd
import traitlets
from matplotlib.colors import to_hex

from mtanytime.explore import contents, draw
from mtanytime.explore.widget import Explorer
from mtanytime.training import StepReport, Trainer, TrainingResult

SECONDS_BETWEEN = 0.5  # two states of the figure
POINTS_UP_TO = 200  # of a line
LINES_UP_TO = 8  # of a panel


class LiveTraining(Explorer):
    """The losses and accuracies of a run, drawn while it trains.

    `LiveTraining(trainer).train()` takes the place of `trainer.train()`: the figure stands below the cell and is
    redrawn there, at most twice a second; the output does not grow. Each point is the mean of equally many steps.
    "Stop" ends the run after the present step; like an interrupt it leaves a run that goes on, by `train()` again or by
    a new trainer with the same arguments and folder. (A kernel hears the button during a cell where messages to widgets
    have a thread of their own: JupyterLab from 4.4 with ipykernel from 7. Elsewhere interrupt the kernel.)

    Where nothing shows widgets, in a script or a terminal, `train()` is the trainer's own, with its progress bar. What
    is left in a notebook without a front end (GitHub, nbconvert) is the picture of the whole run.

    Args:
        trainer: any `Trainer`, new or resumed.

    Attributes:
        stop: whether the run is to end after the present step; set by the button.
    """

    stop = traitlets.Bool().tag(sync=True)

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._drawn_at = -math.inf
        self._began: tuple[float, int] = (time.monotonic(), trainer.step)  # for the speed
        super().__init__(content=self._contents("waiting", {}))
        # From 7.4 on ipykernel hands a widget's messages to the thread that last wrote to it, here the busy one, even
        # where the front end asks for a thread of their own: the button needs what the front end asks for.
        if hasattr(self.comm, "_reply_subshell_for"):
            self.comm._reply_subshell_for = lambda data, asked_for: asked_for

    def train(self) -> TrainingResult | None:
        """Show the figure, run what is left of the training, and return its result; None if it was stopped before.

        Errors of the trainer come through, with the figure left as it was.
        """
        shell = _notebook()
        if shell is None:
            return self._trainer.train()
        from IPython.display import display

        self.stop = False
        handle = display(self, display_id=True)
        state = "broke off"
        try:
            finished = self.run()
            state = "finished" if finished else "stopped"
            return self._trainer.result() if finished else None
        finally:
            self.show(state)
            handle.update(self)  # for readers without a front end: the picture as it is now

    def run(self) -> bool:
        """Train until the end or until `stop`; whether the end was reached. The figure is kept up to date."""
        trainer = self._trainer
        self._began = (time.monotonic(), trainer.step)
        report: StepReport | None = None
        self.show("running")
        for report in trainer:
            if time.monotonic() - self._drawn_at >= SECONDS_BETWEEN:
                self.show("running", report)
            if self.stop:
                break
        return trainer.step >= trainer.steps

    def show(self, state: str, report: StepReport | None = None) -> None:
        """Bring the figure up to date; `state` is "running", or how the run ended."""
        self.content = self._contents(state, {} if report is None else report.metrics)
        self._drawn_at = time.monotonic()

    def picture(self) -> draw.Picture:
        """Losses and accuracies so far."""
        log = self._log()
        if log.empty:
            return draw.Picture("A training run that has not begun", 4, 0.5)
        return draw.learning_curves(log)

    def _log(self) -> pd.DataFrame:
        return pd.DataFrame(self._trainer.tables["log"])

    def _contents(self, state: str, metrics: Any) -> contents.Contents:
        trainer = self._trainer
        steps, step, epochs = trainer.steps, trainer.step, trainer.epochs
        epoch = min(step * epochs // steps + 1, epochs)
        words = f"step {step:,} of {steps:,} · epoch {epoch} of {epochs}"
        since, first = self._began
        if state == "running" and step > first:
            speed = (step - first) / max(time.monotonic() - since, 1e-9)
            words += f" · {speed:.3g} steps/s · {_duration((steps - step) / speed)} left"
        elif state != "running":
            words += f" · {state}"
        resumes = "The run goes on from here by train(), or by the same trainer with the same folder."
        return {
            "kind": "live",
            "title": "Training",
            "summary": f"{step} of {steps} steps, {state}",
            "note": resumes if state == "stopped" else "",
            "state": state,
            "step": step,
            "steps": steps,
            "words": words,
            "panels": panels(self._log()),
        }


def panels(log: pd.DataFrame) -> list[contents.Contents]:
    """A log's losses, and its accuracies in percent, as lines of at most 200 points, means of equally many rows."""
    found = []
    for ending, title, unit, factor in (("loss", "Loss", "", 1), ("accuracy", "Accuracy", " (%)", 100)):
        names = [name for name in log if _kind(name) == ending and log[name].notna().any()]
        colours = draw.distinct_colours(names[:LINES_UP_TO])
        lines = []
        for name in names[:LINES_UP_TO]:
            line = log[["step", name]].replace([np.inf, -np.inf], np.nan).dropna()
            every = -(-len(line) // POINTS_UP_TO)
            means = line.groupby(np.arange(len(line)) // max(every, 1)).mean()
            lines.append(
                {
                    "name": _worded(name),
                    "colour": to_hex(colours[name]),
                    "steps": [round(step) for step in means["step"].tolist()],
                    "values": [float(f"{factor * value:.4g}") for value in means[name].tolist()],
                }
            )
        if lines:
            found.append({"title": title, "unit": unit, "lines": lines})
    return found


def _kind(name: str) -> str:
    """ "loss", "accuracy" (of one exit, too: "accuracy_2"), or something else."""
    stem, _, number = name.rpartition("_")
    name = stem if number.isdigit() else name
    return next((kind for kind in ("loss", "accuracy") if name.endswith(kind)), "")


def _worded(name: str) -> str:
    stem, _, number = name.rpartition("_")
    if number.isdigit():
        return f"{stem.replace('_', ' ')} of exit {number}"
    return draw.BATCH_ACCURACY if name == "accuracy" else name.replace("_", " ")


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _notebook() -> Any:
    """The shell of a Jupyter kernel, or None elsewhere."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    shell = get_ipython()
    return shell if getattr(shell, "kernel", None) is not None else None
