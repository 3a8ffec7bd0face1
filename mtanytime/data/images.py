"""Images in memory: the built-in tasks, the papers' data sets, splits, and batches that a run can resume in.

Images are uint8 tensors; `Batches` hands them out as floats in [0, 1] (a network normalises its own input).
Everything random comes from a seed through an explicit torch.Generator: the same seed gives the same bytes.
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

from mtanytime.randomness import derive_seed, generator_for

Tree = dict[str, Any]  # name -> ... -> list of class names
Augment = Callable[[Tensor, Generator], Tensor]


def leaves(tree: Tree | list[str]) -> list[str]:
    """The class names of a label tree, left to right."""
    return list(tree) if isinstance(tree, list) else [leaf for child in tree.values() for leaf in leaves(child)]


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Labelled images of one size in memory, checked when made; ValueError says what was wanted and what came.

    `tree`, if given, holds every class once. A class may be empty (a subset); `few` and `split` refuse it by name.
    """

    images: UInt8[Tensor, "n channels height width"]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    tree: Tree | None = None
    name: str = "images"

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"{self.name}: images must be uint8 (n, 3, height, width), got {describe_tensor(images)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{self.name}: labels must be int64 ({len(images)},), one an image, got {describe_tensor(labels)}"
            )
        if labels.device != images.device:
            raise ValueError(f"{self.name}: images are on {images.device}, labels on {labels.device}")
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(self.classes)):
            low, high = labels.min().item(), labels.max().item()
            raise ValueError(f"{self.name}: labels must be 0 to {len(self.classes) - 1}, got {low} to {high}")
        if self.tree is not None and sorted(leaves(self.tree)) != sorted(self.classes):
            odd = sorted(set(leaves(self.tree)) ^ set(self.classes)) or "a class twice"
            raise ValueError(f"{self.name}: the tree must hold each class once, differs in {odd}")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return f"ImageSet({self.name}: {len(self)} images {shape}, {len(self.classes)} classes, {self.images.device})"

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set with its tensors on `device`."""
        return self._with(self.images.to(device), self.labels.to(device))

    def subset(self, indices: Integer[Tensor, " k"] | Sequence[int]) -> "ImageSet":
        """The images at `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.labels.device)
        if len(index) and not (index.min() >= 0 and index.max() < len(self)):
            low, high = index.min().item(), index.max().item()
            raise ValueError(f"{self.name}: indices must be 0 to {len(self) - 1}, got {low} to {high}")
        return self._with(self.images[index], self.labels[index])

    def few(self, per_class: int, seed: int) -> "ImageSet":
        """`per_class` random images of each class."""
        chosen = self._by_class(seed)
        for name, index in zip(self.classes, chosen, strict=True):
            if not 1 <= per_class <= len(index):
                raise ValueError(f"{self.name}: wanted {per_class} images a class, class {name!r} has {len(index)}")
        return self.subset(torch.stack([index[:per_class] for index in chosen], 1).flatten())

    def split(self, fraction: float, seed: int) -> tuple["ImageSet", "ImageSet"]:
        """(training, validation): `fraction` of each class goes to validation, rounded, at least one to each side."""
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
        sides: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, index in zip(self.classes, self._by_class(seed), strict=True):
            if len(index) < 2:
                raise ValueError(f"{self.name}: a split needs 2 images a class, class {name!r} has {len(index)}")
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
    """A training and a test set of the same classes and image size."""

    train: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        for what, of in (("classes", lambda s: s.classes), ("image shape", lambda s: tuple(s.images.shape[1:]))):
            if of(self.train) != of(self.test):
                raise ValueError(f"{self.name}: {what} of train {of(self.train)} and test {of(self.test)} differ")

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their labels."""
        return self.train.classes

    @property
    def name(self) -> str:
        """What the task is called."""
        return self.train.name


def describe_tensor(value: Any) -> str:
    """Data type and shape of a tensor, for an error."""
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def shuffled_by_class(labels: Int64[Tensor, " n"], classes: int, generator: Generator) -> list[Tensor]:
    """The indices of each class, in random order."""
    order = torch.randperm(len(labels), generator=generator)
    return [order[labels[order] == c] for c in range(classes)]


# Batches


def crop_flip(padding: int = 4, flip: bool = True) -> Augment:
    """Augmentation of whole batches: pad with black, crop at random to the old size, flip left-right every other time.

    As torchvision's RandomCrop(size, padding) and RandomHorizontalFlip, but drawn for each image from one generator
    (on the CPU, so the same on every device).
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
        # Indices around the channel slice put it last.
        return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()

    return augment


class Batches:
    """The batches of every epoch: `for images, labels in batches.epoch(e)`, images float in [0, 1], labels int64.

    Stateless: the order of epoch e and the augmentation of its batch i depend on (seed, e) and (seed, e, i) alone, so
    a run resumes anywhere: `epoch(e, start=i)` goes on at batch i. The last, incomplete batch is used.

    A DataLoader keeps its own batch size and order: pass batch_size None. Its random numbers, as far as torch draws
    them (its sampler, torchvision's transforms), come from the derived seed too; start draws and drops; `shuffle`
    does not apply. Workers that live on between epochs (persistent_workers) keep their own random state.
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
            if batch_size not in (None, data.batch_size):
                raise ValueError(f"a DataLoader has its own batch size {data.batch_size}, got {batch_size}: pass None")
        elif batch_size is None or batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        if not len(data):
            raise ValueError("no images to take batches of")
        self.data, self.batch_size, self.seed, self.augment, self.shuffle = data, batch_size, seed, augment, shuffle

    def __len__(self) -> int:
        return len(self.data) if isinstance(self.data, DataLoader) else -(-len(self.data) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Float[Tensor, "b 3 h w"], Int64[Tensor, " b"]]]:
        """Batches start, start + 1, … of an epoch, on the set's device."""
        if not 0 <= start <= len(self):
            raise ValueError(f"start must be 0 to {len(self)}, the batches of an epoch, got {start}")
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
            # The loader draws from torch's global generator at every batch: lend it a state of its own.
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
    """`Batches` of a set, or of a DataLoader, which keeps its own batch size."""
    return Batches(data, None if isinstance(data, DataLoader) else batch_size, **settings)


def _check_batch(batch: Any) -> None:
    """Refuses what a DataLoader must not yield: anything but images in [0, 1] and int64 labels."""
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        raise ValueError(f"a batch must be (images, labels), got {type(batch).__name__}")
    images, labels = batch
    if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be float (batch, 3, height, width), got {describe_tensor(images)}")
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images must lie in [0, 1], got {low:.3g} to {high:.3g}: leave mean and std to Normalized")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels must be int64 ({len(images)},), got {describe_tensor(labels)}")
