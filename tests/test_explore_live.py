"""The figure that grows during training: its numbers, its stop button, and the progress bar outside notebooks."""

import math
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from ipywidgets import Widget
from torch import nn
from typechecker import unchecked

from mtanytime.data.images import ImageSet, Task
from mtanytime.explore import live
from mtanytime.explore.live import LiveTraining
from mtanytime.training.trainer import Trainer


def task() -> Task:
    """Return a task of two classes that differ by brightness."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    images = (torch.rand(40, 3, 4, 4, generator=generator) * 100 + 100 * labels[:, None, None, None]).to(torch.uint8)
    data = ImageSet(images, labels, ("dark", "bright"))
    return Task(data, data)


def trainer(folder: Path | None = None, epochs: int = 5) -> Trainer:
    """Return a trainer with four steps per epoch."""
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 2))  # noqa: E731
    shared = {"epochs": epochs, "batch_size": 10, "lr": 0.01, "validation": 0.1, "progress": False}
    return Trainer(make, task(), folder=folder, **shared)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Act as a notebook, and collect the displayed widgets and their later updates."""
    shown: list[object] = []

    class Handle:
        def update(self, widget: object) -> None:
            shown.append(widget._repr_mimebundle_()[0])

    def display(widget: object, display_id: bool) -> Handle:
        shown.append(widget)
        return Handle()

    monkeypatch.setattr(live, "_notebook", lambda: object())
    monkeypatch.setattr("IPython.display.display", display)
    return shown


def test_figure_holds_the_log(notebook: list[object]) -> None:
    """Loss and accuracies (in per cent) are those of the log, and the result is the trainer's own."""
    whole = trainer()
    explorer = LiveTraining(whole)
    assert explorer.content["panels"] == []
    result = explorer.train()
    panels = explorer.content["panels"]
    assert [panel["title"] for panel in panels] == ["Loss", "Accuracy"]
    loss = panels[0]["lines"][0]
    assert loss["steps"] == list(range(1, whole.steps + 1))
    np.testing.assert_allclose(loss["values"], result.log["loss"], rtol=1e-3)
    val = next(line for line in panels[1]["lines"] if line["name"] == "val accuracy")
    np.testing.assert_allclose(val["values"], 100 * result.log["val_accuracy"].dropna(), rtol=1e-3)
    assert len(val["steps"]) == 5  # once an epoch
    assert explorer.content["words"] == f"step {whole.steps} of {whole.steps} · epoch 5 of 5 · finished"
    assert notebook[0] is explorer
    assert notebook[-1]["text/plain"] == f"LiveTraining: {whole.steps} of {whole.steps} steps, finished"
    assert "image/png" in notebook[-1]  # what a reader without a front end sees
    assert result.accuracy == trainer().train().accuracy


def test_output_is_not_flooded(notebook: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure is sent at most twice per second, and the cell's output holds it once."""
    sent = []
    explorer = LiveTraining(trainer(epochs=50))
    explorer.observe(lambda change: sent.append(change), "content")
    monkeypatch.setattr(live, "SECONDS_BETWEEN", 3600.0)
    explorer.train()
    assert len(sent) == 4  # the beginning, the end, the test and its end
    assert len([shown for shown in notebook if shown is explorer]) == 1


def test_stop_leaves_a_run_that_resumes(notebook: list[object], tmp_path: Path) -> None:
    """A stopped run is resumed by a new trainer and ends with the same bits."""
    whole = trainer()
    whole.train()
    first = LiveTraining(trainer(tmp_path))
    press_at(first, 5)
    assert first.train() is None
    assert first.content["state"] == "stopped"
    assert "goes on from step 5" in first.content["note"]
    assert first._trainer.step == 5
    second = LiveTraining(trainer(tmp_path))
    assert "Resumed at step 5." in second.content["note"]
    assert second.train() is not None
    for name, value in second._trainer.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name])


def press_at(explorer: LiveTraining, step: int) -> None:
    """Press the button once during a step; the front end's message comes in another thread."""
    after = explorer._trainer._after_step

    def pressed() -> None:
        after()
        if explorer._trainer.step == step:
            message = {"content": {"data": {"method": "custom", "content": {"kind": "stop"}}}, "buffers": []}
            thread = threading.Thread(target=explorer._handle_msg, args=(message,))
            thread.start()
            thread.join()

    explorer._trainer._after_step = pressed


def test_train_again_after_stop(notebook: list[object]) -> None:
    """Without a folder, running the cell again resumes the run."""
    explorer = LiveTraining(trainer())
    press_at(explorer, 2)
    assert explorer.train() is None
    assert explorer._trainer.step == 2
    assert explorer.train() is not None
    assert explorer.content["state"] == "finished"


def test_resume_button(notebook: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """The button goes on in the kernel's main thread, once, to the weights of a run that was never stopped."""
    whole = trainer()
    expected = whole.train()
    later = []
    loop = SimpleNamespace(add_callback=later.append)
    monkeypatch.setattr(live, "_notebook", lambda: SimpleNamespace(kernel=SimpleNamespace(io_loop=loop)))
    explorer = LiveTraining(trainer())
    press_at(explorer, 5)
    assert explorer.train() is None
    for _ in range(2):  # pressed twice
        thread = threading.Thread(target=explorer._on_message, args=(None, {"kind": "resume"}, []))
        thread.start()
        thread.join()
    assert (len(later), explorer._trainer.step) == (1, 5)
    later[0]()
    assert explorer.content["state"] == "finished"
    assert explorer.content["note"].endswith("The trainer's result() returns its accuracies.")
    assert explorer._trainer.result().accuracy == expected.accuracy
    for name, value in explorer._trainer.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name])
    explorer.resume()  # there is nothing to resume
    assert len(later) == 1


def test_resumed_run_that_fails(notebook: list[object]) -> None:
    """An error of a resumed run, which no cell could show, is in the figure, and the kernel goes on."""
    explorer = LiveTraining(trainer())
    press_at(explorer, 2)
    explorer.train()
    explorer._trainer.loss = lambda output, labels: output.sum() * math.nan
    explorer.resume()
    assert explorer.content["state"] == "failed"
    assert explorer.content["note"].startswith("FloatingPointError: ")


def test_interrupted_is_stopped(notebook: list[object]) -> None:
    """After an interrupt the run can be resumed, and the figure says so."""
    explorer = LiveTraining(trainer())

    def interrupt() -> None:
        raise KeyboardInterrupt

    explorer._trainer._after_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        explorer.train()
    assert explorer.content["state"] == "stopped"


def test_errors_come_through(notebook: list[object]) -> None:
    """When training fails, the figure says so and the trainer's error is raised."""
    broken = trainer()
    broken.loss = lambda output, labels: output.sum() * math.nan
    explorer = LiveTraining(broken)
    with pytest.raises(FloatingPointError):
        explorer.train()
    assert explorer.content["state"] == "failed"


def test_progress_bar_outside_notebooks(capsys: pytest.CaptureFixture) -> None:
    """In a script there is the trainer's own progress bar and no text of a widget."""
    assert InteractiveShell._instance is None
    plain = trainer()
    plain.progress = True
    explorer = LiveTraining(plain)
    result = explorer.train()
    assert result.accuracy is not None
    assert explorer.content["state"] == "finished"
    assert f"{plain.steps}/{plain.steps}" in capsys.readouterr().out


def test_long_logs_are_thinned() -> None:
    """Ten thousand steps become at most 200 points, means of equally many finite values."""
    lines: dict[str, live._Line] = {}
    rows = ({"step": k, "loss": math.inf if k == 6 else k / 1e4, "lr": 0.1} for k in range(1, 10_001))
    live.add_rows(lines, rows)
    assert list(lines) == ["loss"]
    points = lines["loss"].points
    assert live.POINTS_UP_TO / 2 <= len(points) <= live.POINTS_UP_TO
    assert sum(count for _, _, count in points) == 9_999
    assert {count for _, _, count in points[:-1]} == {lines["loss"].each}
    np.testing.assert_allclose([s / n / 1e4 for s, _, n in points], [v / n for _, v, n in points])


def test_exits_are_named_and_thinned() -> None:
    """Of many exits the first and last are drawn, with the validation accuracy; the others are named."""
    lines: dict[str, live._Line] = {}
    names = ["accuracy", *(f"accuracy_{k}" for k in range(1, 9)), "val_accuracy"]
    live.add_rows(lines, [{"step": 1, **dict.fromkeys(names, 0.5)}])
    panels, left_out = live._panels(lines)
    drawn = [line["name"] for line in panels[0]["lines"]]
    assert len(drawn) == live.LINES_UP_TO
    assert {"accuracy of exit 1", "accuracy of exit 8", "val accuracy"} <= set(drawn)
    assert left_out == ["accuracy of exit 2", "accuracy of exit 3"]
    assert panels[0]["lines"][0]["values"] == [50]


def test_only_trainers_are_watched() -> None:
    """Anything but a trainer is refused before there is a widget."""
    with pytest.raises(ValueError, match="trainer: expected a Trainer, got str"):
        unchecked(LiveTraining.__init__)(LiveTraining.__new__(LiveTraining), "x")


def test_nothing_is_left_after_closing() -> None:
    """Closing the figure removes its widgets."""
    before = set(Widget.get_manager_state()["state"])
    LiveTraining(trainer()).close()
    assert set(Widget.get_manager_state()["state"]) == before


def test_an_incomplete_last_epoch(notebook: list[object]) -> None:
    """The epoch is counted by its batches, not as a share of the steps."""
    run = Trainer(lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), task(), steps=6, batch_size=10, progress=False)
    for report in run:
        if report.step == 3:
            break
    assert "step 3 of 6 · epoch 1 of 2" in LiveTraining(run).content["words"]
