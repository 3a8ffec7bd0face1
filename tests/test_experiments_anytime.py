"""The anytime recipe: its networks are trained alike, and each exit has its row."""

from pathlib import Path

import pytest
import tiny

from mtanytime.data.images import Task
from mtanytime.experiments import anytime as anytime_recipes
from mtanytime.experiments.runner import RECIPES, changed, plan, run

SMALL = {
    "per_class": "4",
    "epochs": "1",
    "batch_size": "6",
    "blocks": "1",
    "slice_widths": "8,4",
    "slice_branches": "2,1",
    "slice_weights": "1,2",
    "bottleneck": "2",
    "inclusive_width": "8",
    "inclusive_branches": "2",
    "inclusive_exits": "2",
    "msdnet_blocks": "2",
    "msdnet_base": "1",
}


@pytest.fixture
def small_task(monkeypatch: pytest.MonkeyPatch) -> Task:
    """Random images of three classes in the place of CIFAR-10."""
    task = Task(tiny.images(30, size=32), tiny.images(9, size=32, seed=1))
    monkeypatch.setattr(anytime_recipes, "whole_cifar10", lambda place: task)
    monkeypatch.setattr(anytime_recipes, "VALIDATION_A_CLASS", 3)
    return task


def test_a_row_for_each_exit(small_task: Task, tmp_path: Path) -> None:
    """All four models, each with its exits, costs that rise, and accuracies; run again, the same table."""
    table = run("anytime-cifar10", tmp_path, [0, 1], SMALL, progress=False).table
    counted = table.groupby(["model", "seed"]).size()
    assert (counted == 2).all()
    assert set(counted.index) == {(model, seed) for model in anytime_recipes.MODELS for seed in (0, 1)}
    for _, rows in table.groupby(["model", "seed"]):
        assert rows["exit"].tolist() == [1, 2]
        assert rows["macs"].is_monotonic_increasing
    assert (table["macs"] >= table["macs_own_head"]).all()
    assert table["accuracy"].between(0, 1).all()
    again = run("anytime-cifar10", tmp_path, [0, 1], SMALL, progress=False).table
    assert again.equals(table)
    own = table[table["seed"] == 0].pivot(index="exit", columns="model", values="macs_own_head")
    assert own["inclusive"].tolist() == own["separate"].tolist()  # the same networks, trained alone


def test_validation_images_are_training_images_that_are_held_back(small_task: Task) -> None:
    """Choices are made on images that are neither trained on nor in the test set, whatever the seed."""
    settings = changed(RECIPES["anytime-cifar10"].settings, SMALL)
    for seed in (0, 1):
        scored = anytime_recipes._task(settings | {"scored_on": "validation"}, seed)
        pixels = [{image.numpy().tobytes() for image in part.images} for part in (scored.train, scored.test)]
        assert [len(part) for part in pixels] == [12, 9]
        assert not pixels[0] & pixels[1]
        assert pixels[1] <= {image.numpy().tobytes() for image in small_task.train.images}
        assert anytime_recipes._task(settings, seed).test is small_task.test


def test_plan_counts_every_network(small_task: Task, tmp_path: Path) -> None:
    """A dry run tells the cost of each part and writes nothing."""
    found = list(plan("anytime-cifar10", tmp_path / "none", [0], SMALL))
    assert [row["part"] for row in found] == ["sliced", "msdnet", "inclusive", "separate-1", "separate-2"]
    assert all(row["macs"] > 0 for row in found)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": "slice"}, "model 'slice' is not known"),
        ({"models": "msdnet,msdnet"}, "wanted each model once"),
        ({"slice_widths": "8,x"}, "slice_widths takes numbers with commas between"),
        ({"slice_weights": "1,2,3"}, "wanted 2 weights, one for each exit"),
        ({"images": "nowhere.npz"}, "there is no 'nowhere.npz': set images=…, a folder with torchvision's CIFAR-10"),
        ({"models": "separate", "inclusive_exits": "3"}, "wanted inclusive_exits that divide inclusive_branches"),
        ({"models": "separate", "inclusive_exits": "0"}, "wanted inclusive_exits that divide inclusive_branches"),
        ({"scored_on": "train"}, "scored_on is 'test' or 'validation'"),
    ],
)
def test_bad_settings(small_task: Task, tmp_path: Path, changes: dict[str, str], message: str) -> None:
    """What cannot be run is refused before anything is written."""
    with pytest.raises(ValueError, match=message):
        run("anytime-cifar10", tmp_path / "out", [0], SMALL | changes, progress=False)
    assert not (tmp_path / "out").exists()
