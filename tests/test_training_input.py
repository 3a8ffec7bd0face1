"""Validation of a trainer's input: what cannot work is refused before training, with the argument named."""

import math
import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_runs
import torch
import torch.nn.functional as F
from tiny_runs import Begin, coloured, flattened, loader, network, task, trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchvision.transforms import v2

from mtanytime.backbones import Normalized
from mtanytime.data.images import ImageSet
from mtanytime.training.trainer import Trainer


def refused(error: type[Exception], match: str, folder: Path, **options: Any) -> None:
    """Check that a trainer with these options is refused and writes nothing."""
    with pytest.raises(error, match=match):
        trainer(folder, **options)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epochs": 0}, "^epochs: expected a whole number >= 1, got 0$"),
        ({"batch_size": 0}, "^batch_size: expected a whole number >= 1, got 0$"),
        ({"lr": 0.0}, "^lr: expected a number > 0, got 0.0$"),
        ({"lr": -0.1}, "^lr: expected a number > 0, got -0.1$"),
        ({"lr": math.nan}, "^lr: expected a number > 0, got nan$"),
        ({"lr": math.inf}, "^lr: expected a number > 0, got inf$"),
        ({"weight_decay": -1e-4}, "^weight_decay: expected a number >= 0, got -0.0001$"),
        ({"weight_decay": math.nan}, "^weight_decay: expected a number >= 0, got nan$"),
        ({"momentum": 1.0}, r"^momentum: expected a number in \[0, 1\), got 1.0$"),
        ({"momentum": -0.1}, r"^momentum: expected a number in \[0, 1\), got -0.1$"),
        ({"momentum": 0.0, "nesterov": True}, "^momentum: expected a number > 0 with nesterov, got 0.0$"),
        ({"schedule": lambda progress: math.nan}, "^schedule: expected finite factors >= 0, got .nan"),
        ({"schedule": lambda progress: -progress}, r"^schedule: expected finite factors >= 0, got \[-0.0, -0.01"),
        ({"validation": 0.0}, "fraction: expected a number between 0 and 1, got 0.0"),
        ({"validation": 1.5}, "fraction: expected a number between 0 and 1, got 1.5"),
        ({"data": task(1)}, "class 'a' of .*: expected at least 2 images for a split, got 1"),
    ],
    ids=lambda value: str(value).split(" at 0x")[0],  # an address differs between workers
)
def test_bad_settings(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    """Each bad setting is refused by name, with the expected and the given value."""
    refused(ValueError, match, tmp_path / "run", **options)


def test_bad_settings_of_the_wrong_type(begin: Begin) -> None:
    """Settings of the wrong type are refused in plain words where no type checker runs."""
    ours, theirs = multiprocessing.Pipe()
    cases = [
        ({"precision": "float16"}, "ValueError: precision: expected one of ('float32', 'bfloat16'), got 'float16'"),
        (
            {"schedule": "linear"},
            "ValueError: schedule: expected a function or one of ['cosine', 'steps', 'constant', 'warm-up cosine'],",
        ),
        ({"optimizer": "adam"}, "ValueError: optimizer: expected a function that makes the optimizer, got str; pass a"),
        ({"epochs": 2.5}, "ValueError: epochs: expected a whole number >= 1, got 2.5"),
        ({"data": [1, 2]}, "ValueError: data: expected an ImageSet or a DataLoader, got [1, 2]"),
        ({"test": "cifar"}, "ValueError: test: expected an ImageSet or a DataLoader, got 'cifar'"),
        ({"validation": 1}, "ValueError: fraction: expected a number between 0 and 1, got 1"),
        ({"validation": "cifar"}, "ValueError: validation: expected an ImageSet or a DataLoader, got 'cifar'"),
    ]
    begin(tiny_runs.complaints, theirs, [options for options, _ in cases])
    for _, wanted in cases:
        assert ours.recv().startswith(wanted)


def images(count: int = 10, **changed: Any) -> DataLoader:
    """A DataLoader of pairs (image, label), with one of them replaced."""
    pairs = [(torch.full((3, 8, 8), 0.5), i % 3) for i in range(count)]
    return DataLoader([(changed.get("image", image), changed.get("label", label)) for image, label in pairs], 5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"model": network(2)}, "^training labels: expected 0 to 1, one per output of the network, got 2$"),
        ({"data": images(label=3)}, "^training labels: expected 0 to 2, one per output of the network, got 3$"),
        (
            {"test": coloured(2, classes=5)},
            "^test: expected .* training set's classes .* got .'a', 'b', 'c', 'd', 'e'.$",
        ),
        (
            {"validation": coloured(2, classes=4)},
            "^validation: expected .* classes .* got .'a', 'b', 'c', 'd'.$",
        ),
        ({"test": images(label=7)}, "^test labels: expected 0 to 2, one per output of the network, got 7$"),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))},
            r"^model: expected .* 3 training images of shape \(3, 8, 8\), got Sequential, which fails: mat1 and mat2",
        ),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3)), "test": coloured(1, size=9)},
            r"^model: expected .* 3 test images of shape \(3, 9, 9\), got Sequential, which fails: mat1 and mat2",
        ),
        (
            {"model": nn.Conv2d(1, 3, 3)},
            r"^model: expected .* 3 training images of shape \(3, 8, 8\), got Conv2d, which fails: .* channels",
        ),
        (
            {"model": nn.Conv2d(3, 3, 3)},
            r"^model: expected an output that holds logits .*, got a tensor \(3, 3, 6, 6\); say where they are",
        ),
        (
            {"loss": lambda output, labels: F.cross_entropy(output[None], labels)},
            "^loss: expected a function .*, which fails: ",
        ),
        (
            {"loss": partial(F.cross_entropy, reduction="none")},
            r"^loss: expected .* a scalar tensor, got \(3,\)$",
        ),
        ({"loss": lambda output, labels: 0.5}, "^loss: expected a function that returns a scalar tensor, got float$"),
        (
            {"model": nn.Sequential(nn.AvgPool2d(8), nn.Flatten())},
            "^model: expected a network with parameters that require grad, got 'Sequential'$",
        ),
        ({"data": images(image=torch.zeros(3, 8, 8, dtype=torch.uint8))}, "images: expected float .*, got uint8"),
        ({"data": images(image=torch.full((3, 8, 8), 255.0))}, r"images: expected values in \[0, 1\], got 255 to 255"),
        ({"data": images(image=torch.full((3, 8, 8), -0.5))}, r"images: expected values in \[0, 1\], got -0.5 to -0.5"),
        ({"data": images(image=torch.full((3, 8, 8), math.nan))}, r"images: expected values in \[0, 1\], got nan"),
        ({"data": images(image=torch.zeros(1, 8, 8))}, r"images: expected float \(batch, 3, height, width\)"),
        ({"data": images(label=0.5)}, "labels: expected int64"),
        ({"data": images(), "validation": 0.1}, "^validation: expected a set of its own beside a DataLoader, got 0.1$"),
        (
            {"model": Normalized(torch.compile(network()), (0.5,) * 3, (0.2,) * 3)},
            "^model: expected the network itself, got a network from torch.compile; call network.compile",
        ),
        ({"test": coloured(2).subset([])}, "^test: expected a set with images, got ImageSet"),
        ({"validation": coloured(2).subset([])}, "^validation: expected a set with images, got ImageSet"),
    ],
    ids=lambda value: None,
)
def test_bad_networks_and_data(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    """A network and sets that do not fit together are refused after a trial on a few images of each set."""
    if isinstance(options.get("data"), DataLoader):
        options = {"validation": None, **options}
    model = options.get("model")
    before = None if model is None else flattened(model.state_dict())
    refused(ValueError, match, tmp_path / "run", **options)
    assert model is None or flattened(model.state_dict()) == before


def test_a_last_batch_of_one_image(tmp_path: Path) -> None:
    """Batch norm on 1×1 maps cannot take one image: refused at once, not at the end of the first epoch."""

    def made() -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 3))

    def sets(count: int) -> tuple[ImageSet, DataLoader]:
        data = coloured(7).subset(range(count))
        return data, loader(data)

    options = {"validation": None, "model": made()}
    match = "^model: expected .* 1 training images .* got Sequential, which fails: Expected more than 1 value"
    for data in sets(16):
        refused(ValueError, match, tmp_path / "run", data=data, **options)
    for data in (*sets(17), loader(coloured(7).subset(range(16)), drop_last=True)):
        trainer(data=data, **options).train()


def test_notes_on_habits_that_cost_accuracy() -> None:
    """A last batch that is a small remainder, of a set or a loader, and a choice by few validation images."""

    def notes(**options: Any) -> list[str]:
        made = {"data": coloured(7).subset(range(17)), "validation": None, "batch_size": 8} | options
        return [note for note in trainer(**made).notes if note.startswith(("training", "validation"))]

    (note,) = notes()
    assert note.startswith("training: an epoch's last batch has 1 of 8 images")
    assert note.endswith('remainder="drop" leaves it out')
    data = coloured(7)
    (note,) = notes(data=DataLoader(TensorDataset(data.images[:17] / 255, data.labels[:17]), 8))
    assert note.endswith("drop_last=True in the DataLoader leaves it out")
    assert notes(remainder="drop") == notes(batch_size=17) == notes(batch_size=100) == notes(batch_size=6) == []
    (note,) = notes(validation=coloured(7), remainder="drop")
    assert note == (
        "validation: 21 images are too few to choose the best epoch by, as accuracy does; last_accuracy is that of the "
        "last step"
    )


def test_note_on_images_of_another_size() -> None:
    """A network that pools takes images of any size, so a test set of another one would go unseen."""
    small = coloured(7)
    large = ImageSet(small.images.repeat(1, 1, 2, 2), small.labels, small.classes)
    pooling = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    def notes(data: ImageSet, test: ImageSet, **others: Any) -> list[str]:
        options = {"model": pooling, "data": data, "validation": None, "batch_size": 7} | others
        return [note for note in trainer(**options, test=test).notes if "pixels" in note]

    expected = "its images have {0}×{0} pixels, those of the training steps {1}×{1}".format
    assert notes(small, large) == [f"test: {expected(16, 8)}"]
    assert notes(small, small, validation=large) == [f"validation: {expected(16, 8)}"]
    crop = {"augment": v2.RandomCrop(8)}
    assert notes(large, large, **crop) == [f"test: {expected(16, 8)}"]
    assert notes(large, small, **crop) == notes(small, small) == notes(loader(small), small) == []
    assert notes(small, large, model=Normalized(pooling, [0.5] * 3, [0.2] * 3, size=8)) == []


def test_a_remainder_that_a_loader_keeps() -> None:
    """The setting does not reach it, so a note says what does."""
    data = coloured(7)
    loader = DataLoader(TensorDataset(data.images[:20] / 255, data.labels[:20]), 8)
    (note,) = trainer(data=loader, validation=None, batch_size=8, remainder="drop").notes
    assert note.startswith("training: a DataLoader keeps its last batch, here of 4 of 8 images")
    assert not trainer(data=loader, validation=None, batch_size=8).notes


def test_states_that_no_checkpoint_can_hold(tmp_path: Path) -> None:
    """A network's, too, and before training: the run could never be loaded."""

    class Odd(nn.Sequential):
        """Keeps an array beside its weights."""

        def get_extra_state(self) -> np.ndarray:
            return np.zeros(2)

        def set_extra_state(self, state: np.ndarray) -> None:
            pass

    refused(ValueError, "^model: expected numbers, texts and tensors", tmp_path / "run", model=Odd(*network()))


def test_metrics_are_numbers(tmp_path: Path) -> None:
    """Those of a step of one's own are written as numbers; what is none is refused by name."""

    class Own(Trainer):
        """Also reports the norm of the weights."""

        def train_on_batch(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
            norms = torch.stack([parameter.norm() for parameter in self.model.parameters()])
            return super().train_on_batch(images, labels) | {"norm": norms if self.step else norms.sum()}

    run = Own(network(), coloured(4), epochs=2, batch_size=6, folder=tmp_path, progress=False)
    reports = iter(run)
    assert type(next(reports).metrics["norm"]) is float
    with pytest.raises(ValueError, match=r"^train_on_batch: expected a dictionary of numbers .* got 'norm', a Tensor$"):
        next(reports)
    assert pd.read_csv(tmp_path / "log.csv")["norm"].dtype == float


def test_a_loader_of_another_length_than_it_says() -> None:
    """A DataLoader with fewer batches than its length is an error, since no epoch would end; more are left out."""

    class Odd(IterableDataset):
        """Claims to have ten images, and has another number of them."""

        def __init__(self, count: int) -> None:
            self.count = count

        def __len__(self) -> int:
            return 10

        def __iter__(self) -> Any:
            for i in range(self.count):
                yield torch.full((3, 8, 8), 0.5), i % 3

    run = trainer(data=DataLoader(Odd(6), 2), validation=None)
    with pytest.raises(RuntimeError, match=r"^epoch 1: expected 5 batches, got 3$"):
        run.train()
    assert len(trainer(data=DataLoader(Odd(14), 2), validation=None).train().log) == 15


def test_a_class_without_images(tmp_path: Path) -> None:
    """A class without training images is a mistake in the data, found before training."""
    data = coloured()
    with pytest.raises(ValueError, match=r"^data: expected training images of every class, got none of 'c'$"):
        Trainer(network(), data.subset((data.labels != 2).nonzero()[:, 0]), folder=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_in_a_later_batch(label: int) -> None:
    """A DataLoader's later labels cannot be checked before training; each batch's are checked before its loss."""
    labels = torch.tensor([0, 1, 2, 0, 1, label])
    batches = DataLoader([(image / 255, int(y)) for image, y in zip(coloured().images, labels, strict=False)], 3)
    with pytest.raises(ValueError, match=rf"^training labels: expected 0 to 2, .* got {label}$"):
        Trainer(network(), batches, epochs=1, device="cpu", progress=False).train()


def test_a_test_set_of_other_classes(tmp_path: Path) -> None:
    """Label 1 of one set may be label 0 of another: an accuracy over different classes means nothing."""
    data = coloured()
    other = ImageSet(data.images, data.labels, ("a", "c", "b"))
    with pytest.raises(
        ValueError, match=r"^test: expected .* \('a', 'b', 'c'\), in that order, got \('a', 'c', 'b'\)$"
    ):
        Trainer(network(), data, other, folder=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
