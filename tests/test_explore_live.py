"""The figure that grows during training: its numbers, its stop button, and the progress bar where nothing shows it."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from torch import nn

from mtanytime.datasets import ImageSet, Task
from mtanytime.explore import live
from mtanytime.explore.live import LiveTraining
from mtanytime.training import Trainer


def task() -> Task:
    """Two classes told apart by brightness."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    images = (torch.rand(40, 3, 4, 4, generator=generator) * 100 + 100 * labels[:, None, None, None]).to(torch.uint8)
    data = ImageSet(images, labels, ("dark", "bright"))
    return Task(data, data)


def trainer(folder: Path | None = None, epochs: int = 5) -> Trainer:
    """Four steps an epoch."""
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 2))  # noqa: E731
    shared = {"epochs": epochs, "batch_size": 10, "lr": 0.01, "validation": 0.1, "progress": False}
    return Trainer(make, task(), folder=folder, **shared)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """As in a notebook: what is displayed, and the bundles that its place shows later, are gathered here."""
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
    """Loss and accuracies in per cent are those of the log, and the result is the trainer's own."""
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
    """The figure is sent at most twice a second, however quick the steps; the cell's output holds it once."""
    sent = []
    explorer = LiveTraining(trainer(epochs=50))
    explorer.observe(lambda change: sent.append(change), "content")
    monkeypatch.setattr(live, "SECONDS_BETWEEN", 3600.0)
    explorer.train()
    assert len(sent) == 2  # the beginning and the end
    assert len([shown for shown in notebook if shown is explorer]) == 1


def test_stop_leaves_a_run_that_resumes(notebook: list[object], tmp_path: Path) -> None:
    """Stopped after some step, the run goes on in a new trainer, to the same end bit for bit."""
    whole = trainer()
    whole.train()
    first = LiveTraining(trainer(tmp_path))
    reports = iter(first._trainer)
    for _ in range(3):
        next(reports)
    del reports
    first.observe(lambda change: first.set_trait("stop", True), "content")  # at the first sign of life
    assert first.train() is None
    assert first.content["state"] == "stopped"
    assert "goes on from here" in first.content["note"]
    at = first._trainer.step
    assert 3 < at < whole.steps
    second = LiveTraining(trainer(tmp_path))
    assert second._trainer.step == at
    assert second.train() is not None
    for name, value in second._trainer.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name])


def test_train_again_after_stop(notebook: list[object]) -> None:
    """Running the cell again goes on, too, without a folder."""
    explorer = LiveTraining(trainer())
    explorer.observe(lambda change: explorer.set_trait("stop", explorer._trainer.step < 2), "content")
    assert explorer.train() is None
    explorer.unobserve_all("content")
    assert explorer.train() is not None


def test_errors_come_through(notebook: list[object]) -> None:
    """A run that breaks off says so in the figure, and raises what the trainer raises."""
    broken = trainer()
    broken.loss = lambda output, labels: output.sum() * math.nan
    explorer = LiveTraining(broken)
    with pytest.raises(FloatingPointError):
        explorer.train()
    assert explorer.content["state"] == "broke off"


def test_progress_bar_outside_notebooks(capsys: pytest.CaptureFixture) -> None:
    """In a script there is the trainer's own progress bar and no widget's text."""
    assert InteractiveShell._instance is None
    plain = trainer()
    plain.progress = True
    result = LiveTraining(plain).train()
    assert result.accuracy is not None
    assert f"{plain.steps}/{plain.steps}" in capsys.readouterr().out


def test_long_logs_are_thinned() -> None:
    """Ten thousand steps are two hundred points, each the mean of as many steps; exits are named."""
    steps = np.arange(1, 10_001)
    log = pd.DataFrame({"step": steps, "loss": steps / 1e4, "accuracy_2": 0.5, "lr": 0.1})
    log.loc[5, "loss"] = np.inf
    found = live.panels(log)
    line = found[0]["lines"][0]
    assert len(line["values"]) <= live.POINTS_UP_TO
    assert line["values"][-1] == pytest.approx(np.mean(steps[-50:]) / 1e4, abs=3e-3)
    assert [one["name"] for one in found[1]["lines"]] == ["accuracy of exit 2"]
    assert found[1]["lines"][0]["values"][0] == 50
