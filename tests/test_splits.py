"""Splits into training and validation images: the authors' files, seeded ones, and those that do not fit."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from damage import Creates

from mtanytime.data import ImageSet, Task, apply_split, balanced_split, l2t_split

PARTS: dict[str, Any] = {"train": [[0, 1], [4, 0, 3]], "val": [[0, 1], [2, 1]], "test": [[0, 1], [0, 1, 2]]}


def write(folder: Path, name: str = "birds", zipped: bool = False, **changed: Any) -> Path:
    """Write a split's files, in the form from before torch 1.6 as the authors' are."""
    (folder / "split").mkdir(exist_ok=True)
    for part, content in (PARTS | changed).items():
        file = folder / "split" / f"{name}-{part}"
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_the_authors_files(zipped: bool, tmp_path: Path) -> None:
    """The repository's folder and its folder `split`, old and new form."""
    write(tmp_path, zipped=zipped)
    for path in (tmp_path, tmp_path / "split"):
        split = l2t_split(path, "birds")
        assert {part: index.tolist() for part, index in split.items()} == {k: v[1] for k, v in PARTS.items()}
    with pytest.raises(ValueError, match=r"name: expected one of \['birds'\], the splits in .*, got 'dog'"):
        l2t_split(tmp_path, "dog")


def test_the_authors_indices(shared: Any) -> None:
    """Those of the file that other tests read; validation images are balanced by class where the order tells them."""
    for name, sizes in {"cifar100": (45000, 5000), "stl10": (4500, 500), "cub200": (4994, 1000)}.items():
        split = l2t_split(shared("data/l2t_splits.npz"), name)
        assert (len(split["train"]), len(split["val"])) == sizes
    val = l2t_split(shared("data/l2t_splits.npz"), "dog")["val"]
    assert (torch.bincount(val // 100) == 10).all()  # Stanford Dogs: 100 training images per class, sorted by class


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"val": [[0, 1], [3, 2]]}, "birds: expected training and validation images apart, got 1 in both, such as 3"),
        ({"val": [[0, 1], [-2]]}, "birds-val: expected indices from 0"),
        ({"val": [[0, 1], []]}, "birds-val: expected indices from 0, got none"),
        ({"val": [[0, 1], ["a"]]}, "birds-val: expected indices from 0"),
        ({"val": [[1, 0], [2]]}, "birds-val: expected a split: a list of classes .*, got other classes"),
        ({"test": [[0], [2]]}, r"birds: expected parts of the same classes, got \[1, 2\]"),
        ({"train": {"a": 1}}, "birds-train: expected a split: .*, got dict"),
        ({"train": [[0, 1], torch.zeros(3)]}, "birds-train: expected a split"),
    ],
)
def test_wrong_files(changed: dict, message: str, tmp_path: Path) -> None:
    """Overlaps, other values and other contents, by the file."""
    with pytest.raises(ValueError, match=message):
        l2t_split(write(tmp_path, **changed), "birds")


def test_nothing_is_executed(tmp_path: Path) -> None:
    """Old files are pickles; a missing one is named."""
    write(tmp_path, val=[[0, 1], [Creates(tmp_path / "executed")]])
    with pytest.raises(ValueError, match="birds-val: expected a split"):
        l2t_split(tmp_path, "birds")
    assert not (tmp_path / "executed").exists()
    (tmp_path / "split" / "birds-val").unlink()
    with pytest.raises(ValueError, match=r"birds-val: expected a split.*, got no such file"):
        l2t_split(tmp_path, "birds")


def test_overlaps_in_an_archive(tmp_path: Path) -> None:
    """The npz file is checked as well."""
    np.savez(tmp_path / "s.npz", **{"dog/train": [1, 2], "dog/val": [2], "dog/test": [0]})
    with pytest.raises(ValueError, match=r"s.npz: dog: expected training and validation images apart, got 1 in both"):
        l2t_split(tmp_path / "s.npz", "dog")


def test_apply_a_split() -> None:
    """The images at the indices; parts missing, and indices that a set does not have, are named."""
    task = Task(tiny.images(12), tiny.images(6, seed=1))
    split = {"train": torch.tensor([5, 0]), "val": torch.tensor([11]), "test": torch.tensor([2])}
    smaller, validation = apply_split(task, split)
    assert torch.equal(smaller.train.images, task.train.images[[5, 0]])
    assert torch.equal(validation.images, task.train.images[[11]])
    assert torch.equal(smaller.test.images, task.test.images[[2]])
    with pytest.raises(ValueError, match="split: val: expected indices from 0 to 11, the images of 'images', got 12"):
        apply_split(task, split | {"val": torch.tensor([12])})
    with pytest.raises(ValueError, match="split: test: expected indices from 0 to 5"):
        apply_split(task, split | {"test": torch.tensor([6])})
    with pytest.raises(ValueError, match="split: expected training and validation images apart, got 1 in both"):
        apply_split(task, split | {"val": torch.tensor([5])})
    with pytest.raises(ValueError, match="split: expected the parts"):
        apply_split(task, {"train": split["train"]})


def counted(sizes: list[int], name: str = "images") -> ImageSet:
    """A set with so many images per class."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    images = torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8)
    return ImageSet(images, labels, tuple(f"class {i}" for i in range(len(sizes))), name=name)


@pytest.mark.parametrize(
    ("sizes", "count", "held"),
    [
        ([10, 10, 10], 6, [2, 2, 2]),
        ([10, 10, 10], 7, [2, 2, 3]),
        ([3, 30, 30], 12, [2, 5, 5]),
        ([1, 30, 30], 10, [0, 5, 5]),
        ([2, 2, 2], 3, [1, 1, 1]),
        ([30, 29, 30], 1, [0, 0, 1]),
    ],
)
def test_balanced_splits(sizes: list[int], count: int, held: list[int]) -> None:
    """Exactly so many images, as equal per class as can be, each image on one side, the same for the same seed."""
    data = counted(sizes)
    train, validation = balanced_split(data, count, seed=4)
    counts = [int((validation.labels == c).sum()) for c in range(len(sizes))]
    assert sum(counts) == count
    assert sorted(counts) == sorted(held)
    assert Counter(train.labels.tolist()) + Counter(validation.labels.tolist()) == Counter(data.labels.tolist())
    assert torch.equal(balanced_split(data, count, seed=4)[1].labels, validation.labels)


def test_the_papers_sizes() -> None:
    """By the set's name; for another one, and one too small, the number is asked for."""
    train, validation = balanced_split(counted([30] * 194 + [29] * 6, "CUB-200-2011"), seed=0)
    assert (len(train), len(validation)) == (4994, 1000)
    assert (torch.bincount(validation.labels) == 5).all()
    with pytest.raises(ValueError, match="count: expected a number of images for the set 'images', got None"):
        balanced_split(counted([3]))
    with pytest.raises(ValueError, match="count: expected 1 to 3, which leaves an image of each class to train on"):
        balanced_split(counted([3, 2, 1]), 4)
