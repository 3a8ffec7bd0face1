"""The learned map and its rivals on the built-in task: every method runs in one loop, and resumes."""

from pathlib import Path

import pytest
import tiny

from mtanytime.data.images import Task
from mtanytime.experiments import map_recipes as recipes
from mtanytime.experiments.runner import plan, run

SMALL = {"source_depth": "8", "source_epochs": "1", "steps": "2", "search_steps": "2", "trials": "4", "batch_size": "8"}
SMALL |= {"target_width": "4", "views": "4"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random images in place of characters."""
    letters = Task(tiny.images(74, classes=37, size=32), tiny.images(37, classes=37, size=32, seed=1))
    digits = Task(tiny.images(50, classes=10, size=32, seed=2), tiny.images(20, classes=10, size=32, seed=3))
    monkeypatch.setattr(recipes, "letters_task", lambda per_class: letters)
    monkeypatch.setattr(recipes, "digits_task", lambda per_class, seed, held_back: digits)


def test_every_method(tmp_path: Path) -> None:
    """Each has a row with its seconds, the search's included; a second call reads the results."""
    results = run("baselines-builtin", tmp_path, changes=SMALL, progress=False)
    table = results.table
    assert list(table.columns) == ["method", "seed", "accuracy", "train_seconds"]
    assert table["method"].tolist() == list(recipes.METHODS)
    assert table["accuracy"].between(0, 1).all()
    assert set(results.maps["method"]) == {"l2t", "search_then_train", "random_search"}
    again = run("baselines-builtin", tmp_path, changes=SMALL, progress=False)
    assert again.table.drop(columns="train_seconds").equals(table.drop(columns="train_seconds"))
    trained = table["method"] != "probe"
    assert again.table[trained]["train_seconds"].tolist() == table[trained]["train_seconds"].tolist()


def test_plan(tmp_path: Path) -> None:
    """A dry run lists every method."""
    rows = list(plan("baselines-builtin", tmp_path, changes=SMALL))
    assert [row["part"] for row in rows] == ["source", *recipes.METHODS]
