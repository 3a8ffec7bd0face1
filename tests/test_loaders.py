"""DataLoaders get every guarantee that image sets have: checked batches, classes that fit, reproducible epochs."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)
from torchvision.transforms import v2
from typechecker import unchecked

from mtanytime.data.batches import Batches, class_names, map_batches
from mtanytime.data.images import ImageSet
from mtanytime.training.trainer import Trainer

IMAGES, LABELS = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3


def loader(images: Any = IMAGES, labels: Any = LABELS, **options: Any) -> DataLoader:
    """Batches of eight."""
    return DataLoader(TensorDataset(images, labels), 8, **options)


def trainer(data: Any, test: Any = None, **options: Any) -> Trainer:
    """A run of one epoch."""
    settings = {"epochs": 1, "lr": 0.01, "device": "cpu", "progress": False} | options
    return Trainer(tiny.made(), data, test, **settings)


@pytest.mark.parametrize("where", [0, 2])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x * 2 - 1, y), r"images: expected values in \[0, 1\], got -.*; leave mean and std"),
        (lambda x, y: (x * 255, y), r"images: expected values in \[0, 1\], got .*; divide them by 255"),
        (lambda x, y: (x * 1.1 - 0.05, y), r"got -0.0.* to 1.0.*; bicubic and Lanczos resampling overshoot: clamp"),
        (lambda x, y: ((x * 255).byte(), y), "images: expected float .*, got uint8 .*; convert them: v2.ToDtype"),
        (lambda x, y: (x[:, :1], y), "images: expected float .*; repeat the grey channel"),
        (lambda x, y: (x.permute(0, 2, 3, 1), y), "images: expected float .*; put the channels first"),
        (lambda x, y: (x, y.float()), r"labels: expected int64 \(8,\), got float32"),
        (lambda x, y: (x, y + 1), "labels: expected 0 to 2, one per output of the network, got 3"),
    ],
)
def test_every_batch_is_checked(where: int, change: Callable, message: str) -> None:
    """A transform that goes wrong in the third batch is as wrong as in the first."""

    class Batched(Dataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            batch = IMAGES[8 * i : 8 * i + 8], LABELS[8 * i : 8 * i + 8]
            return change(*batch) if i == where else batch

    data = DataLoader(Batched(), batch_size=None)
    with pytest.raises(ValueError, match=message):
        trainer(data).train()


@pytest.mark.parametrize(
    ("part", "function", "message"),
    [
        (
            lambda x, y, i: (x, y, f"{i}.png"),
            lambda batch: (batch[0], batch[1]),
            r"got 3 parts \(Tensor, Tensor, \w+\); pick them: mtanytime.data.map_batches",
        ),
        (
            lambda x, y, i: {"image": x, "label": y},
            lambda batch: (batch["image"], batch["label"]),
            r"got a dict of 'image', 'label'; pick them: .*batch\[\"image\"\]",
        ),
    ],
)
def test_batches_of_other_forms(part: Callable, function: Callable, message: str) -> None:
    """Data sets with file names, and dicts as Hugging Face gives them: refused with the hint, which works."""
    items = [part(x, int(y), i) for i, (x, y) in enumerate(zip(IMAGES, LABELS, strict=True))]
    data = DataLoader(items, 8)
    with pytest.raises(ValueError, match=message):
        trainer(data)
    mapped = trainer(map_batches(data, function)).train().log
    assert mapped["loss"].tolist() == trainer(loader()).train().log["loss"].tolist()
    with pytest.raises(ValueError, match=r"3 parts|a dict"):  # the loader itself is as it was
        trainer(data)


def test_samplers_are_told_their_epoch() -> None:
    """A DistributedSampler shuffles by its epoch; without set_epoch all epochs have one order."""
    data = TensorDataset(IMAGES, LABELS)
    sampler = DistributedSampler(data, num_replicas=1, rank=0, seed=3)
    batches = Batches(DataLoader(data, 8, sampler=sampler), None, seed=0)
    orders = [torch.cat([images for images, _ in batches.epoch(epoch)]) for epoch in (0, 1, 0)]
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])


def folders(root: Path, **parts: tuple[str, ...]) -> dict[str, DataLoader]:
    """A DataLoader of torchvision's ImageFolder for each part, with a folder of one color per class."""
    for part, names in parts.items():
        for name in names:
            (root / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), name).save(root / part / name / f"{i}.png")
    to_float = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    return {part: DataLoader(torchvision.datasets.ImageFolder(str(root / part), to_float), 4) for part in parts}


def test_a_test_folder_that_lacks_a_class(tmp_path: Path) -> None:
    """ImageFolder numbers the classes that are there, so every label would mean another class: accuracy 0."""
    data = folders(tmp_path, train=("blue", "green", "red"), test=("green", "red"))
    message = r"test: expected a set of the training set's classes \('blue', 'green', 'red'\), in that order, got"
    with pytest.raises(ValueError, match=message):
        trainer(data["train"], data["test"])
    subset = DataLoader(Subset(data["test"].dataset, [0, 1]), 2)
    with pytest.raises(ValueError, match=message):
        trainer(data["train"], subset)
    with pytest.raises(ValueError, match=r"validation: expected a set of the training set's classes"):
        trainer(data["train"], validation=data["test"])
    images = ImageSet(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.arange(3), ("red", "green", "blue"))
    with pytest.raises(ValueError, match="test: expected a set of the training set's classes"):
        trainer(data["train"], images)


def test_class_names() -> None:
    """Of an image set, of a data set that names them, through subsets; None where there are none."""
    assert class_names(tiny.images(classes=2)) == ("class 0", "class 1")
    assert class_names(loader()) is None
    data = TensorDataset(IMAGES, LABELS)
    data.classes = ["x", "y", "z"]
    assert class_names(DataLoader(Subset(Subset(data, range(9)), range(3)))) == ("x", "y", "z")


@pytest.mark.parametrize("kind", ["set", "loader"])
def test_a_last_batch_of_one(kind: str) -> None:
    """torchvision's ResNet ends in maps of one pixel, whose batch norm cannot take one image: the remedy works."""
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    images, labels = (IMAGES * 255).byte()[:9], LABELS[:9]
    settings = {"epochs": 1, "batch_size": 4, "device": "cpu", "progress": False}
    if kind == "set":
        data, option = ImageSet(images, labels, ("a", "b", "c")), 'remainder="drop"'
    else:
        data, option = DataLoader(TensorDataset(IMAGES[:9], LABELS[:9]), 4), "drop_last=True in the DataLoader"
        settings["batch_size"] = 128
    message = f"last batch has one image, which batch norm may not take: choose another batch size or {option}"
    with pytest.raises(ValueError, match=message):
        Trainer(model, data, **settings)
    if kind == "set":
        run = Trainer(model, data, **settings, remainder="drop")
    else:
        run = Trainer(model, DataLoader(data.dataset, 4, drop_last=True), **settings)
    assert run.steps == 2
    run.train()


def test_dropped_remainders() -> None:
    """All batches have one size; what is dropped differs from epoch to epoch; a small set is one batch."""
    data = tiny.images(10)
    batches = Batches(data, 4, seed=0, remainder="drop")
    assert len(batches) == 2
    sizes = [len(labels) for epoch in range(3) for _, labels in batches.epoch(epoch)]
    assert sizes == [4] * 6
    kept = Batches(data, 4, seed=0)
    for epoch in range(2):  # the same order as with the remainder
        for (a, _), (b, _) in zip(batches.epoch(epoch), kept.epoch(epoch), strict=False):
            assert torch.equal(a, b)
    assert [len(labels) for _, labels in Batches(data, 64, seed=0, remainder="drop").epoch(0)] == [10]


def test_steps_in_place_of_epochs() -> None:
    """7 steps of 3 per epoch: two epochs and a part of one, validated at its end."""
    data = tiny.images(12)
    run = trainer(
        data, epochs=None, steps=7, batch_size=4, schedule="warm-up cosine", validation=tiny.images(6, seed=1)
    )
    assert (run.steps, run.epochs, len(run.rates)) == (7, 3, 7)
    result = run.train()
    assert len(result.log) == 7
    assert np.isfinite(result.log["val_accuracy"]).tolist() == [False, False, True, False, False, True, True]
    by_epochs = trainer(data, epochs=2, batch_size=4).train().log
    by_steps = trainer(data, epochs=None, steps=6, batch_size=4).train().log
    assert by_epochs.drop(columns="seconds").equals(by_steps.drop(columns="seconds"))
    with pytest.raises(ValueError, match="steps: expected steps or epochs, not both, got 6 steps and 2 epochs"):
        trainer(data, steps=6, epochs=2)
    with pytest.raises(ValueError, match="steps: expected a whole number >= 1, got 0"):
        trainer(data, epochs=None, steps=0)


def test_torchvision_transforms_augment() -> None:
    """v1 and v2 transforms train, are part of what identifies the run, and are tried before training."""
    data = tiny.images(12)
    flipped = trainer(data, augment=v2.RandomHorizontalFlip(1.0)).train().log["loss"]
    mirrored = ImageSet(data.images.flip(3), data.labels, data.classes)
    assert flipped.tolist() == trainer(mirrored).train().log["loss"].tolist()
    with pytest.raises(ValueError, match=r"augment: expected .*; leave out ToTensor"):
        trainer(data, augment=torchvision.transforms.ToTensor())
    with pytest.raises(ValueError, match=r"augment: expected .*; leave out Normalize"):
        trainer(data, augment=v2.Normalize([0.5] * 3, [0.1] * 3))


def test_other_transforms_are_another_run(tmp_path: Path) -> None:
    """A folder trained with one augmentation is not continued with another."""
    data = tiny.images(12)
    trainer(data, folder=tmp_path, augment=v2.Compose([v2.RandomCrop(8, padding=1)])).train()
    trainer(data, folder=tmp_path, augment=v2.Compose([v2.RandomCrop(8, padding=1)])).train()
    with pytest.raises(ValueError, match="augment"):
        trainer(data, folder=tmp_path, augment=v2.Compose([v2.RandomCrop(8, padding=2)]))


def test_numpy_arrays_in_an_image_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays are what images usually come as; labels of any whole-number type."""
    images = (IMAGES * 255).byte()
    expected = ImageSet(images, LABELS, ("a", "b", "c"))
    for labels in (LABELS.numpy(), LABELS.numpy().astype(np.uint8), LABELS.int(), LABELS.tolist()):
        data = ImageSet(images.numpy(), labels, ("a", "b", "c"))
        assert torch.equal(data.images, expected.images)
        assert torch.equal(data.labels, expected.labels)
        assert data.labels.dtype == torch.int64
    monkeypatch.setattr(ImageSet, "__init__", unchecked(ImageSet.__init__))
    with pytest.raises(ValueError, match=r"images: expected uint8 .*; put the channels first"):
        ImageSet(images.permute(0, 2, 3, 1).numpy(), LABELS, ("a", "b", "c"))
    with pytest.raises(ValueError, match=r"images: expected uint8 .*; repeat the grey channel: images.expand"):
        ImageSet(images[:, :1], LABELS, ("a", "b", "c"))
    with pytest.raises(ValueError, match=r"images: expected uint8 .*got float32 .*; give levels from 0 to 255"):
        ImageSet(IMAGES, LABELS, ("a", "b", "c"))
    with pytest.raises(ValueError, match="labels: expected whole numbers"):
        ImageSet(images.numpy(), LABELS.numpy() / 2, ("a", "b", "c"))


@pytest.mark.parametrize("workers", [0, 2])
def test_transforms_that_draw_from_python(workers: int) -> None:
    """torchvision's first RandomChoice draws from Python's `random`: epochs repeat, and the caller's draws go on."""
    choice = torchvision.transforms.RandomChoice(
        [torch.nn.Identity(), torchvision.transforms.RandomHorizontalFlip(1.0)]
    )

    class Augmented(Dataset):
        def __len__(self) -> int:
            return 24

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            return choice(IMAGES[i]), LABELS[i]

    batches = Batches(DataLoader(Augmented(), 8, num_workers=workers), None, seed=0)
    random.seed(5)
    first = torch.cat([images for images, _ in batches.epoch(1)])
    drawn = random.random()
    random.seed(6)
    assert torch.cat([images for images, _ in batches.epoch(1)]).equal(first)
    assert torch.cat([images for images, _ in batches.epoch(1, start=1)]).equal(first[8:])
    assert not torch.cat([images for images, _ in batches.epoch(2)]).equal(first)
    random.seed(5)
    assert random.random() == drawn


def test_samplers_with_generators_of_their_own(tmp_path: Path) -> None:
    """A sampler's own generator is seeded for each epoch, too: a run that was stopped goes on with the same bits."""

    def weighted() -> DataLoader:
        generator = torch.Generator().manual_seed(4)
        sampler = WeightedRandomSampler([1.0, 2.0, 3.0] * 8, 24, generator=generator)
        return DataLoader(TensorDataset(IMAGES, LABELS), 8, sampler=sampler)

    whole = trainer(weighted(), epochs=2).train().log["loss"].tolist()
    data = weighted()
    for report in trainer(data, epochs=2, folder=tmp_path / "run"):
        if report.step == 4:
            break
    for again in (data, weighted()):  # in the same process and in another one
        assert trainer(again, epochs=2, folder=tmp_path / "run").train().log["loss"].tolist() == whole


def test_transforms_that_draw_from_numpy(tmp_path: Path) -> None:
    """Their numbers depend on seed and epoch alone, so the run is recognized; the caller's draws go on."""

    class Noisy(Dataset):
        def __len__(self) -> int:
            return 24

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            return (IMAGES[i] + float(np.random.rand()) / 10).clamp(0, 1), LABELS[i]

    np.random.seed(3)
    expected = np.random.rand(2)
    np.random.seed(3)
    first = trainer(DataLoader(Noisy(), 8), folder=tmp_path / "run").train().log["loss"].tolist()
    assert np.random.rand() == expected[0]
    assert trainer(DataLoader(Noisy(), 8), folder=tmp_path / "run").train().log["loss"].tolist() == first


def test_persistent_workers_that_were_used(tmp_path: Path) -> None:
    """The second call on the same loader is of the same run, though its workers have drawn random numbers."""

    class Noisy(Dataset):
        def __len__(self) -> int:
            return 24

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            return (IMAGES[i] + torch.rand(()) / 10).clamp(0, 1), LABELS[i]

    data = DataLoader(Noisy(), 8, num_workers=1, persistent_workers=True)
    first = trainer(data, folder=tmp_path / "run").train().log["loss"].tolist()
    assert trainer(data, folder=tmp_path / "run").train().log["loss"].tolist() == first


def test_a_loader_without_a_length() -> None:
    """An epoch must have a number of batches."""

    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield from zip(IMAGES, LABELS, strict=True)

    with pytest.raises(ValueError, match=r"data: expected a DataLoader that knows its number of batches, .*__len__"):
        trainer(DataLoader(Stream(), 8))


def test_classes_of_several_sets_in_one() -> None:
    """A ConcatDataset has the classes of its parts, which must be the same in the same order."""

    def part(*classes: str) -> TensorDataset:
        data = TensorDataset(torch.rand(4, 3, 8, 8), torch.arange(4) % 2)
        data.classes = list(classes)
        return data

    def names(*parts: Dataset) -> tuple[str, ...] | None:
        return class_names(DataLoader(ConcatDataset(parts)))

    assert names(part("cat", "dog"), Subset(part("cat", "dog"), [0, 1])) == ("cat", "dog")
    assert names(part("cat", "dog"), TensorDataset(torch.rand(4, 3, 8, 8), torch.arange(4) % 2)) is None
    with pytest.raises(ValueError, match="data: expected a ConcatDataset whose parts have the same classes"):
        names(part("cat", "dog"), part("dog", "cat"))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: Subset(x, range(8, 24)), lambda x: ConcatDataset([x, x])])
def test_a_late_test_label_without_an_output(wrap: Callable) -> None:
    """It is noticed before training, not when the trained network is evaluated."""
    test = DataLoader(wrap(TensorDataset(IMAGES, torch.arange(24) // 6)), 4)
    with pytest.raises(ValueError, match="test labels: expected 0 to 2, one per output of the network, got 3"):
        trainer(loader(), test)


def test_labels_that_a_loader_changes() -> None:
    """Labels from 1 that the `collate_fn` lowers are valid."""
    from_one = loader(labels=LABELS + 1)
    assert trainer(loader(), map_batches(from_one, lambda batch: (batch[0], batch[1] - 1))).train().accuracy is not None
