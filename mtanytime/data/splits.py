"""Splits of a training set into training and validation images: the L2T-ww authors', and balanced ones by seed."""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from mtanytime.checks import Words, mismatch, require
from mtanytime.data.images import LabelledImages, Task
from mtanytime.randomness import generator_for
from mtanytime.torch_files import load_file

Split = Mapping[str, Int64[Tensor, " _"]]

PARTS = ("train", "val", "test")
# Of arXiv:1905.05901, balanced by class, by the names of the readers' sets; for the last two, whose split the authors
# did not publish, a tenth of the training images.
VALIDATION_IMAGES = {
    "CIFAR100": 5000,
    "STL10": 500,
    "CUB-200-2011": 1000,
    "Stanford Dogs": 1200,
    "MIT Indoor 67": 536,
    "Stanford 40 Actions": 400,
}


def balanced_split(
    data: LabelledImages, count: int | None = None, seed: int = 0
) -> tuple[LabelledImages, LabelledImages]:
    """Split into (training, validation) with exactly `count` validation images, as many of each class as possible.

    Where `count` is no multiple of the classes, random classes give one more; a class with too few images gives all but
    one, and the others more.

    Args:
        data: the training set.
        count: validation images; default: as in arXiv:1905.05901, for the sets of `VALIDATION_IMAGES`.
        seed: of the choice.

    Raises:
        ValueError: no count for another set, or one that leaves a class without training images.
    """
    if count is None:
        count = VALIDATION_IMAGES.get(data.name)
        require(count is not None, "count", f"a number of images for the set {data.name!r}", count)
    by_class = data._by_class(seed)
    most = torch.tensor([max(len(index) - 1, 0) for index in by_class])
    total = int(most.sum())
    require(1 <= count <= total, "count", f"1 to {total}, which leaves an image of each class to train on", count)
    taken = torch.zeros_like(most)
    order = torch.randperm(len(most), generator=generator_for(seed, 1))
    while (left := count - int(taken.sum())) > 0:
        open_classes = order[(taken < most)[order]]
        each = max(left // len(open_classes), 1)
        chosen = open_classes if left >= len(open_classes) else open_classes[:left]
        taken[chosen] = (taken[chosen] + each).minimum(most[chosen])
    held = torch.cat([index[:n] for index, n in zip(by_class, taken.tolist(), strict=True)]).sort().values
    rest = torch.cat([index[n:] for index, n in zip(by_class, taken.tolist(), strict=True)]).sort().values
    return data.subset(rest), data.subset(held)


def apply_split(task: Task, split: Split) -> tuple[Task, LabelledImages]:
    """Return a task with the images of a split (`l2t_split`), and its validation set.

    Raises ValueError for a split with other parts, with images in both `train` and `val`, or with indices that the
    task's sets do not have.
    """
    require(set(split) == set(PARTS), "split", f"the parts {PARTS}", tuple(split))
    check_apart(split, "split")
    sets = {"train": task.train, "val": task.train, "test": task.test}
    for part, data in sets.items():
        index = split[part]
        fits = len(index) > 0 and 0 <= int(index.min()) and int(index.max()) < len(data)
        got = Words(f"{int(index.min())} to {int(index.max())}" if len(index) else "none")
        require(fits, f"split: {part}", f"indices from 0 to {len(data) - 1}, the images of {data.name!r}", got)
    chosen = {part: data.subset(split[part]) for part, data in sets.items()}
    return Task(chosen["train"], chosen["test"]), chosen["val"]


def check_apart(split: Split, argument: str) -> None:
    """Raise ValueError for images that are both in `train` and in `val`."""
    both = torch.isin(split["train"], split["val"])
    first = Words(f"{int(both.sum())} in both, such as {int(split['train'][both][0])}" if bool(both.any()) else "")
    require(not bool(both.any()), argument, "training and validation images apart", first)


def read_split_files(folder: Path, name: str) -> dict[str, Int64[Tensor, " _"]]:
    """Read the files {name}-train, -val and -test in a folder, or in the folder `split` inside it.

    Each was written by torch.save and holds two lists: the class numbers in order, and the indices. Nothing in them is
    executed. Errors as `l2t_split`.
    """
    folder = folder / "split" if (folder / "split").is_dir() else folder
    names = sorted(path.name.removesuffix("-train") for path in folder.glob("*-train"))
    require(name in names, "name", f"one of {names}, the splits in {folder}", name)
    split, sizes = {}, set()
    for part in PARTS:
        file, expected = folder / f"{name}-{part}", "a split: a list of classes from 0 on and a list of indices"
        if not file.is_file():
            raise mismatch(str(file), expected, Words("no such file"))
        stored = load_file(file, expected, old_form=True)
        lists = isinstance(stored, list | tuple) and len(stored) == 2 and all(isinstance(p, list) for p in stored)
        require(lists, str(file), expected, Words(type(stored).__name__))
        classes, index = stored
        whole = all(type(i) is int and 0 <= i < 2**63 for i in index)
        require(whole and len(index) > 0, str(file), "indices from 0", Words("others" if index else "none"))
        require(classes == list(range(len(classes))), str(file), expected, Words("other classes"))
        split[part] = torch.tensor(index)
        sizes.add(len(classes))
    require(len(sizes) == 1, str(folder / name), "parts of the same classes", sorted(sizes))
    check_apart(split, str(folder / name))
    return split
