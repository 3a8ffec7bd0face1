"""The recipe of rivals: every method runs in the same loop, on the same labelled images, none of them scored on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from mtanytime.backbones import IMAGENET_MEAN, IMAGENET_STD, Normalized, resnet
from mtanytime.data.images import ImageSet, Task
from mtanytime.experiments import baseline_recipes as baselines
from mtanytime.experiments.grid import check_cells, make_grid
from mtanytime.experiments.runner import load_part, plan, run
from mtanytime.transfer import TransferTrainer, trial_search
from mtanytime.transfer.probe import LinearProbe, fit_probe

SMALL = {"per_class": "6", "steps": "2", "batch_size": "8", "width": "4", "precision": "float32", "images": "."}
SMALL |= {"trials": "3", "search_steps": "1"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A tiny set of ten classes and an untrained source."""
    cifar = Task(tiny.images(200, classes=10, size=32), tiny.images(20, classes=10, size=32, seed=1))
    torch.manual_seed(0)
    source = Normalized(resnet(8, 20), IMAGENET_MEAN, IMAGENET_STD).eval()
    monkeypatch.setattr(baselines, "load_cifar10", lambda place: cifar)
    monkeypatch.setattr(baselines, "load_l2t_resnet32", lambda path: source)
    monkeypatch.setattr(baselines, "VALIDATION_PER_CLASS", 4)
    monkeypatch.setitem(SMALL, "source", str(tmp_path))
    for cached in (baselines._source, baselines.timed_probe, baselines._task):
        cached.cache_clear()
    yield
    for cached in (baselines._source, baselines.timed_probe, baselines._task):
        cached.cache_clear()


def test_every_method(tmp_path: Path) -> None:
    """Each trains its two steps, or is fitted, and has a row; a second call reads the results."""
    changes = SMALL | {"methods": ",".join(baselines.METHODS)}
    table = run("cifar10-baselines", tmp_path / "out", changes=changes, progress=False).table
    assert table["method"].tolist() == list(baselines.METHODS)
    assert set(table.loc[table["network"] == "source", "method"]) == set(baselines.ON_SOURCE)
    assert table["accuracy"].between(0, 1).all()
    assert set(table["steps"]) == {0, 2}
    again = run("cifar10-baselines", tmp_path / "out", changes=changes, progress=False).table
    assert again.drop(columns="train_seconds").equals(table.drop(columns="train_seconds"))
    stored = load_part(tmp_path / "out" / "matching_all-seed0")
    assert stored.accuracy == table.set_index("method")["accuracy"]["matching_all"]
    with pytest.raises(ValueError, match="part: expected a method that trains a target, got 'l2sp'"):
        load_part(tmp_path / "out" / "l2sp-seed0")


def test_no_image_is_scored_on_and_learned_from() -> None:
    """Labelled, unlabelled and held-out training images are three sets; the held-out ones are the same for all."""
    tasks = [baselines._task(".", 6, "validation", seed) for seed in (0, 1)]
    for task, pool in tasks:
        sets = [{image.numpy().tobytes() for image in part.images} for part in (task.train, task.test, pool)]
        assert sum(map(len, sets)) == len(set.union(*sets)) == 200
        assert [len(part) for part in (task.train, task.test, pool)] == [60, 40, 100]
    assert torch.equal(tasks[0][0].test.images, tasks[1][0].test.images)
    assert not torch.equal(tasks[0][0].train.images, tasks[1][0].train.images)


def test_plan(tmp_path: Path) -> None:
    """A dry run tells what each method costs, trials included; a fitted probe costs no steps."""
    changes = SMALL | {"methods": "probe,scratch,recommended,search_then_train,fine_tuning"}
    rows = list(plan("cifar10-baselines", tmp_path, changes=changes))
    assert [row["steps"] for row in rows] == [0, 2, 2, 3 + 2, 1 + 1 + 2]
    assert rows[0]["macs"] == 0
    assert rows[2]["macs"] > rows[1]["macs"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": "2"}, "trials: expected a whole number >= 3, got 2"),
        ({"search_steps": "0"}, "search_steps: expected a whole number >= 1, got 0"),
        ({"meta_every": "0", "methods": "l2t"}, "meta_every: expected a whole number >= 1, got 0"),
        ({"per_class": "1"}, "expected at least 2 images for a split"),
    ],
)
def test_a_search_is_checked_before_anything_is_trained(changes: dict[str, str], message: str, tmp_path: Path) -> None:
    """A bad setting of it must not fail after the trainings of the methods before it."""
    changes = SMALL | {"methods": "scratch,search_then_train"} | changes
    with pytest.raises(ValueError, match=message):
        run("cifar10-baselines", tmp_path / "runs", changes=changes, progress=False)
    assert not (tmp_path / "runs").exists()


def test_a_sweep_of_searches() -> None:
    """What a cell is called, and which parts are sources, is known before a search has trained anything."""
    over = {"methods": "matching_all,random_search,search_then_train"}
    grid = make_grid("cifar10-baselines", [0], over, SMALL)
    assert len(check_cells(grid, grid.cells)) == 3


def test_a_refitted_probe_is_the_same_teacher(tmp_path: Path) -> None:
    """Fitted again on another machine, its last bits may differ: the run goes on, with the probe that it began with."""
    source, data = tiny.made(5, classes=7, seed=2).eval(), tiny.images(30)
    settings = {"steps": 4, "batch_size": 6, "lr": 0.02, "device": "cpu", "progress": False, "views": None}

    def trainer(probe: nn.Module, folder: Path | None = tmp_path / "run") -> TransferTrainer:
        return TransferTrainer(source, tiny.made(4, seed=1), data, teacher=probe, folder=folder, **settings)

    probe = fit_probe(source, data)
    whole = trainer(probe, None).train().log["loss"].tolist()
    for report in trainer(probe):
        if report.step == 2:
            break
    weight = probe.linear.weight.clone()
    other = fit_probe(source, data)
    other.linear.weight.mul_(1 + 1e-6)
    resumed = trainer(other)
    assert resumed.step == 2
    assert torch.equal(resumed.teacher.linear.weight, weight)
    assert not torch.equal(other.linear.weight, weight)  # what was given stays as it is
    assert resumed.train().log["loss"].tolist() == whole
    turned = ImageSet(data.images, (data.labels + 1) % 3, data.classes)
    for another in (fit_probe(source, data, strengths=(0.5,)), fit_probe(source, turned)):
        with pytest.raises(ValueError, match=r"another run \(teacher: there 'probe "):
            trainer(another)


def test_a_search_goes_on_with_refitted_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trials read the layers of their own pairs alone, and still keep their probe."""
    source, data = tiny.made(5, classes=7, seed=2).eval(), tiny.images(30)
    settings = {"steps": 2, "batch_size": 6, "lr": 0.02, "device": "cpu", "progress": False, "views": None}

    def search() -> list[float]:
        found = trial_search(source, lambda: tiny.made(4, seed=1), data, trials=4, folder=tmp_path / "run", **settings)
        return list(found.losses)

    first = search()

    def other(*arguments: Any, **options: Any) -> LinearProbe:
        probe = fit_probe(*arguments, **options)
        probe.linear.weight.mul_(1 + 1e-6)
        return probe

    monkeypatch.setattr("mtanytime.transfer.teacher.fit_probe", other)
    assert search() == first
