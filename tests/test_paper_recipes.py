"""The recipes for the papers' tables, on tiny archives in the forms of their data sets."""

from pathlib import Path

import made_archives
import pytest
import torch
import torchvision
from torch import nn

from mtanytime.experiments import paper_recipes
from mtanytime.experiments.recipe import changed
from mtanytime.experiments.runner import RECIPES, run

SMALL = {"epochs": 1, "batch_size": 2, "lr": 0.01, "workers": 0}


def folder(path: Path) -> Path:
    """A new folder."""
    path.mkdir()
    return path


@pytest.fixture
def small_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights for a source of two classes, ResNet-18 in the place of ResNet-34, whose first convolution is coarse."""

    def resnet(num_classes: int = 1000) -> nn.Module:
        network = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes)
        network.conv1 = nn.Conv2d(3, 64, 7, stride=16, padding=3, bias=False)
        return network

    monkeypatch.setattr(torchvision.models, "resnet34", resnet)
    monkeypatch.setattr(torchvision.models, "resnet18", resnet)
    paper_recipes._source.cache_clear()
    paper_recipes.read_task.cache_clear()
    file = tmp_path / "resnet34.pth"
    torch.save(resnet().state_dict(), file)
    return file


def test_the_large_sets_from_archive_to_table(
    tmp_path: Path, small_networks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A researcher gives the archive and the weights that they downloaded, and gets the rows of the paper's table."""
    monkeypatch.setitem(paper_recipes.VALIDATION_IMAGES, "CUB-200-2011", 2)
    archive = made_archives.make(folder(tmp_path / "birds"), "CUB-200-2011", monkeypatch)
    methods = ["scratch", "lwf_at", "what_single", "l2t"]
    changes = SMALL | {"images": str(archive), "source": str(small_networks), "methods": tuple(methods)}
    table = run("l2t-cub200", tmp_path / "out", changes=changes, progress=False).table
    assert table["method"].tolist() == methods
    assert table["accuracy"].between(0, 1).all()
    again = run("l2t-cub200", tmp_path / "out", changes=changes, progress=False).table
    assert again.equals(table)  # it has finished, so it is only read


def test_settings_are_the_papers() -> None:
    """Numbers that a reader compares with the paper: epochs, batches, rates, strengths, and the pairs of layers."""
    for key, chosen in paper_recipes.SETS.items():
        settings = RECIPES[f"l2t-{key}"].settings
        expected = {"epochs": 200, "lr": 0.1, "weight_decay": 1e-4, "beta": 0.5, "inner_steps": 2}
        expected |= {"batch_size": 64 if chosen.large else 128, "meta_lr": 1e-3 if key == "stanford40" else 1e-4}
        assert {name: settings[name] for name in expected} == expected
    for name in ("anytime-cifar10-paper", "anytime-cifar100-paper"):
        settings = RECIPES[name].settings
        expected = {"epochs": 300, "lr": 0.1, "weight_decay": 1e-4, "batch_size": 64, "validation_images": 5000}
        expected |= {"blocks": 7, "bottleneck": 4, "inclusive_width": 64, "inclusive_branches": 8, "inclusive_exits": 8}
        assert {key: settings[key] for key in expected} == expected


def test_bad_settings(tmp_path: Path, small_networks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is trained: no files, others' weights, a split of a set that has none."""
    with pytest.raises(ValueError, match=r"images: expected .*, got 'nowhere'; set it to CUB-200.s archive"):
        run("l2t-cub200", tmp_path / "out", changes={"images": "nowhere"}, progress=False)
    with pytest.raises(ValueError, match=r"setting: expected .* the nearest is 'epochs'"):
        changed(RECIPES["l2t-dogs"].settings, {"epoch": 1})
    monkeypatch.setitem(paper_recipes.VALIDATION_IMAGES, "MIT Indoor 67", 2)
    archive = made_archives.make(folder(tmp_path / "rooms"), "MIT Indoor 67", monkeypatch)
    files = {"images": str(archive), "source": str(small_networks)}
    with pytest.raises(
        ValueError, match="split: expected none: the authors' are of cifar100, stl10, cub200, dogs, got"
    ):
        run("l2t-mit67", tmp_path / "out", changes=SMALL | files | {"split": "L2T-ww"}, progress=False)
    torch.save({"layer": torch.zeros(1)}, small_networks)
    paper_recipes._source.cache_clear()
    with pytest.raises(ValueError, match="expected torchvision's weights of ResNet-34, got others"):
        run("l2t-mit67", tmp_path / "out", changes=SMALL | files, progress=False)
    assert not (tmp_path / "out").exists()
