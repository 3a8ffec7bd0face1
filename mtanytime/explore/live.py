"""Watch a training run: a figure that grows in place, and a button that stops the run."""

import math
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from mtanytime.checks import Words, one_line, require
from mtanytime.explore import draw
from mtanytime.explore.contents.common import Contents
from mtanytime.explore.widget import Explorer
from mtanytime.training.trainer import Trainer, TrainingResult

SECONDS_BETWEEN = 0.5  # two updates of the figure
POINTS_UP_TO = 200  # per line
LINES_UP_TO = 8  # per panel
RESUMES = "Resume or train() goes on from step {:,}; so does a new trainer with the same arguments and folder."
RESULT = "The trainer's result() returns its accuracies."


class LiveTraining(Explorer):
    """Draw the losses and accuracies of a run while it trains.

    Call `LiveTraining(trainer).train()` instead of `trainer.train()`. The figure is redrawn in place below the cell, at
    most twice per second. In a long run a point is the mean of several steps. "Stop" ends the run after the current
    step; as after an interrupt, the run can be resumed: by "Resume" or another `train()`. A resumed run keeps the
    kernel busy as its cell did, and other cells wait. (Stopping works while the kernel is busy only where messages to
    widgets have a thread of their own: JupyterLab from 4.4 with ipykernel from 7. Elsewhere interrupt the kernel.) The
    curves are those of the training batches and, where the trainer has a validation set, of its accuracy.

    In a script or a terminal, `train()` is the trainer's own, with its progress bar. A notebook without a front end
    (GitHub, nbconvert) shows the picture of the whole run.

    Args:
        trainer: any `Trainer`, new or resumed.

    Raises:
        ValueError: `trainer` is not a `Trainer`.
    """

    def __init__(self, trainer: Trainer) -> None:
        remedy = "draw.learning_curves shows the log of a run"
        require(isinstance(trainer, Trainer), "trainer", "a Trainer", Words(type(trainer).__name__), remedy)
        self._trainer = trainer
        self._lines: dict[str, _Line] = {}
        self._read = 0  # rows of the log that the lines include
        self._stop = threading.Event()  # set from another thread by the button
        self._drawn_at = -math.inf
        self._began: tuple[float, int] = (time.monotonic(), trainer.step)  # to compute the speed
        self._resumed_at = trainer.step
        self._button_pressed = False  # "Resume", whose run is waiting, going on or done
        super().__init__(content=self._contents("waiting"))
        self.on_msg(self._on_message)
        # ipykernel >= 7.4 would handle the button's message in the thread that last wrote to the widget, the busy one,
        # although the front end asks for a thread of its own.
        if hasattr(self.comm, "_reply_subshell_for"):
            self.comm._reply_subshell_for = lambda data, requested: requested

    def train(self) -> TrainingResult | None:
        """Show the figure, train to the end, and return the result; None if the run was stopped.

        Errors of the trainer and interrupts are raised again; the figure stays.
        """
        if _notebook() is None:
            try:
                return self._trainer.train()
            finally:
                self._show("finished" if self._trainer.step >= self._trainer.steps else "stopped")
        from IPython.display import display

        handle = display(self, display_id=True)
        self._button_pressed = False
        try:
            return self._to_the_end()
        finally:
            handle.update(self)  # for readers without a front end: the final picture

    def _to_the_end(self) -> TrainingResult | None:
        """Train and test; None if the run was stopped. The figure says how it ended."""
        try:
            if not self.run():
                return None
            self._show("testing")
            result = self._trainer.result()
            self._show("finished")
            return result
        except BaseException as error:
            self._show("stopped" if isinstance(error, KeyboardInterrupt) else "failed")
            raise

    def run(self) -> bool:
        """Train to the end or until `stop` while updating the figure; return whether the end was reached."""
        trainer = self._trainer
        self._stop.clear()
        self._began = (time.monotonic(), trainer.step)
        self._show("running")
        for _ in trainer:
            if time.monotonic() - self._drawn_at >= SECONDS_BETWEEN:
                self._show("running")
            if self._stop.is_set():
                break
        finished = trainer.step >= trainer.steps
        self._show("finished" if finished else "stopped")
        return finished

    def stop(self) -> None:
        """End `run`, or `train` in a notebook, after the current step; works from any thread."""
        self._stop.set()

    def resume(self) -> None:
        """Go on with a stopped run, as soon as the kernel is free; what the button "Resume" does.

        The run is in the kernel's main thread, as in a cell: beside other cells it would share torch's random state
        with them. Its result is the trainer's `result()`. Does nothing unless the run is stopped.
        """
        if self.content["state"] != "stopped" or self._button_pressed:
            return
        self._button_pressed = True
        kernel = getattr(_notebook(), "kernel", None)
        if kernel is None or threading.current_thread() is threading.main_thread():
            self._go_on()
        else:
            kernel.io_loop.add_callback(self._go_on)

    def _go_on(self) -> None:
        """Train to the end for the button; there is no cell that could show an error, so the figure does."""
        try:
            finished = self._to_the_end() is not None
        except KeyboardInterrupt:
            finished = False
        except Exception as error:
            finished = False
            self.content = self.content | {"note": one_line(f"{type(error).__name__}: {error}")}
        if not finished:
            self._button_pressed = False

    def picture(self) -> draw.Picture:
        """Draw losses and accuracies so far."""
        if not self.content["panels"]:
            return draw.Picture("A training run without losses and accuracies so far", 4, 0.5)
        return draw.learning_curves(pd.DataFrame(self._trainer.tables["log"]))

    def _on_message(self, _: Any, message: Any, buffers: Any) -> None:
        kind = message.get("kind") if isinstance(message, dict) else None
        if kind == "stop":
            self.stop()
        elif kind == "resume":
            self.resume()

    def _show(self, state: str) -> None:
        self.content = self._contents(state)
        self._drawn_at = time.monotonic()

    def _contents(self, state: str) -> Contents:
        trainer = self._trainer
        self._add_new(trainer.tables["log"])
        steps, step, epochs = trainer.steps, trainer.step, trainer.epochs
        words = f"step {step:,} of {steps:,} · epoch {min(step // len(trainer.batches) + 1, epochs)} of {epochs}"
        since, first = self._began
        if state != "running":
            words += f" · {state}"
        elif step > first:
            speed = (step - first) / max(time.monotonic() - since, 1e-9)
            words += f" · {speed:.3g} steps/s · {_duration((steps - step) / speed)} left"
        panels, left_out = _panels(self._lines)
        notes = list(trainer.notes)
        if self._resumed_at:
            notes.append(f"Resumed at step {self._resumed_at:,}.")
        if left_out:
            notes.append(f"Not drawn: {', '.join(left_out)}.")
        if state == "stopped":
            notes.append(RESUMES.format(step))
        if state == "finished" and self._button_pressed:
            notes.append(RESULT)
        return {
            "kind": "live",
            "title": "Training",
            "summary": f"{step} of {steps} steps, {state}",
            "note": " ".join(notes),
            "state": state,
            "step": step,
            "steps": steps,
            "words": words,
            "panels": panels,
        }

    def _add_new(self, rows: list[dict[str, Any]]) -> None:
        """Add the log's new rows to the lines; all rows again if the run went back to a checkpoint."""
        if len(rows) < self._read:
            self._lines, self._read = {}, 0
        add_rows(self._lines, rows[self._read :])
        self._read = len(rows)


class _Line:
    """Values over steps as at most `POINTS_UP_TO` means of equally many values; more are merged in pairs."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float, int]] = []  # sum of steps, sum of values, count
        self.each = 1

    def add(self, step: float, value: float) -> None:
        """Add a value; the steps must rise."""
        if self.points and self.points[-1][2] < self.each:
            steps, values, count = self.points.pop()
        else:
            steps, values, count = 0.0, 0.0, 0
        self.points.append((steps + step, values + value, count + 1))
        if len(self.points) > POINTS_UP_TO:
            pairs = [self.points[i : i + 2] for i in range(0, len(self.points), 2)]
            self.points = [tuple(map(sum, zip(*pair, strict=True))) for pair in pairs]
            self.each *= 2


def add_rows(lines: dict[str, _Line], rows: Iterable[Mapping[str, Any]]) -> None:
    """Add the losses and accuracies in a log's rows to the lines of their names, except values that are not finite."""
    for row in rows:
        for name, value in row.items():
            if _kind(name) and math.isfinite(value):
                lines.setdefault(name, _Line()).add(row["step"], value)


def _panels(lines: Mapping[str, _Line]) -> tuple[list[Contents], list[str]]:
    """Return the panels of losses and of accuracies in per cent, and the names of the lines that are left out.

    Of many exits, the first and the last few are drawn.
    """
    panels, left_out = [], []
    for kind, title, unit, factor in (("loss", "Loss", "", 1), ("accuracy", "Accuracy", " (%)", 100)):
        names = [name for name in lines if _kind(name) == kind]
        if not names:
            continue
        of_exits = [name for name in names if _exit(name)]
        surplus = max(len(names) - LINES_UP_TO, 0)
        hidden = of_exits[1 : 1 + surplus] or names[LINES_UP_TO:] if surplus else []
        names = [name for name in names if name not in hidden]
        left_out += map(_label, hidden)
        colours = draw.distinct_colours(names)
        drawn = [
            {
                "name": _label(name),
                "colour": colours[name],
                "steps": [round(steps / count) for steps, _, count in lines[name].points],
                "values": [float(f"{factor * values / count:.4g}") for _, values, count in lines[name].points],
            }
            for name in names
        ]
        panels.append({"title": title, "unit": unit, "lines": drawn})
    return panels, left_out


def _exit(name: str) -> str:
    """Return the number of the exit in "accuracy_2"; else nothing."""
    number = name.rpartition("_")[2]
    return number if number.isdigit() else ""


def _kind(name: str) -> str:
    """Return "loss" or "accuracy" (also for one exit, "accuracy_2"), or nothing."""
    stem = name.rpartition("_")[0] if _exit(name) else name
    return next((kind for kind in ("loss", "accuracy") if stem.endswith(kind)), "")


def _label(name: str) -> str:
    """Return the words for a column of a log: "accuracy of exit 2"."""
    if _exit(name):
        return f"{name.rpartition('_')[0].replace('_', ' ')} of exit {_exit(name)}"
    return draw.BATCH_ACCURACY if name == "accuracy" else name.replace("_", " ")


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _notebook() -> Any:
    """Return the shell of a Jupyter kernel; None elsewhere."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    shell = get_ipython()
    return shell if getattr(shell, "kernel", None) is not None else None
