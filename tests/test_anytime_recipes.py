"""The anytime recipe: its networks, its data, and one row of results per exit."""

from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch

from mtanytime.anytime import SliceCascade, SlicedResNet, SliceShape
from mtanytime.data.images import Task
from mtanytime.experiments import anytime_recipes
from mtanytime.experiments.recipe import changed
from mtanytime.experiments.runner import RECIPES, load_part, plan, run
from mtanytime.measure.costs import exit_costs
from mtanytime.training.identity import describe_model

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
    """Random images of three classes instead of CIFAR-10."""
    task = Task(tiny.images(30, size=32), tiny.images(9, size=32, seed=1))
    monkeypatch.setattr(anytime_recipes, "load_cifar10", lambda place: task)
    monkeypatch.setattr(anytime_recipes, "VALIDATION_PER_CLASS", 3)
    return task


def test_one_row_per_exit(small_task: Task, tmp_path: Path) -> None:
    """All four models have increasing costs and an accuracy at each exit; a second run returns the same table."""
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
    """Validation images are neither trained on nor in the test set, for any seed."""
    settings = changed(RECIPES["anytime-cifar10"].settings, SMALL)
    for seed in (0, 1):
        scored = anytime_recipes._task(settings | {"scored_on": "validation"}, seed)
        pixels = [{image.numpy().tobytes() for image in part.images} for part in (scored.train, scored.test)]
        assert [len(part) for part in pixels] == [12, 9]
        assert not pixels[0] & pixels[1]
        assert pixels[1] <= {image.numpy().tobytes() for image in small_task.train.images}
        assert anytime_recipes._task(settings, seed).test is small_task.test


FULL = SMALL | {"slice_blocks": "1,1", "slice_widths": "4,4", "slice_weights": "", "models": "sliced,msdnet,inclusive"}


def test_all_training_images(small_task: Task, tmp_path: Path) -> None:
    """One row per exit with the columns of the shorter recipe; the sliced network has the shape of the settings."""
    full = {name: value for name, value in FULL.items() if name != "per_class"}
    results = run("anytime-cifar10-full", tmp_path, [0], full | {"scored_on": "validation"}, progress=False).table
    stored = pd.read_csv(Path(__file__).parent.parent / "data/results/anytime_cifar10.csv", comment="#")
    assert list(results) == list(stored)
    assert results.groupby("model").size().to_dict() == {"inclusive": 2, "msdnet": 2, "sliced": 2}
    sliced = results[results["model"] == "sliced"]
    shape = SliceShape(((4, 4), (8, 8)), 1, "inverted")
    assert sliced["macs"].tolist() == exit_costs(SliceCascade(3, shape))["macs"].tolist()
    network = load_part(tmp_path / "sliced-seed0").network
    assert network.network.shape == shape


def test_exit_weights(small_task: Task) -> None:
    """Sliced networks and MSDNet have weights of their own; the exits of "inclusive" always count 1."""
    changes = SMALL | {"models": "sliced,msdnet,inclusive", "slice_weights": "1,2", "msdnet_weights": "3,1"}
    settings = changed(RECIPES["anytime-cifar10"].settings, changes)
    weights = {part: trainer.loss.weights for part, trainer in anytime_recipes.cifar10(settings, 0, None, False)}
    assert weights["sliced"] == (1.0, 2.0)
    assert weights["msdnet"] == (3.0, 1.0)
    assert weights["inclusive"] is None


def test_the_same_images_are_held_back_in_every_run(small_task: Task) -> None:
    """All other training images are trained on; to report, all are."""
    settings = RECIPES["anytime-cifar10-full"].settings
    parts = [anytime_recipes._task(settings | {"scored_on": "validation"}, seed) for seed in (0, 1)]
    pixels = [[image.numpy().tobytes() for image in half.images] for half in (parts[0].train, parts[0].test)]
    assert [len(set(half)) for half in pixels] == [21, 9]
    assert {*pixels[0], *pixels[1]} == {image.numpy().tobytes() for image in small_task.train.images}
    assert torch.equal(parts[0].test.images, parts[1].test.images)
    assert parts[0].test.labels.bincount().tolist() == [3, 3, 3]
    task = anytime_recipes._task(settings, 0)
    assert task.train is small_task.train
    assert task.test is small_task.test


def test_slices_of_a_setting() -> None:
    """All stages, or the first, from which the others follow; a block of today's kind reads the first stage."""
    settings = RECIPES["anytime-cifar10-full"].settings
    explicit = changed(settings, {"slice_widths": "4,4/6,2", "slice_block": "inverted", "slice_blocks": "1,2"})
    shape = SliceShape(((4, 4), (6, 2)), (1, 2), "inverted")
    network = anytime_recipes.build_network("sliced", explicit, 3)
    assert isinstance(network, SliceCascade)
    assert network.shape == shape
    nested = anytime_recipes.build_network("sliced", explicit | {"slice_reads": "layers"}, 3)
    assert isinstance(nested, SlicedResNet)
    before = {name: value for name, value in explicit.items() if name != "slice_reads"}  # a run of an older version
    assert isinstance(anytime_recipes.build_network("sliced", before, 3), SlicedResNet)
    rounded = changed(settings, {"slice_widths": "20,20", "slice_multiple": "16", "slice_blocks": "1,1"})
    assert anytime_recipes.build_network("sliced", rounded, 3).shape.widths == ((16, 32), (48, 32))
    grouped = changed(settings, {"slice_block": "resnext", "slice_widths": "8,4", "slice_branches": "2,1"})
    assert anytime_recipes.build_network("sliced", grouped, 3).slice_widths == (8, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slice_widths": "8,x/4,4"}, "slice_widths: expected whole numbers separated by commas, .*, got '8,x/4,4'"),
        (
            {"slice_widths": "16,8/32,16", "slice_multiple": "16", "slice_blocks": "1,1"},
            "slice_widths: expected prefixes in multiples of 16, the slice_multiple, in every stage, got '16,8/32,16'",
        ),
        ({"slice_widths": "26,11", "slice_multiple": "16"}, "first: expected slices that keep channels when prefixes"),
        ({"slice_widths": "4,4/8,8"}, r"blocks: expected one number, or 2, one per stage, got \(2, 2, 2\)"),
        ({"slice_reads": "heads"}, r"slice_reads: expected one of \['layers', 'stages'\], got 'heads'"),
        ({"slice_block": "dense"}, r"slice_block: expected one of \['basic', 'inverted', 'resnext'\], got 'dense'"),
    ],
)
def test_bad_slices(changes: dict[str, str], message: str) -> None:
    """Slices that do not fit together are reported with what was expected."""
    settings = changed(RECIPES["anytime-cifar10-full"].settings, changes)
    with pytest.raises(ValueError, match=message):
        anytime_recipes.build_network("sliced", settings, 10)


def test_plan_counts_every_network(small_task: Task, tmp_path: Path) -> None:
    """A plan has the cost of each network and writes nothing."""
    planned = list(plan("anytime-cifar10", tmp_path / "none", [0], SMALL))
    assert [row["part"] for row in planned] == ["sliced", "msdnet", "inclusive", "separate-1", "separate-2"]
    assert all(row["macs"] > 0 for row in planned)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": "slice"}, "models: expected names among sliced, inclusive, msdnet, separate, got 'slice'"),
        ({"models": "msdnet,msdnet"}, "models: expected each name once, got 'msdnet,msdnet'"),
        (
            {"slice_widths": "8,x"},
            "slice_widths: expected whole numbers .*, got '8,x'",
        ),
        ({"slice_weights": "1,2,3"}, "weights: expected 2 weights, one per exit, got "),
        ({"models": "msdnet", "msdnet_weights": "1,2,3"}, "weights: expected 2 weights, one per exit, got "),
        (
            {"images": "nowhere.npz"},
            "images: expected an existing file or folder, got 'nowhere.npz'; set it to",
        ),
        (
            {"models": "separate", "inclusive_exits": "3"},
            "inclusive_exits: expected a divisor of inclusive_branches",
        ),
        (
            {"models": "separate", "inclusive_exits": "0"},
            "inclusive_exits: expected a divisor of inclusive_branches",
        ),
        ({"scored_on": "train"}, "scored_on: expected 'test' or 'validation', got 'train'"),
    ],
)
def test_bad_settings(small_task: Task, tmp_path: Path, changes: dict[str, str], message: str) -> None:
    """Bad settings are reported before anything is written."""
    with pytest.raises(ValueError, match=message):
        run("anytime-cifar10", tmp_path / "out", [0], SMALL | changes, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["sliced", "inclusive", "msdnet", "separate-1", "separate-2"])
def test_build_network(small_task: Task, tmp_path: Path, model: str) -> None:
    """A recipe's network can be built by name, and is the one that the recipe trains."""
    settings = changed(RECIPES["anytime-cifar10"].settings, SMALL)
    network = anytime_recipes.build_network(model, settings, classes=3)
    trained = dict(anytime_recipes.cifar10(settings, 0, None, False))[model].model.network
    assert describe_model(network) == describe_model(trained)


def test_build_network_of_another_name() -> None:
    """An unknown model is an error that lists the known ones, with each exit's separate network."""
    message = "model: expected one of sliced, inclusive, msdnet, separate-1, .*, separate-4, got 'separate'"
    with pytest.raises(ValueError, match=message):
        anytime_recipes.build_network("separate", RECIPES["anytime-cifar10"].settings, classes=10)


def test_the_papers_validation_images(small_task: Task) -> None:
    """As in the paper, so many training images are for validation in every run, and the test set is the public one."""
    settings = RECIPES["anytime-cifar10-paper"].settings | {"validation_images": 9}
    task, validation = anytime_recipes._sets(settings, 0)
    assert (len(task.train), len(validation)) == (21, 9)
    assert task.test is small_task.test
    pixels = [{image.numpy().tobytes() for image in part.images} for part in (task.train, validation)]
    assert not pixels[0] & pixels[1]


def test_no_other_data_set_in_place_of_a_misspelt_one(small_task: Task) -> None:
    """A name with a typing error must not train on CIFAR-10 for days."""
    settings = RECIPES["anytime-cifar100-paper"].settings
    with pytest.raises(ValueError, match="data_set: expected one of cifar10, cifar100, got 'cifar-100'"):
        anytime_recipes._sets(changed(settings, {"data_set": "cifar-100"}), 0)


def test_widths_of_all_stages_are_not_cut_to_the_first() -> None:
    """A sliced ResNeXt doubles its widths; other ones for its later stages would be passed over."""
    settings = RECIPES["anytime-cifar10-full"].settings
    widths = {"slice_block": "resnext", "slice_branches": "4,4", "slice_widths": "16,16/20,20/24,24"}
    with pytest.raises(ValueError, match="slice_widths: expected the first stage's alone with slice_block=resnext"):
        anytime_recipes.build_network("sliced", changed(settings, widths), 10)
