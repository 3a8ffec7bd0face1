"""Labelled images in memory: sets, their subsets and splits, tasks, augmentation, and batches that a run can resume.

Images are uint8 tensors; `Batches` converts them to floats in [0, 1], and each network normalises its own input.
All randomness comes from a seed through an explicit torch.Generator: the same seed gives the same bytes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Int64, Integer, UInt8
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from mtanytime.checks import Words, mismatch, require
from mtanytime.randomness import derive_seed, generator_for

Tree = dict[str, Any]  # name -> ... -> list of class names
Augment = Callable[[Tensor, Generator], Tensor]


def leaves(tree: Tree | list[str]) -> list[str]:
    """List the class names of a label tree, left to right."""
    return list(tree) if isinstance(tree, list) else [leaf for child in tree.values() for leaf in leaves(child)]


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Labelled images of one size in memory.

    Args:
        images: uint8.
        labels: the index of each image's class.
        classes: the names of the classes. A class may be empty in a subset; `few` and `split` then refuse it by name.
        tree: a label tree that holds every class once.
        name: what messages and records call the set.

    Raises:
        ValueError: images, labels or a tree that do not fit this description or each other.
    """

    images: UInt8[Tensor, "n channels height width"]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    tree: Tree | None = None
    name: str = "images"

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        fits = images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3
        require(fits, "images", "uint8 (n, 3, height, width)", Words(describe_tensor(images)))
        fits = labels.dtype == torch.int64 and labels.shape == images.shape[:1]
        require(fits, "labels", f"int64 ({len(images)},), one per image", Words(describe_tensor(labels)))
        same = labels.device == images.device
        require(same, "labels", f"the device of the images, {images.device}", Words(str(labels.device)))
        _check_range("labels", labels, len(self.classes))
        if self.tree is not None and sorted(leaves(self.tree)) != sorted(self.classes):
            odd = sorted(set(leaves(self.tree)) ^ set(self.classes))
            got = f"a tree that differs in {odd}" if odd else "a class twice"
            raise mismatch("tree", "each class once", Words(got))

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return f"ImageSet({self.name}: {len(self)} images {shape}, {len(self.classes)} classes, {self.images.device})"

    def to(self, device: torch.device | str) -> "ImageSet":
        """Copy the set to a device."""
        return self._with(self.images.to(device), self.labels.to(device))

    def subset(self, indices: Integer[Tensor, " k"] | Sequence[int]) -> "ImageSet":
        """Select the images at `indices`, in that order. Raises ValueError for an index out of range."""
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.labels.device)
        _check_range("indices", index, len(self))
        return self._with(self.images[index], self.labels[index])

    def few(self, per_class: int, seed: int) -> "ImageSet":
        """Select `per_class` random images of each class. Raises ValueError if a class has fewer."""
        by_class = self._by_class(seed)
        for name, index in zip(self.classes, by_class, strict=True):
            expected = f"1 to {len(index)}, the images of class {name!r} in {self.name!r}"
            require(1 <= per_class <= len(index), "per_class", expected, per_class)
        return self.subset(torch.stack([index[:per_class] for index in by_class], 1).flatten())

    def split(self, fraction: float, seed: int) -> tuple["ImageSet", "ImageSet"]:
        """Split into (training, validation): `fraction` of each class, rounded, is for validation, chosen at random.

        Each side gets at least one image of each class. Raises ValueError for a class with fewer than two images.
        """
        require(0 < fraction < 1, "fraction", "a number between 0 and 1", fraction)
        sides: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, index in zip(self.classes, self._by_class(seed), strict=True):
            require(len(index) >= 2, f"class {name!r} of {self.name!r}", "at least 2 images for a split", len(index))
            held = min(max(round(fraction * len(index)), 1), len(index) - 1)
            sides[0].append(index[held:])
            sides[1].append(index[:held])
        train, validation = (self.subset(torch.cat(side).sort().values) for side in sides)
        return train, validation

    def _by_class(self, seed: int) -> list[Tensor]:
        return shuffled_by_class(self.labels.cpu(), len(self.classes), generator_for(seed))

    def _with(self, images: Tensor, labels: Tensor) -> "ImageSet":
        return ImageSet(images, labels, self.classes, self.tree, self.name)


@dataclass(frozen=True, eq=False)
class Task:
    """A training and a test set with the same classes and image size. Raises ValueError if they differ in these."""

    train: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        for name, of in (("classes", lambda s: s.classes), ("image shape", lambda s: tuple(s.images.shape[1:]))):
            require(of(self.test) == of(self.train), "test", f"the {name} of train, {of(self.train)}", of(self.test))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their labels."""
        return self.train.classes

    @property
    def name(self) -> str:
        """The name of the training set."""
        return self.train.name


def describe_tensor(value: Any) -> str:
    """Describe a tensor's data type and shape, for an error."""
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def shuffled_by_class(labels: Int64[Tensor, " n"], classes: int, generator: Generator) -> list[Tensor]:
    """Return the indices of each class's images, in random order."""
    order = torch.randperm(len(labels), generator=generator)
    return [order[labels[order] == c] for c in range(classes)]


def _check_range(name: str, values: Tensor, count: int) -> None:
    """Raise ValueError unless integers are indices from 0 to count - 1."""
    if len(values):
        low, high = values.min().item(), values.max().item()
        require(0 <= low and high < count, name, f"0 to {count - 1}", Words(f"{low} to {high}"))


# Batches


def crop_flip(padding: int = 4, flip: bool = True) -> Augment:
    """Return an augmentation of batches: pad with black, crop to the old size at random, flip half of the images.

    It is torchvision's RandomCrop(size, padding) and RandomHorizontalFlip per image, with random numbers from one
    generator on the CPU, so that they are the same on every device.
    """

    def augment(images: Float[Tensor, "b c h w"], generator: Generator) -> Float[Tensor, "b c h w"]:
        b, _, h, w = images.shape
        top, left = torch.randint(2 * padding + 1, (2, b, 1), generator=generator)
        rows, columns = top + torch.arange(h), left + torch.arange(w)
        if flip:
            flipped = torch.rand(b, 1, generator=generator) < 0.5
            columns = torch.where(flipped, columns.flip(1), columns)
        rows, columns = rows.to(images.device), columns.to(images.device)
        padded = F.pad(images, [padding] * 4)
        which = torch.arange(b, device=images.device)[:, None, None]
        # Indices on both sides of the channel slice make the channels the last axis.
        return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()

    return augment


class Batches:
    """The batches of every epoch: `for images, labels in batches.epoch(e)`, images float in [0, 1], labels int64.

    They have no state: the order of epoch e depends on (seed, e) alone, and the augmentation of its batch i on
    (seed, e, i), so a run can resume anywhere: `epoch(e, start=i)` continues at batch i. The last batch may be smaller.

    A DataLoader keeps its own batch size and order (`shuffle` does not apply): pass batch_size None. Its random
    numbers, if torch draws them (its sampler, torchvision's transforms), also come from (seed, e); batches before
    `start` are loaded and dropped. Workers that persist between epochs (persistent_workers) keep their random state.

    Raises:
        ValueError: a batch size below 1, or one for a DataLoader; no images; at its first batch, a DataLoader whose
            batches are not (images in [0, 1], int64 labels).
    """

    def __init__(
        self,
        data: ImageSet | DataLoader,
        batch_size: int | None,
        seed: int,
        augment: Augment | None = None,
        shuffle: bool = True,
    ) -> None:
        if isinstance(data, DataLoader):
            own = batch_size in (None, data.batch_size)
            require(own, "batch_size", f"None, since the DataLoader has its own, {data.batch_size}", batch_size)
        else:
            require(batch_size is not None and batch_size >= 1, "batch_size", "at least 1", batch_size)
        require(len(data) > 0, "data", "at least one image", Words("none"))
        self.data, self.batch_size, self.seed, self.augment, self.shuffle = data, batch_size, seed, augment, shuffle

    def __len__(self) -> int:
        return len(self.data) if isinstance(self.data, DataLoader) else -(-len(self.data) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Float[Tensor, "b 3 h w"], Int64[Tensor, " b"]]]:
        """Iterate over the batches start, start + 1, … of an epoch, on the set's device."""
        require(0 <= start <= len(self), "start", f"0 to {len(self)}, the number of batches per epoch", start)
        if isinstance(self.data, DataLoader):
            batches = islice(self._from_loader(epoch), start, None)
        else:
            batches = self._from_set(epoch, start)
        return self._augmented(batches, epoch, start)

    def _augmented(self, batches: Iterator, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for i, (images, labels) in enumerate(batches, start):
            if self.augment is not None:
                images = self.augment(images, generator_for(self.seed, epoch, i))
            yield images, labels

    def _from_set(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        n, data = len(self.data), self.data
        order = torch.randperm(n, generator=generator_for(self.seed, epoch)) if self.shuffle else torch.arange(n)
        for index in order.to(data.labels.device).split(self.batch_size)[start:]:
            yield data.images[index].float().div_(255), data.labels[index]

    def _from_loader(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        seed = derive_seed(self.seed, epoch)
        if self.data.generator is not None:
            self.data.generator.manual_seed(seed)
        state, batches, first = Generator().manual_seed(seed).get_state(), None, True
        while True:
            # The loader draws from torch's global generator at every batch, so that gets the loader's state meanwhile.
            outside = torch.get_rng_state()
            torch.set_rng_state(state)
            try:
                batches = iter(self.data) if batches is None else batches
                batch = next(batches, None)
                state = torch.get_rng_state()
            finally:
                torch.set_rng_state(outside)
            if batch is None:
                return
            if first:
                _check_batch(batch)
            first = False
            yield batch[0].float(), batch[1]


def batches_of(data: ImageSet | DataLoader, batch_size: int, **settings: Any) -> Batches:
    """Return `Batches` of a set in batches of `batch_size`, or of a DataLoader, which keeps its own batch size."""
    return Batches(data, None if isinstance(data, DataLoader) else batch_size, **settings)


def _check_batch(batch: Any) -> None:
    """Raise ValueError unless a DataLoader's batch is images in [0, 1] and int64 labels."""
    pair = isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)
    require(pair, "data", "a DataLoader with batches (images, labels)", Words(f"a batch of {type(batch).__name__}"))
    images, labels = batch
    fits = images.is_floating_point() and images.ndim == 4 and images.shape[1] == 3
    require(fits, "images", "float (batch, 3, height, width)", Words(describe_tensor(images)))
    low, high = images.min().item(), images.max().item()
    remedy = "leave mean and std to Normalized"
    require(low >= 0 and high <= 1, "images", "values in [0, 1]", Words(f"{low:.3g} to {high:.3g}"), remedy)
    fits = labels.dtype == torch.int64 and labels.shape == images.shape[:1]
    require(fits, "labels", f"int64 ({len(images)},)", Words(describe_tensor(labels)))
