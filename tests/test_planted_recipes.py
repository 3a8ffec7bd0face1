"""Planted tasks: what is useless really is, the verdict on a map is correct, and the recipe runs and resumes."""

from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch

from mtanytime.data.images import Task
from mtanytime.experiments import planted_recipes as planted
from mtanytime.experiments.runner import plan, run
from mtanytime.transfer import TransferMap

SMALL = {
    "source_depth": "8",
    "source_epochs": "1",
    "steps": "3",
    "search_steps": "3",
    "target_width": "4",
    "trials": "5",
}


def test_noise_tells_nothing_and_keeps_the_scale() -> None:
    """Noisy channels have the channel's mean and spread but no correlation with it; the others are untouched."""
    maps = 3 + 2 * torch.randn(64, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    noisy = planted.NoisyChannels([1, 4])(maps)
    assert noisy[:, [0, 2, 3, 5]].equal(maps[:, [0, 2, 3, 5]])
    for channel in (1, 4):
        assert noisy[:, channel].mean().item() == pytest.approx(3, abs=0.15)
        assert noisy[:, channel].std().item() == pytest.approx(2, abs=0.15)
        both = torch.stack([noisy[:, channel].flatten(), maps[:, channel].flatten()])
        assert abs(torch.corrcoef(both)[0, 1].item()) < 0.05


def test_shuffled_labels() -> None:
    """The same images and classes, the labels as frequent as before and in another order."""
    data = tiny.images(60)
    shuffled = planted.shuffled_labels(data)
    assert shuffled.images.equal(data.images)
    assert shuffled.labels.bincount().equal(data.labels.bincount())
    assert 10 < (shuffled.labels == data.labels).sum() < 35


def test_right_first() -> None:
    """The verdict reads means, so that a source with more layers is at no advantage."""
    pairs = {("trained/layer1", "x"): 0.9, ("trained/layer3", "x"): 1.3, ("useless/layer2", "x"): 1.2}
    channels = {pair: [0.5, 0.5] for pair in pairs}
    assert not planted.right_first("layer", TransferMap(pairs, channels), 0)
    better = pairs | {("trained/layer1", "x"): 1.2}
    assert planted.right_first("layer", TransferMap(better, channels), 0)
    useless = planted.noise_channels(4, seed=5)
    weights = [0.2 if channel in useless else 0.3 for channel in range(4)]
    found = {("trained/layer1", "x"): [0.1, 0.9], ("trained/layer3", "x"): weights}
    assert planted.right_first("channels", TransferMap(dict.fromkeys(found, 1.0), found), 5)
    found[("trained/layer3", "x")] = [0.5 - weight for weight in weights]
    assert not planted.right_first("channels", TransferMap(dict.fromkeys(found, 1.0), found), 5)


def test_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task by each method, with a verdict and a map; a second call reads the results."""
    letters = Task(tiny.images(74, classes=37, size=32), tiny.images(37, classes=37, size=32, seed=1))
    digits = Task(tiny.images(40, classes=10, size=32, seed=2), tiny.images(20, classes=10, size=32, seed=3))
    monkeypatch.setattr(planted, "letters_task", lambda per_class: letters)
    monkeypatch.setattr(planted, "digits", lambda per_class, seed: digits)
    changes = SMALL | {"methods": ",".join(planted.METHODS)}
    results = run("planted", tmp_path, changes=changes, progress=False)
    table = results.table
    assert list(table.columns) == ["task", "seed", "method", "accuracy", "right_first"]
    assert table["task"].tolist() == [task for task in planted.TASKS for _ in planted.METHODS]
    assert table["accuracy"].between(0, 1).all()
    assert not table.loc[table["method"] != "search_then_train", "right_first"].any()
    for method, pairs in (("matching_one", 3), ("matching_not_later", 9), ("uniform", 15)):
        for task, networks in (("source", 2), ("channels", 1)):
            trace = pd.read_csv(tmp_path / f"{task}-{method}-seed0" / "trace.csv")
            assert len(trace[["source", "target"]].drop_duplicates()) == networks * pairs
    assert set(results.maps["method"]) == {f"{task} search_then_train" for task in planted.TASKS}
    again = run("planted", tmp_path, changes=changes, progress=False)
    assert again.table.equals(table)
    assert again.maps.equals(results.maps)


def test_a_search_is_checked_before_anything_is_trained(tmp_path: Path) -> None:
    """It comes after the sources, which take a minute."""
    with pytest.raises(ValueError, match="trials: expected a whole number >= 3, got 2"):
        run("planted", tmp_path / "runs", changes=SMALL | {"trials": "2", "letters_per_class": "4"}, progress=False)
    assert not (tmp_path / "runs").exists()


def test_shared_sources_are_planned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sources serve all seeds."""
    monkeypatch.setattr("mtanytime.experiments.runner._step_cost", lambda trainer: (0.0, 0.0))
    rows = plan(
        "planted", tmp_path, [0, 1], SMALL | {"letters_per_class": "2", "tasks": "source", "methods": "uniform"}
    )
    parts = [(row["part"], row["seed"]) for row in rows]
    assert parts == [("source", 0), ("shuffled", 0), ("source uniform", 0), ("source uniform", 1)]
